-- Marks: a person's read or handle of notifications. A mark is never taken back.

-- One row for each write that marked something, numbered without a gap in each feed. A session that missed a
-- push reads the rows after the last version that it knows. The newest thousand of a feed are kept.
create table marks (
    feed      text        collate "C" not null,
    version   bigint      not null check (version > 0),
    kind      text        not null check (kind in ('read', 'handled')),
    seqs      bigint[],             -- the marked notifications; null if through is set
    through   bigint,               -- all up to this number
    marked_at timestamptz not null, -- equals their read_at or handled_at
    marked_by text        not null, -- subscriber; equals their handled_by
    unread    bigint      not null, -- counts of the feed after the mark
    unhandled bigint      not null,
    last_seq  bigint      not null, -- the counts include notifications up to here
    primary key (feed, version),
    check ((seqs is null) <> (through is null))
);

-- Stores marks in one transaction, in the order given. in_kinds is 'read' or 'handled'. A mark has either
-- in_throughs (all up to this number) or in_seqs (these numbers, as '{1,2}'). Returns one or more rows for each
-- mark, by its ordinal, with the counts of the feed after the marks so far. The results are:
--   'marked'   These are marked now. The row is also in marks.
--   'already'  These were marked before. There is one row for each time and person.
--   'unknown'  These numbers are not stored.
--   'more'     The mark continues after through. A call reads in_rows_max numbers at most, because it holds
--              locks meanwhile.
--   'locked'   Nothing is stored, because another transaction has locked the feed.
-- A mark without numbers ('{}') asks for counts and locks nothing.
-- If in_lock_wait is null, the call leaves out locked feeds ('locked'). Otherwise it waits so many milliseconds
-- for each lock, then fails (55P03). Locks feeds in C order, then notifications. Keeps in_marks_max rows of a feed in
-- marks.
create function mark_notifications(
    in_feeds text[], in_kinds text[], in_throughs bigint[], in_seqs text[], in_subscribers text[], in_rows_max bigint,
    in_marks_max bigint, in_lock_wait integer)
returns table (ordinal bigint, result text, version bigint, seqs bigint[], through bigint, marked_at timestamptz,
               marked_by text, unread bigint, unhandled bigint, last_seq bigint)
language plpgsql volatile as $$
#variable_conflict use_column
declare
    mark       record;
    feed_row   feeds;
    locked     text[];   -- feeds that this call has locked
    seqs_given bigint[];
    upper      bigint;   -- this call reads up to here; null if seqs are given
    marked     bigint[]; -- notifications that this call has marked
    rows_left  bigint := in_rows_max;
    moment     timestamptz := now();
