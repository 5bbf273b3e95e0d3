//! Tunnels to hosts without a credential. What TLS says in the open must be about the host that was asked for; everything
//! behind it is passed on untouched.

use std::{io, sync::Arc, time::Duration};

use longhand_process::relay::Progress;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    hello::{self, Hello, MAX_LENGTH},
    refusal::Refusal,
};
use crate::{policy::Host, upstream::IDLE_TIMEOUT};

/// How long a client may take to say which server it wants.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// The same, once the proxy closes: what is not in the middle of something ends.
const CLOSING_IDLE_TIMEOUT: Duration = Duration::from_secs(2);
/// Of each direction; a tunnel that moves nothing keeps them too.
const BUFFER: usize = 16 * 1024;
/// A fatal TLS alert, "access denied": the only thing that a client of TLS can be told before its handshake.
const ACCESS_DENIED: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];

/// What a tunnel has moved, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// From the client.
    pub sent: u64,
    /// To the client.
    pub received: u64,
}

/// Reads the beginning of a tunnel, until it is known to be TLS for this host, and returns it; `None` if the client went
/// before. Nothing of it has gone to the host by then.
///
/// # Errors
/// [`Refusal`] names the rule. A client that speaks TLS has been told with an alert.
pub async fn judge<C: AsyncRead + AsyncWrite + Unpin>(client: &mut C, host: &Host) -> Result<Option<Vec<u8>>, Refusal> {
    let mut begun = Vec::with_capacity(2 * 1024);
    let judged = match timeout(HELLO_TIMEOUT, hello(client, host, &mut begun)).await {
        Ok(judged) => judged,
        Err(_) => Err(Refusal::NoHello(HELLO_TIMEOUT)),
    };
    if judged.is_err() && begun.first() == Some(&22) {
        // The client may be gone.
        let told = async {
            client.write_all(&ACCESS_DENIED).await?;
            client.shutdown().await
        };
        let _: Result<io::Result<()>, _> = timeout(HELLO_TIMEOUT, told).await;
    }
    Ok(judged?.then_some(begun))
}

/// Whether the hello came.
async fn hello<C: AsyncRead + Unpin>(client: &mut C, host: &Host, begun: &mut Vec<u8>) -> Result<bool, Refusal> {
    loop {
        match hello::parse(begun)? {
            Hello::Complete { server_name } => return same_name(host, server_name.as_deref()).map(|()| true),
            Hello::Partial => {}
        }
        let room = (MAX_LENGTH + 1).saturating_sub(begun.len());
        let read = (&mut *client).take(u64::try_from(room).unwrap_or_default()).read_buf(begun).await;
        if !matches!(read, Ok(1..)) {
            return Ok(false);
        }
    }
}

/// An address has no place in a ClientHello, so a connection to one may go without.
fn same_name(host: &Host, server_name: Option<&str>) -> Result<(), Refusal> {
    let connect = host.to_string();
    match server_name {
        Some(sni) if Host::parse(sni).as_ref() == Ok(host) => Ok(()),
        Some(sni) => {
            Err(Refusal::OtherName { connect, sni: sni.chars().filter(char::is_ascii_graphic).take(253).collect() })
        }
        None if host.is_name() => Err(Refusal::NoName { connect }),
        None => Ok(()),
    }
}

/// Passes bytes on in both directions until both have ended, each on its own. `begun` is what was read of the client already.
///
/// # Errors
/// [`io::Error`] when a side breaks, or when nothing moved for [`IDLE_TIMEOUT`], or for 2 s while the proxy is `closing`.
pub async fn relay<C, U>(client: C, mut upstream: U, begun: Vec<u8>, closing: &CancellationToken) -> io::Result<Moved>
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    upstream.write_all(&begun).await?;
    let first = begun.len() as u64;
    drop(begun);
    let progress = Arc::new(Progress::default());
    let mut client = Watched { inner: client, progress: progress.clone() };
    let mut upstream = Watched { inner: upstream, progress: progress.clone() };
    let closed = async {
        closing.cancelled().await;
        progress.stalled(CLOSING_IDLE_TIMEOUT).await;
    };
    let copied = tokio::io::copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER, BUFFER);
    tokio::select! {
        copied = copied => copied.map(|(sent, received)| Moved { sent: sent + first, received }),
        () = progress.stalled(IDLE_TIMEOUT) => Err(io::ErrorKind::TimedOut.into()),
        () = closed => Err(io::ErrorKind::ConnectionAborted.into()),
    }
}

