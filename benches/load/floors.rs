//! The cost of each part alone, with the same payload in the same run. Their sum is the best result
//! that Shopbell can reach.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use futures_util::{SinkExt, StreamExt};
use lapin::ExchangeKind;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Row};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use crate::crowd::Crowd;
use crate::event;
use crate::ledger::Ledger;
use crate::measure::{Cpu, Processes, own_cpu_seconds};
use crate::publisher::{Publisher, Target};
use crate::report::{Figures, Who};
use crate::scenarios::{MERCHANTS, is_warm, names, open_loop_events};
use crate::services::Services;
use crate::wire::Server;

/// The argument that makes this program the bare WebSocket server.
pub const BARE_SERVER: &str = "--bare-server";
/// Unacknowledged deliveries, as Shopbell has them.
const PREFETCH: u16 = 256;
/// Rows of one append.
const ROWS: usize = 500;
/// Rows of one read.
const PAGE_ROWS: i64 = 100;
const BUFFER_BYTES: usize = 4 * 1024;

/// RabbitMQ: publish, consume and acknowledge together, directly to a queue and through a topic
/// and a fan-out exchange like the contract's. Then consume and acknowledge alone.
pub async fn rabbitmq(services: &Services, events: usize) -> anyhow::Result<Figures> {
    const QUEUE: &str = "floor";
    const EXCHANGE: &str = "floor.events";
    const ENTRY: &str = "floor.entry";
    for (exchange, kind) in [
        (EXCHANGE, ExchangeKind::Topic),
        (ENTRY, ExchangeKind::Fanout),
    ] {
        services.declare_quorum_queue(QUEUE, exchange, kind).await?;
    }
    let ledger = Ledger::new(events, events);
    let to = |index: usize| event::merchant(index % MERCHANTS);
    let processes = services.processes();
    let used = |before: &Cpu| anyhow::Ok(processes.cpu()?.since(before).of("RabbitMQ"));
    let mut figures = Figures::default();
    for (how, target) in [
        ("RabbitMQ publish + consume", Target::Queue(QUEUE.into())),
        (
            "RabbitMQ publish + consume, topic exchange",
            Target::Events(EXCHANGE.into()),
        ),
        (
            "RabbitMQ publish + consume, fan-out exchange",
            Target::Events(ENTRY.into()),
        ),
    ] {
        let publisher = Publisher::connect(&services.amqp_url, target).await?;
        let (cpu, begun) = (processes.cpu()?, Instant::now());
        tokio::try_join!(
            publisher.publish_all("f", &ledger, 0..events, to),
            consume(services, QUEUE, events)
        )?;
        figures.set(
            format!("{how}, events/s"),
            Who::Floor,
            events as f64 / begun.elapsed().as_secs_f64(),
        );
        figures.set_per_100k(format!("{how}, CPU-s"), Who::Floor, used(&cpu)?, events);
        publisher.close().await;
    }

    let publisher = Publisher::connect(&services.amqp_url, Target::Queue(QUEUE.into())).await?;
    publisher.publish_all("g", &ledger, 0..events, to).await?;
    let (cpu, own, begun) = (processes.cpu()?, own_cpu_seconds()?, Instant::now());
    consume(services, QUEUE, events).await?;
    figures.set(
        "RabbitMQ consume, events/s",
        Who::Floor,
        events as f64 / begun.elapsed().as_secs_f64(),
    );
    figures.set_per_100k("RabbitMQ consume, CPU-s", Who::Floor, used(&cpu)?, events);
    figures.set_per_100k(
        "lapin consumer, CPU-s",
        Who::Floor,
        own_cpu_seconds()? - own,
        events,
    );

    publisher.close().await;
    services.delete_queues([QUEUE.to_owned()]).await?;
    Ok(figures)
}

