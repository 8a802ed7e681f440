//! Links between the pages lead somewhere: to a file that is there, and to a heading that is in it.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

/// Every page of the repository but those of the issue tracker's kind.
fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = Vec::new();
    let mut folders = vec![root.join("docs"), root.join("fixtures"), root.join("examples")];
    pages.extend(["README.md", "CHANGELOG.md", "CONTRIBUTING.md"].map(|name| root.join(name)));
    while let Some(folder) = folders.pop() {
        let Ok(entries) = folder.read_dir() else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages
}

/// The text without blocks of code.
fn prose(text: &str) -> String {
    let mut inside = false;
    let mut kept = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if !inside {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

/// The targets of `[text](target)`.
fn links(text: &str) -> Vec<String> {
    let mut links = Vec::new();
    for (at, _) in text.match_indices("](") {
        let rest = &text[at + 2..];
        if let Some(end) = rest.find(')') {
            links.push(rest[..end].to_owned());
        }
    }
    links
}

/// The anchors of a page's headings, as code hosts and mdBook make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let slug = |heading: &str| {
        let kept = heading.to_lowercase().replace(' ', "-");
        kept.chars().filter(|character| character.is_alphanumeric() || "-_".contains(*character)).collect()
    };
    headings.map(slug).collect()
}

#[test]
fn links_lead_to_files_and_headings() {
    let (mut broken, mut checked) = (Vec::new(), 0);
    for page in pages() {
        let text = prose(&std::fs::read_to_string(&page).unwrap());
        for link in links(&text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            checked += 1;
            let (file, anchor) =
                link.split_once('#').map_or((link.as_str(), None), |(file, anchor)| (file, Some(anchor)));
            let target = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            let found = target.exists()
                && anchor.is_none_or(|anchor| {
                    std::fs::read_to_string(&target).is_ok_and(|text| anchors(&prose(&text)).contains(anchor))
                });
            if !found {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(checked > 50, "{checked}");
}

fn text(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The pages below a folder of `docs`, as the summary names them.
fn book_pages() -> BTreeSet<String> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let relative = |page: &PathBuf| page.strip_prefix(&docs).ok().map(|page| page.to_string_lossy().into_owned());
    pages().iter().filter_map(relative).filter(|page| page != "SUMMARY.md").collect()
}

#[test]
fn the_book_has_every_page_once() {
    let listed = links(&text("docs/SUMMARY.md"));
    let once: BTreeSet<String> = listed.iter().cloned().collect();
    assert_eq!(listed.len(), once.len(), "a page twice: {listed:?}");
    assert_eq!(once, book_pages());
}

#[test]
fn indexes_name_every_page_beside_them() {
    let pages = book_pages();
    for (folder, index) in [("", "README.md"), ("passes/", "index.md"), ("formats/", "index.md")] {
        let linked = links(&text(&format!("docs/{folder}{index}")));
        let missing: Vec<&String> = pages
            .iter()
            .filter(|page| page.strip_prefix(folder).is_some_and(|page| !page.contains('/') && page != index))
            .filter(|page| !linked.iter().any(|link| page.strip_prefix(folder) == Some(link)))
            .collect();
        assert!(missing.is_empty(), "docs/{folder}{index} leaves out {missing:?}");
    }
}

#[test]
fn every_pass_has_its_page() {
    for pass in bantam::passes::REGISTRY {
        let page = text(&format!("docs/passes/{}.md", pass.name));
        assert!(page.starts_with(&format!("# `{}`", pass.name)), "{}", pass.name);
    }
}

#[test]
fn the_library_page_shows_the_example() {
    let (page, example) = (text("docs/library.md"), text("examples/custom_pass.rs"));
    let shown: Vec<&str> = page.split("```rust\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(shown.len(), 2);
    for block in shown {
        assert!(example.contains(block), "not in examples/custom_pass.rs:\n{block}");
        assert!(block.lines().count() <= 70);
    }
}

#[test]
fn the_book_links_to_nothing_outside_of_it() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").canonicalize().unwrap();
    for page in book_pages() {
        let page = docs.join(page);
        for link in links(&prose(&std::fs::read_to_string(&page).unwrap())) {
            let file = link.split('#').next().unwrap_or_default();
            if file.is_empty() || link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let target = page.parent().unwrap().join(file).canonicalize().unwrap();
            assert!(target.starts_with(&docs), "{}: {link}", page.display());
            // A folder has no page of its own in the book.
            assert!(target.is_file(), "{}: {link}", page.display());
        }
    }
}
