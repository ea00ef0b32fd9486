//! Modules of one folder that use each other, directly or around, are one module in several files: nobody can read, test or take
//! out one of them alone.
//!
//! ```text
//! every file ─► the paths it names (crate:: super:: self::, groups taken apart) ─► the module that has what is named, through
//! the re-exports of `mod.rs` ─► an arrow between two modules of a folder ─► what lies on a circle of arrows
//! ```
//!
//! A folder's `mod.rs` is its front and no link of a chain: it names all of its modules, and they may use what it defines. Tests
//! at the end of a file, and files that are only compiled for tests, may use anything.
//!
//! Left out: paths without a root in other files than `mod.rs`, which name what a `use` has brought already, and what macros make.

use std::collections::{BTreeMap, BTreeSet};

use crate::{code, is_name};

/// A module by its path from the root: `["cache", "scan"]`.
type Module = Vec<String>;

/// The modules of a program or a library.
struct Tree {
    /// Code by module, without comments, strings and tests. The root's is that of `lib.rs` or `main.rs`.
    code: BTreeMap<Module, String>,
    /// What a module has from one of its own: the name, and the path below it that it stands for.
    named: BTreeMap<Module, BTreeMap<String, Vec<String>>>,
}

/// The circles among the modules of every folder: folder, and the modules on it in the order of their names.
///
/// * `sources`: paths below the folder of sources, with their text.
pub fn circles(sources: &[(String, String)]) -> BTreeSet<(String, Vec<String>)> {
    let tree = Tree::new(sources);
    // For every folder, which of its modules uses which.
    let mut arrows: BTreeMap<Module, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for (module, code) in &tree.code {
        for path in paths(code) {
            let Some(aim) = tree.resolve(module, &path) else { continue };
            let shared = module.iter().zip(&aim).take_while(|(a, b)| a == b).count();
            // One of the two is the front of a folder that the other is in.
            let (Some(from), Some(to)) = (module.get(shared), aim.get(shared)) else { continue };
            let folder = arrows.entry(module[..shared].to_vec()).or_default();
            folder.entry(from.clone()).or_default().insert(to.clone());
        }
    }
    let mut circles = BTreeSet::new();
    for (folder, arrows) in &arrows {
        let reached: BTreeMap<&String, BTreeSet<&String>> =
            arrows.keys().map(|from| (from, reach(arrows, from))).collect();
        for from in arrows.keys().filter(|from| reached[from].contains(from)) {
            let with = |other: &&&String| {
                reached[from].contains(**other)
                    && reached.get(**other).is_some_and(|back| back.contains(from))
            };
            let circle = reached[from].iter().filter(with).map(|name| (*name).clone()).collect();
            circles.insert((folder.join("/"), circle));
        }
    }
    circles
}

/// What can be reached from a module by going along arrows.
fn reach<'a>(arrows: &'a BTreeMap<String, BTreeSet<String>>, from: &String) -> BTreeSet<&'a String> {
    let (mut reached, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(next) = open.pop() {
        for to in arrows.get(next).into_iter().flatten() {
            if reached.insert(to) {
                open.push(to);
            }
        }
    }
    reached
}

impl Tree {
    fn new(sources: &[(String, String)]) -> Tree {
        let mut tree = Tree { code: BTreeMap::new(), named: BTreeMap::new() };
        let mut for_tests = BTreeSet::new();
        for (path, source) in sources {
            let module = module_of(path);
            for name in test_files(source) {
                for_tests.insert([&module[..], &[name]].concat());
            }
            tree.code.insert(module, code(source));
        }
        tree.code.retain(|module, _| !(0..=module.len()).any(|n| for_tests.contains(&module[..n])));
        for (module, code) in &tree.code {
            let mut named = BTreeMap::new();
            for (path, name) in used(code) {
                let path = match path.first().map(String::as_str) {
                    Some("self") => path[1..].to_vec(),
                    _ => path,
                };
                let own = path
                    .first()
                    .is_some_and(|first| tree.has(&[&module[..], std::slice::from_ref(first)].concat()));
                if own {
                    named.insert(name, path);
                }
            }
            tree.named.insert(module.clone(), named);
        }
        tree
    }

    fn has(&self, module: &[String]) -> bool {
        self.code.contains_key(module)
    }

    /// The module that has what a path in `from` names; nothing for another crate's.
    fn resolve(&self, from: &Module, path: &[String]) -> Option<Module> {
        let (mut at, mut rest) = match path.first()?.as_str() {
            "crate" => (Module::new(), &path[1..]),
            "self" => (from.clone(), &path[1..]),
            "super" => (from.clone(), path),
            _ => return None,
        };
        while rest.first().is_some_and(|first| first == "super") {
            at.pop();
            rest = &rest[1..];
        }
        // A re-export may lead to another: as often as there are names at most.
        let mut rest = rest.to_vec();
        for _ in 0..100 {
            let Some(first) = rest.first() else { break };
            let below = [&at[..], std::slice::from_ref(first)].concat();
            if self.has(&below) {
                at = below;
                rest.remove(0);
            } else if let Some(path) = self.named.get(&at).and_then(|named| named.get(first)) {
                rest.splice(..1, path.iter().cloned());
            } else {
                break;
            }
        }
        Some(at)
    }
}

/// The module of a file.
fn module_of(path: &str) -> Module {
    let path = path.trim_end_matches(".rs");
    let mut module: Module = path.split('/').map(str::to_owned).collect();
    if module.last().is_some_and(|last| last == "mod") || ["lib", "main"].contains(&path) {
        module.pop();
    }
    module
}

