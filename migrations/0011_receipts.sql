-- Receipts: a publisher learns when its event is delivered, read, handled, settled or expired, or when that did not happen
-- in time.

-- One row for each event that asks. The transaction that changes a notification also records the fact here, and sets due_at.
-- So no fact is lost, and the row of an event is the place where a handle and an 'overdue' meet: one of them is first.
-- Facts are bits: delivered 1, read 2, handled 4, settled 8, expired 16, undelivered 32, overdue 64.
-- A part of every replica with ingest takes the rows that are due, publishes their facts, and records them as published.
create table receipts (
    feed             text        collate "C" not null,
    seq              bigint      not null,
    source           text        not null,
    event_id         text        not null,
    event_type       text        not null,
    stored_at        timestamptz not null,
    wanted           integer     not null, -- the facts that the publisher asks for
    deliver_by       timestamptz,          -- undelivered if nobody has acked it by then
    handle_by        timestamptz,          -- overdue if nobody has handled it and nothing has settled it by then
    expires_at       timestamptz,
    delivered_at     timestamptz,          -- of the first ack
    delivered_by     text,                 -- subscriber
    delivered_device text,
    read_at          timestamptz,
    read_by          text,
    handled_at       timestamptz,
    handled_by       text,
    settled_at       timestamptz,
    settled_by       text,                 -- 'cancelled' or 'settled'
    expired_at       timestamptz,
    undelivered_at   timestamptz,
    overdue_at       timestamptz,
    published        integer     not null default 0, -- the facts that RabbitMQ has confirmed
    due_at           timestamptz,          -- a replica checks the row then; null if nothing can follow by itself
    leased_until     timestamptz,          -- a replica works on the row until then
    primary key (feed, seq)
);

-- Finds the rows that are due. Its size depends on the open deadlines, and on no feed.
create index receipts_due on receipts (due_at) where due_at is not null;

-- Finds the rows that an ack delivers.
create index receipts_undelivered on receipts (feed, seq) where delivered_at is null;

-- A feed reports an escalation to its sessions like a mark.
alter table marks drop constraint marks_kind_check;
alter table marks add constraint marks_kind_check check (kind in ('read', 'handled', 'overdue')) not valid; -- all rows have an older kind

-- The facts of a row that are to be published. After 'undelivered' or 'overdue', a later delivery or handle is published too.
create function unpublished_facts(r receipts) returns integer language sql immutable as $$
    select ((r.delivered_at is not null)::integer * 1 + (r.read_at is not null)::integer * 2
            + (r.handled_at is not null)::integer * 4 + (r.settled_at is not null)::integer * 8
            + (r.expired_at is not null)::integer * 16 + (r.undelivered_at is not null)::integer * 32
            + (r.overdue_at is not null)::integer * 64)
           & (r.wanted | case when r.undelivered_at is not null then 1 else 0 end
                       | case when r.overdue_at is not null then 12 else 0 end)
           & ~r.published
$$;

-- The time at which a replica must check a row: that of the oldest fact to publish, or else its next deadline.
create function receipt_due_at(r receipts) returns timestamptz language sql immutable as $$
    select least(
        case when u.facts & 1 <> 0 then r.delivered_at end, case when u.facts & 2 <> 0 then r.read_at end,
        case when u.facts & 4 <> 0 then r.handled_at end, case when u.facts & 8 <> 0 then r.settled_at end,
        case when u.facts & 16 <> 0 then r.expired_at end, case when u.facts & 32 <> 0 then r.undelivered_at end,
        case when u.facts & 64 <> 0 then r.overdue_at end,
        case when r.delivered_at is null and r.undelivered_at is null and r.settled_at is null then r.deliver_by end,
        case when r.handled_at is null and r.overdue_at is null and r.settled_at is null then r.handle_by end,
        case when r.delivered_at is null and r.expired_at is null and r.settled_at is null and r.wanted & 16 <> 0
             then r.expires_at end)
    from (select unpublished_facts(r) as facts) u
$$;

-- Takes rows that are due, the longest due first: records the deadlines that have passed, and returns the rows with the facts
-- to publish. No other call takes them for in_lease. If the process dies meanwhile, their facts are published again.
-- in_version is the new version of the feed if an escalation was added to marks.
-- Locks feeds in C order before rows, like mark_notifications(). It leaves out locked ones, which stay due.
create function take_receipts(in_rows_max integer, in_lease interval, in_marks_max bigint)
returns table (receipt receipts, facts integer, version bigint)
language plpgsql volatile as $$
#variable_conflict use_column
declare
    due_feeds     text[];
    due_seqs      bigint[];
    overdue_feeds text[];
    taken_feeds   text[];
    taken_seqs    bigint[];
    escalated     text[];
