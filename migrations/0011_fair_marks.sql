-- Marks (read, handled) of one feed no longer hold up those of others, and cost less; history skips what it need not look at.

-- A mark updates its row in place (HOT) if its page has room; otherwise it adds an entry to each index. Measured with rows of
-- 150 bytes: at 100 one mark in five is HOT, at 95 nearly all, at 90 all marks of a few rows. Pages are filled as before
-- until they are written anew.
alter table notifications set (fillfactor = 90);

-- While a snapshot is open (pg_dump, say), no old row version is removed, and each lookup walks through all pages with versions of
-- its row. The room that a page has left takes the versions of its own rows: after 100 appends to each of 1,000 feeds, a lookup
-- read 86 pages at 50, 26 at 20.
alter table feeds set (fillfactor = 20);
alter table cursors set (fillfactor = 20);

-- Parts of a feed with nothing unread, or nothing unhandled: the numbers from block * 1000 + 1 to block * 1000 + 1000. Marks
-- only grow, so what is settled stays settled. History adds a block when it has looked in vain, and skips it from then on. An
-- index on the open rows would cost each append a sixth more time, and no handle would be HOT. Whatever deletes a feed's row
-- in feeds deletes its blocks, because its numbers begin anew.
create table settled_blocks (
    feed  text collate "C" not null,
    kind  text   collate "C" not null check (kind in ('read', 'handled')),
    block bigint not null check (block >= 0),
    primary key (feed, kind, block)
);

-- As before, but never waits for long, for a lock that one feed's row has must not hold up the marks of the others. If
-- in_lock_wait is null, it takes no part in a feed that another transaction has locked, and returns 'locked' for what was
-- said of it; otherwise it waits so many milliseconds for each lock, and then fails (55P03). Locks feeds in name order.
create function answer_notifications(
    in_feeds text[], in_kinds text[], in_throughs bigint[], in_seqs text[], in_subscribers text[], in_rows_max bigint,
    in_changes_max bigint, in_lock_wait integer)
returns table (ordinal bigint, outcome text, version bigint, seqs bigint[], through bigint, changed_at timestamptz,
               changed_by text, unread bigint, unhandled bigint, last_seq bigint)
language plpgsql volatile as $$
#variable_conflict use_column
declare
    said     record;
    feed_row feeds;
    held     text[];
    wanted   bigint[];
    upper    bigint;
    changed  bigint[];
    left_to  bigint := in_rows_max;
    moment   timestamptz := now();
begin
    -- Until the end of the transaction. Nobody else locks a notification for longer than a moment.
    perform set_config('lock_timeout', coalesce(in_lock_wait, 100)::text, true);
    if in_lock_wait is null then
        held := array(
            select f.feed from feeds f
            where f.feed in (select s.feed from unnest(in_feeds, in_seqs) as s (feed, seqs) where s.seqs is distinct from '{}')
            order by f.feed collate "C" for update skip locked);
    else
        held := array(
            select f.feed from feeds f
            where f.feed in (select s.feed from unnest(in_feeds, in_seqs) as s (feed, seqs) where s.seqs is distinct from '{}')
            order by f.feed collate "C" for update);
    end if;

    for said in
        select * from unnest(in_feeds, in_kinds, in_throughs, in_seqs, in_subscribers)
            with ordinality as s (feed, kind, through, seqs, subscriber, ordinal)
    loop
        select * into feed_row from feeds f where f.feed = said.feed;
        if feed_row.feed is not null and said.seqs is distinct from '{}' and said.feed <> all (held) then
            return query select said.ordinal, 'locked', null::bigint, null::bigint[], null::bigint, null::timestamptz,
                null::text, feed_row.unread, feed_row.unhandled, feed_row.last_seq;
            continue;
        end if;
        wanted := said.seqs::bigint[];
        upper := null;
        if said.through is not null then
            upper := greatest(least(said.through, coalesce(feed_row.last_seq, 0), feed_row.read_seq + left_to), 0);
            left_to := left_to - greatest(upper - feed_row.read_seq, 0);
            with answered as (
                update notifications n set read_at = moment
                where n.feed = said.feed and n.seq > feed_row.read_seq and n.seq <= upper and n.read_at is null
                returning n.seq)
            select array_agg(a.seq) into changed from answered a;
            update feeds f set read_seq = upper where f.feed = said.feed and f.read_seq < upper;
        elsif said.kind = 'read' then
            with answered as (
                update notifications n set read_at = moment
                where n.feed = said.feed and n.seq = any (wanted) and n.read_at is null
                returning n.seq)
            select array_agg(a.seq order by a.seq) into changed from answered a;
        else
            with answered as (
                update notifications n set handled_at = moment, handled_by = said.subscriber
                where n.feed = said.feed and n.seq = any (wanted) and n.handled_at is null
                returning n.seq)
            select array_agg(a.seq order by a.seq) into changed from answered a;
        end if;

        if changed is not null then
            update feeds f
                set version = f.version + 1,
                    unread = f.unread - case said.kind when 'read' then cardinality(changed) else 0 end,
                    unhandled = f.unhandled - case said.kind when 'handled' then cardinality(changed) else 0 end
                where f.feed = said.feed
                returning f.* into feed_row;
            insert into changes (feed, version, kind, seqs, through, changed_at, changed_by, unread, unhandled, last_seq)
                values (said.feed, feed_row.version, said.kind, case when upper is null then changed end, upper, moment,
                        said.subscriber, feed_row.unread, feed_row.unhandled, feed_row.last_seq);
            delete from changes c where c.feed = said.feed and c.version <= feed_row.version - in_changes_max;
            return query select said.ordinal, 'changed', feed_row.version, case when upper is null then changed end, upper,
                moment, said.subscriber, feed_row.unread, feed_row.unhandled, feed_row.last_seq;
        end if;

        if upper < least(said.through, coalesce(feed_row.last_seq, 0)) then
            return query select said.ordinal, 'more', null::bigint, null::bigint[], upper, null::timestamptz, null::text,
                feed_row.unread, feed_row.unhandled, feed_row.last_seq;
        elsif said.through is not null and changed is null then
            return query select said.ordinal, 'was', null::bigint, null::bigint[], upper,
                coalesce((select n.read_at from notifications n
                          where n.feed = said.feed and n.seq <= upper order by n.seq desc limit 1), moment),
                null::text, coalesce(feed_row.unread, 0), coalesce(feed_row.unhandled, 0), coalesce(feed_row.last_seq, 0);
        elsif cardinality(wanted) = 0 then
            return query select said.ordinal, 'was', null::bigint, wanted, null::bigint, null::timestamptz, null::text,
                coalesce(feed_row.unread, 0), coalesce(feed_row.unhandled, 0), coalesce(feed_row.last_seq, 0);
        elsif cardinality(wanted) > coalesce(cardinality(changed), 0) then
            return query
            select said.ordinal, case when n.seq is null then 'unknown' else 'was' end, null::bigint,
                   array_agg(w.seq order by w.seq), null::bigint,
                   case said.kind when 'read' then n.read_at else n.handled_at end,
                   case said.kind when 'handled' then n.handled_by end,
                   coalesce(feed_row.unread, 0), coalesce(feed_row.unhandled, 0), coalesce(feed_row.last_seq, 0)
            from unnest(wanted) as w (seq)
            left join notifications n on n.feed = said.feed and n.seq = w.seq
            where w.seq <> all (coalesce(changed, '{}'))
            group by n.seq is null, 6, 7;
        end if;
    end loop;
