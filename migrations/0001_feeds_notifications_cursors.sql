-- The truth that everything else is derived from: what each feed holds, and how far each subscriber has read it.
--
-- Numbering is gapless and visible in order because a feed's row is locked from the moment its next number is
-- read until the commit. No clock and no sequence is ever a cursor: both become visible out of order.

-- One row a recipient. Lower fillfactor: every batch updates the counters, in place (HOT), with no index on them.
create table feeds (
    feed      text   primary key,
    last_seq  bigint not null default 0 check (last_seq >= 0),  -- the newest notification's number
    acked_seq bigint not null default 0 check (acked_seq >= 0), -- the highest ack of anyone: where a new subscriber starts
    unread    bigint not null default 0 check (unread >= 0),    -- notifications nobody has read yet
    unhandled bigint not null default 0 check (unhandled >= 0)  -- notifications nobody has handled yet
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02);

-- One row an event and feed, appended by append_notifications() only; changed afterwards only by a person's read or handle.
-- No foreign key to feeds: the append holds the feed's lock already, and a check a row would double its cost.
create table notifications (
    feed         text        not null,
    seq          bigint      not null check (seq > 0),
    source       text        not null, -- CloudEvents source, with event_id the event's identity
    event_id     text        not null,
    event_type   text        not null,
    time         timestamptz not null, -- when it happened, or when it was received where the publisher did not say
    data         text,                 -- byte for byte as published: text, because jsonb reorders keys and refuses \u0000
    collapse_key text,                 -- in a replay only the newest of a key is sent
    expires_at   timestamptz,          -- after this it is skipped
    created_at   timestamptz not null default now(),
    read_at      timestamptz,
    handled_at   timestamptz,
    handled_by   text,
    primary key (feed, seq),
    unique (source, event_id, feed)    -- one event becomes one notification however often it is published
) with (autovacuum_vacuum_insert_scale_factor = 0.05);

-- Finds whether a newer notification of the same key exists.
create index notifications_collapse on notifications (feed, collapse_key, seq) where collapse_key is not null;

-- Where each subscriber stands, a device. A row is made at the first connect: from then on nothing is missed,
-- even if others acknowledge it while this subscriber is away.
create table cursors (
    feed       text        not null,
    subscriber text        not null,
    device     text        not null default '', -- '' is shared by all unnamed devices of a subscriber
    acked_seq  bigint      not null check (acked_seq >= 0),
    updated_at timestamptz not null default now(),
    primary key (feed, subscriber, device)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02);

-- For operators: what nobody has acknowledged yet.
create view undelivered as
    select n.feed, n.seq, n.source, n.event_id, n.event_type, n.time, n.created_at, n.expires_at
    from feeds f
    join notifications n on n.feed = f.feed and n.seq > f.acked_seq
    where f.acked_seq < f.last_seq;

-- Stores a batch in one round trip and one transaction, and says for each event, in the order given, which number
-- it has and whether it was stored before. Locks the batch's feeds in name order, so two batches never deadlock.
-- PL/pgSQL because each statement of a volatile function sees what was committed while it waited for a lock;
-- the parts of one plain statement would not, and would number a duplicate twice.
create function append_notifications(
    in_feeds text[], in_sources text[], in_event_ids text[], in_event_types text[], in_times timestamptz[],
    in_data text[], in_collapse_keys text[], in_expires_at timestamptz[])
returns table (ordinal bigint, seq bigint, duplicate boolean)
language plpgsql volatile as $$
#variable_conflict use_column
begin
    insert into feeds (feed)
        select distinct wanted.feed
        from unnest(in_feeds) as wanted (feed)
        where not exists (select from feeds f where f.feed = wanted.feed)
        order by wanted.feed
        on conflict do nothing;

    perform from feeds f where f.feed = any (in_feeds) order by f.feed for update;

    return query
    with incoming as (
        select *
        from unnest(in_feeds, in_sources, in_event_ids, in_event_types, in_times, in_data, in_collapse_keys, in_expires_at)
            with ordinality as i (feed, source, event_id, event_type, time, data, collapse_key, expires_at, ordinal)
    ), stored_before as (
        select i.ordinal, n.seq
        from incoming i
        join notifications n on n.source = i.source and n.event_id = i.event_id and n.feed = i.feed
    ), fresh as (
        select distinct on (i.feed, i.source, i.event_id) i.*
        from incoming i
        where not exists (select from stored_before s where s.ordinal = i.ordinal)
        order by i.feed, i.source, i.event_id, i.ordinal
    ), numbered as (
        select n.*, f.last_seq + row_number() over (partition by n.feed order by n.ordinal) as seq
        from fresh n
        join feeds f on f.feed = n.feed
    ), inserted as (
        insert into notifications (feed, seq, source, event_id, event_type, time, data, collapse_key, expires_at)
        select n.feed, n.seq, n.source, n.event_id, n.event_type, n.time, n.data, n.collapse_key, n.expires_at
        from numbered n
        order by n.ordinal
    ), counted as (
        update feeds f
        set last_seq = f.last_seq + c.added, unread = f.unread + c.added, unhandled = f.unhandled + c.added
        from (select n.feed, count(*) as added from numbered n group by n.feed) c
        where f.feed = c.feed
    )
    select i.ordinal, coalesce(s.seq, n.seq), n.ordinal is distinct from i.ordinal
    from incoming i
    left join stored_before s on s.ordinal = i.ordinal
    left join numbered n on n.feed = i.feed and n.source = i.source and n.event_id = i.event_id
    order by i.ordinal;
