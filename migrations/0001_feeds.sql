-- Feeds and their notifications. The rest of the schema refers to these two tables.
--
-- The numbers of a feed have no gap and become visible in order. A transaction locks the row in feeds
-- before it reads the next number, and keeps the lock until it commits. Neither a clock nor a sequence
-- has this property.
--
-- Keys are collate "C". An index in the order of a locale is wrong after libc or ICU changes that order.
-- A statement that locks several rows of a table locks them in C order. Batches lock existing feeds in this
-- order. If new feeds meet existing ones, Postgres may end one batch (40P01), and ingest repeats it.

-- One row for each recipient. All columns but the key are updated in place (HOT), because no index
-- contains them.
-- The fillfactor is 20, because old row versions stay while a snapshot is open (for example pg_dump). The
-- free room of a page keeps the versions of its rows together. After 100 appends to each of 1,000 feeds, a
-- lookup read 86 pages at 50 and 26 at 20.
create table feeds (
    feed        text   collate "C" primary key,
    last_seq    bigint not null default 0 check (last_seq >= 0),   -- number of the newest notification
    acked_seq   bigint not null default 0 check (acked_seq >= 0),  -- a recent highest ack: a cursor may be above it
    unread      bigint not null default 0 check (unread >= 0),     -- notifications without a read mark
    unhandled   bigint not null default 0 check (unhandled >= 0),  -- notifications without a handle mark
    read_seq    bigint not null default 0 check (read_seq >= 0),   -- all up to here are read: "read all" starts after it
    version     bigint not null default 0 check (version >= 0),    -- number of the newest row in marks
    trimmed_seq bigint not null default 0 check (trimmed_seq >= 0), -- all up to here are removed; a gap above is a loss
    made_seq    bigint -- lowest place of the cursors made since retention last read the cursors; null if none is below the highest ack
) with (fillfactor = 20, autovacuum_vacuum_scale_factor = 0.02);

-- One row for each event and feed. Only the appends insert (src/store/append/statements.rs); only
-- mark_notifications() updates.
-- No foreign key to feeds: the append already holds the lock of the feed, and a check for each row would
-- double its cost.
-- The fillfactor is 90, because a mark updates its row in place (HOT) if the page has room. Otherwise it
-- adds an entry to each index. With rows of 150 bytes, one mark in five is HOT at 100, nearly all are at 95, and
-- all marks of a few rows at 90.
create table notifications (
    feed          text        collate "C" not null,
    seq           bigint      not null check (seq > 0),
    source        text        collate "C" not null, -- CloudEvents source
    event_id      text        collate "C" not null,
    event_type    text        not null,
    time          timestamptz not null, -- of the event, or of its receipt if the publisher set none
    data          text,                 -- as published; jsonb would reorder keys and reject \u0000
    collapse_key  text        collate "C", -- a replay sends only the newest notification of a key
    expires_at    timestamptz,          -- a replay skips the notification after this
    created_at    timestamptz not null default now(),
    read_at       timestamptz,
    handled_at    timestamptz,
    handled_by    text,                 -- subscriber; null if the import itself was the handling
    import_done   bigint,               -- progress of the import when this was stored: imported or failed items
    import_failed bigint,               -- of these, the failed items
    import_total  bigint,               -- announced items; null if no import.started was stored
    identity      uuid        not null, -- event_identity() of the row; 16 bytes keep its index small
    primary key (feed, seq),
    unique (identity)                   -- a redelivered or repeated event is stored once
) with (fillfactor = 90, autovacuum_vacuum_insert_scale_factor = 0.05);

-- Finds out if a newer notification of the same collapse key exists.
create index notifications_collapse on notifications (feed, collapse_key, seq) where collapse_key is not null;

-- Finds the rows of the last minutes (docs/runbook.md). Rows are stored in the order of created_at, so BRIN
-- needs one entry for many pages and an append costs no more. autosummarize adds the entry of a full range.
create index notifications_created_at on notifications using brin (created_at) with (autosummarize = on);

-- The identity of an event in a feed: the first 16 bytes of a SHA-256. Two events with the same identity are the
-- same event. No text of Postgres contains the byte 0, so it separates the parts. If the event id is a UUID of
-- version 7, the first four bytes are those of its time, which change every 66 s. So the new entries of the index
-- are on few pages. The service computes the same (src/store/append/identity.rs). `shopbell verify` compares, and
-- operators write rows with it.
create function event_identity(in_feed text, in_source text, in_event_id text) returns uuid language sql immutable as $$
    select (case when in_event_id collate "C" ~ '^[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-7' then left(in_event_id, 8) else left(h.hash, 8) end
            || substr(h.hash, 9, 24))::uuid
    from (select encode(sha256(convert_to(in_feed, 'UTF8') || '\x00' || convert_to(in_source, 'UTF8') || '\x00'
                               || convert_to(in_event_id, 'UTF8')), 'hex') as hash) h
$$;