end
$$;

-- For replicas of the last version: its signature, which waits for locks as long as it may.
create or replace function answer_notifications(
    in_feeds text[], in_kinds text[], in_throughs bigint[], in_seqs text[], in_subscribers text[], in_rows_max bigint,
    in_changes_max bigint)
returns table (ordinal bigint, outcome text, version bigint, seqs bigint[], through bigint, changed_at timestamptz,
               changed_by text, unread bigint, unhandled bigint, last_seq bigint)
language sql volatile as $$
    select ordinal, outcome, version, seqs, through, changed_at, changed_by, unread, unhandled, last_seq
    from answer_notifications(in_feeds, in_kinds, in_throughs, in_seqs, in_subscribers, in_rows_max, in_changes_max, 0)
$$;

-- Finds a page of a feed's history: the newest in_limit numbers below in_upper and not below in_lowest. With in_unread or
-- in_unhandled, only of such, and it passes settled blocks. With in_collapse, as in a replay, only the newest of a collapse key
-- and none that has expired. Looks at in_numbers_max numbers at most, in blocks of a thousand, and passes two thousand blocks at
-- most. Returns the numbers, newest first; the lowest number that it has looked at; and the blocks that it found to be settled.
-- Stable, so it sees what its caller's statement sees. Walks notifications_pkey, notifications_collapse, settled_blocks_pkey.
create function look_back(
    in_feed text, in_upper bigint, in_lowest bigint, in_limit bigint, in_unread boolean, in_unhandled boolean,
    in_collapse boolean, in_numbers_max bigint, out seqs bigint[], out lower bigint, out settled bigint[])
language plpgsql stable as $$
declare
    newest bigint := (in_upper - 2) / 1000;
    oldest bigint := greatest((in_lowest - 1) / 1000, newest - 1999);
    looked bigint := 0;
    part   record;
    found  bigint[];
begin
    seqs := '{}';
    settled := '{}';
    lower := in_lowest;
    if in_upper <= in_lowest or in_limit <= 0 then
        return;
    end if;
    for part in
        select b.block, greatest(b.block * 1000 + 1, in_lowest) as first, least(b.block * 1000 + 1000, in_upper - 1) as last
        from generate_series(newest, oldest, -1) as b (block)
        where not exists (
            select from settled_blocks s
            where s.feed = in_feed and s.block = b.block
              and (in_unread and s.kind = 'read' or in_unhandled and s.kind = 'handled'))
        order by b.block desc
    loop
        if looked >= in_numbers_max then
            return;
        end if;
        looked := looked + part.last - part.first + 1;
        lower := part.first;
        found := array(
            select n.seq from notifications n
            where n.feed = in_feed and n.seq >= part.first and n.seq <= part.last
              and (not in_unread or n.read_at is null) and (not in_unhandled or n.handled_at is null)
              and not (in_collapse and (coalesce(n.expires_at <= now(), false)
                                        or n.collapse_key is not null and exists (
                                            select from notifications m
                                            where m.feed = n.feed and m.collapse_key = n.collapse_key and m.seq > n.seq)))
            order by n.seq desc
            limit in_limit - cardinality(seqs));
        seqs := seqs || found;
        if cardinality(seqs) >= in_limit then
            lower := seqs[cardinality(seqs)];
            return;
        elsif cardinality(found) = 0 and part.last - part.first = 999 and in_unread <> in_unhandled and not in_collapse then
            settled := settled || part.block;
        end if;
    end loop;
    lower := greatest(oldest * 1000 + 1, in_lowest);
end
$$;
