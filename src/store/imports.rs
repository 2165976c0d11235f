//! Counted items of imports. They are needed while an item may arrive again.

use super::StoreError;
use super::pool::Pool;

/// An item that arrives again so long after the last event of its import counts again.
const KEPT: &str = "30 days";
/// Imports with items that one statement visits.
const VISITED_MAX: i64 = 500;
/// Most rows that one statement deletes.
const DELETED_MAX: i64 = 1_000;

/// The feed and the id of an import.
pub type ImportKey = (String, String);

/// Visits the next imports with items after a place, in the order of their keys. Returns those
/// without recent events, and the place to continue at, if there may be more.
///
/// Imports without items cost nothing, so the number of all imports does not matter. Locks nothing;
/// uses `import_items_pkey` and `imports_pkey` for each import with items.
pub async fn old_with_items(
    pool: &Pool,
    after: Option<&ImportKey>,
) -> Result<(Vec<ImportKey>, Option<ImportKey>), StoreError> {
    let (feed, import_id) = after.map_or(("", ""), |(feed, id)| (feed, id));
    let query = sqlx::query(
        "with recursive visited as (
             (select i.feed, i.import_id, 1 as visits from import_items i
              where (i.feed, i.import_id) > ($1, $2)
              order by i.feed, i.import_id limit 1)
             union all
             select n.feed, n.import_id, v.visits + 1
             from visited v
             cross join lateral (
                 select i.feed, i.import_id from import_items i
                 where (i.feed, i.import_id) > (v.feed, v.import_id)
                 order by i.feed, i.import_id limit 1) n
             where v.visits < $3)
         select v.feed, v.import_id, coalesce(m.updated_at < now() - $4::interval, false) as is_old
         from visited v
         left join imports m on m.feed = v.feed and m.import_id = v.import_id
         order by v.visits",
    )
    .bind(feed)
    .bind(import_id)
    .bind(VISITED_MAX)
    .bind(KEPT);
    let visited: Vec<(String, String, bool)> = super::fetch(pool, query).await?;
    let is_full = visited.len() as i64 >= VISITED_MAX;
    let last = visited.last().filter(|_| is_full);
    let last = last.map(|(feed, id, _)| (feed.clone(), id.clone()));
    let old = visited.into_iter().filter(|(.., is_old)| *is_old);
    Ok((old.map(|(feed, id, _)| (feed, id)).collect(), last))
}

/// Deletes the counted items of these imports, except of those that had an event meanwhile; returns
/// how many rows.
///
/// Locks the deleted rows. Uses `imports_pkey` and `import_items_pkey`.
pub async fn delete_items(pool: &Pool, imports: &[ImportKey]) -> Result<usize, StoreError> {
    let (feeds, ids): (Vec<&str>, Vec<&str>) = imports
        .iter()
        .map(|(feed, id)| (feed.as_str(), id.as_str()))
        .unzip();
    let query = sqlx::query(
        "delete from import_items k using (
             select i.feed, i.import_id, i.run, i.chunk
             from unnest($1::text[], $2::text[]) o (feed, import_id)
             join imports m on m.feed = o.feed and m.import_id = o.import_id
             join import_items i on i.feed = m.feed and i.import_id = m.import_id
             where m.updated_at < now() - $3::interval
             limit $4) old
         where (k.feed, k.import_id, k.run, k.chunk) = (old.feed, old.import_id, old.run, old.chunk)
         returning k.chunk",
    )
    .bind(feeds)
    .bind(ids)
    .bind(KEPT)
    .bind(DELETED_MAX);
    Ok(super::rows(pool, query).await?.len())
}
