//! ARCHITECTURE.md and docs/configuration.md match the sources. These tests read files and need no services.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use shopbell::model::protocol::Close;

/// Names that only these parts may use. (Directly after a `\"`, it is the name of a log target.)
const OWNED: [(&[&str], &[&str]); 5] = [
    (&["lapin::"], &["amqp"]),
    (
        &["sqlx::query", "sqlx::raw_sql", "sqlx::{"],
        &["store", "outbox"],
    ),
    (
        &["\"select ", "\"insert into ", "\"update ", "\"delete from "],
        &["store", "outbox"],
    ),
    (&["anyhow::"], &["commands", "main"]),
    // So only the proof `Published` allows ingest to acknowledge.
    (&["acknowledge_through"], &["amqp", "fanout"]),
];
/// The pure parts use no socket, no clock and no randomness.
const PURE: [&str; 2] = ["gateway/session/state", "model"];
const IMPURE: [&str; 8] = [
    "tokio::", "std::net", "std::env", "std::fs", "::now", "fastrand", "new_v4", "now_v7",
];

/// A longer file has more than one reason to change.
const LINES_MAX: usize = 500;

#[test]
fn imports_follow_the_table_in_the_architecture() {
    let table = section("ARCHITECTURE.md", "## Import table");
    let rows: Vec<(&str, Vec<&str>)> = table
        .lines()
        .filter_map(|row| row.split_once(" <-"))
        .map(|(name, imports)| (name, imports.split_whitespace().collect()))
        .collect();
    let (mut wrong, mut used) = (Vec::new(), BTreeSet::new());
    for (part, place, text) in code() {
        if part == "lib" || part == "main" || within(&part, "commands") {
            continue;
        }
        let row = rows.iter().find(|(name, _)| within(&part, name));
        // A room's own file, such as `gateway`, only lists its modules.
        let Some((name, allowed)) = row else {
            if !rows.iter().any(|(name, _)| within(name, &part)) {
                wrong.push(format!("{place}: {part} has no row"));
            }
            continue;
        };
        for import in imports(&part, &text) {
            match allowed.iter().find(|allowed| within(&import, allowed)) {
                _ if within(&import, name) => {}
                Some(allowed) => _ = used.insert((name, allowed)),
                None => wrong.push(format!("{place}: {name} may not import {import}: {text}")),
            }
        }
    }
    let mut above = Vec::new();
    for (name, allowed) in &rows {
        above.push(*name);
        for import in allowed {
            if !above.iter().any(|row| within(row, import)) {
                wrong.push(format!(
                    "{import} does not stand above {name}, which may import it"
                ));
            } else if !used.contains(&(name, import)) {
                wrong.push(format!(
                    "{name} does not import {import}: remove it from the row"
                ));
            }
        }
    }
    let remedy = "Pass the value in, or move it to a room that both may import. Change the import table in \
                  ARCHITECTURE.md only with the design.";
    none(wrong, remedy);
}

/// Rooms without a circle of imports among their modules.
const WITHOUT_CIRCLES: [&str; 5] = ["config", "http", "model", "ops", "telemetry"];

#[test]
fn modules_of_a_room_import_each_other_in_one_order() {
    let code = code();
    let modules: BTreeSet<&str> = code.iter().map(|(part, ..)| part.as_str()).collect();
    let module_of = |import: &str| {
        let names = |module: &&&str| within(import.trim_end_matches('/'), module);
        modules.iter().filter(names).max_by_key(|name| name.len())
    };
    // A module also depends on its submodules, because it declares them.
    let mut imported: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (part, _, text) in &code {
        let imports = imports(part, text);
        let others = imports.iter().filter_map(|import| module_of(import));
        let entry = imported.entry(part).or_default();
        entry.extend(others.filter(|other| *other != part));
        if let Some((parent, _)) = part.rsplit_once('/') {
            imported.entry(parent).or_default().insert(part);
        }
    }
    let mut wrong = Vec::new();
    for room in WITHOUT_CIRCLES {
        for module in modules.iter().filter(|module| within(module, room)) {
            let (mut reached, mut next) = (BTreeSet::new(), vec![*module]);
            while let Some(one) = next.pop() {
                let found = imported.get(one).into_iter().flatten();
                next.extend(found.filter(|found| reached.insert(**found)));
            }
            if reached.contains(module) {
                wrong.push(format!("{module} imports itself through others"));
            }
        }
    }
    none(
        wrong,
        "Move the shared type or function into a module of its own.",
    );
}

