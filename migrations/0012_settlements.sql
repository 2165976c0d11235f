-- Settlements: an event settles earlier notifications of its source, for example a cancellation its order. They
-- become handled in the transaction that stores the event.
--
-- A subject is stored as a key: event_identity() with the subject in place of the event id. So a key is of one feed and
-- one source.

alter table notifications
    add column subject_key uuid, -- of its subject; null if it has none
    add column order_key   uuid; -- of its order_id, if its subject differs

-- Settlements that were stored before their notification. It is settled when it is stored, and the row is deleted. An
-- 'order.updated' is settled too, and leaves the row for its order. Housekeeping deletes rows after a week.
create table early_settlements (
    subject_key uuid        primary key,
    feed        text        collate "C" not null,
    handled_by  text        not null, -- that the notification gets
    made_at     timestamptz not null default now()
);
create index early_settlements_feed on early_settlements (feed);

-- The rows of a feed in early_settlements. An append reads it with the lock of the feed, so it misses no settlement
-- that another transaction has stored meanwhile.
alter table feeds add column early_settlements bigint not null default 0 check (early_settlements >= 0);

-- Settles after an append, in the order of its events. The arrays in_feeds to in_order_keys have an element for each event.
-- The arrays in_settling_events to in_handled_bys have an element for each subject that an event settles: the place of
-- the event (from 1), the key, and the handled_by. Returns a row for each change of a feed, with the place of the event
-- if the event itself was settled.
-- The caller has locked the feeds.
create function settle_notifications(
    in_feeds text[], in_seqs bigint[], in_new boolean[], in_event_types text[], in_subject_keys uuid[], in_order_keys uuid[],
    in_settling_events bigint[], in_settled_keys uuid[], in_handled_bys text[], in_marked_at timestamptz, in_marks_max bigint)
returns table (feed text, settled_event bigint)
language plpgsql volatile as $$
#variable_conflict use_column
declare
    event    record;
    handler  text;
    marked   bigint[];
    kept     bigint; -- rows of the feed in early_settlements that this event adds
    feed_row feeds;
begin
    for event in
        select e.*, s.settled_keys, s.handled_by
        from unnest(in_feeds, in_seqs, in_new, in_event_types, in_subject_keys, in_order_keys) with ordinality
            as e (feed, seq, is_new, event_type, subject_key, order_key, ordinal)
        left join (
            select u.event, array_agg(u.key) as settled_keys, min(u.handled_by) as handled_by
            from unnest(in_settling_events, in_settled_keys, in_handled_bys) as u (event, key, handled_by)
            group by u.event) s on s.event = e.ordinal
        where e.is_new and coalesce(e.subject_key, e.order_key, s.settled_keys[1]) is not null
        order by e.ordinal
    loop
        marked := null;
        kept := 0;
        if event.settled_keys is null then
            select s.handled_by into handler from early_settlements s
                where s.subject_key in (event.subject_key, event.order_key) limit 1;
            continue when handler is null;
            if event.event_type <> 'order.updated' then
                with deleted as (
                    delete from early_settlements s where s.subject_key in (event.subject_key, event.order_key) returning true)
                select -count(*) into kept from deleted;
            end if;
            with updated as (
                update notifications n set handled_at = in_marked_at, handled_by = handler
                where n.feed = event.feed and n.seq = event.seq and n.handled_at is null
                returning n.seq)
            select array_agg(u.seq) into marked from updated u;
        else
            with updated as (
                update notifications n set handled_at = in_marked_at, handled_by = event.handled_by
                where (n.subject_key = any (event.settled_keys) or n.order_key = any (event.settled_keys))
                  and n.feed = event.feed and n.seq < event.seq and n.handled_at is null
                returning n.seq)
            select array_agg(u.seq order by u.seq) into marked from updated u;
            -- A change or a second cancellation of an order does not show that the order itself was stored.
            if marked is null and not exists (
                select from notifications n
                where (n.subject_key = any (event.settled_keys) or n.order_key = any (event.settled_keys))
                  and n.feed = event.feed and n.seq < event.seq
                  and n.event_type not in ('order.updated', 'order.cancelled')) then
                with inserted as (
                    insert into early_settlements (subject_key, feed, handled_by)
                    select k.key, event.feed, event.handled_by from unnest(event.settled_keys) as k (key)
                    on conflict do nothing returning true)
                select count(*) into kept from inserted;
            end if;
        end if;

        if marked is not null then
            update feeds f
                set version = f.version + 1, unhandled = f.unhandled - cardinality(marked),
                    early_settlements = f.early_settlements + kept
                where f.feed = event.feed returning f.* into feed_row;
            insert into marks (feed, version, kind, seqs, marked_at, marked_by, unread, unhandled, last_seq)
                values (event.feed, feed_row.version, 'handled', marked, in_marked_at,
                        case when event.settled_keys is null then handler else event.handled_by end,
                        feed_row.unread, feed_row.unhandled, feed_row.last_seq);
            delete from marks m where m.feed = event.feed and m.version <= feed_row.version - in_marks_max;
            update receipts r
                set settled_at = in_marked_at,
                    settled_by = case when event.settled_keys is null then handler else event.handled_by end, due_at = now()
                where r.feed = event.feed and r.seq = any (marked);
            return query select event.feed, case when event.settled_keys is null then event.ordinal end;
        elsif kept <> 0 then
            update feeds f set early_settlements = f.early_settlements + kept where f.feed = event.feed;
        end if;
    end loop;
