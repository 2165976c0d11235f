-- What people say of notifications (read, handled), and how far imports are. Only adds: the last version goes on with its own
-- append functions while this one rolls out; the items that it stores meanwhile are in no import's totals.

-- Every notification up to read_seq is read, so that "read everything" never looks at it again. version numbers the feed's
-- changes as last_seq numbers its notifications.
alter table feeds
    add column read_seq bigint not null default 0 check (read_seq >= 0),
    add column version  bigint not null default 0 check (version >= 0);

-- How far the import was that this notification belongs to, when it was stored: a replay tells the same as the live push.
alter table notifications
    add column import_done   bigint, -- items that were imported or failed
    add column import_failed bigint, -- of these, the failed ones
    add column import_total  bigint; -- as import.started said; null where none was stored

-- One row an import, changed only under its feed's lock. An import_id names one run.
create table imports (
    feed       text        not null,
    import_id  text        not null,
    total      bigint,                           -- as import.started said
    done       bigint      not null default 0,   -- items that were imported or failed
    failed     bigint      not null default 0,   -- of these, the failed ones
    status     text        not null default 'running' check (status in ('running', 'finished', 'aborted')),
    started_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    primary key (feed, import_id)
) with (fillfactor = 50);

-- What people said, gapless in each feed: whoever missed a push reads on from the last version that it knows. Facts only grow,
-- so an old one does no harm. The newest thousand of a feed are kept.
create table changes (
    feed       text        not null,
    version    bigint      not null check (version > 0),
    kind       text        not null check (kind in ('read', 'handled')),
    seqs       bigint[],             -- which notifications; null where all up to through
    through    bigint,
    changed_at timestamptz not null, -- their read_at or handled_at
    changed_by text        not null, -- the subscriber; their handled_by
    unread     bigint      not null, -- the feed's counts after it …
    unhandled  bigint      not null,
    last_seq   bigint      not null, -- … which hold for the notifications up to here
    primary key (feed, version),
    check ((seqs is null) <> (through is null))
);

-- As before, and with what each event says of an import: in_step_* has one entry for each such event, in their order, and
-- says which event of the batch it is, how many items it adds to done and to failed, and the total and status that it sets.
-- An imported item is progress, not news: it is stored as read and handled. in_news says how many of each feed's are not.
-- Also gives each step's totals, as they were when it was stored.
create function append_batch(
    in_feeds text[], in_added bigint[], in_news bigint[],
    in_event_feeds text[], in_before_last bigint[], in_sources text[], in_event_ids text[], in_event_types text[],
    in_times timestamptz[], in_data text[], in_collapse_keys text[], in_expires_at timestamptz[],
    in_received_at timestamptz,
    in_step_events bigint[], in_step_import_ids text[], in_step_done bigint[], in_step_failed bigint[],
    in_step_totals bigint[], in_step_statuses text[],
    out last_seqs bigint[], out steps_done bigint[], out steps_failed bigint[], out steps_total bigint[])
language plpgsql volatile as $$
begin
    with counted as (
        insert into feeds as f (feed, last_seq, unread, unhandled)
        select g.feed, g.added, g.news, g.news
        from unnest(in_feeds, in_added, in_news) as g (feed, added, news)
        order by g.feed
        on conflict (feed) do update
            set last_seq = f.last_seq + excluded.last_seq,
                unread = f.unread + excluded.unread,
                unhandled = f.unhandled + excluded.unhandled
        returning f.feed, f.last_seq
    ), steps as (
        select s.*, in_event_feeds[s.event] as feed,
               sum(s.done) over later - s.done as done_later, sum(s.failed) over later - s.failed as failed_later
        from unnest(in_step_events, in_step_import_ids, in_step_done, in_step_failed, in_step_totals, in_step_statuses)
            as s (event, import_id, done, failed, total, status)
        window later as (partition by in_event_feeds[s.event], s.import_id order by s.event desc)
    ), imported as (
        insert into imports as i (feed, import_id, total, done, failed, status)
        select s.feed, s.import_id, (array_agg(s.total order by s.event desc) filter (where s.total is not null))[1],
               sum(s.done), sum(s.failed),
               coalesce((array_agg(s.status order by s.event desc) filter (where s.status is not null))[1], 'running')
        from steps s
        join counted c on c.feed = s.feed -- which locks the feed first
        group by s.feed, s.import_id
        order by s.feed, s.import_id
        on conflict (feed, import_id) do update
            set total = coalesce(excluded.total, i.total),
                done = i.done + excluded.done,
                failed = i.failed + excluded.failed,
                status = case excluded.status when 'running' then i.status else excluded.status end,
                updated_at = now()
        returning i.feed, i.import_id, i.total, i.done, i.failed
    ), placed as (
        select s.event, s.done = 1 and s.failed = 0 as is_progress,
               (i.done - s.done_later)::bigint as done, (i.failed - s.failed_later)::bigint as failed, i.total
        from steps s
        join imported i on i.feed = s.feed and i.import_id = s.import_id
    ), inserted as (
        insert into notifications (feed, seq, source, event_id, event_type, time, data, collapse_key, expires_at,
                                   read_at, handled_at, import_done, import_failed, import_total)
        select e.feed, c.last_seq - e.before_last, e.source, e.event_id, e.event_type, e.time, e.data, e.collapse_key,
               e.expires_at, case when p.is_progress then in_received_at end, case when p.is_progress then in_received_at end,
               p.done, p.failed, p.total
        from unnest(in_event_feeds, in_before_last, in_sources, in_event_ids, in_event_types, in_times, in_data,
                    in_collapse_keys, in_expires_at)
            with ordinality
            as e (feed, before_last, source, event_id, event_type, time, data, collapse_key, expires_at, event)
        join counted c on c.feed = e.feed
        left join placed p on p.event = e.event
    )
    select (select array_agg(c.last_seq order by g.ordinal)
            from unnest(in_feeds) with ordinality as g (feed, ordinal)
            join counted c on c.feed = g.feed),
           array_agg(p.done order by p.event), array_agg(p.failed order by p.event), array_agg(p.total order by p.event)
    into last_seqs, steps_done, steps_failed, steps_total
    from placed p;
