//! Comments, documents, logs and errors are plain English. These tests read files, and need no services.
//!
//! `PROSE="src/model docs" cargo test --test it prose::` lists every finding in these folders and files.

mod extract;
mod rules;

use std::collections::BTreeMap;
use std::path::Path;

use self::extract::{Kind, blocks};
use self::rules::{Rule, identifier, sentences};

/// Findings and "if" per 1,000 words in six model codebases, over all their files together.
///
/// Measured by this test with 300,000 words of comments, 138,000 of documents and 55,000 of texts:
/// - tokio-rs/mini-redis 3d93b42bc363
/// - quinn-rs/quinn a1931ab8c37e
/// - rust-lang/crates.io 57fa000662f5
/// - mozilla-services/autopush-rs 4ebe2624c02b
/// - nextest-rs/nextest b2a481b1ab
/// - rust-lang/bors 0bcb424540
const MODELS: [(Kind, Rates); 3] = [
    (
        Kind::Comment,
        Rates {
            what: 0.44,
            say: 0.13,
            long: 1.46,
            ifs: 8.11,
        },
    ),
    (
        Kind::Document,
        Rates {
            what: 0.60,
            say: 0.17,
            long: 1.37,
            ifs: 5.34,
        },
    ),
    (
        Kind::Text,
        Rates {
            what: 0.05,
            say: 0.09,
            long: 1.16,
            ifs: 0.0,
        },
    ),
];

/// Per 1,000 words.
struct Rates {
    what: f64,
    say: f64,
    long: f64,
    ifs: f64,
}

#[test]
fn prose_is_as_plain_as_the_models() {
    let prose = Prose::of(Path::new("."));
    for (kind, model) in MODELS {
        let total = &prose.totals[&kind];
        let [what, say, term, long] = total.found.map(|count| total.per_thousand(count));
        let is_plain = what <= 2.0 * model.what
            && say <= 2.0 * model.say
            && term == 0.0
            && long <= model.long
            && total.per_thousand(total.ifs) >= model.ifs / 2.0;
        assert!(
            is_plain,
            "{}{kind:?}: {total}\n{REMEDY}",
            list(&prose.findings)
        );
    }
}

#[test]
fn prose_of_chosen_files_is_listed() {
    for root in std::env::var("PROSE")
        .iter()
        .flat_map(|roots| roots.split_whitespace())
    {
        let prose = Prose::of(Path::new(root));
        let totals = prose
            .totals
            .iter()
            .map(|(kind, total)| format!("{kind:?}: {total}\n"));
        assert!(
            prose.findings.is_empty(),
            "{}\n{}",
            list(&prose.findings),
            totals.collect::<String>()
        );
    }
}

#[test]
fn comments_texts_and_documents_are_recognised() {
    let check = |path, text, expected: &[(Kind, usize, &str)]| {
        let found = blocks(path, text);
        let found: Vec<_> = found
            .iter()
            .map(|b| (b.kind, b.line, b.text.as_str()))
            .collect();
        assert_eq!(found, expected, "in {path}");
    };
    use Kind::{Comment, Document, Text};
    check(
        "a.rs",
        "/// One\n/// two.\n///\n/// - three\n/// ```\n/// let code;\n/// ```\nfn f<'a>(c: char) { '\"' } // four",
        &[
            (Comment, 1, "One\ntwo."),
            (Comment, 4, "three"),
            (Comment, 8, "four"),
        ],
    );
    check(
        "a.rs",
        "warn!(\"the query for a page failed\");\nquery(\"select a // b from c\"); r#\"it \"is\" // a raw string\"#",
        &[
            (Text, 1, "the query for a page failed"),
            (Text, 2, "it \"is\" // a raw string"),
        ],
    );
    check(
        "a.ts",
        "/** One\n * two. */\nconst a = 'https://b'; // three",
        &[(Comment, 1, "One\ntwo."), (Comment, 3, "three")],
    );
    check(
        "a.sql",
        "-- One\n-- two.\nselect '-- no' -- three",
        &[(Comment, 1, "One\ntwo."), (Comment, 3, "three")],
    );
    check(
        "a.sh",
        "#!/bin/sh\n# One\necho \"$#\" # two",
        &[(Comment, 2, "One"), (Comment, 3, "two")],
    );
    check(
        "a.py",
        "def a():\n    \"\"\"One\n    two.\"\"\"\n",
        &[(Comment, 2, "One\ntwo.")],
    );
    check(
        "a.yaml",
        "# One\nsummary: >-\n  The queue is\n  too long now.\nexpr: a # two",
        &[
            (Comment, 1, "One"),
            (Comment, 5, "two"),
            (Document, 3, "The queue is\ntoo long now."),
        ],
    );
    check(
        "a.json",
        "{\n  \"description\": \"The queue is too long.\",\n  \"expr\": \"no\"\n}",
        &[(Document, 2, "The queue is too long.")],
    );
    check(
        "a.md",
        "# One\nTwo\nthree.\n\n```\ncode\n```\n| four | `five` |\n|---|---|\n1. six",
        &[
            (Document, 1, "One"),
            (Document, 2, "Two\nthree."),
            (Document, 8, " four "),
            (Document, 8, " `five` "),
            (Document, 10, "six"),
        ],
    );
}

