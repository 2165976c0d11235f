//! The output of commands: data to stdout, messages to stderr. Escapes foreign text, so that it
//! cannot control the terminal.

use std::io::{ErrorKind, IsTerminal, Write};

use anyhow::Context;
use serde::Serialize;

/// The format of the data on stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people: one line for each item.
    Text,
    /// For programs: one JSON object on each line.
    Json,
}

/// The reader of stdout has ended, so the command ends too.
#[derive(Debug, thiserror::Error)]
#[error("stdout was closed")]
pub struct StdoutClosed;

/// Writes data unchanged, and flushes it.
pub fn write(data: &[u8]) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(data).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(StdoutClosed.into()),
        result => result.context("writing to stdout"),
    }
}

/// Writes lines that [`text_line`] or [`json_line`] made.
pub fn write_lines(lines: &str) -> anyhow::Result<()> {
    write(lines.as_bytes())
}

/// Writes a message for people to stderr.
pub fn write_message(text: &str) {
    let text: Vec<_> = text.lines().map(visible).collect();
    // If stderr is closed, the message is lost, and the command goes on.
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

/// Turns JSON of any layout into one line. Line breaks stand only between tokens, and the control
/// characters DEL and C1 only in strings (RFC 8259 §2, §7).
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

/// Escapes each character that could control the terminal, break the line, or change the direction
/// of the text.
pub fn visible(text: &str) -> String {
    let mut visible = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || changes_direction_or_breaks_line(c) {
            visible.extend(c.escape_default());
        } else {
            visible.push(c);
        }
    }
    visible
}

/// An error and its causes in one line. Leaves out a cause that the text before it contains.
pub fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// The bidirectional controls of Unicode (UAX #9 §2), and its two line breaks that are not control
/// characters.
fn changes_direction_or_breaks_line(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_cannot_control_the_terminal() {
        assert_eq!(visible("Zoë 🎉 50 €"), "Zoë 🎉 50 €");
        assert_eq!(visible("a\x1b[2Jb\rc\nd\te"), r"a\u{1b}[2Jb\rc\nd\te");
        assert_eq!(
            visible("\u{9b}31m\u{7f}\u{202e}\u{2028}\0"),
            r"\u{9b}31m\u{7f}\u{202e}\u{2028}\u{0}"
        );
    }

    #[test]
    fn an_error_repeats_no_cause() {
        let error = anyhow::anyhow!("refused")
            .context("RabbitMQ: refused")
            .context("publishing");
        assert_eq!(chain(&error), "publishing: RabbitMQ: refused");
    }

    #[test]
    fn json_becomes_one_line_with_the_same_value() {
        let json = "{\n \"a\":\r\n\"\u{9b}é\"}";
        let line = one_line(json);
        assert_eq!(line, "{  \"a\":  \"\\u009bé\"}\n");
        let value = |text| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(value(json), value(&line));
    }
}
