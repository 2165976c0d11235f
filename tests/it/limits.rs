//! `docs/limits.md` against the sources, and the limits of requests and frames over a socket: each
//! at its bound and beyond it.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use shopbell::config::markdown_table;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{PATIENCE, World, http};

const MERCHANT: &str = "merchant-42";
/// The bound of the head of a request.
const HEAD_BYTES_MAX: usize = 16 * 1_024;

/// Each row of the page with the constants or the setting of its bound, and with the test that takes
/// the bound and refuses more. A row without a constant has `-`.
const ROWS: [&str; 87] = [
    "body | SHOPBELL_MAX_EVENT_BYTES | a_body_may_have_the_greatest_size",
    "headers | model/event/parse.rs HEADERS_BYTES_MAX | headers_are_bounded_too",
    "`id` | model/event/cloud_event.rs ID_BYTES_MAX | texts_are_bounded_not_empty_and_without_control_characters",
    "`source` | model/event/cloud_event.rs SOURCE_BYTES_MAX | texts_are_bounded_not_empty_and_without_control_characters",
    "`type` | model/event/cloud_event.rs TYPE_BYTES_MAX | texts_are_bounded_not_empty_and_without_control_characters",
    "`collapsekey` | model/event/cloud_event.rs COLLAPSE_KEY_BYTES_MAX | texts_are_bounded_not_empty_and_without_control_characters",
    "`recipient` | model/feed.rs FEED_BYTES_MAX | a_feed_is_1_to_128_of_the_allowed_characters",
    "`time`, `expirytime`, `placed_at` | - | other_forms_are_rejected",
    "`time`, `expirytime` as a number | model/event/timestamp.rs MILLISECONDS_MIN | seconds_and_out_of_range_numbers_are_rejected",
    "`traceparent` | model/event/cloud_event.rs TRACEPARENT_BYTES_MAX | an_unusable_traceparent_is_ignored",
    "nesting of the JSON | model/event/json.rs LEVELS_MAX | nesting_is_accepted_up_to_the_bound",
    "`total` of an order | model/event/schema.rs DECIMAL_BYTES_MAX | a_field_of_an_order_accepts_only_values_of_its_rule",
    "`items`, `index`, `total` of an import | - | a_field_of_an_order_accepts_only_values_of_its_rule",
    "`import_id` | model/event/import.rs IMPORT_ID_BYTES_MAX | a_field_of_an_import_accepts_only_values_of_its_rule",
    "body of a dead letter | store/dead_letters.rs BODY_BYTES_MAX | a_body_is_cut_to_its_bound",
    "body of `POST /v1/events` | gateway/events/request.rs BODY_BYTES_MAX | requests_have_bounds",
    "time to send the body | gateway/events.rs BODY_TIMEOUT | a_body_has_thirty_seconds",
    "bodies of all requests that are published | gateway/events.rs BODIES_BYTES_MAX | requests_have_bounds",
    "requests that wait for RabbitMQ | gateway/events/publishing.rs WAITING_MAX | more_requests_than_may_wait_are_not_published",
    "time to confirm the events of a request | gateway/events/publishing.rs CONFIRM_TIMEOUT | an_event_is_accepted_only_after_the_confirm_of_rabbitmq",
    "events of a batch | gateway/events/request.rs BATCH_MAX | a_batch_is_an_array_of_at_most_500_events",
    "entries of the claim `publish` | gateway/auth/recipients.rs ENTRIES_MAX | a_claim_that_can_match_nothing_is_refused",
    "`data` of `shopbell_publish` | - | a_value_that_no_shopbell_accepts_aborts_its_transaction",
    "`extensions` of `shopbell_publish` | - | a_value_that_no_shopbell_accepts_aborts_its_transaction",
    "a row of the [outbox](outbox.md), inserted without `shopbell_publish` | outbox/row.rs EVENT_BYTES_MAX | a_row_that_can_never_be_published_is_set_aside",
    "request line and headers | http/listener.rs HEAD_BYTES_MAX | each_limit_of_a_request_is_exact",
    "number of headers | - | each_limit_of_a_request_is_exact",
    "time to send them | http/connections.rs HEAD_TIMEOUT | a_deadline_follows_what_the_connection_does",
    "pause between two requests | http/connections.rs IDLE_TIMEOUT | a_deadline_follows_what_the_connection_does",
    "time without reading any of a response | http/connections.rs WRITE_TIMEOUT | a_response_that_is_not_read_releases_its_connection",
    "connections without a session | commands/serve.rs CONNECTIONS_MAX | half_sent_requests_do_not_block_other_clients",
    "connections of the operations port | commands/serve.rs OPERATIONS_CONNECTIONS_MAX | the_operations_port_keeps_64_connections",
    "sessions that wait for Postgres to open | gateway/cursors/opening.rs SESSIONS_WAITING_MAX | more_sessions_than_may_wait_are_refused_as_not_ready",
    "refused pages that get a close at the same time | gateway/websocket/places.rs REFUSALS_MAX, REFUSALS_OF_ADDRESSES_MAX | addresses_beyond_a_rate_leave_places_for_other_pages",
    "`device` | model/feed.rs DEVICE_CHARS_MAX | a_device_has_up_to_64_printable_characters",
    "`after`, `state` | gateway/handshake.rs KEPT_NUMBERS_MAX | a_kept_number_is_named_for_each_feed_at_most",
    "epoch in `after` and `state` | model/feed.rs EPOCH_BYTES_MAX | an_epoch_can_follow_a_number",
    "`limit` of the history | gateway/history.rs LIMIT_MAX | each_limit_of_a_request_is_exact",
    "`before` of the history | - | each_limit_of_a_request_is_exact",
    "devices in the presence of a feed | store/presence.rs DEVICES_MAX | a_feed_with_many_devices_lists_the_online_ones_first",
    "time to read `online` of a verdict | - | presence_that_cannot_be_written_delays_nothing",
    "proxies in a row | http/client_address.rs PROXIES_MAX | a_chain_of_trusted_addresses_is_read_to_its_bound",
    "token | gateway/auth/token.rs TOKEN_BYTES_MAX | a_token_may_have_the_greatest_size",
    "feeds of a token | gateway/auth.rs FEEDS_MAX | a_token_may_name_64_feeds",
    "`sub` | model/feed.rs SUBSCRIBER_BYTES_MAX | a_subscriber_has_no_control_characters",
    "`exp` in the past | gateway/auth/claims.rs LEEWAY | a_token_expires_after_the_leeway",
    "`nbf` ahead of the clock | gateway/auth/claims.rs LEEWAY | a_token_that_is_not_valid_yet_has_the_time_to_wait",
    "`nbf` ahead of the clock, up to `iat` | gateway/auth/claims.rs SKEW_MAX | an_issuers_clock_is_taken_from_its_iat",
    "message | SHOPBELL_MAX_FRAME_BYTES | each_limit_of_a_frame_is_exact",
    "control frame | gateway/session/framing.rs CONTROL_BYTES_MAX | messages_and_control_frames_may_have_the_greatest_size",
    "frames a second | gateway/session/state/allowance.rs FRAMES_PER_SECOND | time_and_notifications_fill_the_allowance_up_to_its_bound",
    "frames for each notification | gateway/session/state/allowance.rs FRAMES_PER_NOTIFICATION | time_and_notifications_fill_the_allowance_up_to_its_bound",
    "`auth` | gateway/session/state/allowance.rs FRAMES_PER_AUTH | an_auth_frame_counts_as_many_and_a_session_may_send_one_a_second",
    "saved frames | gateway/session/state/allowance.rs FRAMES_SAVED_MAX | time_and_notifications_fill_the_allowance_up_to_its_bound",
    "`seqs` of a `read` or `handle` | gateway/session/state/frames.rs SEQS_PER_FRAME_MAX | each_limit_of_a_frame_is_exact",
    "waiting marks of a session | gateway/session/state/frames.rs MARKS_WAITING_MAX | marks_are_accepted_within_bounds",
    "waiting marks of a subscriber | gateway/marks/queues.rs WAITING_PER_SUBSCRIBER_MAX | too_many_submissions_of_one_subscriber_are_refused",
    "waiting marks of a replica | gateway/marks/queues.rs WAITING_MAX | too_many_submissions_of_one_subscriber_are_refused",
    "notifications without an ack | SHOPBELL_WINDOW | a_client_that_never_acknowledges_gets_one_window_and_no_more",
    "memory for pages of replays, of all sessions of a replica | SHOPBELL_MAX_PAGE_BYTES | slow_clients_that_replay_at_once_share_a_budget_of_memory",
    "heartbeats without a frame of the client | gateway/session/state.rs SILENT_HEARTBEATS_MAX | timers_send_heartbeats_and_end_the_session",
    "time without reading queued frames | gateway/session/task/outputs.rs WRITE_TIMEOUT, WRITE_BYTES_PER_SECOND_MIN | queued_frames_have_ten_seconds_and_more_if_they_are_large",
    "devices of a subscriber in a feed | store/cursors.rs DEVICES_PER_SUBSCRIBER_MAX | the_device_that_was_not_seen_for_longest_is_evicted",
    "`wait` of a poll | gateway/streams.rs WAIT_SECONDS_MAX | wrong_requests_are_refused",
    "frames of `POST /v1/frames` | gateway/streams/frames.rs FRAMES_MAX | wrong_requests_are_refused",
    "body of `POST /v1/frames` | gateway/streams/frames.rs BODY_BYTES_MAX | wrong_requests_are_refused",
    "time to send the frames | gateway/streams/frames.rs BODY_TIMEOUT | the_body_of_a_post_has_ten_seconds",
    "time to store the frames | gateway/session/task/request.rs REPLY_TIMEOUT | an_ack_is_confirmed_only_when_it_is_stored",
    "a number of `shopbell config` | - | each_number_has_the_range_of_the_table",
    "HS256 secret | config/key_files.rs SECRET_BYTES_MIN | a_secret_has_at_least_32_bytes",
    "keys in `SHOPBELL_JWT_PUBLIC_KEY` | config/public_key.rs KEYS_MAX | other_and_weak_keys_are_refused_with_their_reason",
    "keys of a key set | gateway/auth/jwks.rs KEYS_MAX | the_number_of_keys_is_bounded",
    "`kid` of a key in a key set | gateway/auth/jwks.rs KID_BYTES_MAX | a_key_for_another_purpose_is_left_out",
    "answer with a key set | gateway/auth/jwks/fetch.rs BYTES_MAX | the_last_key_set_is_used_while_its_url_fails",
    "time to fetch a key set | gateway/auth/jwks/fetch.rs TIMEOUT | the_last_key_set_is_used_while_its_url_fails",
    "fetches of a key set because of an unknown `kid` | gateway/auth/jwks/cache.rs UNKNOWN_INTERVAL | an_unknown_key_asks_for_the_next_fetch_and_not_too_often",
    "file of a secret | config/secrets.rs FILE_BYTES_MAX | a_file_of_a_secret_has_up_to_64_kib",
    "`SHOPBELL_AMQP_PREFIX` | - | a_prefix_has_up_to_100_characters",
    "`SHOPBELL_ALLOWED_ORIGINS` | config/settings.rs ORIGINS_MAX | allowed_origins_are_kept_as_browsers_write_them",
    "`SHOPBELL_TRUSTED_PROXIES` | config/settings.rs NETWORKS_MAX | networks_are_bounded_and_never_all_addresses",
    "other text | config/settings.rs TEXT_BYTES_MAX | a_text_has_no_control_characters",
    "body that `publish` and `dead-letters replay` read | commands.rs BODY_BYTES_MAX | a_body_has_up_to_16_mib",
    "`publish --rate` | - | an_argument_has_the_range_of_its_option",
    "`publish --expires-in-seconds` | commands/publish.rs EXPIRY_SECONDS_MAX | an_argument_has_the_range_of_its_option",
    "`publish --import` | commands/publish/sample.rs ITEMS_MAX | an_argument_has_the_range_of_its_option",
    "`token --ttl-seconds` | commands/token.rs TTL_SECONDS_MAX | an_argument_has_the_range_of_its_option",
    "`--count`, `--limit`, `--seq` | - | an_argument_has_the_range_of_its_option",
];

