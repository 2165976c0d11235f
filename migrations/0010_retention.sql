-- Retention: old notifications are removed from the beginning of each feed.
--
-- feeds.trimmed_seq is the watermark: retention has removed all numbers up to it. Only a prefix is removed. So a
-- missing number above the watermark is still a loss, and no notification comes back after a newer one of its
-- collapse key was removed.

-- One row: the walk over all feeds, in C order. One replica at a time leases it. The row outlives a replica that is
-- killed, so the next one continues there.
create table retention (
    only_one       boolean     primary key default true check (only_one),
    after_feed     text        collate "C" not null default '', -- the walk has processed the feeds up to here
    begins_at      timestamptz not null default now(),          -- begin of the present walk, or of the next one
    leased_until   timestamptz,                                 -- another replica takes over after this
    held_back      bigint      not null default 0, -- feeds so far whose oldest due notification must stay
    held_back_last bigint      not null default 0  -- the same of the last whole walk
);
insert into retention default values;

-- Deleted rows are the oldest. An earlier vacuum reuses their room before the table grows by the default fifth.
alter table notifications set (autovacuum_vacuum_scale_factor = 0.05);

-- Removes notifications from the beginning of these feeds. They were stored before in_before, and every cursor has
-- passed them (up to the floor of the feed) or they have expired. Cursors that were made since the floor was read
-- count too (made_seq), unless in_before is infinity: an erasure removes all up to the floor. Removes in_rows_max
-- rows and about in_bytes_max bytes of data at most. Stops at the first notification that stays, and before lost
-- numbers above the floor, because their loss must still be reported.
-- If unread or unhandled notifications are removed, the counts change. Then the feed gets a row in marks without
-- notifications, so that sessions receive the new counts as a state. Keeps in_marks_max rows of a feed in marks.
-- Returns a row for each feed that it locked: the number of removed rows, and whether a limit ended the removal.
-- Leaves out feeds that others have locked, unless in_waits; then it waits 250 ms for each (55P03).
-- Locks feeds in C order, then notifications.
create function trim_feeds(
    in_feeds text[], in_floors bigint[], in_before timestamptz, in_rows_max bigint, in_bytes_max bigint,
    in_marks_max bigint, in_waits boolean)
returns table (feed text, removed bigint, is_cut boolean)
language plpgsql volatile
set lock_timeout = '250ms' as $$
#variable_conflict use_column
declare
    feed_row   record;
    changed    feeds;
    upper      bigint; -- the new watermark; null if nothing is removed
    found      record;
    gone       record;
    rows_left  bigint := in_rows_max;
    bytes_left bigint := in_bytes_max;
begin
    -- Old rows are on disk. They are read before the locks, so that appends do not wait for that.
    perform count(n.created_at)
        from unnest(in_feeds) as w (feed)
        join feeds f on f.feed = w.feed
        cross join lateral (
            select r.created_at from notifications r
            where r.feed = f.feed and r.seq > f.trimmed_seq
            order by r.seq
            limit in_rows_max / cardinality(in_feeds)) n;
    if in_waits then
        perform from feeds f where f.feed = any (in_feeds) order by f.feed collate "C" for no key update;
    end if;
    for feed_row in
        select f.feed, f.trimmed_seq, case when in_before = 'infinity' then w.floor else least(w.floor, f.made_seq) end as floor
        from unnest(in_feeds, in_floors) as w (feed, floor)
        join feeds f on f.feed = w.feed
        order by f.feed collate "C"
        for no key update of f skip locked
    loop
        select max(k.seq) filter (where k.goes_so_far) as upper, count(*) filter (where k.goes_so_far) as goes,
               coalesce(sum(k.bytes) filter (where k.goes_so_far), 0)::bigint as bytes, count(*) as read
        into found
        from (
            select s.seq, s.bytes, bool_and(s.goes and s.bytes_before < bytes_left) over (order by s.seq) as goes_so_far
            from (
                select o.seq, o.bytes, sum(o.bytes) over (order by o.seq) - o.bytes as bytes_before,
                       o.created_at < in_before and (o.seq <= feed_row.floor or coalesce(o.expires_at <= now(), false))
                       and (o.seq - 1 <= feed_row.floor
                            or o.seq - 1 = lag(o.seq, 1, feed_row.trimmed_seq) over (order by o.seq)) as goes
                from (
                    select n.seq, n.created_at, n.expires_at, coalesce(octet_length(n.data), 0)::bigint as bytes
                    from notifications n
                    where n.feed = feed_row.feed and n.seq > feed_row.trimmed_seq
                    order by n.seq
                    limit greatest(rows_left, 0)) o) s) k;
        upper := found.upper;
        if upper is null then
            return query select feed_row.feed, 0::bigint, rows_left <= 0 or bytes_left <= 0;
            continue;
        end if;

        with removed as (
            delete from notifications n
            where n.feed = feed_row.feed and n.seq > feed_row.trimmed_seq and n.seq <= upper
            returning n.read_at, n.handled_at)
        select count(*) as rows, count(*) filter (where r.read_at is null) as unread,
               count(*) filter (where r.handled_at is null) as unhandled
        into gone
        from removed r;
        rows_left := rows_left - gone.rows;
        bytes_left := bytes_left - found.bytes;
        update feeds f
            set trimmed_seq = upper, read_seq = greatest(f.read_seq, upper), unread = f.unread - gone.unread,
                unhandled = f.unhandled - gone.unhandled,
                version = f.version + case when gone.unread + gone.unhandled > 0 then 1 else 0 end
            where f.feed = feed_row.feed
            returning f.* into changed;
        if gone.unread + gone.unhandled > 0 then
            insert into marks (feed, version, kind, seqs, marked_at, marked_by, unread, unhandled, last_seq)
                values (changed.feed, changed.version, 'read', '{}', now(), '', changed.unread, changed.unhandled, changed.last_seq);
            delete from marks m where m.feed = changed.feed and m.version <= changed.version - in_marks_max;
        end if;
        delete from settled_blocks b where b.feed = changed.feed and b.block < upper / 1000;
        return query select feed_row.feed, gone.rows, rows_left <= 0 or bytes_left <= 0;
    end loop;
end
$$;

-- For operators: how many stored numbers each device has not acked. Expired and collapsed ones are included.
create or replace view undelivered_devices as
    select c.feed, c.subscriber, c.device, c.acked_seq, f.last_seq,
           f.last_seq - greatest(c.acked_seq, f.trimmed_seq) as undelivered,
           oldest.created_at as oldest_created_at, greatest(c.updated_at, c.seen_at) as seen_at
    from feeds f
    join cursors c on c.feed = f.feed and c.acked_seq < f.last_seq and f.trimmed_seq < f.last_seq
    left join lateral (
        select n.created_at from notifications n
        where n.feed = c.feed and n.seq > greatest(c.acked_seq, f.trimmed_seq)
        order by n.seq
        limit 1) oldest on true;
