//! The request for a summary of the conversation, and what is taken from its answer.

use longhand_protocol::harness::{AgentSnapshot, Model};
use serde_json::{Value, json};

use super::context::{MAX_COMPACTIONS, split, tail};
use super::conversation::{Answer, CallState, Item, Stop};
use super::request::{Messages, frame};
use super::tools::ToolSet;
use super::transcript::Transcript;
use crate::model::Reply;

/// What of a result is shown to whoever writes the summary, in bytes.
const RESULT_BYTES: usize = 4_000;
/// No item of the conversation counts for more when what fits is chosen.
const ITEM_BYTES: u64 = 64 * 1024;
/// The longest summary, in bytes.
const MAX_BYTES: usize = 256 * 1024;

const TASK: &str = "Write a summary of this conversation. It will take the place of everything above, and you will go on from \
it alone, so put down what you need to go on without a break:\n\
1. What the user wants: each request, constraint and preference, in the user's own words where wording matters.\n\
2. What was done and decided, and why, with names of files, commands, addresses, identifiers and numbers.\n\
3. What was learnt: results of tools that still matter, errors and how they were solved.\n\
4. What is open: the step that is under way, and what comes next.\n\
Answer with the summary alone, and call no tools.";

const LEFT_OUT: &str = "Earlier parts of this conversation are left out.";

/// The body of the request; after each try that failed it is about half as long.
pub(super) fn build(agent: &AgentSnapshot, model: &Model, tools: &ToolSet, log: &Transcript) -> Value {
    let items = log.items().get(..split(log.items()).0).unwrap_or_default();
    let tokens = agent.context.max_tokens >> log.compactions().min(MAX_COMPACTIONS);
    let begin = tail(items, tokens, ITEM_BYTES);
    let mut messages = Messages::to(&model.id);
    if begin > 0 {
        messages.say(LEFT_OUT);
    }
    for item in items.get(begin..).unwrap_or_default() {
        messages.take(&shortened(item), false);
    }
    messages.say(TASK);
    let mut body = frame(agent, model, tools, messages);
    // Calls in the messages need definitions of tools, but none is to be called now.
    if body.get("tools").is_some() {
        body["tool_choice"] = json!({"type": "none"});
    }
    body
}

/// The item with results that are cut.
fn shortened(item: &Item) -> Item {
    let Item::Answer(answer) = item else { return item.clone() };
    let mut answer: Answer = answer.clone();
    for call in &mut answer.calls {
        if let CallState::Answered { content, .. } = &mut call.state {
            content.iter_mut().for_each(shorten);
        }
    }
    Item::Answer(answer)
}

fn shorten(block: &mut Value) {
    match block["text"].as_str() {
        Some(text) if text.len() <= RESULT_BYTES => {}
        Some(text) => {
            let half = RESULT_BYTES / 2;
            let (head, tail) = (text.floor_char_boundary(half), text.ceil_char_boundary(text.len() - half));
            let cut = tail - head;
            let text = format!("{}\n[{cut} bytes are left out]\n{}", &text[..head], &text[tail..]);
            *block = json!({"type": "text", "text": text});
        }
        None => {
            let kind = block["type"].as_str().unwrap_or("block").to_owned();
            *block = json!({"type": "text", "text": format!("[{kind}]")});
        }
    }
}

/// The summary of an answer, or why it is none.
pub(super) fn take(reply: &Reply) -> Result<String, &'static str> {
    if matches!(Stop::parse(reply.stop_reason.as_deref()), Stop::Refusal) {
        return Err("it refused.");
    }
    let texts = reply.content.iter().filter(|block| block["type"] == "text").filter_map(|block| block["text"].as_str());
    let text = texts.collect::<Vec<_>>().join("\n\n");
    let text = text.trim();
    if text.is_empty() {
        return Err("its answer has no text.");
    }
    Ok(text.get(..text.floor_char_boundary(MAX_BYTES)).unwrap_or_default().to_owned())
}
