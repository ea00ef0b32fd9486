//! Instructions as JSON: an array of objects, read one at a time.
//!
//! ```text
//! alpaca    {"instruction": "Give one tip.", "input": "", "output": "Read widely."}
//! LLaVA     {"image": "17.jpg", "conversations": [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A dog."}, …]}
//! ```
//!
//! Of a conversation every question with its answer is read, up to the first that has none; the published programs learn from the first
//! alone. A mark such as `<image>` stays in the text. Beyond them, a conversation may be about no picture, and an instruction about one.
//! Other keys are not looked at.
//!
//! Source: `data/dataset.py` of ImageBind-LLM; Stanford Alpaca; LLaVA-Instruct-150K.

use std::fmt;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use serde::de::{Deserializer as _, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::error::Category;

use super::exchange::{Exchange, Exchanges};
use super::skipped::Reason;
use super::table::look;
use super::{Error, Place};

impl Exchanges {
    /// Adds those of a file.
    ///
    /// * `folder`: that pictures are relative to; the file's own where nothing is said.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Cut`] for a file that ends too early; [`Error::Unusable`] for what is no array of JSON, with the line.
    pub fn of_json(&mut self, path: &Path, folder: Option<&Path>) -> Result<(), Error> {
        let file = File::open(path).map_err(Error::io(path))?;
        let mut json = serde_json::Deserializer::from_reader(BufReader::new(file));
        let own = path.parent().unwrap_or(Path::new(""));
        let folder: Arc<Path> = folder.unwrap_or(own).into();
        json.deserialize_seq(Items { path, folder: &folder, into: self }).and_then(|()| json.end()).map_err(
            |e| match e.classify() {
                Category::Eof => Error::Cut { path: path.to_owned(), why: e.to_string() },
                Category::Io => Error::Io { path: path.to_owned(), source: e.into() },
                Category::Syntax | Category::Data => Error::Unusable {
                    path: path.to_owned(),
                    why: format!("it is no JSON array of instructions: {e}"),
                },
            },
        )
    }
}

/// Takes the items of an array as they are read.
struct Items<'a> {
    path: &'a Path,
    folder: &'a Arc<Path>,
    into: &'a mut Exchanges,
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let mut number = 0u64;
        while let Some(item) = items.next_element::<Value>()? {
            number += 1;
            let told = format!("{}, item {number}", self.path.display());
            match exchange(&item, self.folder, &told) {
                Ok(exchange) => self.into.exchanges.push(exchange),
                Err((reason, None)) => self.into.skipped.add(reason, told),
                Err((reason, Some(name))) => self.into.skipped.add(reason, format!("{told}: `{name}`")),
            }
        }
        Ok(())
    }
}

