//! The tool `recall`: the model looks things up in its session's own log.

use std::time::Duration;

use jiff::Timestamp;
use longhand_protocol::EventId;
use longhand_protocol::event::{EventBody, Record};
use longhand_protocol::fields::{Fields, InvalidField};
use longhand_protocol::harness::RECALL;
use longhand_protocol::wire::Order;
use longhand_session_log::store::{FinishFrom, Query};
use serde_json::Value;
use tokio::time::Instant;

use super::ExecuteError;
use super::plan;
use super::run::{Call, Labelled};

/// The longest output, in bytes.
const OUTPUT: usize = 50 * 1024;
/// What is shown of an entry among others, in bytes.
const EXCERPT: usize = 2 * 1024;
const ENTRIES: i64 = 20;
const MOST_ENTRIES: i64 = 100;
const MOST_TYPES: usize = 20;
/// Records that are read at once.
const PAGE: usize = 500;
/// A search ends after so many slices of the log or so much time, and says how far it has come.
const SLICES: usize = 40;
const TIME: Duration = Duration::from_secs(10);

/// What is looked at unless types are named: what was said and done.
const TYPES: [&str; 4] = ["user.*", "agent.*", "system.message", "session.error"];

/// The extensions that are shown; the others hold what is private, such as the model's thoughts.
const SHOWN: [&str; 3] = ["x.sandbox.", "x.session.", "x.tool."];

/// What the model asks for.
#[derive(Clone, Debug, PartialEq)]
struct Ask {
    /// In lower case.
    query: Option<String>,
    types: Vec<String>,
    after: u64,
    before: Option<u64>,
    limit: usize,
}

impl Ask {
    fn read(input: &Value) -> Result<Self, InvalidField> {
        let mut fields = Fields::of("", input.clone())?;
        let number = |number: Option<i64>| number.map(|number| u64::try_from(number).unwrap_or_default());
        let query = fields.optional_text("query")?.filter(|query| !query.is_empty());
        let mut types = Vec::new();
        for kind in fields.optional_list("types", MOST_TYPES)?.unwrap_or_default() {
            match kind {
                Value::String(kind) => types.push(kind),
                _ => return Err(fields.wrong("types", "must be a list of strings")),
            }
        }
        let ask = Self {
            query: query.map(|query| query.to_lowercase()),
            types: if types.is_empty() { TYPES.map(ToOwned::to_owned).to_vec() } else { types },
            after: number(fields.optional_number("after", 0..=i64::MAX)?).unwrap_or_default(),
            before: number(fields.optional_number("before", 1..=i64::MAX)?),
            limit: fields.optional_number("limit", 1..=MOST_ENTRIES)?.unwrap_or(ENTRIES).try_into().unwrap_or(1),
        };
        fields.end()?;
        Ok(ask)
    }
}

/// An entry that was asked for.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    seq: u64,
    head: String,
    text: String,
    /// Where in the text the match begins.
    at: usize,
    /// The call that it is the result of.
    answers: Option<EventId>,
}

/// What was found so far, the newest first.
#[derive(Debug)]
struct Search<'a> {
    ask: &'a Ask,
    entries: Vec<Entry>,
    /// The last record that was looked at.
    at: Option<u64>,
}

impl<'a> Search<'a> {
    const fn new(ask: &'a Ask) -> Self {
        Self { ask, entries: Vec::new(), at: None }
    }

    fn is_full(&self) -> bool {
        self.entries.len() >= self.ask.limit
    }

    /// Takes the next older record.
    fn take(&mut self, record: &Record) {
        self.at = Some(record.seq);
        let body = &record.event.body;
        if let EventBody::AgentToolUse { name, .. } = body
            && name == RECALL
        {
            // Earlier searches would find themselves.
            self.entries.retain(|entry| entry.answers.as_ref() != Some(&record.event.id));
            return;
        }
        let Some(text) = text(body) else { return };
        let at = match &self.ask.query {
            None => Some(0),
            // Lower case may be longer or shorter; then the match is near.
            Some(query) => text.to_lowercase().find(query.as_str()),
        };
        let Some(at) = at else { return };
        let time = record.event.processed_at.as_ref().map(Timestamp::to_string).unwrap_or_default();
        let head = format!("#{} {} {time}", record.seq, body.kind());
        let answers = match body {
            EventBody::AgentToolResult { tool_use_id, .. } => Some(tool_use_id.clone()),
            _ => None,
        };
        self.entries.push(Entry { seq: record.seq, head, text, at, answers });
    }

