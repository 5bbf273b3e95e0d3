//! What an update says of a field: nothing, that it is cleared, or its new value.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer};

/// What an update says of a field. Needs `#[serde(default)]`, since a field that is absent is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Change<T> {
    /// Absent: it stays as it is.
    #[default]
    Keep,
    /// `null`: it is emptied.
    Clear,
    /// It becomes this.
    Set(T),
}

impl<T> Change<T> {
    /// The new value of a field that can be empty.
    pub fn apply(self, old: Option<T>) -> Option<T> {
        match self {
            Self::Keep => old,
            Self::Clear => None,
            Self::Set(new) => Some(new),
        }
    }

    /// The new value, where clearing gives the default.
    pub fn apply_or_default(self, old: T) -> T
    where
        T: Default,
    {
        match self {
            Self::Keep => old,
            Self::Clear => T::default(),
            Self::Set(new) => new,
        }
    }

    /// Changes the value, if there is one.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Change<U> {
        match self {
            Self::Keep => Change::Keep,
            Self::Clear => Change::Clear,
            Self::Set(value) => Change::Set(change(value)),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Change<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Option::deserialize(deserializer)?.map_or(Self::Clear, Self::Set))
    }
}

/// As an option, which may be absent.
impl<T: JsonSchema> JsonSchema for Change<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        Option::<T>::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Option::<T>::json_schema(generator)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde::Deserialize;

    use super::Change;

    #[derive(Deserialize)]
    struct Update {
        #[serde(default)]
        title: Change<String>,
    }

    #[rstest]
    #[case("{}", Change::Keep, Some("old"))]
    #[case(r#"{"title": null}"#, Change::Clear, None)]
    #[case(r#"{"title": "new"}"#, Change::Set("new".to_owned()), Some("new"))]
    fn absent_null_and_a_value_differ(#[case] json: &str, #[case] change: Change<String>, #[case] after: Option<&str>) {
        let update: Update = serde_json::from_str(json).unwrap();
        assert_eq!(update.title, change);
        assert_eq!(update.title.apply(Some("old".to_owned())).as_deref(), after);
    }
}
