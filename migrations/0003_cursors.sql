-- Cursors: the highest acked number of each subscriber, device and feed. A replay begins after it.
--
-- The highest ack of a feed is the greatest of its cursors and of feeds.acked_seq. An ack changes only its cursor,
-- because a second row would nearly double its cost. Each gateway raises feeds.acked_seq after some time
-- (src/gateway/cursors/highest.rs). A statement that deletes the cursor of a merchant raises it too, so the highest
-- ack never goes back.

-- The row is made when a device first connects. From then on the device misses nothing, even if others
-- acknowledge while it is away. No index contains updated_at or seen_at, so that updates stay in place (HOT).
create table cursors (
    feed       text        collate "C" not null,
    subscriber text        collate "C" not null,
    device     text        collate "C" not null default '', -- all devices of a subscriber without a name share ''
    acked_seq  bigint      not null check (acked_seq >= 0),
    updated_at timestamptz not null default now(), -- last ack
    seen_at    timestamptz,                        -- last connect, written at most once an hour
    primary key (feed, subscriber, device)
) with (fillfactor = 20, autovacuum_vacuum_scale_factor = 0.02); -- see feeds

-- The places of evicted devices: a device that returns continues there. Their number is limited for each
-- subscriber and feed; the oldest go first.
create table evicted_cursors (
    feed       text        collate "C" not null,
    subscriber text        collate "C" not null,
    device     text        collate "C" not null,
    acked_seq  bigint      not null check (acked_seq >= 0),
    evicted_at timestamptz not null default now(),
    primary key (feed, subscriber, device)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02);

-- For operators: feeds with notifications without any ack. Expired and collapsed ones are included. Of the cursors
-- of a feed, 1,000 are read, so that a broadcast feed costs little.
create view undelivered_feeds as
    select f.feed, f.last_seq, h.acked_seq, f.last_seq - greatest(h.acked_seq, f.trimmed_seq) as undelivered,
           oldest.created_at as oldest_created_at
    from feeds f
    cross join lateral (
        select greatest(f.acked_seq, max(k.acked_seq)) as acked_seq
        from (select c.acked_seq from cursors c where c.feed = f.feed limit 1000) k) h
    left join lateral (
        select n.created_at from notifications n
        where n.feed = f.feed and n.seq > greatest(h.acked_seq, f.trimmed_seq)
        order by n.seq
        limit 1) oldest on true
    where greatest(f.acked_seq, f.trimmed_seq) < f.last_seq and h.acked_seq < f.last_seq;

-- For operators: notifications without any ack, by the same cursors.
create view undelivered as
    select n.feed, n.seq, n.source, n.event_id, n.event_type, n.time, n.created_at, n.expires_at
    from feeds f
    cross join lateral (
        select greatest(f.acked_seq, max(k.acked_seq)) as acked_seq
        from (select c.acked_seq from cursors c where c.feed = f.feed limit 1000) k) h
    join notifications n on n.feed = f.feed and n.seq > h.acked_seq
    where f.acked_seq < f.last_seq;

-- For operators: how many numbers each device has not acked. Expired and collapsed ones are included.
create view undelivered_devices as
    select c.feed, c.subscriber, c.device, c.acked_seq, f.last_seq, f.last_seq - c.acked_seq as undelivered,
           oldest.created_at as oldest_created_at, greatest(c.updated_at, c.seen_at) as seen_at
    from feeds f
    join cursors c on c.feed = f.feed and c.acked_seq < f.last_seq
    left join lateral (
        select n.created_at from notifications n
        where n.feed = c.feed and n.seq > c.acked_seq
        order by n.seq
        limit 1) oldest on true;

