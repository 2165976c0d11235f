//! The end of a connection: the server sends its close, then reads the frames that the client sent
//! before it saw the close.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use super::framing::Incoming;
use super::socket::Socket;
use crate::model::protocol::Close;

/// Longest wait for the client's close (RFC 6455 §7.1.1). After it, the TCP connection is dropped.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest time for writing the close. Frames of a client that does not read are still read
/// afterwards.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);
/// Most bytes that are read after the close was sent, so that a client that never closes costs little.
/// They are 64 frames of 16 KiB.
const LATE_BYTES_MAX: usize = 1024 * 1024;

/// Whether acks and marks count that the client sent before it received this close. They do not if
/// the client was at fault, if its numbers are of an earlier epoch, or after an internal error, which
/// may follow a restore.
pub fn accepts_late_frames(close: Close) -> bool {
    matches!(
        close,
        Close::GoingAway { .. } | Close::TokenExpired | Close::Silent | Close::TooOld
    )
}

/// Sends a close and waits for the client's close. `on_late` gets each text that arrives meanwhile.
///
/// If the server dropped the connection at once, TCP could reset it before the client reads the
/// close. Our side of the connection ends only after the client's close (RFC 6455 §7.1.1). Some
/// proxies close both directions when one side closes, and would reset a client that is writing.
pub async fn send_close<S>(
    mut socket: Socket<S>,
    close: Close,
    reason: &str,
    mut on_late: impl FnMut(&str),
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let closing = async {
        let is_answered_later = socket.put_end(close, reason);
        let _ = tokio::time::timeout(WRITE_TIMEOUT, socket.flush()).await;
        if is_answered_later {
            let mut bytes = 0;
            while bytes <= LATE_BYTES_MAX {
                match socket.next().await {
                    Ok(Incoming::Text(text)) => {
                        bytes += text.len();
                        on_late(&text);
                    }
                    Ok(Incoming::Close(_)) | Err(_) => break,
                    Ok(_) => bytes += 1,
                }
            }
        }
        socket.end(LATE_BYTES_MAX as u64).await;
    };
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, closing).await;
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn the_connection_ends_only_after_the_clients_close() {
        let (ours, mut theirs) = tokio::io::duplex(1_024);
        let (socket, close) = (
            Socket::new(ours, Vec::new(), 1_024),
            Close::GoingAway {
                retry_after_ms: 700,
            },
        );
        let (mut late, reason) = (Vec::new(), close.reason());
        let mut closing = Box::pin(send_close(socket, close, &reason, |text| {
            late.push(text.to_owned())
        }));
        assert!(
            (&mut closing).now_or_never().is_none(),
            "it did not wait for the client's close"
        );

        let mut bytes = Vec::new();
        theirs.read_buf(&mut bytes).await.unwrap();
        assert_eq!(
            (bytes[0], bytes.len()),
            (0x88, 2 + usize::from(bytes[1])),
            "one whole close frame: {bytes:?}"
        );
        assert!(
            theirs.read_buf(&mut bytes).now_or_never().is_none(),
            "the connection ended with the close"
        );

        // A pong, a text and a close of the client, all masked with zeros.
        theirs
            .write_all(&[0x8a, 0x80, 0, 0, 0, 0, 0x81, 0x81, 0, 0, 0, 0, b'x'])
            .await
            .unwrap();
        theirs
            .write_all(&[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xf4])
            .await
            .unwrap();
        assert!(
            (&mut closing).now_or_never().is_none(),
            "it did not wait for the client's end"
        );
        assert_eq!(
            theirs.read_buf(&mut bytes).await.unwrap(),
            0,
            "more than a close"
        );
        drop(theirs);
        closing.await;
        assert_eq!(late, ["x"]);
    }
}
