//! Which values must not come back over a route: that of its credential, as it is and as it was before.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{
    config::Placement,
    intercept::scrub::{MAX_VALUE, MIN_VALUE, Unscrubbable, Values},
    secret::Secret,
};

/// The values of one credential that were sent. What is looked for is made once for each value and not for each request.
pub(super) struct Known {
    placement: Placement,
    seen: Mutex<Option<Seen>>,
}

struct Seen {
    current: Arc<Secret>,
    previous: Option<Arc<Secret>>,
    values: Values,
}

impl Known {
    pub(super) fn new(placement: Placement) -> Self {
        Self { placement, seen: Mutex::default() }
    }

    /// What must not come back in the answer to a request that begins now, with this value.
    ///
    /// # Errors
    /// [`Unscrubbable`]: the value must not be sent.
    pub(super) fn with(&self, used: &Arc<Secret>) -> Result<Values, Unscrubbable> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Seen { current, previous, values }) = seen.as_ref()
            // A request may begin with the older value while another has the newer one already.
            && std::iter::once(current).chain(previous).any(|known| Arc::ptr_eq(known, used))
        {
            return Ok(values.clone());
        }
        let previous = seen.as_ref().map(|seen| seen.current.clone());
        let secrets: Vec<&Arc<Secret>> = std::iter::once(used).chain(&previous).collect();
        // A value that is too short to be told from other text, such as the `none` of a model server without keys, is not looked for.
        let secrets: Vec<&Arc<Secret>> =
            secrets.into_iter().filter(|secret| secret.expose().len() >= MIN_VALUE).collect();
        // The whole of it, besides what the value alone decides of it.
        let pairs: Vec<Secret> = match &self.placement {
            Placement::Basic(username) => secrets.iter().map(|secret| secret.encoded(username)).collect(),
            Placement::Header(_) | Placement::Bearer => Vec::new(),
        };
        let pairs = pairs.iter().map(Secret::expose).filter(|pair| pair.len() <= MAX_VALUE);
        let values = Values::new(secrets.iter().map(|secret| secret.expose()).chain(pairs))?;
        *seen = Some(Seen { current: used.clone(), previous, values: values.clone() });
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn clean(values: &Values, text: &str) -> String {
        let clean = values.scrub(text.as_bytes());
        clean.map_or_else(|| text.to_owned(), |clean| String::from_utf8(clean.to_vec()).unwrap())
    }

    #[test]
    fn the_value_before_is_known_too_and_the_one_before_that_no_longer() {
        let known = Known::new(Placement::Bearer);
        let secrets = ["first-value", "second-value", "third-value"].map(|value| Arc::new(Secret::of(value)));
        let text = "first-value second-value third-value";
        let seen = secrets.each_ref().map(|secret| clean(&known.with(secret).unwrap(), text));
        let expected = [
            "*********** second-value third-value",
            "*********** ************ third-value",
            "first-value ************ ***********",
        ];
        assert_eq!(seen, expected);
        // A request that began with the older value does not make it the newer one.
        assert_eq!(clean(&known.with(&secrets[1]).unwrap(), text), expected[2]);
    }

    #[test]
    fn a_pair_of_http_basic_goes_as_a_whole() {
        let known = Known::new(Placement::Basic("me".to_owned()));
        let secret = Arc::new(Secret::of("first-value"));
        let pair = String::from_utf8(secret.encoded("me").expose().to_vec()).unwrap();
        let clean = clean(&known.with(&secret).unwrap(), &format!("<{pair}>"));
        assert!(clean.starts_with("<[credential removed]") && clean.len() == pair.len() + 2, "{clean}");
    }

    #[rstest]
    #[case(7, None)]
    #[case(8, None)]
    #[case(8 * 1024, None)]
    #[case(8 * 1024 + 1, Some(Unscrubbable::TooLong))]
    fn what_is_too_long_to_be_looked_for_is_not_sent(#[case] length: usize, #[case] expected: Option<Unscrubbable>) {
        // Of many letters: what repeats itself takes long to prepare for.
        let text: String = (0..length).map(|at| char::from(b'a' + u8::try_from(at * at / 7 % 26).unwrap())).collect();
        let secret = Arc::new(Secret::of(&text));
        for placement in [Placement::Bearer, Placement::Basic("me".to_owned())] {
            assert_eq!(Known::new(placement).with(&secret).err(), expected);
        }
    }
}
