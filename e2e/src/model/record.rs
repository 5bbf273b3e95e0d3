//! What the server was sent, for tests to read. Bounded in number and size; the oldest go first.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use http::HeaderMap;
use serde::Serialize;
use serde_json::Value;

const MAX_RECORDS: usize = 1000;
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// One request and what became of it.
#[derive(Debug, Clone, Serialize)]
pub struct Record {
    /// Counts from 1 over the server's life.
    pub id: u64,
    /// When the request was complete, in milliseconds since 1970 with microseconds behind the point.
    pub received_unix_ms: f64,
    /// The request's path.
    pub path: String,
    /// Its headers; a credential is shown only as `matched`, `refused` or `present`.
    pub headers: BTreeMap<String, String>,
    /// Its body: JSON, or a string if it was none.
    pub body: Value,
    /// The index of the rule that answered.
    pub rule: Option<usize>,
    /// The status of the answer.
    pub status: u16,
    /// When the first token was sent.
    pub first_token_unix_ms: Option<f64>,
    /// When the answer ended.
    pub ended_unix_ms: Option<f64>,
    /// How it ended.
    pub outcome: Outcome,
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It has not.
    Open,
    /// The script's reply was sent to its end.
    Completed,
    /// The client went, or the server stopped.
    Aborted,
}

/// The answer of `GET /recorded`.
#[derive(Debug, Serialize)]
pub struct Recorded {
    /// The records, oldest first.
    pub requests: Vec<Record>,
    /// The identifier of the newest record, for the next `after`.
    pub last: u64,
    /// Records that were dropped to stay within the bounds.
    pub dropped: u64,
}

#[derive(Debug, Default)]
struct Ring {
    last: u64,
    dropped: u64,
    bytes: usize,
    records: VecDeque<(usize, Record)>,
}

/// The records of a server.
#[derive(Debug, Clone, Default)]
pub struct Recorder(Arc<Mutex<Ring>>);

/// A record whose answer is not over. Dropping it marks the answer as aborted.
#[derive(Debug)]
pub struct Open {
    recorder: Recorder,
    id: u64,
}

impl Recorder {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a request.
    #[must_use]
    pub fn open(&self, path: &str, headers: BTreeMap<String, String>, body: &[u8]) -> Open {
        let received_unix_ms = now();
        let body_json =
            serde_json::from_slice(body).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(body).into_owned()));
        let mut ring = self.ring();
        ring.last += 1;
        let id = ring.last;
        let record = Record {
            id,
            received_unix_ms,
            path: path.to_owned(),
            headers,
            body: body_json,
            rule: None,
            status: 0,
            first_token_unix_ms: None,
            ended_unix_ms: None,
            outcome: Outcome::Open,
        };
        ring.bytes += body.len();
        ring.records.push_back((body.len(), record));
        while ring.records.len() > MAX_RECORDS || ring.bytes > MAX_BYTES {
            let Some((size, _)) = ring.records.pop_front() else { break };
            ring.bytes -= size;
            ring.dropped += 1;
        }
        Open { recorder: self.clone(), id }
    }

    /// The records after an identifier.
    #[must_use]
    pub fn after(&self, id: u64) -> Recorded {
        let ring = self.ring();
        let requests = ring.records.iter().filter(|(_, record)| record.id > id).map(|(_, record)| record.clone());
        Recorded { requests: requests.collect(), last: ring.last, dropped: ring.dropped }
    }

    /// Forgets all records; identifiers go on.
    pub fn clear(&self) {
        let mut ring = self.ring();
        ring.records.clear();
        ring.bytes = 0;
        ring.dropped = 0;
    }

    fn update(&self, id: u64, change: impl FnOnce(&mut Record)) {
        if let Some((_, record)) = self.ring().records.iter_mut().find(|(_, record)| record.id == id) {
            change(record);
        }
    }
}

impl Open {
    /// Notes what was decided.
    pub fn decided(&self, rule: Option<usize>, status: u16) {
        self.recorder.update(self.id, |record| {
            record.rule = rule;
            record.status = status;
        });
    }