/// The settings of the limits of clients, each with its test.
const CLIENT_ROWS: [(&str, &str); 6] = [
    (
        "SHOPBELL_MAX_SESSIONS",
        "more_sessions_than_the_cap_are_refused_with_429",
    ),
    (
        "SHOPBELL_MAX_SESSIONS_PER_SUBSCRIBER",
        "the_replica_and_each_subscriber_have_a_bound_of_sessions",
    ),
    (
        "SHOPBELL_MAX_SESSIONS_PER_ADDRESS",
        "an_address_has_a_bound_of_sessions_and_internal_ones_have_none",
    ),
    (
        "SHOPBELL_MAX_REQUESTS_PER_ADDRESS",
        "an_address_may_send_its_rate_and_ten_seconds_of_it_at_once",
    ),
    (
        "SHOPBELL_MAX_REQUESTS_PER_SUBSCRIBER",
        "a_subscriber_may_send_its_rate_from_any_address",
    ),
    (
        "SHOPBELL_MAX_FAILED_TOKENS_PER_ADDRESS",
        "failed_tokens_stop_the_address_and_good_ones_cost_nothing",
    ),
];

#[test]
fn each_row_of_the_page_has_its_bound_and_a_test() {
    let page = std::fs::read_to_string("docs/limits.md").expect("the page is UTF-8");
    let (_, tables) = page
        .split_once("## All limits")
        .expect("the page has tables");
    let rows: Vec<_> = tables
        .lines()
        .filter(|line| line.starts_with('|') && !line.starts_with("|---"))
        .filter(|line| !line.starts_with("| subject |"))
        .map(|line| {
            line.trim_matches('|')
                .split(" | ")
                .map(str::trim)
                .collect::<Vec<_>>()
        })
        .collect();
    let tests = all_tests();
    let mut expected: Vec<_> = ROWS
        .iter()
        .map(|line| line.split(" | ").collect::<Vec<_>>())
        .collect();
    let mut wrong = Vec::new();
    for row in &rows {
        let [what, limit, beyond] = row[..] else {
            wrong.push(format!("{row:?} has not three cells"));
            continue;
        };
        let Some(at) = expected.iter().position(|row| row[0] == what) else {
            wrong.push(format!("the row {what} has no test: add it to ROWS"));
            continue;
        };
        let known = expected.remove(at);
        for bound in bounds(known[1]) {
            if !names(limit, &bound) {
                wrong.push(format!(
                    "{what}: the limit is {bound}, and the page has {limit}"
                ));
            }
        }
        if !tests.contains(known[2]) {
            wrong.push(format!("{what}: there is no test {}", known[2]));
        }
        if beyond.is_empty() {
            wrong.push(format!(
                "{what}: the page does not state what happens beyond it"
            ));
        }
    }
    wrong.extend(
        expected
            .iter()
            .map(|row| format!("{} is not on the page", row[0])),
    );
    assert!(wrong.is_empty(), "docs/limits.md:\n{}", wrong.join("\n"));
}