end
$$;

-- The functions of 0008_appends.sql, with receipts, subjects and settlements.

-- Stores a batch with import events if none of its events was stored before, which is nearly always true. Then it locks,
-- updates and reads each feed in one pass. Returns the last number of each feed in in_feeds, and the progress after
-- each import event. If an event is stored, a feed is held or a settlement waits, it stores nothing and returns null.
-- If another transaction stores an event or such a settlement meanwhile, or the row of a feed with notifications is
-- missing, it fails (23505). After both, the caller uses append_notifications().
-- The array in_feeds has each feed once, in_added the number of its events, and in_news the number of its news.
-- For each event, in_later_in_batch is the number of events of its feed that follow in the batch.
-- Locks feeds in C order, because an upsert locks its rows in the order given. append_notifications() locks new
-- feeds first. If new feeds meet existing ones, Postgres may end one batch (40P01), and ingest repeats it.
create function append_new_notifications(
    in_feeds text[], in_added bigint[], in_news bigint[],
    in_event_feeds text[], in_later_in_batch bigint[], in_identities uuid[], in_sources text[], in_event_ids text[],
    in_event_types text[], in_times timestamptz[], in_data text[], in_collapse_keys text[], in_expires_at timestamptz[],
    in_subject_keys uuid[], in_order_keys uuid[], in_received_at timestamptz,
    in_step_events bigint[], in_step_import_ids text[], in_step_items bigint[], in_step_done bigint[],
    in_step_failed bigint[], in_step_totals bigint[], in_step_statuses text[],
    in_asking_events bigint[], in_wanted integer[], in_deliver_bys timestamptz[], in_handle_bys timestamptz[],
    out last_seqs bigint[], out steps_done bigint[], out steps_failed bigint[], out steps_total bigint[])
