//! Amounts as Kubernetes writes them.

const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
const DECIMAL: [&str; 6] = ["k", "M", "G", "T", "P", "E"];
/// More digits after the point mean nothing in bytes.
const MAX_FRACTION: usize = 18;

/// How many bytes an amount is, such as `4Gi` or `1.5G`. None if it is written in another way, or is too large.
pub(crate) fn bytes(quantity: &str) -> Option<u64> {
    let end = quantity.find(|char: char| !char.is_ascii_digit() && char != '.').unwrap_or(quantity.len());
    let (number, unit) = quantity.split_at(end);
    let power = |base: u128, units: [&str; 6]| {
        let exponent = units.iter().position(|known| *known == unit)?;
        base.checked_pow(u32::try_from(exponent).ok()? + 1)
    };
    let factor = if unit.is_empty() { Some(1) } else { power(1024, BINARY).or_else(|| power(1000, DECIMAL)) }?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.len() > MAX_FRACTION || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    u64::try_from(digits.checked_mul(factor)?.checked_div(scale)?).ok()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::bytes;

    #[rstest]
    #[case("4Gi", Some(4 << 30))]
    #[case("64Mi", Some(64 << 20))]
    #[case("1.5G", Some(1_500_000_000))]
    #[case("123", Some(123))]
    #[case(".5Ki", Some(512))]
    #[case("20Ei", None)]
    #[case("100m", None)]
    #[case("1e3", None)]
    #[case("-1", None)]
    #[case("", None)]
    #[case("1.2.3", None)]
    #[case("Gi", None)]
    fn amounts_are_read(#[case] quantity: &str, #[case] expected: Option<u64>) {
        assert_eq!(bytes(quantity), expected);
    }
}
