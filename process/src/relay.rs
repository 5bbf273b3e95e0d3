//! Bytes in both directions between two connections, for as long as some come.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::time::{Instant, sleep_until};

/// What is held of each direction.
const CHUNK: usize = 16 * 1024;

/// When something last happened.
#[derive(Debug)]
pub struct Progress(Mutex<Instant>);

impl Default for Progress {
    fn default() -> Self {
        Self(Mutex::new(Instant::now()))
    }
}

impl Progress {
    /// Something happens now.
    pub fn touch(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Returns when nothing has happened for `limit`.
    pub async fn stalled(&self, limit: Duration) {
        loop {
            let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let until = last + limit;
            if Instant::now() >= until {
                return;
            }
            sleep_until(until).await;
        }
    }
}

/// Carries bytes between `a` and `b` until both have ended. The end of one direction is told to the other side, and the other
/// direction goes on.
///
/// # Errors
/// When a connection breaks, or with [`io::ErrorKind::TimedOut`] when nothing has come or gone for `idle`.
pub async fn relay(a: impl AsyncRead + AsyncWrite, b: impl AsyncRead + AsyncWrite, idle: Duration) -> io::Result<()> {
    let progress = Progress::default();
    let ((mut from_a, mut to_a), (mut from_b, mut to_b)) = (split(a), split(b));
    let both = async {
        let (there, back) = (carry(&mut from_a, &mut to_b, &progress), carry(&mut from_b, &mut to_a, &progress));
        tokio::try_join!(there, back).map(|_| ())
    };
    tokio::select! {
        done = both => done,
        () = progress.stalled(idle) => {
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("nothing came or went for {} s", idle.as_secs())))
        }
    }
}

async fn carry(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    progress: &Progress,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let length = from.read(&mut buffer).await?;
        progress.touch();
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(buffer.get(..length).unwrap_or_default()).await?;
        to.flush().await?;
        progress.touch();
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::time::sleep;

    use super::relay;

    const IDLE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn one_direction_goes_on_when_the_other_has_ended() {
        let ((mut client, a), (b, mut server)) = (duplex(8), duplex(8));
        let relayed = tokio::spawn(relay(a, b, IDLE));
        let serving = async {
            let mut asked = String::new();
            server.read_to_string(&mut asked).await.unwrap();
            server.write_all(format!("{asked}, {asked}").as_bytes()).await.unwrap();
            server.shutdown().await.unwrap();
        };
        let asking = async {
            client.write_all(b"a longer question").await.unwrap();
            client.shutdown().await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let ((), answer) = tokio::join!(serving, asking);
        assert_eq!(answer, "a longer question, a longer question");
        relayed.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_it_and_a_trickle_does_not() {
        let ((mut client, a), (b, mut server)) = (duplex(8), duplex(8));
        let relayed = tokio::spawn(relay(a, b, IDLE));
        for _ in 0..5 {
            sleep(IDLE - Duration::from_secs(1)).await;
            client.write_all(b"x").await.unwrap();
            server.read_u8().await.unwrap();
        }
        assert_eq!(relayed.await.unwrap().unwrap_err().kind(), ErrorKind::TimedOut);
    }
}