language plpgsql volatile as $$
begin
    if exists (select from held_feeds h where h.feed = any (in_feeds))
       or exists (select from notifications n where n.identity = any (in_identities))
       or exists (select from early_settlements s where s.feed = any (in_feeds)) then
        return;
    end if;

    with counted as (
        insert into feeds as f (feed, last_seq, unread, unhandled)
        select g.feed, g.added, g.news, g.news
        from unnest(in_feeds, in_added, in_news) as g (feed, added, news)
        order by g.feed collate "C"
        on conflict (feed) do update
            set last_seq = f.last_seq + excluded.last_seq,
                unread = f.unread + excluded.unread,
                unhandled = f.unhandled + excluded.unhandled
        returning f.feed, f.last_seq
    )
    select array_agg(c.last_seq order by g.ordinal) into last_seqs
    from unnest(in_feeds) with ordinality as g (feed, ordinal)
    join counted c on c.feed = g.feed;
    if exists (select from early_settlements s where s.feed = any (in_feeds)) then
        raise unique_violation using message = 'a settlement was stored meanwhile',
            table = 'notifications', constraint = 'notifications_pkey';
    end if;
    -- A feed without its row would use numbers again that retention has removed.
    if exists (select from unnest(in_feeds, in_added, last_seqs) as g (feed, added, last_seq)
               where g.last_seq = g.added and exists (select from notifications n where n.feed = g.feed)) then
        raise unique_violation using message = 'the row of a feed was missing',
            table = 'notifications', constraint = 'notifications_pkey';
    end if;

    select c.steps_done, c.steps_failed, c.steps_total into steps_done, steps_failed, steps_total
    from count_import_steps(
        (select array_agg(in_event_feeds[s.event] order by s.ordinal)
         from unnest(in_step_events) with ordinality as s (event, ordinal)),
        in_step_import_ids, in_step_items, in_step_done, in_step_failed, in_step_totals, in_step_statuses) c;

    insert into notifications (feed, seq, identity, source, event_id, event_type, time, data, collapse_key, expires_at,
                               subject_key, order_key, read_at, handled_at, import_done, import_failed, import_total)
    select e.feed, g.last_seq - e.later_in_batch, e.identity, e.source, e.event_id, e.event_type, e.time, e.data,
           e.collapse_key, e.expires_at, e.subject_key, e.order_key, p.marked_at, p.marked_at, p.done, p.failed, p.total
    from unnest(in_event_feeds, in_later_in_batch, in_identities, in_sources, in_event_ids, in_event_types, in_times, in_data,
                in_collapse_keys, in_expires_at, in_subject_keys, in_order_keys)
        with ordinality
        as e (feed, later_in_batch, identity, source, event_id, event_type, time, data, collapse_key, expires_at, subject_key,
              order_key, event)
    join unnest(in_feeds, last_seqs) as g (feed, last_seq) on g.feed = e.feed
    left join (
        select s.event, case when s.is_done = 1 and s.is_failed = 0 then in_received_at end as marked_at,
               s.done, s.failed, s.total
        from unnest(in_step_events, in_step_done, in_step_failed, steps_done, steps_failed, steps_total)
            as s (event, is_done, is_failed, done, failed, total)) p on p.event = e.event;

    if cardinality(in_asking_events) > 0 then
        perform ask_receipts(
            in_event_feeds,
            (select array_agg(g.last_seq - e.later_in_batch order by e.event)
             from unnest(in_event_feeds, in_later_in_batch) with ordinality as e (feed, later_in_batch, event)
             join unnest(in_feeds, last_seqs) as g (feed, last_seq) on g.feed = e.feed),
            array_fill(true, array[cardinality(in_event_feeds)]), in_sources, in_event_ids, in_event_types, in_expires_at,
            in_received_at, in_asking_events, in_wanted, in_deliver_bys, in_handle_bys);
    end if;
end
$$;

