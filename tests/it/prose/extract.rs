//! Finds the prose of a file: paragraphs of comments, documents and texts, each with its first line.
//!
//! The scanners know only the parts of each language that separate prose from code.

/// Where prose stands. Each kind has its own figures in the model codebases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Comments and rustdoc.
    Comment,
    /// Markdown, alert annotations and the descriptions in JSON files.
    Document,
    /// String literals of four words and more: logs, errors, help and panic messages.
    Text,
}

/// A paragraph, a list item or a table cell. `text` keeps the line breaks.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) kind: Kind,
    /// Of its first line, from 1.
    pub(super) line: usize,
    pub(super) text: String,
}

/// The prose of a file, or none if its language is not known.
pub(super) fn blocks(path: &str, text: &str) -> Vec<Block> {
    let name = path.rsplit('/').next().unwrap_or(path);
    match name.rsplit_once('.') {
        Some((_, "md")) => markdown(text),
        Some((_, "rs")) => c_like(text, "\"", true),
        Some((_, "ts" | "js" | "mjs")) => c_like(text, "\"'`", false),
        Some((_, "css")) => c_like(text, "", false),
        Some((_, "sql")) => sql(text),
        Some((_, "py")) => hashes(text, "\"'"),
        Some((_, "yaml" | "yml")) => hashes(text, "")
            .into_iter()
            .chain(annotations(text))
            .collect(),
        Some((_, "json")) => descriptions(text),
        Some((_, "toml" | "env" | "conf")) => hashes(text, ""),
        Some((_, "sh")) | None => hashes(text, "\""),
        Some(_) => Vec::new(),
    }
}

/// Comments with `//` and `/* */`, and strings in any of `quotes`.
fn c_like(text: &str, quotes: &str, is_rust: bool) -> Vec<Block> {
    let (mut blocks, mut comments, mut at) = (Vec::new(), Paragraphs::default(), 0);
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        if rest.starts_with("//") && !quotes.is_empty() {
            let end = rest.find('\n').unwrap_or(rest.len());
            let marker = ["///", "//!"].into_iter().find(|m| rest.starts_with(m));
            let marker = marker.unwrap_or("//");
            comments.add(text, at, marker, &rest[marker.len()..end]);
            at += end;
        } else if rest.starts_with("/*") {
            let end = rest.find("*/").unwrap_or(rest.len());
            comments.close();
            for (index, line) in rest[2..end].split('\n').enumerate() {
                comments.line(
                    line_of(text, at) + index,
                    line.trim().trim_start_matches('*'),
                );
            }
            comments.close();
            at = (at + end + 2).min(text.len());
        } else if let Some((start, close)) = raw_string(text, at).filter(|_| is_rust) {
            let end = rest[start..]
                .find(&close)
                .map_or(rest.len(), |end| start + end);
            blocks.extend(statement(line_of(text, at), &rest[start..end]));
            at = (at + end + close.len()).min(text.len());
        } else if is_rust && first == '\'' {
            at += char_literal(rest);
        } else if quotes.contains(first) {
            let end = string_end(rest, first, is_rust || first == '`');
            blocks.extend(statement(line_of(text, at), &rest[1..end]));
            at = (at + end + 1).min(text.len());
        } else {
            at += first.len_utf8();
        }
    }
    blocks.extend(comments.finish());
    blocks
}

/// The length of `r#"` and the closing `"#`, if a raw string begins here.
fn raw_string(text: &str, at: usize) -> Option<(usize, String)> {
    let before = text[..at].chars().next_back();
    if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
        return None;
    }
    let rest = text[at..].strip_prefix('b').unwrap_or(&text[at..]);
    let hashes = rest.strip_prefix('r')?;
    let count = hashes.len() - hashes.trim_start_matches('#').len();
    hashes[count..].strip_prefix('"')?;
    let start = text[at..].len() - hashes.len() + count + 1;
    Some((start, format!("\"{}", "#".repeat(count))))
}

/// The length of a character literal, or 1 at a lifetime.
fn char_literal(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some((next, escaped))) => {
            let from = next + escaped.len_utf8();
            rest[from..].find('\'').map_or(1, |end| from + end + 1)
        }
        (_, Some((end, '\''))) => end + 1,
        _ => 1,
    }
}

/// The closing quote of the string that begins `rest`.
fn string_end(rest: &str, quote: char, spans_lines: bool) -> usize {
    let mut is_escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '\n' if !spans_lines => return at,
            _ if c == quote => return at,
            _ => {}
        }
    }
    rest.len()
}

