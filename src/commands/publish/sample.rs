//! Sample data: orders of a shop, and an import in which some items fail.

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Most items of one import, so that no count overflows.
pub(super) const ITEMS_MAX: u64 = 1_000_000_000;

const CUSTOMERS: [&str; 8] = [
    "Ada Okafor",
    "Björn Lindqvist",
    "Chloé Martin",
    "Daisuke Mori",
    "Élodie Renard",
    "Fatima Haddad",
    "Giorgos Pappas",
    "Hannah Weiß",
];
/// The first is the most frequent.
const CURRENCIES: [&str; 5] = ["EUR", "EUR", "EUR", "CHF", "GBP"];
const ITEM_ERRORS: [&str; 4] = [
    "no price",
    "this SKU is in the catalogue twice",
    "the image is larger than 10 MB",
    "unknown tax class",
];
/// The price of an item, in cents.
const ITEM_CENTS: std::ops::RangeInclusive<u64> = 399..=8_999;

/// The data of an `order.created`.
pub(super) fn order() -> anyhow::Result<String> {
    // Few orders are large.
    let items = fastrand::u64(1..=3) * fastrand::u64(1..=3);
    let cents: u64 = (0..items).map(|_| fastrand::u64(ITEM_CENTS)).sum();
    let data = json!({
        "order_id": fastrand::u32(10_000..100_000).to_string(),
        "total": format!("{}.{:02}", cents / 100, cents % 100),
        "currency": one_of(&CURRENCIES),
        "items": items,
        "placed_at": OffsetDateTime::now_utc().format(&Rfc3339)?,
        "customer": { "name": one_of(&CUSTOMERS) },
    });
    Ok(data.to_string())
}

fn one_of(texts: &[&'static str]) -> &'static str {
    fastrand::choice(texts).copied().unwrap_or_default()
}

/// An import: its start, its items, its end.
pub(super) struct Import {
    id: String,
    items: u64,
    failed: u64,
}

impl Import {
    /// A new import of `items` items, of which `failed` fail.
    pub(super) fn new(items: u64, failed: u64) -> Self {
        let id = uuid::Uuid::new_v4().simple().to_string();
        Self {
            id: format!("import-{}", &id[..8]),
            items,
            failed,
        }
    }

    /// The number of events.
    pub(super) fn total(&self) -> u64 {
        self.items + 2
    }

    /// The type and the data of one event.
    pub(super) fn event(&self, index: u64) -> (&'static str, String) {
        let id = &self.id;
        let (event_type, data) = match index {
            0 => (
                "import.started",
                json!({ "import_id": id, "total": self.items }),
            ),
            index if index <= self.items => ("import.item", self.item(index)),
            _ => (
                "import.finished",
                json!({ "import_id": id, "status": "finished" }),
            ),
        };
        (event_type, data.to_string())
    }

    fn item(&self, index: u64) -> Value {
        let (id, sku) = (&self.id, format!("SKU-{index:04}"));
        if self.fails(index) {
            let error = one_of(&ITEM_ERRORS);
            json!({ "import_id": id, "index": index, "sku": sku, "status": "failed", "error": error })
        } else {
            json!({ "import_id": id, "index": index, "sku": sku, "status": "imported" })
        }
    }

    /// Whether the item fails. Failed items are spread evenly.
    fn fails(&self, index: u64) -> bool {
        let failed_through =
            |index: u64| u128::from(index) * u128::from(self.failed) / u128::from(self.items);
        failed_through(index) > failed_through(index - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_requested_number_of_items_fails() {
        for (items, failed) in [(1, 0), (1, 1), (20, 3), (7, 7), (ITEMS_MAX, 0)] {
            let import = Import::new(items, failed);
            let tried = items.min(100);
            assert_eq!(
                (1..=tried).filter(|index| import.fails(*index)).count() as u64,
                failed,
                "{failed} of {items}"
            );
        }
    }
}
