//! The body of an upload: `multipart/form-data` with a part `file`, which is handed on as it comes.

use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use bytes::Bytes;
use futures::stream::{self, BoxStream, Stream, StreamExt as _};
use http::{HeaderMap, header};
use jiff::SignedDuration;
use multer::{Field, Multipart};
use tokio::time::timeout;

use crate::api::error::{ApiError, Result};
use crate::api::extract::shortened;

/// The next piece has to come within this time.
const STALL: Duration = Duration::from_secs(60);
/// What may come before the headers of a part, or a piece of its content, come to an end: the reader of a form holds all of
/// it, and looks through it at each piece of the body.
const MOST_HELD: usize = 64 * 1024;
/// As the reference has it.
const LONGEST_NAME: usize = 500;
const LONGEST_TYPE: usize = 255;
const UNNAMED: &str = "unnamed";
const EXPIRY: &str = "expires_in_seconds";
/// From an hour to ninety days, as the reference has it.
const SECONDS: RangeInclusive<i64> = 3_600..=7_776_000;
const LONGEST_NUMBER: usize = 20;
const UNKNOWN_TYPE: &str = "application/octet-stream";

/// An upload whose content is still to come.
pub(super) struct Upload {
    pub(super) filename: String,
    pub(super) mime_type: String,
    pub(super) expires_in: Option<SignedDuration>,
    /// It ends without an error if the body was whole and had nothing but the file.
    pub(super) content: BoxStream<'static, Result<Bytes>>,
}

impl Upload {
    /// Reads as far as the content.
    pub(super) async fn begin(headers: &HeaderMap, body: Body) -> Result<Self> {
        let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let boundary = multer::parse_boundary(kind).map_err(|_| {
            ApiError::bad_request(
                "the body is not multipart/form-data with a boundary: a file is uploaded as its part `file`",
            )
        })?;
        let mut form = Form::new(body, boundary);
        let mut expires_in = None;
        let field = loop {
            let Some(field) = form.field().await? else {
                return Err(ApiError::bad_request("the body has no part `file`"));
            };
            match field.name() {
                Some("file") => break field,
                Some(EXPIRY) if expires_in.is_none() => expires_in = Some(expiry(&form, field).await?),
                _ => return Err(foreign(&field)),
            }
        };
        let filename = name(field.file_name().unwrap_or_default())?;
        let mime_type = field.content_type().map_or_else(|| UNKNOWN_TYPE.to_owned(), ToString::to_string);
        if mime_type.len() > LONGEST_TYPE {
            return Err(ApiError::bad_request(format!("`file`: its type is longer than {LONGEST_TYPE} bytes")));
        }
        let content = stream::try_unfold((form, Some(field)), |(form, field)| async move {
            let Some(field) = field else { return Ok(None) };
            form.next(field).await
        });
        Ok(Self { filename, mime_type, expires_in, content: content.boxed() })
    }
}

type Rest = (Form, Option<Field<'static>>);

/// What is left of a form.
struct Form {
    parts: Multipart<'static>,
    /// The bytes that its reader was given since it last gave something back.
    held: Arc<AtomicUsize>,
}

impl Form {
    fn new(body: Body, boundary: String) -> Self {
        let held = Arc::new(AtomicUsize::new(0));
        let body = Paced { body: body.into_data_stream(), given: false, held: Arc::clone(&held) };
        Self { parts: Multipart::new(body, boundary), held }
    }

    /// The next part.
    async fn field(&mut self) -> Result<Option<Field<'static>>> {
        within(self.parts.next_field()).await.inspect(|_| self.held.store(0, Ordering::Relaxed))
    }

    /// The next piece of a part.
    async fn piece(&self, field: &mut Field<'static>) -> Result<Option<Bytes>> {
        within(field.chunk()).await.inspect(|_| self.held.store(0, Ordering::Relaxed))
    }

    /// The next piece of the file. After its end, nothing else may come.
    async fn next(mut self, mut field: Field<'static>) -> Result<Option<(Bytes, Rest)>> {
        if let Some(piece) = self.piece(&mut field).await? {
            return Ok(Some((piece, (self, Some(field)))));
        }
        drop(field);
        match self.field().await? {
            None => Ok(None),
            Some(other) => Err(foreign(&other)),
        }
    }
}