/// Comments with `--`, and strings.
fn sql(text: &str) -> Vec<Block> {
    let (mut blocks, mut comments, mut at) = (Vec::new(), Paragraphs::default(), 0);
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        if rest.starts_with("--") {
            let end = rest.find('\n').unwrap_or(rest.len());
            comments.add(text, at, "--", &rest[2..end]);
            at += end;
        } else if first == '\'' {
            let end = rest[1..].find('\'').map_or(rest.len(), |end| end + 1);
            blocks.extend(statement(line_of(text, at), &rest[1..end]));
            at = (at + end + 1).min(text.len());
        } else {
            at += first.len_utf8();
        }
    }
    blocks.extend(comments.finish());
    blocks
}

/// Comments with `#`, docstrings if `quotes` has both quotes, and strings that end on their line.
fn hashes(text: &str, quotes: &str) -> Vec<Block> {
    let (mut blocks, mut comments) = (Vec::new(), Paragraphs::default());
    let (mut at, mut in_docstring) = (0, false);
    for (index, line) in text.split('\n').enumerate() {
        let trimmed = line.trim_start();
        let docstring = trimmed
            .trim_start_matches(['r', 'f'])
            .strip_prefix("\"\"\"");
        if in_docstring || (quotes.contains('\'') && docstring.is_some()) {
            let body = if in_docstring {
                line
            } else {
                docstring.unwrap_or(line)
            };
            let body_and_rest = body.split_once("\"\"\"");
            comments.line(index + 1, body_and_rest.map_or(body, |(body, _)| body));
            in_docstring = body_and_rest.is_none();
        } else if let Some(hash) = hash(line) {
            if !line[hash..].starts_with("#!") {
                comments.add(text, at + hash, "#", line[hash..].trim_start_matches('#'));
            }
            blocks.extend(strings(index + 1, &line[..hash], quotes));
        } else {
            comments.close();
            blocks.extend(strings(index + 1, line, quotes));
        }
        at += line.len() + 1;
    }
    blocks.extend(comments.finish());
    blocks
}

/// Where a comment begins: a `#` at the start, or between blanks outside of quotes.
fn hash(line: &str) -> Option<usize> {
    let start = line.len() - line.trim_start().len();
    if line[start..].starts_with('#') {
        return Some(start);
    }
    let (mut quote, mut before) = (None, ' ');
    for (at, c) in line.char_indices() {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '"' || c == '\'' => quote = Some(c),
            None if before.is_whitespace() && line[at..].starts_with("# ") => return Some(at),
            None if before.is_whitespace() && line[at..].starts_with("##") => return Some(at),
            None => {}
        }
        before = c;
    }
    None
}

fn strings(line: usize, mut rest: &str, quotes: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    while let Some(at) = rest.find(|c| quotes.contains(c)) {
        let quote = if rest[at..].starts_with('"') {
            '"'
        } else {
            '\''
        };
        let end = at + string_end(&rest[at..], quote, false);
        blocks.extend(statement(line, &rest[at + 1..end]));
        rest = rest.get(end + 1..).unwrap_or("");
    }
    blocks
}

/// The values of `description`, `summary` and `message` in YAML, on one line or folded.
fn annotations(text: &str) -> Vec<Block> {
    let (lines, mut blocks, mut at) = (text.lines().collect::<Vec<_>>(), Vec::new(), 0);
    let indent = |line: &str| line.len() - line.trim_start_matches([' ', '-']).len();
    while at < lines.len() {
        let (key, value) = lines[at]
            .trim_start_matches([' ', '-'])
            .split_once(':')
            .unwrap_or_default();
        let own = indent(lines[at]);
        at += 1;
        if !["description", "summary", "message"].contains(&key) {
            continue;
        }
        let is_block = value.trim().starts_with(['>', '|']);
        let mut body = if is_block { vec![] } else { vec![value.trim()] };
        let first = if is_block { at + 1 } else { at };
        while at < lines.len() && !lines[at].trim().is_empty() && indent(lines[at]) > own {
            body.push(lines[at].trim());
            at += 1;
        }
        blocks.extend(statement(first, body.join("\n").trim_matches(['\'', '"'])));
    }
    for block in &mut blocks {
        block.kind = Kind::Document;
    }
    blocks
}

/// The descriptions and titles in JSON, each on a line of its own.
fn descriptions(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let (key, value) = line.trim().split_once("\": \"").unwrap_or_default();
        if ["\"description", "\"title", "\"summary", "\"content"].contains(&key) {
            blocks.extend(statement(
                index + 1,
                value.trim_end_matches(',').trim_matches('"'),
            ));
        }
    }
    for block in &mut blocks {
        block.kind = Kind::Document;
    }
    blocks
}

