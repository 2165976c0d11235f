//! The final tables as files of JSON rows, with the secrets of each event instead of its data.

use std::io::Write as _;

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};

use super::history::{History, secrets_in};

/// The tables, their columns, and the column with an event as bytes.
const TABLES: [(&str, &str, &str); 8] = [
    (
        "feeds",
        "feed, last_seq, acked_seq, unread, unhandled, read_seq, version, trimmed_seq",
        NONE,
    ),
    (
        "notifications",
        "feed, seq, source, event_id, event_type, time, collapse_key, expires_at, created_at, read_at, handled_at, \
         handled_by, import_done, import_failed, import_total",
        "convert_to(data, 'UTF8')",
    ),
    (
        "cursors",
        "feed, subscriber, device, acked_seq, updated_at, seen_at",
        NONE,
    ),
    (
        "marks",
        "feed, version, kind, seqs, through, marked_at, marked_by, unread, unhandled, last_seq",
        NONE,
    ),
    (
        "imports",
        "feed, import_id, total, done, failed, status, started_at, updated_at, run",
        NONE,
    ),
    (
        "import_items",
        "feed, import_id, run, chunk, seen, failed",
        NONE,
    ),
    (
        "dead_letters",
        "position, id, reason, detail, exchange, routing_key, content_type, bytes, feed, received_at, published_at",
        "body",
    ),
    (
        "epochs",
        "epoch, system_identifier, timeline, database_oid, feeds_oid, since, reason, lowered",
        NONE,
    ),
];
const NONE: &str = "null::bytea";
/// Columns with a time.
const TIMES: [&str; 12] = [
    "time",
    "expires_at",
    "created_at",
    "read_at",
    "handled_at",
    "updated_at",
    "seen_at",
    "marked_at",
    "started_at",
    "received_at",
    "published_at",
    "since",
];

/// Writes every table to `database` in the history's directory.
pub async fn dump(pool: &PgPool, history: &History) {
    for (table, columns, event) in TABLES {
        let columns: Vec<_> = columns.split(',').map(column).collect();
        let query = format!(
            "select row_to_json(t)::text, event from (select {event} as event, {} from {table}) r (event, {}),
             lateral (select {}) t",
            columns.join(", "),
            names(&columns),
            names(&columns),
        );
        let rows: Vec<(String, Option<Vec<u8>>)> = sqlx::query_as(AssertSqlSafe(query))
            .fetch_all(pool)
            .await
            .unwrap_or_else(|error| panic!("the table {table} cannot be read: {error}"));
        let path = history.folder().join(format!("database/{table}.jsonl"));
        let mut text = Vec::new();
        for (row, event) in rows {
            let mut row: Value = serde_json::from_str(&row).expect("Postgres writes JSON");
            if let Some(event) = event {
                describe(&mut row, &event);
            }
            writeln!(text, "{row}").expect("memory can be written");
        }
        std::fs::write(path, text).expect("a table can be written");
    }
}

/// A column of the query. Times become microseconds since 1970.
fn column(name: &str) -> String {
    let name = name.trim();
    if TIMES.contains(&name) {
        format!("(extract(epoch from {name}) * 1000000)::bigint as {name}")
    } else {
        name.to_owned()
    }
}

fn names(columns: &[String]) -> String {
    let name = |column: &String| column.rsplit(' ').next().unwrap_or_default().to_owned();
    columns.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// Adds the secrets of an event, and the identity of a dead letter.
fn describe(row: &mut Value, event: &[u8]) {
    let text = String::from_utf8_lossy(event);
    row["secrets"] = json!(secrets_in(&text));
    if row["reason"].is_string()
        && let Ok(event) = serde_json::from_str::<Value>(&text)
    {
        row["source"] = event["source"].clone();
        row["event_id"] = event["id"].clone();
        row["feed"] = event["recipient"].clone();
    }
}
