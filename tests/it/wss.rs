//! WebSocket over TLS, through nginx with the configuration of docs/security.md.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::io::copy;
use tokio::net::{TcpListener, TcpStream};

use crate::support::certificates::{Authority, Certificate, Content};
use crate::support::process::signal;
use crate::support::replica::free_address;
use crate::support::{Event, PATIENCE, World, eventually, http, run_any};

const MERCHANT: &str = "merchant-42";
/// Bound for the installation on a slow network.
const INSTALL_BOUND: Duration = Duration::from_secs(900);

#[tokio::test]
async fn orders_reach_a_client_over_wss_through_the_documented_nginx() {
    let world = World::new().await;
    let ca = Authority::new(world.folder("ca")).await;
    let certificate = ca.issue("proxy", Content::default()).await;
    // nginx names the address of the client.
    let replica = world
        .replica()
        .with("SHOPBELL_TRUSTED_PROXIES", "127.0.0.1/32")
        .start()
        .await;
    let nginx = Nginx::start(&world, &certificate, replica.public()).await;

    let redirect = http::get(nginx.plain, "/v1/ws")
        .await
        .expect("nginx answers");
    assert_eq!(redirect.status, 308);
    let ca = ca.file().display().to_string();
    let door = tunnel(nginx.tls, &ca).await;
    let publisher = world.publisher().await;
    let mut merchant = world.merchant(MERCHANT).connect(door).await;
    publisher.publish_all(Event::orders(MERCHANT, 5)).await;
    merchant.take_seqs(1..=5).await;
    world.expect_cursor(MERCHANT, "", 5).await;
    let mut again = world.merchant(MERCHANT).connect(door).await;
    publisher.publish_all(Event::orders(MERCHANT, 1)).await;
    again.take_seqs(6..=6).await;

    // A client that does not trust the CA sends no token.
    let untrusting = tunnel(nginx.tls, "/dev/null").await;
    let refused = http::get(untrusting, "/v1/ws").await;
    assert!(refused.is_err(), "{refused:?}");
    world.finish().await;
}

/// An nginx that ends with the story.
struct Nginx {
    tls: SocketAddr,
    plain: SocketAddr,
    child: Child,
}

impl Nginx {
    async fn start(world: &World, certificate: &Certificate, upstream: SocketAddr) -> Self {
        let mut install =
            Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/install"));
        install.arg("nginx").stdin(Stdio::null());
        run_any(install, INSTALL_BOUND).await.succeeded();
        let (tls, plain, folder) = (free_address(), free_address(), world.folder("nginx"));
        let page = include_str!("../../docs/security.md");
        let documented = page.split("```nginx\n").nth(1).expect("the page has it");
        let documented = documented.split("```").next().expect("an end");
        let places = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {folder}/{kind};"))
            .concat();
        let mut configuration = documented.replacen(
            "http {",
            &format!("http {{ {places} access_log {folder}/access.log;"),
            1,
        );
        for (shown, ours) in [
            ("listen 80;", format!("listen {plain};")),
            ("listen 443 ssl;", format!("listen {tls} ssl;")),
            ("127.0.0.1:8080", upstream.to_string()),
            (
                "/etc/nginx/shop.example.pem",
                certificate.certificate.display().to_string(),
            ),
            (
                "/etc/nginx/shop.example.key",
                certificate.key.display().to_string(),
            ),
        ] {
            assert!(configuration.contains(shown), "the page has {shown}");
            configuration = configuration.replace(shown, &ours);
        }
        let prelude = format!(
            "daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1;\nevents {{}}\n"
        );
        let file = format!("{folder}/nginx.conf");
        std::fs::write(&file, prelude + &configuration).expect("a file can be written");
        let mut nginx = Command::new("/usr/sbin/nginx");
        nginx.args(["-p", &folder, "-c", &file, "-e", "error.log"]);
        nginx
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = nginx.spawn().expect("nginx starts");
        eventually("nginx listens", PATIENCE, async || {
            let connected = TcpStream::connect(tls).await;
            let log = || std::fs::read_to_string(format!("{folder}/error.log"));
            connected
                .map(drop)
                .map_err(|error| format!("{error}: {:?}", log()))
        })
        .await;
        Self { tls, plain, child }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        signal(self.child.id(), "TERM");
        self.child.wait().ok();
    }
}

/// A plain port on this machine. Each of its connections goes through a client of openssl, which
/// verifies the certificate and the name of the server.
async fn tunnel(to: SocketAddr, ca: &str) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("a port");
    let door = listener.local_addr().expect("an address");
    let ca = ca.to_owned();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(carry(stream, to, ca.clone()));
        }
    });
    door
}

async fn carry(mut stream: TcpStream, to: SocketAddr, ca: String) {
    let mut client = tokio::process::Command::new("openssl")
        .args(["s_client", "-quiet", "-connect", &to.to_string()])
        .args(["-servername", "localhost", "-verify_hostname", "localhost"])
        .args(["-verify_return_error", "-CAfile", &ca])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("openssl is installed");
    let (mut into, mut out) = (
        client.stdin.take().expect("stdin is piped"),
        client.stdout.take().expect("stdout is piped"),
    );
    let (mut read, mut write) = stream.split();
    tokio::select! {
        _ = copy(&mut read, &mut into) => {}
        _ = copy(&mut out, &mut write) => {}
    }
}