exception when unique_violation then
    last_seqs := null;
end
$$;

-- As before, with the steps of imports, of which those of events that were stored before count for nothing; and says of each
-- new one how far its import was.
create function append_notifications(
    in_feeds text[], in_sources text[], in_event_ids text[], in_event_types text[], in_times timestamptz[],
    in_data text[], in_collapse_keys text[], in_expires_at timestamptz[],
    in_received_at timestamptz,
    in_step_events bigint[], in_step_import_ids text[], in_step_done bigint[], in_step_failed bigint[],
    in_step_totals bigint[], in_step_statuses text[])
returns table (ordinal bigint, seq bigint, duplicate boolean, import_done bigint, import_failed bigint, import_total bigint)
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
    ), steps as (
        select s.*, n.feed, sum(s.done) over later - s.done as done_later, sum(s.failed) over later - s.failed as failed_later
        from unnest(in_step_events, in_step_import_ids, in_step_done, in_step_failed, in_step_totals, in_step_statuses)
            as s (event, import_id, done, failed, total, status)
        join fresh n on n.ordinal = s.event
        window later as (partition by n.feed, s.import_id order by s.event desc)
    ), imported as (
        insert into imports as i (feed, import_id, total, done, failed, status)
        select s.feed, s.import_id, (array_agg(s.total order by s.event desc) filter (where s.total is not null))[1],
               sum(s.done), sum(s.failed),
               coalesce((array_agg(s.status order by s.event desc) filter (where s.status is not null))[1], 'running')
        from steps s
        group by s.feed, s.import_id
        order by s.feed, s.import_id
        on conflict (feed, import_id) do update
            set total = coalesce(excluded.total, i.total),
                done = i.done + excluded.done,
                failed = i.failed + excluded.failed,
                status = case excluded.status when 'running' then i.status else excluded.status end,
                updated_at = now()
        returning i.feed, i.import_id, i.total, i.done, i.failed
    ), placed as (
        select s.event, s.done = 1 and s.failed = 0 as is_progress,
               (i.done - s.done_later)::bigint as done, (i.failed - s.failed_later)::bigint as failed, i.total
        from steps s
        join imported i on i.feed = s.feed and i.import_id = s.import_id
    ), numbered as (
        select n.*, f.last_seq + row_number() over (partition by n.feed order by n.ordinal) as seq,
               case when p.is_progress then in_received_at end as answered_at, p.done, p.failed, p.total
        from fresh n
        join feeds f on f.feed = n.feed
        left join placed p on p.event = n.ordinal
    ), inserted as (
        insert into notifications (feed, seq, source, event_id, event_type, time, data, collapse_key, expires_at,
                                   read_at, handled_at, import_done, import_failed, import_total)
        select n.feed, n.seq, n.source, n.event_id, n.event_type, n.time, n.data, n.collapse_key, n.expires_at,
               n.answered_at, n.answered_at, n.done, n.failed, n.total
        from numbered n
        order by n.ordinal
    ), counted as (
        update feeds f
        set last_seq = f.last_seq + c.added, unread = f.unread + c.news, unhandled = f.unhandled + c.news
        from (select n.feed, count(*) as added, count(*) filter (where n.answered_at is null) as news
              from numbered n group by n.feed) c
        where f.feed = c.feed
    )
    select i.ordinal, coalesce(s.seq, n.seq), n.ordinal is distinct from i.ordinal, n.done, n.failed, n.total
    from incoming i
    left join stored_before s on s.ordinal = i.ordinal
    left join numbered n on n.feed = i.feed and n.source = i.source and n.event_id = i.event_id
    order by i.ordinal;
end
$$;

-- Takes what people said, in one transaction: in_kinds is 'read' or 'handled', in_throughs says up to where, or is null and
-- in_seqs says which, as '{1,2}'. Locks the feeds in name order, like the appends. Gives for each, by its ordinal:
--   'changed'   what became true now, with its version; the same is in changes;
--   'was'       what was true before, one row for each time and person;
--   'unknown'   the numbers that are not stored;
--   'more'      that it goes on after through: one call looks at in_rows_max numbers up to a through, for it locks feeds.
-- Who asks for counts only, with no numbers, locks nothing. Every row has the feed's counts after the call's changes so far.
create function answer_notifications(
    in_feeds text[], in_kinds text[], in_throughs bigint[], in_seqs text[], in_subscribers text[], in_rows_max bigint,
    in_changes_max bigint)
returns table (ordinal bigint, outcome text, version bigint, seqs bigint[], through bigint, changed_at timestamptz,
               changed_by text, unread bigint, unhandled bigint, last_seq bigint)
language plpgsql volatile as $$
#variable_conflict use_column
declare
    said     record;
    feed_row feeds;
    wanted   bigint[];
    upper    bigint;
    changed  bigint[];
    left_to  bigint := in_rows_max;
    moment   timestamptz := now();
begin
    perform from feeds f
        where f.feed in (select s.feed from unnest(in_feeds, in_seqs) as s (feed, seqs) where s.seqs is distinct from '{}')
        order by f.feed for update;

    for said in
        select * from unnest(in_feeds, in_kinds, in_throughs, in_seqs, in_subscribers)
            with ordinality as s (feed, kind, through, seqs, subscriber, ordinal)
    loop
        select * into feed_row from feeds f where f.feed = said.feed;
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
