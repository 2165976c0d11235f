-- A device that has no cursor starts where its own subscriber stands, and connecting with a device that has one needs no write.
-- Only adds: the last version goes on calling open_cursors(), which follows the same rules from now on.

-- When the device was last connected, written at most once an hour; null until then. An ack counts as well, as updated_at.
-- No index, so that the update stays in place (HOT).
alter table cursors add column seen_at timestamptz;

-- Where devices stood whose cursors were removed because their subscriber has too many. A device that comes back goes on from
-- here. A bounded number for each subscriber and feed, oldest first out.
create table evicted_cursors (
    feed       text        collate "C" not null,
    subscriber text        collate "C" not null,
    device     text        collate "C" not null,
    acked_seq  bigint      not null check (acked_seq >= 0),
    evicted_at timestamptz not null default now(),
    primary key (feed, subscriber, device)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02);

-- For operators: what each device has not acknowledged. Numbers that expired or were collapsed are among them.
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

-- Makes the cursors that are missing, and returns for each (feed, subscriber, device), in the order given, where it stands.
-- A device starts at the first of these that there is:
--   1. its own place, if it was evicted;
--   2. the highest place of its subscriber's devices in this feed: the subscriber has everything up to there;
--   3. for a subscriber without a place in a feed that everyone reads (in_shared): before the oldest announcement that has not
--      expired, of the newest announcements_max within the newest announcements_max * 10 numbers;
--   4. the highest ack of anyone in the feed.
-- It never starts above the last number of the feed, as an evicted place might after a restore of some tables only.
-- A subscriber keeps devices_max cursors in a feed. Beyond that, the device that was not seen for longest is evicted.
-- Takes the new keys in one order and never waits for a row that it evicts, so that two calls cannot deadlock. lock_timeout is
-- short, because the caller splits a batch that fails.
create function make_cursors(
    in_feeds text[], in_subscribers text[], in_devices text[], in_shared boolean[],
    devices_max integer, evicted_max integer, announcements_max integer)
returns table (ordinal bigint, acked_seq bigint, evicted bigint)
language plpgsql volatile
set lock_timeout = '250ms' as $$
#variable_conflict use_column
declare
    evicted_now bigint;
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
    ), announced as (
        select f.feed, least(f.acked_seq, coalesce(min(n.seq) - 1, f.acked_seq)) as acked_seq
        from (select distinct feed from wanted where shared) w
        join feeds f on f.feed = w.feed
        left join lateral (
            select a.seq from notifications a
            where a.feed = f.feed and a.seq > f.last_seq - announcements_max * 10
              and (a.expires_at is null or a.expires_at > now())
            order by a.seq desc
            limit announcements_max) n on true
        group by f.feed, f.acked_seq
    )
    insert into cursors (feed, subscriber, device, acked_seq)
        select w.feed, w.subscriber, w.device,
               least(coalesce(e.acked_seq, s.acked_seq, case when w.shared then a.acked_seq end, f.acked_seq, 0),
                     coalesce(f.last_seq, 0))
        from wanted w
        left join evicted_cursors e on e.feed = w.feed and e.subscriber = w.subscriber and e.device = w.device
        left join standing s on s.feed = w.feed and s.subscriber = w.subscriber
        left join announced a on a.feed = w.feed
        left join feeds f on f.feed = w.feed
        order by w.feed collate "C", w.subscriber collate "C", w.device collate "C"
        on conflict do nothing;

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
        where o.place > devices_max
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
            returning e.feed
    )
    select count(*) into evicted_now from remembered;

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
            where o.place > evicted_max
            for update of e skip locked
        )
        delete from evicted_cursors e
        using free o
        where e.feed = o.feed and e.subscriber = o.subscriber and e.device = o.device;
    end if;

    -- A device that was made and evicted in this call has a place all the same.
    return query
    select w.ordinal, coalesce(c.acked_seq, e.acked_seq), evicted_now
    from unnest(in_feeds, in_subscribers, in_devices) with ordinality as w (feed, subscriber, device, ordinal)
    left join cursors c on c.feed = w.feed and c.subscriber = w.subscriber and c.device = w.device
    left join evicted_cursors e on e.feed = w.feed and e.subscriber = w.subscriber and e.device = w.device
    where coalesce(c.acked_seq, e.acked_seq) is not null
    order by w.ordinal;
end
$$;

-- As before for replicas of the last version, with the starts of make_cursors(); these replicas do not name the shared feed.
-- Returns a row for each key, also if its cursor was evicted at once, because such a replica repeats a call that misses one.
create or replace function open_cursors(in_feeds text[], in_subscribers text[], in_devices text[], devices_max integer)
returns table (ordinal bigint, acked_seq bigint, last_seq bigint, unread bigint, unhandled bigint)
language plpgsql volatile as $$
#variable_conflict use_column
begin
    if exists (
        select from unnest(in_feeds, in_subscribers, in_devices) as w (feed, subscriber, device)
        where not exists (select from cursors c
                          where c.feed = w.feed and c.subscriber = w.subscriber and c.device = w.device))
    then
        return query
        select m.ordinal, m.acked_seq, coalesce(f.last_seq, 0), coalesce(f.unread, 0), coalesce(f.unhandled, 0)
        from make_cursors(in_feeds, in_subscribers, in_devices, array_fill(false, array[cardinality(in_feeds)]),
                          devices_max, 256, 0) m
        left join feeds f on f.feed = in_feeds[m.ordinal]
        order by m.ordinal;
        return;
    end if;

    return query
    select w.ordinal, c.acked_seq, coalesce(f.last_seq, 0), coalesce(f.unread, 0), coalesce(f.unhandled, 0)
    from unnest(in_feeds, in_subscribers, in_devices) with ordinality as w (feed, subscriber, device, ordinal)
    join cursors c on c.feed = w.feed and c.subscriber = w.subscriber and c.device = w.device
    left join feeds f on f.feed = w.feed
    order by w.ordinal;
end
$$;
