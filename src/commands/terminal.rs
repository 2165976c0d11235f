//! What commands write: data to stdout, talk to stderr, and nothing that a foreign text could do to a terminal.

use std::io::{ErrorKind, IsTerminal, Write};

use anyhow::Context;
use serde::Serialize;

/// How data is written to stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people: one line a thing.
    Text,
    /// For programs: one JSON object a line.
    Json,
}

/// Whoever read our stdout went away: the command has no one to work for.
#[derive(Debug, thiserror::Error)]
#[error("stdout was closed")]
pub struct StdoutClosed;

/// Writes data as it is, at once.
pub fn write(data: &[u8]) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(data).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(StdoutClosed.into()),
        result => result.context("writing to stdout"),
    }
}

/// Writes lines, each of them ended already by [`text_line`] or [`json_line`].
pub fn write_lines(lines: &str) -> anyhow::Result<()> {
    write(lines.as_bytes())
}

/// Says something to people.
pub fn talk(text: &str) {
    let text: Vec<_> = text.lines().map(visible).collect();
    // stderr may be closed, and then there is nobody to tell that.
    let _ = writeln!(std::io::stderr(), "{}", text.join("\n"));
}

/// Whether data goes to a terminal, and not to a file or a program.
pub fn is_stdout_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// One line of text.
pub fn text_line(text: &str) -> String {
    visible(text) + "\n"
}

/// One line of JSON.
pub fn json_line(value: &impl Serialize) -> anyhow::Result<String> {
    Ok(one_line(&serde_json::to_string(value)?))
}

/// JSON of whatever layout as one line: a line break can only stand between tokens, DEL and C1 only in strings.
pub fn one_line(json: &str) -> String {
    let mut line = String::with_capacity(json.len() + 1);
    for c in json.chars() {
        match c {
            '\n' | '\r' => line.push(' '),
            '\u{7f}'..='\u{9f}' => line.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => line.push(c),
        }
    }
    line.push('\n');
    line
}

/// Text in which everything that could command a terminal, break the line or turn its direction is spelled out.
pub fn visible(text: &str) -> String {
    let mut visible = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || turns_direction_or_breaks_line(c) {
            visible.extend(c.escape_default());
        } else {
            visible.push(c);
        }
    }
    visible
}

/// An error and its causes in one line. A cause that the text before it quotes already is not told again.
pub fn chain(error: &anyhow::Error) -> String {
    let mut told = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if told.is_empty() {
            told = cause;
        } else if !told.contains(&cause) {
            told = format!("{told}: {cause}");
        }
    }
    told
}

/// Unicode's bidirectional controls (UAX #9 §2) and its two line breaks that are no control characters.
fn turns_direction_or_breaks_line(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_cannot_command_the_terminal() {
        assert_eq!(visible("Zoë 🎉 50 €"), "Zoë 🎉 50 €");
        assert_eq!(visible("a\x1b[2Jb\rc\nd\te"), r"a\u{1b}[2Jb\rc\nd\te");
        assert_eq!(
            visible("\u{9b}31m\u{7f}\u{202e}\u{2028}\0"),
            r"\u{9b}31m\u{7f}\u{202e}\u{2028}\u{0}"
        );
    }

    #[test]
    fn a_cause_is_told_once() {
        let error = anyhow::anyhow!("refused")
            .context("RabbitMQ: refused")
            .context("publishing");
        assert_eq!(chain(&error), "publishing: RabbitMQ: refused");
    }

    #[test]
    fn json_is_one_line_and_means_the_same() {
        let json = "{\n \"a\":\r\n\"\u{9b}é\"}";
        let line = one_line(json);
        assert_eq!(line, "{  \"a\":  \"\\u009bé\"}\n");
        let value = |text| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(value(json), value(&line));
    }
}
