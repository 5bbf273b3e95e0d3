//! ClientHellos of a real client, and what is nearly one.

use std::sync::Arc;

use proptest::prelude::*;
use rstest::rstest;
use rustls::{ClientConnection, RootCertStore, pki_types::ServerName};

use super::*;
use crate::upstream::tls_config_with;

/// What a real client sends first.
fn real(name: &str) -> Vec<u8> {
    let config = Arc::new(tls_config_with(RootCertStore::empty()).unwrap());
    let mut client = ClientConnection::new(config, ServerName::try_from(name.to_owned()).unwrap()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

fn vector(length_bytes: usize, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    [&length[length.len() - length_bytes..], content].concat()
}

fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &vector(2, content)].concat()
}

fn sni(names: &[(u8, &[u8])]) -> Vec<u8> {
    let list: Vec<u8> = names.iter().flat_map(|(kind, name)| [&[*kind][..], &vector(2, name)].concat()).collect();
    extension(0, &vector(2, &list))
}

/// The handshake message with these extensions.
fn message(extensions: &[u8]) -> Vec<u8> {
    let body = [
        &[3, 3][..],
        &[7; 32],
        &vector(1, &[1; 32]),
        &vector(2, &[0x13, 0x01]),
        &vector(1, &[0]),
        &vector(2, extensions),
    ]
    .concat();
    [&[1][..], &vector(3, &body)].concat()
}

fn record(payload: &[u8]) -> Vec<u8> {
    [&[22, 3, 1][..], &vector(2, payload)].concat()
}

fn name_of(bytes: &[u8]) -> Result<Option<String>, HelloError> {
    match parse(bytes)? {
        Hello::Complete { server_name } => Ok(server_name),
        Hello::Partial => panic!("partial"),
    }
}

fn problem(bytes: &[u8]) -> String {
    parse(bytes).unwrap_err().to_string()
}

#[test]
fn a_real_client_says_its_name() {
    let hello = real("api.example");
    assert_eq!(name_of(&hello), Ok(Some("api.example".to_owned())));
    assert_eq!(name_of(&[&hello[..], b"early data"].concat()), Ok(Some("api.example".to_owned())));
    assert_eq!(name_of(&real("9.9.9.9")), Ok(None));
}

#[test]
fn every_beginning_of_it_is_partial() {
    let hello = real("api.example");
    for length in 0..hello.len() {
        assert_eq!(parse(&hello[..length]), Ok(Hello::Partial), "{length} bytes");
    }
}

#[test]
fn a_message_may_come_in_several_records() {
    let message = message(&sni(&[(0, b"api.example")]));
    let records: Vec<u8> = message.chunks(7).flat_map(record).collect();
    assert_eq!(name_of(&records), Ok(Some("api.example".to_owned())));
}

#[rstest]
#[case::http(b"GET / HTTP/1.1\r\n", "is not TLS")]
#[case::ssh(b"SSH-2.0-x\r\n", "is not TLS")]
#[case::ssl2(&[0x80, 0x2e, 1, 3, 1], "is not TLS")]
#[case::old_record(&[22, 2, 0, 0, 1], "is not TLS")]
#[case::alert(&[21, 3, 3, 0, 2], "is not TLS")]
#[case::empty_record(&[22, 3, 1, 0, 0], "empty or too long")]
#[case::long_record(&[22, 3, 1, 0x40, 1], "empty or too long")]
#[case::server_hello(&[22, 3, 1, 0, 4, 2], "begins with another message")]
#[case::long_message(&[22, 3, 1, 0, 4, 1, 1, 0, 0], "longer than")]
fn what_is_no_hello(#[case] bytes: &[u8], #[case] expected: &str) {
    let problem = problem(bytes);
    assert!(problem.contains(expected), "{problem}");
}

#[rstest]
#[case::two_names(sni(&[(0, b"a.example"), (0, b"b.example")]), "left over")]
#[case::other_type(sni(&[(1, b"a.example")]), "unknown type")]
#[case::no_name(sni(&[]), "too early")]
#[case::not_text(sni(&[(0, b"\xff")]), "not text")]
#[case::twice([sni(&[(0, b"a.example")]), sni(&[(0, b"b.example")])].concat(), "there twice")]
#[case::ech([sni(&[(0, b"a.example")]), extension(0xfe0d, &[0])].concat(), "ECH")]
#[case::esni([sni(&[(0, b"a.example")]), extension(0xffce, &[0])].concat(), "ECH")]
#[case::cut(sni(&[(0, b"a.example")])[..12].to_vec(), "too early")]
#[case::many((0..200).flat_map(|kind| extension(1_000 + kind, &[])).collect::<Vec<_>>(), "too many")]
fn extensions_that_are_not_taken(#[case] extensions: Vec<u8>, #[case] expected: &str) {
    let problem = problem(&record(&message(&extensions)));
    assert!(problem.contains(expected), "{problem}");
}

#[test]
fn nothing_may_follow_in_the_same_record() {
    let two = [message(&sni(&[(0, b"a.example")])), message(&sni(&[(0, b"b.example")]))].concat();
    assert!(problem(&record(&two)).contains("another message"));
}

#[test]
fn it_may_have_no_extensions() {
    let mut message = message(&[]);
    message.truncate(message.len() - 2);
    message[3] -= 2;
    assert_eq!(name_of(&record(&message)), Ok(None));
}

proptest! {
    #[test]
    fn no_bytes_are_too_much(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        _ = parse(&bytes);
        _ = parse(&record(&bytes));
        _ = parse(&record(&message(&bytes)));
    }

    /// A changed hello is refused, or says what its bytes say.
    #[test]
    fn a_changed_hello_says_nothing_else(position: prop::sample::Index, value: u8) {
        let mut hello = record(&message(&sni(&[(0, b"api.example")])));
        let position = position.index(hello.len());
        hello[position] = value;
        if let Ok(Hello::Complete { server_name: Some(name) }) = parse(&hello) {
            prop_assert!(hello.windows(name.len()).any(|window| window == name.as_bytes()));
        }
    }
}