#[test]
fn each_limit_of_a_client_has_its_default_and_a_test() {
    let page = std::fs::read_to_string("docs/limits.md").expect("the page is UTF-8");
    let (clients, _) = page
        .split_once("## Proxies")
        .expect("the page has sections");
    let rows = clients.lines().filter(|line| line.contains("| `SHOPBELL_"));
    let tests = all_tests();
    let mut expected: Vec<_> = CLIENT_ROWS.to_vec();
    for row in rows {
        let at = expected
            .iter()
            .position(|(setting, _)| row.contains(&format!("| `{setting}` |")));
        let (setting, test) = expected.remove(at.unwrap_or_else(|| panic!("no test of {row}")));
        let default = default(setting);
        let (number, _) = default.split_once(' ').expect("a number and a unit");
        assert!(
            names(row, number),
            "the default of {setting} is {number}: {row}"
        );
        assert!(tests.contains(test), "{setting}: there is no test {test}");
    }
    assert!(expected.is_empty(), "not on the page: {expected:?}");
}

/// Whether a text has this number, and not as a part of another.
fn names(text: &str, number: &str) -> bool {
    let is_digit = |c: char| c.is_ascii_digit() || c == ',' || c == '.';
    text.match_indices(number).any(|(at, _)| {
        let rest = &text[at + number.len()..];
        !text[..at].ends_with(is_digit) && !rest.trim_start_matches(',').starts_with(is_digit)
    })
}