-- Makes the missing cursors, and returns the place of each (feed, subscriber, device) in the order given.
-- A device starts at the first of these places that exists:
--   1. its own place, if it was evicted;
--   2. the highest place of its subscriber's devices in this feed, because the subscriber has the rest;
--   3. for a new subscriber of a feed that everyone reads (in_shared): before the oldest announcement that has
--      not expired, of the newest in_announcements_max within the newest in_announcements_max * 10 numbers;
--   4. the highest ack of the feed. If the feed has more than 1,000 cursors, a sample of them and
--      feeds.acked_seq count, so the place may be lower, and the device gets more notifications.
-- It never starts above the last number of the feed, because after a restore of some tables a place may be
-- above it. A subscriber keeps in_devices_max cursors in a feed; then the device that was seen least recently
-- is evicted.
-- A place below the highest ack is recorded in made_seq, so that a step of retention counts it. The step locks the
-- row of the feed. So it sees this place, or the device connects after the removal.
-- Locks cursors, then feeds, each in C order, and skips locked rows when it evicts. The lock timeout is short,
-- because the caller splits a batch that fails.
create function make_cursors(
    in_feeds text[], in_subscribers text[], in_devices text[], in_shared boolean[],
    in_devices_max integer, in_evicted_max integer, in_announcements_max integer)
returns table (ordinal bigint, acked_seq bigint, evicted bigint)
language plpgsql volatile
set lock_timeout = '250ms' as $$
#variable_conflict use_column
declare
    made_feeds     text[];
    made_places    bigint[];
    evicted_feeds  text[];
    evicted_places bigint[];
    evicted_now    bigint;
