//! The size of the steps: smaller after a failure, and larger again after a success.

use crate::store::StoreError;

/// The size of the next step, in rows, feeds or blocks.
#[derive(Debug)]
pub(super) struct Pace {
    size: i64,
    size_max: i64,
}

impl Pace {
    pub(super) fn new(size_max: i64) -> Self {
        Self {
            size: size_max,
            size_max,
        }
    }

    pub(super) fn size(&self) -> i64 {
        self.size
    }

    /// Notes that a step succeeded.
    pub(super) fn grow(&mut self) {
        self.size = (self.size * 2).min(self.size_max);
    }

    /// Returns whether a smaller step may succeed, because the step took too long or one of its rows
    /// cannot be read.
    pub(super) fn shrink(&mut self, error: &StoreError) -> bool {
        let may_succeed = self.size > 1 && error.may_pass_in_parts();
        if may_succeed {
            self.size = (self.size / 8).max(1);
        }
        may_succeed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_shrink_to_one_row_and_grow_to_the_largest_size() {
        let unreadable = StoreError::Damaged(sqlx::Error::Decode("a row".into()));
        let mut pace = Pace::new(100);
        let mut sizes = Vec::new();
        while pace.shrink(&unreadable) {
            sizes.push(pace.size());
        }
        assert_eq!(sizes, [12, 1]);
        for size in [2, 4, 8, 16, 32, 64, 100, 100] {
            pace.grow();
            assert_eq!(pace.size(), size);
        }
        let silent = StoreError::Silent(std::time::Duration::from_secs(1));
        assert!(!pace.shrink(&silent));
    }
}
