//! No secret, token or event body is in a log, an error, a metric or a trace.
//!
//! Each secret and each body contains a canary. The story causes many failures, and then
//! searches all output.

use std::fs::File;
use std::net::SocketAddr;

use lapin::types::AMQPValue;

use crate::support::{
    Collector, Event, PATIENCE, Parcel, Proxy, Replica, World, eventually, holds, http,
};

const MERCHANT: &str = "merchant-42";
/// In the text of every body, also of those that cannot be parsed.
const BODY: &str = "canary-of-a-body";
/// In every bad secret. It has 32 bytes, so that a key of it is long enough.
const SECRET: &str = "canary-of-a-secret-0123456789abcd";
const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// All output, with the place of each part.
struct Output(Vec<(String, String)>);

impl Output {
    fn add(&mut self, place: impl ToString, text: impl ToString) {
        self.0.push((place.to_string(), text.to_string()));
    }

    /// Fails if a part contains one of these.
    fn holds_none_of(&self, canaries: &[String]) {
        for (place, text) in &self.0 {
            for canary in canaries {
                let lines = text.lines().filter(|line| line.contains(canary.as_str()));
                assert_eq!(lines.collect::<Vec<_>>(), Vec::<&str>::new(), "{place}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_and_no_body_is_in_any_output() {
    for filter in ["info", "info,shopbell=trace"] {
        let (world, collector) = (World::new().await, Collector::start().await);
        let mut output = Output(Vec::new());
        let database = Proxy::before_service(world.database_url()).await;
        let broker = Proxy::before_service(world.amqp_url()).await;
        let replica = world
            .replica()
            .with("RUST_LOG", filter)
            .with("DATABASE_URL", database.url(world.database_url()))
            .with("AMQP_URL", broker.url(world.amqp_url()))
            .with("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint())
            .with("OTEL_BSP_SCHEDULE_DELAY", 100)
            .start()
            .await;
        let log = world.file("redaction.log", b"");
        replica.copy_log_to(File::create(&log).expect("a file can be made"));

        publish_good_and_bad(&world).await;
        world.expect_stored(MERCHANT, 2).await;
        let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
        merchant.take_seqs(1..=2).await;
        let tokens = try_tokens(&world, replica.public(), &mut output).await;
        world.expect_cursor(MERCHANT, "", 2).await;
        send_bad_frames(&world, replica.public(), &tokens[0], &mut output).await;

        // Both services are away for a while.
        for proxy in [&database, &broker] {
            cut(proxy, &replica, &mut output).await;
        }
        if filter.contains("trace") {
            run_commands(&world, &mut output).await;
        }
        eventually("a trace arrives", PATIENCE, async || {
            holds(!collector.spans().is_empty(), "no span")
        })
        .await;
        output.add("traces", format!("{:?}", collector.spans()));
        output.add("/metrics", replica.get("/metrics").await.text());
        assert!(replica.terminate().await.success());
        output.add("log", std::fs::read_to_string(&log).expect("the log"));

        let mut canaries = vec![
            BODY.to_owned(),
            SECRET.to_owned(),
            world.secret().to_owned(),
        ];
        canaries.extend([world.database_url(), world.amqp_url()].map(password));
        // The signature of a token is enough to recognise it.
        canaries.extend(
            tokens
                .iter()
                .map(|token| token.rsplit('.').next().unwrap_or_default().to_owned()),
        );
        output.holds_none_of(&canaries);
        // A search that finds nothing would also pass on empty output.
        let log = &output.0.last().expect("the log").1;
        assert!(
            log.contains("dead_letter") || log.contains("dead letter"),
            "{log}"
        );
        world.finish().await;
    }
}

/// Two good orders, and bad events of several kinds.
async fn publish_good_and_bad(world: &World) {
    let publisher = world.publisher().await;
    let order =
        format!(r#"{{"order_id":"1","total":"19.90","currency":"EUR","items":2,"note":"{BODY}"}}"#);
    let mut traced = Parcel::from(Event::new("order.created", MERCHANT, &order));
    let header = AMQPValue::LongString(TRACE.into());
    traced.headers.insert("traceparent".into(), header);
    let good = Parcel::from(Event::new("note.made", MERCHANT, &format!("\"{BODY}\"")));
    let missing = Event::new("order.created", MERCHANT, &format!(r#"{{"{BODY}":1}}"#));
    let wrong = Event::new(
        "order.created",
        MERCHANT,
        &format!(r#"{{"order_id":["{BODY}"]}}"#),
    );
    publisher
        .publish_all([
            traced,
            good,
            Parcel::from(missing),
            Parcel::from(wrong),
            Parcel::structured("order.created", format!("{{{BODY}")),
            Parcel::structured("order.created", format!("\"{BODY}\"")),
            Parcel::structured("order.created", format!("{BODY}\u{0}")),
        ])
        .await;
}

/// Presents bad tokens in each place. Returns them.
async fn try_tokens(world: &World, address: SocketAddr, output: &mut Output) -> Vec<String> {
    let tokens = vec![
        world.token(MERCHANT).sign_with_a_foreign_secret(),
        world.token(MERCHANT).expires_in_seconds(-3_600).sign(),
        format!("{SECRET}.{SECRET}.{SECRET}"),
        SECRET.to_owned(),
    ];
    for token in &tokens {
        let merchant = world.merchant(MERCHANT).token(token.clone());
        let refused = merchant.refused(address).await;
        output.add("a refused handshake", refused.text());
        let page = merchant
            .by_subprotocol()
            .origin(&format!("http://{address}"));
        output.add(
            "a close",
            format!("{:?}", page.closed_at_once(address).await),
        );
        let bearer = format!("Bearer {token}");
        let path = format!("/v1/feeds/{MERCHANT}/notifications");
        let history = http::get_with(address, &path, &[("authorization", &bearer)]).await;
        output.add("history", history.expect("a reply").text());
        let path = format!("/v1/ws?token={token}&access_token={token}");
        let query = http::get(address, &path).await;
        output.add("a query", query.expect("a reply").text());
    }
    tokens
}

/// Sends a token and an ack that the session refuses.
async fn send_bad_frames(world: &World, address: SocketAddr, token: &str, output: &mut Output) {
    let mut session = world.merchant(MERCHANT).connect(address).await;
    for frame in [
        format!(r#"{{"type":"auth","token":"{}"}}"#, token),
        format!(r#"{{"type":"ack","feed":["{SECRET}"]}}"#),
    ] {
        session.send_text(&frame).await;
    }
    let closed = loop {
        match session.next_frame().await {
            Ok(frame) => output.add("a frame", format!("{frame:?}")),
            Err(closed) => break closed,
        }
    };
    output.add("a close", format!("{closed:?}"));
}

/// Cuts a service off until its failure is logged.
async fn cut(proxy: &Proxy, replica: &Replica, output: &mut Output) {
    proxy.cut();
    let least = replica.log().len();
    eventually("the failure is logged", PATIENCE, async || {
        let ready = replica.get("/readyz").await.text();
        holds(
            replica.log().len() > least && !ready.contains(r#""status":"ready""#),
            ready,
        )
    })
    .await;
    output.add("/readyz", replica.get("/readyz").await.text());
    proxy.mend();
    replica.ready().await;
}

/// Runs each command, with good, bad and unusable settings.
async fn run_commands(world: &World, output: &mut Output) {
    let with_bad_password = |url: &str| url.replace(&password(url), SECRET);
    let database = with_bad_password(world.database_url());
    let amqp = with_bad_password(world.amqp_url());
    let no_database = format!("postgres://shopbell:{SECRET}@127.0.0.1:1/x?sslmode={SECRET}");
    let bad = [
        ("DATABASE_URL", &*database),
        ("AMQP_URL", &*amqp),
        ("RUST_LOG", "info,shopbell=trace"),
    ];
    let unusable = [
        ("DATABASE_URL", &*no_database),
        ("AMQP_URL", &*format!("amqp:/{SECRET}#")),
        ("SHOPBELL_JWT_HS256_SECRET", &SECRET[..20]),
        ("SHOPBELL_JWT_PUBLIC_KEY", SECRET),
        ("OTEL_EXPORTER_OTLP_HEADERS", SECRET),
    ];
    let good = [("RUST_LOG", "info,shopbell=trace")];
    for (name, settings) in [("good", &good[..]), ("bad", &bad), ("unusable", &unusable)] {
        for arguments in [
            &["config"][..],
            &["config", "--output", "json"],
            &["doctor"],
            &["verify"],
            &["inspect", MERCHANT],
            &["dead-letters", "list"],
            &["dead-letters", "list", "--output", "json"],
            &["migrate"],
            &["declare"],
            &["epoch"],
            &[
                "publish",
                "--recipient",
                MERCHANT,
                "--data",
                &format!("{{\"{BODY}\":"),
            ],
            &["serve"],
        ] {
            // With usable settings it would not end.
            if name != "unusable" && arguments == ["serve"] {
                continue;
            }
            let done = world.shopbell_with(settings, arguments).await;
            output.add(format!("{name} {arguments:?}"), done.stdout + &done.stderr);
        }
    }
}

fn password(url: &str) -> String {
    let (_, rest) = url.split_once("://").expect("a URL");
    let (user, _) = rest.split_once('@').expect("a user");
    user.split_once(':').expect("a password").1.to_owned()
}
