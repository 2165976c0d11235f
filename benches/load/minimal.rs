//! The minimal pipeline: the cost of the same durability without Shopbell.
//!
//! One process consumes a quorum queue, stores each batch with one plain statement, acknowledges it,
//! and writes the events to the sockets. It numbers each feed and stores an event once. It has no
//! tokens, no replay, no acks of clients and no second replica.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, ensure};
use futures_util::stream::SplitSink;
use futures_util::{SinkExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties, ExchangeKind};
use serde::Deserialize;
use serde_json::value::RawValue;
use sqlx::Connection as _;
use sqlx::postgres::PgConnection;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

use crate::crowd::Crowd;
use crate::event;
use crate::floors::EndedWhenDropped;
use crate::ledger::Ledger;
use crate::measure::Processes;
use crate::publisher::{Publisher, Target};
use crate::report::{Figures, Who};
use crate::scenarios::{MERCHANTS, names, open_loop};
use crate::services::Services;
use crate::wire::Server;

/// The argument that makes this program the pipeline.
pub const PIPELINE: &str = "--minimal-pipeline";
const QUEUE: &str = "minimal";
const EXCHANGE: &str = "minimal.events";
const DATABASE: &str = "minimal";
const WHO: Who = Who::Minimal;
/// Unacknowledged deliveries, as Shopbell has them.
const PREFETCH: u16 = 256;
/// Most events of a batch, so that RabbitMQ delivers the next one meanwhile.
const BATCH_MAX: usize = PREFETCH as usize / 2;
const TABLES: &str = "
    create table feeds (feed text collate \"C\" primary key, last_seq bigint not null);
    create table notifications (
        feed text collate \"C\", seq bigint, source text collate \"C\", event_id text collate \"C\", event_type text,
        time timestamptz, data text, primary key (feed, seq), unique (source, event_id, feed))";
const APPEND: &str = "
    with counted as (
        insert into feeds as f (feed, last_seq)
        select * from unnest($1::text[], $2::bigint[]) as g (feed, added) order by g.feed collate \"C\"
        on conflict (feed) do update set last_seq = f.last_seq + excluded.last_seq
        returning f.feed, f.last_seq
    ), stored as (
        insert into notifications
        select e.feed, c.last_seq - e.later, e.source, e.event_id, e.event_type, e.time::timestamptz, e.data
        from unnest($3::text[], $4::bigint[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[])
            as e (feed, later, source, event_id, event_type, time, data)
        join counted c on c.feed = e.feed)
    select feed, last_seq from counted";

type Sockets = Arc<Mutex<HashMap<String, SplitSink<WebSocketStream<TcpStream>, Message>>>>;

/// A running pipeline with everything of its own.
pub struct Minimal<'a> {
    services: &'a Services,
    server: Server,
    child: EndedWhenDropped,
}

impl<'a> Minimal<'a> {
    /// Starts it on an empty database and an empty queue.
    pub async fn start(services: &'a Services) -> anyhow::Result<Self> {
        services
            .declare_quorum_queue(QUEUE, EXCHANGE, ExchangeKind::Topic)
            .await?;
        services.create_database(DATABASE).await?;
        let database_url = services.database_url(DATABASE);
        let mut connection = PgConnection::connect(&database_url).await?;
        sqlx::raw_sql(TABLES).execute(&mut connection).await?;
        connection.close().await?;
        let child = Command::new(std::env::current_exe()?)
            .args([PIPELINE, &database_url, &services.amqp_url])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut child = EndedWhenDropped(child);
        let mut line = String::new();
        BufReader::new(child.0.stdout.take().context("no stdout")?).read_line(&mut line)?;
        let port = line
            .trim()
            .parse()
            .context("the pipeline printed no port")?;
        let server = Server::Minimal { port };
        Ok(Self {
            services,
            server,
            child,
        })
    }

    /// T: as fast as RabbitMQ confirms, to connected merchants.
    pub async fn throughput(&self, events: usize) -> anyhow::Result<Figures> {
        let ledger = Arc::new(Ledger::new(events, events));
        let crowd = Crowd::connect(&self.server, names(MERCHANTS)).await?;
        let _reading = crowd.read(&ledger);
        let publisher = self.publisher().await?;
        let cpu = self.processes().cpu()?;
        publisher.publish_all("t", &ledger, 0..events, to).await?;
        ledger.complete().await?;
        let cpu = self.processes().cpu()?.since(&cpu);
        publisher.close().await;
        let mut figures = Figures::default();
        let elapsed = ledger.elapsed().as_secs_f64();
        figures.set("T events/s", WHO, events as f64 / elapsed);
        for (process, seconds) in cpu.each() {
            figures.set_per_100k(format!("T {process} CPU-s"), WHO, seconds, events);
        }
        figures.set_per_100k("T all server CPU-s", WHO, cpu.sum(), events);
        Ok(figures)
    }

    /// L: an open loop, from publish to receipt.
    pub async fn latency(&self, per_second: usize) -> anyhow::Result<Figures> {
        let (publisher, processes) = (self.publisher().await?, self.processes());
        open_loop(WHO, &self.server, publisher, &processes, per_second).await
    }

    /// Ends it, and deletes everything of its own.
    pub async fn stop(self) -> anyhow::Result<()> {
        drop(self.child);
        self.services.delete_queues([QUEUE.to_owned()]).await?;
        self.services.drop_database(DATABASE).await
    }

    fn processes(&self) -> Processes {
        let pid = self.child.0.id();
        self.services.processes().with("pipeline", pid)
    }

    async fn publisher(&self) -> anyhow::Result<Publisher> {
        Publisher::connect(&self.services.amqp_url, Target::Events(EXCHANGE.into())).await
    }
}

fn to(index: usize) -> String {
    event::merchant(index % MERCHANTS)
}

/// The pipeline in a process of its own. It prints its port.
pub async fn pipeline(database_url: &str, amqp_url: &str) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    println!("{}", listener.local_addr()?.port());
    let sockets = Sockets::default();
    tokio::try_join!(
        accept(listener, sockets.clone()),
        deliver(database_url, amqp_url, sockets)
    )?;
    Ok(())
}