-- Stores a batch of which some events may be stored already, or settle others. Returns for each event, in the order
-- given, its number, whether it is a duplicate, and the progress of its import if it is new. Returns also whether an earlier
-- settlement settled it, and the version of its feed if the batch settled notifications there. Duplicates change no import and
-- settle nothing. The arrays in_asking_events to in_handle_bys are those of ask_receipts().
-- Fails (23505) if the row of a feed with notifications was missing, so that the caller repairs the feed. Fails
-- (SB002) if a feed is held, unless in_held.
-- Locks feeds in C order; finds duplicates by notifications_identity_key.
create function append_notifications(
    in_feeds text[], in_identities uuid[], in_sources text[], in_event_ids text[], in_event_types text[],
    in_times timestamptz[], in_data text[], in_collapse_keys text[], in_expires_at timestamptz[],
    in_subject_keys uuid[], in_order_keys uuid[], in_received_at timestamptz,
    in_step_events bigint[], in_step_import_ids text[], in_step_items bigint[], in_step_done bigint[],
    in_step_failed bigint[], in_step_totals bigint[], in_step_statuses text[],
    in_asking_events bigint[], in_wanted integer[], in_deliver_bys timestamptz[], in_handle_bys timestamptz[],
    in_settling_events bigint[], in_settled_keys uuid[], in_handled_bys text[], in_marks_max bigint, in_held boolean)
returns table (ordinal bigint, seq bigint, duplicate boolean, import_done bigint, import_failed bigint, import_total bigint,
               settled boolean, version bigint)
language plpgsql volatile as $$
#variable_conflict use_column
declare
    places       bigint[];  -- the stored number of each event, or null if it is new
    firsts       boolean[]; -- the event is new, and the first of its identity in the batch
    steps        bigint[];  -- the events that change an import
    steps_done   bigint[];
    steps_failed bigint[];
    steps_total  bigint[];
    seqs         bigint[];  -- the number of each event
    done         bigint[];  -- the progress of the import of each event
    failed       bigint[];
    totals       bigint[];
    changed      text[];    -- feeds with settled notifications
    settled_events bigint[]; -- events that an earlier settlement settled
