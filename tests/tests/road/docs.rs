//! The documents in docs/ say what is so: closed sets are whole, tests and metrics they name exist, links lead somewhere.

use std::{collections::BTreeSet, fs, path::PathBuf};

use anyhow::{Context, ensure};
use berth_proto::code::{CloseCode, ErrorCode};
use berth_tests::{TestResult, root};

/// Every document, the README among them.
pub(crate) fn documents() -> anyhow::Result<Vec<PathBuf>> {
    let mut found = vec![root().join("README.md")];
    for entry in fs::read_dir(root().join("docs"))? {
        found.push(entry?.path());
    }
    found.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    ensure!(found.len() >= 5, "documents are missing: {found:?}");
    Ok(found)
}

pub(crate) fn document(name: &str) -> anyhow::Result<String> {
    fs::read_to_string(root().join("docs").join(name)).with_context(|| format!("docs/{name}"))
}

/// The cells of each row of the table under the heading.
fn rows(text: &str, heading: &str) -> anyhow::Result<Vec<Vec<String>>> {
    let mut lines = text.lines().skip_while(|line| *line != heading);
    lines.next().with_context(|| format!("no heading {heading:?}"))?;
    let section = lines.take_while(|line| !line.starts_with("## "));
    let rows = section.filter(|line| line.starts_with("| ") && !line.starts_with("| code "));
    let cells = |line: &str| line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
    Ok(rows.map(cells).collect())
}

#[test]
fn the_error_codes_are_all_there_and_right() -> TestResult {
    let told = rows(&document("errors.md")?, "## Error codes")?;
    let is: Vec<[String; 3]> = ErrorCode::ALL
        .iter()
        .map(|code| {
            let retryable = if code.retryable() { "yes" } else { "no" };
            [code.as_str().to_owned(), code.http_status().to_string(), retryable.to_owned()]
        })
        .collect();
    let first_three: Vec<_> = told.iter().map(|row| row[..3].to_vec()).collect();
    ensure!(first_three == is, "docs/errors.md: {first_three:?}\nproto/src/code.rs: {is:?}");
    ensure!(told.iter().all(|row| row.len() == 5 && row.iter().all(|cell| !cell.is_empty())), "{told:?}");
    Ok(())
}

#[test]
fn the_close_codes_are_all_there_and_right() -> TestResult {
    let told = rows(&document("errors.md")?, "## Close codes")?;
    let is: Vec<[String; 2]> =
        CloseCode::ALL.iter().map(|code| [code.number().to_string(), code.name().to_owned()]).collect();
    let first_two: Vec<_> = told.iter().map(|row| row[..2].to_vec()).collect();
    ensure!(first_two == is, "docs/errors.md: {first_two:?}\nproto/src/code.rs: {is:?}");
    for (row, code) in told.iter().zip(CloseCode::ALL) {
        let [_, _, when, action] = row.as_slice() else { anyhow::bail!("{row:?}") };
        ensure!(!when.is_empty() && action.starts_with("stops") != code.reconnect(), "{row:?}");
    }
    Ok(())
}

/// `test_name` (path/of/its/file.rs): the form in which a document names a test.
fn named_tests(text: &str) -> Vec<(String, String)> {
    let parts: Vec<&str> = text.split('`').collect();
    let named = parts.windows(2).filter_map(|pair| {
        let path = pair[1].strip_prefix(" (")?.split_once(')')?.0;
        path.ends_with(".rs").then(|| (pair[0].to_owned(), path.to_owned()))
    });
    named.collect()
}

#[test]
fn every_claim_about_durability_names_a_test_that_exists() -> TestResult {
    let text = document("durability.md")?;
    let named = named_tests(&text);
    ensure!(named.len() >= 15, "only {} tests are named", named.len());
    for (test, path) in &named {
        let source = fs::read_to_string(root().join(path)).with_context(|| path.clone())?;
        ensure!(
            source.contains(&format!("fn {test}(")),
            "docs/durability.md names {test}, which is not in {path}"
        );
    }
    for heading in ["## The promise", "## What may go wrong"] {
        for row in rows(&text, heading)?.iter().filter(|row| !["claim", "event"].contains(&row[0].as_str())) {
            ensure!(!named_tests(row.last().context("cells")?).is_empty(), "a claim without a test: {row:?}");
        }
    }
    Ok(())
}

#[test]
fn links_between_documents_lead_somewhere() -> TestResult {
    let mut linked = BTreeSet::new();
    for path in documents()? {
        let text = fs::read_to_string(&path)?;
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.starts_with("http") || target.starts_with('#') {
                continue;
            }
            let to = path.parent().context("a folder")?.join(target.split('#').next().unwrap_or(target));
            ensure!(to.exists(), "{} links to {target}", path.display());
            linked.insert(to.file_name().context("a file")?.to_owned());
        }
    }
    for path in documents()?.iter().skip(1) {
        ensure!(linked.contains(path.file_name().context("a file")?), "nothing links to {}", path.display());
    }
    Ok(())
}

#[test]
fn named_tests_are_found() {
    let text = "| a | `one_test` (logic/src/a.rs), `two` (b.rs) | `auth.key` (not a path) |";
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(named_tests(text), [pair("one_test", "logic/src/a.rs"), pair("two", "b.rs")]);
}