/// Our modules that a line of code names, such as `model/feed/Seq`.
fn imports(module: &str, line: &str) -> Vec<String> {
    let end = |text: &str| {
        text.find(|c: char| !c.is_alphanumeric() && !"_:".contains(c))
            .unwrap_or(text.len())
    };
    let path = |text: &str| text[..end(text)].trim_end_matches(':').replace("::", "/");
    let absolute = line.split("crate::").skip(1).map(path);
    let relative = line
        .match_indices("super::")
        .filter(|(at, _)| !line[..*at].ends_with("super::"))
        .map(|(at, _)| {
            let (mut parent, mut rest) = (module, &line[at..]);
            while let Some(after) = rest.strip_prefix("super::") {
                (parent, rest) = (
                    parent.rsplit_once('/').map_or("", |(parent, _)| parent),
                    after,
                );
            }
            format!("{parent}/{}", path(rest))
        });
    absolute.chain(relative).collect()
}

#[test]
fn names_that_one_part_owns_are_used_only_there() {
    let mut wrong = Vec::new();
    for (part, place, text) in code() {
        let has = |name: &&str| {
            text.match_indices(name)
                .any(|(at, _)| !text[..at].ends_with('"'))
        };
        let is_in = |parts: &[&str]| parts.iter().any(|one| within(&part, one));
        let owners = OWNED
            .iter()
            .find(|(names, owners)| names.iter().any(has) && !is_in(owners));
        wrong.extend(owners.map(|(_, owners)| format!("{place}: only in {owners:?}: {text}")));
        if is_in(&PURE) && IMPURE.iter().any(has) {
            wrong.push(format!("{place}: not in a pure part: {text}"));
        }
    }
    none(
        wrong,
        "Put it behind a function of the part that owns it. A pure part takes it as an argument.",
    );
}

#[test]
fn the_code_map_names_every_module() {
    let (map, lib) = (
        section("ARCHITECTURE.md", "## Code map"),
        read("src/lib.rs"),
    );
    let cells = map
        .lines()
        .filter_map(|row| row.strip_prefix("| `")?.split_once("` | "));
    let mapped: BTreeSet<_> = cells.flat_map(|(cell, _)| cell.split("`, `")).collect();
    let modules = lib
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    let modules: BTreeSet<_> = modules.collect();
    assert_eq!(
        mapped, modules,
        "ARCHITECTURE.md's code map (left) differs from src/lib.rs: correct the map"
    );
}

#[test]
fn every_name_in_the_architecture_is_found() {
    let sources: String = files(&["src", "migrations", "tests"])
        .iter()
        .map(|file| read(file))
        .collect();
    let is_there = |name: &str| match name.rsplit("::").next() {
        _ if name.contains('/') => ["", "src/"].iter().any(|root| {
            Path::new(&format!("{root}{name}")).exists()
                || Path::new(&format!("{root}{name}.rs")).exists()
        }),
        last => sources.contains(last.unwrap_or(name)),
    };
    let text = read("ARCHITECTURE.md").replace("```", "");
    let names = text
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|name| !is_there(name));
    none(
        names.map(Into::into).collect(),
        "ARCHITECTURE.md names these, which are not there: correct it.",
    );
}

#[test]
fn no_file_is_too_long() {
    let lengths = files(&["src", "tests", "benches", "migrations", "scripts"])
        .into_iter()
        .map(|file| (read(&file).lines().count(), file));
    let long = lengths
        .filter(|(lines, _)| *lines > LINES_MAX)
        .map(|(lines, file)| format!("{file}: {lines} lines"));
    none(
        long.collect(),
        &format!("{LINES_MAX} lines are the most: split it by the reasons that it has to change."),
    );
}

/// Comments around the generated part of docs/configuration.md.
const SETTINGS_BEGIN: &str =
    "<!-- Generated by `RENEW=1 cargo test --test it the_page_of_settings`: -->\n\n";
const SETTINGS_END: &str = "\n<!-- End of the generated table. -->\n";

