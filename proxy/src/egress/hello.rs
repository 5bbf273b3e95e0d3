//! The first message of TLS: which name a client asks for. Pure, and strict: what could be read in two ways is refused.

const RECORD_HEADER: usize = 5;
const HANDSHAKE_RECORD: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
/// Encrypted Client Hello, and the draft before it.
const ENCRYPTED_HELLO: [u16; 2] = [0xfe0d, 0xffce];
const MAX_RECORD: usize = 16 * 1024;
/// What is read before a client has said which name it wants: real ones need 2 KiB at most.
pub const MAX_LENGTH: usize = 32 * 1024;

const MAX_EXTENSIONS: usize = 128;

/// What is known from the beginning of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// More bytes are needed.
    Partial,
    /// The whole message is there.
    Complete {
        /// The name that is asked for, as it was sent.
        server_name: Option<String>,
    },
}

/// Why the beginning of a connection is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// Something else than TLS.
    #[error("what was sent is not TLS: a tunnel carries TLS only, plain HTTP goes to the proxy without one")]
    NotTls,
    /// TLS that cannot be read, or in more than one way.
    #[error("the TLS ClientHello is malformed: {0}")]
    Malformed(&'static str),
    /// The real name is hidden.
    #[error("the TLS ClientHello is encrypted (ECH), so that the real server cannot be seen: turn ECH off")]
    Encrypted,
    /// More bytes than a ClientHello has.
    #[error("the TLS ClientHello is longer than {MAX_LENGTH} bytes")]
    TooLong,
}

/// Reads the ClientHello at the beginning of `bytes`, which may go on with what else the client sent.
///
/// # Errors
/// [`HelloError`], as soon as the bytes cannot become a ClientHello that is taken.
pub fn parse(bytes: &[u8]) -> Result<Hello, HelloError> {
    let partial = if bytes.len() > MAX_LENGTH { Err(HelloError::TooLong) } else { Ok(Hello::Partial) };
    let mut message = Vec::new();
    let mut rest = &bytes[..bytes.len().min(MAX_LENGTH)];
    loop {
        if let Some(length) = message_length(&message)?
            && message.len() >= length
        {
            if message.len() > length {
                return Err(HelloError::Malformed("another message follows in the same record"));
            }
            return read(&message).map(|server_name| Hello::Complete { server_name });
        }
        match rest {
            [kind, ..] if *kind != HANDSHAKE_RECORD => return Err(HelloError::NotTls),
            [_, major, ..] if *major != 3 => return Err(HelloError::NotTls),
            [_, _, _, high, low, ..] => {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                if length == 0 || length > MAX_RECORD {
                    return Err(HelloError::Malformed("a record is empty or too long"));
                }
                let Some(payload) = rest.get(RECORD_HEADER..RECORD_HEADER + length) else {
                    // What is there of it may be wrong already.
                    let mut begun = message;
                    begun.extend_from_slice(&rest[RECORD_HEADER..]);
                    message_length(&begun)?;
                    return partial;
                };
                message.extend_from_slice(payload);
                rest = &rest[RECORD_HEADER + length..];
            }
            _ => return partial,
        }
    }
}

/// The length of the message with its header, once that is there.
fn message_length(message: &[u8]) -> Result<Option<usize>, HelloError> {
    match message {
        [kind, ..] if *kind != CLIENT_HELLO => Err(HelloError::Malformed("it begins with another message")),
        [_, a, b, c, ..] => {
            let length = 4 + u32::from_be_bytes([0, *a, *b, *c]) as usize;
            if length > MAX_LENGTH { Err(HelloError::TooLong) } else { Ok(Some(length)) }
        }
        _ => Ok(None),
    }
}

/// The server name in a whole message.
fn read(message: &[u8]) -> Result<Option<String>, HelloError> {
    let mut hello = Reader(message);
    hello.take(4)?;
    let version = hello.u16()?;
    if version >> 8 != 3 {
        return Err(HelloError::Malformed("its version is none of TLS"));
    }
    hello.take(32)?;
    hello.vector8()?;
    hello.vector16()?;
    hello.vector8()?;
    if hello.0.is_empty() {
        return Ok(None);
    }
    let mut extensions = Reader(hello.vector16()?);
    hello.end()?;
    let (mut server_name, mut seen) = (None, Vec::new());
    while !extensions.0.is_empty() {
        let (kind, content) = (extensions.u16()?, extensions.vector16()?);
        if seen.len() == MAX_EXTENSIONS {
            return Err(HelloError::Malformed("it has too many extensions"));
        }
        if seen.contains(&kind) {
            return Err(HelloError::Malformed("an extension is there twice"));
        }
        seen.push(kind);
        if ENCRYPTED_HELLO.contains(&kind) {
            return Err(HelloError::Encrypted);
        }
        if kind == SERVER_NAME {
            server_name = Some(name(content)?);
        }
    }
    Ok(server_name)
}

/// The only name of the extension.
fn name(content: &[u8]) -> Result<String, HelloError> {
    let mut extension = Reader(content);
    let mut list = Reader(extension.vector16()?);
    extension.end()?;
    if list.take(1)? != [0] {
        return Err(HelloError::Malformed("the server name is of an unknown type"));
    }
    let name = list.vector16()?;
    list.end()?;
    let text = std::str::from_utf8(name).map_err(|_| HelloError::Malformed("the server name is not text"))?;
    Ok(text.to_owned())
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], HelloError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(HelloError::Malformed("it ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16, HelloError> {
        Ok(self.take(2)?.iter().fold(0, |number, byte| number << 8 | u16::from(*byte)))
    }

    fn vector8(&mut self) -> Result<&'a [u8], HelloError> {
        let length = self.take(1)?.iter().map(|byte| usize::from(*byte)).sum();
        self.take(length)
    }

    fn vector16(&mut self) -> Result<&'a [u8], HelloError> {
        let length = usize::from(self.u16()?);
        self.take(length)
    }

    fn end(&self) -> Result<(), HelloError> {
        if self.0.is_empty() { Ok(()) } else { Err(HelloError::Malformed("bytes are left over")) }
    }
}

#[cfg(test)]
#[path = "hello_tests.rs"]
mod tests;
