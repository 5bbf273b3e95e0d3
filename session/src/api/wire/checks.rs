//! Limits of fields that more than one family of objects has. Each error names the field.

use std::collections::BTreeMap;

use kube::api::ObjectMeta;
use longhand_crds::wire_id::derived_id;

use super::once::Seed;
use super::vaults::fresh_id;
use crate::api::error::{ApiError, Result};

const MOST_PAIRS: usize = 16;
const LONGEST_KEY: usize = 64;
const LONGEST_VALUE: usize = 512;

/// A text of at most so many characters.
pub(super) fn at_most(field: &str, text: &str, most: usize) -> Result<()> {
    if text.chars().count() <= most {
        return Ok(());
    }
    Err(ApiError::bad_request(format!("`{field}` is longer than {most} characters")))
}

/// A text of one to so many characters.
pub(super) fn one_to(field: &str, text: &str, most: usize) -> Result<()> {
    if text.is_empty() { Err(ApiError::bad_request(format!("`{field}` is empty"))) } else { at_most(field, text, most) }
}

/// A list of at most so many items.
pub(super) fn count(field: &str, count: usize, most: usize) -> Result<()> {
    if count <= most {
        return Ok(());
    }
    Err(ApiError::bad_request(format!("`{field}` has {count} items; the most is {most}")))
}

/// The first of some names that comes twice.
pub(super) fn repeated<'a>(names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut seen = std::collections::BTreeSet::new();
    names.into_iter().find(|name| !seen.insert(*name))
}

/// Pairs that a client keeps with an object.
pub(super) fn metadata(pairs: &BTreeMap<String, String>) -> Result<()> {
    if pairs.len() > MOST_PAIRS {
        return Err(ApiError::bad_request(format!("`metadata` has more than {MOST_PAIRS} pairs")));
    }
    for (key, value) in pairs {
        if key.is_empty() || key.chars().count() > LONGEST_KEY {
            return Err(ApiError::bad_request(format!(
                "a key of `metadata` is not 1 to {LONGEST_KEY} characters long"
            )));
        }
        at_most(&format!("metadata.{key}"), value, LONGEST_VALUE)?;
    }
    Ok(())
}

/// The pairs after an update: those whose new value is null go, the others that are named are set.
pub(super) fn patched(
    mut pairs: BTreeMap<String, String>,
    patch: BTreeMap<String, Option<String>>,
) -> BTreeMap<String, String> {
    for (key, value) in patch {
        match value {
            Some(value) => pairs.insert(key, value),
            None => pairs.remove(&key),
        };
    }
    pairs
}

/// What a new object is called: by the API server, or as the seed of the request says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NewName {
    /// The name of the resource, if it follows from the seed.
    pub(super) name: Option<String>,
    /// The identifier in the wire API.
    pub(super) id: String,
}

impl NewName {
    /// That of a new object of this kind. A request that is carried out again gives the same.
    pub(super) fn of(kind: &str, prefix: &str, seed: Option<&Seed>) -> Self {
        let Some(seed) = seed else { return Self { name: None, id: fresh_id(prefix) } };
        let seed = seed.of(kind);
        Self { name: Some(format!("{kind}-{}", &seed[..20])), id: derived_id(prefix, &seed) }
    }

    /// Names the object, or has the API server name it.
    pub(super) fn put(&self, kind: &str, meta: &mut ObjectMeta) {
        meta.name.clone_from(&self.name);
        meta.generate_name = self.name.is_none().then(|| format!("{kind}-"));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rstest::rstest;

    use super::{NewName, Seed, metadata, patched, repeated};

    fn pairs(count: usize, key: usize, value: usize) -> BTreeMap<String, String> {
        (0..count).map(|number| (format!("{number:0key$}"), "v".repeat(value))).collect()
    }

    #[rstest]
    #[case(16, 64, 512, None)]
    #[case(17, 3, 1, Some("more than 16"))]
    #[case(1, 65, 1, Some("64 characters"))]
    #[case(1, 1, 513, Some("`metadata.0`"))]
    fn metadata_is_bounded(
        #[case] count: usize,
        #[case] key: usize,
        #[case] value: usize,
        #[case] complaint: Option<&str>,
    ) {
        let message = metadata(&pairs(count, key, value)).err().map(|error| error.to_string());
        assert_eq!(message.is_some(), complaint.is_some(), "{message:?}");
        assert!(message.unwrap_or_default().contains(complaint.unwrap_or_default()));
    }

    #[test]
    fn a_patch_sets_and_removes() {
        let old = BTreeMap::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())]);
        let patch = BTreeMap::from([("a".to_owned(), None), ("c".to_owned(), Some("3".to_owned()))]);
        let new = BTreeMap::from([("b".to_owned(), "2".to_owned()), ("c".to_owned(), "3".to_owned())]);
        assert_eq!(patched(old, patch), new);
    }

    #[test]
    fn a_seed_gives_one_name() {
        let (one, two) = (Seed::fixture("1"), Seed::fixture("2"));
        let name = |seed| NewName::of("agent", "agent_", seed);
        assert_eq!(name(Some(&one)), name(Some(&one)));
        assert_ne!(name(Some(&one)), name(Some(&two)));
        assert_ne!(name(None).id, name(None).id);
        assert!(crate::api::extract::is_name(&name(Some(&one)).name.unwrap(), 63));
    }

    #[test]
    fn a_repetition_is_found() {
        assert_eq!(repeated(["a", "b", "a"].into_iter()), Some("a"));
        assert_eq!(repeated(["a", "b"].into_iter()), None);
    }
}
