-- History: pages of a feed, newest first.

-- Blocks of a feed without unread, or without unhandled, notifications: the numbers from block * 1000 + 1 to
-- block * 1000 + 1000. A mark is never taken back, so a settled block stays settled. The history adds a block
-- when it has read it in vain, and skips it from then on.
-- An index on unread rows would make each append a sixth slower, and no mark would be HOT.
-- Delete these rows together with the row in feeds, because then the numbers begin anew.
create table settled_blocks (
    feed  text   collate "C" not null,
    kind  text   collate "C" not null check (kind in ('read', 'handled')),
    block bigint not null check (block >= 0),
    primary key (feed, kind, block)
);

-- Finds a page: the newest in_limit numbers below in_upper and not below in_lowest. With in_unread or
-- in_unhandled, it finds only such notifications, and skips settled blocks. With in_collapse, it leaves out
-- expired notifications, and all but the newest of a collapse key, as in a replay.
-- Reads in_numbers_max numbers at most, in blocks of a thousand, and skips two thousand blocks at most.
-- Returns the numbers, newest first; the lowest number that it has read; and blocks that are settled now.
-- Stable: it reads the snapshot of the calling statement. Uses notifications_pkey, notifications_collapse and
-- settled_blocks_pkey.
create function find_history(
    in_feed text, in_upper bigint, in_lowest bigint, in_limit bigint, in_unread boolean, in_unhandled boolean,
    in_collapse boolean, in_numbers_max bigint, out seqs bigint[], out lower bigint, out settled bigint[])
language plpgsql stable as $$
declare
    newest bigint := (in_upper - 2) / 1000;
    oldest bigint := greatest((in_lowest - 1) / 1000, newest - 1999);
    numbers_read bigint := 0;
    block_read   record;
    found  bigint[];
begin
    seqs := '{}';
    settled := '{}';
    lower := in_lowest;
    if in_upper <= in_lowest or in_limit <= 0 then
        return;
    end if;
    for block_read in
        select b.block, greatest(b.block * 1000 + 1, in_lowest) as first, least(b.block * 1000 + 1000, in_upper - 1) as last
        from generate_series(newest, oldest, -1) as b (block)
        where not exists (
            select from settled_blocks s
            where s.feed = in_feed and s.block = b.block
              and (in_unread and s.kind = 'read' or in_unhandled and s.kind = 'handled'))
        order by b.block desc
    loop
        if numbers_read >= in_numbers_max then
            return;
        end if;
        numbers_read := numbers_read + block_read.last - block_read.first + 1;
        lower := block_read.first;
        found := array(
            select n.seq from notifications n
            where n.feed = in_feed and n.seq >= block_read.first and n.seq <= block_read.last
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
        elsif cardinality(found) = 0 and block_read.last - block_read.first = 999 and in_unread <> in_unhandled and not in_collapse then
            settled := settled || block_read.block;
        end if;
    end loop;
    lower := greatest(oldest * 1000 + 1, in_lowest);
end
$$;
