//! A TCP relay in front of the service. It can cut all connections without a WebSocket close, as a
//! failing network does.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Wait after a failed accept, so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A relay that forwards connections, or rejects them for some seconds after a cut.
#[derive(Debug)]
pub(super) struct Relay {
    /// Locked only for a read or a change, never across an await.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Ends every connection that was accepted since the last cut.
    cut: CancellationToken,
    closed_until: Instant,
}

impl Relay {
    /// Listens on `public`, and forwards connections to `inner` from now on.
    pub(super) async fn start(public: SocketAddr, inner: SocketAddr) -> std::io::Result<Arc<Self>> {
        let listener = TcpListener::bind(public).await?;
        let state = State {
            cut: CancellationToken::new(),
            closed_until: Instant::now(),
        };
        let relay = Arc::new(Self {
            state: Mutex::new(state),
        });
        tokio::spawn(relay.clone().accept_connections(listener, inner));
        Ok(relay)
    }

    /// Cuts every connection, and rejects new ones for this time.
    pub(super) fn cut(&self, time: Duration) {
        let mut state = self.lock();
        state.closed_until = Instant::now() + time;
        std::mem::take(&mut state.cut).cancel();
    }

    async fn accept_connections(self: Arc<Self>, listener: TcpListener, inner: SocketAddr) {
        loop {
            match listener.accept().await {
                Ok((client, _)) => {
                    // After a cut the connection is dropped, so the client gets an error at once.
                    if let Some(cut) = self.admission() {
                        tokio::spawn(forward(client, inner, cut));
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "the relay of the demo could not accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// The token that will cut a new connection, or `None` if the relay rejects it.
    fn admission(&self) -> Option<CancellationToken> {
        let state = self.lock();
        (Instant::now() >= state.closed_until).then(|| state.cut.clone())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn forward(mut client: TcpStream, inner: SocketAddr, cut: CancellationToken) {
    let forwarding = async {
        let mut service = TcpStream::connect(inner).await?;
        // Both ends write whole frames, so Nagle's algorithm would only add latency.
        client.set_nodelay(true)?;
        service.set_nodelay(true)?;
        copy_bidirectional(&mut client, &mut service).await
    };
    tokio::select! {
        _ = forwarding => {}
        () = cut.cancelled() => {}
    }
}
