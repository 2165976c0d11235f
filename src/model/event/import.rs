//! The import that an event belongs to.

/// Longest `import_id`, in bytes. It is part of a primary key, and of the collapse key of the items
/// of the import.
pub const IMPORT_ID_BYTES_MAX: usize = 128;

/// The part of an event about an import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// `import_id`: identifies one import in the feed of its recipient.
    pub id: String,
    /// The step that the event reports.
    pub step: Step,
    /// `index`: the number of the item. An item that is published again has the same number.
    pub item: Option<i64>,
}

/// A step of an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// `import.started`.
    Started {
        /// The number of items.
        total: i64,
    },
    /// An item was imported.
    Imported,
    /// An item was not imported.
    Failed,
    /// The import is complete.
    Finished,
    /// The import ended before its last item.
    Aborted,
}

impl Import {
    /// Whether the event only reports progress, as for an imported item. Nobody has to read or
    /// handle it, and only the newest is replayed.
    pub fn is_progress(&self) -> bool {
        self.step == Step::Imported
    }
}