/// One side of a tunnel, which notes that something moved.
struct Watched<I> {
    inner: I,
    progress: Arc<Progress>,
}

mod watched {
    use std::{
        io,
        pin::Pin,
        task::{Context, Poll},
    };

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::Watched;

    impl<I: AsyncRead + Unpin> AsyncRead for Watched<I> {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
            if polled.is_ready() {
                self.progress.touch();
            }
            polled
        }
    }

    impl<I: AsyncWrite + Unpin> AsyncWrite for Watched<I> {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            let polled = Pin::new(&mut self.inner).poll_write(cx, buf);
            if polled.is_ready() {
                self.progress.touch();
            }
            polled
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.inner).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.inner).poll_shutdown(cx)
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use tokio::{io::DuplexStream, time::Instant};

    use super::*;

    #[rstest]
    #[case("api.example", Some("api.example"), "ok")]
    #[case("api.example", Some("API.Example"), "ok")]
    #[case("api.example", Some("api.example."), "ok")]
    #[case("api.example", Some("evil.example"), "sni_mismatch")]
    #[case("api.example", Some("x.api.example"), "sni_mismatch")]
    #[case("api.example", Some("api.example\0.evil.example"), "sni_mismatch")]
    #[case("api.example", Some(""), "sni_mismatch")]
    #[case("api.example", Some("*.example"), "sni_mismatch")]
    #[case("api.example", None, "no_sni")]
    #[case("9.9.9.9", None, "ok")]
    #[case("9.9.9.9", Some("evil.example"), "sni_mismatch")]
    #[case("2620:fe::fe", None, "ok")]
    fn connect_and_sni(#[case] connect: &str, #[case] sni: Option<&str>, #[case] expected: &str) {
        let judged = same_name(&Host::parse(connect).unwrap(), sni);
        assert_eq!(judged.map_or_else(|refusal| refusal.rule(), |()| "ok"), expected);
    }

    async fn relay_until(
        client: DuplexStream,
        upstream: DuplexStream,
        begun: &'static [u8],
        closing: CancellationToken,
    ) -> io::Result<Moved> {
        relay(client, upstream, begun.to_vec(), &closing).await
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_tunnel_ends_when_the_proxy_closes() {
        let (_program, client) = tokio::io::duplex(64);
        let (upstream, _server) = tokio::io::duplex(64);
        let (closing, started) = (CancellationToken::new(), Instant::now());
        let tunnel = tokio::spawn(relay_until(client, upstream, b"", closing.clone()));
        closing.cancel();
        assert_eq!(tunnel.await.unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        assert!(started.elapsed() <= CLOSING_IDLE_TIMEOUT * 2, "{:?}", started.elapsed());
    }

    #[tokio::test]
    async fn each_direction_ends_on_its_own() {
        let (mut program, client) = tokio::io::duplex(64);
        let (upstream, mut server) = tokio::io::duplex(64);
        let tunnel = tokio::spawn(relay_until(client, upstream, b"begun ", CancellationToken::new()));
        program.write_all(b"asked").await.unwrap();
        program.shutdown().await.unwrap();
        let mut asked = String::new();
        server.read_to_string(&mut asked).await.unwrap();
        assert_eq!(asked, "begun asked");
        server.write_all(b"answer").await.unwrap();
        drop(server);
        let mut answer = String::new();
        program.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "answer");
        assert_eq!(tunnel.await.unwrap().unwrap(), Moved { sent: 11, received: 6 });
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_tunnel_ends_and_a_busy_one_does_not() {
        let (mut program, client) = tokio::io::duplex(64);
        let (upstream, mut server) = tokio::io::duplex(64);
        let started = Instant::now();
        let tunnel = tokio::spawn(relay_until(client, upstream, b"", CancellationToken::new()));
        for _ in 0..3 {
            tokio::time::sleep(IDLE_TIMEOUT / 2).await;
            program.write_all(b"x").await.unwrap();
            server.read_u8().await.unwrap();
        }
        let error = tunnel.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(started.elapsed() >= IDLE_TIMEOUT * 5 / 2, "{:?}", started.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_says_nothing_is_let_go() {
        let (_program, mut client) = tokio::io::duplex(64);
        let refusal = judge(&mut client, &Host::parse("api.example").unwrap()).await.unwrap_err();
        assert_eq!(refusal.rule(), "malformed_hello");
    }
}