begin
    if not in_held and exists (select from held_feeds h where h.feed = any (in_feeds)) then
        raise exception 'a feed is held' using errcode = 'SB002';
    end if;

    insert into feeds (feed)
        select distinct wanted.feed collate "C"
        from unnest(in_feeds) as wanted (feed)
        where not exists (select from feeds f where f.feed = wanted.feed)
        order by 1
        on conflict do nothing;

    perform from feeds f where f.feed = any (in_feeds) order by f.feed collate "C" for update;
    if exists (select from feeds f
               where f.feed = any (in_feeds) and f.last_seq = 0
                 and exists (select from notifications n where n.feed = f.feed)) then
        raise unique_violation using message = 'the row of a feed was missing';
    end if;

    select array_agg(n.seq order by i.ordinal),
           array_agg(n.seq is null and i.occurrence = 1 order by i.ordinal)
    into places, firsts
    from (select u.*, row_number() over (partition by u.identity order by u.ordinal) as occurrence
          from unnest(in_identities) with ordinality as u (identity, ordinal)) i
    left join lateral (
        select r.seq from notifications r
        where r.identity = i.identity
        limit 1) n on true;

    select array_agg(s.event order by s.ordinal) into steps
    from unnest(in_step_events) with ordinality as s (event, ordinal)
    where firsts[s.event];
    if steps is not null then
        select c.steps_done, c.steps_failed, c.steps_total into steps_done, steps_failed, steps_total
        from (select array_agg(in_feeds[s.event] order by s.ordinal) as feeds,
                     array_agg(s.import_id order by s.ordinal) as import_ids, array_agg(s.item order by s.ordinal) as items,
                     array_agg(s.done order by s.ordinal) as done, array_agg(s.failed order by s.ordinal) as failed,
                     array_agg(s.total order by s.ordinal) as totals, array_agg(s.status order by s.ordinal) as statuses
              from unnest(in_step_events, in_step_import_ids, in_step_items, in_step_done, in_step_failed, in_step_totals,
                          in_step_statuses)
                  with ordinality as s (event, import_id, item, done, failed, total, status, ordinal)
              where firsts[s.event]) s
        cross join lateral count_import_steps(s.feeds, s.import_ids, s.items, s.done, s.failed, s.totals, s.statuses) c;
    end if;

    with incoming as (
        select u.*, firsts[u.ordinal] as is_first
        from unnest(in_feeds, in_identities, in_sources, in_event_ids, in_event_types, in_times, in_data, in_collapse_keys,
                    in_expires_at, in_subject_keys, in_order_keys)
            with ordinality as u (feed, identity, source, event_id, event_type, time, data, collapse_key, expires_at,
                                  subject_key, order_key, ordinal)
    ), placed as (
        select s.event, case when k.done = 1 and k.failed = 0 then in_received_at end as marked_at,
               s.done, s.failed, s.total
        from unnest(steps, steps_done, steps_failed, steps_total) as s (event, done, failed, total)
        join unnest(in_step_events, in_step_done, in_step_failed) as k (event, done, failed) on k.event = s.event
    ), numbered as (
        select i.*, f.last_seq + row_number() over (partition by i.feed order by i.ordinal) as seq, p.marked_at, p.done,
               p.failed, p.total
        from incoming i
        join feeds f on f.feed = i.feed
        left join placed p on p.event = i.ordinal
        where i.is_first
    ), inserted as (
        insert into notifications (feed, seq, identity, source, event_id, event_type, time, data, collapse_key, expires_at,
                                   subject_key, order_key, read_at, handled_at, import_done, import_failed, import_total)
        select n.feed, n.seq, n.identity, n.source, n.event_id, n.event_type, n.time, n.data, n.collapse_key, n.expires_at,
               n.subject_key, n.order_key, n.marked_at, n.marked_at, n.done, n.failed, n.total
        from numbered n
        order by n.ordinal
    ), counted as (
        update feeds f
        set last_seq = f.last_seq + c.added, unread = f.unread + c.news, unhandled = f.unhandled + c.news
        from (select n.feed, count(*) as added, count(*) filter (where n.marked_at is null) as news
              from numbered n group by n.feed) c
        where f.feed = c.feed
    )
    select array_agg(coalesce(places[i.ordinal], n.seq) order by i.ordinal), array_agg(n.done order by i.ordinal),
           array_agg(n.failed order by i.ordinal), array_agg(n.total order by i.ordinal)
    into seqs, done, failed, totals
    from incoming i
    left join numbered n on n.identity = i.identity;

    if cardinality(in_asking_events) > 0 then
        perform ask_receipts(in_feeds, seqs, firsts, in_sources, in_event_ids, in_event_types, in_expires_at, in_received_at,
                             in_asking_events, in_wanted, in_deliver_bys, in_handle_bys);
    end if;

    if cardinality(in_settling_events) > 0
       or exists (select from feeds f where f.feed = any (in_feeds) and f.early_settlements > 0) then
        select array_agg(s.feed), array_agg(s.settled_event) into changed, settled_events
        from settle_notifications(in_feeds, seqs, firsts, in_event_types, in_subject_keys, in_order_keys, in_settling_events,
                                  in_settled_keys, in_handled_bys, in_received_at, in_marks_max) s;
    end if;

    return query
    select i.ordinal, seqs[i.ordinal], not firsts[i.ordinal], done[i.ordinal], failed[i.ordinal], totals[i.ordinal],
           coalesce(i.ordinal = any (settled_events), false),
           (select f.version from feeds f where f.feed = i.feed and f.feed = any (changed))
    from unnest(in_feeds) with ordinality as i (feed, ordinal)
    order by i.ordinal;
end
$$;

-- Replicas of an older version call the functions with the signatures of 0008_appends.sql.