begin
    -- Holds for this transaction. Other transactions lock a notification only for milliseconds.
    perform set_config('lock_timeout', coalesce(in_lock_wait, 100)::text, true);
    if in_lock_wait is null then
        locked := array(
            select f.feed from feeds f
            where f.feed in (select s.feed from unnest(in_feeds, in_seqs) as s (feed, seqs) where s.seqs is distinct from '{}')
            order by f.feed collate "C" for update skip locked);
    else
        locked := array(
            select f.feed from feeds f
            where f.feed in (select s.feed from unnest(in_feeds, in_seqs) as s (feed, seqs) where s.seqs is distinct from '{}')
            order by f.feed collate "C" for update);
    end if;

    for mark in
        select * from unnest(in_feeds, in_kinds, in_throughs, in_seqs, in_subscribers)
            with ordinality as s (feed, kind, through, seqs, subscriber, ordinal)
    loop
        select * into feed_row from feeds f where f.feed = mark.feed;
        if feed_row.feed is not null and mark.seqs is distinct from '{}' and mark.feed <> all (locked) then
            return query select mark.ordinal, 'locked', null::bigint, null::bigint[], null::bigint, null::timestamptz,
                null::text, feed_row.unread, feed_row.unhandled, feed_row.last_seq;
            continue;
        end if;
        seqs_given := mark.seqs::bigint[];
        upper := null;
        if mark.through is not null then
            upper := greatest(least(mark.through, coalesce(feed_row.last_seq, 0), feed_row.read_seq + rows_left), 0);
            rows_left := rows_left - greatest(upper - feed_row.read_seq, 0);
            with updated as (
                update notifications n set read_at = moment
                where n.feed = mark.feed and n.seq > feed_row.read_seq and n.seq <= upper and n.read_at is null
                returning n.seq)
            select array_agg(u.seq) into marked from updated u;
            update feeds f set read_seq = upper where f.feed = mark.feed and f.read_seq < upper;
        elsif mark.kind = 'read' then
            with updated as (
                update notifications n set read_at = moment
                where n.feed = mark.feed and n.seq = any (seqs_given) and n.read_at is null
                returning n.seq)
            select array_agg(u.seq order by u.seq) into marked from updated u;
        else
            with updated as (
                update notifications n set handled_at = moment, handled_by = mark.subscriber
                where n.feed = mark.feed and n.seq = any (seqs_given) and n.handled_at is null
                returning n.seq)
            select array_agg(u.seq order by u.seq) into marked from updated u;
        end if;

        if marked is not null then
            update feeds f
                set version = f.version + 1,
                    unread = f.unread - case mark.kind when 'read' then cardinality(marked) else 0 end,
                    unhandled = f.unhandled - case mark.kind when 'handled' then cardinality(marked) else 0 end
                where f.feed = mark.feed
                returning f.* into feed_row;
            insert into marks (feed, version, kind, seqs, through, marked_at, marked_by, unread, unhandled, last_seq)
                values (mark.feed, feed_row.version, mark.kind, case when upper is null then marked end, upper, moment,
                        mark.subscriber, feed_row.unread, feed_row.unhandled, feed_row.last_seq);
            delete from marks m where m.feed = mark.feed and m.version <= feed_row.version - in_marks_max;
            return query select mark.ordinal, 'marked', feed_row.version, case when upper is null then marked end, upper,
                moment, mark.subscriber, feed_row.unread, feed_row.unhandled, feed_row.last_seq;
        end if;

        if upper < least(mark.through, coalesce(feed_row.last_seq, 0)) then
            return query select mark.ordinal, 'more', null::bigint, null::bigint[], upper, null::timestamptz, null::text,
                feed_row.unread, feed_row.unhandled, feed_row.last_seq;
        elsif mark.through is not null and marked is null then
            return query select mark.ordinal, 'already', null::bigint, null::bigint[], upper,
                coalesce((select n.read_at from notifications n
                          where n.feed = mark.feed and n.seq <= upper order by n.seq desc limit 1), moment),
                null::text, coalesce(feed_row.unread, 0), coalesce(feed_row.unhandled, 0), coalesce(feed_row.last_seq, 0);
        elsif cardinality(seqs_given) = 0 then
            return query select mark.ordinal, 'already', null::bigint, seqs_given, null::bigint, null::timestamptz, null::text,
                coalesce(feed_row.unread, 0), coalesce(feed_row.unhandled, 0), coalesce(feed_row.last_seq, 0);
        elsif cardinality(seqs_given) > coalesce(cardinality(marked), 0) then
            return query
            select mark.ordinal, case when n.seq is null then 'unknown' else 'already' end, null::bigint,
                   array_agg(g.seq order by g.seq), null::bigint,
                   case mark.kind when 'read' then n.read_at else n.handled_at end,
                   case mark.kind when 'handled' then n.handled_by end,
                   coalesce(feed_row.unread, 0), coalesce(feed_row.unhandled, 0), coalesce(feed_row.last_seq, 0)
            from unnest(seqs_given) as g (seq)
            left join notifications n on n.feed = mark.feed and n.seq = g.seq
            where g.seq <> all (coalesce(marked, '{}'))
            group by n.seq is null, 6, 7;
        end if;
    end loop;
end
$$;
