//! What a file says of its rows: values, and what the columns beside them are for.

use std::collections::BTreeMap;
use std::path::Path;

use super::Options;
use super::error::Error;

/// Columns and keys that hold a uri when none is named, best first.
pub(super) const URI_NAMES: [&str; 6] = ["uri", "url", "path", "image_path", "key", "file"];

/// A row as its file has it: the values or why there are none, and what the file itself knows of it.
pub(super) struct Raw {
    pub(super) values: Result<Vec<f32>, String>,
    pub(super) about: About,
}

/// Rows of one file in order, some at a time.
pub(super) type Batches<'a> = Box<dyn Iterator<Item = Result<Vec<Raw>, Error>> + Send + 'a>;

/// What is known of one row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct About {
    pub(super) id: Option<u64>,
    pub(super) uri: Option<String>,
    pub(super) tags: BTreeMap<String, String>,
}

/// What a column or key is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Role {
    Embedding,
    Id,
    Uri,
    Position,
    Tag(String),
    /// Not asked for.
    Unused,
}

impl About {
    /// Notes what one column says. `Err` is the reason why it cannot be so.
    pub(super) fn note(&mut self, role: &Role, text: String) -> Result<(), String> {
        match role {
            Role::Id => self.id = Some(whole(&text)?),
            Role::Uri => self.uri = Some(text),
            Role::Tag(name) => drop(self.tags.insert(name.clone(), text)),
            Role::Embedding | Role::Position | Role::Unused => {}
        }
        Ok(())
    }

    /// Fills what is not known from another source.
    pub(super) fn or(mut self, other: About) -> About {
        for (name, text) in other.tags {
            self.tags.entry(name).or_insert(text);
        }
        About { id: self.id.or(other.id), uri: self.uri.or(other.uri), tags: self.tags }
    }
}

/// An id from text: an integer, or one written as a float.
pub(super) fn whole(text: &str) -> Result<u64, String> {
    /// From here on a float stands for several integers.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let wrong = || format!("id {} is not an integer from 0 to {}", short(text), u64::MAX);
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    match text.parse::<f64>() {
        Ok(float) if (0.0..EXACT).contains(&float) && float.fract() == 0.0 => Ok(float as u64),
        Ok(float) if float >= EXACT && float.is_finite() => {
            Err(format!("id {} is a float too large to be exact; store ids as integers", short(text)))
        }
        _ => Err(wrong()),
    }
}

/// What is said of a column `id` that holds text.
pub(super) fn text_ids(path: &Path, as_uri: bool) -> String {
    let what = if as_uri { "uri" } else { "tag" };
    format!(
        "{}: its `id` is text and kept as {what}; items get ids of their own (--id-column id takes numbers that are written as text)",
        path.display()
    )
}

/// What a column that is neither id nor uri is for.
pub(super) fn tag_role(name: &str, options: &Options) -> Role {
    match &options.tag_columns {
        Some(wanted) if !wanted.iter().any(|wanted| wanted == name) => Role::Unused,
        _ => Role::Tag(name.to_owned()),
    }
}

/// Text for a message: not a page of it, and on one line.
pub(super) fn short(text: &str) -> String {
    let start: String = text.chars().take(40).flat_map(char::escape_debug).collect();
    format!("'{start}{}'", if text.chars().nth(40).is_some() { "…" } else { "" })
}
