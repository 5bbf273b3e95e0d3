//! What must hold for any bytes that a sandbox sends. `fuzz/` looks for bytes for which it does not; the tests go over what it
//! found once, and over changes of it, always the same ones.

use http::{Request, request::Parts};
use longhand_protocol::egress::{PLACEHOLDER_PREFIX, Seed};

use crate::{
    config::Network,
    egress::{
        decide::decide,
        head::{self, Ask},
        hello::{self, Hello, MAX_LENGTH},
    },
    intercept::placeholder::{Scan, find, is_hidden_in, percent_decode},
    policy::{Host, Scheme},
};

/// The head of a request: a host that is let through is said once, in one form, and is no address in disguise.
pub fn head(bytes: &[u8]) {
    let Some(parts) = request(bytes) else { return };
    let (scheme, host, port) = match head::read(&parts) {
        Ok(Ask::Tunnel { host, port }) => (Scheme::Https, host, port),
        Ok(Ask::Plain { host, port }) => (Scheme::Http, host, port),
        Ok(Ask::Certificate) | Err(_) => return,
    };
    assert_eq!(Host::parse(host.as_str()).as_ref(), Ok(&host), "a host has one form");
    assert!(!host.is_disguised_address() && port != 0);
    let plain = |byte: u8| byte.is_ascii_graphic() && !byte.is_ascii_uppercase() && !b"/\\@?#%*".contains(&byte);
    assert!(host.as_str().bytes().all(plain), "{host} can be read in two ways");
    for said in parts.headers.get_all("host") {
        let said = String::from_utf8_lossy(said.as_bytes()).to_ascii_lowercase();
        let said = said.trim_start_matches('[');
        assert!(host.address().is_some() || said.starts_with(host.as_str()), "{said} is not {host}");
    }
    assert!(decide(&Network::default(), &[], scheme, &host, port).is_err(), "nothing is open by default");
    let open = Network { unrestricted: true, hosts: Vec::new() };
    assert_eq!(decide(&open, &[], scheme, &host, port).is_ok(), host.is_name(), "an address has to be named");
}

/// Lines as a head, as far as the types of HTTP take them.
fn request(bytes: &[u8]) -> Option<Parts> {
    let mut lines = bytes.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let mut words = lines.next()?.split(|byte| *byte == b' ');
    let mut request = Request::builder().method(words.next()?).uri(words.next()?);
    for line in lines.take(32) {
        let colon = line.iter().position(|byte| *byte == b':')?;
        request = request.header(&line[..colon], line[colon + 1..].trim_ascii());
    }
    Some(request.body(()).ok()?.into_parts().0)
}

/// The ClientHello: it is judged the same however much of it has come.
pub fn hello(bytes: &[u8]) {
    let whole = hello::parse(bytes);
    // Every beginning of a short one, and some of a long one.
    let step = bytes.len() / 64 + 1;
    for length in (0..bytes.len()).step_by(step) {
        let begun = hello::parse(&bytes[..length]);
        assert!(begun == Ok(Hello::Partial) || begun == whole, "{begun:?} after {length} bytes, {whole:?} after all");
    }
    match &whole {
        Ok(Hello::Partial) => assert!(bytes.len() <= MAX_LENGTH, "it does not end"),
        Ok(Hello::Complete { .. }) => {
            assert_eq!(hello::parse(&[bytes, b"more"].concat()), whole, "what follows changes it");
        }
        Err(_) => {}
    }
}

/// Placeholders: one that is there is found, wherever it is, as it is or encoded, and however a stream is cut.
pub fn placeholder(bytes: &[u8]) {
    let found = find(bytes);
    let mut end = 0;
    for one in &found {
        assert!(one.range.start >= end && one.range.end <= bytes.len(), "they overlap");
        assert!(bytes[one.range.clone()].starts_with(PLACEHOLDER_PREFIX.as_bytes()));
        end = one.range.end;
    }
    _ = is_hidden_in(bytes);
    assert!(percent_decode(bytes).len() <= bytes.len());

    let (cut, rest) = bytes.split_at(bytes.len() / 2);
    let size = usize::from(bytes.first().copied().unwrap_or_default() % 60) + 1;
    let real = Seed::from([7; 32]).placeholder("vault", "name");
    let with = [cut, real.as_bytes(), rest].concat();
    assert!(!find(&with).is_empty(), "a placeholder is not found");
    let mut scan = Scan::default();
    assert!(with.chunks(size).any(|piece| scan.feed(piece)), "a placeholder in pieces of {size} bytes is not found");
    let encoded: Vec<u8> = real.bytes().flat_map(|byte| format!("%{byte:02X}").into_bytes()).collect();
    assert!(is_hidden_in(&[cut, &encoded, rest].concat()) || !find(cut).is_empty() || !find(rest).is_empty());
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
    use rstest::rstest;

    use super::{head, hello, placeholder};

    const ROUNDS: usize = 5_000;

    /// What fuzzing began with and what it found.
    fn corpus(target: &str) -> Vec<Vec<u8>> {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let mut files: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files.into_iter().map(|file| fs::read(file).unwrap()).collect()
    }

    /// Some bytes changed, cut, doubled or taken from another one.
    fn changed(corpus: &[Vec<u8>], random: &mut StdRng) -> Vec<u8> {
        let mut bytes = corpus[random.random_range(0..corpus.len())].clone();
        for _ in 0..random.random_range(1..6) {
            let at = random.random_range(0..=bytes.len());
            match random.random_range(0..5) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, random.random()),
                2 if at < bytes.len() => bytes[at] = random.random(),
                3 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
                _ => {
                    let other = &corpus[random.random_range(0..corpus.len())];
                    let from = random.random_range(0..=other.len());
                    let to = other.len().min(from + random.random_range(0..64));
                    bytes.splice(at..at, other[from..to].iter().copied());
                }
            }
        }
        bytes
    }

    #[rstest]
    #[case("head", head)]
    #[case("hello", hello)]
    #[case("placeholder", placeholder)]
    fn what_must_hold_holds_for_the_corpus_and_its_changes(#[case] target: &str, #[case] check: fn(&[u8])) {
        let corpus = corpus(target);
        corpus.iter().for_each(|bytes| check(bytes));
        let mut random = StdRng::seed_from_u64(7);
        for _ in 0..ROUNDS {
            check(&changed(&corpus, &mut random));
        }
    }
}
