//! Query parameters: each is known or refused by name.

use axum::extract::FromRequestParts;
use http::request::Parts;

use super::error::{ApiError, Result};
use super::extract::pairs;
use crate::app::App;

/// The parameters of a request, from which each handler takes what it knows.
#[derive(Clone, Debug, Default)]
pub struct Params(Vec<(String, String)>);

impl FromRequestParts<App> for Params {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        pairs(parts, app).await.map(Self::new)
    }
}

impl Params {
    /// Of these pairs. Older SDKs send `beta=true` with everything, which says nothing.
    #[must_use]
    pub fn new(mut pairs: Vec<(String, String)>) -> Self {
        pairs.retain(|(key, _)| key != "beta");
        Self(pairs)
    }

    /// Takes the parameter `key`.
    pub fn one(&mut self, key: &str) -> Result<Option<String>> {
        let mut values = self.all(key);
        let value = values.pop();
        if values.is_empty() { Ok(value) } else { Err(ApiError::bad_request(format!("`{key}` is given twice"))) }
    }

    /// Takes every parameter `key`.
    pub fn all(&mut self, key: &str) -> Vec<String> {
        let (taken, rest) = std::mem::take(&mut self.0).into_iter().partition(|(name, _)| name == key);
        self.0 = rest;
        let taken: Vec<(String, String)> = taken;
        taken.into_iter().map(|(_, value)| value).collect()
    }

    /// Takes every `key[]`, and every `key`, as some SDKs write it.
    pub fn list(&mut self, key: &str) -> Vec<String> {
        let mut values = self.all(&format!("{key}[]"));
        values.extend(self.all(key));
        values
    }

    /// Takes a number.
    pub fn number<T: std::str::FromStr>(&mut self, key: &str) -> Result<Option<T>> {
        let parse = |value: String| {
            value.parse().map_err(|_| ApiError::bad_request(format!("`{key}` is not a number in its range: `{value}`")))
        };
        self.one(key)?.map(parse).transpose()
    }

    /// Takes a number that counts from 1; 0 is as good as none, which is how clients say so that have no word for it.
    pub fn positive<T: std::str::FromStr + PartialEq + Default>(&mut self, key: &str) -> Result<Option<T>> {
        Ok(self.number::<T>(key)?.filter(|number| *number != T::default()))
    }

    /// Takes a boolean.
    pub fn flag(&mut self, key: &str) -> Result<bool> {
        match self.one(key)?.as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => Err(ApiError::bad_request(format!("`{key}` is neither true nor false: `{other}`"))),
        }
    }

    /// Takes the size of a page.
    pub fn limit(&mut self, default: usize, most: usize) -> Result<usize> {
        match self.positive::<usize>("limit")? {
            None => Ok(default),
            Some(limit) if limit <= most => Ok(limit),
            Some(limit) => Err(ApiError::bad_request(format!("`limit` is {limit}, and must be 1 to {most}"))),
        }
    }

    /// Refuses what is left.
    pub fn end(self) -> Result<()> {
        match self.0.first() {
            None => Ok(()),
            Some((key, _)) => Err(ApiError::bad_request(format!("the query parameter `{key}` is not supported"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Params;

    fn params(query: &[(&str, &str)]) -> Params {
        Params::new(query.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn what_is_known_is_taken_and_what_is_left_is_named() {
        let mut params = params(&[("beta", "true"), ("types[]", "a"), ("types", "b"), ("limit", "5"), ("odd", "1")]);
        assert_eq!(params.list("types"), ["a", "b"]);
        assert_eq!(params.limit(10, 100).unwrap(), 5);
        assert!(!params.flag("include_seq").unwrap());
        assert!(params.end().unwrap_err().to_string().contains("`odd`"));
    }

    #[test]
    fn nothing_and_zero_are_the_default() {
        for query in [&[][..], &[("limit", "0")], &[("limit", "10")]] {
            assert_eq!(params(query).limit(10, 100).unwrap(), 10);
        }
        assert_eq!(params(&[("version", "0")]).positive::<u64>("version").unwrap(), None);
        assert_eq!(params(&[("version", "2")]).positive::<u64>("version").unwrap(), Some(2));
    }

    #[test]
    fn nonsense_is_named() {
        assert!(params(&[("limit", "101")]).limit(10, 100).unwrap_err().to_string().contains("1 to 100"));
        assert!(params(&[("limit", "-1")]).limit(10, 100).unwrap_err().to_string().contains("`limit`"));
        assert!(params(&[("limit", "x")]).limit(10, 100).unwrap_err().to_string().contains("`limit`"));
        assert!(params(&[("after", "-1")]).number::<u64>("after").unwrap_err().to_string().contains("`after`"));
        assert!(params(&[("page", "a"), ("page", "b")]).one("page").is_err());
        assert!(params(&[("flag", "1")]).flag("flag").is_err());
    }
}