#[test]
fn each_rule_finds_its_habit_and_spares_plain_sentences() {
    let rules = |text: &str| -> Vec<Rule> {
        let found = sentences(text)
            .into_iter()
            .flat_map(|sentence| sentence.findings());
        found.map(|(rule, _)| rule).collect()
    };
    for (rule, text) in [
        (
            Rule::What,
            "What a merchant would not get, the canary does not get.",
        ),
        (Rule::What, "The gateway deletes what is of no use."),
        (Rule::What, "Who asks for history waits."),
        (Rule::What, "The hint reaches whoever waits."),
        (Rule::Say, "RabbitMQ says that the queue is gone."),
        (Rule::Say, "The hub is told of a commit."),
        (Rule::Term, "The publisher hands on the hint."),
        (Rule::Term, "The sweep looks at each feed."),
        (Rule::Term, "The books must balance."),
        (Rule::Long, &"word ".repeat(31)),
    ] {
        assert_eq!(rules(text), [rule], "{text}");
    }
    for text in [
        "What happens if Postgres is away?",
        "The error names what to do.",
        "The merchant who connects first gets the page.",
        "If a frame is too long, the session closes with 1009.",
        "`what is said` is code, <what> is markup, and $what is a variable.",
        "The row looks like a duplicate.",
        "The counters must balance.",
        &"word ".repeat(30),
        &"A word ends here. ".repeat(10),
    ] {
        assert_eq!(rules(text), [], "{text}");
    }
    assert_eq!(
        identifier("let next = self.take_in(input);"),
        Some("take_in")
    );
    assert_eq!(identifier("let paged_in = take_input();"), None);
}

#[test]
fn a_finding_names_the_line_of_its_sentence() {
    let found = sentences("The first, e.g. `a. b`. The second\nhas [a\nlink](http://c.d). Third.");
    let lines: Vec<_> = found
        .iter()
        .map(|one| (one.line, one.words(), one.text.as_str()))
        .collect();
    assert_eq!(
        lines,
        [
            (0, 5, "The first, e.g. CODE."),
            (0, 5, "The second has a link."),
            (2, 1, "Third.")
        ],
    );
}

/// The words of a tree and the findings in them.
#[derive(Default)]
struct Prose {
    totals: BTreeMap<Kind, Total>,
    findings: Vec<Finding>,
}

#[derive(Default)]
struct Total {
    words: usize,
    ifs: usize,
    /// By [`Rule`].
    found: [usize; 4],
}

struct Finding {
    path: String,
    line: usize,
    rule: Rule,
    word: String,
    text: String,
}

impl Prose {
    fn of(root: &Path) -> Self {
        let mut prose = Self::default();
        let mut paths = vec![root.to_owned()];
        while let Some(path) = paths.pop() {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or(".");
            if path.is_dir() && !SKIPPED.contains(&name) {
                let entries = path.read_dir().expect("a folder can be read");
                paths.extend(entries.map(|entry| entry.expect("an entry can be read").path()));
            } else if path.is_file() && !SKIPPED.contains(&name) && !name.starts_with("LICENSE") {
                // Files that are not UTF-8 have no prose.
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                prose.add(
                    path.to_str().unwrap_or(name).trim_start_matches("./"),
                    &text,
                );
            }
        }
        prose
            .findings
            .sort_by(|a, b| (&a.path, a.line).cmp(&(&b.path, b.line)));
        prose
    }

    fn add(&mut self, path: &str, text: &str) {
        for block in blocks(path, text) {
            let total = self.totals.entry(block.kind).or_default();
            for sentence in sentences(&block.text) {
                total.words += sentence.words();
                total.ifs += sentence.ifs();
                for (rule, word) in sentence.findings() {
                    total.found[rule as usize] += 1;
                    let (path, line) = (path.to_owned(), block.line + sentence.line);
                    let text = sentence.text.clone();
                    self.findings.push(Finding {
                        path,
                        line,
                        rule,
                        word,
                        text,
                    });
                }
            }
        }
        for (index, line) in text.lines().enumerate().filter(|_| path.ends_with(".rs")) {
            if let Some(name) = identifier(line) {
                let (path, text) = (path.to_owned(), line.trim().to_owned());
                let word = name.to_owned();
                self.findings.push(Finding {
                    path,
                    line: index + 1,
                    rule: Rule::Term,
                    word,
                    text,
                });
            }
        }
    }
}

/// Tools' folders and files; and the examples in this test, which break the rules on purpose.
const SKIPPED: [&str; 12] = [
    ".git",
    ".services",
    ".demo",
    ".test",
    "target",
    "vendor",
    "node_modules",
    "dist",
    "__pycache__",
    "package-lock.json",
    "prose.rs",
    "prose",
];

const REMEDY: &str = "write plain sentences, subject first, one idea each";

impl Finding {}

fn list<'a>(findings: impl IntoIterator<Item = &'a Finding>) -> String {
    let line = |f: &Finding| {
        format!(
            "{}:{}: {:?} ({}): {}\n",
            f.path, f.line, f.rule, f.word, f.text
        )
    };
    findings.into_iter().map(line).collect()
}

impl Total {
    fn per_thousand(&self, count: usize) -> f64 {
        1000.0 * count as f64 / self.words.max(1) as f64
    }
}

impl std::fmt::Display for Total {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [what, say, term, long] = self.found.map(|count| self.per_thousand(count));
        let ifs = self.per_thousand(self.ifs);
        let words = self.words;
        write!(
            f,
            "{words} words; per 1,000: what {what:.2} say {say:.2} term {term:.2} long {long:.2} if {ifs:.2}"
        )
    }
}
