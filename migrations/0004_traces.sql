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
