-- Where a traced event's trace goes on for who reads it later. Apart from notifications: only what a publisher samples has a
-- row, and none is missed where it is lost.
create table traces (
    feed        text        not null,
    seq         bigint      not null,
    traceparent text        not null, -- W3C Trace Context: the span that stored it
    stored_at   timestamptz not null default now(),
    primary key (feed, seq)
);

-- Finds what is too old to be worth a link.
create index traces_stored_at on traces (stored_at);

-- Feeds of canaries: an event each replica sends itself now and then. Only what stands here is ever forgotten whole.
create table canaries (
    feed           text        primary key,
    broadcast_feed text        not null, -- that its subscriber reads too
    flown_at       timestamptz not null default now()
);

-- Forgets a canary's feed with all that is in it, and where its one subscriber stood. Statement by statement, so that each sees
-- what was committed before it, and in the order in which acks and appends lock: cursors, then the feed.
create function forget_canary(in_feed text, in_broadcast_feed text) returns void language plpgsql volatile as $$
begin
    delete from cursors where feed in (in_feed, in_broadcast_feed) and subscriber = in_feed;
    perform from feeds where feed = in_feed for update;
    delete from notifications where feed = in_feed;
    delete from traces where feed = in_feed;
    delete from feeds where feed = in_feed;
end;
$$;
