//! Fields that several requests about sessions have. Pure.

use std::collections::BTreeMap;

use longhand_crds::agent_session::Budget;
use longhand_protocol::fields::{Fields, Result};
use serde_json::Value;

const LONGEST_TITLE: usize = 256;
const LONGEST_AMOUNT: usize = 20;

/// What an update says of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said<T> {
    /// Nothing: it stays.
    Nothing,
    /// It is taken away.
    Null,
    /// It becomes this.
    Value(T),
}

/// Reads the field `key` with `read` unless it is absent or null.
pub(super) fn said<T>(fields: &mut Fields, key: &str, read: impl FnOnce(&mut Fields) -> Result<T>) -> Result<Said<T>> {
    match fields.get(key) {
        None => Ok(Said::Nothing),
        Some(Value::Null) => {
            fields.take(key);
            Ok(Said::Null)
        }
        Some(_) => read(fields).map(Said::Value),
    }
}

pub(super) fn title(fields: &mut Fields) -> Result<Option<String>> {
    let title = fields.optional_text("title")?;
    if title.as_ref().is_some_and(|title| title.chars().count() > LONGEST_TITLE) {
        return Err(fields.wrong("title", format!("is longer than {LONGEST_TITLE} characters")));
    }
    Ok(title)
}

/// Pairs; a value that is null takes the pair away.
pub(super) fn metadata(fields: &mut Fields) -> Result<BTreeMap<String, Option<String>>> {
    let Some(pairs) = fields.optional("metadata") else { return Ok(BTreeMap::new()) };
    let Value::Object(pairs) = pairs else { return Err(fields.wrong("metadata", "must be an object")) };
    let pair = |(key, value): (String, Value)| match value {
        Value::Null => Ok((key, None)),
        Value::String(value) => Ok((key, Some(value))),
        _ => Err(fields.wrong(format!("metadata.{key}"), "must be a string")),
    };
    pairs.into_iter().map(pair).collect()
}

pub(super) fn vault_ids(fields: &mut Fields) -> Result<Option<Vec<String>>> {
    let Some(ids) = fields.optional_list("vault_ids", 1_000)? else { return Ok(None) };
    let id = |(index, id)| match id {
        Value::String(id) => Ok(id),
        _ => Err(fields.wrong(format!("vault_ids[{index}]"), "must be a string")),
    };
    ids.into_iter().enumerate().map(id).collect::<Result<_>>().map(Some)
}

pub(super) fn budget(fields: &mut Fields) -> Result<Option<Budget>> {
    let Some(mut budget) = fields.optional_object("budget")? else { return Ok(None) };
    if budget.text("type")? != "limit" {
        return Err(budget.wrong("type", "must be `limit`"));
    }
    let mut cost = budget.object("max_list_cost")?;
    let amount = cost.text("amount")?;
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, fraction) = amount.split_once('.').map_or((amount.as_str(), None), |(a, b)| (a, Some(b)));
    if amount.len() > LONGEST_AMOUNT || !digits(whole) || fraction.is_some_and(|fraction| !digits(fraction)) {
        return Err(cost.wrong("amount", "must be a decimal number, as a string"));
    }
    let currency = cost.text("currency")?;
    if currency != "USD" {
        return Err(cost.wrong("currency", "must be `USD`"));
    }
    cost.end()?;
    budget.end()?;
    Ok(Some(Budget { amount, currency }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use longhand_protocol::fields::{Fields, Result};
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::{Said, budget, metadata, said, title, vault_ids};

    fn read(body: Value) -> Result<BTreeMap<String, Option<String>>> {
        let mut fields = Fields::of("", body)?;
        title(&mut fields)?;
        vault_ids(&mut fields)?;
        budget(&mut fields)?;
        let change = metadata(&mut fields)?;
        fields.end().map(|()| change)
    }

    #[rstest]
    #[case(json!({"title": "x".repeat(257)}), "`title`")]
    #[case(json!({"metadata": []}), "`metadata`")]
    #[case(json!({"metadata": {"a": 1}}), "`metadata.a`")]
    #[case(json!({"vault_ids": "vlt_1"}), "`vault_ids`")]
    #[case(json!({"vault_ids": ["a", 1]}), "`vault_ids[1]`")]
    #[case(json!({"budget": {"usd": 1}}), "`budget.type`")]
    #[case(json!({"budget": {"type": "limit"}}), "`budget.max_list_cost`")]
    #[case(json!({"budget": {"type": "limit", "max_list_cost": {"amount": "1.", "currency": "USD"}}}), "`budget.max_list_cost.amount`")]
    #[case(json!({"budget": {"type": "limit", "max_list_cost": {"amount": "1", "currency": "EUR"}}}), "`budget.max_list_cost.currency`")]
    fn what_is_wrong_is_named(#[case] body: Value, #[case] part: &str) {
        let message = read(body).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }

    #[rstest]
    #[case(json!({}), Said::Nothing)]
    #[case(json!({"title": null}), Said::Null)]
    #[case(json!({"title": "t"}), Said::Value(Some("t".to_owned())))]
    fn absent_and_null_differ(#[case] body: Value, #[case] expected: Said<Option<String>>) {
        let mut fields = Fields::of("", body).unwrap();
        assert_eq!(said(&mut fields, "title", title).unwrap(), expected);
    }
}