create or replace function append_new_notifications(
    in_feeds text[], in_added bigint[], in_news bigint[],
    in_event_feeds text[], in_later_in_batch bigint[], in_identities uuid[], in_sources text[], in_event_ids text[],
    in_event_types text[], in_times timestamptz[], in_data text[], in_collapse_keys text[], in_expires_at timestamptz[],
    in_received_at timestamptz,
    in_step_events bigint[], in_step_import_ids text[], in_step_items bigint[], in_step_done bigint[],
    in_step_failed bigint[], in_step_totals bigint[], in_step_statuses text[],
    out last_seqs bigint[], out steps_done bigint[], out steps_failed bigint[], out steps_total bigint[])
language plpgsql volatile as $$
begin
    select a.last_seqs, a.steps_done, a.steps_failed, a.steps_total into last_seqs, steps_done, steps_failed, steps_total
    from append_new_notifications(
        in_feeds, in_added, in_news, in_event_feeds, in_later_in_batch, in_identities, in_sources, in_event_ids, in_event_types,
        in_times, in_data, in_collapse_keys, in_expires_at, array_fill(null::uuid, array[cardinality(in_event_feeds)]),
        array_fill(null::uuid, array[cardinality(in_event_feeds)]), in_received_at, in_step_events, in_step_import_ids,
        in_step_items, in_step_done, in_step_failed, in_step_totals, in_step_statuses, '{}', '{}', '{}', '{}') a;
end
$$;

create or replace function append_notifications(
    in_feeds text[], in_identities uuid[], in_sources text[], in_event_ids text[], in_event_types text[],
    in_times timestamptz[], in_data text[], in_collapse_keys text[], in_expires_at timestamptz[],
    in_received_at timestamptz,
    in_step_events bigint[], in_step_import_ids text[], in_step_items bigint[], in_step_done bigint[],
    in_step_failed bigint[], in_step_totals bigint[], in_step_statuses text[],
    in_held boolean)
returns table (ordinal bigint, seq bigint, duplicate boolean, import_done bigint, import_failed bigint, import_total bigint)
language plpgsql volatile as $$
#variable_conflict use_column
begin
    return query
    select a.ordinal, a.seq, a.duplicate, a.import_done, a.import_failed, a.import_total
    from append_notifications(
        in_feeds, in_identities, in_sources, in_event_ids, in_event_types, in_times, in_data, in_collapse_keys, in_expires_at,
        array_fill(null::uuid, array[cardinality(in_feeds)]), array_fill(null::uuid, array[cardinality(in_feeds)]),
        in_received_at, in_step_events, in_step_import_ids, in_step_items, in_step_done, in_step_failed, in_step_totals,
        in_step_statuses, '{}', '{}', '{}', '{}', '{}', '{}', '{}', 1000, in_held) a;
end
$$;

-- The function of 0007_dead_letters.sql, which also counts early settlements.
create or replace function repair_feed(in_feed text) returns boolean language plpgsql volatile as $$
declare
    newest_seq  bigint;
    newest_mark bigint;
    was_missing boolean;
begin
    insert into feeds (feed) values (in_feed) on conflict do nothing;
    was_missing := found;
    perform from feeds f where f.feed = in_feed for update;
    select max(n.seq) into newest_seq from notifications n where n.feed = in_feed;
    select max(m.version) into newest_mark from marks m where m.feed = in_feed;
    if not exists (select from feeds f
                   where f.feed = in_feed and (f.last_seq < coalesce(newest_seq, 0) or f.version < coalesce(newest_mark, 0))) then
        return false;
    end if;
    update feeds f
        set last_seq = greatest(f.last_seq, newest_seq), version = greatest(f.version, newest_mark),
            unread = n.unread, unhandled = n.unhandled,
            trimmed_seq = case when was_missing then coalesce(n.oldest_seq - 1, 0) else f.trimmed_seq end,
            early_settlements = (select count(*) from early_settlements s where s.feed = in_feed)
        from (select count(*) filter (where r.read_at is null) as unread,
                     count(*) filter (where r.handled_at is null) as unhandled, min(r.seq) as oldest_seq
              from notifications r where r.feed = in_feed) n
        where f.feed = in_feed;
    return true;
end;
$$;
