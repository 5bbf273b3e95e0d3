//! Where a page ended: opaque to clients, and good for the list that it came from only.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use longhand_protocol::wire::Order;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::api::error::{ApiError, Result};

const LONGEST: usize = 1_024;

#[derive(Serialize, Deserialize)]
struct Cursor<P> {
    order: Order,
    at: P,
}

/// A cursor for the position `at` of a list in this order.
pub(super) fn encode<P: Serialize>(order: Order, at: P) -> Result<String> {
    let json = serde_json::to_vec(&Cursor { order, at });
    let json = json.map_err(|error| ApiError::internal(format!("a cursor cannot be written: {error}")))?;
    Ok(URL_SAFE_NO_PAD.encode(json))
}

/// The position of a cursor, if it is one of a list in this order.
pub(super) fn decode<P: DeserializeOwned>(page: &str, order: Order) -> Result<P> {
    let cursor: Option<Cursor<P>> = Some(page)
        .filter(|page| page.len() <= LONGEST)
        .and_then(|page| URL_SAFE_NO_PAD.decode(page).ok())
        .and_then(|json| serde_json::from_slice(&json).ok());
    let cursor = cursor.ok_or_else(|| ApiError::bad_request("`page` is not a cursor of this list"))?;
    if cursor.order != order {
        return Err(ApiError::bad_request("`page` is a cursor of the list in another `order`"));
    }
    Ok(cursor.at)
}

/// The parameter `order`.
pub(in crate::api) fn order(value: Option<&str>, default: Order) -> Result<Order> {
    match value {
        None => Ok(default),
        Some("asc") => Ok(Order::Asc),
        Some("desc") => Ok(Order::Desc),
        Some(other) => Err(ApiError::bad_request(format!("`order` is neither asc nor desc: `{other}`"))),
    }
}

#[cfg(test)]
mod tests {
    use longhand_protocol::wire::Order;
    use rstest::rstest;

    use super::{decode, encode};

    #[test]
    fn a_cursor_belongs_to_its_order() {
        let page = encode(Order::Asc, 7_u64).unwrap();
        assert_eq!(decode::<u64>(&page, Order::Asc).unwrap(), 7);
        assert!(decode::<u64>(&page, Order::Desc).unwrap_err().to_string().contains("order"));
        assert!(decode::<String>(&page, Order::Asc).is_err());
    }

    #[rstest]
    #[case("")]
    #[case("page")]
    #[case("e30")]
    #[case(&"a".repeat(10_000))]
    fn nonsense_is_no_cursor(#[case] page: &str) {
        assert_eq!(decode::<u64>(page, Order::Asc).unwrap_err().status(), 400);
    }
}
