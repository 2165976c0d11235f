//! Links of the documentation lead to files and headings that exist. These tests read files and need no services.

use std::collections::{BTreeSet, HashMap};
use std::path::{Component, Path, PathBuf};

/// Folders whose documents are not ours.
const FOREIGN: [&str; 3] = ["target", "node_modules", "vendor"];
/// Text files of these folders may name documents.
const CITING: [&str; 8] = [
    "src",
    "tests",
    "benches",
    "scripts",
    "migrations",
    "k8s",
    "observability",
    "web",
];

#[test]
fn every_link_of_the_documentation_leads_somewhere() {
    let pages = pages();
    let mut wrong = Vec::new();
    for (page, text) in &pages {
        for (line, link) in links(text) {
            let problem = check(&pages, page, &link);
            wrong.extend(problem.map(|why| format!("{}:{line}: {link}: {why}", page.display())));
        }
    }
    assert!(
        wrong.is_empty(),
        "correct these links:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn the_index_and_the_book_list_every_page_of_docs() {
    let pages = pages();
    let lists = ["docs/README.md", "docs/SUMMARY.md"].map(PathBuf::from);
    let in_docs = |page: &&PathBuf| page.starts_with("docs") && !lists.contains(page);
    let expected: BTreeSet<_> = pages.keys().filter(in_docs).cloned().collect();
    for list in &lists {
        let linked = links(&pages[list]).into_iter();
        let linked = linked.map(|(_, link)| resolve(list, &link)).collect();
        let missing: Vec<_> = expected.difference(&linked).collect();
        assert!(
            missing.is_empty(),
            "{} does not link {missing:?}",
            list.display()
        );
    }
}

#[test]
fn every_document_that_a_source_names_exists() {
    let pages = pages();
    let mut wrong = Vec::new();
    for file in CITING.iter().flat_map(|folder| walk(Path::new(folder))) {
        // Images and other binary files name no page.
        let Ok(text) = std::fs::read_to_string(&file) else {
            continue;
        };
        for name in names(&text) {
            let here = check(&pages, &file, name);
            let problem = here.and_then(|_| check(&pages, Path::new("README.md"), name));
            wrong.extend(problem.map(|why| format!("{}: {name}: {why}", file.display())));
        }
    }
    assert!(
        wrong.is_empty(),
        "correct these names of documents:\n{}",
        wrong.join("\n")
    );
}

/// Every Markdown document of ours, by its path from the top of the checkout.
fn pages() -> HashMap<PathBuf, String> {
    let files = walk(Path::new(".")).into_iter();
    let documents =
        files.filter(|file| file.extension().is_some_and(|extension| extension == "md"));
    let read = |file: PathBuf| {
        let text = std::fs::read_to_string(&file).expect("a document is UTF-8");
        (file, text)
    };
    documents.map(read).collect()
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = folder.read_dir() else {
        return Vec::new();
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.expect("an entry can be read").path();
        let path = path.strip_prefix(".").unwrap_or(&path).to_owned();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if name.starts_with('.') || FOREIGN.contains(&name.as_str()) {
            continue;
        }
        if path.is_dir() {
            files.extend(walk(&path));
        } else {
            files.push(path);
        }
    }
    files
}

/// The reason why a link is wrong.
fn check(pages: &HashMap<PathBuf, String>, page: &Path, link: &str) -> Option<&'static str> {
    if let Some((scheme, _)) = link.split_once("://") {
        return (scheme != "https").then_some("an external link must be https");
    }
    let (path, anchor) = match link.split_once('#') {
        Some((path, anchor)) => (path, Some(anchor)),
        None => (link, None),
    };
    let target = match path {
        "" => page.to_owned(),
        _ => resolve(page, link),
    };
    if path.starts_with('/') || !target.exists() {
        return Some("no such file");
    }
    let text = pages.get(&target);
    let has = |anchor: &str| text.is_some_and(|text| anchors(text).contains(anchor));
    anchor
        .is_some_and(|anchor| !has(anchor))
        .then_some("no such heading")
}

/// The file that a link of a page leads to.
fn resolve(page: &Path, link: &str) -> PathBuf {
    let path = link.split('#').next().unwrap_or_default();
    let mut resolved = page.parent().unwrap_or(Path::new("")).to_owned();
    for component in Path::new(path).components() {
        match component {
            // It may lead out of the checkout, where nothing of ours exists.
            Component::ParentDir => {
                if !resolved.pop() {
                    resolved.push("..");
                }
            }
            other => resolved.push(other),
        }
    }
    resolved
}

/// The links and images of a document, each with its line. Code has none.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    for (line, text) in prose(text) {
        let text: String = text.split('`').step_by(2).collect();
        for (_, rest) in text
            .match_indices("](")
            .map(|(at, found)| text.split_at(at + found.len()))
        {
            let end = rest.find([')', ' ']).unwrap_or(rest.len());
            links.push((line, rest[..end].to_owned()));
        }
        let definition = text
            .strip_prefix('[')
            .and_then(|text| text.split_once("]: "));
        links.extend(definition.map(|(_, target)| (line, target.trim().to_owned())));
    }
    links
}

/// The names of documents in a text, such as `docs/runbook.md#shopbelldown`: those in `docs`, and those in capitals.
fn names(text: &str) -> impl Iterator<Item = &str> {
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || "/._-#:$".contains(c);
    text.split(move |c| !is_of_name(c))
        .filter(|name| !name.contains("://"))
        .map(|name| {
            name.trim_end_matches(['.', ':'])
                .trim_start_matches("$PWD/")
        })
        .filter(|name| name.contains(".md#") || name.ends_with(".md"))
        .filter(|name| {
            name.starts_with("docs/") || name.starts_with(|c: char| c.is_ascii_uppercase())
        })
}

/// The anchors that GitHub and mdBook make of the headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    for (_, line) in prose(text) {
        let Some((_, heading)) = line
            .split_once("# ")
            .filter(|(marks, _)| marks.bytes().all(|b| b == b'#'))
        else {
            continue;
        };
        let kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
        let anchor: String = heading.trim().to_lowercase().chars().filter(kept).collect();
        let anchor = anchor.replace(' ', "-");
        let repeated = (1..).map(|number| format!("{anchor}-{number}"));
        let free = std::iter::once(anchor.clone())
            .chain(repeated)
            .find(|anchor| !anchors.contains(anchor));
        anchors.extend(free);
    }
    anchors
}

/// The lines of a document outside its code blocks, counted from 1.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_code = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        (!is_code && !is_fence).then_some((index + 1, line))
    })
}