/// The bounds of a row, in the words of the page.
fn bounds(place: &str) -> Vec<String> {
    if place == "-" {
        return Vec::new();
    }
    let Some((file, constants)) = place.split_once(' ') else {
        return vec![format!("`{place}`: {}", default(place))];
    };
    let source = std::fs::read_to_string(format!("src/{file}")).expect("the file exists");
    let bounds = constants.split(", ");
    bounds.map(|name| bound(file, &source, name)).collect()
}

fn bound(file: &str, source: &str, name: &str) -> String {
    let constant = source
        .lines()
        .skip_while(|line| !line.contains(&format!("const {name}: ")))
        .take(2)
        .collect::<String>();
    let (_, value) = constant
        .split_once(" = ")
        .unwrap_or_else(|| panic!("src/{file} has no constant {name}"));
    let value = value.split(';').next().unwrap_or_default().trim();
    let seconds = value
        .strip_prefix("Duration::from_secs(")
        .map(|value| value.trim_end_matches(')'));
    let factors = seconds.unwrap_or(value).split('*').map(|factor| {
        let factor = factor.trim().replace('_', "");
        factor
            .parse::<u64>()
            .unwrap_or_else(|_| panic!("src/{file}: {name} = {value}"))
    });
    let number: u64 = factors.product();
    match number {
        _ if seconds.is_some() => format!("{number} s"),
        _ if name.contains("BYTES") && number.is_multiple_of(1 << 20) => {
            format!("{} MiB", number >> 20)
        }
        _ if name.contains("BYTES") && number > 1_024 && number.is_multiple_of(1 << 10) => {
            format!("{} KiB", number >> 10)
        }
        _ => with_commas(number),
    }
}