    /// What the model reads; `whole` says that the log has no older record of the range that was asked for.
    fn show(&self, whole: bool) -> String {
        let most = if self.entries.len() == 1 { OUTPUT } else { EXCERPT };
        let mut shown = String::new();
        let mut next = None;
        for entry in &self.entries {
            let text = format!("{}\n{}\n\n", entry.head, excerpt(&entry.text, entry.at, most));
            if shown.len() + text.len() > OUTPUT + EXCERPT {
                break;
            }
            shown.push_str(&text);
            next = Some(entry.seq);
        }
        let count = self.entries.iter().take_while(|entry| next.is_some_and(|next| entry.seq >= next)).count();
        let left = self.entries.len() - count;
        let from = if left > 0 { next } else { self.at };
        let tail = match from {
            Some(from) if left > 0 || !whole => format!("There may be more: go on with \"before\": {from}."),
            _ if count == 0 => "Nothing was found.".to_owned(),
            _ => "There is no more.".to_owned(),
        };
        format!("{shown}{tail}")
    }
}

/// A part of a text around a place in it.
fn excerpt(text: &str, at: usize, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let begin = at.saturating_sub(most / 4).min(text.len() - most);
    let (begin, end) = (text.ceil_char_boundary(begin), text.floor_char_boundary(begin + most));
    let (before, after) = (begin, text.len() - end);
    let part = text.get(begin..end).unwrap_or_default();
    format!("[{before} bytes before]{part}[{after} bytes after]")
}

/// What an event says; nothing of those that are of no use to the model, or that are private.
fn text(body: &EventBody) -> Option<String> {
    Some(match body {
        EventBody::UserMessage { content }
        | EventBody::SystemMessage { content }
        | EventBody::AgentMessage { content } => blocks(content),
        EventBody::AgentToolUse { name, input, .. } | EventBody::AgentCustomToolUse { name, input } => {
            format!("{name} {input}")
        }
        EventBody::AgentToolResult { content, .. }
        | EventBody::UserToolResult { content, .. }
        | EventBody::UserCustomToolResult { content, .. } => blocks(content.as_deref().unwrap_or_default()),
        EventBody::AgentThinking {} => return None,
        other if other.is_extension() && !SHOWN.iter().any(|family| other.kind().starts_with(family)) => return None,
        other => serde_json::to_string(other).ok()?,
    })
}

fn blocks(content: &[Value]) -> String {
    let parts = content.iter().map(|block| match block["text"].as_str() {
        Some(text) => text.to_owned(),
        None => format!("[{}]", block["type"].as_str().unwrap_or("block")),
    });
    parts.collect::<Vec<_>>().join("\n")
}

impl Call<'_> {
    /// Answers a call whose intent is this record of the log.
    pub(super) async fn recall(&self, input: &Value, seq: u64) -> Result<Labelled, ExecuteError> {
        let (text, is_error) = match Ask::read(input) {
            Ok(ask) => (self.look_up(&ask, seq).await?, false),
            Err(error) => (format!("The input is not understood: {error}."), true),
        };
        self.finish("recall", FinishFrom::Open, vec![plan::result(&self.call, text, is_error)]).await
    }

    async fn look_up(&self, ask: &Ask, seq: u64) -> Result<String, ExecuteError> {
        let until = Instant::now() + TIME;
        let before = ask.before.map_or(seq, |before| before.min(seq));
        let mut query = Query {
            after: ask.after,
            before: Some(before),
            order: Order::Desc,
            types: ask.types.clone(),
            ..Query::last(PAGE)
        };
        let mut search = Search::new(ask);
        for _ in 0..SLICES {
            let slice = self.executor.store.slice(&self.session, &query).await?;
            for record in &slice.records {
                if search.is_full() {
                    return Ok(search.show(false));
                }
                search.take(record);
            }
            let Some(next) = slice.next else { return Ok(search.show(true)) };
            search.at = Some(next);
            if search.is_full() || Instant::now() >= until {
                break;
            }
            query = query.from(next);
        }
        Ok(search.show(false))
    }
}

#[cfg(test)]
#[path = "recall_tests.rs"]
mod tests;
