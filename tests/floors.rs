//! The house has floors, and a module uses only those below its own. Read from the sources, so that a shortcut upwards
//! fails here and not in a review.

#![expect(clippy::unwrap_used, reason = "a test that cannot read the sources has failed")]

#[path = "floors/circles.rs"]
mod circles;

use std::collections::BTreeSet;
use std::path::Path;

/// The modules, each on its floor. The last floor is the program; the others are the library.
const FLOORS: &[&[&str]] = &[
    &["types", "metrics", "budget", "allocator"],
    &["media", "text", "scenes", "kernels", "blend"],
    &["models", "index", "store"],
    &["cache", "batch", "train"],
    &["flow"],
    &["serve"],
    &["main", "cli", "app", "config", "memory", "telemetry"],
];

/// Words that only some files may say, and where.
const KEPT: &[(&str, &[&str])] = &[
    ("rocksdb::", &["store/"]),
    ("hnsw_rs", &["index/build.rs"]),
    ("candle_core", &["models/"]),
    ("candle_nn", &["models/"]),
    (
        "unsafe",
        &["kernels/", "models/cuda/", "models/weights.rs", "models/device.rs", "allocator.rs", "main.rs"],
    ),
    ("::metrics", &["metrics.rs"]),
    ("metrics_exporter_prometheus", &["telemetry.rs"]),
    ("anyhow", &["main.rs", "cli/", "app.rs", "config.rs", "telemetry.rs"]),
    ("proto::", &["serve/", "cli/"]),
];

/// Circles that are known and still to be taken apart: the sources, the folder, its modules. One that is no longer there fails as
/// well.
const KNOWN_CIRCLES: &[(&str, &str, &[&str])] = &[];

/// Lines with `unsafe` in the files outside `kernels` and the launches on a card that have any: the memory map, and setting a
/// variable of the environment before there are threads (the function that does, and who calls it first of all), and options of the
/// two allocators.
const SINGLE: &[(&str, usize)] =
    &[("models/weights.rs", 1), ("models/device.rs", 2), ("allocator.rs", 4), ("main.rs", 1)];

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

/// What is wrong with one file; `path` is below `src`.
fn complaints(path: &str, source: &str) -> Vec<String> {
    let module = path.split('/').next().unwrap_or(path).trim_end_matches(".rs");
    if module == "lib" {
        return Vec::new();
    }
    let Some(own) = floor(module) else { return vec![format!("{path}: `{module}` has no floor")] };
    let code = code(source);
    let program = own == FLOORS.len() - 1;
    let mut complaints = Vec::new();
    let mut used = modules_after(&code, "crate::");
    if program {
        used.extend(modules_after(&code, "viscache::"));
    } else if !modules_after(&code, "viscache::").is_empty() {
        complaints.push(format!("{path}: names its own library `viscache::`"));
    }
    for other in used.iter().filter(|other| *other != module) {
        match floor(other) {
            Some(there) if there < own || (program && there == own) => {}
            Some(there) => complaints.push(format!("{path}: floor {own} uses `{other}` on floor {there}")),
            // `crate::Thing` at the root does not exist here; a new module must be given a floor.
            None => complaints.push(format!("{path}: uses `{other}`, which has no floor")),
        }
    }
    for (word, homes) in KEPT {
        let count = code.lines().filter(|line| says(line, word)).count();
        let at_home =
            homes.iter().any(|home| path == *home || (home.ends_with('/') && path.starts_with(home)));
        if count > 0 && !at_home {
            complaints.push(format!("{path}: `{word}` belongs to {homes:?}"));
        }
        let allowed = SINGLE.iter().find(|(single, _)| *word == "unsafe" && *single == path);
        if let Some((_, allowed)) = allowed.filter(|(_, allowed)| count > *allowed) {
            complaints.push(format!("{path}: {count} lines with `unsafe`, {allowed} are known"));
        }
    }
    complaints
}

/// The source without comments, strings and test modules.
fn code(source: &str) -> String {
    let mut code = String::new();
    let (mut test, mut depth) = (false, 0i64);
    for line in source.lines() {
        if depth == 0 && line.trim() == "#[cfg(test)]" {
            test = true;
            continue;
        }
        let line = bare(line);
        if test {
            depth += line.matches('{').count() as i64 - line.matches('}').count() as i64;
            test = depth > 0 || !(line.contains('}') || line.contains(';'));
            continue;
        }
        code += &line;
        code.push('\n');
    }
    code
}

/// A line without its comment and the contents of its strings.
fn bare(line: &str) -> String {
    let (mut bare, mut string, mut rest) = (String::new(), false, line.chars().peekable());
    while let Some(c) = rest.next() {
        match c {
            '\\' if string => drop(rest.next()),
            // A quote between apostrophes is a character.
            '"' if !string && bare.ends_with('\'') && rest.peek() == Some(&'\'') => bare.push('_'),
            '"' => string = !string,
            '/' if !string && rest.peek() == Some(&'/') => break,
            _ if string => {}
            _ => bare.push(c),
        }
    }
    bare
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The first names after every `root`, groups in braces included.
fn modules_after(code: &str, root: &str) -> BTreeSet<String> {
    let mut modules = BTreeSet::new();
    for (at, _) in code.match_indices(root) {
        if code[..at].ends_with(|c: char| is_name(c) || c == ':' || c == '$') {
            continue;
        }
        let rest = &code[at + root.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            modules.insert(rest.chars().take_while(|&c| is_name(c)).collect());
            continue;
        };
        let (mut depth, mut first, mut name) = (0, true, String::new());
        for c in group.chars() {
            match c {
                '}' if depth == 0 => break,
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    modules.insert(std::mem::take(&mut name));
                    first = true;
                }
                c if depth == 0 && first && is_name(c) => name.push(c),
                c if c.is_whitespace() => {}
                _ => first = name.is_empty() && first,
            }
        }
        modules.insert(name);
    }
    modules.remove("");
    modules
}

