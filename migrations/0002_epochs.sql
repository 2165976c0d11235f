-- The epoch: the identity of the numbering. After a restore, or a fail-over to a standby that lagged, the
-- database gives the same numbers to other notifications. So a number is valid only in its epoch.

-- One row: the present epoch, and the fingerprint of the database that it was made for. A part of the
-- fingerprint is null, and is not compared, if the provider does not permit to read it.
create table epochs (
    only_one          boolean     primary key default true check (only_one),
    epoch             text        not null check (epoch ~ '^[a-z][a-z0-9]{0,63}$'), -- no ':' for FEED:SEQ:EPOCH
    system_identifier text,                -- changes with a restore into a new cluster
    timeline          text,                -- changes with a promotion or a point-in-time recovery
    database_oid      oid,                 -- changes with a restore into a new database
    feeds_oid         oid,                 -- changes with pg_restore --clean
    since             timestamptz not null default now(),
    reason            text        not null, -- of the last renewal, for people
    lowered           boolean     not null default false -- lower_cursors() has processed every feed
);

-- Reads the present fingerprint, and the inserted and flushed positions of the write-ahead log, in bytes.
create function read_fingerprint(
    out system_identifier text, out timeline text, out database_oid oid, out feeds_oid oid, out inserted bigint, out flushed bigint)
language plpgsql volatile as $$
begin
    begin
        select c.system_identifier::text into system_identifier from pg_control_system() c;
    exception when insufficient_privilege or undefined_function or feature_not_supported then
        null;
    end;
    begin
        -- pg_control_checkpoint() has the new timeline only some time after a promotion.
        timeline := left(pg_walfile_name(pg_current_wal_insert_lsn()), 8);
        flushed := pg_current_wal_flush_lsn() - '0/0'::pg_lsn;
        inserted := pg_current_wal_insert_lsn() - '0/0'::pg_lsn;
    exception when insufficient_privilege or undefined_function or feature_not_supported then
        null;
    end;
    select d.oid into database_oid from pg_database d where d.datname = current_database();
    feeds_oid := 'feeds'::regclass::oid;
end
$$;

-- Returns the flushed position of the write-ahead log in bytes, or null if the provider does not permit to read it.
create function flushed_position() returns bigint language plpgsql volatile as $$
begin
    return pg_current_wal_flush_lsn() - '0/0'::pg_lsn;
exception when insufficient_privilege or undefined_function or feature_not_supported then
    return null;
end
$$;

-- Returns whether in_epoch is the present epoch, and the fingerprint is still that of this epoch. Behind a pooler
-- a fail-over may end no connection, so a statement that stores numbers of clients calls it. Takes about 20 µs.
create function is_present_epoch(in_epoch text) returns boolean language sql stable as $$
    select exists (
        select from epochs e, read_fingerprint() p
        where e.epoch = in_epoch
          and (e.system_identifier <> p.system_identifier) is not true
          and (e.timeline <> p.timeline) is not true
          and (e.database_oid <> p.database_oid) is not true
          and (e.feeds_oid <> p.feeds_oid) is not true)
$$;

-- Begins a new epoch if in_old is the present one, or if in_old is null. Returns the present epoch. If several
-- sessions call it with the same in_old, one of them begins the epoch: an advisory lock puts them in order.
create function renew_epoch(in_old text, in_reason text) returns text language plpgsql volatile as $$
declare
    present record;
    current text;
begin
    perform pg_advisory_xact_lock(hashtext('shopbell epoch'));
    select e.epoch into current from epochs e;
    if current is not null and in_old is not null and current <> in_old then
        return current;
    end if;
    select * into present from read_fingerprint();
    insert into epochs as e (epoch, system_identifier, timeline, database_oid, feeds_oid, reason)
        values ('e' || left(replace(gen_random_uuid()::text, '-', ''), 16), present.system_identifier, present.timeline,
                present.database_oid, present.feeds_oid, in_reason)
        on conflict (only_one) do update
            set epoch = excluded.epoch, system_identifier = excluded.system_identifier, timeline = excluded.timeline,
                database_oid = excluded.database_oid, feeds_oid = excluded.feeds_oid, since = excluded.since,
                reason = excluded.reason, lowered = false
        returning e.epoch into current;
    return current;
end
$$;

-- Returns the present epoch and the flushed position of the log. Begins a new epoch first if the fingerprint
-- has changed, or if the log ends before in_flushed, because then the database is a copy of an older state.
-- The caller read in_flushed in epoch in_known. Fails on a standby, because it may lag and be promoted later.
-- Writes and locks nothing if nothing has changed.
create function current_epoch(in_known text default null, in_flushed bigint default null, out epoch text, out flushed bigint)
language plpgsql volatile as $$
#variable_conflict use_column
declare
    kept    epochs;
    present record;
    reason  text;
begin
    if pg_is_in_recovery() then
        raise exception 'this server is a standby: connect to the primary' using errcode = 'read_only_sql_transaction';
    end if;
    select * into present from read_fingerprint();
    select * into kept from epochs;
    reason := case
        when kept.epoch is null then 'the database has no epoch'
        when kept.system_identifier <> present.system_identifier then 'another cluster'
        when kept.timeline <> present.timeline then 'another timeline'
        when kept.database_oid <> present.database_oid then 'another database'
        when kept.feeds_oid <> present.feeds_oid then 'the tables were restored'
        when kept.epoch = in_known and present.inserted < in_flushed then 'the log ends earlier than before'
    end;
    flushed := present.flushed;
    epoch := case when reason is null then kept.epoch else renew_epoch(kept.epoch, reason) end;
end
$$;

-- Fails with SB001 if in_epoch is not the present epoch, so that a mark cannot change the wrong notification.
create function require_epoch(in_epoch text) returns boolean language plpgsql volatile as $$
declare
    present text := (select e.epoch from current_epoch() e);
begin
    if present <> in_epoch then
        raise exception 'the epoch % is over, the present one is %', in_epoch, present using errcode = 'SB001';
    end if;
    return true;
end
$$;

-- A new database has an epoch before the first replica connects.
select current_epoch();
