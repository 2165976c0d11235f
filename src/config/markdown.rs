//! The table of settings as Markdown, for `docs/configuration.md`.

use super::settings::{Default, Kind, Role, SETTINGS, Setting, UsedBy};

/// One row for each setting.
pub fn table() -> String {
    let head = "| variable | value | default | role | purpose |\n|---|---|---|---|---|\n";
    SETTINGS.iter().fold(head.to_owned(), |table, setting| {
        table + &row(setting) + "\n"
    })
}

fn row(setting: &Setting) -> String {
    let Setting {
        variable,
        description,
        ..
    } = setting;
    let secret = if setting.kind.is_secret() {
        "secret: "
    } else {
        ""
    };
    let expected = escaped(&setting.kind.expected());
    let page = setting.page.map_or_else(String::new, |page| {
        let name = page.rsplit('/').next().unwrap_or(page);
        let name = if name == "README.md" {
            "its page"
        } else {
            name
        };
        format!(". See [{name}]({page})")
    });
    format!(
        "| `{variable}` | {secret}{expected} | {} | {} | {description}{page} |",
        default(setting),
        role(setting.used_by)
    )
}

fn default(setting: &Setting) -> String {
    match (setting.default, setting.kind) {
        (Default::Required, _) => "required".into(),
        (Default::Unset(effect), _) => format!("unset: {effect}"),
        (Default::Value(value), Kind::Number { unit, .. }) => format!("`{value}` {unit}"),
        (Default::Value(value), _) => format!("`{value}`"),
    }
}

fn role(used_by: UsedBy) -> &'static str {
    match used_by {
        UsedBy::Both => "both",
        UsedBy::Only(Role::Ingest) => "ingest",
        UsedBy::Only(Role::Gateway) => "gateway",
        UsedBy::Relay => "relay",
    }
}

/// Marks URLs, stars and lists of characters as code, because Markdown would interpret them.
fn escaped(text: &str) -> String {
    if let Some(at) = text.find("A-Z") {
        return format!("{}`{}`", &text[..at], &text[at..]);
    }
    let words = text.split(' ').map(|word| {
        let bare = word.trim_end_matches(',');
        if bare.contains("://") || bare == "*" {
            format!("`{bare}`{}", &word[bare.len()..])
        } else {
            word.to_owned()
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_range_the_unit_and_the_page() {
        let table = table();
        for row in [
            "| `AMQP_URL` | secret: a URL like `amqp://user:password@host:5672/vhost` | required | both | RabbitMQ 3.10 or newer; `amqps` for TLS |\n",
            "| `SHOPBELL_WINDOW` | a whole number from 1 to 65536 | `256` notifications | gateway | Most notifications that one session may have sent without an ack. See [protocol.md](protocol.md) |\n",
            "| `SHOPBELL_AMQP_PREFIX` | 1 to 100 of `A-Z a-z 0-9 . _ -` | `shopbell` | both |",
            "| `SHOPBELL_ALLOWED_ORIGINS` | origins like `https://shop.example`, comma separated, without path or `*`, at most 256 | unset: same origin only |",
        ] {
            assert!(table.contains(row), "{row} is not in\n{table}");
        }
        assert_eq!(table.lines().count(), 2 + SETTINGS.len());
    }
}
