//! Where a collector is named, it is told of every batch and of the publishers behind it.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::support::{PATIENCE, Parcel, World, eventually, holds};

const MERCHANT: &str = "merchant-42";
const TRACE_ID: [u8; 16] =
    [0x0a, 0xf7, 0x65, 0x19, 0x16, 0xcd, 0x43, 0xdd, 0x84, 0x48, 0xeb, 0x21, 0x1c, 0x80, 0x31, 0x9c];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_traced_and_linked_to_the_publishers_trace() {
    let world = World::new().await;
    let (collector, received) = collector().await;
    let replica = world
        .replica()
        .with("OTEL_EXPORTER_OTLP_ENDPOINT", &collector)
        .with("OTEL_BSP_SCHEDULE_DELAY", 100)
        .start()
        .await;
    let order = format!(
        r#"{{"specversion":"1.0","id":"traced","source":"/checkout","type":"shop.opened","recipient":"{MERCHANT}",
            "traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}}"#
    );
    world.publisher().await.publish(Parcel::structured("shop.opened", order)).await;
    world.expect_stored(MERCHANT, 1).await;

    let span = format!("process {}", world.name("ingest"));
    eventually("the collector is told of the batch", PATIENCE, async || {
        let received = received.lock().unwrap_or_else(PoisonError::into_inner);
        let has = |bytes: &[u8]| received.windows(bytes.len()).any(|window| window == bytes);
        let found = (has(b"shopbell"), has(span.as_bytes()), has(&TRACE_ID));
        holds(found == (true, true, true), format!("service, span and link: {found:?}"))
    })
    .await;
    assert!(replica.terminate().await.success(), "the last export does not hold up the stop");
    world.finish().await;
}

/// An OTLP receiver over HTTP, which keeps the bytes of what it is sent: protobuf has names and ids in them as they are.
async fn collector() -> (String, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("a listener has an address");
    let received = Arc::<Mutex<Vec<u8>>>::default();
    let kept = received.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let kept = kept.clone();
            tokio::spawn(async move {
                let mut buffer = vec![0; 64 * 1024];
                while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                    kept.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..read]);
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.ok();
                }
            });
        }
    });
    (format!("http://{address}"), received)
}