async fn within<T>(next: impl Future<Output = multer::Result<T>>) -> Result<T> {
    let reason = match timeout(STALL, next).await {
        Ok(Ok(next)) => return Ok(next),
        // The body says why.
        Ok(Err(multer::Error::StreamReadFailed(reason))) => reason.to_string(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => return Err(ApiError::slow_body(STALL)),
    };
    Err(ApiError::bad_request(format!("the body could not be read as multipart/form-data: {reason}")))
}

fn foreign(field: &Field<'_>) -> ApiError {
    let name = shortened(field.name().unwrap_or_default());
    ApiError::bad_request(format!(
        "the body has a part `{name}`: it has to be `file` alone, or with `{EXPIRY}` before it"
    ))
}

/// For how long a file is kept.
async fn expiry(form: &Form, mut field: Field<'static>) -> Result<SignedDuration> {
    let mut text = Vec::new();
    while let Some(piece) = form.piece(&mut field).await? {
        text.extend_from_slice(&piece);
        if text.len() > LONGEST_NUMBER {
            break;
        }
    }
    let seconds = std::str::from_utf8(&text).ok().and_then(|text| text.parse::<i64>().ok());
    let seconds = seconds.filter(|seconds| SECONDS.contains(seconds));
    seconds.map(SignedDuration::from_secs).ok_or_else(|| {
        ApiError::bad_request(format!("`{EXPIRY}` is not a number from {} to {}", SECONDS.start(), SECONDS.end()))
    })
}

/// What a file is called: the last part of what its uploader calls it, as the reference has it.
fn name(given: &str) -> Result<String> {
    let name = given.rsplit(['/', '\\']).next().unwrap_or_default();
    if name.is_empty() {
        return Ok(UNNAMED.to_owned());
    }
    if name.chars().count() <= LONGEST_NAME && !name.chars().any(char::is_control) {
        return Ok(name.to_owned());
    }
    Err(ApiError::bad_request(format!(
        "`file`: its filename has more than {LONGEST_NAME} characters, or a control character"
    )))
}

/// A body of which one piece is taken at a time, and no more than its reader may hold: it takes all that there is, and would
/// hold all of it.
struct Paced {
    body: BodyDataStream,
    given: bool,
    held: Arc<AtomicUsize>,
}

impl Stream for Paced {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if std::mem::take(&mut self.given) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.held.load(Ordering::Relaxed) > MOST_HELD {
            let why = format!("a part's headers, or what comes before them, are longer than {MOST_HELD} bytes");
            return Poll::Ready(Some(Err(axum::Error::new(std::io::Error::other(why)))));
        }
        let piece = ready!(self.body.poll_next_unpin(context));
        self.given = piece.is_some();
        if let Some(Ok(piece)) = &piece {
            self.held.fetch_add(piece.len(), Ordering::Relaxed);
        }
        Poll::Ready(piece)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::body::Body;
    use bytes::Bytes;
    use futures::stream::{self, TryStreamExt as _};
    use http::{HeaderMap, HeaderValue, header};
    use jiff::SignedDuration;
    use rstest::rstest;

    use super::{MOST_HELD, Upload};

    const FORM: &str = "multipart/form-data; boundary=xyz";

    async fn begin(kind: &'static str, body: &str) -> Result<Upload, String> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        // One byte at a time: no place to break at is a special one.
        let pieces: Vec<_> = body.bytes().map(|byte| Ok::<_, std::io::Error>(Bytes::from(vec![byte]))).collect();
        let upload = Upload::begin(&headers, Body::from_stream(stream::iter(pieces))).await;
        upload.map_err(|error| error.to_string())
    }

    async fn read(kind: &'static str, body: &str) -> Result<(String, String, String), String> {
        let upload = begin(kind, body).await?;
        let content: Vec<Bytes> = upload.content.try_collect().await.map_err(|error| error.to_string())?;
        Ok((upload.filename, upload.mime_type, String::from_utf8(content.concat()).unwrap()))
    }

    fn part(disposition: &str, content: &str) -> String {
        format!(
            "--xyz\r\nContent-Disposition: form-data; {disposition}\r\nContent-Type: text/plain\r\n\r\n{content}\r\n"
        )
    }

    #[tokio::test]
    async fn a_file_is_read_to_its_end() {
        for content in ["", "one\r\n--xy\r\n--xtwo", "-"] {
            let body = part("name=\"file\"; filename=\"a b.txt\"", content) + "--xyz--\r\n";
            let expected = ("a b.txt".to_owned(), "text/plain".to_owned(), content.to_owned());
            assert_eq!(read(FORM, &body).await.unwrap(), expected);
        }
        let path = part("name=\"file\"; filename=\"../b/c.txt\"", "x") + "--xyz--\r\n";
        assert_eq!(read(FORM, &path).await.unwrap().0, "c.txt");
        let unnamed = part("name=\"file\"", "x") + "--xyz--\r\n";
        assert_eq!(read(FORM, &unnamed).await.unwrap().0, "unnamed");
        let lasting =
            part("name=\"expires_in_seconds\"", "3600") + &part("name=\"file\"; filename=\"a\"", "x") + "--xyz--\r\n";
        assert_eq!(begin(FORM, &lasting).await.unwrap().expires_in, Some(SignedDuration::from_hours(1)));
        assert_eq!(begin(FORM, &unnamed).await.unwrap().expires_in, None);
        let bare = "--xyz\r\nContent-Disposition: form-data; name=\"file\"; filename=\"u\"\r\n\r\nx\r\n--xyz--\r\n";
        assert_eq!(read(FORM, bare).await.unwrap().1, "application/octet-stream");
    }

    #[rstest]
    #[case("application/json", part("name=\"file\"; filename=\"a\"", "x") + "--xyz--\r\n", "multipart/form-data")]
    #[case(FORM, "--xyz--\r\n".to_owned(), "no part `file`")]
    #[case(FORM, part("name=\"purpose\"", "x") + "--xyz--\r\n", "`purpose`")]
    #[case(FORM, part("name=\"file\"; filename=\"a\"", "x") + &part("name=\"file\"; filename=\"b\"", "y") + "--xyz--\r\n", "a part `file`")]
    #[case(FORM, part("name=\"file\"; filename=\"a\"", "x"), "could not be read")]
    #[case(FORM, part("name=\"file\"; filename=\"a\"", "x") + &part("name=\"expires_in_seconds\"", "3600") + "--xyz--\r\n", "`expires_in_seconds` before it")]
    #[case(FORM, part("name=\"expires_in_seconds\"", "3599") + "--xyz--\r\n", "`expires_in_seconds`")]
    #[case(FORM, part("name=\"expires_in_seconds\"", "36000000000000000000000000") + "--xyz--\r\n", "`expires_in_seconds`")]
    #[case(FORM, part(&format!("name=\"file\"; filename=\"{}\"", "a".repeat(501)), "x") + "--xyz--\r\n", "filename")]
    #[tokio::test]
    async fn what_is_wrong_is_named(#[case] kind: &'static str, #[case] body: String, #[case] said: &str) {
        let error = read(kind, &body).await.unwrap_err();
        assert!(error.contains(said), "{error}");
    }

    /// The reader of a form holds what it has no end of.
    #[rstest]
    #[case::no_boundary("", "a")]
    #[case::nothing_after_the_boundary("--xyz", " ")]
    #[case::headers("--xyz\r\nContent-Disposition: form-data; name=\"file\"\r\n", "X-Some: header\r\n")]
    #[case::later_headers(
        "--xyz\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nx\r\n--xyz\r\n",
        "X-Some: header\r\n"
    )]
    #[tokio::test]
    async fn what_never_ends_is_not_held(#[case] head: &str, #[case] rest: &str) {
        const MANY: usize = 4 << 20;
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(FORM));
        let (taken, rest) = (Arc::new(AtomicUsize::new(0)), Bytes::from(rest.repeat(4_096 / rest.len())));
        let count = Arc::clone(&taken);
        let pieces = std::iter::once(Bytes::copy_from_slice(head.as_bytes()))
            .chain(std::iter::repeat_n(rest, MANY / 4_096))
            .inspect(move |piece| _ = count.fetch_add(piece.len(), Ordering::Relaxed))
            .map(Ok::<_, std::io::Error>);
        let outcome = match Upload::begin(&headers, Body::from_stream(stream::iter(pieces))).await {
            Ok(upload) => upload.content.try_collect::<Vec<_>>().await.map(drop),
            Err(error) => Err(error),
        };
        let error = outcome.unwrap_err();
        assert!(error.status() == 400 && error.to_string().contains("longer than 65536 bytes"), "{error}");
        let taken = taken.load(Ordering::Relaxed);
        assert!(taken <= MOST_HELD + 8_192 + head.len(), "{taken}");
    }

    /// What is long is the content, not what is around it.
    #[tokio::test]
    async fn a_long_file_in_large_pieces_is_read() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(FORM));
        let content = "0123456\r\n".repeat(300_000);
        let body = part("name=\"file\"; filename=\"a\"", &content) + "--xyz--\r\n";
        for size in [MOST_HELD / 4, MOST_HELD * 4] {
            let pieces: Vec<_> = body
                .as_bytes()
                .chunks(size)
                .map(|piece| Ok::<_, std::io::Error>(Bytes::copy_from_slice(piece)))
                .collect();
            let upload = Upload::begin(&headers, Body::from_stream(stream::iter(pieces))).await.unwrap();
            let read: Vec<Bytes> = upload.content.try_collect().await.unwrap();
            assert!(read.concat() == content.as_bytes());
        }
    }
}
