//! What gives no sample: counted by reason, the first of each by name.

use std::collections::BTreeMap;
use std::fmt;

/// Why something gives no sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A picture that is spoken of is not there.
    Missing,
    /// A picture has no bytes.
    Empty,
    /// A file is no picture, by its ending.
    NotAPicture,
    /// Nothing says which class a picture is of.
    NoLabel,
    /// A picture has no caption, or one without a word.
    NoCaption,
    /// An item of instructions asks nothing.
    NoInstruction,
    /// An item of instructions has no answer.
    NoAnswer,
    /// What is said is about a picture, and nothing looks at any.
    AboutAPicture,
    /// A picture cannot be decoded or embedded.
    Damaged,
    /// A text whose prompt alone takes all its tokens.
    TooLong,
    /// The class of a picture is none of those there are.
    BeyondClasses,
    /// What is said of a picture cannot be read.
    Unreadable,
    /// A label or a caption has no picture.
    NoPicture,
    /// Nothing says what the pixels of a picture show.
    NoAnnotation,
    /// An annotation has another size than its picture.
    OtherSize,
    /// Another file has the same name but for its ending.
    Twice,
    /// A class has no pictures. It stays a class.
    EmptyClass,
    /// A link, which is not followed.
    Link,
    /// A folder inside of too many others.
    TooDeep,
}

impl Reason {
    /// What is said of them.
    fn words(self) -> &'static str {
        match self {
            Reason::Missing => "pictures that are not there",
            Reason::Empty => "empty picture files",
            Reason::NotAPicture => "files that are no pictures",
            Reason::NoLabel => "pictures without a label",
            Reason::NoCaption => "pictures without a caption",
            Reason::NoInstruction => "answers without an instruction",
            Reason::NoAnswer => "instructions without an answer",
            Reason::AboutAPicture => "texts about a picture, for what looks at none",
            Reason::Damaged => "pictures that cannot be decoded",
            Reason::TooLong => "texts with no room for an answer",
            Reason::BeyondClasses => "pictures of a class that there is not",
            Reason::Unreadable => "descriptions that cannot be read",
            Reason::NoPicture => "descriptions without a picture",
            Reason::NoAnnotation => "pictures without an annotation",
            Reason::OtherSize => "annotations of another size than their picture",
            Reason::Twice => "files whose name another one has",
            Reason::EmptyClass => "classes without pictures",
            Reason::Link => "links that are not followed",
            Reason::TooDeep => "folders that are too deep",
        }
    }
}

/// Everything that gave no sample.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Skipped {
    reasons: BTreeMap<Reason, (u64, Vec<String>)>,
}

impl Skipped {
    /// How many of each reason are kept by name.
    const NAMED: usize = 3;

    /// Counts one more.
    ///
    /// * `name`: a path, a member, or a line of a table.
    pub(in crate::train) fn add(&mut self, reason: Reason, name: impl fmt::Display) {
        let (count, names) = self.reasons.entry(reason).or_default();
        *count += 1;
        if names.len() < Self::NAMED {
            names.push(name.to_string());
        }
    }

    /// Adds what another source gave no sample for.
    pub fn join(&mut self, other: &Skipped) {
        for (reason, count, names) in other.iter() {
            let (sum, named) = self.reasons.entry(reason).or_default();
            *sum += count;
            let room = Self::NAMED.saturating_sub(named.len());
            named.extend(names.iter().take(room).cloned());
        }
    }

    /// How many there are for a reason.
    pub fn count(&self, reason: Reason) -> u64 {
        self.reasons.get(&reason).map_or(0, |(count, _)| *count)
    }

    /// Whether there are none at all.
    pub fn is_empty(&self) -> bool {
        self.reasons.is_empty()
    }

    /// Each reason with its number and the names of the first few.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, u64, &[String])> {
        self.reasons.iter().map(|(reason, (count, names))| (*reason, *count, names.as_slice()))
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (reason, count, names)) in self.iter().enumerate() {
            let between = if i == 0 { "" } else { "; " };
            let more = if count > names.len() as u64 { ", …" } else { "" };
            write!(f, "{between}{}: {count} ({}{more})", reason.words(), names.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_counted_and_the_first_named() {
        let mut skipped = Skipped::default();
        assert_eq!((skipped.is_empty(), skipped.to_string()), (true, String::new()));
        (1..=5).for_each(|line| skipped.add(Reason::NoCaption, format!("line {line}")));
        skipped.add(Reason::Missing, "a.jpg");
        assert_eq!((skipped.count(Reason::NoCaption), skipped.count(Reason::Empty)), (5, 0));
        assert_eq!(
            skipped.to_string(),
            "pictures that are not there: 1 (a.jpg); pictures without a caption: 5 (line 1, line 2, line 3, …)"
        );
    }
}
