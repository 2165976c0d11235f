//! The state of a device, as the frame `device_state` reports it.

/// Whether a device can ring for a new order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CanRing {
    /// It can.
    Yes,
    /// A person muted it.
    Muted,
    /// Its browser plays no sound before a person clicks.
    Blocked,
    /// Its page or its screen is suspended.
    Asleep,
}

impl CanRing {
    /// Parses the value of a frame.
    pub fn parse(value: &str) -> Option<Self> {
        [Self::Yes, Self::Muted, Self::Blocked, Self::Asleep]
            .into_iter()
            .find(|known| known.as_str() == value)
    }

    /// The value in frames and rows.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::Muted => "muted",
            Self::Blocked => "blocked",
            Self::Asleep => "asleep",
        }
    }
}

/// The state of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceState {
    /// Whether it can ring.
    pub can_ring: CanRing,
    /// Whether a person can see the page; `None` if the device does not know.
    pub visible: Option<bool>,
}
