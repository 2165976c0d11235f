-- Appends: each batch is stored in one round trip and one transaction. A batch of new events without import events
-- takes a plain statement (src/store/append/statements.rs), because a function costs nearly twice as much for one event.
--
-- Both functions take arrays with one element for each event. The arrays in_step_* have one element for each
-- import event, in the same order. These are its place in the batch (from 1), its import and item, its part of
-- done and failed (0 or 1), and the total and status that it sets. An imported item is progress and no news, so it is stored as
-- read and handled.
-- They are PL/pgSQL, because each statement of a volatile function reads the rows that others committed before
-- it. Imports need the rows after the lock of their feed. The parts of one plain statement would share a snapshot.

-- Stores a batch with import events if none of its events was stored before, which is nearly always true. Then it locks,
-- updates and reads each feed in one pass. Returns the last number of each feed in in_feeds, and the progress after
-- each import event. If an event is stored or a feed is held, it stores nothing and returns null. If another transaction
-- stores an event meanwhile, or the row of a feed with notifications is missing, it fails (23505). After both, the
-- caller uses append_notifications().
-- The array in_feeds has each feed once, in_added the number of its events, and in_news the number of its news.
-- For each event, in_later_in_batch is the number of events of its feed that follow in the batch.
-- Locks feeds in C order, because an upsert locks its rows in the order given. append_notifications() locks new
-- feeds first. If new feeds meet existing ones, Postgres may end one batch (40P01), and ingest repeats it.
create function append_new_notifications(
    in_feeds text[], in_added bigint[], in_news bigint[],
    in_event_feeds text[], in_later_in_batch bigint[], in_identities uuid[], in_sources text[], in_event_ids text[],
    in_event_types text[], in_times timestamptz[], in_data text[], in_collapse_keys text[], in_expires_at timestamptz[],
    in_received_at timestamptz,
    in_step_events bigint[], in_step_import_ids text[], in_step_items bigint[], in_step_done bigint[],
    in_step_failed bigint[], in_step_totals bigint[], in_step_statuses text[],
    out last_seqs bigint[], out steps_done bigint[], out steps_failed bigint[], out steps_total bigint[])
language plpgsql volatile as $$
begin
    if exists (select from held_feeds h where h.feed = any (in_feeds))
       or exists (select from notifications n where n.identity = any (in_identities)) then
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
                               read_at, handled_at, import_done, import_failed, import_total)
    select e.feed, g.last_seq - e.later_in_batch, e.identity, e.source, e.event_id, e.event_type, e.time, e.data,
           e.collapse_key, e.expires_at, p.marked_at, p.marked_at, p.done, p.failed, p.total
    from unnest(in_event_feeds, in_later_in_batch, in_identities, in_sources, in_event_ids, in_event_types, in_times, in_data,
                in_collapse_keys, in_expires_at)
        with ordinality
        as e (feed, later_in_batch, identity, source, event_id, event_type, time, data, collapse_key, expires_at, event)
    join unnest(in_feeds, last_seqs) as g (feed, last_seq) on g.feed = e.feed
    left join (
        select s.event, case when s.is_done = 1 and s.is_failed = 0 then in_received_at end as marked_at,
               s.done, s.failed, s.total
        from unnest(in_step_events, in_step_done, in_step_failed, steps_done, steps_failed, steps_total)
            as s (event, is_done, is_failed, done, failed, total)) p on p.event = e.event;
end
$$;

-- Stores a batch of which some events may be stored already. Returns for each event, in the order given, its
-- number, whether it is a duplicate, and the progress of its import if it is new. Duplicates change no import.
-- Fails (23505) if the row of a feed with notifications was missing, so that the caller repairs the feed. Fails
-- (SB002) if a feed is held, unless in_held.
-- Locks feeds in C order; finds duplicates by notifications_identity_key.
create function append_notifications(
    in_feeds text[], in_identities uuid[], in_sources text[], in_event_ids text[], in_event_types text[],
    in_times timestamptz[], in_data text[], in_collapse_keys text[], in_expires_at timestamptz[],
    in_received_at timestamptz,
    in_step_events bigint[], in_step_import_ids text[], in_step_items bigint[], in_step_done bigint[],
    in_step_failed bigint[], in_step_totals bigint[], in_step_statuses text[],
    in_held boolean)
returns table (ordinal bigint, seq bigint, duplicate boolean, import_done bigint, import_failed bigint, import_total bigint)
language plpgsql volatile as $$
#variable_conflict use_column
declare
    places       bigint[];  -- the stored number of each event, or null if it is new
    firsts       boolean[]; -- the event is new, and the first of its identity in the batch
    steps        bigint[];  -- the events that change an import
    steps_done   bigint[];
    steps_failed bigint[];
    steps_total  bigint[];
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

    return query
    with incoming as (
        select u.*, firsts[u.ordinal] as is_first
        from unnest(in_feeds, in_identities, in_sources, in_event_ids, in_event_types, in_times, in_data, in_collapse_keys,
                    in_expires_at)
            with ordinality as u (feed, identity, source, event_id, event_type, time, data, collapse_key, expires_at, ordinal)
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
                                   read_at, handled_at, import_done, import_failed, import_total)
        select n.feed, n.seq, n.identity, n.source, n.event_id, n.event_type, n.time, n.data, n.collapse_key, n.expires_at,
               n.marked_at, n.marked_at, n.done, n.failed, n.total
        from numbered n
        order by n.ordinal
    ), counted as (
        update feeds f
        set last_seq = f.last_seq + c.added, unread = f.unread + c.news, unhandled = f.unhandled + c.news
        from (select n.feed, count(*) as added, count(*) filter (where n.marked_at is null) as news
              from numbered n group by n.feed) c
        where f.feed = c.feed
    )
    select i.ordinal, coalesce(places[i.ordinal], n.seq), not i.is_first, n.done, n.failed, n.total
    from incoming i
    left join numbered n on n.identity = i.identity
    order by i.ordinal;
end
$$;