    /// Notes that a token is sent now; only the first counts.
    pub fn token(&self) {
        self.recorder.update(self.id, |record| {
            record.first_token_unix_ms.get_or_insert_with(now);
        });
    }

    /// Notes that the answer was sent to its end.
    pub fn completed(self) {
        self.end(Outcome::Completed);
    }

    fn end(&self, outcome: Outcome) {
        self.recorder.update(self.id, |record| {
            if record.outcome == Outcome::Open {
                record.outcome = outcome;
                record.ended_unix_ms = Some(now());
            }
        });
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.end(Outcome::Aborted);
    }
}

/// The headers of a request as they may be kept.
#[must_use]
pub fn kept_headers(headers: &HeaderMap, key_matches: bool) -> BTreeMap<String, String> {
    let mut kept = BTreeMap::new();
    for (name, value) in headers {
        let shown = match name.as_str() {
            "x-api-key" if key_matches => "matched".to_owned(),
            "authorization" if key_matches && !headers.contains_key("x-api-key") => "matched".to_owned(),
            "x-api-key" => "refused".to_owned(),
            "authorization" | "proxy-authorization" | "cookie" => "present".to_owned(),
            _ => String::from_utf8_lossy(value.as_bytes()).into_owned(),
        };
        kept.entry(name.as_str().to_owned())
            .and_modify(|all: &mut String| {
                all.push_str(", ");
                all.push_str(&shown);
            })
            .or_insert(shown);
    }
    kept
}

fn now() -> f64 {
    let micros = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    #[expect(clippy::cast_precision_loss, reason = "microseconds since 1970 fit a double's 53 bits until 2255")]
    let micros = micros as f64;
    micros / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_records_go_first() {
        let recorder = Recorder::default();
        for _ in 0..MAX_RECORDS + 2 {
            recorder.open("/v1/messages", BTreeMap::new(), b"{}").completed();
        }
        let recorded = recorder.after(0);
        assert_eq!((recorded.requests.len(), recorded.dropped, recorded.requests[0].id), (MAX_RECORDS, 2, 3));
        assert_eq!(recorder.after(recorded.last - 1).requests.len(), 1);
    }

    #[test]
    fn big_bodies_are_bounded_by_size() {
        let recorder = Recorder::default();
        let body = vec![b'a'; MAX_BYTES / 2];
        for _ in 0..3 {
            drop(recorder.open("/", BTreeMap::new(), &body));
        }
        assert_eq!((recorder.after(0).requests.len(), recorder.after(0).dropped), (2, 1));
    }

    #[test]
    fn dropping_is_aborting_and_clearing_forgets() {
        let recorder = Recorder::default();
        let open = recorder.open("/", BTreeMap::new(), b"no json");
        open.decided(Some(1), 200);
        open.token();
        drop(open);
        let record = recorder.after(0).requests.remove(0);
        assert_eq!((record.outcome, record.rule, record.status), (Outcome::Aborted, Some(1), 200));
        assert!(record.first_token_unix_ms.unwrap() >= record.received_unix_ms);
        assert_eq!(record.body, "no json");
        recorder.clear();
        assert_eq!((recorder.after(0).requests.len(), recorder.after(0).last), (0, 1));
    }

    #[test]
    fn keys_are_not_kept() {
        let mut headers = HeaderMap::new();
        headers.insert("x-api-key", "sk-secret".parse().unwrap());
        headers.insert("authorization", "Bearer sk-secret".parse().unwrap());
        headers.insert("anthropic-version", "2023-06-01".parse().unwrap());
        let kept = kept_headers(&headers, false);
        assert!(!format!("{kept:?}").contains("sk-secret"));
        assert_eq!((kept["x-api-key"].as_str(), kept["anthropic-version"].as_str()), ("refused", "2023-06-01"));
        assert_eq!(kept_headers(&headers, true)["x-api-key"], "matched");
    }
}
