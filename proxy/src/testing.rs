//! What the tests of both modes have in common: connections that are read and written as raw bytes, and patience that ends.

use std::time::Duration;

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// The credential's value in every test: it is in no answer.
pub(crate) const SECRET: &str = "sk-canary-7f3a9c";

/// One side of a connection.
pub(crate) struct Wire<S> {
    stream: S,
    read: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, read: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        within(self.stream.write_all(bytes.as_ref())).await.unwrap();
        within(self.stream.flush()).await.unwrap();
    }

    /// Reads until a text came, and takes all up to its end.
    pub(crate) async fn until(&mut self, text: &str) -> String {
        loop {
            if let Some(at) = self.read.windows(text.len()).position(|window| window == text.as_bytes()) {
                let taken = self.read.drain(..at + text.len()).collect();
                return String::from_utf8(taken).unwrap();
            }
            assert!(self.more().await, "ended before {text:?}, after {:?}", String::from_utf8_lossy(&self.read));
        }
    }

    /// Reads a head and a body of the length that it says, or only the head.
    pub(crate) async fn message(&mut self) -> String {
        let head = self.until("\r\n\r\n").await;
        let length = head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .map_or(0, |(_, length)| length.trim().parse::<usize>().unwrap());
        while self.read.len() < length {
            assert!(self.more().await, "ended in the middle of a body");
        }
        let body: Vec<u8> = self.read.drain(..length).collect();
        head + std::str::from_utf8(&body).unwrap()
    }

    /// The answer to the only request of a connection. The secret is in none.
    pub(crate) async fn answer(&mut self) -> String {
        let answer = self.message().await;
        assert!(!answer.contains(SECRET), "{answer}");
        answer
    }

    /// Reads so many bytes.
    pub(crate) async fn bytes(&mut self, count: usize) -> Vec<u8> {
        while self.read.len() < count {
            assert!(self.more().await, "ended after {} of {count} bytes", self.read.len());
        }
        self.read.drain(..count).collect()
    }

    /// Reads to the end of the connection what is no text.
    pub(crate) async fn raw_rest(&mut self) -> Vec<u8> {
        while self.more().await {}
        std::mem::take(&mut self.read)
    }

    /// Reads to the end of the connection, however it comes.
    pub(crate) async fn rest(&mut self) -> String {
        while self.more().await {}
        String::from_utf8(std::mem::take(&mut self.read)).unwrap()
    }

    async fn more(&mut self) -> bool {
        matches!(within(self.stream.read_buf(&mut self.read)).await, Ok(1..))
    }
}

pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    timeout(PATIENCE, future).await.expect("in time")
}
