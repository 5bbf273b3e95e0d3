//! A connection to etcd that notes which reads go over it, and whether any member may answer them by itself.
//!
//! It reads HTTP/2 without encryption, and of that no more than the messages of requests.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A read of a key, or of a range that begins with it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Read {
    pub(crate) key: String,
    /// Any member may answer what it has.
    pub(crate) serializable: bool,
}

type Reads = Arc<Mutex<Vec<Read>>>;

/// Forwards to an address.
pub(crate) struct Tap {
    address: String,
    reads: Reads,
    task: JoinHandle<()>,
}

impl Tap {
    pub(crate) async fn on(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let reads = Reads::default();
        let shared = Arc::clone(&reads);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(forward(client, target.clone(), Arc::clone(&shared)));
            }
        });
        Self { address, reads, task }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The reads since it was last asked.
    pub(crate) fn take(&self) -> Vec<Read> {
        std::mem::take(&mut *self.reads.lock().unwrap())
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(client: TcpStream, target: String, reads: Reads) {
    let Ok(server) = TcpStream::connect(target).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = async move {
        let (mut frames, mut buffer) = (Frames::default(), vec![0; 65_536]);
        while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
            // Before it is answered.
            frames.take(&buffer[..count], &reads);
            if to_server.write_all(&buffer[..count]).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = up => {}
        _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
    }
}

const PREFACE: usize = 24;
const FRAME_HEADER: usize = 9;
const DATA: u8 = 0;
/// Whether it is compressed, and its length.
const MESSAGE_HEADER: usize = 5;

/// What a client has sent and that is not a whole frame or message yet.
#[derive(Default)]
struct Frames {
    begun: bool,
    rest: Vec<u8>,
    streams: HashMap<u32, Vec<u8>>,
}

impl Frames {
    fn take(&mut self, bytes: &[u8], reads: &Reads) {
        self.rest.extend_from_slice(bytes);
        if !self.begun && self.rest.len() >= PREFACE {
            self.rest.drain(..PREFACE);
            self.begun = true;
        }
        while self.begun && self.rest.len() >= FRAME_HEADER {
            let header = &self.rest[..FRAME_HEADER];
            let length = usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
            if self.rest.len() < FRAME_HEADER + length {
                return;
            }
            let (kind, stream) = (header[3], u32::from_be_bytes(header[5..9].try_into().unwrap()));
            let payload: Vec<u8> = self.rest.drain(..FRAME_HEADER + length).skip(FRAME_HEADER).collect();
            if kind == DATA {
                self.message(stream, &payload, reads);
            }
        }
    }

    fn message(&mut self, stream: u32, payload: &[u8], reads: &Reads) {
        let message = self.streams.entry(stream).or_default();
        message.extend_from_slice(payload);
        let Some(header) = message.first_chunk::<MESSAGE_HEADER>() else { return };
        let length = u32::from_be_bytes(header[1..].try_into().unwrap());
        if message.len() == MESSAGE_HEADER + usize::try_from(length).unwrap() {
            let message = self.streams.remove(&stream).unwrap();
            let message = &message[MESSAGE_HEADER..];
            let mut found = Vec::new();
            // By its key, which a transaction does not begin with.
            match fields(message).first() {
                Some((1, Field::Bytes(key))) if key.starts_with(b"/") => range(message, &mut found),
                _ => transaction(message, &mut found),
            }
            reads.lock().unwrap().extend(found);
        }
    }
}

/// `TxnRequest`: what is done if its guards hold, and if not.
fn transaction(message: &[u8], found: &mut Vec<Read>) {
    for (number, field) in fields(message) {
        let (2 | 3, Field::Bytes(operation)) = (number, field) else { continue };
        match fields(operation).first() {
            Some((1, Field::Bytes(request))) => range(request, found),
            Some((4, Field::Bytes(nested))) => transaction(nested, found),
            _ => {}
        }
    }
}

/// `RangeRequest`.
fn range(message: &[u8], found: &mut Vec<Read>) {
    let fields = fields(message);
    let Some((1, Field::Bytes(key))) = fields.first() else { return };
    let serializable = fields.iter().any(|field| matches!(field, (7, Field::Number(1))));
    found.push(Read { key: String::from_utf8_lossy(key).into_owned(), serializable });
}

#[derive(Debug)]
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message of protocol buffers; those before the first that is none.
fn fields(mut message: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut fields = Vec::new();
    while let Some(tag) = number(&mut message) {
        let field = match tag & 7 {
            0 => number(&mut message).map(Field::Number),
            2 => number(&mut message).and_then(|length| {
                let (bytes, rest) = message.split_at_checked(usize::try_from(length).ok()?)?;
                message = rest;
                Some(Field::Bytes(bytes))
            }),
            _ => None,
        };
        let Some(field) = field else { break };
        fields.push((tag >> 3, field));
    }
    fields
}

fn number(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..63).step_by(7) {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
