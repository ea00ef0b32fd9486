//! Tags of pictures, from the texts beside them: `--tag caption=txt --tag label=cls --tag licence=json.license`.
//!
//! In a folder `a/b.txt` lies beside `a/b.jpg`. In an archive, members are of one sample when their names are the same up
//! to the first dot of the last part (WebDataset): `000/17.jpg`, `000/17.txt`, `000/17.json`.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;

use serde_json::Value;

/// Longest text that a tag is taken from, and longest value of a tag, bytes.
pub const MAX_TEXT: u64 = 1 << 20;
const MAX_VALUE: usize = 4096;

/// One `--tag`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagRule {
    /// Name of the tag; `None` for every plain field of a JSON object, by its own name.
    name: Option<String>,
    /// Ending of the file that it is taken from, without the dot.
    pub ending: String,
    /// Keys into JSON, outermost first; empty for the whole text.
    keys: Vec<String>,
}

impl FromStr for TagRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || {
            format!(
                "`{text}` is not NAME=ENDING, as in caption=txt, or NAME=json.KEY, as in licence=json.license"
            )
        };
        let (name, from) = match text.split_once('=') {
            Some((name, from)) => (Some(name), from),
            None => (None, text),
        };
        let mut parts = from.trim_start_matches('.').split('.').map(str::to_owned);
        let ending = parts.next().filter(|ending| !ending.is_empty()).ok_or_else(form)?;
        let keys: Vec<String> = parts.collect();
        if name.is_some_and(str::is_empty) || keys.iter().any(String::is_empty) {
            return Err(form());
        }
        let whole_json = ending.eq_ignore_ascii_case("json") && keys.is_empty();
        if whole_json && name.is_some() {
            return Err(format!(
                "`{text}`: say which key, as in NAME=json.KEY, or `json` alone for all of them"
            ));
        }
        let own = || keys.last().cloned().unwrap_or_else(|| ending.clone());
        let name = if whole_json { None } else { Some(name.map_or_else(own, str::to_owned)) };
        Ok(TagRule { name, ending, keys })
    }
}

impl TagRule {
    /// Adds what a text says.
    ///
    /// # Errors
    /// Why it says nothing that can be a tag. A key that is not there is no error: not every picture has everything.
    pub fn read(&self, text: &[u8], tags: &mut BTreeMap<String, String>) -> Result<(), String> {
        let text = std::str::from_utf8(text).map_err(|_| format!("its .{} is not UTF-8", self.ending))?;
        if !self.ending.eq_ignore_ascii_case("json") {
            return self.note(self.name.as_deref().unwrap_or(&self.ending), text.trim(), tags);
        }
        let json: Value = serde_json::from_str(text).map_err(|e| format!("its .json cannot be read: {e}"))?;
        let Some(name) = &self.name else {
            let fields = json.as_object().ok_or("its .json is no object")?;
            return fields
                .iter()
                .filter_map(|(name, value)| Some((name, plain(value)?)))
                .try_for_each(|(name, value)| self.note(name, &value, tags));
        };
        match self.keys.iter().try_fold(&json, |value, key| value.get(key)).and_then(plain) {
            Some(value) => self.note(name, &value, tags),
            None => Ok(()),
        }
    }

    fn note(&self, name: &str, value: &str, tags: &mut BTreeMap<String, String>) -> Result<(), String> {
        if value.is_empty() {
            return Ok(());
        }
        if value.len() > MAX_VALUE {
            return Err(format!("tag `{name}` has {} bytes, more than {MAX_VALUE}", value.len()));
        }
        tags.insert(name.to_owned(), value.to_owned());
        Ok(())
    }
}

/// A string, number or boolean as text.
fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.trim().to_owned()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// The sample that a member of an archive belongs to, and the rest of its name.
pub fn sample_of(member: &[u8]) -> (&[u8], &[u8]) {
    let last = member.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
    let dot = member[last..].iter().position(|b| *b == b'.').map_or(member.len(), |dot| last + dot);
    (&member[..dot], member.get(dot + 1..).unwrap_or_default())
}

/// The text of a kind beside a picture's file.
pub fn beside(picture: &Path, ending: &str) -> std::path::PathBuf {
    picture.with_extension(ending)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_say_where_a_tag_comes_from() {
        let json = br#"{"license": "by", "size": {"w": 3}, "ok": true, "list": [1], "none": null}"#;
        let read = |rule: &str, text: &[u8]| {
            let mut tags = BTreeMap::new();
            rule.parse::<TagRule>().unwrap().read(text, &mut tags).map(|()| format!("{tags:?}"))
        };
        assert_eq!(read("caption=txt", b" a dog\n").unwrap(), r#"{"caption": "a dog"}"#);
        assert_eq!(read("cls", b"7").unwrap(), r#"{"cls": "7"}"#);
        assert_eq!(read("licence=json.license", json).unwrap(), r#"{"licence": "by"}"#);
        assert_eq!(read("json.size.w", json).unwrap(), r#"{"w": "3"}"#);
        assert_eq!(read("json", json).unwrap(), r#"{"license": "by", "ok": "true"}"#);
        assert_eq!(read("x=json.gone", json).unwrap(), "{}");
        assert!(read("txt", b"\xff").unwrap_err().contains("UTF-8"));
        assert!(read("json", b"[").unwrap_err().contains("cannot be read"));
        assert!(read("txt", &[b'a'; MAX_VALUE + 1]).unwrap_err().contains("more than"));
        for wrong in ["", "=txt", "a=", "a=json", "a=json."] {
            assert!(wrong.parse::<TagRule>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn samples_are_named_up_to_the_first_dot() {
        assert_eq!(sample_of(b"a.b/000.seg.png"), (&b"a.b/000"[..], &b"seg.png"[..]));
        assert_eq!(sample_of(b"plain"), (&b"plain"[..], &b""[..]));
    }
}
