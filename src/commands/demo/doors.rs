//! A relay in front of the service whose connections can be cut as a network cuts them: without a goodbye of the protocol.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long to wait after an accept that failed, instead of spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Doors that are open, or shut for a while.
#[derive(Debug)]
pub(super) struct Doors {
    /// Held for a look or a change, never across an await.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Ends every connection that came through while it was the one.
    cut: CancellationToken,
    shut_until: Instant,
}

impl Doors {
    /// Lets whoever comes to `public` through to `inner`, from now on.
    pub(super) async fn open(public: SocketAddr, inner: SocketAddr) -> std::io::Result<Arc<Self>> {
        let listener = TcpListener::bind(public).await?;
        let state = State {
            cut: CancellationToken::new(),
            shut_until: Instant::now(),
        };
        let doors = Arc::new(Self {
            state: Mutex::new(state),
        });
        tokio::spawn(doors.clone().let_in(listener, inner));
        Ok(doors)
    }

    /// Cuts every connection, and lets nobody in for so long.
    pub(super) fn shut(&self, time: Duration) {
        let mut state = self.lock();
        state.shut_until = Instant::now() + time;
        std::mem::take(&mut state.cut).cancel();
    }

    async fn let_in(self: Arc<Self>, listener: TcpListener, inner: SocketAddr) {
        loop {
            match listener.accept().await {
                Ok((visitor, _)) => {
                    // Where the doors are shut the connection is dropped, which the visitor sees at once.
                    if let Some(cut) = self.is_open() {
                        tokio::spawn(relay(visitor, inner, cut));
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn is_open(&self) -> Option<CancellationToken> {
        let state = self.lock();
        (Instant::now() >= state.shut_until).then(|| state.cut.clone())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn relay(mut visitor: TcpStream, inner: SocketAddr, cut: CancellationToken) {
    let through = async {
        let mut service = TcpStream::connect(inner).await?;
        // Frames are gathered before they are written: Nagle's delay would only add to latency.
        visitor.set_nodelay(true)?;
        service.set_nodelay(true)?;
        copy_bidirectional(&mut visitor, &mut service).await
    };
    // However it ends, the browser sees it end.
    tokio::select! {
        _ = through => {}
        () = cut.cancelled() => {}
    }
}
