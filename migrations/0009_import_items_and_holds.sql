-- An item of an import counts once, with its last status, and a start after the end begins a new run; appends to a held feed
-- fail. The earlier signatures of the append functions stay for the last version, which counts the same way.

alter table imports add column run bigint not null default 1;

-- Which items of a run were counted, 512 of them a row: an import counts upwards, so a batch of it changes one row or two.
create table import_items (
    feed      text   collate "C" not null,
    import_id text   collate "C" not null,
    run       bigint not null,
    chunk     bigint not null,          -- of the items from 512 * chunk
    seen      bit(512) not null,        -- was counted
    failed    bit(512) not null,        -- of these, failed the last time
    primary key (feed, import_id, run, chunk)
) with (fillfactor = 50);

-- Counts the steps of imports, given in the order of their events, and returns after each how far its import was. The caller has
-- locked the feeds in an earlier statement, so that what is read here is what others committed. A start begins a new run
-- if the last run has ended and had its start: a start that comes late belongs to the run that it missed. in_items has null for a
-- step that is no item. The total that is returned is never less than what is done, also if more items come than were announced.
create function count_import_steps(
    in_feeds text[], in_import_ids text[], in_items bigint[], in_done bigint[], in_failed bigint[], in_totals bigint[],
    in_statuses text[],
    out steps_done bigint[], out steps_failed bigint[], out steps_total bigint[])
language plpgsql volatile as $$
#variable_conflict use_column
declare
    step     record;
    of_feed  text;
    of_id    text;
    started  boolean;
    ended    boolean;
    begins   bigint[] := '{}'; -- steps that begin a new run
    none     constant bit(512) := 0::bit(512);
begin
    for step in
        select s.*, i.total as known_total, i.status as known_status
        from unnest(in_feeds, in_import_ids, in_totals, in_statuses) with ordinality
            as s (feed, import_id, total, status, ordinal)
        left join imports i on i.feed = s.feed and i.import_id = s.import_id
        where s.total is not null or s.status is not null
        order by s.feed, s.import_id, s.ordinal
    loop
        if (step.feed, step.import_id) is distinct from (of_feed, of_id) then
            of_feed := step.feed;
            of_id := step.import_id;
            started := step.known_total is not null;
            ended := coalesce(step.known_status, 'running') <> 'running';
        end if;
        if step.status is not null then
            ended := true;
        elsif started and ended then
            begins := begins || step.ordinal;
            ended := false;
        else
            started := true;
        end if;
    end loop;

    with steps as (
        select s.*, i.run as known_run, i.done as known_done, i.failed as known_failed, i.total as known_total,
               i.status as known_status,
               coalesce(i.run, 1) + count(*) filter (where s.ordinal = any (begins))
                   over (partition by s.feed, s.import_id order by s.ordinal) as run
        from unnest(in_feeds, in_import_ids, in_items, in_done, in_failed, in_totals, in_statuses) with ordinality
            as s (feed, import_id, item, done, failed, total, status, ordinal)
        left join imports i on i.feed = s.feed and i.import_id = s.import_id
    ), items as (
        select s.feed, s.import_id, s.run, s.ordinal, s.item / 512 as chunk, (s.item % 512)::integer as place, s.failed,
               lag(s.failed) over same as failed_before, lead(s.ordinal) over same is null as is_last
        from steps s
        where s.item is not null
        window same as (partition by s.feed, s.import_id, s.run, s.item order by s.ordinal)
    ), added as (
        select i.ordinal,
               case when i.failed_before is null and coalesce(get_bit(k.seen, i.place), 0) = 0 then 1 else 0 end as done,
               i.failed - coalesce(i.failed_before, get_bit(k.failed, i.place), 0) as failed
        from items i
        left join import_items k
            on k.feed = i.feed and k.import_id = i.import_id and k.run = i.run and k.chunk = i.chunk
    ), kept as (
        insert into import_items as k (feed, import_id, run, chunk, seen, failed)
        select i.feed, i.import_id, i.run, i.chunk, bit_or(set_bit(none, i.place, 1)),
               bit_or(set_bit(none, i.place, i.failed::integer))
        from items i
        where i.is_last
        group by i.feed, i.import_id, i.run, i.chunk
        on conflict (feed, import_id, run, chunk) do update
            set seen = k.seen | excluded.seen, failed = (k.failed & ~excluded.seen) | excluded.failed
    ), told as (
        select s.feed, s.import_id, s.run, s.ordinal, s.run = s.known_run as continues,
               case when s.run = s.known_run then s.known_done else 0 end
                   + sum(coalesce(a.done, s.done)) over so_far as done,
               case when s.run = s.known_run then s.known_failed else 0 end
                   + sum(coalesce(a.failed, s.failed)) over so_far as failed,
               coalesce(in_totals[max(s.ordinal) filter (where s.total is not null) over so_far],
                        case when s.run = s.known_run then s.known_total end) as total,
               coalesce(in_statuses[max(s.ordinal) filter (where s.status is not null) over so_far],
                        case when s.run = s.known_run then s.known_status end, 'running') as status,
               lead(s.ordinal) over (partition by s.feed, s.import_id order by s.ordinal) is null as is_last
        from steps s
        left join added a on a.ordinal = s.ordinal
        window so_far as (partition by s.feed, s.import_id, s.run order by s.ordinal)
    ), imported as (
        insert into imports as i (feed, import_id, run, total, done, failed, status)
        select t.feed, t.import_id, t.run, t.total, t.done, t.failed, t.status
        from told t
        where t.is_last
        on conflict (feed, import_id) do update
            set run = excluded.run, total = excluded.total, done = excluded.done, failed = excluded.failed,
                status = excluded.status, updated_at = now(),
                started_at = case when i.run = excluded.run then i.started_at else now() end
    )
    select array_agg(t.done order by t.ordinal), array_agg(t.failed order by t.ordinal),
           array_agg(greatest(t.total, case when t.total is not null then t.done end) order by t.ordinal)
    into steps_done, steps_failed, steps_total
    from told t;

    -- Nothing is asked of an earlier run any more.
    if cardinality(begins) > 0 then
        delete from import_items k
            using imports i
            where (k.feed, k.import_id) in (select * from unnest(in_feeds, in_import_ids))
              and i.feed = k.feed and i.import_id = k.import_id and k.run < i.run;
    end if;
