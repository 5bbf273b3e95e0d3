//! An answer of the Messages API, put together from its stream without losing anything.

use std::collections::HashSet;

use longhand_protocol::EventId;
use longhand_protocol::event::Usage;
use serde_json::{Map, Value, json};

use super::json::{self, is_too_deep};
use super::stream::{Frames, Progress, Size};
use super::{Failure, Reply, TextDelta};

/// An answer that is on its way.
#[derive(Clone, Debug, Default)]
pub struct Accumulator {
    blocks: Vec<Block>,
    texts: u32,
    size: Size,
    stop_reason: Option<String>,
    usage: Usage,
}

#[derive(Clone, Debug)]
struct Block {
    value: Value,
    partial_json: String,
    closed: bool,
    text_index: Option<u32>,
}

impl Frames for Accumulator {
    fn event(&mut self, data: &str) -> Result<Progress, Failure> {
        let frame = json::parse(data).map_err(|error| Failure::unreadable(&error))?;
        self.feed(&frame)
    }

    fn end(&mut self) -> Result<Reply, Failure> {
        Err(Failure::transport("The model API ended its answer in the middle."))
    }

    fn usage(&self) -> Usage {
        self.usage
    }
}

impl Accumulator {
    /// Takes in the data of one frame.
    ///
    /// # Errors
    /// When the model API says that it failed, or what it says makes no sense.
    pub fn feed(&mut self, frame: &Value) -> Result<Progress, Failure> {
        let index = || usize::try_from(frame["index"].as_u64().unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
        match frame["type"].as_str() {
            Some("message_start") => {
                self.count(&frame["message"]["usage"]);
                Ok(Progress::Quiet)
            }
            Some("content_block_start") => self.start(index(), &frame["content_block"]),
            Some("content_block_delta") => self.delta(index(), &frame["delta"]),
            Some("content_block_stop") => {
                self.block(index())?.closed = true;
                Ok(Progress::Quiet)
            }
            Some("message_delta") => {
                if let Some(reason) = frame["delta"]["stop_reason"].as_str() {
                    self.stop_reason = Some(word(reason));
                }
                self.count(&frame["usage"]);
                Ok(Progress::Quiet)
            }
            Some("message_stop") => self.finish().map(Progress::Done),
            Some("error") => Err(Failure::event(&frame["error"])),
            // `ping`, and what later versions add.
            _ => Ok(Progress::Quiet),
        }
    }

    /// Usage is cumulative: a field that is there replaces what was known.
    fn count(&mut self, usage: &Value) {
        let fields = [
            (&mut self.usage.input_tokens, "input_tokens"),
            (&mut self.usage.output_tokens, "output_tokens"),
            (&mut self.usage.cache_read_input_tokens, "cache_read_input_tokens"),
            (&mut self.usage.cache_creation_input_tokens, "cache_creation_input_tokens"),
        ];
        for (field, name) in fields {
            if let Some(tokens) = usage[name].as_u64() {
                *field = tokens;
            }
        }
    }

    fn block(&mut self, index: usize) -> Result<&mut Block, Failure> {
        self.blocks
            .get_mut(index)
            .ok_or_else(|| Failure::protocol("The model API went on with a content block that it had not begun."))
    }

    fn start(&mut self, index: usize, block: &Value) -> Result<Progress, Failure> {
        if index != self.blocks.len() || !block.is_object() {
            return Err(Failure::protocol("The model API began a content block out of order."));
        }
        if is_too_deep(block) {
            return Err(Failure::protocol("The model API sent a content block that is nested too deep."));
        }
        self.size.block()?;
        self.size.grow(block.to_string().len())?;
        let text = block["text"].as_str().unwrap_or_default().to_owned();
        self.blocks.push(Block { value: block.clone(), partial_json: String::new(), closed: false, text_index: None });
        if block["type"] == "text" { Ok(self.show(index, text)) } else { Ok(Progress::Quiet) }
    }

    fn delta(&mut self, index: usize, delta: &Value) -> Result<Progress, Failure> {
        let field = |name: &str| delta[name].as_str().unwrap_or_default();
        match delta["type"].as_str() {
            Some("text_delta") => {
                let text = field("text");
                self.extend(index, "text", text)?;
                Ok(self.show(index, text.to_owned()))
            }
            Some("input_json_delta") => {
                let json = field("partial_json");
                self.size.grow(json.len())?;
                self.block(index)?.partial_json.push_str(json);
                Ok(Progress::Quiet)
            }
            Some("thinking_delta") => {
                self.extend(index, "thinking", field("thinking"))?;
                Ok(Progress::Quiet)
            }
            Some("signature_delta") => {
                self.extend(index, "signature", field("signature"))?;
                Ok(Progress::Quiet)
            }
            Some("citations_delta") => {
                let citation = delta["citation"].clone();
                if is_too_deep(&citation) {
                    return Err(Failure::protocol("The model API sent a citation that is nested too deep."));
                }
                self.size.grow(citation.to_string().len())?;
                let block = &mut self.block(index)?.value;
                match block["citations"].as_array_mut() {
                    Some(citations) => citations.push(citation),
                    None => block["citations"] = Value::Array(vec![citation]),
                }
                Ok(Progress::Quiet)
            }
            Some("compaction_delta") => {
                // Both may be null, of a compaction that failed: the block stays as it began.
                for name in ["content", "encrypted_content"] {
                    if let Some(more) = delta[name].as_str() {
                        self.extend(index, name, more)?;
                    }
                }
                Ok(Progress::Quiet)
            }
            // A block that is sent back without a part of it would be refused, or mean something else.
            other => Err(Failure::protocol(format!(
                "The model API sent a `{}` that this harness does not know.",
                word(other.unwrap_or("delta without type"))
            ))),
        }
    }

    fn extend(&mut self, index: usize, field: &str, more: &str) -> Result<(), Failure> {
        self.size.grow(more.len())?;
        let block = &mut self.block(index)?.value;
        match &mut block[field] {
            Value::String(text) => text.push_str(more),
            empty => *empty = Value::String(more.to_owned()),
        }
        Ok(())
    }

    fn show(&mut self, index: usize, text: String) -> Progress {
        let Some(block) = self.blocks.get_mut(index).filter(|_| !text.is_empty()) else { return Progress::Quiet };
        let index = *block.text_index.get_or_insert_with(|| {
            self.texts += 1;
            self.texts - 1
        });
        Progress::Text(TextDelta { index, text })
    }

    fn finish(&mut self) -> Result<Reply, Failure> {
        let cut_off = matches!(self.stop_reason.as_deref(), Some("max_tokens" | "model_context_window_exceeded"));
        let last = self.blocks.len().saturating_sub(1);
        let mut incomplete = Vec::new();
        let mut ids = HashSet::new();
        let mut content = Vec::with_capacity(self.blocks.len());
        for (position, mut block) in std::mem::take(&mut self.blocks).into_iter().enumerate() {
            if block.value["type"] == "tool_use" {
                block.identify(&mut ids)?;
            }
            if block.value.get("input").is_some() {
                let maybe_cut = cut_off && position == last && block.partial_json.is_empty();
                if !block.take_input() || !block.closed || maybe_cut {
                    incomplete.extend(block.value["id"].as_str().map(ToOwned::to_owned));
                }
            }
            content.push(block.value);
        }
        Ok(Reply { content, stop_reason: self.stop_reason.take(), usage: self.usage, incomplete })
    }
}

impl Block {
    /// A call without identifier could never be answered, and of two with the same only one.
    fn identify(&mut self, ids: &mut HashSet<String>) -> Result<(), Failure> {
        let (Some(id), Some(_)) = (self.value["id"].as_str(), self.value["name"].as_str()) else {
            return Err(Failure::protocol("The model API sent a tool call without an identifier or a name."));
        };
        if !ids.insert(id.to_owned()) {
            self.value["id"] = json!(format!("call_{}", EventId::generate()));
        }
        Ok(())
    }

