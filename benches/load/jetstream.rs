//! NATS JetStream: a nats-server of its own with default settings, and the connection of a
//! publisher to it.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::floors::EndedWhenDropped;
use crate::nats::{self, Arrival};
use crate::services::{Services, free_port};
use crate::wire::Server;

/// Debian's place for it is not in the PATH of every user.
const PROGRAMS: [&str; 2] = ["nats-server", "/usr/sbin/nats-server"];
/// Bound of a start.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Most requests in one write.
const WRITE_MAX: usize = 256;
const READ_BYTES: usize = 64 * 1024;
/// The error of requests that were not written.
pub const ENDED: &str = "the connection to nats-server ended";
const INBOX: &str = "_INBOX.publisher";

/// A running nats-server. It ends, and its files are deleted, if this is dropped.
pub struct JetStream {
    pub server: Server,
    child: EndedWhenDropped,
    directory: PathBuf,
    address: SocketAddr,
}

impl JetStream {
    /// Starts one on an empty directory. `None` if it is not installed, or if the services run in
    /// another Debian.
    pub async fn start(services: &Services) -> anyhow::Result<Option<Self>> {
        let (Some(program), Some(directory)) = (program()?, services.directory_beside("nats"))
        else {
            return Ok(None);
        };
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory)?;
        let (port, websocket_port) = (free_port()?, free_port()?);
        let settings = directory.join("nats.conf");
        // Clients need not answer a PING, as those of the other peers, which have no heartbeat.
        let text = format!(
            "listen: \"127.0.0.1:{port}\"\nping_interval: \"1h\"\n\
             websocket {{ listen: \"127.0.0.1:{websocket_port}\", no_tls: true }}\n\
             jetstream {{ store_dir: {:?} }}\n",
            directory.join("data")
        );
        fs::write(&settings, text)?;
        let log = fs::File::create(directory.join("nats.out"))?;
        let child = Command::new(program)
            .arg("--config")
            .arg(&settings)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        let mut started = Self {
            server: Server::JetStream {
                port: websocket_port,
            },
            child: EndedWhenDropped(child),
            directory,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
        };
        started.listening(websocket_port).await?;
        Ok(Some(started))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// A connection for a publisher.
    pub async fn link(&self) -> anyhow::Result<Link> {
        Link::connect(self.address).await
    }

    /// Makes a stream and a durable consumer for each of these clients. In one stream for all,
    /// nats-server 2.9 would search the next order of a client among those of all clients.
    pub async fn make_consumers(&self, names: &[String]) -> anyhow::Result<()> {
        let link = self.link().await?;
        for make in [nats::stream, nats::consumer] {
            let requests = names.iter().map(|name| {
                let (subject, config) = make(name);
                link.request(subject, config)
            });
            for reply in requests.collect::<anyhow::Result<Vec<_>>>()? {
                reply.await.context(ENDED)??;
            }
        }
        Ok(())
    }

    async fn listening(&mut self, websocket_port: u16) -> anyhow::Result<()> {
        let begun = Instant::now();
        for port in [self.address.port(), websocket_port] {
            while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                if self.child.0.try_wait()?.is_some() || begun.elapsed() > PATIENCE {
                    let log = fs::read_to_string(self.directory.join("nats.out"))?;
                    bail!("nats-server did not start: {log}");
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        }
        Ok(())
    }
}

impl Drop for JetStream {
    fn drop(&mut self) {
        let _ = self.child.0.kill();
        let _ = self.child.0.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The version for the report, if it is installed.
pub fn version() -> anyhow::Result<Option<String>> {
    let Some(program) = program()? else {
        return Ok(None);
    };
    let output = Command::new(program).arg("--version").output()?;
    // `nats-server: v2.9.10`
    let printed = String::from_utf8(output.stdout)?;
    let version = printed.trim().replace(": v", " ");
    Ok(Some(version))
}

fn program() -> anyhow::Result<Option<&'static str>> {
    for program in PROGRAMS {
        let mut command = Command::new(program);
        match command.arg("--version").stdout(Stdio::null()).status() {
            Ok(_) => return Ok(Some(program)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).context("could not run nats-server"),
        }
    }
    Ok(None)
}

/// JetStream's reply to a request or a publish: its confirm.
pub type Reply = oneshot::Receiver<anyhow::Result<()>>;
type Waiting = oneshot::Sender<anyhow::Result<()>>;

/// One connection over TCP. It ends if this is dropped.
pub struct Link {
    requests: mpsc::UnboundedSender<Request>,
    _tasks: JoinSet<()>,
}

struct Request {
    subject: String,
    payload: Vec<u8>,
    waiting: Waiting,
}

impl Link {
    async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (reader, mut writer) = stream.into_split();
        writer
            .write_all(&nats::connect(&format!("{INBOX}.*")))
            .await?;
        let (requests, to_write) = mpsc::unbounded_channel();
        let (written, to_reply) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        // If writing fails, `written` is dropped, and so are the requests that wait.
        tasks.spawn(async move { _ = write(to_write, written, writer).await });
        tasks.spawn(read(to_reply, reader));
        Ok(Self {
            requests,
            _tasks: tasks,
        })
    }