/// The default of a setting, with its unit.
fn default(variable: &str) -> String {
    let table = markdown_table();
    let row = table
        .lines()
        .find(|row| row.starts_with(&format!("| `{variable}` ")));
    let cell = row.and_then(|row| row.split(" | ").nth(2));
    let (number, unit) = cell
        .and_then(|cell| cell.trim_start_matches('`').split_once("` "))
        .unwrap_or_else(|| panic!("{variable} has no default"));
    let number = number.parse().expect("the default is a number");
    format!("{} {unit}", with_commas(number))
}

fn with_commas(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The names of all functions that are marked as tests.
fn all_tests() -> BTreeSet<String> {
    let mut tests = BTreeSet::new();
    let mut folders = vec![std::path::PathBuf::from("src"), "tests/it".into()];
    while let Some(folder) = folders.pop() {
        for entry in folder.read_dir().expect("the folder exists") {
            let path = entry.expect("an entry can be read").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("a source is UTF-8");
            let mut is_test = false;
            for line in text.lines().map(str::trim) {
                let name = line
                    .trim_start_matches("async ")
                    .strip_prefix("fn ")
                    .and_then(|rest| rest.split('(').next());
                match name {
                    Some(name) if is_test => _ = tests.insert(name.to_owned()),
                    _ => {}
                }
                is_test = line.starts_with("#[test]")
                    || line.starts_with("#[tokio::test")
                    || is_test && line.starts_with("#[");
            }
        }
    }
    tests
}

/// The status of a request that is written as it is.
async fn status_of(address: SocketAddr, request: &str) -> u16 {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        http::exchange(&mut stream, request).await
    };
    let reply = timeout(PATIENCE, exchange)
        .await
        .expect("a response in time");
    reply.expect("a response").status
}