begin
    select array_agg(d.feed), array_agg(d.seq) into due_feeds, due_seqs
    from (select r.feed, r.seq from receipts r
          where r.due_at <= now() and coalesce(r.leased_until <= now(), true)
          order by r.due_at limit in_rows_max) d;
    if due_feeds is null then
        return;
    end if;
    overdue_feeds := array(
        select f.feed from feeds f
        where f.feed in (
            select r.feed from unnest(due_feeds, due_seqs) as d (feed, seq) join receipts r on r.feed = d.feed and r.seq = d.seq
            where r.handle_by <= now() and r.handled_at is null and r.settled_at is null and r.overdue_at is null)
        order by f.feed collate "C" for update skip locked);

    with due as materialized (
        select r.feed, r.seq
        from unnest(due_feeds, due_seqs) as d (feed, seq)
        join receipts r on r.feed = d.feed and r.seq = d.seq
        where r.due_at <= now() and coalesce(r.leased_until <= now(), true)
        order by r.feed collate "C", r.seq
        for update of r skip locked
    ), taken as (
        update receipts r
        set expired_at = case when r.expired_at is null and r.delivered_at is null and r.settled_at is null and r.wanted & 16 <> 0
                                   and r.expires_at <= now() then now() else r.expired_at end,
            undelivered_at = case when r.undelivered_at is null and r.delivered_at is null and r.settled_at is null
                                       and r.deliver_by <= now() then now() else r.undelivered_at end,
            overdue_at = case when r.overdue_at is null and r.handled_at is null and r.settled_at is null
                                   and r.handle_by <= now() and r.feed = any (overdue_feeds)
                              then now() else r.overdue_at end,
            leased_until = now() + in_lease
        from due d where r.feed = d.feed and r.seq = d.seq
        returning r.feed, r.seq, r.overdue_at
    ), escalating as (
        select t.feed, array_agg(t.seq order by t.seq) as seqs
        from taken t where t.overdue_at = now() and t.feed = any (overdue_feeds) group by t.feed
    ), counted as (
        update feeds f set version = f.version + 1 from escalating e where f.feed = e.feed
        returning f.feed, f.version, f.unread, f.unhandled, f.last_seq, e.seqs
    ), marked as (
        insert into marks (feed, version, kind, seqs, marked_at, marked_by, unread, unhandled, last_seq)
        select c.feed, c.version, 'overdue', c.seqs, now(), '', c.unread, c.unhandled, c.last_seq from counted c
    ), removed as (
        delete from marks m using counted c where m.feed = c.feed and m.version <= c.version - in_marks_max
    )
    select array_agg(t.feed), array_agg(t.seq), (select array_agg(c.feed) from counted c)
    into taken_feeds, taken_seqs, escalated
    from taken t;

    return query
    select r, unpublished_facts(r), (select f.version from feeds f where f.feed = r.feed and r.feed = any (escalated))
    from unnest(taken_feeds, taken_seqs) as t (feed, seq)
    join receipts r on r.feed = t.feed and r.seq = t.seq
    order by r.feed collate "C", r.seq;
end
$$;

-- Ends the lease of taken rows. in_published has the facts of each that RabbitMQ confirmed.
create function finish_receipts(in_feeds text[], in_seqs bigint[], in_published integer[]) returns void language sql volatile as $$
    with locked as materialized (
        select r.feed, r.seq, d.published
        from unnest(in_feeds, in_seqs, in_published) as d (feed, seq, published)
        join receipts r on r.feed = d.feed and r.seq = d.seq
        order by r.feed collate "C", r.seq
        for update of r
    )
    update receipts r
    set published = r.published | l.published, leased_until = null,
        due_at = receipt_due_at((r.feed, r.seq, r.source, r.event_id, r.event_type, r.stored_at, r.wanted, r.deliver_by,
            r.handle_by, r.expires_at, r.delivered_at, r.delivered_by, r.delivered_device, r.read_at, r.read_by, r.handled_at,
            r.handled_by, r.settled_at, r.settled_by, r.expired_at, r.undelivered_at, r.overdue_at,
            r.published | l.published, r.due_at, null::timestamptz)::receipts)
    from locked l where r.feed = l.feed and r.seq = l.seq
$$;

-- Stores the requests for receipts of the events of an append. The first arrays have an element for each event. The arrays in_asking_events
-- to in_handle_bys have an element for each event that asks, with its place (from 1).
create function ask_receipts(
    in_feeds text[], in_seqs bigint[], in_new boolean[], in_sources text[], in_event_ids text[], in_event_types text[],
    in_expires_at timestamptz[], in_stored_at timestamptz,
    in_asking_events bigint[], in_wanted integer[], in_deliver_bys timestamptz[], in_handle_bys timestamptz[])
returns void language sql volatile as $$
    insert into receipts (feed, seq, source, event_id, event_type, stored_at, wanted, deliver_by, handle_by, expires_at, due_at)
    select in_feeds[a.event], in_seqs[a.event], in_sources[a.event], in_event_ids[a.event], in_event_types[a.event], in_stored_at,
           a.wanted, a.deliver_by, a.handle_by, in_expires_at[a.event],
           least(a.deliver_by, a.handle_by, case when a.wanted & 16 <> 0 then in_expires_at[a.event] end)
    from unnest(in_asking_events, in_wanted, in_deliver_bys, in_handle_bys) as a (event, wanted, deliver_by, handle_by)
    where in_new[a.event]
    order by in_feeds[a.event] collate "C", in_seqs[a.event]
$$;

-- The function of 0004_marks.sql, which also records the facts.

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
create or replace function mark_notifications(
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
            update receipts r
                set read_at = case mark.kind when 'read' then moment else r.read_at end,
                    read_by = case mark.kind when 'read' then mark.subscriber else r.read_by end,
                    handled_at = case mark.kind when 'handled' then moment else r.handled_at end,
                    handled_by = case mark.kind when 'handled' then mark.subscriber else r.handled_by end,
                    due_at = now()
                where r.feed = mark.feed and r.seq = any (marked);
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
