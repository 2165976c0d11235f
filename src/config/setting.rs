//! The description of a setting: its variable, its values, its default and its role.

/// One setting of the service, as an environment variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// The environment variable.
    pub variable: &'static str,
    /// The values that it may have.
    pub kind: Kind,
    /// The value if the variable is not set.
    pub default: Default,
    /// The roles that use it.
    pub used_by: UsedBy,
    /// One line for operators.
    pub description: &'static str,
    /// A page with more, relative to `docs/`.
    pub page: Option<&'static str>,
}

/// The values that a setting may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A URL of Postgres. It is a secret, because it may contain a password.
    PostgresUrl,
    /// A URL of RabbitMQ. It is a secret, because it may contain a password.
    AmqpUrl,
    /// A secret that signs tokens.
    Key,
    /// Public keys in PEM.
    PublicKeys,
    /// The URL of a JSON Web Key Set.
    KeySetUrl,
    /// A whole number of this unit within these bounds.
    Number {
        /// The least.
        min: u64,
        /// The greatest.
        max: u64,
        /// The unit, in the plural.
        unit: &'static str,
    },
    /// `true` or `false`.
    Flag,
    /// An address and a port to listen on.
    Address,
    /// The prefix of names in RabbitMQ.
    Prefix,
    /// The name of a feed.
    Feed,
    /// Origins of web pages, separated by commas.
    Origins,
    /// Networks of IP addresses, separated by commas.
    Networks,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Any text without control characters.
    Text,
}

/// The value of a setting that is not set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Default {
    /// There is none: the variable must be set.
    Required,
    /// The setting has no value. The text names the effect.
    Unset(&'static str),
    /// This value, as an operator would write it.
    Value(&'static str),
}

/// A part of the service that can run alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// Stores events: without a public port and without keys for tokens.
    Ingest,
    /// Serves clients: without the ingest queues.
    Gateway,
}

/// The roles that use a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UsedBy {
    /// Both roles.
    Both,
    /// One role.
    Only(Role),
    /// `shopbell relay`, and no role of `serve`.
    Relay,
}

impl UsedBy {
    /// Whether a service with this role uses the setting; `None` stands for both roles.
    pub fn includes(self, role: Option<Role>) -> bool {
        match (self, role) {
            (Self::Relay, _) => false,
            (Self::Both, _) | (_, None) => true,
            (Self::Only(one), Some(role)) => one == role,
        }
    }
}

impl Kind {
    /// Whether a value is a secret. A secret may also come from the file that `NAME_FILE` names.
    pub fn is_secret(self) -> bool {
        matches!(self, Self::PostgresUrl | Self::AmqpUrl | Self::Key)
    }

    /// The values, in words that follow "must be".
    pub fn expected(self) -> String {
        match self {
            Self::PostgresUrl => "a URL like postgres://user:password@host:5432/database".into(),
            Self::AmqpUrl => "a URL like amqp://user:password@host:5672/vhost".into(),
            Self::Key => "a key of at least 32 bytes".into(),
            Self::PublicKeys => "one or more public keys in PEM".into(),
            Self::KeySetUrl => "an https URL".into(),
            Self::Number { min, max, .. } => format!("a whole number from {min} to {max}"),
            Self::Flag => "true or false".into(),
            Self::Address => "an address like 127.0.0.1:8080".into(),
            Self::Prefix => "1 to 100 of A-Z a-z 0-9 . _ -".into(),
            Self::Feed => "a name of 1 to 128 of A-Z a-z 0-9 . _ ~ / -".into(),
            Self::Origins => {
                "origins like https://shop.example, comma separated, without path or *, at most 256"
                    .into()
            }
            Self::Networks => {
                "networks like 10.0.0.0/8 or 2001:db8::/32, comma separated, at most 256".into()
            }
            Self::Choice(words) => words.join(" or "),
            Self::Text => "text of at most 1024 bytes without control characters".into(),
        }
    }
}