/// Whether a line says a word as a whole.
fn says(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let after = &line[at + word.len()..];
        !line[..at].ends_with(is_name) && (word.ends_with(':') || !after.starts_with(is_name))
    })
}

fn sources(folder: &Path, below: &str, found: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{below}{}", path.file_name().unwrap().to_string_lossy());
        if path.is_dir() {
            sources(&path, &format!("{name}/"), found);
        } else if name.ends_with(".rs") {
            found.push((name, std::fs::read_to_string(&path).unwrap()));
        }
    }
}

#[test]
fn every_module_uses_only_the_floors_below() {
    let mut found = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut found);
    assert!(found.len() > 40, "the sources are there: {}", found.len());
    let complaints: Vec<String> = found.iter().flat_map(|(path, source)| complaints(path, source)).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    // A check that sees nothing would pass as well.
    let uses = |path: &str, module: &str| {
        let (_, source) = found.iter().find(|(p, _)| p == path).unwrap();
        modules_after(&code(source), "crate::").contains(module)
    };
    assert!(
        uses("cache/mod.rs", "blend")
            && uses("serve/convert/mod.rs", "flow")
            && uses("models/mod.rs", "types")
    );
}

#[test]
fn no_modules_of_a_folder_go_round_in_a_circle() {
    let mut found = BTreeSet::new();
    for tree in ["src", "index-builder/src"] {
        let mut files = Vec::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(tree), "", &mut files);
        assert!(files.len() > 20, "the sources are there: {}", files.len());
        found.extend(
            circles::circles(&files).into_iter().map(|(folder, names)| (tree.to_owned(), folder, names)),
        );
    }
    let known: BTreeSet<_> = KNOWN_CIRCLES
        .iter()
        .map(|(tree, folder, names)| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            ((*tree).to_owned(), (*folder).to_owned(), names)
        })
        .collect();
    let said = |circles: Vec<&(String, String, Vec<String>)>| {
        let said = |(tree, folder, names): &(_, String, Vec<String>)| {
            format!("{tree}/{folder}: {}", names.join(", "))
        };
        circles.into_iter().map(said).collect::<Vec<_>>().join("\n")
    };
    let (new, gone) =
        (found.difference(&known).collect::<Vec<_>>(), known.difference(&found).collect::<Vec<_>>());
    assert!(new.is_empty(), "these modules use each other, directly or around:\n{}", said(new));
    assert!(gone.is_empty(), "these circles are no more, and need not be known:\n{}", said(gone));
}

#[test]
fn broken_rules_are_seen() {
    let one = |path: &str, source: &str| {
        let complaints = complaints(path, source);
        assert_eq!(complaints.len(), 1, "{path}: {source} gives {complaints:?}");
    };
    one("store/mod.rs", "use crate::cache::Cache;");
    one("types.rs", "use crate::media;");
    one("cache/mod.rs", "use crate::{blend,\n    flow::{App, Call}, index};");
    one("index/view.rs", "fn f() { let _ = crate::store::Store::open; }");
    one("flow/mod.rs", "pub(crate) use crate::serve;");
    one("media/npy.rs", "use crate::text;");
    one("blend.rs", "use crate::novelty::Thing;");
    one("novelty.rs", "");
    one("serve/mod.rs", "use viscache::flow;");
    one("cache/rows.rs", "use rocksdb::DB;");
    one("index/mod.rs", "use hnsw_rs::prelude::*;");
    one("text/mod.rs", "use candle_core::Tensor;");
    one("flow/mod.rs", "use ::metrics::counter;");
    one("serve/mod.rs", "use metrics_exporter_prometheus::PrometheusBuilder;");
    one("metrics.rs", "use crate::types::CacheName;");
    one("store/mod.rs", "fn f() { unsafe { g() } }");
    one("models/weights.rs", "fn f() { unsafe { g() } }\nfn h() { unsafe { g() } }");
    one("main.rs", "fn f() { unsafe { g() } }\nfn h() { unsafe { g() } }");
    one("flow/mod.rs", "fn f() -> anyhow::Result<()> {}");
    one("flow/mod.rs", "use tonic::proto::Media;");
    one("store/mod.rs", "#[cfg(test)]\nmod tests {\n    use crate::serve;\n}\nuse crate::flow;");
}

#[test]
fn kept_rules_are_not_complained_of() {
    let none = |path: &str, source: &str| {
        assert_eq!(complaints(path, source), Vec::<String>::new(), "{path}: {source}")
    };
    none(
        "store/mod.rs",
        "use rocksdb::DB;\nuse crate::{media::Orientation, types::{ItemId, Slot}};\nuse crate::store::keys;",
    );
    none("models/weights.rs", "fn f() { unsafe { map() } }");
    none(
        "cache/mod.rs",
        "/// See [`crate::serve`] and rocksdb::DB, unsafe.\nconst S: &str = \"crate::flow anyhow\";",
    );
    none(
        "store/mod.rs",
        "#[cfg(test)]\nmod tests {\n    use crate::serve;\n    fn f() { anyhow::bail!() }\n}",
    );
    none("metrics.rs", "use ::metrics::{Unit, counter};");
    none("flow/search.rs", "use crate::metrics;\nfn f() { crate::metrics::observe() }");
    none("app.rs", "use viscache::serve;\nuse crate::config::Config;\nuse anyhow::bail;");
    none("text/mod.rs", "const UNSAFE: u8 = 1; // unsafe\nlet quote = '\"'; let other = \"hnsw_rs\";");
}