    /// Puts the input in its place; an input that cannot be read is sent back empty.
    fn take_input(&mut self) -> bool {
        if self.partial_json.is_empty() {
            return self.value["input"].is_object();
        }
        let input = read_input(&self.partial_json);
        let complete = input.is_some();
        self.value["input"] = Value::Object(input.unwrap_or_default());
        complete
    }
}

/// What may be shown of a foreign word.
fn word(text: &str) -> String {
    text.chars().take(100).collect()
}

/// The input of a tool call, if it is a JSON object that may run. What the model did not mean to write is not run.
pub(super) fn read_input(text: &str) -> Option<Map<String, Value>> {
    let input: Value = serde_json::from_str(text).ok()?;
    if is_too_deep(&input) {
        return None;
    }
    match input {
        Value::Object(fields) => Some(fields),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::{Accumulator, Progress};
    use crate::model::json::MAX_DEPTH;
    use crate::model::stream::MAX_BLOCKS;
    use crate::model::{Failure, Reply, TextDelta};

    fn feed(frames: &[Value]) -> Result<(Reply, Vec<TextDelta>), Failure> {
        let mut accumulator = Accumulator::default();
        let mut deltas = Vec::new();
        for frame in frames {
            match accumulator.feed(frame)? {
                Progress::Quiet => {}
                Progress::Text(delta) => deltas.push(delta),
                Progress::Done(reply) => return Ok((reply, deltas)),
            }
        }
        panic!("the answer has no end: {frames:?}")
    }

    fn start(index: u64, block: &Value) -> Value {
        json!({"type": "content_block_start", "index": index, "content_block": block})
    }

    fn delta(index: u64, delta: &Value) -> Value {
        json!({"type": "content_block_delta", "index": index, "delta": delta})
    }

    fn stop(index: u64) -> Value {
        json!({"type": "content_block_stop", "index": index})
    }

    fn end(reason: &str) -> [Value; 2] {
        [
            json!({"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 7}}),
            json!({"type": "message_stop"}),
        ]
    }

    #[test]
    fn every_block_is_kept_as_it_came() {
        let [message_delta, message_stop] = end("tool_use");
        let frames = [
            json!({"type": "message_start", "message": {"usage": {"input_tokens": 3, "cache_read_input_tokens": 2, "output_tokens": 1}}}),
            start(0, &json!({"type": "thinking", "thinking": "", "signature": ""})),
            json!({"type": "ping"}),
            delta(0, &json!({"type": "thinking_delta", "thinking": "hm"})),
            delta(0, &json!({"type": "signature_delta", "signature": "s1"})),
            stop(0),
            start(1, &json!({"type": "text", "text": ""})),
            stop(1),
            start(2, &json!({"type": "text", "text": ""})),
            delta(2, &json!({"type": "text_delta", "text": "a"})),
            delta(2, &json!({"type": "citations_delta", "citation": {"n": 1}})),
            delta(2, &json!({"type": "text_delta", "text": "b"})),
            stop(2),
            start(3, &json!({"type": "of_tomorrow", "field": {"x": 1}})),
            stop(3),
            start(4, &json!({"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {}})),
            delta(4, &json!({"type": "input_json_delta", "partial_json": ""})),
            delta(4, &json!({"type": "input_json_delta", "partial_json": "{\"command\": \"l"})),
            delta(4, &json!({"type": "input_json_delta", "partial_json": "s\"}"})),
            stop(4),
            message_delta,
            message_stop,
        ];
        let (reply, deltas) = feed(&frames).unwrap();
        assert_eq!(
            reply.content,
            [
                json!({"type": "thinking", "thinking": "hm", "signature": "s1"}),
                json!({"type": "text", "text": ""}),
                json!({"type": "text", "text": "ab", "citations": [{"n": 1}]}),
                json!({"type": "of_tomorrow", "field": {"x": 1}}),
                json!({"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {"command": "ls"}}),
            ]
        );
        let shown: Vec<_> = deltas.iter().map(|delta| (delta.index, delta.text.as_str())).collect();
        assert_eq!(shown, [(0, "a"), (0, "b")]);
        assert_eq!(
            (reply.usage.input_tokens, reply.usage.output_tokens, reply.usage.cache_read_input_tokens),
            (3, 7, 2)
        );
        assert!(reply.incomplete.is_empty());
    }

    #[rstest]
    #[case("max_tokens", "{\"command\": \"rm -r", false)]
    #[case("max_tokens", "", false)]
    #[case("max_tokens", "{\"command\": \"ls\"}", true)]
    #[case("tool_use", "", true)]
    #[case("tool_use", "[1]", false)]
    #[case("tool_use", "{\"command\": \"\\ud800\"}", false)]
    fn a_partial_input_is_marked(#[case] reason: &str, #[case] json: &str, #[case] complete: bool) {
        let [message_delta, message_stop] = end(reason);
        let frames = [
            start(0, &json!({"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {}})),
            delta(0, &json!({"type": "input_json_delta", "partial_json": json})),
            stop(0),
            message_delta,
            message_stop,
        ];
        let (reply, _) = feed(&frames).unwrap();
        assert_eq!(reply.incomplete.is_empty(), complete);
        assert!(reply.content[0]["input"].is_object());
    }

    #[rstest]
    #[case(&[json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a"}})])]
    #[case(&[json!({"type": "content_block_start", "index": 1, "content_block": {"type": "text"}})])]
    #[case(&[json!({"type": "content_block_start", "content_block": {"type": "text"}})])]
    #[case(&[json!({"type": "content_block_start", "index": 0, "content_block": 1})])]
    #[case(&[start(0, &json!({"type": "tool_use", "name": "bash", "input": {}})), json!({"type": "message_stop"})])]
    #[case(&[start(0, &json!({"type": "tool_use", "id": 7, "name": "bash", "input": {}})), json!({"type": "message_stop"})])]
    #[case(&[start(0, &json!({"type": "tool_use", "id": "t", "input": {}})), json!({"type": "message_stop"})])]
    #[case(&[start(0, &deep(MAX_DEPTH))])]
    #[case(&[json!({"type": "content_block_start", "index": 0, "content_block": {}}), json!({"type": "content_block_delta", "index": 0, "delta": {"type": "new"}})])]
    fn nonsense_is_a_failure_that_is_not_repeated(#[case] frames: &[Value]) {
        assert!(!feed(frames).unwrap_err().retryable);
    }

    fn deep(levels: usize) -> Value {
        json!({"type": "x", "of": (0..levels).fold(json!(1), |inner, _| json!([inner]))})
    }

    #[test]
    fn an_input_that_is_too_deep_is_not_run() {
        let [message_delta, message_stop] = end("tool_use");
        let frames = [
            start(0, &json!({"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {}})),
            delta(0, &json!({"type": "input_json_delta", "partial_json": deep(MAX_DEPTH).to_string()})),
            stop(0),
            message_delta,
            message_stop,
        ];
        let (reply, _) = feed(&frames).unwrap();
        assert_eq!((reply.content[0]["input"].clone(), reply.incomplete), (json!({}), vec!["toolu_1".to_owned()]));
    }

    #[test]
    fn two_calls_of_one_identifier_are_told_apart() {
        let call = json!({"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {"a": 1}});
        let [message_delta, message_stop] = end("tool_use");
        let (reply, _) =
            feed(&[start(0, &call), stop(0), start(1, &call), stop(1), message_delta, message_stop]).unwrap();
        assert_eq!(reply.content[0]["id"], "toolu_1");
        assert_ne!(reply.content[1]["id"], "toolu_1");
        assert_eq!(reply.content[1]["input"], json!({"a": 1}));
    }

    #[test]
    fn blocks_are_counted() {
        let mut accumulator = Accumulator::default();
        let mut feed = |index| accumulator.feed(&start(index, &json!({})));
        let most = u64::try_from(MAX_BLOCKS).unwrap();
        for index in 0..most {
            feed(index).unwrap();
        }
        assert!(!feed(most).unwrap_err().retryable);
    }

    #[rstest]
    #[case(json!({"type": "compaction", "content": ""}), &[json!({"content": "sum"}), json!({"content": "mary", "encrypted_content": "e"})],
        json!({"type": "compaction", "content": "summary", "encrypted_content": "e"}))]
    #[case(json!({"type": "compaction", "content": null, "signature": "s"}), &[json!({"content": null})],
        json!({"type": "compaction", "content": null, "signature": "s"}))]
    #[case(json!({"type": "redacted_thinking", "data": "d"}), &[], json!({"type": "redacted_thinking", "data": "d"}))]
    #[case(json!({"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}),
        &[json!({"type": "input_json_delta", "partial_json": "{\"query\": \"x\"}"})],
        json!({"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "x"}}))]
    fn blocks_of_the_server_are_kept_to_be_sent_back(
        #[case] block: Value,
        #[case] deltas: &[Value],
        #[case] whole: Value,
    ) {
        let [message_delta, message_stop] = end("pause_turn");
        let deltas = deltas.iter().map(|fields| {
            let mut fields = fields.clone();
            if fields.get("type").is_none() {
                fields["type"] = json!("compaction_delta");
            }
            delta(0, &fields)
        });
        let frames: Vec<Value> =
            [start(0, &block)].into_iter().chain(deltas).chain([stop(0), message_delta, message_stop]).collect();
        assert_eq!(feed(&frames).unwrap().0.content, [whole]);
    }

    #[test]
    fn an_error_in_the_middle_is_told() {
        let error = feed(&[json!({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}})]);
        assert!(error.unwrap_err().retryable);
    }
}