/// What an item says, or why it says nothing and of which picture that holds.
fn exchange(item: &Value, folder: &Arc<Path>, told: &str) -> Result<Exchange, (Reason, Option<String>)> {
    let unreadable = || (Reason::Unreadable, None);
    let item = item.as_object().ok_or_else(unreadable)?;
    // A key that is there must be a text; one that is not, or null, is empty.
    let text = |value: Option<&Value>| match value {
        None | Some(Value::Null) => Ok(String::new()),
        Some(value) => value.as_str().map(str::to_owned).ok_or_else(unreadable),
    };
    let (instruction, input, answer, later) = match item.get("conversations") {
        Some(conversation) => {
            let turns = conversation.as_array().ok_or_else(unreadable)?;
            let value = |turn: Option<&Value>| text(turn.and_then(|turn| turn.get("value")));
            let mut later = Vec::new();
            for turns in turns.chunks(2).skip(1) {
                let pair = [value(turns.first())?, value(turns.get(1))?];
                if pair.iter().any(|said| said.trim().is_empty()) {
                    break;
                }
                later.push(pair);
            }
            (value(turns.first())?, None, value(turns.get(1))?, later)
        }
        None => {
            let input = item.get("input").filter(|input| !input.is_null());
            let input = input.map(|input| text(Some(input))).transpose()?;
            (text(item.get("instruction"))?, input, text(item.get("output"))?, Vec::new())
        }
    };
    if instruction.trim().is_empty() {
        return Err((Reason::NoInstruction, None));
    }
    if answer.trim().is_empty() {
        return Err((Reason::NoAnswer, None));
    }
    let picture = match item.get("image") {
        None | Some(Value::Null) => None,
        Some(name) => {
            let name = name.as_str().ok_or_else(unreadable)?;
            let place: Place = look(folder, name).map_err(|reason| (reason, Some(name.to_owned())))?;
            Some(place)
        }
    };
    Ok(Exchange { picture, instruction, input, answer, later, told: told.to_owned() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WHOLE: &str = r#"[
        {"instruction": "Give one tip.", "input": "", "output": "Read widely.", "id": 7},
        {"image": "a.png", "conversations": [{"from": "human", "value": "What?\n<image>"}, {"value": "A dog."}, {"value": "More?"}, {"value": "No."}, {"value": "Why?"}]},
        {"instruction": "Add.", "input": "1, 2", "output": "3", "image": null},
        {"conversations": [{"value": "Hi"}, {"value": "Hello"}]}
    ]"#;

    fn read(text: &[u8]) -> Result<Exchanges, Error> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.png"), "picture").unwrap();
        std::fs::write(folder.path().join("empty.png"), "").unwrap();
        std::fs::write(folder.path().join("a.json"), text).unwrap();
        let mut all = Exchanges::default();
        all.of_json(&folder.path().join("a.json"), None).map(|()| all)
    }

    #[test]
    fn both_forms_are_read() {
        let all = read(WHOLE.as_bytes()).unwrap();
        let texts: Vec<(&str, Option<&str>, &str)> =
            all.exchanges.iter().map(|e| (&e.instruction[..], e.input.as_deref(), &e.answer[..])).collect();
        let expected = [
            ("Give one tip.", Some(""), "Read widely."),
            ("What?\n<image>", None, "A dog."),
            ("Add.", Some("1, 2"), "3"),
            ("Hi", None, "Hello"),
        ];
        assert_eq!(texts, expected);
        let later: Vec<&[[String; 2]]> = all.exchanges.iter().map(|e| &e.later[..]).collect();
        assert_eq!(later, [&[][..], &[["More?".to_owned(), "No.".to_owned()]], &[], &[]]);
        let seen: Vec<bool> = all.exchanges.iter().map(|e| e.picture.is_some()).collect();
        assert_eq!((seen, all.skipped.is_empty()), (vec![false, true, false, false], true));
        assert!(all.exchanges[1].told.ends_with("a.json, item 2"), "{}", all.exchanges[1].told);
    }

    #[test]
    fn items_that_say_nothing_are_counted() {
        let all = read(
            br#"[7, null, [], {}, {"instruction": "a"}, {"instruction": 1, "output": "b"}, {"instruction": " ", "output": "b"},
            {"instruction": "a", "output": "b", "input": ["c"]}, {"conversations": {}}, {"conversations": [{"value": "a"}]},
            {"conversations": ["a", "b"]}, {"image": "gone.png", "instruction": "a", "output": "b"},
            {"image": "empty.png", "instruction": "a", "output": "b"}, {"image": "a.json", "instruction": "a", "output": "b"},
            {"image": 3, "instruction": "a", "output": "b"}, {"instruction": "a", "output": "b"}]"#,
        )
        .unwrap();
        assert_eq!(all.exchanges.len(), 1);
        let count = |reason| all.skipped.count(reason);
        let reasons = [
            (Reason::Unreadable, 7),
            (Reason::NoInstruction, 3),
            (Reason::NoAnswer, 2),
            (Reason::Missing, 1),
            (Reason::Empty, 1),
            (Reason::NotAPicture, 1),
        ];
        for (reason, expected) in reasons {
            assert_eq!(count(reason), expected, "{reason:?}: {}", all.skipped);
        }
        assert!(all.skipped.to_string().contains("item 12: `gone.png`"), "{}", all.skipped);
    }

    #[test]
    fn what_is_no_array_is_refused_with_its_line() {
        for (text, says) in [
            ("", "cut short"),
            ("[", "cut short"),
            ("[{\"instruction\": \"a\"", "cut short"),
            ("{\"instruction\": \"a\"}", "an array of objects"),
            ("7", "an array of objects"),
            ("[\n{},\n{]", "line 3"),
            ("[] x", "trailing"),
            ("[\"\u{1}\"]", "line 1"),
        ] {
            let refused = read(text.as_bytes()).unwrap_err().to_string();
            assert!(refused.contains(says) && refused.contains("a.json"), "{text}: {refused}");
        }
        assert!(matches!(read(b"[\"\xff\"]"), Err(Error::Unusable { .. })));
        // Nested deeper than anybody means.
        assert!(matches!(read("[".repeat(100_000).as_bytes()), Err(Error::Unusable { .. })));
    }

    proptest! {
        /// Cut anywhere or with any byte changed, a file is refused or read, and an item never has an empty side.
        #[test]
        fn damaged_files_do_no_harm(cut in 0..WHOLE.len(), at in 0..WHOLE.len(), byte: u8) {
            let whole = WHOLE.trim_end().as_bytes();
            prop_assert!(read(&whole[..cut.min(whole.len() - 1)]).is_err());
            let mut changed = whole.to_vec();
            changed[at.min(whole.len() - 1)] = byte;
            if let Ok(all) = read(&changed) {
                prop_assert!(all.exchanges.iter().all(|e| !e.instruction.is_empty() && !e.answer.is_empty()));
            }
        }
    }
}
