//! The events of one publisher: orders, imports, broadcasts, events that expire or collapse, and bad
//! ones.

use std::collections::BTreeMap;
use std::sync::Arc;

use fastrand::Rng;
use serde_json::{Value, json};

use super::history::History;
use super::load::Load;
use super::population::{BROADCAST_FEED, Merchant, Population};
use crate::it::support::{Event, Parcel};

/// Items of an import.
const ITEMS: std::ops::Range<u64> = 3..40;
/// Imports of a publisher at a time.
const IMPORTS_MAX: usize = 6;
/// Seconds until an event expires.
const EXPIRY_SECONDS: std::ops::Range<u64> = 2..40;
/// Keys of a merchant.
const COLLAPSE_KEYS: u8 = 4;

/// An event to publish, and its description for the history.
pub struct Draft {
    pub parcel: Parcel,
    /// The fields of `publish_invoked`, without the attempt.
    pub note: Value,
}

/// Draws the events of one publisher.
pub struct Mix {
    publisher: usize,
    population: Arc<Population>,
    random: Rng,
    /// Events so far.
    count: u64,
    /// Events so far for each feed.
    counts: BTreeMap<String, u64>,
    imports: Vec<Import>,
    imports_begun: u64,
}

/// A running import.
struct Import {
    merchant: usize,
    id: String,
    total: u64,
    /// The next item; 0 is the start.
    next: u64,
}

impl Mix {
    pub fn new(publisher: usize, population: Arc<Population>, random: Rng) -> Self {
        Self {
            publisher,
            population,
            random,
            count: 0,
            counts: BTreeMap::new(),
            imports: Vec::new(),
            imports_begun: 0,
        }
    }

    /// The number of its publisher.
    pub fn publisher(&self) -> usize {
        self.publisher
    }

    /// The next event.
    pub fn next(&mut self, history: &History, load: &Load) -> Draft {
        let population = Arc::clone(&self.population);
        let merchant = population.pick(&mut self.random);
        let is_good = self.random.u16(..1_000) >= load.bad_permille();
        load.count(is_good);
        if !is_good {
            return self.bad(merchant);
        }
        match self.random.u16(..1_000) {
            0..4 => self.broadcast(),
            4..180 => self.import(&population),
            180..260 => self.expiring(merchant, history),
            260..360 => self.collapsing(merchant),
            _ => {
                let data = self.order(merchant);
                let event = self.event("order.created", &merchant.feed, &data);
                self.draft(event, json!({"type": "order.created"}), &merchant.feed)
            }
        }
    }

    fn broadcast(&mut self) -> Draft {
        let event = self.event("platform.notice", BROADCAST_FEED, r#"{"text":"notice"}"#);
        self.draft(event, json!({"type": "platform.notice"}), BROADCAST_FEED)
    }

    /// Its data breaks the schema, so it becomes a dead letter.
    fn bad(&mut self, merchant: &Merchant) -> Draft {
        let data = json!({"secret": merchant.secret}).to_string();
        let event = self.event("order.created", &merchant.feed, &data);
        let note = json!({"type": "order.created", "poison": true});
        self.draft(event, note, &merchant.feed)
    }

    fn expiring(&mut self, merchant: &Merchant, history: &History) -> Draft {
        let at = history.now() + self.random.u64(EXPIRY_SECONDS) * 1_000_000;
        let data = self.order(merchant);
        let event = self
            .event("order.created", &merchant.feed, &data)
            .expires_at(history.date(at));
        let note = json!({"type": "order.created", "expires_at": at});
        self.draft(event, note, &merchant.feed)
    }

    fn collapsing(&mut self, merchant: &Merchant) -> Draft {
        let key = format!("stock/{}", self.random.u8(..COLLAPSE_KEYS));
        let data = json!({"stock": self.count, "secret": merchant.secret}).to_string();
        let event = self
            .event("stock.changed", &merchant.feed, &data)
            .collapse_key(&key);
        let note = json!({"type": "stock.changed", "collapse_key": key});
        self.draft(event, note, &merchant.feed)
    }

    /// The next event of a running import, or the start of another.
    fn import(&mut self, population: &Population) -> Draft {
        let place = self.random.usize(..IMPORTS_MAX);
        if place >= self.imports.len() {
            self.imports_begun += 1;
            let feed = &population.pick(&mut self.random).feed;
            let is_it = |merchant: &Merchant| merchant.feed == *feed;
            self.imports.push(Import {
                merchant: population
                    .merchants
                    .iter()
                    .position(is_it)
                    .expect("a merchant of this run"),
                id: format!("import-{}-{}", self.publisher, self.imports_begun),
                total: self.random.u64(ITEMS),
                next: 0,
            });
        }
        let place = place.min(self.imports.len() - 1);
        let import = &mut self.imports[place];
        let (next, total, id) = (import.next, import.total, import.id.clone());
        let merchant = &population.merchants[import.merchant];
        import.next += 1;
        let mut data = json!({"import_id": id, "secret": merchant.secret});
        let mut note = json!({"import_id": id});
        let event_type = if next == 0 {
            data["total"] = total.into();
            note["total"] = total.into();
            "import.started"
        } else if next <= total {
            let failed = self.random.u8(..8) == 0;
            data["index"] = next.into();
            data["sku"] = format!("S-{next}").into();
            data["status"] = if failed { "failed" } else { "imported" }.into();
            if failed {
                data["error"] = "no price".into();
            }
            note["item"] = next.into();
            note["failed"] = failed.into();
            "import.item"
        } else {
            self.imports.swap_remove(place);
            data["status"] = "finished".into();
            note["status"] = "finished".into();
            "import.finished"
        };
        note["type"] = event_type.into();
        let event = self.event(event_type, &merchant.feed, &data.to_string());
        self.draft(event, note, &merchant.feed)
    }

    /// The data of an order, mostly small.
    fn order(&mut self, merchant: &Merchant) -> String {
        let length = match self.random.u8(..100) {
            0 => self.random.usize(2_000..30_000),
            _ => self.random.usize(0..300),
        };
        json!({
            "order_id": format!("{}-{}", self.publisher, self.count + 1), "total": "19.90", "currency": "EUR",
            "items": 2, "secret": merchant.secret, "note": "x".repeat(length),
        })
        .to_string()
    }

    fn event(&mut self, event_type: &str, recipient: &str, data: &str) -> Event {
        self.count += 1;
        Event::new(event_type, recipient, data)
            .source(&format!("/shop/{}", self.publisher))
            .id(&format!("p{}-{}", self.publisher, self.count))
    }

    fn draft(&mut self, event: Event, mut note: Value, feed: &str) -> Draft {
        let count = self.counts.entry(feed.to_owned()).or_default();
        *count += 1;
        note["n"] = (*count).into();
        note["feed"] = feed.into();
        note["id"] = event.event_id().into();
        note["source"] = format!("/shop/{}", self.publisher).into();
        note["publisher"] = format!("publisher-{}", self.publisher).into();
        Draft {
            parcel: Parcel::from(event),
            note,
        }
    }
}
