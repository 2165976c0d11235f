//! Hints of another replica are decoded or refused, and written again unchanged.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use shopbell::fanout::Hints;
use shopbell::fanout::wire::{decode, decode_lean, encode};
use shopbell::model::feed::Epoch;
use shopbell_fuzz::within;

/// A hint has at least 20 bytes, and becomes a row of a list and a frame.
const BYTES_PER_BYTE: usize = 32;

fuzz_target!(|input: &[u8]| {
    let decoded = within(BYTES_PER_BYTE * input.len() + 16 * 1024, || decode(input));
    let batches = match decoded {
        Ok(batches) => batches,
        Err(error) => return assert!(!error.is_empty()),
    };
    if let Some(lean) = decode_lean(input) {
        assert_eq!(vec![lean.of(|_| true)], batches, "both parsers agree");
    }
    let count = |hints: &Hints| hints.stored.len() + hints.newest.len() + hints.states.len();
    let hints: usize = batches.iter().map(count).sum();
    assert!(
        hints <= input.len() / 18,
        "{hints} hints of {} bytes",
        input.len()
    );
    let epochs: Vec<_> = batches.iter().map(|batch| &batch.epoch).collect();
    for (index, epoch) in epochs.iter().enumerate() {
        assert!(!epochs[..index].contains(epoch), "one batch for each epoch");
    }
    // A replica writes hints of known epochs only, and no empty batch.
    let written: Vec<_> = batches.iter().filter(|batch| count(batch) > 0).collect();
    if written.is_empty() {
        return;
    }
    if written.len() > 1 && written.iter().any(|batch| batch.epoch.is_none()) {
        return;
    }
    let text = encode(&written);
    let again = decode(text.as_bytes()).expect("a replica can read its own hints");
    let again: Vec<_> = again.iter().filter(|batch| count(batch) > 0).collect();
    assert_eq!(by_epoch(&written), by_epoch(&again), "{text}");
});

/// Hints of the same kind keep their order. Those of another epoch may come before them.
fn by_epoch<'a>(batches: &[&'a Hints]) -> BTreeMap<Option<&'a str>, &'a Hints> {
    let epoch = |hints: &'a Hints| hints.epoch.as_ref().map(Epoch::as_str);
    batches.iter().map(|hints| (epoch(hints), *hints)).collect()
}
