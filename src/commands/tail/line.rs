//! Renders a notification or a `welcome` as one line. The writer of the line escapes foreign text.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::frame::{Notification, Progress, Welcome};

/// Longer data of an unknown type is shortened.
const DATA_CHARS_MAX: usize = 160;

#[derive(Deserialize)]
struct Order {
    order_id: String,
    total: String,
    currency: String,
    items: u64,
}

#[derive(Deserialize)]
struct ImportStarted {
    import_id: String,
    total: u64,
}

#[derive(Deserialize)]
struct ImportItem {
    import_id: String,
    index: u64,
    sku: String,
    status: String,
    error: Option<String>,
}

#[derive(Deserialize)]
struct ImportFinished {
    import_id: String,
    status: String,
}

/// Time, feed, number, type, and the main fields of the data.
pub(super) fn notification(notification: &Notification) -> String {
    let Notification {
        feed,
        seq,
        event,
        time,
        data,
        progress,
    } = notification;
    let text = data
        .as_ref()
        .map(|data| known_fields(event, data).unwrap_or_else(|| shortened(data.get())));
    let mut line = format!("{}  {feed} #{seq}  {event}", to_the_second(time));
    if let Some(text) = text {
        line = format!("{line}  {text}");
    }
    if let Some(Progress {
        done,
        failed,
        total,
    }) = progress
    {
        let of_total = total
            .map(|total| format!(" of {total}"))
            .unwrap_or_default();
        line = format!("{line}  ({done}{of_total} done, {failed} failed)");
    }
    line
}

/// The subscriber, its feeds with cursor and last number, and the session.
pub(super) fn welcome(welcome: &Welcome) -> String {
    let Welcome {
        session,
        subscriber,
        feeds,
        ..
    } = welcome;
    let feeds: Vec<_> = feeds
        .iter()
        .map(|feed| format!("{} after #{} of #{}", feed.feed, feed.cursor, feed.last))
        .collect();
    format!(
        "{subscriber} reads {} (session {session})",
        feeds.join(", ")
    )
}

/// The main fields of data of a known type; `None` for another type, or if the data does not fit.
fn known_fields(event: &str, data: &RawValue) -> Option<String> {
    Some(match event {
        "order.created" => {
            let Order {
                order_id,
                total,
                currency,
                items,
            } = read(data)?;
            format!(
                "order {order_id}  {total} {currency}, {items} item{}",
                if items == 1 { "" } else { "s" }
            )
        }
        "import.started" => {
            let ImportStarted { import_id, total } = read(data)?;
            format!("{import_id}: {total} items expected")
        }
        "import.item" => {
            let ImportItem {
                import_id,
                index,
                sku,
                status,
                error,
            } = read(data)?;
            let error = error.map(|error| format!(": {error}")).unwrap_or_default();
            format!("{import_id}: item {index} {sku} {status}{error}")
        }
        "import.finished" => {
            let ImportFinished { import_id, status } = read(data)?;
            format!("{import_id}: {status}")
        }
        _ => return None,
    })
}

fn read<T: DeserializeOwned>(data: &RawValue) -> Option<T> {
    serde_json::from_str(data.get()).ok()
}

fn shortened(data: &str) -> String {
    match data.char_indices().nth(DATA_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &data[..end]),
        None => data.to_owned(),
    }
}

/// An RFC 3339 time in UTC, without the fraction of its second.
fn to_the_second(time: &str) -> String {
    match time.split_once('.') {
        Some((seconds, _)) if time.ends_with('Z') => format!("{seconds}Z"),
        _ => time.to_owned(),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn each_known_type_is_rendered_in_words() {
        let cases = [
            (
                "order.created",
                r#"{"order_id":"10042","total":"129.90","currency":"EUR","items":3,"customer":7}"#,
                "order 10042  129.90 EUR, 3 items",
            ),
            (
                "order.created",
                r#"{"order_id":"1","total":"1","currency":"EUR","items":1}"#,
                "order 1  1 EUR, 1 item",
            ),
            (
                "import.started",
                r#"{"import_id":"i-1","total":20}"#,
                "i-1: 20 items expected",
            ),
            (
                "import.item",
                r#"{"import_id":"i-1","index":2,"sku":"S","status":"imported"}"#,
                "i-1: item 2 S imported",
            ),
            (
                "import.item",
                r#"{"import_id":"i-1","index":2,"sku":"S","status":"failed","error":"no price"}"#,
                "i-1: item 2 S failed: no price",
            ),
            (
                "import.finished",
                r#"{"import_id":"i-1","status":"aborted"}"#,
                "i-1: aborted",
            ),
            ("custom.thing", r#"{"a":"\ud800"}"#, r#"{"a":"\ud800"}"#),
            ("order.created", "7", "7"),
        ];
        for (event, data, text) in cases {
            let line = notification(&parsed(event, data, ""));
            assert_eq!(
                line,
                format!("2026-01-02T03:04:05Z  merchant-42 #7  {event}  {text}")
            );
        }
    }

    #[test]
    fn a_line_of_an_import_has_its_progress() {
        let progress = r#","progress":{"done":5,"failed":1,"total":20}"#;
        let line = notification(&parsed(
            "import.finished",
            r#"{"import_id":"i","status":"finished"}"#,
            progress,
        ));
        assert!(
            line.ends_with("i: finished  (5 of 20 done, 1 failed)"),
            "{line}"
        );
    }

    #[test]
    fn an_import_without_a_total_shows_its_progress() {
        let progress = r#","progress":{"done":5,"failed":1}"#;
        let line = notification(&parsed("custom.thing", "7", progress));
        assert!(line.ends_with("7  (5 done, 1 failed)"), "{line}");
    }

    #[test]
    fn long_data_is_shortened_between_characters() {
        let line = notification(&parsed(
            "custom.thing",
            &format!("{:?}", "é".repeat(1_000)),
            "",
        ));
        assert!(
            line.ends_with("é…") && line.chars().count() < DATA_CHARS_MAX + 60,
            "{line}"
        );
    }

    fn parsed(event: &str, data: &str, more: &str) -> Notification {
        let frame = format!(
            r#"{{"feed":"merchant-42","seq":7,"event":"{event}","time":"2026-01-02T03:04:05.123456Z","data":{data}{more}}}"#
        );
        serde_json::from_str(&frame).unwrap()
    }
}
