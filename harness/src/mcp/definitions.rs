//! What a server says of its tools, cut to what a model can be offered.

use longhand_protocol::event::McpTool;
use rmcp::model::Tool;
use serde_json::{Map, Value};

/// The most tools of a server.
const MOST_TOOLS: usize = 256;
/// The most bytes of all definitions of a server.
const MOST_BYTES: usize = 1024 * 1024;
/// The largest schema of one tool.
const LARGEST_SCHEMA: usize = 64 * 1024;
/// The longest description of one tool, in bytes.
const LONGEST_DESCRIPTION: usize = 16 * 1024;
/// The longest name of a tool.
const LONGEST_NAME: usize = 256;
/// What the model API does not take at the top of a schema. The server checks its input itself.
const NOT_AT_TOP: [&str; 3] = ["anyOf", "oneOf", "allOf"];

/// What a server has listed so far: no more than a model can be offered, however much it is.
#[derive(Debug, Default)]
pub(super) struct Listing {
    tools: Vec<McpTool>,
    bytes: usize,
    left_out: usize,
}

impl Listing {
    /// Takes the tools of a page.
    pub(super) fn add(&mut self, page: Vec<Tool>) {
        for tool in page {
            let fitting = definition(tool).filter(|tool| {
                let bytes = tool.name.len() + tool.description.len() + size(&tool.input_schema);
                let new = self.tools.iter().all(|known| known.name != tool.name);
                let fits = new && !self.is_full() && self.bytes + bytes <= MOST_BYTES;
                self.bytes += if fits { bytes } else { 0 };
                fits
            });
            self.left_out += usize::from(fitting.is_none());
            self.tools.extend(fitting);
        }
    }

    /// Whether more pages would change nothing.
    pub(super) const fn is_full(&self) -> bool {
        self.tools.len() >= MOST_TOOLS
    }

    /// The tools, sorted by name, and how many are left out.
    pub(super) fn finish(mut self) -> (Vec<McpTool>, usize) {
        self.tools.sort_by(|a, b| a.name.cmp(&b.name));
        (self.tools, self.left_out)
    }
}

fn size(schema: &Value) -> usize {
    serde_json::to_vec(schema).map_or(usize::MAX, |text| text.len())
}

fn definition(tool: Tool) -> Option<McpTool> {
    let schema = schema(&tool.input_schema)?;
    let named = !tool.name.is_empty() && tool.name.len() <= LONGEST_NAME;
    let hints = tool.annotations.unwrap_or_default();
    (named && size(&schema) <= LARGEST_SCHEMA).then(|| McpTool {
        name: tool.name.into_owned(),
        description: cut(tool.description.as_deref().unwrap_or_default(), LONGEST_DESCRIPTION).to_owned(),
        input_schema: schema,
        repeatable: hints.read_only_hint == Some(true) || hints.idempotent_hint == Some(true),
    })
}

/// A schema of objects, without what the model API refuses: one bad tool would fail every request.
fn schema(given: &Map<String, Value>) -> Option<Value> {
    let mut schema = given.clone();
    if schema.get("type").is_some_and(|kind| kind != "object") {
        return None;
    }
    schema.insert("type".to_owned(), Value::from("object"));
    if schema.get("properties").is_some_and(|properties| !properties.is_object()) {
        return None;
    }
    for name in NOT_AT_TOP {
        schema.shift_remove(name);
    }
    Some(Value::Object(schema))
}

/// The beginning of a text, up to so many bytes.
pub(super) fn cut(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text.get(..end.unwrap_or(0)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use rmcp::model::Tool;
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::{LONGEST_DESCRIPTION, Listing, MOST_BYTES, MOST_TOOLS, McpTool};

    fn tools(listed: Vec<Tool>) -> (Vec<McpTool>, usize) {
        let mut listing = Listing::default();
        for tool in listed {
            listing.add(vec![tool]);
        }
        listing.finish()
    }

    fn tool(name: &str, schema: &Value) -> Tool {
        serde_json::from_value(json!({"name": name, "description": "d", "inputSchema": schema})).unwrap()
    }

    #[rstest]
    #[case(json!({"type": "object", "properties": {"a": {"anyOf": [{"type": "string"}]}}, "anyOf": [{}], "oneOf": []}),
        Some(json!({"type": "object", "properties": {"a": {"anyOf": [{"type": "string"}]}}})))]
    #[case(json!({}), Some(json!({"type": "object"})))]
    #[case(json!({"type": "array"}), None)]
    #[case(json!({"type": "object", "properties": []}), None)]
    #[case(json!({"type": "object", "x": "x".repeat(70_000)}), None)]
    fn a_schema_that_fails_every_request_is_not_offered(#[case] schema: Value, #[case] expected: Option<Value>) {
        let (tools, left_out) = tools(vec![tool("t", &schema)]);
        assert_eq!(tools.first().map(|tool| tool.input_schema.clone()), expected);
        assert_eq!(left_out, usize::from(expected.is_none()));
    }

    #[test]
    fn a_server_has_so_many_tools_and_bytes() {
        let object = json!({"type": "object"});
        let (many, left_out) = tools((0..300).map(|number| tool(&format!("t{number:03}"), &object)).collect());
        assert_eq!((many.len(), left_out), (MOST_TOOLS, 300 - MOST_TOOLS));
        assert!(many.is_sorted_by_key(|tool| tool.name.clone()));
        let large = json!({"type": "object", "x": "x".repeat(60_000)});
        let (large, _) = tools((0..100).map(|number| tool(&format!("t{number:03}"), &large)).collect());
        assert!((10..=MOST_BYTES / 60_000).contains(&large.len()), "{}", large.len());
    }

    #[test]
    fn a_description_is_cut_between_characters() {
        let long = json!({"name": "t", "description": "é".repeat(LONGEST_DESCRIPTION), "inputSchema": {}});
        let (tools, _) = tools(vec![serde_json::from_value(long).unwrap()]);
        assert_eq!(tools[0].description, "é".repeat(LONGEST_DESCRIPTION / 2));
    }

    #[rstest]
    #[case(json!({"readOnlyHint": true}), true)]
    #[case(json!({"idempotentHint": true}), true)]
    #[case(json!({"readOnlyHint": false}), false)]
    #[case(json!({"title": "t"}), false)]
    fn what_may_be_repeated(#[case] annotations: Value, #[case] expected: bool) {
        let tool = json!({"name": "t", "inputSchema": {"type": "object"}, "annotations": annotations});
        assert_eq!(tools(vec![serde_json::from_value(tool).unwrap()]).0[0].repeatable, expected);
    }
}