begin
    with wanted as (
        select distinct w.feed, w.subscriber, w.device, w.shared
        from unnest(in_feeds, in_subscribers, in_devices, in_shared) as w (feed, subscriber, device, shared)
        where not exists (select from cursors c
                          where c.feed = w.feed and c.subscriber = w.subscriber and c.device = w.device)
    ), standing as (
        select w.feed, w.subscriber, max(c.acked_seq) as acked_seq
        from (select distinct feed, subscriber from wanted) w
        join cursors c on c.feed = w.feed and c.subscriber = w.subscriber
        group by w.feed, w.subscriber
    ), highest as (
        select f.feed, f.last_seq, greatest(f.acked_seq, s.acked_seq) as acked_seq, s.cursors
        from (select distinct feed from wanted) w
        join feeds f on f.feed = w.feed
        cross join lateral (
            select max(k.acked_seq) as acked_seq, count(*) as cursors
            from (select c.acked_seq from cursors c where c.feed = f.feed limit 1000) k) s
    ), announced as (
        select h.feed, least(h.acked_seq, coalesce(min(n.seq) - 1, h.acked_seq)) as acked_seq
        from (select distinct feed from wanted where shared) w
        join highest h on h.feed = w.feed
        left join lateral (
            select a.seq from notifications a
            where a.feed = h.feed and a.seq > h.last_seq - in_announcements_max * 10
              and (a.expires_at is null or a.expires_at > now())
            order by a.seq desc
            limit in_announcements_max) n on true
        group by h.feed, h.acked_seq
    ), made as (
        insert into cursors as c (feed, subscriber, device, acked_seq)
            select w.feed, w.subscriber, w.device,
                   least(coalesce(e.acked_seq, s.acked_seq, case when w.shared then a.acked_seq end, h.acked_seq, 0),
                         coalesce(h.last_seq, 0))
            from wanted w
            left join evicted_cursors e on e.feed = w.feed and e.subscriber = w.subscriber and e.device = w.device
            left join standing s on s.feed = w.feed and s.subscriber = w.subscriber
            left join announced a on a.feed = w.feed
            left join highest h on h.feed = w.feed
            order by w.feed collate "C", w.subscriber collate "C", w.device collate "C"
            on conflict do nothing
            returning c.feed, c.subscriber, c.device, c.acked_seq
    ), returned as (
        delete from evicted_cursors e
        using made m
        where e.feed = m.feed and e.subscriber = m.subscriber and e.device = m.device
    )
    -- The highest ack of a sample may be too low.
    select array_agg(m.feed), array_agg(m.place) into made_feeds, made_places
    from (select made.feed, min(made.acked_seq) as place from made group by made.feed) m
    join highest h on h.feed = m.feed and m.place < case when h.cursors < 1000 then h.acked_seq else h.last_seq end;

    with aged as (
        select a.feed, a.subscriber, a.device,
               row_number() over (partition by a.feed, a.subscriber
                                  order by greatest(a.updated_at, a.seen_at) desc, a.device) as place
        from (select distinct w.feed, w.subscriber from unnest(in_feeds, in_subscribers) as w (feed, subscriber)) w
        join cursors a on a.feed = w.feed and a.subscriber = w.subscriber
    ), free as (
        select c.feed, c.subscriber, c.device
        from aged o
        join cursors c on c.feed = o.feed and c.subscriber = o.subscriber and c.device = o.device
        where o.place > in_devices_max
        for update of c skip locked
    ), removed as (
        delete from cursors c
        using free o
        where c.feed = o.feed and c.subscriber = o.subscriber and c.device = o.device
        returning c.feed, c.subscriber, c.device, c.acked_seq
    ), remembered as (
        insert into evicted_cursors as e (feed, subscriber, device, acked_seq)
            select r.feed, r.subscriber, r.device, r.acked_seq
            from removed r
            order by r.feed collate "C", r.subscriber collate "C", r.device collate "C"
            on conflict (feed, subscriber, device) do update
                set acked_seq = excluded.acked_seq, evicted_at = excluded.evicted_at
            returning e.feed, e.acked_seq
    )
    select count(*), array_agg(r.feed), array_agg(r.acked_seq) into evicted_now, evicted_feeds, evicted_places
    from remembered r;

    if made_feeds is not null or evicted_now > 0 then
        -- An upsert that never inserts, because it locks its rows in the order given.
        insert into feeds as f (feed, made_seq, acked_seq)
            select k.feed, min(p.made), least(coalesce(max(p.evicted), 0), k.last_seq)
            from (select m.feed, m.place as made, null as evicted from unnest(made_feeds, made_places) as m (feed, place)
                  union all
                  select e.feed, null, e.place from unnest(evicted_feeds, evicted_places) as e (feed, place)) p
            join feeds k on k.feed = p.feed and (p.made is not null or p.evicted > k.acked_seq)
            group by k.feed
            order by k.feed collate "C"
            on conflict (feed) do update
                set made_seq = least(f.made_seq, excluded.made_seq), acked_seq = greatest(f.acked_seq, excluded.acked_seq);
    end if;

    if evicted_now > 0 then
        with aged as (
            select e.feed, e.subscriber, e.device,
                   row_number() over (partition by e.feed, e.subscriber order by e.evicted_at desc, e.device) as place
            from (select distinct w.feed, w.subscriber from unnest(in_feeds, in_subscribers) as w (feed, subscriber)) w
            join evicted_cursors e on e.feed = w.feed and e.subscriber = w.subscriber
        ), free as (
            select e.feed, e.subscriber, e.device
            from aged o
            join evicted_cursors e on e.feed = o.feed and e.subscriber = o.subscriber and e.device = o.device
            where o.place > in_evicted_max
            for update of e skip locked
        )
        delete from evicted_cursors e
        using free o
        where e.feed = o.feed and e.subscriber = o.subscriber and e.device = o.device;
    end if;

    -- A device that this call both made and evicted is returned too.
    return query
    select w.ordinal, coalesce(c.acked_seq, e.acked_seq), evicted_now
    from unnest(in_feeds, in_subscribers, in_devices) with ordinality as w (feed, subscriber, device, ordinal)
    left join cursors c on c.feed = w.feed and c.subscriber = w.subscriber and c.device = w.device
    left join evicted_cursors e on e.feed = w.feed and e.subscriber = w.subscriber and e.device = w.device
    where coalesce(c.acked_seq, e.acked_seq) is not null
    order by w.ordinal;
end
$$;

-- Lowers the places that are above the last number of their feed, as after a restore of some tables. Otherwise
-- the subscriber would not get the notifications that receive these numbers. The last number of a feed without a
-- row is 0. The recorded ack of a feed is never above its last number, nor below a lowered place.
-- Walks feeds, cursors and evicted cursors together, in the order of their keys, where a feed has the key
-- (feed, '', ''). Processes in_rows_max rows after the given key; returns the key of the last one, or nulls at the end.
-- Locks cursors, then evicted cursors, then feeds, each in C order, and only those that it changes.
create function lower_cursors(
    in_feed text, in_subscriber text, in_device text, in_rows_max integer, out feed text, out subscriber text, out device text)
