use proptest::prelude::*;
use rstest::rstest;

use super::{Capture, HEAD, MAX_FILE, Scratch, Sink, TAIL, Window, older, without_cut_end, without_cut_start};

fn scratch() -> (tempfile::TempDir, Scratch) {
    let parent = tempfile::tempdir().unwrap();
    let scratch = Scratch::new(parent.path()).unwrap();
    (parent, scratch)
}

fn path_in(text: &str) -> std::path::PathBuf {
    let start = text.find("is in ").or_else(|| text.find("are in ").map(|at| at + 1)).unwrap() + 6;
    text[start..start + text[start..].find(" ...]").unwrap()].into()
}

#[tokio::test]
async fn what_fits_is_shown_whole() {
    let (_parent, scratch) = scratch();
    let mut capture = Capture::new(&scratch);
    let text = "é".repeat((HEAD + TAIL) / 2);
    for chunk in text.as_bytes().chunks(777) {
        capture.push(chunk).await;
    }
    let shown = capture.finish().await;
    assert_eq!((shown.text, shown.truncated), (text, false));
}

#[tokio::test]
async fn one_byte_more_is_cut_in_the_middle_and_kept_in_a_file() {
    let (_parent, scratch) = scratch();
    let mut capture = Capture::new(&scratch);
    let text = format!("A{}Z", "x".repeat(HEAD + TAIL - 1));
    for chunk in text.as_bytes().chunks(4096) {
        capture.push(chunk).await;
    }
    let shown = capture.finish().await;
    assert!(shown.truncated);
    assert!(shown.text.starts_with("Ax") && shown.text.ends_with("xZ"));
    assert!(shown.text.contains("[... 1 bytes left out; the whole output is in "), "{}", &shown.text[HEAD..HEAD + 200]);
    assert_eq!(std::fs::read_to_string(path_in(&shown.text)).unwrap(), text);
}

#[tokio::test]
async fn the_file_is_bounded() {
    let (_parent, scratch) = scratch();
    let mut capture = Capture::new(&scratch);
    let chunk = vec![b'x'; 1024 * 1024];
    for _ in 0..18 {
        capture.push(&chunk).await;
    }
    let shown = capture.finish().await;
    assert!(shown.text.contains("the first 16 MiB of the output are in "));
    assert!(shown.text.len() < HEAD + TAIL + 500);
    assert_eq!(std::fs::metadata(path_in(&shown.text)).unwrap().len(), MAX_FILE as u64);
}

#[tokio::test]
async fn a_file_that_cannot_be_written_is_said_and_not_fatal() {
    let (parent, scratch) = scratch();
    std::fs::remove_dir_all(parent.path()).unwrap();
    let mut capture = Capture::new(&scratch);
    capture.push(&vec![b'x'; HEAD + TAIL + 5]).await;
    let shown = capture.finish().await;
    assert!(shown.text.contains("[... 5 bytes left out; they could not be kept: "));
}

#[tokio::test]
async fn background_output_goes_on_in_the_file() {
    let (_parent, scratch) = scratch();
    let mut capture = Capture::new(&scratch);
    capture.push(b"before\n").await;
    let (shown, sink) = capture.continue_in_file().await;
    assert_eq!((shown.text.as_str(), shown.truncated), ("before\n", false));
    let mut sink = sink.unwrap();
    sink.push(b"after\n").await;
    assert_eq!(std::fs::read_to_string(sink.path()).unwrap(), "before\nafter\n");
}

#[tokio::test]
async fn a_rotating_file_keeps_the_newest_and_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1.log");
    let mut sink = Sink::rotating(path.clone()).await.unwrap();
    for letter in b'a'..=b'z' {
        sink.push(&vec![letter; 1024 * 1024]).await;
    }
    let (old, new) = (std::fs::read(older(&path)).unwrap(), std::fs::read(&path).unwrap());
    assert_eq!((old.len(), new.len()), (MAX_FILE / 2, 2 * 1024 * 1024));
    assert_eq!((old[0], old.last(), new[0], new.last()), (b'q', Some(&b'x'), b'y', Some(&b'z')));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[rstest]
#[case(b"abc", b"abc")]
#[case("aé".as_bytes(), "aé".as_bytes())]
#[case(b"a\xC3", b"a")]
#[case(b"a\xF0\x9F\x98", b"a")]
#[case(b"a\xFF", b"a\xFF")]
#[case(b"", b"")]
#[case(b"\x80\x80\x80\x80", b"\x80\x80\x80\x80")]
fn a_cut_character_at_the_end_goes(#[case] bytes: &[u8], #[case] expected: &[u8]) {
    assert_eq!(without_cut_end(bytes), expected);
}

#[rstest]
#[case(b"abc", b"abc")]
#[case(b"\xA9bc", b"bc")]
#[case(b"\x9F\x98\x80bc", b"bc")]
#[case(b"", b"")]
fn a_cut_character_at_the_start_goes(#[case] bytes: &[u8], #[case] expected: &[u8]) {
    assert_eq!(without_cut_start(bytes), expected);
}

proptest! {
    #[test]
    fn a_window_holds_both_ends(chunks in prop::collection::vec(0..70_000usize, 0..8)) {
        let mut window = Window::default();
        let mut all = Vec::new();
        for (n, length) in chunks.into_iter().enumerate() {
            let chunk: Vec<u8> = (0..length).map(|i| u8::try_from((i * 7 + n) % 251).unwrap()).collect();
            window.push(&chunk);
            all.extend(chunk);
        }
        let tail: Vec<u8> = window.tail.iter().copied().collect();
        prop_assert!(window.head.len() <= HEAD && tail.len() <= TAIL);
        prop_assert!(all.starts_with(&window.head) && all.ends_with(&tail));
        prop_assert_eq!(window.left_out(), (all.len() - window.head.len() - tail.len()) as u64);
        prop_assert!(all.len() > HEAD + TAIL || window.left_out() == 0);
    }
}
