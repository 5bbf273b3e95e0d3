//! What tokens cost, in whole numbers.

use longhand_protocol::event::Usage;
use longhand_protocol::harness::Prices;
use longhand_protocol::wire::Money;

/// Digits after the point that are kept.
const DIGITS: usize = 12;
const UNIT: u128 = 1_000_000_000_000;
/// Prices are of so many tokens.
const TOKENS: u128 = 1_000_000;
/// The longest amount that the wire API and the AgentSession take, in characters.
const LONGEST: usize = 20;

/// An amount in millionths of a millionth of the smallest unit of its currency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Amount(u128);

impl Amount {
    /// Reads a decimal number; what is smaller than is kept is cut off. Nothing if it is none, or is not of this world.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || whole.len() > LONGEST || !digits(whole) || !digits(fraction) {
            return None;
        }
        let kept: String = fraction.chars().chain(std::iter::repeat('0')).take(DIGITS).collect();
        whole.parse::<u128>().ok()?.checked_mul(UNIT)?.checked_add(kept.parse().ok()?).map(Self)
    }

    /// As a decimal number without needless digits.
    pub(super) fn show(self) -> String {
        let (whole, rest) = (self.0 / UNIT, self.0 % UNIT);
        let fraction = format!("{rest:0DIGITS$}");
        let room = LONGEST.saturating_sub(whole.to_string().len() + 1);
        let fraction = fraction.get(..room.min(DIGITS)).unwrap_or_default().trim_end_matches('0');
        if fraction.is_empty() { whole.to_string() } else { format!("{whole}.{fraction}") }
    }

    fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The price of so many tokens, of which a million cost this.
    fn of(self, tokens: u64) -> Self {
        Self(self.0.saturating_mul(u128::from(tokens)) / TOKENS)
    }
}

/// What `tokens` cost beyond what was `spent` already, if the prices are known. An amount of another currency is not
/// counted.
pub(super) fn total(prices: Option<&Prices>, spent: Option<&Money>, tokens: Usage) -> Option<Money> {
    let Some(prices) = prices else { return spent.cloned() };
    let before = spent.filter(|spent| spent.currency == prices.currency).and_then(|spent| Amount::parse(&spent.amount));
    let parts = [
        (&prices.input, tokens.input_tokens),
        (&prices.output, tokens.output_tokens),
        (&prices.cache_read, tokens.cache_read_input_tokens),
        (&prices.cache_write, tokens.cache_creation_input_tokens),
    ];
    let mut amount = before.unwrap_or_default();
    for (price, tokens) in parts {
        amount = amount.plus(Amount::parse(price)?.of(tokens));
    }
    Some(Money { amount: amount.show(), currency: prices.currency.clone() })
}

#[cfg(test)]
mod tests {
    use longhand_protocol::event::Usage;
    use longhand_protocol::harness::Prices;
    use longhand_protocol::wire::Money;
    use rstest::rstest;

    use super::{Amount, total};

    #[rstest]
    #[case("0", Some("0"))]
    #[case("2500", Some("2500"))]
    #[case("0.300", Some("0.3"))]
    #[case("1.0000000000019", Some("1.000000000001"))]
    #[case("12345678901234567890.5", Some("12345678901234567890"))]
    #[case("123456789012345678901", None)]
    #[case("", None)]
    #[case(".5", None)]
    #[case("-1", None)]
    #[case("1e3", None)]
    fn an_amount_is_a_decimal_number(#[case] text: &str, #[case] shown: Option<&str>) {
        assert_eq!(Amount::parse(text).map(Amount::show).as_deref(), shown);
    }

    fn dollars(amount: &str) -> Money {
        Money { amount: amount.to_owned(), currency: "USD".to_owned() }
    }

    fn prices() -> Prices {
        let [input, output, cache_read, cache_write] = ["300", "1500", "30", "375"].map(ToOwned::to_owned);
        Prices { input, output, cache_read, cache_write, currency: "USD".to_owned() }
    }

    #[test]
    fn every_kind_of_token_has_its_price() {
        let tokens = Usage {
            input_tokens: 1_000_000,
            output_tokens: 100_000,
            cache_read_input_tokens: 10,
            cache_creation_input_tokens: 1,
        };
        assert_eq!(total(Some(&prices()), None, tokens), Some(dollars("450.000675")));
        assert_eq!(total(Some(&prices()), Some(&dollars("0.5")), tokens), Some(dollars("450.500675")));
        assert_eq!(total(None, Some(&dollars("0.5")), tokens), Some(dollars("0.5")), "what was paid stays");
        assert_eq!(total(None, None, tokens), None);
        let euros = Money { currency: "EUR".to_owned(), ..dollars("9") };
        assert_eq!(total(Some(&prices()), Some(&euros), Usage::default()), Some(dollars("0")));
    }
}