/// RabbitMQ again: an open loop through a quorum queue, from publish to receipt.
pub async fn rabbitmq_latency(services: &Services, per_second: usize) -> anyhow::Result<Figures> {
    const QUEUE: &str = "floor-latency";
    const EXCHANGE: &str = "floor-latency.events";
    let topic = ExchangeKind::Topic;
    services
        .declare_quorum_queue(QUEUE, EXCHANGE, topic)
        .await?;
    let events = open_loop_events(per_second);
    let ledger = Arc::new(Ledger::new(events, events));
    let publisher = Publisher::connect(&services.amqp_url, Target::Events(EXCHANGE.into())).await?;
    let to = |index: usize| event::merchant(index % MERCHANTS);
    let (connection, channel) = services.channel().await?;
    channel
        .basic_qos(PREFETCH, BasicQosOptions { global: false })
        .await?;
    let consumer = channel.basic_consume(
        QUEUE.into(),
        "".into(),
        BasicConsumeOptions::default(),
        FieldTable::default(),
    );
    let mut deliveries = consumer.await?;
    let receiving = async {
        for index in 0..events {
            let delivery = deliveries
                .next()
                .await
                .context("RabbitMQ ended the consumer")??;
            ledger.receive(index);
            channel
                .basic_ack(delivery.delivery_tag, BasicAckOptions::default())
                .await?;
        }
        anyhow::Ok(())
    };
    tokio::try_join!(
        receiving,
        publisher.publish_at("q".into(), ledger.clone(), 0..events, per_second as f64, to)
    )?;
    ledger.complete().await?;
    connection.close(200, "goodbye".into()).await?;
    services.delete_queues([QUEUE.to_owned()]).await?;
    let mut figures = Figures::default();
    figures.set_latencies(
        &format!("RabbitMQ quorum queue at {per_second}/s"),
        Who::Floor,
        ledger.latencies_ms(|index| is_warm(index, per_second)),
    );
    Ok(figures)
}

async fn consume(services: &Services, queue: &str, events: usize) -> anyhow::Result<()> {
    let (connection, channel) = services.channel().await?;
    channel
        .basic_qos(PREFETCH, BasicQosOptions { global: false })
        .await?;
    let consumer = channel.basic_consume(
        queue.into(),
        "".into(),
        BasicConsumeOptions::default(),
        FieldTable::default(),
    );
    let mut batches = consumer.await?.ready_chunks(usize::from(PREFETCH) / 2);
    let mut consumed = 0;
    while consumed < events {
        let batch = batches
            .next()
            .await
            .context("RabbitMQ ended the consumer")?;
        consumed += batch.len();
        if let Some(last) = batch.into_iter().next_back() {
            channel
                .basic_ack(last?.delivery_tag, BasicAckOptions { multiple: true })
                .await?;
        }
    }
    connection.close(200, "goodbye".into()).await?;
    Ok(())
}

/// Postgres: appends of many rows to one table with its primary key, each committed to disk. Then
/// reads of pages.
pub async fn postgres(services: &Services, events: usize) -> anyhow::Result<Figures> {
    const DATABASE: &str = "floor";
    services.create_database(DATABASE).await?;
    let mut connection = PgConnection::connect(&services.database_url(DATABASE)).await?;
    let table = "create table floor (feed text, seq bigint, data text, primary key (feed, seq))";
    sqlx::query(table).execute(&mut connection).await?;
    let bodies: Vec<String> = (0..events)
        .map(|index| {
            String::from_utf8(event::order(
                "f",
                index,
                &event::merchant(index % MERCHANTS),
            ))
        })
        .collect::<Result<_, _>>()?;
    let processes = services.processes();
    let used = |before: &Cpu| anyhow::Ok(processes.cpu()?.since(before).of("Postgres"));

    let (cpu, begun) = (processes.cpu()?, Instant::now());
    for first in (0..events).step_by(ROWS) {
        let indices = first..events.min(first + ROWS);
        sqlx::query("insert into floor select * from unnest($1::text[], $2::bigint[], $3::text[])")
            .bind(
                indices
                    .clone()
                    .map(|index| event::merchant(index % MERCHANTS))
                    .collect::<Vec<_>>(),
            )
            .bind(
                indices
                    .clone()
                    .map(|index| (index / MERCHANTS + 1) as i64)
                    .collect::<Vec<_>>(),
            )
            .bind(&bodies[indices])
            .execute(&mut connection)
            .await?;
    }
    let mut figures = Figures::default();
    figures.set(
        "Postgres append, events/s",
        Who::Floor,
        events as f64 / begun.elapsed().as_secs_f64(),
    );
    figures.set_per_100k("Postgres append, CPU-s", Who::Floor, used(&cpu)?, events);

    let (cpu, begun, mut fetched) = (processes.cpu()?, Instant::now(), 0);
    for merchant in 0..MERCHANTS {
        let page = "select seq, data from floor where feed = $1 and seq > 0 order by seq limit $2";
        let page = sqlx::query(page)
            .bind(event::merchant(merchant))
            .bind(PAGE_ROWS);
        let rows = page.fetch_all(&mut connection).await?;
        fetched += rows
            .iter()
            .filter(|row| row.try_get::<&str, _>("data").is_ok())
            .count();
    }
    figures.set(
        "Postgres fetch, events/s",
        Who::Floor,
        fetched as f64 / begun.elapsed().as_secs_f64(),
    );
    figures.set_per_100k("Postgres fetch, CPU-s", Who::Floor, used(&cpu)?, fetched);
    connection.close().await?;
    services.drop_database(DATABASE).await?;
    Ok(figures)
}

