-- The epoch: identity of the numbering. Numbers are given anew when the database goes back in time (a restore, a fail-over to
-- a standby that lagged), so a number means something only together with the epoch in which it was given.

-- One row: the present epoch, and the fingerprint of the database that it was made for. A part of the fingerprint that the
-- provider does not permit to read is null and is not compared.
create table epochs (
    only_one          boolean     primary key default true check (only_one),
    epoch             text        not null check (epoch ~ '^[a-z][a-z0-9]{0,63}$'), -- no ':', because clients write FEED:SEQ:EPOCH
    system_identifier text,                -- another one after a restore into a new cluster
    timeline          text,                -- another one after a promotion or a point-in-time recovery
    database_oid      oid,                 -- another one after a restore into a new database
    feeds_oid         oid,                 -- another one after pg_restore --clean
    since             timestamptz not null default now(),
    reason            text        not null, -- why it was renewed
    lowered           boolean     not null default false -- lower_cursors() has looked at every feed
);

-- Reads the present fingerprint, and how far the write-ahead log is inserted and flushed, in bytes.
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
        -- Unlike pg_control_checkpoint(), this names the new timeline at once after a promotion.
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

-- Makes a new epoch where in_old is the present one, or where in_old is null; returns the present one. Of several callers with
-- the same in_old one makes it.
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

-- Returns the present epoch; makes a new one first where the fingerprint is another than the stored one, or where the log
-- ends before in_flushed, which the caller read while in_known was the present epoch: a copy of an older state was put in
-- place. Also returns how far the log is flushed. Fails on a standby, which may lag, and may be promoted later. Writes and
-- locks nothing while nothing has changed.
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

-- Fails where in_epoch is not the present one. A mark must not change another notification than the client meant.
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

-- As before, in one order whatever collation the database has. For replicas of an earlier version.
create or replace function advance_cursors(in_feeds text[], in_subscribers text[], in_devices text[], in_seqs bigint[])
returns void
language plpgsql volatile as $$
#variable_conflict use_column
begin
    insert into cursors as c (feed, subscriber, device, acked_seq)
        select a.feed, a.subscriber, a.device, least(a.seq, f.last_seq)
        from unnest(in_feeds, in_subscribers, in_devices, in_seqs) as a (feed, subscriber, device, seq)
        join feeds f on f.feed = a.feed
        order by a.feed collate "C", a.subscriber collate "C", a.device collate "C"
        on conflict (feed, subscriber, device) do update
            set acked_seq = excluded.acked_seq, updated_at = now()
            where c.acked_seq < excluded.acked_seq;

    insert into feeds as f (feed, acked_seq)
        select k.feed, least(a.seq, k.last_seq)
        from (select u.feed, max(u.seq) as seq from unnest(in_feeds, in_seqs) as u (feed, seq) group by u.feed) a
        join feeds k on k.feed = a.feed and k.acked_seq < least(a.seq, k.last_seq)
        order by k.feed collate "C"
        on conflict (feed) do update
            set acked_seq = excluded.acked_seq
            where f.acked_seq < excluded.acked_seq;
end
$$;

-- Takes a batch of acks that were given in in_epoch, as the function above. Does nothing where that is not the present epoch:
-- its numbers may be those of other notifications now. Returns the present epoch; a new one where an ack was above the last
-- number of its feed, because then the database has lost that notification. A canary's feed is forgotten on purpose. Also
-- returns how far the log is flushed, which is beyond everything that was acknowledged.
create function advance_cursors(
    in_epoch text, in_feeds text[], in_subscribers text[], in_devices text[], in_seqs bigint[], out epoch text, out flushed bigint)
language plpgsql volatile as $$
#variable_conflict use_column
declare
    beyond boolean;
begin
    select e.epoch, e.flushed into epoch, flushed from current_epoch() e;
    if epoch <> in_epoch then
        return;
    end if;

    with acks as materialized (
        select a.feed, a.subscriber, a.device, a.seq, f.last_seq
        from unnest(in_feeds, in_subscribers, in_devices, in_seqs) as a (feed, subscriber, device, seq)
        join feeds f on f.feed = a.feed
        order by a.feed collate "C", a.subscriber collate "C", a.device collate "C"
    ), moved as (
        insert into cursors as c (feed, subscriber, device, acked_seq)
        select a.feed, a.subscriber, a.device, least(a.seq, a.last_seq) from acks a
        on conflict (feed, subscriber, device) do update
            set acked_seq = excluded.acked_seq, updated_at = now()
            where c.acked_seq < excluded.acked_seq
    )
    select bool_or(a.seq > a.last_seq and a.feed not like 'shopbell-canary/%') into beyond from acks a;

    insert into feeds as f (feed, acked_seq)
        select k.feed, least(a.seq, k.last_seq)
        from (select u.feed, max(u.seq) as seq from unnest(in_feeds, in_seqs) as u (feed, seq) group by u.feed) a
        join feeds k on k.feed = a.feed and k.acked_seq < least(a.seq, k.last_seq)
        order by k.feed collate "C"
        on conflict (feed) do update
            set acked_seq = excluded.acked_seq
            where f.acked_seq < excluded.acked_seq;

    if beyond then
        epoch := renew_epoch(in_epoch, 'an ack was above the last number of its feed');
    end if;
end
$$;

-- Moves back what stands above the last number of its feed, as after a restore of some tables only: a subscriber would never
-- be sent the notifications that get these numbers. Looks at in_feeds_max feeds after in_after; returns the last of them, or
-- null at the end.
create function lower_cursors(in_after text, in_feeds_max integer) returns text language plpgsql volatile as $$
declare
    through text;
begin
    select max(w.feed) into through
        from (select f.feed from feeds f where f.feed > in_after order by f.feed limit in_feeds_max) w;
    update cursors c
        set acked_seq = f.last_seq
        from feeds f
        where f.feed > in_after and f.feed <= through and c.feed = f.feed and c.acked_seq > f.last_seq;
    -- A later migration makes this table.
    update evicted_cursors c
        set acked_seq = f.last_seq
        from feeds f
        where f.feed > in_after and f.feed <= through and c.feed = f.feed and c.acked_seq > f.last_seq;
    update feeds f
        set acked_seq = f.last_seq
        where f.feed > in_after and f.feed <= through and f.acked_seq > f.last_seq;
    return through;
end
$$;

select current_epoch();