#[tokio::test]
async fn each_limit_of_a_request_is_exact() {
    let world = World::new().await;
    let replica = world.serve().await;
    let address = replica.public();
    let token = world.token(MERCHANT).sign();
    let history = |query: &str, more: &str| {
        format!(
            "GET /v1/feeds/{MERCHANT}/notifications{query} HTTP/1.1\r\nHost: shop\r\n\
             Authorization: Bearer {token}\r\n{more}\r\n"
        )
    };
    let head = |bytes: usize| {
        let rest = bytes - history("", "X: \r\n").len();
        history("", &format!("X: {}\r\n", "x".repeat(rest)))
    };
    let line = |bytes: usize| {
        history(
            &format!("?{}", "x".repeat(bytes - history("?", "").len())),
            "",
        )
    };
    let headers = |count: usize| history("", &"X: x\r\n".repeat(count - 2));
    for (what, request, status) in [
        ("a head at the bound", head(HEAD_BYTES_MAX), 200),
        ("a head beyond it", head(HEAD_BYTES_MAX + 1), 431),
        ("a head far beyond it", head(10 * HEAD_BYTES_MAX), 431),
        ("a request line at the bound", line(HEAD_BYTES_MAX), 200),
        ("a request line beyond it", line(HEAD_BYTES_MAX + 1), 431),
        ("100 headers", headers(100), 200),
        ("101 headers", headers(101), 431),
        ("the smallest limit", history("?limit=1", ""), 200),
        ("no limit", history("?limit=0", ""), 400),
        ("the greatest limit", history("?limit=200", ""), 200),
        ("a limit beyond it", history("?limit=201", ""), 400),
        (
            "a limit beyond any",
            history("?limit=99999999999999999999", ""),
            400,
        ),
        ("the smallest place", history("?before=1", ""), 200),
        ("a place below it", history("?before=0", ""), 400),
        (
            "the greatest place",
            history("?before=9223372036854775807", ""),
            200,
        ),
        (
            "a place beyond it",
            history("?before=9223372036854775808", ""),
            400,
        ),
    ] {
        assert_eq!(status_of(address, &request).await, status, "{what}");
    }
    world.finish().await;
}

#[tokio::test]
async fn each_limit_of_a_frame_is_exact() {
    let world = World::new().await;
    let replica = world.serve().await;
    let connect = async || world.merchant(MERCHANT).connect(replica.public()).await;
    let ping = |bytes: usize| {
        let frame = |pad: &str| format!(r#"{{"type":"ping","pad":"{pad}"}}"#);
        frame(&"x".repeat(bytes - frame("").len()))
    };
    let mut merchant = connect().await;
    merchant.send_text(&ping(16_384)).await;
    merchant.ping().await;
    merchant.send_text(&ping(16_385)).await;
    assert_eq!(merchant.closed().await.code, 1009);

    let mut merchant = connect().await;
    let seqs: Vec<u64> = (1..=257).collect();
    merchant.handle(MERCHANT, &seqs[..256]).await;
    assert_eq!(merchant.next_error().await.code, "unknown_seq");
    merchant.handle(MERCHANT, &seqs).await;
    assert_eq!(merchant.next_error().await.code, "too_many_seqs");
    merchant.leave().await;
    world.finish().await;
}
