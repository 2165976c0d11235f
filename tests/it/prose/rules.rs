//! The rules for one paragraph: it is split into sentences and words, and each rule reads the words.

/// A habit that the check finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rule {
    /// A clause with what, who or whoever in the place of a noun.
    What,
    /// Say or tell. Software logs, returns, sends and reports.
    Say,
    /// A word from the right column of the terms.
    Term,
    /// A sentence of more than [`WORDS_MAX`] words.
    Long,
}

/// A reader should never need to read a sentence twice.
const WORDS_MAX: usize = 30;

/// Terms of one word that have a better one.
const TERMS: [&str; 7] = [
    "book", "books", "pager", "pagers", "bury", "buries", "buried",
];
/// Terms of two words that have a better one.
const PAIRS: [(&[&str], &str); 3] = [
    (&["hand", "hands", "handed", "handing"], "on"),
    (&["look", "looked", "looking"], "at"),
    (&["hear", "hears", "heard", "know", "knows", "knew"], "of"),
];
/// Identifiers that have a better name.
const IDENTIFIERS: [&str; 6] = [
    "take_in",
    "is_behind",
    "HandedOn",
    "hand_on",
    "handed_on",
    "pager",
];

/// A sentence with the line of its first word, counted from the paragraph's first line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sentence {
    pub(super) line: usize,
    pub(super) text: String,
    /// Words and punctuation marks, in lower case.
    tokens: Vec<String>,
}

impl Sentence {
    pub(super) fn words(&self) -> usize {
        self.tokens.iter().filter(|token| is_word(token)).count()
    }

    pub(super) fn ifs(&self) -> usize {
        self.tokens.iter().filter(|token| *token == "if").count()
    }

    /// The rules that this sentence breaks, with the word in question.
    pub(super) fn findings(&self) -> Vec<(Rule, String)> {
        let mut found = Vec::new();
        let is_question = self.tokens.iter().rev().take(3).any(|token| token == "?");
        for (at, token) in self.tokens.iter().enumerate() {
            let before = at.checked_sub(1).map(|before| self.tokens[before].as_str());
            let after = self.tokens.get(at + 1).map_or("", String::as_str);
            let token = token.as_str();
            let stands_for_a_noun = match token {
                // "what to do" and "what if" do not stand for a noun.
                "what" | "what's" | "whatever" => !["to", "if", "kind"].contains(&after),
                "whoever" => true,
                // "A merchant who" is plain English.
                "who" | "who's" => before.is_none_or(begins_a_clause),
                _ => false,
            };
            if stands_for_a_noun && !is_question {
                found.push((Rule::What, token.to_owned()));
            }
            if [
                "say", "says", "said", "saying", "tell", "tells", "told", "telling",
            ]
            .contains(&token)
            {
                found.push((Rule::Say, token.to_owned()));
            }
            if TERMS.contains(&token) || (token == "looks" && !["like", "up"].contains(&after)) {
                found.push((Rule::Term, token.to_owned()));
            }
            if PAIRS
                .iter()
                .any(|(first, second)| first.contains(&token) && *second == after)
            {
                found.push((Rule::Term, format!("{token} {after}")));
            }
        }
        if self.words() > WORDS_MAX {
            found.push((Rule::Long, format!("{} words", self.words())));
        }
        found
    }
}

/// Whether a "who" behind this word begins a clause without a noun.
fn begins_a_clause(before: &str) -> bool {
    const WORDS: &str = ": ; \" “ and but or so that because when if while as than where then for to \
                         of from by is only with on at in not";
    WORDS.split(' ').any(|word| word == before)
}

/// The identifier in a line of code that has a better name.
pub(super) fn identifier(line: &str) -> Option<&'static str> {
    let mut names = line.split(|c: char| !c.is_alphanumeric() && c != '_');
    names.find_map(|name| {
        IDENTIFIERS
            .into_iter()
            .find(|identifier| name == *identifier)
    })
}

/// Splits a paragraph into its sentences.
pub(super) fn sentences(paragraph: &str) -> Vec<Sentence> {
    let text = plain(paragraph);
    let (mut found, mut start) = (Vec::new(), 0);
    for (at, mark) in text.char_indices() {
        let end = at + mark.len_utf8();
        if at >= start && ".!?…".contains(mark) && ends_sentence(&text[start..at], &text[end..]) {
            found.extend(sentence(&text, start, end));
            start = end;
        }
    }
    found.extend(sentence(&text, start, text.len()));
    found
}