end
$$;

-- Takes a batch of acks, each already the highest of its (feed, subscriber, device). Never moves a cursor back, whatever
-- order replicas write in; nor beyond what is stored, as a session might that outlived a restore: the numbers up to there
-- will be given to other notifications. Locks feeds in name order, like append_notifications().
create function advance_cursors(in_feeds text[], in_subscribers text[], in_devices text[], in_seqs bigint[])
returns void
language plpgsql volatile as $$
#variable_conflict use_column
begin
    perform from feeds f where f.feed = any (in_feeds) order by f.feed for update;

    insert into cursors as c (feed, subscriber, device, acked_seq)
        select a.feed, a.subscriber, a.device, least(a.seq, f.last_seq)
        from unnest(in_feeds, in_subscribers, in_devices, in_seqs) as a (feed, subscriber, device, seq)
        join feeds f on f.feed = a.feed
        order by a.feed, a.subscriber, a.device
        on conflict (feed, subscriber, device) do update
            set acked_seq = excluded.acked_seq, updated_at = now()
            where c.acked_seq < excluded.acked_seq;

    update feeds f
        set acked_seq = least(a.seq, f.last_seq)
        from (select u.feed, max(u.seq) as seq from unnest(in_feeds, in_seqs) as u (feed, seq) group by u.feed) a
        where f.feed = a.feed and f.acked_seq < least(a.seq, f.last_seq);
end
$$;

-- Says for each (feed, subscriber, device), in the order given, where it stands and what the feed holds; makes the cursor
-- of one that is new. A subscriber has devices_max of them in a feed at most: then the one that moved longest ago goes, so
-- that a client which invents device names costs nobody but itself.
create function open_cursors(in_feeds text[], in_subscribers text[], in_devices text[], devices_max integer)
returns table (ordinal bigint, acked_seq bigint, last_seq bigint, unread bigint, unhandled bigint)
language plpgsql volatile as $$
#variable_conflict use_column
begin
    if exists (
        select from unnest(in_feeds, in_subscribers, in_devices) as w (feed, subscriber, device)
        where not exists (select from cursors c
                          where c.feed = w.feed and c.subscriber = w.subscriber and c.device = w.device))
    then
        insert into cursors (feed, subscriber, device, acked_seq)
            select distinct w.feed, w.subscriber, w.device, coalesce(f.acked_seq, 0)
            from unnest(in_feeds, in_subscribers, in_devices) as w (feed, subscriber, device)
            left join feeds f on f.feed = w.feed
            order by w.feed, w.subscriber, w.device
            on conflict do nothing;

        delete from cursors c
            using (select a.feed, a.subscriber, a.device,
                          row_number() over (partition by a.feed, a.subscriber order by a.updated_at desc, a.device) as place
                   from (select distinct w.feed, w.subscriber from unnest(in_feeds, in_subscribers) as w (feed, subscriber)) w
                   join cursors a on a.feed = w.feed and a.subscriber = w.subscriber) aged
            where aged.place > devices_max
              and c.feed = aged.feed and c.subscriber = aged.subscriber and c.device = aged.device;
    end if;

    return query
    select w.ordinal, c.acked_seq, coalesce(f.last_seq, 0), coalesce(f.unread, 0), coalesce(f.unhandled, 0)
    from unnest(in_feeds, in_subscribers, in_devices) with ordinality as w (feed, subscriber, device, ordinal)
    join cursors c on c.feed = w.feed and c.subscriber = w.subscriber and c.device = w.device
    left join feeds f on f.feed = w.feed
    order by w.ordinal;
end
$$;
