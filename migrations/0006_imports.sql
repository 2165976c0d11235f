-- Imports: exact totals for the progress of each import.* notification.

-- One row for each import, written only under the lock of its feed. A run is one execution of an import.
create table imports (
    feed       text        collate "C" not null,
    import_id  text        collate "C" not null,
    total      bigint,                           -- announced by import.started; null if none was stored
    done       bigint      not null default 0,   -- items that were imported or failed
    failed     bigint      not null default 0,   -- of these, the failed items
    status     text        not null default 'running' check (status in ('running', 'finished', 'aborted')),
    started_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    run        bigint      not null default 1,
    primary key (feed, import_id)
) with (fillfactor = 50);

-- The counted items of a run, 512 in a row: an import counts upwards, so a batch updates one row or two.
create table import_items (
    feed      text   collate "C" not null,
    import_id text   collate "C" not null,
    run       bigint not null,
    chunk     bigint not null,          -- items from 512 * chunk
    seen      bit(512) not null,        -- counted
    failed    bit(512) not null,        -- of these, the last status was failed
    primary key (feed, import_id, run, chunk)
) with (fillfactor = 50);

-- Counts import events, given in their order, and returns the progress of the import after each. An item counts
-- once, with its last status. For an event that is no item, in_items is null.
-- An import.started begins a new run if the last run has ended and had its start. A start that arrives late
-- belongs to the run that lacks it. The returned total is never less than done, even if more items arrive than announced.
-- The caller locks the feeds in an earlier statement, so that this one reads the rows that others committed.
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
    ), counted as (
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
        from counted t
        where t.is_last
        on conflict (feed, import_id) do update
            set run = excluded.run, total = excluded.total, done = excluded.done, failed = excluded.failed,
                status = excluded.status, updated_at = now(),
                started_at = case when i.run = excluded.run then i.started_at else now() end
    )
    select array_agg(t.done order by t.ordinal), array_agg(t.failed order by t.ordinal),
           array_agg(greatest(t.total, case when t.total is not null then t.done end) order by t.ordinal)
    into steps_done, steps_failed, steps_total
    from counted t;

    -- Earlier runs are complete.
    if cardinality(begins) > 0 then
        delete from import_items k
            using imports i
            where (k.feed, k.import_id) in (select * from unnest(in_feeds, in_import_ids))
              and i.feed = k.feed and i.import_id = k.import_id and k.run < i.run;
    end if;
end
$$;
