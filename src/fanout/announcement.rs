//! The numbers that a message of the fan-out exchange carries in a header.

use serde::{Deserialize, Serialize};

/// The place of a message in the streams of its process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Announcement {
    /// The message has hints.
    Hints {
        /// The place of the stream.
        stream: usize,
        /// The number of the message in it.
        number: u64,
    },
    /// The process lives.
    Heartbeat {
        /// Time until the next heartbeat.
        every_ms: u64,
        /// The highest number of each stream that is published or given up.
        numbers: Vec<u64>,
    },
    /// The process ends, and stores nothing any more.
    Farewell {
        /// The highest number of each stream.
        numbers: Vec<u64>,
    },
}

impl Announcement {
    /// Writes the header.
    pub fn encode(&self) -> String {
        // A struct of numbers can always be written as JSON.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Parses the header. Returns `None` for an unknown one, as of a newer version.
    pub fn decode(header: &str) -> Option<Self> {
        serde_json::from_str(header).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decoded_announcement_equals_the_encoded_one() {
        let numbers = vec![0, u64::MAX];
        for announcement in [
            Announcement::Hints {
                stream: 3,
                number: 17,
            },
            Announcement::Heartbeat {
                every_ms: 1_000,
                numbers: numbers.clone(),
            },
            Announcement::Farewell { numbers },
        ] {
            let header = announcement.encode();
            assert_eq!(Announcement::decode(&header), Some(announcement));
        }
        assert_eq!(Announcement::decode("{}"), None);
    }
}
