//! Files and functions stay readable: past 500 lines or 60 there is a second idea that wants its own room.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{members, root};

const FILE_LINES: usize = 500;
const FUNCTION_LINES: usize = 60;
/// Of a hundred files or functions, this many may be longer: the tail is what separates clean trees from the rest.
const PERCENT_LONGER: usize = 1;

fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = members().iter().map(|member| root().join(member)).collect();
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).expect("a folder of ours").map(|entry| entry.expect("an entry")) {
            let path = entry.path();
            if path.is_dir() && !path.ends_with("target") {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// Name and length of every function. rustfmt puts a function's last brace at the indent of its first line.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let words: Vec<&str> = line.split_whitespace().collect();
        let Some(place) = words.iter().position(|word| *word == "fn") else { continue };
        let qualifiers = ["pub", "pub(crate)", "pub(super)", "const", "async", "unsafe", "extern", "\"C\""];
        if !words[..place].iter().all(|word| qualifiers.contains(word))
            || line.trim_end().ends_with(['}', ';'])
        {
            continue;
        }
        let end = format!("{}}}", " ".repeat(indent));
        let length = lines[start..].iter().position(|line| *line == end).map_or(0, |at| at + 1);
        let name = words.get(place + 1).and_then(|word| word.split(['(', '<']).next()).unwrap_or_default();
        found.push((name.to_owned(), length));
    }
    found
}

/// Prints what is longer; fails when too much is.
fn check_tail(what: &str, all: usize, longer: &[String]) {
    berth_tests::figure(&format!("{what}: {} of {all}", longer.len()));
    longer.iter().for_each(|one| println!("  {one}"));
    let most = all * PERCENT_LONGER / 100;
    assert!(longer.len() <= most, "{what}: {} of {all}, {most} are too many: {longer:#?}", longer.len());
}

#[test]
fn few_files_pass_500_lines() {
    let sources = sources();
    let mut longer = Vec::new();
    for path in &sources {
        let lines = fs::read_to_string(path).expect("a text of ours").lines().count();
        if lines > FILE_LINES {
            longer.push(format!("{} has {lines} lines", shown(path)));
        }
    }
    check_tail("files past 500 lines", sources.len(), &longer);
}

#[test]
fn few_functions_pass_60_lines() {
    let (mut all, mut longer) = (0, Vec::new());
    for path in sources() {
        for (name, lines) in functions(&fs::read_to_string(&path).expect("a text of ours")) {
            all += 1;
            if lines > FUNCTION_LINES {
                longer.push(format!("{}: {name} has {lines} lines", shown(&path)));
            }
        }
    }
    assert!(all > 100, "only {all} functions found: the search is broken");
    check_tail("functions past 60 lines", all, &longer);
}

#[test]
fn every_file_says_what_it_is_for() {
    for path in sources() {
        let text = fs::read_to_string(&path).expect("a text of ours");
        let first = text.lines().next().unwrap_or_default();
        assert!(first.starts_with("//! ") && first.len() > 12, "{} begins with {first:?}", shown(&path));
    }
}

#[test]
fn functions_are_measured() {
    let text = "fn a() {\n    x\n}\n\nimpl B {\n    pub async fn c<T>(\n        t: T,\n    ) {\n    }\n}\nfn one() {}\n";
    assert_eq!(functions(text), [("a".to_owned(), 3), ("c".to_owned(), 4)]);
}
