-- All locks at once, in the order in which the statements of the service take them, so that nobody waits in a circle.
lock table canaries, cursors, feeds, imports, notifications, changes, traces in access exclusive mode;

-- Retention may have removed the rows up to this number. Above it, a number without a row is lost.
alter table feeds add column trimmed_seq bigint not null default 0 check (trimmed_seq >= 0);

-- Keys are compared byte by byte. An index in the order of a locale is wrong after an upgrade of libc or ICU that changes that
-- order: lookups then miss rows that are there. No table is rewritten; the indexes are built anew, and nobody reads or writes a
-- table meanwhile. `docs/upgrade.md` states how long, and how to build the large ones before.
create temporary table undelivered_grants on commit drop as
    select g.grantee, g.privilege_type, g.is_grantable
    from pg_class c, aclexplode(c.relacl) g
    where c.oid = 'undelivered'::regclass and g.grantee <> c.relowner;
drop view undelivered;

alter table feeds alter column feed type text collate "C";

alter table cursors
    alter column feed type text collate "C",
    alter column subscriber type text collate "C",
    alter column device type text collate "C";

alter table imports
    alter column feed type text collate "C",
    alter column import_id type text collate "C";

alter table changes alter column feed type text collate "C";
alter table traces alter column feed type text collate "C";

alter table canaries
    alter column feed type text collate "C",
    alter column broadcast_feed type text collate "C";

-- An index that was built before takes the place of the old one.
do $$
declare
    built text[] := array(
        select c.relname::text from pg_class c join pg_index i on i.indexrelid = c.oid
        where c.relname in ('notifications_pkey_c', 'notifications_identity_c')
          and i.indrelid = 'notifications'::regclass and i.indisvalid);
begin
    if 'notifications_pkey_c' = any (built) then
        alter table notifications drop constraint notifications_pkey;
    end if;
    if 'notifications_identity_c' = any (built) then
        alter table notifications drop constraint notifications_source_event_id_feed_key;
    end if;

    alter table notifications
        alter column feed type text collate "C",
        alter column source type text collate "C",
        alter column event_id type text collate "C",
        alter column collapse_key type text collate "C";

    if 'notifications_pkey_c' = any (built) then
        alter table notifications add constraint notifications_pkey primary key using index notifications_pkey_c;
    end if;
    if 'notifications_identity_c' = any (built) then
        alter table notifications
            add constraint notifications_source_event_id_feed_key unique using index notifications_identity_c;
    end if;
end
$$;

-- For operators: what nobody has acknowledged yet.
create view undelivered as
    select n.feed, n.seq, n.source, n.event_id, n.event_type, n.time, n.created_at, n.expires_at
    from feeds f
    join notifications n on n.feed = f.feed and n.seq > f.acked_seq
    where f.acked_seq < f.last_seq;

do $$
declare
    given record;
begin
    for given in select * from undelivered_grants loop
        execute format('grant %s on undelivered to %s %s', given.privilege_type,
                       case given.grantee when 0 then 'public' else given.grantee::regrole::text end,
                       case when given.is_grantable then 'with grant option' end);
    end loop;
end
$$;

-- Postgres refuses a statement that was prepared before its result's collation changed, on the same connection, for ever. So the
-- replicas that run get new connections; they try again by themselves what this interrupts.
do $$
begin
    perform pg_terminate_backend(a.pid) from pg_stat_activity a
        where a.datname = current_database() and a.application_name = 'shopbell' and a.pid <> pg_backend_pid();
exception when insufficient_privilege then
    raise warning 'this role may not end the connections of the service: restart every replica now';
end
$$;
