-- Dead letters, and events that wait for a held feed. The statement that stores a batch also stores its dead
-- letters, and they are published to RabbitMQ later, so that RabbitMQ cannot block ingest.

-- One row for each event that is not a notification. Text columns are for people and contain no control
-- characters; properties and body contain the original.
create table dead_letters (
    position     bigint generated always as identity primary key, -- order of publishing and replay
    id           text        collate "C" not null unique, -- header x-shopbell-id
    reason       text        not null,
    detail       text        not null,
    exchange     text        not null,
    routing_key  text        not null,
    content_type text,
    properties   bytea       not null,         -- AMQP encoding, with the x-shopbell-* headers
    body         bytea       not null,
    bytes        bigint      not null,         -- size of the original body, which may be longer
    feed         text        collate "C",      -- set while the event waits for a held feed; then it is not dead
    received_at  timestamptz not null,
    leased_until timestamptz,                  -- until then one replica publishes it
    published_at timestamptz                   -- RabbitMQ has confirmed it
);

-- Finds unpublished letters, oldest first.
create index dead_letters_unpublished on dead_letters (position) where published_at is null and feed is null;

-- Finds the events that wait for a feed, oldest first.
create index dead_letters_held on dead_letters (feed, position) where feed is not null;

-- Feeds that take no events, because their rows contradict each other. Not a column of feeds, because that row
-- may be the damaged one. Events of a held feed wait in dead_letters.
create table held_feeds (
    feed       text        collate "C" primary key,
    detail     text        not null,
    held_since timestamptz not null default now()
);

-- Ends the hold of a feed if no event waits for it; returns whether it did. Locks the row first, as does the
-- statement that adds a waiting event.
create function end_hold(in_feed text) returns boolean language plpgsql volatile as $$
begin
    perform from held_feeds h where h.feed = in_feed for update;
    if exists (select from dead_letters d where d.feed = in_feed) then
        return false;
    end if;
    delete from held_feeds h where h.feed = in_feed;
    return found;
end;
$$;

-- Computes the counters of a feed from its rows; returns whether they were too low, or missing. Numbers
-- only grow: a stored notification keeps its number, and the next one gets a higher number than all of them.
-- If the row of the feed was missing, the numbers before the oldest notification count as removed by retention.
create function repair_feed(in_feed text) returns boolean language plpgsql volatile as $$
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
            trimmed_seq = case when was_missing then coalesce(n.oldest_seq - 1, 0) else f.trimmed_seq end
        from (select count(*) filter (where r.read_at is null) as unread,
                     count(*) filter (where r.handled_at is null) as unhandled, min(r.seq) as oldest_seq
              from notifications r where r.feed = in_feed) n
        where f.feed = in_feed;
    return true;
end;
$$;