fn markdown(text: &str) -> Vec<Block> {
    let mut paragraphs = Paragraphs::default();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim().trim_start_matches(['>', ' ']);
        match line.starts_with("<!--") {
            true => paragraphs.close(),
            false => paragraphs.line(index + 1, line),
        }
    }
    let mut blocks = paragraphs.finish();
    for block in &mut blocks {
        block.kind = Kind::Document;
    }
    blocks
}

/// A string literal as a block, if it is a sentence: four words, and neither SQL nor JSON nor markup.
fn statement(line: usize, literal: &str) -> Option<Block> {
    const SQL: [&str; 11] = [
        "do", "select", "insert", "update", "delete", "with", "create", "alter", "drop", "from",
        "where",
    ];
    let is_word = |word: &&str| {
        let word = word.trim_matches(|c: char| ".,;:!?\"'()`".contains(c));
        word.len() > 1 && word.chars().all(char::is_alphabetic)
    };
    let is_code = literal.trim_start().starts_with(['{', '[', '<'])
        || [";\n", " = "].iter().any(|mark| literal.contains(mark))
        || SQL.contains(&literal.split_whitespace().next().unwrap_or_default());
    let is_statement = !is_code && literal.split_whitespace().filter(is_word).count() >= 4;
    // A backslash at the end of a line only continues the literal.
    let text = literal.replace("\\\n", " \n");
    is_statement.then_some(Block {
        kind: Kind::Text,
        line,
        text,
    })
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// Joins lines to paragraphs. Empty lines, list items, headings, table rows and code fences end one.
#[derive(Default)]
struct Paragraphs {
    blocks: Vec<Block>,
    current: Option<Block>,
    /// The line and the marker of the last comment that stands alone on its line.
    last: (usize, String),
    is_fenced: bool,
}

impl Paragraphs {
    /// Adds a line comment that begins at `at`. It joins the comment on the line above, if both stand alone.
    fn add(&mut self, text: &str, at: usize, marker: &str, body: &str) {
        let line = line_of(text, at);
        let before = text[..at].rsplit('\n').next().unwrap_or_default();
        let stands_alone = before.trim().is_empty();
        if !stands_alone || self.last != (line - 1, marker.to_owned()) {
            self.close();
        }
        self.last = if stands_alone {
            (line, marker.to_owned())
        } else {
            Default::default()
        };
        self.line(line, body);
        if !stands_alone {
            self.close();
        }
    }

    fn line(&mut self, line: usize, body: &str) {
        let body = body.trim();
        if body.starts_with("```") || body.starts_with("~~~") {
            self.end_paragraph();
            self.is_fenced = !self.is_fenced;
        } else if self.is_fenced {
        } else if ["usage:", "shellcheck "]
            .iter()
            .any(|start| body.starts_with(start))
        {
            self.end_paragraph();
        } else if body.starts_with('|') {
            self.end_paragraph();
            for cell in body
                .split('|')
                .filter(|cell| !cell.trim_matches([' ', ':', '-']).is_empty())
            {
                self.push(line, cell);
                self.end_paragraph();
            }
        } else if let Some(item) = item(body) {
            self.end_paragraph();
            self.push(line, item);
            if body.starts_with('#') {
                self.end_paragraph();
            }
        } else if body.is_empty() {
            self.end_paragraph();
        } else {
            self.push(line, body);
        }
    }

    fn push(&mut self, line: usize, body: &str) {
        match &mut self.current {
            Some(block) => block.text.extend(["\n", body]),
            None => {
                let text = body.to_owned();
                self.current = Some(Block {
                    kind: Kind::Comment,
                    line,
                    text,
                });
            }
        }
    }

    fn end_paragraph(&mut self) {
        self.blocks.extend(self.current.take());
    }

    fn close(&mut self) {
        self.end_paragraph();
        self.is_fenced = false;
    }

    fn finish(mut self) -> Vec<Block> {
        self.close();
        self.blocks
    }
}

/// The text of a list item or a heading.
fn item(body: &str) -> Option<&str> {
    let after = body.trim_start_matches(|c: char| c.is_ascii_digit());
    let after_marker = match body.chars().next()? {
        '-' | '*' | '+' | '•' => body.get(body.chars().next()?.len_utf8()..)?,
        '#' => body.trim_start_matches('#'),
        '0'..='9' => after.strip_prefix(['.', ')'])?,
        _ => return None,
    };
    after_marker.strip_prefix(' ')
}
