//! The content blocks of what clients send.

use serde_json::Value;

use crate::fields::{Fields, InvalidField, Result};

/// The most blocks of one content.
const MOST_BLOCKS: usize = 1_000;

/// A kind of content block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block {
    Text,
    Image,
    Document,
    Redacted,
    SearchResult,
}

impl Block {
    /// What a message holds.
    pub(super) const MESSAGE: &[Self] = &[Self::Text, Self::Image, Self::Document, Self::Redacted];
    /// What the result of a tool holds.
    pub(super) const RESULT: &[Self] = &[Self::Text, Self::Image, Self::Document, Self::SearchResult];
    /// What a message of the system holds.
    pub(super) const SYSTEM: &[Self] = &[Self::Text];

    const fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Image => "image",
            Self::Document => "document",
            Self::Redacted => "redacted",
            Self::SearchResult => "search_result",
        }
    }

    fn check(self, mut block: Fields) -> Result<()> {
        match self {
            Self::Text => drop(block.nonempty_text("text")?),
            Self::Image => check_source(block.object("source")?, "image/")?,
            Self::Document => {
                check_source(block.object("source")?, "")?;
                block.optional_text("title")?;
                block.optional_text("context")?;
            }
            Self::Redacted => {}
            Self::SearchResult => {
                block.nonempty_text("source")?;
                block.text("title")?;
                let mut citations = block.object("citations")?;
                if citations.optional_flag("enabled")?.is_none() {
                    return Err(citations.wrong("enabled", "is required and must be true or false"));
                }
                citations.end()?;
                let content = block.required("content")?;
                check_blocks(&block.path("content"), &content, &[Self::Text])?;
            }
        }
        block.end()
    }
}

/// Checks that `content` is a list of at least one block, each of a kind that is `allowed`.
pub(super) fn check_blocks(path: &str, content: &Value, allowed: &[Block]) -> Result<()> {
    let Value::Array(blocks) = content else { return Err(InvalidField::new(path, "must be a list of content blocks")) };
    if blocks.is_empty() || blocks.len() > MOST_BLOCKS {
        return Err(InvalidField::new(
            path,
            format!("needs 1 to {MOST_BLOCKS} content blocks, and has {}", blocks.len()),
        ));
    }
    for (index, block) in blocks.iter().enumerate() {
        let mut block = Fields::of(format!("{path}[{index}]"), block.clone())?;
        let kind = block.text("type")?;
        let Some(kind) = allowed.iter().find(|allowed| allowed.name() == kind) else {
            let names: Vec<&str> = allowed.iter().map(|block| block.name()).collect();
            return Err(block.wrong("type", format!("must be one of {}, not `{kind}`", names.join(", "))));
        };
        kind.check(block)?;
    }
    Ok(())
}

/// Where an image or a document comes from. `media` is what its media type begins with.
fn check_source(mut source: Fields, media: &str) -> Result<()> {
    let kind = source.text("type")?;
    match kind.as_str() {
        "base64" => {
            let given = source.nonempty_text("media_type")?;
            if !given.starts_with(media) {
                return Err(source.wrong("media_type", format!("must begin with `{media}`")));
            }
            source.nonempty_text("data")?;
        }
        "url" => {
            let url = source.nonempty_text("url")?;
            if !(url.starts_with("https://") || url.starts_with("http://")) {
                return Err(source.wrong("url", "must be an http or https URL"));
            }
        }
        "text" if media.is_empty() => {
            if source.text("media_type")? != "text/plain" {
                return Err(source.wrong("media_type", "must be `text/plain`"));
            }
            source.nonempty_text("data")?;
        }
        "file" => return Err(source.wrong("type", "`file` is not served: there is no files API; send the data itself")),
        other => return Err(source.wrong("type", format!("is not a source that is known here: `{other}`"))),
    }
    source.end()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::{Block, check_blocks};

    #[rstest]
    #[case(json!([{"type": "text", "text": "a"}]))]
    #[case(json!([{"type": "redacted"}]))]
    #[case(json!([{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}]))]
    #[case(json!([{"type": "image", "source": {"type": "url", "url": "https://a.test/b.png"}}]))]
    #[case(json!([{"type": "document", "title": "t", "context": null, "source": {"type": "text", "media_type": "text/plain", "data": "a"}}]))]
    #[case(json!([{"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "AA=="}}]))]
    fn a_message_holds(#[case] content: Value) {
        check_blocks("content", &content, Block::MESSAGE).unwrap();
    }

    #[rstest]
    #[case(json!("text"), "`content`: must be a list")]
    #[case(json!([]), "`content`: needs 1 to")]
    #[case(json!(["text"]), "`content[0]`: must be an object")]
    #[case(json!([{"type": "text", "text": ""}]), "`content[0].text`")]
    #[case(json!([{"type": "text", "text": "a"}, {"type": "video"}]), "`content[1].type`: must be one of text, image")]
    #[case(json!([{"type": "search_result"}]), "`content[0].type`")]
    #[case(json!([{"type": "text", "text": "a", "cache_control": {}}]), "`content[0].cache_control`")]
    #[case(json!([{"type": "image"}]), "`content[0].source`")]
    #[case(json!([{"type": "image", "source": {"type": "text", "media_type": "text/plain", "data": "a"}}]), "`content[0].source.type`")]
    #[case(json!([{"type": "image", "source": {"type": "base64", "media_type": "text/html", "data": "a"}}]), "`content[0].source.media_type`")]
    #[case(json!([{"type": "image", "source": {"type": "url", "url": "file:///etc/passwd"}}]), "`content[0].source.url`")]
    #[case(json!([{"type": "document", "source": {"type": "file", "file_id": "file_1"}}]), "`content[0].source.type`: `file` is not served")]
    fn what_is_wrong_is_named(#[case] content: Value, #[case] message: &str) {
        let error = check_blocks("content", &content, Block::MESSAGE).unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}");
    }

    #[test]
    fn a_result_may_hold_search_results() {
        let mut found = json!({"type": "search_result", "source": "https://a.test", "title": "", "citations": {"enabled": true},
            "content": [{"type": "text", "text": "a"}]});
        check_blocks("content", &json!([found]), Block::RESULT).unwrap();
        found["content"][0]["type"] = json!("image");
        let error = check_blocks("content", &json!([found]), Block::RESULT).unwrap_err();
        assert_eq!(error.path, "content[0].content[0].type");
    }
}