/// The files that a source declares for tests alone.
fn test_files(source: &str) -> Vec<String> {
    let mut files = Vec::new();
    let mut test = false;
    for line in source.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';')).filter(|_| test)
        {
            files.push(name.to_owned());
        }
        test = line == "#[cfg(test)]";
    }
    files
}

/// Every path that begins at a root: in a `use`, in a type, in an expression.
fn paths(code: &str) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    for root in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(root) {
            if !code[..at].ends_with(|c: char| is_name(c) || c == ':' || c == '$') {
                paths.extend(expand(&code[at..]).into_iter().map(|(path, _)| path));
            }
        }
    }
    paths
}

/// What the `use` lines of a module bring: the path, and the name it has here.
fn used(code: &str) -> Vec<(Vec<String>, String)> {
    let mut used = Vec::new();
    for (at, _) in code.match_indices("use ") {
        if !code[..at].ends_with(is_name) {
            used.extend(expand(&code[at + 4..]));
        }
    }
    used
}

/// The paths of the tree at the beginning of `code`, and the name that each is called by.
fn expand(code: &str) -> Vec<(Vec<String>, String)> {
    let mut rest = code;
    let mut found = Vec::new();
    tree(&mut rest, &[], &mut found);
    found
}

fn tree(rest: &mut &str, before: &[String], found: &mut Vec<(Vec<String>, String)>) {
    let mut path = before.to_vec();
    loop {
        *rest = rest.trim_start();
        if let Some(inner) = rest.strip_prefix('{') {
            *rest = inner;
            loop {
                *rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
                if let Some(after) = rest.strip_prefix('}') {
                    *rest = after;
                    return;
                }
                let length = rest.len();
                tree(rest, &path, found);
                if rest.len() == length {
                    return; // not what a `use` looks like
                }
            }
        }
        let length = rest.chars().take_while(|&c| is_name(c)).map(char::len_utf8).sum::<usize>();
        let (name, after) = rest.split_at(length);
        if name.is_empty() {
            return;
        }
        *rest = after;
        match (name, path.is_empty()) {
            // `a::{self}` is `a`.
            ("self", false) => {}
            _ => path.push(name.to_owned()),
        }
        match rest.strip_prefix("::") {
            Some(after) => *rest = after,
            None => break,
        }
    }
    let mut name = path.last().cloned().unwrap_or_default();
    if let Some(after) = rest.trim_start().strip_prefix("as ") {
        let length = after.chars().take_while(|&c| is_name(c)).map(char::len_utf8).sum::<usize>();
        name = after[..length].to_owned();
        *rest = &after[length..];
    }
    found.push((path, name));
}

#[test]
fn circles_are_seen_and_what_is_none_is_not() {
    let of = |files: &[(&str, &str)]| {
        let sources: Vec<_> = files.iter().map(|(p, s)| ((*p).to_owned(), (*s).to_owned())).collect();
        circles(&sources)
            .into_iter()
            .map(|(folder, names)| format!("{folder}: {}", names.join(" ")))
            .collect::<Vec<_>>()
    };
    let front = ("a/mod.rs", "mod b;\nmod c;\nmod d;\npub use b::{B, Other as O};\nuse c::C;\npub struct A;");
    let file = |name: &'static str, source: &'static str| (name, source);
    // Directly, by a re-export, by a name that a `use` gives, in an expression, around a third, from a folder below.
    assert_eq!(of(&[front, file("a/b.rs", "use super::c::C;"), file("a/c.rs", "use super::b;")]), ["a: b c"]);
    assert_eq!(
        of(&[front, file("a/b.rs", "use super::{A, C};"), file("a/c.rs", "use super::B;")]),
        ["a: b c"]
    );
    assert_eq!(
        of(&[front, file("a/b.rs", "use crate::a::C;"), file("a/c.rs", "use crate::a::O;")]),
        ["a: b c"]
    );
    assert_eq!(
        of(&[
            front,
            file("a/b.rs", "fn f() { super::c::f() }"),
            file("a/c.rs", "use super::{b::{self, B}};")
        ]),
        ["a: b c"]
    );
    let around = [
        front,
        file("a/b.rs", "use super::C;"),
        file("a/c.rs", "use super::d::D;"),
        file("a/d.rs", "use super::B;"),
    ];
    assert_eq!(of(&around), ["a: b c d"]);
    let below = [
        front,
        file("a/b/mod.rs", "mod e;"),
        file("a/b/e.rs", "use super::super::c::C;"),
        file("a/c.rs", "use super::B;"),
    ];
    assert_eq!(of(&below), ["a: b c"]);
    let root = [
        file("main.rs", "mod b; mod c;"),
        file("b.rs", "use crate::c::C;"),
        file("c.rs", "use crate::b::B;"),
    ];
    assert_eq!(of(&root), [": b c"]);
    // The front, one way only, tests, comments, other crates' names.
    let none = [
        front,
        file("a/b.rs", "use super::{A, C};\n#[cfg(test)]\nmod tests {\n    use super::super::c;\n}"),
        file(
            "a/c.rs",
            "use super::A; // use super::b\n#[cfg(test)]\nmod tests {\n    use super::super::b;\n}",
        ),
        file("a/d.rs", "use other::b::B;\nuse super::{B, C};"),
    ];
    assert_eq!(of(&none), Vec::<String>::new());
    let twins = ("a/mod.rs", "mod b;\n#[cfg(test)]\nmod c;");
    assert_eq!(
        of(&[twins, file("a/b.rs", "use super::c;"), file("a/c.rs", "use super::b;")]),
        Vec::<String>::new()
    );
}