end
$$;

-- The item of an import event that the last version stores; null where it cannot be read.
create function import_item_of(in_data text) returns bigint language plpgsql immutable as $$
begin
    return (in_data::json ->> 'index')::numeric::bigint;
exception when others then
    return null;
end
$$;

-- As before, with the item of each step. Fails with SB002 if a feed is held, unless in_held. The feeds are locked and counted in a
-- statement of their own, so that the next ones see what others committed until then; in C order, like every statement that
-- locks several.
create function append_batch(
    in_feeds text[], in_added bigint[], in_news bigint[],
    in_event_feeds text[], in_before_last bigint[], in_sources text[], in_event_ids text[], in_event_types text[],
    in_times timestamptz[], in_data text[], in_collapse_keys text[], in_expires_at timestamptz[],
    in_received_at timestamptz,
    in_step_events bigint[], in_step_import_ids text[], in_step_items bigint[], in_step_done bigint[],
    in_step_failed bigint[], in_step_totals bigint[], in_step_statuses text[],
    in_held boolean,
    out last_seqs bigint[], out steps_done bigint[], out steps_failed bigint[], out steps_total bigint[])
language plpgsql volatile as $$
begin
    if not in_held and exists (select from held_feeds h where h.feed = any (in_feeds)) then
        raise exception 'a feed is held' using errcode = 'SB002';
    end if;

    with counted as (
        insert into feeds as f (feed, last_seq, unread, unhandled)
        select g.feed, g.added, g.news, g.news
        from unnest(in_feeds, in_added, in_news) as g (feed, added, news)
        order by g.feed collate "C"
        on conflict (feed) do update
            set last_seq = f.last_seq + excluded.last_seq,
                unread = f.unread + excluded.unread,
                unhandled = f.unhandled + excluded.unhandled
        returning f.feed, f.last_seq
    )
    select array_agg(c.last_seq order by g.ordinal) into last_seqs
    from unnest(in_feeds) with ordinality as g (feed, ordinal)
    join counted c on c.feed = g.feed;

    if cardinality(in_step_events) = 0 then
        insert into notifications (feed, seq, source, event_id, event_type, time, data, collapse_key, expires_at)
        select e.feed, g.last_seq - e.before_last, e.source, e.event_id, e.event_type, e.time, e.data, e.collapse_key,
               e.expires_at
        from unnest(in_event_feeds, in_before_last, in_sources, in_event_ids, in_event_types, in_times, in_data,
                    in_collapse_keys, in_expires_at)
            as e (feed, before_last, source, event_id, event_type, time, data, collapse_key, expires_at)
        join unnest(in_feeds, last_seqs) as g (feed, last_seq) on g.feed = e.feed;
        return;
    end if;

    select c.steps_done, c.steps_failed, c.steps_total into steps_done, steps_failed, steps_total
    from count_import_steps(
        (select array_agg(in_event_feeds[s.event] order by s.ordinal)
         from unnest(in_step_events) with ordinality as s (event, ordinal)),
        in_step_import_ids, in_step_items, in_step_done, in_step_failed, in_step_totals, in_step_statuses) c;

    insert into notifications (feed, seq, source, event_id, event_type, time, data, collapse_key, expires_at,
                               read_at, handled_at, import_done, import_failed, import_total)
    select e.feed, g.last_seq - e.before_last, e.source, e.event_id, e.event_type, e.time, e.data, e.collapse_key,
           e.expires_at, p.answered_at, p.answered_at, p.done, p.failed, p.total
    from unnest(in_event_feeds, in_before_last, in_sources, in_event_ids, in_event_types, in_times, in_data,
                in_collapse_keys, in_expires_at)
        with ordinality
        as e (feed, before_last, source, event_id, event_type, time, data, collapse_key, expires_at, event)
    join unnest(in_feeds, last_seqs) as g (feed, last_seq) on g.feed = e.feed
    left join (
        select s.event, case when s.is_done = 1 and s.is_failed = 0 then in_received_at end as answered_at,
               s.done, s.failed, s.total
        from unnest(in_step_events, in_step_done, in_step_failed, steps_done, steps_failed, steps_total)
            as s (event, is_done, is_failed, done, failed, total)) p on p.event = e.event;
