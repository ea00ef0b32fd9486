//! Names of classes, from a file.
//!
//! ```text
//! lines     tench                        or, as ImageNet's lists have them:  n01440764 tench, Tinca tinca
//! JSON      ["tench", …]   [["n01440764", "tench"], …]   {"0": "tench", …}   {"0": ["n01440764", "tench"], …}
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail};
use serde::Deserialize;

/// A class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Label {
    /// Its id among WordNet's, as folders are called.
    pub(super) id: Option<String>,
    /// Its name.
    pub(super) name: String,
}

/// What a file of JSON says of a class.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a class is a name, or an id and a name")]
enum Entry {
    Name(String),
    IdAndName([String; 2]),
}

/// Reads the names of a model's classes.
///
/// * `classes`: how many it has.
///
/// # Errors
/// A file that cannot be read, or names another number of classes.
pub(super) fn read(path: &Path, classes: usize) -> anyhow::Result<Vec<Label>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let labels = parse(&text).with_context(|| format!("the names of classes in {}", path.display()))?;
    if labels.len() != classes {
        bail!("{} names {} classes, and the model has {classes}", path.display(), labels.len());
    }
    Ok(labels)
}

fn parse(text: &str) -> anyhow::Result<Vec<Label>> {
    let text = text.trim_start_matches('\u{feff}').trim();
    if !text.starts_with(['[', '{']) {
        return Ok(text.lines().map(|line| of_line(line.trim())).collect());
    }
    let entries: Vec<Entry> = match text.starts_with('[') {
        true => serde_json::from_str(text)?,
        false => {
            let entries: BTreeMap<usize, Entry> = serde_json::from_str(text)?;
            if let Some((at, number)) = entries.keys().enumerate().find(|(at, number)| at != *number) {
                bail!("class {at} is not there, and {number} is");
            }
            entries.into_values().collect()
        }
    };
    Ok(entries
        .into_iter()
        .map(|entry| match entry {
            Entry::Name(name) => Label { id: None, name },
            Entry::IdAndName([id, name]) => Label { id: Some(id), name },
        })
        .collect())
}

fn of_line(line: &str) -> Label {
    let (first, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let is_id = first
        .strip_prefix('n')
        .is_some_and(|digits| digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_digit()));
    match (is_id, rest.trim()) {
        (false, _) => Label { id: None, name: line.to_owned() },
        (true, "") => Label { id: Some(first.to_owned()), name: first.to_owned() },
        (true, name) => Label { id: Some(first.to_owned()), name: name.to_owned() },
    }
}

/// What folders of these classes are called below a folder: by ids, if one of them is there, else by names.
///
/// # Errors
/// Two classes of one name, which folders could not tell apart.
pub(super) fn folders(labels: &[Label], below: &Path) -> anyhow::Result<Vec<String>> {
    let ids: Option<Vec<String>> = labels.iter().map(|label| label.id.clone()).collect();
    let names = match ids {
        Some(ids) if ids.iter().any(|id| below.join(id).is_dir()) => ids,
        _ => labels.iter().map(|label| label.name.clone()).collect(),
    };
    let mut numbers = BTreeMap::new();
    for (number, name) in names.iter().enumerate() {
        if let Some(first) = numbers.insert(name, number) {
            bail!("classes {first} and {number} are both called `{name}`: folders do not tell them apart");
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Vec<(Option<String>, String)> {
        parse(text).unwrap().into_iter().map(|label| (label.id, label.name)).collect()
    }

    #[test]
    fn every_form_gives_the_same_names() {
        let (tench, goldfish) = ("tench".to_owned(), "goldfish, Carassius".to_owned());
        let named = vec![(None, tench.clone()), (None, goldfish.clone())];
        for text in [
            "tench\r\ngoldfish, Carassius\n\n",
            r#"["tench", "goldfish, Carassius"]"#,
            r#"{"1": "goldfish, Carassius", "0": "tench"}"#,
        ] {
            assert_eq!(shown(text), named, "{text}");
        }
        let ids = ["n01440764", "n01443537"].map(|id| Some(id.to_owned()));
        let both: Vec<_> = ids.into_iter().zip([tench, goldfish]).collect();
        for text in [
            "n01440764 tench\nn01443537 goldfish, Carassius",
            r#"{"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish, Carassius"]}"#,
            r#"[["n01440764", "tench"], ["n01443537", "goldfish, Carassius"]]"#,
        ] {
            assert_eq!(shown(text), both, "{text}");
        }
        assert_eq!(shown("n01440764"), [(Some("n01440764".to_owned()), "n01440764".to_owned())]);
    }

    #[test]
    fn what_is_no_list_of_all_classes_is_refused() {
        for text in [r#"{"0": "a", "2": "b"}"#, r#"{"x": "a"}"#, "[1, 2]", "[\"a\""] {
            assert!(parse(text).is_err(), "{text}");
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("names.txt");
        std::fs::write(&file, "a\nb\n").unwrap();
        assert_eq!(read(&file, 2).unwrap().len(), 2);
        let refused = read(&file, 3).unwrap_err().to_string();
        assert!(refused.contains("names.txt names 2 classes, and the model has 3"), "{refused}");
    }

    #[test]
    fn folders_are_called_by_ids_or_by_names() {
        let folder = tempfile::tempdir().unwrap();
        let cranes = parse("n02012849 crane\nn03126707 crane").unwrap();
        let refused = folders(&cranes, folder.path()).unwrap_err().to_string();
        assert!(refused.contains("classes 0 and 1 are both called `crane`"), "{refused}");
        std::fs::create_dir(folder.path().join("n03126707")).unwrap();
        assert_eq!(folders(&cranes, folder.path()).unwrap(), ["n02012849", "n03126707"]);
    }
}
