//! A WebSocket on its way. Frames from the server are not masked, so that what is looked for in answers is looked for here too;
//! frames from the client are, and no placeholder in them is replaced.

use std::io;

use bytes::BytesMut;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy, split};

use super::scrub::Values;

const PIECE: usize = 16 * 1024;

/// Relays until either side is done. The client's connection ends by itself when nothing moves.
pub async fn relay(client: OnUpgrade, server: OnUpgrade, values: Values) {
    let (client, server) = match tokio::try_join!(client, server) {
        Ok(upgraded) => upgraded,
        Err(error) => return tracing::debug!(%error, "a WebSocket did not begin"),
    };
    let (mut client_read, client_write) = split(TokioIo::new(client));
    let (server_read, mut server_write) = split(TokioIo::new(server));
    let up = async {
        copy(&mut client_read, &mut server_write).await?;
        server_write.shutdown().await
    };
    let ended = tokio::try_join!(up, down(server_read, client_write, &values));
    if let Err(error) = ended {
        tracing::debug!(%error, "a WebSocket broke");
    }
}

async fn down(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, values: &Values) -> io::Result<()> {
    let mut scrubber = values.stream();
    let mut piece = BytesMut::with_capacity(PIECE);
    while from.read_buf(&mut piece).await? > 0 {
        to.write_all(&scrubber.feed(piece.split().freeze())).await?;
        to.flush().await?;
        piece.reserve(PIECE);
    }
    to.write_all(&scrubber.finish()).await?;
    to.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_server_sends_is_scrubbed() {
        let (mut server, ours) = tokio::io::duplex(8);
        let (theirs, mut client) = tokio::io::duplex(8);
        let sending = async move { server.write_all(b"\x81\x12a secret-value end").await };
        let values = Values::new([&b"secret-value"[..]]).unwrap();
        let mut got = Vec::new();
        let (sent, relayed, read) = tokio::join!(sending, down(ours, theirs, &values), client.read_to_end(&mut got));
        assert!(sent.is_ok() && relayed.is_ok() && read.is_ok());
        assert_eq!(got, b"\x81\x12a ************ end");
    }
}
