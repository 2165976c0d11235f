-- Dead letters are stored with their batch and published from here, so that no state of RabbitMQ holds up ingest. Old replicas
-- go on to publish theirs to RabbitMQ only.

-- One row an event that is not a notification. The text columns are for people and have no control characters; properties
-- and body hold the event as it came.
create table dead_letters (
    position     bigint generated always as identity primary key, -- the order in which they are published and replayed
    id           text        collate "C" not null unique, -- the header x-shopbell-id
    reason       text        not null,
    detail       text        not null,
    exchange     text        not null,
    routing_key  text        not null,
    content_type text,
    properties   bytea       not null,         -- as AMQP encodes them, with the x-shopbell-* headers
    body         bytea       not null,
    bytes        bigint      not null,         -- of the body as it came: more than are stored where it was too large
    feed         text        collate "C",      -- set while the event waits for a damaged feed: then it is not dead
    received_at  timestamptz not null,
    leased_until timestamptz,                  -- a replica publishes it until then
    published_at timestamptz                   -- RabbitMQ has confirmed it
);

-- Finds what is to be published, oldest first.
create index dead_letters_unpublished on dead_letters (position) where published_at is null and feed is null;
-- Finds what waits for a feed, oldest first.
create index dead_letters_held on dead_letters (feed, position) where feed is not null;

-- Feeds that take no events because their rows contradict each other. Apart from feeds, whose row may be the damaged one. Its
-- events wait in dead_letters; an append to one of these feeds fails with SB002.
create table held_feeds (
    feed       text        collate "C" primary key,
    detail     text        not null,
    held_since timestamptz not null default now()
);

-- Ends the hold of a feed of which no event waits any more; returns whether it did. The row is locked first, as by a statement that
-- sets an event of the feed aside.
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

-- Makes the feed's counters what its rows say, and returns whether they were behind, or gone. Numbers only grow: a row that
-- was stored keeps its number, and the next event gets one above all of them.
create function repair_feed(in_feed text) returns boolean language plpgsql volatile as $$
declare
    stored  bigint;
    changed bigint;
begin
    insert into feeds (feed) values (in_feed) on conflict do nothing;
    perform from feeds f where f.feed = in_feed for update;
    select max(n.seq) into stored from notifications n where n.feed = in_feed;
    select max(c.version) into changed from changes c where c.feed = in_feed;
    if not exists (select from feeds f
                   where f.feed = in_feed and (f.last_seq < coalesce(stored, 0) or f.version < coalesce(changed, 0))) then
        return false;
    end if;
    update feeds f
        set last_seq = greatest(f.last_seq, stored), version = greatest(f.version, changed),
            unread = n.unread, unhandled = n.unhandled
        from (select count(*) filter (where r.read_at is null) as unread,
                     count(*) filter (where r.handled_at is null) as unhandled
              from notifications r where r.feed = in_feed) n
        where f.feed = in_feed;
    return true;
end;
$$;