/// The path of a connection is the name of its merchant.
async fn accept(listener: TcpListener, sockets: Sockets) -> anyhow::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let sockets = sockets.clone();
        tokio::spawn(async move {
            let mut name = String::new();
            #[expect(clippy::result_large_err, reason = "the type of tungstenite")]
            let read_name = |request: &Request, response: Response| {
                name = request.uri().path().trim_start_matches('/').to_owned();
                Ok(response)
            };
            let socket = tokio_tungstenite::accept_hdr_async(stream, read_name).await?;
            let (mut sink, mut acks) = socket.split();
            sink.send(Message::text(r#"{"type":"welcome"}"#)).await?;
            sockets.lock().await.insert(name, sink);
            while acks.next().await.is_some_and(|ack| ack.is_ok()) {}
            anyhow::Ok(())
        });
    }
}

async fn deliver(database_url: &str, amqp_url: &str, sockets: Sockets) -> anyhow::Result<()> {
    let mut postgres = PgConnection::connect(database_url).await?;
    let rabbitmq = Connection::connect(amqp_url, ConnectionProperties::default()).await?;
    let channel = rabbitmq.create_channel().await?;
    let qos = BasicQosOptions { global: false };
    channel.basic_qos(PREFETCH, qos).await?;
    let options = BasicConsumeOptions::default();
    let consumer = channel.basic_consume(QUEUE.into(), "".into(), options, FieldTable::default());
    let mut batches = consumer.await?.ready_chunks(BATCH_MAX);
    while let Some(batch) = batches.next().await {
        let batch: Vec<Delivery> = batch.into_iter().collect::<Result<_, _>>()?;
        let events: Vec<Event<'_>> = batch
            .iter()
            .map(|delivery| serde_json::from_slice(&delivery.data))
            .collect::<Result<_, _>>()?;
        let seqs = append(&mut postgres, &events).await?;
        if let Some(last) = batch.last() {
            let all = BasicAckOptions { multiple: true };
            channel.basic_ack(last.delivery_tag, all).await?;
        }
        write(&sockets, &events, &seqs).await?;
    }
    Ok(())
}

#[derive(Deserialize)]
struct Event<'a> {
    id: &'a str,
    source: &'a str,
    r#type: &'a str,
    recipient: &'a str,
    time: &'a str,
    #[serde(borrow)]
    data: &'a RawValue,
}

/// Stores a batch, and returns the number of each event.
async fn append(postgres: &mut PgConnection, events: &[Event<'_>]) -> anyhow::Result<Vec<i64>> {
    let mut added = HashMap::<&str, i64>::new();
    let mut later: Vec<i64> = events
        .iter()
        .rev()
        .map(|event| {
            let count = added.entry(event.recipient).or_default();
            *count += 1;
            *count - 1
        })
        .collect();
    later.reverse();
    let (feeds, counts): (Vec<&str>, Vec<i64>) = added.into_iter().unzip();
    let column = |of: fn(&Event<'_>) -> String| -> Vec<String> { events.iter().map(of).collect() };
    let rows: Vec<(String, i64)> = sqlx::query_as(APPEND)
        .bind(feeds)
        .bind(counts)
        .bind(column(|event| event.recipient.into()))
        .bind(&later)
        .bind(column(|event| event.source.into()))
        .bind(column(|event| event.id.into()))
        .bind(column(|event| event.r#type.into()))
        .bind(column(|event| event.time.into()))
        .bind(column(|event| event.data.get().into()))
        .fetch_all(postgres)
        .await?;
    let last: HashMap<String, i64> = rows.into_iter().collect();
    let seq = |(event, later): (&Event<'_>, i64)| Some(last.get(event.recipient)? - later);
    let seqs: Vec<i64> = events.iter().zip(later).filter_map(seq).collect();
    ensure!(seqs.len() == events.len(), "a feed has no number");
    Ok(seqs)
}

/// Writes the events to the sockets. Events of one merchant are flushed together.
async fn write(sockets: &Sockets, events: &[Event<'_>], seqs: &[i64]) -> anyhow::Result<()> {
    let mut sockets = sockets.lock().await;
    let mut written = Vec::new();
    for (event, seq) in events.iter().zip(seqs) {
        let Some(socket) = sockets.get_mut(event.recipient) else {
            continue;
        };
        let frame = format!(
            r#"{{"type":"notification","feed":"{}","seq":{seq},"id":"{}","source":"{}","event":"{}","time":"{}","data":{}}}"#,
            event.recipient, event.id, event.source, event.r#type, event.time, event.data
        );
        socket.feed(Message::text(frame)).await?;
        written.push(event.recipient);
    }
    for merchant in written {
        if let Some(socket) = sockets.get_mut(merchant) {
            socket.flush().await?;
        }
    }
    Ok(())
}
