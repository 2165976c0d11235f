-- Traces of notifications, and the feeds of canaries.

-- Where the trace of a notification continues when it is replayed. Only sampled events have a row, and a lost
-- row loses no notification; therefore it is no column of notifications.
create table traces (
    feed        text        collate "C" not null,
    seq         bigint      not null,
    traceparent text        not null, -- W3C Trace Context: the span that stored the notification
    stored_at   timestamptz not null default now(),
    primary key (feed, seq)
);

-- Finds expired traces.
create index traces_stored_at on traces (stored_at);

-- Feeds of canaries: each gateway sends events to itself. Only feeds with a row here are ever deleted.
create table canaries (
    feed           text        collate "C" primary key,
    broadcast_feed text        collate "C" not null, -- its subscriber reads this feed too
    started_at     timestamptz not null default now() -- of the newest check
);

-- Deletes the feed of a canary with all its rows, and the cursors of its subscriber. Several statements, so that
-- each reads the rows that others committed before it. Locks in the order of acks and appends: cursors, then the feed.
-- Ends if the feed has no row. If an append makes the row meanwhile, the next call deletes the feed.
create function delete_canary_feed(in_feed text, in_broadcast_feed text) returns void language plpgsql volatile as $$
begin
    delete from cursors where feed in (in_feed, in_broadcast_feed) and subscriber = in_feed;
    perform from feeds where feed = in_feed for update;
    if not found then
        return;
    end if;
    delete from notifications where feed = in_feed;
    delete from traces where feed = in_feed;
    delete from feeds where feed = in_feed;
end;
$$;