/// WebSocket with the same library: prepared frames are sent to connections and answered, one at a
/// time on each connection, and all at once.
pub async fn websocket(events: usize) -> anyhow::Result<Figures> {
    let mut figures = Figures::default();
    for (how, outstanding) in [("one at a time", 1), ("in bursts", 100)] {
        let bare = Command::new(std::env::current_exe()?)
            .args([
                BARE_SERVER,
                &outstanding.to_string(),
                &(events / MERCHANTS).to_string(),
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut child = EndedWhenDropped(bare);
        let mut line = String::new();
        BufReader::new(child.0.stdout.take().context("no stdout")?).read_line(&mut line)?;
        let server = Server::Bare {
            port: line
                .trim()
                .parse()
                .context("the bare server printed no port")?,
        };
        let ledger = Arc::new(Ledger::new(events, events));
        let crowd = Crowd::connect(&server, names(MERCHANTS)).await?;
        let processes = Processes::default().with("bare", child.0.id());

        let (cpu, begun) = (processes.cpu()?, Instant::now());
        let reading = crowd.read(&ledger);
        child
            .0
            .stdin
            .take()
            .context("no stdin")?
            .write_all(b"go\n")?;
        ledger.complete().await?;
        let what = |figure: &str| format!("WebSocket push {how}, {figure}");
        figures.set(
            what("events/s"),
            Who::Floor,
            events as f64 / ledger.elapsed_since(begun).as_secs_f64(),
        );
        figures.set_per_100k(
            what("CPU-s"),
            Who::Floor,
            processes.cpu()?.since(&cpu).of("bare"),
            events,
        );
        drop(reading);
    }
    Ok(figures)
}

/// A child process that ends with its owner.
pub struct EndedWhenDropped(pub Child);

impl Drop for EndedWhenDropped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The part of [`websocket`] in a process of its own.
pub async fn bare_server(outstanding: usize, frames: usize) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    println!("{}", listener.local_addr()?.port());
    let (go, going) = watch::channel(false);
    tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        let _ = std::io::stdin().read_line(&mut line);
        go.send_replace(true);
        // Held until this process is killed.
        std::thread::park();
    });
    let mut connections = 0;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER_BYTES)
            .write_buffer_size(BUFFER_BYTES);
        let (first, mut going) = (connections * frames, going.clone());
        connections += 1;
        tokio::spawn(async move {
            let frames: Vec<Utf8Bytes> = (first..first + frames).zip(1..).map(frame).collect();
            let mut socket =
                tokio_tungstenite::accept_async_with_config(stream, Some(config)).await?;
            going.wait_for(|going| *going).await?;
            for burst in frames.chunks(outstanding) {
                for frame in burst {
                    socket.feed(Message::Text(frame.clone())).await?;
                }
                socket.flush().await?;
                for _ in burst {
                    let answer = socket.next().await.context("the client left")??;
                    ensure!(answer.is_text(), "the client does not answer");
                }
            }
            // The client reads until it is stopped.
            socket.next().await;
            anyhow::Ok(())
        });
    }
}

/// Approximately as Shopbell renders it.
fn frame((index, seq): (usize, i64)) -> Utf8Bytes {
    let event = event::order("f", index, "bare");
    // The event from its data on. The bracket at its end belongs to the frame.
    let data = String::from_utf8_lossy(&event)
        .split_once(r#""data":"#)
        .map(|(_, data)| data.to_owned());
    let head = r#""type":"notification","feed":"bare""#;
    let attributes =
        r#""source":"/checkout","event":"order.created","time":"2026-11-21T10:00:00Z""#;
    format!(
        r#"{{{head},"seq":{seq},"id":"f-{index}",{attributes},"data":{}"#,
        data.unwrap_or_default()
    )
    .into()
}
