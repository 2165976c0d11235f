-- Half the work an event: in a batch nothing was stored before, as in nearly every one, each feed's row is locked, counted
-- up and read in one pass, and nothing is looked up that the unique index finds out anyway.

-- Stores a batch of which nothing was stored before, in one round trip and one transaction; says the last number of each of
-- in_feeds, or null, with nothing stored, where some event was there before: then append_notifications() tells which.
-- in_feeds are the batch's feeds, each once, in_added how many events it has for each; in_before_last says of each event how
-- many of its feed follow it in the batch. Locks the feeds in name order, which is the order an upsert is given its rows in;
-- append_notifications() locks new feeds first, so the two could wait for each other: then Postgres ends one, which is tried
-- again.
create function append_batch(
    in_feeds text[], in_added bigint[],
    in_event_feeds text[], in_before_last bigint[], in_sources text[], in_event_ids text[], in_event_types text[],
    in_times timestamptz[], in_data text[], in_collapse_keys text[], in_expires_at timestamptz[])
returns bigint[]
language plpgsql volatile as $$
declare
    last_seqs bigint[];
begin
    with counted as (
        insert into feeds as f (feed, last_seq, unread, unhandled)
        select g.feed, g.added, g.added, g.added
        from unnest(in_feeds, in_added) as g (feed, added)
        order by g.feed
        on conflict (feed) do update
            set last_seq = f.last_seq + excluded.last_seq,
                unread = f.unread + excluded.unread,
                unhandled = f.unhandled + excluded.unhandled
        returning f.feed, f.last_seq
    ), inserted as (
        insert into notifications (feed, seq, source, event_id, event_type, time, data, collapse_key, expires_at)
        select e.feed, c.last_seq - e.before_last, e.source, e.event_id, e.event_type, e.time, e.data, e.collapse_key,
               e.expires_at
        from unnest(in_event_feeds, in_before_last, in_sources, in_event_ids, in_event_types, in_times, in_data,
                    in_collapse_keys, in_expires_at)
            as e (feed, before_last, source, event_id, event_type, time, data, collapse_key, expires_at)
        join counted c on c.feed = e.feed
    )
    select array_agg(c.last_seq order by g.ordinal) into last_seqs
    from unnest(in_feeds) with ordinality as g (feed, ordinal)
    join counted c on c.feed = g.feed;
    return last_seqs;
exception when unique_violation then
    return null;
end
$$;

-- As before, but each row is locked and moved in one step. The feeds are moved by an upsert that never inserts, because an
-- upsert locks in the order given: name order, like the appends. Their last numbers are read without a lock: they only grow.
create or replace function advance_cursors(in_feeds text[], in_subscribers text[], in_devices text[], in_seqs bigint[])
returns void
language plpgsql volatile as $$
#variable_conflict use_column
begin
    insert into cursors as c (feed, subscriber, device, acked_seq)
        select a.feed, a.subscriber, a.device, least(a.seq, f.last_seq)
        from unnest(in_feeds, in_subscribers, in_devices, in_seqs) as a (feed, subscriber, device, seq)
        join feeds f on f.feed = a.feed
        order by a.feed, a.subscriber, a.device
        on conflict (feed, subscriber, device) do update
            set acked_seq = excluded.acked_seq, updated_at = now()
            where c.acked_seq < excluded.acked_seq;

    insert into feeds as f (feed, acked_seq)
        select k.feed, least(a.seq, k.last_seq)
        from (select u.feed, max(u.seq) as seq from unnest(in_feeds, in_seqs) as u (feed, seq) group by u.feed) a
        join feeds k on k.feed = a.feed and k.acked_seq < least(a.seq, k.last_seq)
        order by k.feed
        on conflict (feed) do update
            set acked_seq = excluded.acked_seq
            where f.acked_seq < excluded.acked_seq;
end
$$;
