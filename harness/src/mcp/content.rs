//! What a tool answered, as content blocks that the model API takes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rmcp::model::{CallToolResult, ContentBlock, ResourceContents};
use serde_json::{Value, json};

use super::definitions::cut;

/// The most bytes of text of one result.
pub(super) const MOST_TEXT: usize = 100 * 1024;
/// The most bytes of images of one result, as base64.
const MOST_IMAGES: usize = 2 * 1024 * 1024;
/// The most blocks of one result.
const MOST_BLOCKS: usize = 100;
/// The longest name, address or type that is told.
const LONGEST_NAME: usize = 1024;

/// The blocks of a result, and whether it is an error. What does not fit is named in their place.
pub(super) fn blocks(result: CallToolResult) -> (Vec<Value>, bool) {
    let mut blocks = Blocks { blocks: Vec::new(), text: MOST_TEXT, images: MOST_IMAGES, left_out: 0 };
    let has_text = result.content.iter().any(|block| matches!(block, ContentBlock::Text(_)));
    for block in result.content {
        blocks.push(block);
    }
    // Servers repeat it as text for clients that do not know it.
    if let Some(structured) = result.structured_content.filter(|_| !has_text) {
        blocks.text(&structured.to_string());
    }
    if blocks.left_out > 0 {
        let note = format!("[The result was cut: {} bytes of text are left out.]", blocks.left_out);
        blocks.blocks.push(json!({"type": "text", "text": note}));
    }
    (blocks.blocks, result.is_error == Some(true))
}

struct Blocks {
    blocks: Vec<Value>,
    /// Bytes that are left.
    text: usize,
    images: usize,
    left_out: usize,
}

impl Blocks {
    fn push(&mut self, block: ContentBlock) {
        match block {
            ContentBlock::Text(content) => self.text(&content.text),
            ContentBlock::Image(content) => self.image(&content.mime_type, &content.data),
            ContentBlock::Audio(content) => self.note("audio", &content.mime_type, content.data.len()),
            ContentBlock::Resource(content) => match content.resource {
                ResourceContents::TextResourceContents { uri, text, .. } => {
                    self.text(&format!("[resource {}]\n{text}", short(&uri)));
                }
                ResourceContents::BlobResourceContents { uri, mime_type, blob, .. } => {
                    let kind = mime_type.unwrap_or_default();
                    match image_type(&kind) {
                        Some(_) => self.image(&kind, &blob),
                        None => self.note(&format!("resource {}", short(&uri)), &kind, blob.len()),
                    }
                }
                _ => self.unknown(),
            },
            ContentBlock::ResourceLink(link) => {
                let kind = link.mime_type.as_deref().map(|kind| format!(", {}", short(kind))).unwrap_or_default();
                self.text(&format!("[resource {}: {}{kind}]", short(&link.name), short(&link.uri)));
            }
            _ => self.unknown(),
        }
    }

    fn unknown(&mut self) {
        self.text("[content of a kind that is not known here]");
    }

    fn text(&mut self, text: &str) {
        // The model API refuses empty text blocks.
        if text.is_empty() {
            return;
        }
        let room = if self.blocks.len() < MOST_BLOCKS { self.text } else { 0 };
        let kept = cut(text, room);
        self.left_out += text.len() - kept.len();
        self.text -= kept.len();
        if !kept.is_empty() {
            self.blocks.push(json!({"type": "text", "text": kept}));
        }
    }

    /// An image that the model API would refuse would fail every request from now on.
    fn image(&mut self, kind: &str, data: &str) {
        let shown = image_type(kind).filter(|kind| {
            data.len() <= self.images
                && self.blocks.len() < MOST_BLOCKS
                && STANDARD.decode(data).is_ok_and(|bytes| is_image(kind, &bytes))
        });
        match shown {
            Some(media_type) => {
                self.images -= data.len();
                let source = json!({"type": "base64", "media_type": media_type, "data": data});
                self.blocks.push(json!({"type": "image", "source": source}));
            }
            None => self.note("image", kind, data.len()),
        }
    }

    fn note(&mut self, what: &str, kind: &str, bytes: usize) {
        self.text(&format!("[{what}, {}, {bytes} bytes as base64: it cannot be shown]", short(kind)));
    }
}

fn short(text: &str) -> &str {
    cut(text, LONGEST_NAME)
}

/// The types of images that the model API takes.
fn image_type(kind: &str) -> Option<&'static str> {
    ["image/png", "image/jpeg", "image/gif", "image/webp"].into_iter().find(|known| kind.eq_ignore_ascii_case(known))
}