language plpgsql volatile as $$
#variable_conflict use_column
declare
    last    record;
    lowered text[];   -- the feed of each place that was above its last number
    places  bigint[]; -- the new place
begin
    -- The last key of the step, and whether the walk ends with it.
    with walked as (
        select w.feed, w.subscriber, w.device
        from ((select f.feed, '' as subscriber, '' as device from feeds f
               where f.feed > in_feed
               order by f.feed limit in_rows_max)
              union all
              (select c.feed, c.subscriber, c.device from cursors c
               where (c.feed, c.subscriber, c.device) > (in_feed, in_subscriber, in_device)
               order by c.feed, c.subscriber, c.device limit in_rows_max)
              union all
              (select e.feed, e.subscriber, e.device from evicted_cursors e
               where (e.feed, e.subscriber, e.device) > (in_feed, in_subscriber, in_device)
               order by e.feed, e.subscriber, e.device limit in_rows_max)) w
        order by w.feed, w.subscriber collate "C", w.device collate "C"
        limit in_rows_max)
    select w.feed, w.subscriber, w.device, (select count(*) from walked) < in_rows_max as is_end into last
    from walked w
    order by w.feed desc, w.subscriber collate "C" desc, w.device collate "C" desc
    limit 1;
    if last.feed is null then
        return;
    end if;

    with above as materialized (
        select c.feed, c.subscriber, c.device, coalesce(f.last_seq, 0) as place
        from cursors c
        left join feeds f on f.feed = c.feed
        where (c.feed, c.subscriber, c.device) > (in_feed, in_subscriber, in_device)
          and (c.feed, c.subscriber, c.device) <= (last.feed, last.subscriber, last.device)
          and c.acked_seq > coalesce(f.last_seq, 0) and (f.feed is not null or c.feed not like 'shopbell-canary/%')
        order by c.feed, c.subscriber, c.device
        for no key update of c
    ), changed as (
        update cursors c
        set acked_seq = a.place
        from above a
        where c.feed = a.feed and c.subscriber = a.subscriber and c.device = a.device
        returning c.feed, c.acked_seq
    ), evicted_above as materialized (
        select c.feed, c.subscriber, c.device, coalesce(f.last_seq, 0) as place
        from evicted_cursors c
        left join feeds f on f.feed = c.feed
        where (c.feed, c.subscriber, c.device) > (in_feed, in_subscriber, in_device)
          and (c.feed, c.subscriber, c.device) <= (last.feed, last.subscriber, last.device)
          and c.acked_seq > coalesce(f.last_seq, 0) and (f.feed is not null or c.feed not like 'shopbell-canary/%')
        order by c.feed, c.subscriber, c.device
        for no key update of c
    ), changed_evicted as (
        update evicted_cursors c
        set acked_seq = a.place
        from evicted_above a
        where c.feed = a.feed and c.subscriber = a.subscriber and c.device = a.device
        returning c.feed, c.acked_seq
    )
    select array_agg(l.feed), array_agg(l.place) into lowered, places
        from (select k.feed, max(k.acked_seq) as place
              from (select * from changed union all select * from changed_evicted) k
              group by k.feed) l;

    with wrong as (
        select k.feed, max(k.place) as place
        from (select l.feed, l.place from unnest(lowered, places) as l (feed, place)
              union all
              select f.feed, null from feeds f
              where f.feed > in_feed and f.feed <= last.feed and f.acked_seq > f.last_seq) k
        group by k.feed
    ), locked as materialized (
        select f.feed, w.place
        from wrong w
        join feeds f on f.feed = w.feed
        order by f.feed
        for no key update of f
    )
    update feeds f
        set acked_seq = greatest(l.place, least(f.acked_seq, f.last_seq))
        from locked l
        where f.feed = l.feed and f.acked_seq <> greatest(l.place, least(f.acked_seq, f.last_seq));

    if not last.is_end then
        feed := last.feed;
        subscriber := last.subscriber;
        device := last.device;
    end if;
end
$$;