/// A mark ends a sentence before a blank and a capital, but not behind an abbreviation.
fn ends_sentence(before: &str, after: &str) -> bool {
    let word = before
        .rsplit(|c: char| !c.is_alphanumeric() && c != '.')
        .next();
    let after = after.trim_start_matches(['"', '\'', '”', ')', ']', '*', '_']);
    let next = after
        .trim_start()
        .trim_start_matches(['"', '\'', '“', '(', '[', '*', '_']);
    if next.is_empty() {
        return true;
    }
    let is_abbreviation = word.is_some_and(|word| {
        ["e.g", "i.e", "etc", "vs", "cf"].contains(&word.to_lowercase().as_str())
    });
    let begins = next
        .chars()
        .next()
        .is_some_and(|c| c.is_uppercase() || c.is_ascii_digit());
    after.starts_with(char::is_whitespace) && begins && !is_abbreviation
}

fn sentence(text: &str, start: usize, end: usize) -> Option<Sentence> {
    let raw = &text[start..end];
    let first = start + raw.find(char::is_alphanumeric)?;
    let mut tokens: Vec<String> = Vec::new();
    let mut is_in_word = false;
    for c in raw.chars() {
        if c.is_alphanumeric() || (is_in_word && "'’_/-".contains(c)) {
            if !is_in_word {
                tokens.push(String::new());
            }
            tokens.last_mut()?.extend(c.to_lowercase());
            is_in_word = true;
        } else {
            is_in_word = false;
            if ",;:()?!.—–\"“”…-".contains(c) {
                tokens.push(c.to_string());
            }
        }
    }
    let line = text[..first].matches('\n').count();
    let text = raw.split_whitespace().collect::<Vec<_>>().join(" ");
    Some(Sentence { line, text, tokens })
}

/// Replaces code, addresses, placeholders and markup, each by one word or none; keeps the line breaks.
fn plain(text: &str) -> String {
    let (mut plain, mut rest) = (String::new(), text);
    while let Some(first) = rest.chars().next() {
        let (replacement, length) = replace(rest).unwrap_or_else(|| {
            let length = first.len_utf8();
            (rest[..length].to_owned(), length)
        });
        plain += &replacement;
        plain +=
            &"\n".repeat(rest[..length].matches('\n').count() - replacement.matches('\n').count());
        rest = &rest[length..];
    }
    plain
}

/// The replacement for the markup that begins `rest`, and the length of the markup.
fn replace(rest: &str) -> Option<(String, usize)> {
    let until =
        |from: usize, close: &str| Some(from + rest.get(from..)?.find(close)? + close.len());
    let ticks = rest.len() - rest.trim_start_matches('`').len();
    if ticks > 0 {
        return Some(("CODE".into(), until(ticks, &"`".repeat(ticks))?));
    }
    if rest.starts_with("](") {
        return Some((String::new(), until(2, ")")?));
    }
    if rest.starts_with("**") || rest.starts_with("\\n") {
        return Some((" ".into(), 2));
    }
    if rest.starts_with(['[', ']']) {
        return Some((String::new(), 1));
    }
    if rest.starts_with("https://") || rest.starts_with("http://") {
        let end = rest.find(|c: char| c.is_whitespace() || ")>\"".contains(c));
        let address = rest[..end.unwrap_or(rest.len())].trim_end_matches(['.', ',', ';', ':']);
        return Some(("URL".into(), address.len()));
    }
    if let Some(name) = rest.strip_prefix('$') {
        let end = name.find(|c: char| !c.is_alphanumeric() && c != '_');
        let length = end.unwrap_or(name.len());
        return (length > 0).then(|| ("X".into(), length + 1));
    }
    if let Some(inner) = rest.strip_prefix('{') {
        let end = inner.find(['{', '}'])?;
        return inner[end..].starts_with('}').then(|| ("X".into(), end + 2));
    }
    if let Some(tag) = rest.strip_prefix('<') {
        let end = tag.find(['<', '>'])?;
        let is_tag = tag.starts_with(|c: char| c == '/' || c.is_ascii_alphabetic());
        return (is_tag && tag[end..].starts_with('>')).then(|| (" ".into(), end + 2));
    }
    None
}

fn is_word(token: &str) -> bool {
    token.starts_with(char::is_alphanumeric)
}