    /// Sends a message that JetStream replies to. The publisher bounds how many wait for a reply.
    pub fn request(&self, subject: String, payload: Vec<u8>) -> anyhow::Result<Reply> {
        let (waiting, reply) = oneshot::channel();
        let request = Request {
            subject,
            payload,
            waiting,
        };
        let sent = self.requests.send(request);
        sent.ok().context(ENDED)?;
        Ok(reply)
    }
}

/// Sends the requests that wait in one write.
async fn write(
    mut requests: mpsc::UnboundedReceiver<Request>,
    written: mpsc::UnboundedSender<(usize, Waiting)>,
    mut writer: OwnedWriteHalf,
) -> anyhow::Result<()> {
    let (mut batch, mut commands, mut number) = (Vec::new(), Vec::new(), 0_usize);
    while requests.recv_many(&mut batch, WRITE_MAX).await > 0 {
        for request in batch.drain(..) {
            let inbox = format!("{INBOX}.{number}");
            nats::push_publish(&mut commands, &request.subject, &inbox, &request.payload);
            written.send((number, request.waiting))?;
            number += 1;
        }
        writer.write_all(&commands).await?;
        commands.clear();
    }
    Ok(())
}

/// Reads until the connection ends or the server breaks the protocol. Then one request has the error.
async fn read(mut written: mpsc::UnboundedReceiver<(usize, Waiting)>, mut reader: OwnedReadHalf) {
    let (mut bytes, mut waiting) = (Vec::with_capacity(READ_BYTES), HashMap::new());
    loop {
        let result = match reader.read_buf(&mut bytes).await {
            Ok(0) => Err(anyhow!(ENDED)),
            Ok(_) => {
                while let Ok((number, reply)) = written.try_recv() {
                    waiting.insert(number, reply);
                }
                reply_to_all(&mut waiting, &mut bytes)
            }
            Err(error) => Err(error.into()),
        };
        if let Err(error) = result {
            if let Some(reply) = waiting.into_values().next() {
                let _ = reply.send(Err(error));
            }
            return;
        }
    }
}

/// Takes the complete commands from `bytes`. Streams reply independently of each other.
fn reply_to_all(waiting: &mut HashMap<usize, Waiting>, bytes: &mut Vec<u8>) -> anyhow::Result<()> {
    let mut rest = bytes.as_slice();
    while let Some((arrival, after)) = nats::split_first(rest)? {
        rest = after;
        if let Arrival::Message(message) = arrival {
            let number = message
                .subject
                .rsplit_once('.')
                .and_then(|(_, number)| number.parse().ok());
            let reply = number.and_then(|number: usize| waiting.remove(&number));
            let reply = reply
                .with_context(|| format!("{} has a reply without a request", message.subject))?;
            let _ = reply.send(nats::check_reply(message.payload));
        }
    }
    let complete = bytes.len() - rest.len();
    bytes.drain(..complete);
    Ok(())
}
