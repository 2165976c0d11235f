//! A TCP proxy that can cut, stall, slow and restore the network between two parts.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::url;

/// Bytes that are moved at once.
const CHUNK_BYTES: usize = 16 * 1024;
/// Time between two moves on a slow line.
const SLOW_TICK: Duration = Duration::from_millis(50);

/// A TCP proxy in front of a service or a replica. It ends with the test's runtime.
pub struct Proxy {
    address: SocketAddr,
    network: watch::Sender<Network>,
    behind: watch::Sender<String>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Network {
    /// New connections are accepted.
    open: bool,
    /// Counts the breaks. A connection belongs to the life in which it was opened.
    life: u64,
    /// Connections of earlier lives are closed. Others that are not of the present life are
    /// stalled.
    ended_before: u64,
    /// From the client to the service.
    upstream: Line,
    /// From the service to the client.
    downstream: Line,
}

impl Network {
    /// The state of the line for a connection of that life; `present` if it is the present life.
    fn line(&self, life: u64, present: Line) -> Option<Line> {
        match life {
            ended if ended < self.ended_before => None,
            forgotten if forgotten < self.life => Some(Line::Stalled),
            _ => Some(present),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Line {
    Running,
    /// Connections stay open and move nothing.
    Stalled,
    /// At most this many bytes a tick.
    Slow(usize),
    /// Each chunk waits this long.
    Late(Duration),
}

impl Proxy {
    /// A proxy in front of `authority` (`host:port`).
    pub async fn before(authority: &str) -> Self {
        let running = Network {
            open: true,
            life: 0,
            ended_before: 0,
            upstream: Line::Running,
            downstream: Line::Running,
        };
        let network = watch::Sender::new(running);
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a proxy can listen");
        let address = listener.local_addr().expect("a listener has an address");
        let behind = watch::Sender::new(authority.to_owned());
        tokio::spawn(accept(listener, behind.subscribe(), network.subscribe()));
        Self {
            address,
            network,
            behind,
        }
    }

    /// A proxy in front of the service that `url` names.
    pub async fn before_service(service_url: &str) -> Self {
        Self::before(&url::authority(service_url)).await
    }

    /// The address to connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The service's URL through this proxy.
    pub fn url(&self, service_url: &str) -> String {
        url::at(service_url, &self.address.to_string())
    }

    /// The number of open connections.
    #[allow(
        dead_code,
        reason = "only the stories use it, and both test binaries share this file"
    )]
    pub fn connections(&self) -> usize {
        // Each direction of a connection has a receiver, and so has the listener.
        (self.network.receiver_count() - 1).div_ceil(2)
    }

    /// Connects new connections to `authority` (`host:port`). Existing connections stay.
    #[allow(
        dead_code,
        reason = "only the chaos stories use it, and both test binaries share this file"
    )]
    pub fn lead_to(&self, authority: &str) {
        self.behind.send_replace(authority.to_owned());
    }

    /// Ends every connection and refuses new ones.
    pub fn cut(&self) {
        self.network.send_modify(|network| {
            let life = network.life + 1;
            *network = Network {
                open: false,
                life,
                ended_before: life,
                ..*network
            };
        });
    }

    /// Forgets every connection, like a firewall that restarts: neither side is informed, and
    /// nothing moves. New connections work.
    pub fn forget(&self) {
        self.network.send_modify(|network| network.life += 1);
    }

    /// Moves nothing in either direction, and keeps the connections open.
    pub fn stall(&self) {
        self.lines(Line::Stalled, Line::Stalled);
    }

    /// Moves nothing to the service. The client receives, but its bytes do not arrive.
    pub fn stall_upstream(&self) {
        self.lines(Line::Stalled, Line::Running);
    }

    /// Moves nothing to the client. Its bytes arrive, but it receives nothing.
    pub fn stall_downstream(&self) {
        self.lines(Line::Running, Line::Stalled);
    }

    /// Moves about `bytes_per_second` to the client.
    pub fn slow_downstream(&self, bytes_per_second: usize) {
        let ticks_per_second =
            1_000 / usize::try_from(SLOW_TICK.as_millis()).expect("a tick is short");
        self.lines(
            Line::Running,
            Line::Slow((bytes_per_second / ticks_per_second).max(1)),
        );
    }

    /// Moves bytes in both directions, each `delay` later.
    #[allow(
        dead_code,
        reason = "only the chaos stories use it, and both test binaries share this file"
    )]
    pub fn delay(&self, delay: Duration) {
        self.lines(Line::Late(delay), Line::Late(delay));
    }

    /// Accepts connections and moves bytes again.
    pub fn mend(&self) {
        self.network.send_modify(|network| network.open = true);
        self.lines(Line::Running, Line::Running);
    }

    fn lines(&self, upstream: Line, downstream: Line) {
        self.network.send_modify(|network| {
            *network = Network {
                upstream,
                downstream,
                ..*network
            }
        });
    }
}

async fn accept(
    listener: TcpListener,
    behind: watch::Receiver<String>,
    mut network: watch::Receiver<Network>,
) {
    while let Ok((near, _)) = listener.accept().await {
        let now = *network.borrow_and_update();
        if !now.open {
            continue;
        }
        let behind = behind.borrow().clone();
        if let Ok(far) = TcpStream::connect(&behind).await {
            near.set_nodelay(true).ok();
            far.set_nodelay(true).ok();
            let ((near_read, near_write), (far_read, far_write)) =
                (near.into_split(), far.into_split());
            let upstream = move |network: &Network| network.line(now.life, network.upstream);
            let downstream = move |network: &Network| network.line(now.life, network.downstream);
            tokio::spawn(carry(near_read, far_write, network.clone(), upstream));
            tokio::spawn(carry(far_read, near_write, network.clone(), downstream));
        }
    }
}

/// Moves bytes as `line` allows, until it returns `None` or one side ends.
async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut network: watch::Receiver<Network>,
    line: impl Fn(&Network) -> Option<Line>,
) {
    let (mut bytes, mut tick) = (vec![0; CHUNK_BYTES], interval(SLOW_TICK));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = line(&network.borrow_and_update());
        let most = match now {
            None => return,
            Some(Line::Stalled) => 0,
            Some(Line::Running | Line::Late(_)) => CHUNK_BYTES,
            Some(Line::Slow(most)) => most.min(CHUNK_BYTES),
        };
        let read = tokio::select! {
            changed = network.changed() => if changed.is_ok() { continue } else { return },
            read = from.read(&mut bytes[..most]), if most > 0 => read,
        };
        let Ok(count @ 1..) = read else { return };
        if let Some(Line::Late(delay)) = now {
            sleep(delay).await;
        }
        // The other direction ends by itself: dropping a half shuts it down, and its peer closes
        // too.
        let written = tokio::select! {
            cut = network.wait_for(|network| line(network).is_none()) => { drop(cut); return }
            written = to.write_all(&bytes[..count]) => written,
        };
        if written.is_err() {
            return;
        }
        if matches!(now, Some(Line::Slow(_))) {
            tick.tick().await;
        }
    }
}
