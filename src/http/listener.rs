//! Accepts connections and serves HTTP/1.1. [`Connections`] bounds their number and their time.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::header::{CONNECTION, HOST, TRANSFER_ENCODING};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Version};
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connections::{Connections, Go, Slot, TrackedBody, Watch, Watched, within_deadlines};
use super::handover::Handover;
use super::problem::Problem;
use crate::telemetry::labels::ConnectionDropped;

/// Most time for the current request when the replica stops or the connection makes room.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest head of a request: a token of 8 KiB and the other headers.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Wait after a failed accept, for example if file descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `router` until `stop`, then stops accepting and waits for the requests under way. A connection that became a
/// session no longer counts among `connections`.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    connections: Arc<Connections>,
    stop: CancellationToken,
) {
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let slot = tokio::select! {
                    slot = connections.slot() => slot,
                    () = stop.cancelled() => break,
                };
                let router = router.clone();
                tasks.spawn(serve_connection(stream, peer, router, slot, stop.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

async fn serve_connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    slot: Slot,
    stop: CancellationToken,
) {
    // Frames are collected before they are written, so Nagle's algorithm only adds latency.
    let _ = stream.set_nodelay(true);
    let watch = &slot.watch;
    // hyper allocates its buffer at the first poll, so a client that sends nothing costs none.
    let first = tokio::select! {
        // Arrived bytes come first, because only a connection that waits for its client makes room.
        biased;
        first = within_deadlines(watch, stream.readable()) => first.map(|_| ()),
        () = watch.asked_to_go() => Err(ConnectionDropped::Crowded),
        () = stop.cancelled() => return,
    };
    if let Err(reason) = first {
        return slot.count_dropped(reason);
    }
    let router = TowerToHyperService::new(router);
    let (request_watch, handover) = (watch.clone(), Handover::default());
    let io = TokioIo::new(Watched::new(stream, watch.clone(), handover.clone()));
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(handover.clone());
        respond(router.clone(), peer, request, request_watch.clone())
    });
    let connection = http1::Builder::new()
        // hyper has one timeout for heads and for idle connections; the watch has both.
        .header_read_timeout(None)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(io, service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let ended = loop {
        tokio::select! {
            biased;
            ended = within_deadlines(watch, connection.as_mut()) => break ended,
            () = watch.asked_to_go() => match watch.go(Instant::now()) {
                Go::Stay => continue,
                Go::Now => return slot.count_dropped(ConnectionDropped::Crowded),
                Go::AfterResponse => slot.count_dropped(ConnectionDropped::Crowded),
            },
            () = stop.cancelled() => {}
        }
        connection.as_mut().graceful_shutdown();
        break tokio::time::timeout(END_TIMEOUT, connection)
            .await
            .map_err(|_| ConnectionDropped::Stalled);
    };
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection ended early"),
        Err(reason) => slot.count_dropped(reason),
    }
}

async fn respond(
    router: TowerToHyperService<Router>,
    peer: SocketAddr,
    mut request: Request<Incoming>,
    watch: Arc<Watch>,
) -> Result<Response<TrackedBody>, std::convert::Infallible> {
    watch.begin();
    request.extensions_mut().insert(ConnectInfo(peer));
    let response = match refused(&request) {
        None => {
            use_host_of_target(&mut request);
            router.call(request).await?
        }
        Some(problem) => problem.into_response(),
    };
    Ok(response.map(|body| TrackedBody::new(body, watch)))
}

/// The refusal of a request whose host or body is not certain.
fn refused<B>(request: &Request<B>) -> Option<Problem> {
    if !is_addressed(request.version(), request.headers()) {
        let detail = "a request must have one valid Host header";
        return Some(Problem::new(StatusCode::BAD_REQUEST, detail));
    }
    if !is_framed(request.headers()) {
        let detail = "the only Transfer-Encoding of a request is chunked";
        return Some(Problem::new(StatusCode::NOT_IMPLEMENTED, detail).with(CONNECTION, "close"));
    }
    None
}

/// Whether the end of the body is certain. hyper accepts other codings before `chunked`. A proxy may read the end of such a
/// body at another place (RFC 9112 §6.1 and §11.2).
fn is_framed(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    codings
        .next()
        .is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
        && codings.next().is_none()
}

/// Replaces `Host` by the host of an absolute target (RFC 9112 §3.2.2).
fn use_host_of_target<B>(request: &mut Request<B>) {
    let target = request.uri();
    let host = target.scheme().and(target.authority());
    if let Some(Ok(host)) = host.map(|host| HeaderValue::from_str(host.as_str())) {
        request.headers_mut().insert(HOST, host);
    }
}

/// Whether a request has one valid `Host` header (RFC 9112 §3.2).
fn is_addressed(version: Version, headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => version < Version::HTTP_11,
        (Some(host), None) => {
            let is_host = |host: &Authority| !host.as_str().contains('@');
            host.is_empty() || Authority::try_from(host.as_bytes()).is_ok_and(|host| is_host(&host))
        }
        (Some(_), Some(_)) => false,
    }
}

/// The address at which this machine reaches a listener. A listener on all addresses is reached on the loopback address.
pub fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn a_request_of_http_1_1_has_one_host() {
        let is_addressed = |version, hosts: &[&str]| {
            is_addressed(
                version,
                &hosts
                    .iter()
                    .map(|host| (HOST, host.parse().unwrap()))
                    .collect(),
            )
        };
        for host in [
            "shop.example",
            "shop.example:8080",
            "[::1]:443",
            "10.0.0.7",
            "",
            "shop.example.",
        ] {
            assert!(is_addressed(Version::HTTP_11, &[host]), "{host}");
        }
        for hosts in [
            &[][..],
            &["a", "b"],
            &["a", "a"],
            &["a/b"],
            &["u@a"],
            &["a b"],
            &["a, b"],
        ] {
            assert!(!is_addressed(Version::HTTP_11, hosts), "{hosts:?}");
        }
        assert!(
            is_addressed(Version::HTTP_10, &[]) && !is_addressed(Version::HTTP_10, &["a", "b"])
        );
    }

    #[test]
    fn the_only_transfer_coding_is_chunked() {
        for (codings, expected) in [
            (&[][..], true),
            (&["chunked"], true),
            (&["Chunked"], true),
            (&["gzip, chunked"], false),
            (&["chunked, chunked"], false),
            (&["chunked", "chunked"], false),
        ] {
            let headers = codings
                .iter()
                .map(|coding| (TRANSFER_ENCODING, coding.parse().unwrap()))
                .collect();
            assert_eq!(is_framed(&headers), expected, "{codings:?}");
        }
    }

    #[test]
    fn the_host_of_an_absolute_target_replaces_the_header() {
        for (target, expected) in [
            ("http://other.example:81/v1/ws", "other.example:81"),
            ("/v1/ws", "shop.example"),
            ("other.example:443", "shop.example"),
        ] {
            let request = Request::get(target).header(HOST, "shop.example");
            let mut request = request.body(()).unwrap();
            use_host_of_target(&mut request);
            assert_eq!(request.headers()[HOST], expected, "{target}");
        }
    }

    #[test]
    fn a_listener_on_all_addresses_is_reached_on_loopback() {
        for (listen, asked) in [
            ("0.0.0.0:9090", "127.0.0.1:9090"),
            ("[::]:9090", "[::1]:9090"),
            ("10.0.0.7:1", "10.0.0.7:1"),
        ] {
            assert_eq!(reachable(listen.parse().unwrap()).to_string(), asked);
        }
    }
}