fn is_image(kind: &str, bytes: &[u8]) -> bool {
    match kind {
        "image/png" => bytes.starts_with(b"\x89PNG\r\n\x1a\n"),
        "image/jpeg" => bytes.starts_with(b"\xff\xd8\xff"),
        "image/gif" => bytes.starts_with(b"GIF8"),
        _ => bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP"),
    }
}

#[cfg(test)]
mod tests {
    use rmcp::model::CallToolResult;
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::{MOST_BLOCKS, MOST_IMAGES, MOST_TEXT, blocks};

    /// The smallest that begins as one does.
    const PNG: &str = "iVBORw0KGgo=";

    fn read(result: &Value) -> (Vec<Value>, bool) {
        let result: CallToolResult = serde_json::from_value(result.clone()).unwrap();
        blocks(result)
    }

    fn text(text: &str) -> Value {
        json!({"type": "text", "text": text})
    }

    #[rstest]
    #[case(json!({"type": "text", "text": "hi"}), vec![text("hi")])]
    #[case(json!({"type": "text", "text": ""}), vec![])]
    #[case(json!({"type": "image", "data": PNG, "mimeType": "image/png"}),
        vec![json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}})])]
    #[case(json!({"type": "image", "data": PNG, "mimeType": "image/jpeg"}),
        vec![text("[image, image/jpeg, 12 bytes as base64: it cannot be shown]")])]
    #[case(json!({"type": "image", "data": "%", "mimeType": "image/png"}),
        vec![text("[image, image/png, 1 bytes as base64: it cannot be shown]")])]
    #[case(json!({"type": "image", "data": PNG, "mimeType": "image/tiff"}),
        vec![text("[image, image/tiff, 12 bytes as base64: it cannot be shown]")])]
    #[case(json!({"type": "audio", "data": "AAAA", "mimeType": "audio/wav"}),
        vec![text("[audio, audio/wav, 4 bytes as base64: it cannot be shown]")])]
    #[case(json!({"type": "resource", "resource": {"uri": "a://b", "text": "c"}}), vec![text("[resource a://b]\nc")])]
    #[case(json!({"type": "resource", "resource": {"uri": "a://b", "mimeType": "application/zip", "blob": "AAAA"}}),
        vec![text("[resource a://b, application/zip, 4 bytes as base64: it cannot be shown]")])]
    #[case(json!({"type": "resource", "resource": {"uri": "a://b", "mimeType": "image/png", "blob": PNG}}),
        vec![json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}})])]
    #[case(json!({"type": "resource_link", "uri": "a://b", "name": "n", "mimeType": "text/plain"}),
        vec![text("[resource n: a://b, text/plain]")])]
    fn a_block_is_one_that_the_model_api_takes(#[case] block: Value, #[case] expected: Vec<Value>) {
        assert_eq!(read(&json!({"content": [block]})), (expected, false));
    }

    #[test]
    fn structured_content_is_shown_where_there_is_no_text() {
        assert_eq!(read(&json!({"content": [], "structuredContent": {"a": 1}})).0, [text(r#"{"a":1}"#)]);
        let both =
            json!({"content": [{"type": "text", "text": "one"}], "structuredContent": {"a": 1}, "isError": true});
        assert_eq!(read(&both), (vec![text("one")], true));
    }

    #[test]
    fn a_long_result_is_cut_and_says_so() {
        let long = json!({"type": "text", "text": "x".repeat(MOST_TEXT - 10)});
        let (blocks, _) = read(&json!({"content": [long, long]}));
        assert_eq!(blocks[1]["text"].as_str().unwrap().len(), 10);
        assert_eq!(blocks[2], text(&format!("[The result was cut: {} bytes of text are left out.]", MOST_TEXT - 20)));
        let many: Vec<Value> = (0..1_000).map(|_| text("x")).collect();
        assert_eq!(read(&json!({"content": many})).0.len(), MOST_BLOCKS + 1);
    }

    #[test]
    fn images_are_bounded_together() {
        let data = format!("iVBORw0KGgoA{}", "AAAA".repeat(MOST_IMAGES / 8));
        let image = json!({"type": "image", "data": data, "mimeType": "image/png"});
        let (blocks, _) = read(&json!({"content": [image, image]}));
        assert_eq!((blocks[0]["type"].as_str(), blocks[1]["type"].as_str()), (Some("image"), Some("text")));
    }
}