#[test]
fn the_page_of_settings_has_the_table_of_the_code() {
    let file = "docs/configuration.md";
    let page = read(file);
    let parts = page.split_once(SETTINGS_BEGIN).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(SETTINGS_END)?;
        Some((before, after))
    });
    let (before, after) = parts.expect("docs/configuration.md has the comments around its table");
    let table = shopbell::config::markdown_table();
    let expected = format!("{before}{SETTINGS_BEGIN}{table}{SETTINGS_END}{after}");
    if std::env::var_os("RENEW").is_some() {
        std::fs::write(file, &expected).expect("docs/configuration.md can be written");
        return;
    }
    assert!(
        page == expected,
        "{file} differs from src/config/settings.rs. Renew it: \
         RENEW=1 cargo test --test it the_page_of_settings"
    );
}

#[test]
fn the_protocol_page_lists_every_close() {
    let table = section("docs/protocol.md", "## Close codes");
    let rows = table.lines().filter_map(|row| {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [code, word, _, reconnect] = cells[..] else {
            return None;
        };
        let word = word.trim_matches('`').to_owned();
        Some((code.parse().ok()?, word, reconnect.starts_with("yes")))
    });
    let closes = Close::ALL.into_iter().map(|close| {
        // The reply to the close of a client has no reason.
        let has_word = close != Close::Answered;
        let word = if has_word { close.word() } else { "" };
        (close.code(), word.to_owned(), close.may_reconnect())
    });
    assert_eq!(
        rows.collect::<BTreeSet<(u16, String, bool)>>(),
        closes.collect(),
        "docs/protocol.md (left) differs from src/model/protocol/close.rs: correct the page"
    );
}

#[test]
fn the_browser_client_reconnects_after_the_closes_of_the_protocol() {
    let source = read("web/client/src/protocol.ts");
    let (_, table) = source
        .split_once("const FINAL")
        .expect("the client has a table");
    let (table, _) = table.split_once("};").expect("the table has an end");
    let rows = table.lines().filter_map(|row| row.trim().split_once(':'));
    let codes = rows.filter_map(|(code, _)| code.parse().ok());
    let is_final: BTreeSet<u16> = codes.chain(4500..=4999).collect();
    let wrong = Close::ALL
        .into_iter()
        .filter(|close| *close != Close::Answered)
        .filter(|close| is_final.contains(&close.code()) == close.may_reconnect());
    none(
        wrong.map(|close| format!("{close:?}")).collect(),
        "The browser client reconnects after other closes than `Close::may_reconnect`: correct FINAL.",
    );
}

/// Every line of code in src/ above the tests: its part (`session/state`), its place and its text.
fn code() -> Vec<(String, String, String)> {
    let mut code = Vec::new();
    for file in files(&["src"])
        .into_iter()
        .filter(|file| !file.contains("/tests"))
    {
        let part = file.trim_start_matches("src/").trim_end_matches(".rs");
        for (index, line) in read(&file)
            .lines()
            .take_while(|line| *line != "mod tests {")
            .enumerate()
        {
            if !line.trim_start().starts_with("//") {
                code.push((
                    part.to_owned(),
                    format!("{file}:{}", index + 1),
                    line.trim().to_owned(),
                ));
            }
        }
    }
    code
}

fn within(path: &str, part: &str) -> bool {
    path.strip_prefix(part)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// From a heading of a document to the next.
fn section(file: &str, heading: &str) -> String {
    let text = read(file);
    let (_, section) = text
        .split_once(heading)
        .unwrap_or_else(|| panic!("{file} has lost its {heading:?}"));
    section.split("\n## ").next().unwrap_or(section).to_owned()
}

/// Rust, SQL and scripts in these folders.
fn files(folders: &[&str]) -> Vec<String> {
    let (mut files, mut paths) = (
        Vec::new(),
        folders.iter().map(PathBuf::from).collect::<Vec<_>>(),
    );
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            paths.extend(
                path.read_dir()
                    .expect("a folder can be read")
                    .map(|entry| entry.expect("a name").path()),
            );
        } else if path
            .extension()
            .is_none_or(|extension| extension == "rs" || extension == "sql")
        {
            files.push(path.display().to_string());
        }
    }
    files.sort();
    files
}

fn read(file: &str) -> String {
    std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{file} cannot be read: {error}"))
}

#[track_caller]
fn none(wrong: Vec<String>, remedy: &str) {
    assert!(wrong.is_empty(), "{}\n{remedy}", wrong.join("\n"));
}
