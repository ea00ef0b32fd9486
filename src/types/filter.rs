//! Which items a search may find: a condition on ids and tags.
//!
//! It has one meaning, [`Filter::matches`], said of one item. A cache answers the same question for a whole generation at
//! once, from a table of its tags; `tests` hold the two to each other. Its text is what `viscache search --filter` reads:
//!
//! ```text
//! tag.species = "dog" and not tag.licence in ("nc", "unknown") or id in (1, 2, 3) or has tag.copy
//! ```
//!
//! Left out: ranges (tags are texts), patterns, and conditions on uri and modality.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::ItemId;

/// Which items a search may find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// Those whose tag of this name has one of these values.
    Tag {
        /// The tag's name.
        key: String,
        /// Its values.
        values: BTreeSet<String>,
    },
    /// Those that have a tag of this name, whatever its value.
    HasTag(String),
    /// These.
    Ids(BTreeSet<ItemId>),
    /// Those that match every one; with none to match, all items.
    All(Vec<Filter>),
    /// Those that match at least one; with none to match, no item.
    Any(Vec<Filter>),
    /// Those that do not match.
    Not(Box<Filter>),
}

impl Filter {
    /// Conditions inside each other that are taken from a caller.
    pub const MAX_DEPTH: usize = 16;
    /// Conditions in all, those that combine others included.
    pub const MAX_CONDITIONS: usize = 256;
    /// Values and ids in all.
    pub const MAX_VALUES: usize = 65_536;

    /// Whether an item is one of them.
    pub fn matches(&self, id: ItemId, tags: &BTreeMap<String, String>) -> bool {
        match self {
            Filter::Tag { key, values } => tags.get(key).is_some_and(|value| values.contains(value)),
            Filter::HasTag(key) => tags.contains_key(key),
            Filter::Ids(ids) => ids.contains(&id),
            Filter::All(filters) => filters.iter().all(|filter| filter.matches(id, tags)),
            Filter::Any(filters) => filters.iter().any(|filter| filter.matches(id, tags)),
            Filter::Not(filter) => !filter.matches(id, tags),
        }
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Filter::Tag { key, values } => {
                write!(f, "tag.{}", Quoted(key))?;
                match values.first().filter(|_| values.len() == 1) {
                    Some(value) => write!(f, " = {}", Quoted(value)),
                    None => list(f, values.iter().map(|value| Quoted(value))),
                }
            }
            Filter::HasTag(key) => write!(f, "has tag.{}", Quoted(key)),
            Filter::Ids(ids) => {
                f.write_str("id")?;
                list(f, ids)
            }
            Filter::All(filters) => joined(f, filters, " and "),
            Filter::Any(filters) => joined(f, filters, " or "),
            Filter::Not(filter) => write!(f, "not {}", Inner(filter)),
        }
    }
}

/// A filter inside another: in brackets if it is made of several.
struct Inner<'a>(&'a Filter);

impl fmt::Display for Inner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Filter::All(_) | Filter::Any(_) => write!(f, "({})", self.0),
            simple => simple.fmt(f),
        }
    }
}

/// A text between quotes, in which a backslash stands before quotes and backslashes.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.replace('\\', "\\\\").replace('"', "\\\""))
    }
}

fn joined(f: &mut fmt::Formatter<'_>, filters: &[Filter], word: &str) -> fmt::Result {
    for (i, filter) in filters.iter().enumerate() {
        write!(f, "{}{}", if i == 0 { "" } else { word }, Inner(filter))?;
    }
    Ok(())
}

fn list(f: &mut fmt::Formatter<'_>, values: impl IntoIterator<Item = impl fmt::Display>) -> fmt::Result {
    f.write_str(" in (")?;
    for (i, value) in values.into_iter().enumerate() {
        write!(f, "{}{value}", if i == 0 { "" } else { ", " })?;
    }
    f.write_str(")")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_says_what_it_means() {
        let tag = |key: &str, values: &[&str]| Filter::Tag {
            key: key.into(),
            values: values.iter().map(|&v| v.into()).collect(),
        };
        let dogs = Filter::All(vec![
            tag("species", &["dog"]),
            Filter::Not(Box::new(tag("licence", &["unknown", "nc"]))),
        ]);
        let filter = Filter::Any(vec![
            dogs.clone(),
            Filter::Ids([ItemId(3), ItemId(1)].into()),
            Filter::HasTag("a \"b\"".into()),
        ]);
        let said = r#"(tag."species" = "dog" and not tag."licence" in ("nc", "unknown")) or id in (1, 3) or has tag."a \"b\"""#;
        assert_eq!(filter.to_string(), said);

        let tags = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect::<BTreeMap<_, _>>()
        };
        assert!(dogs.matches(ItemId(9), &tags(&[("species", "dog")])));
        assert!(!dogs.matches(ItemId(9), &tags(&[("species", "dog"), ("licence", "nc")])));
        assert!(filter.matches(ItemId(3), &tags(&[])) && !filter.matches(ItemId(2), &tags(&[])));
        assert!(Filter::All(vec![]).matches(ItemId(0), &tags(&[])));
        assert!(!Filter::Any(vec![]).matches(ItemId(0), &tags(&[])));
    }
}