exception when unique_violation then
    last_seqs := null;
end
$$;

-- As before, with the item of each step. Fails with SB002 if a feed is held, unless in_held.
create function append_notifications(
    in_feeds text[], in_sources text[], in_event_ids text[], in_event_types text[], in_times timestamptz[],
    in_data text[], in_collapse_keys text[], in_expires_at timestamptz[],
    in_received_at timestamptz,
    in_step_events bigint[], in_step_import_ids text[], in_step_items bigint[], in_step_done bigint[],
    in_step_failed bigint[], in_step_totals bigint[], in_step_statuses text[],
    in_held boolean)
returns table (ordinal bigint, seq bigint, duplicate boolean, import_done bigint, import_failed bigint, import_total bigint)
language plpgsql volatile as $$
#variable_conflict use_column
declare
    places       bigint[]; -- where each of in_feeds' events is stored, or null where it is new
    firsts       boolean[]; -- it is new and the first of its kind in the batch
    steps        bigint[]; -- the events whose steps count
    steps_done   bigint[];
    steps_failed bigint[];
    steps_total  bigint[];
begin
    if not in_held and exists (select from held_feeds h where h.feed = any (in_feeds)) then
        raise exception 'a feed is held' using errcode = 'SB002';
    end if;

    insert into feeds (feed)
        select distinct wanted.feed collate "C"
        from unnest(in_feeds) as wanted (feed)
        where not exists (select from feeds f where f.feed = wanted.feed)
        order by 1
        on conflict do nothing;

    perform from feeds f where f.feed = any (in_feeds) order by f.feed collate "C" for update;

    select array_agg(n.seq order by i.ordinal),
           array_agg(n.seq is null and i.kind = 1 order by i.ordinal)
    into places, firsts
    from (select u.*, row_number() over (partition by u.feed, u.source, u.event_id order by u.ordinal) as kind
          from unnest(in_feeds, in_sources, in_event_ids) with ordinality as u (feed, source, event_id, ordinal)) i
    left join lateral (
        select r.seq from notifications r
        where r.source = i.source and r.event_id = i.event_id and r.feed = i.feed
        limit 1) n on true;

    select array_agg(s.event order by s.ordinal) into steps
    from unnest(in_step_events) with ordinality as s (event, ordinal)
    where firsts[s.event];
    if steps is not null then
        select c.steps_done, c.steps_failed, c.steps_total into steps_done, steps_failed, steps_total
        from (select array_agg(in_feeds[s.event] order by s.ordinal) as feeds,
                     array_agg(s.import_id order by s.ordinal) as import_ids, array_agg(s.item order by s.ordinal) as items,
                     array_agg(s.done order by s.ordinal) as done, array_agg(s.failed order by s.ordinal) as failed,
                     array_agg(s.total order by s.ordinal) as totals, array_agg(s.status order by s.ordinal) as statuses
              from unnest(in_step_events, in_step_import_ids, in_step_items, in_step_done, in_step_failed, in_step_totals,
                          in_step_statuses)
                  with ordinality as s (event, import_id, item, done, failed, total, status, ordinal)
              where firsts[s.event]) s
        cross join lateral count_import_steps(s.feeds, s.import_ids, s.items, s.done, s.failed, s.totals, s.statuses) c;
    end if;

    return query
    with incoming as (
        select u.*, firsts[u.ordinal] as is_first
        from unnest(in_feeds, in_sources, in_event_ids, in_event_types, in_times, in_data, in_collapse_keys, in_expires_at)
            with ordinality as u (feed, source, event_id, event_type, time, data, collapse_key, expires_at, ordinal)
    ), placed as (
        select s.event, case when k.done = 1 and k.failed = 0 then in_received_at end as answered_at,
               s.done, s.failed, s.total
        from unnest(steps, steps_done, steps_failed, steps_total) as s (event, done, failed, total)
        join unnest(in_step_events, in_step_done, in_step_failed) as k (event, done, failed) on k.event = s.event
    ), numbered as (
        select i.*, f.last_seq + row_number() over (partition by i.feed order by i.ordinal) as seq, p.answered_at, p.done,
               p.failed, p.total
        from incoming i
        join feeds f on f.feed = i.feed
        left join placed p on p.event = i.ordinal
        where i.is_first
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
    select i.ordinal, coalesce(places[i.ordinal], n.seq), not i.is_first, n.done, n.failed, n.total
    from incoming i
    left join numbered n on n.feed = i.feed and n.source = i.source and n.event_id = i.event_id
    order by i.ordinal;
end
$$;

-- For the last version: its signatures, the same counts. It knows no holds, so that it does not wait for the end of one.
create or replace function append_batch(
    in_feeds text[], in_added bigint[], in_news bigint[],
    in_event_feeds text[], in_before_last bigint[], in_sources text[], in_event_ids text[], in_event_types text[],
    in_times timestamptz[], in_data text[], in_collapse_keys text[], in_expires_at timestamptz[],
    in_received_at timestamptz,
    in_step_events bigint[], in_step_import_ids text[], in_step_done bigint[], in_step_failed bigint[],
    in_step_totals bigint[], in_step_statuses text[],
    out last_seqs bigint[], out steps_done bigint[], out steps_failed bigint[], out steps_total bigint[])
language sql volatile as $$
    select last_seqs, steps_done, steps_failed, steps_total
    from append_batch(
        in_feeds, in_added, in_news, in_event_feeds, in_before_last, in_sources, in_event_ids, in_event_types, in_times,
        in_data, in_collapse_keys, in_expires_at, in_received_at, in_step_events, in_step_import_ids,
        array(select case s.done when 1 then import_item_of(in_data[s.event]) end
              from unnest(in_step_events, in_step_done) with ordinality as s (event, done, ordinal) order by s.ordinal),
        in_step_done, in_step_failed, in_step_totals, in_step_statuses, true)
$$;

create or replace function append_notifications(
    in_feeds text[], in_sources text[], in_event_ids text[], in_event_types text[], in_times timestamptz[],
    in_data text[], in_collapse_keys text[], in_expires_at timestamptz[],
    in_received_at timestamptz,
    in_step_events bigint[], in_step_import_ids text[], in_step_done bigint[], in_step_failed bigint[],
    in_step_totals bigint[], in_step_statuses text[])
returns table (ordinal bigint, seq bigint, duplicate boolean, import_done bigint, import_failed bigint, import_total bigint)
language sql volatile as $$
    select ordinal, seq, duplicate, import_done, import_failed, import_total
    from append_notifications(
        in_feeds, in_sources, in_event_ids, in_event_types, in_times, in_data, in_collapse_keys, in_expires_at,
        in_received_at, in_step_events, in_step_import_ids,
        array(select case s.done when 1 then import_item_of(in_data[s.event]) end
              from unnest(in_step_events, in_step_done) with ordinality as s (event, done, ordinal) order by s.ordinal),
        in_step_done, in_step_failed, in_step_totals, in_step_statuses, true)
$$;
