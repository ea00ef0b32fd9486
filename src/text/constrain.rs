//! Answers of a form that was asked for: after each token, which may come next.
//!
//! The work is the crate `llguidance`'s, a parser over the bytes of all pieces at once; its expressions are limited here, and what a
//! schema may refer to lies within it. LLaMA's first piece has a space before it that is no part of the answer, or has none: both may
//! begin one.

use std::fmt;
use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{SimpleVob, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};
use llguidance::{Matcher, ParserFactory};
use regex::Regex;

use super::SentencePiece;

/// Bytes of a form at most: of its texts, its expression or its schema.
pub const MAX_FORM_BYTES: usize = 64 << 10;
/// States of the expressions, one or two KiB each: 40 MiB an answer at most, where the crate has 500.
const MAX_STATES: usize = 20_000;
/// Bytes in memory for each of a form.
const HELD: usize = 128;
/// How JSON is written unless its schema says so itself: as most programs write it on one line. A model that may put any space
/// between two words of JSON may do so until its tokens are used up.
const SPACING: [(&str, &str); 2] = [("item_separator", ", "), ("key_separator", ": ")];
/// Where the schema says so.
const OWN_OPTIONS: &str = "x-guidance";

/// What an answer has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// One of these texts.
    Choice(Vec<String>),
    /// A text that matches an expression as a whole; the crate `regex`'s, without looking around.
    Regex(String),
    /// JSON that a schema admits.
    JsonSchema(String),
}

/// Why an answer is not, or not any more, of a form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no answer can be brought into this form: {0}")]
pub struct FormError(String);

impl Form {
    /// Bytes that following it takes, about: a thousand texts of 43 bytes took 4.3 MiB, and other forms less.
    pub fn needs(&self) -> u64 {
        (HELD * self.bytes()) as u64
    }

    fn bytes(&self) -> usize {
        match self {
            Form::Choice(texts) => texts.iter().map(|text| text.len() + 1).sum(),
            Form::Regex(text) | Form::JsonSchema(text) => text.len(),
        }
    }

    fn grammar(&self) -> Result<TopLevelGrammar, FormError> {
        let fail = |why: String| Err(FormError(why));
        if self.bytes() > MAX_FORM_BYTES {
            return fail(format!("it has {} bytes; at most {MAX_FORM_BYTES} are taken", self.bytes()));
        }
        match self {
            Form::Choice(texts) if texts.is_empty() => fail("it has no texts to choose from".into()),
            Form::Choice(texts) if texts.iter().any(String::is_empty) => {
                fail("one of its texts is empty".into())
            }
            Form::Choice(texts) => {
                let texts: Vec<String> = texts.iter().map(|text| regex::escape(text)).collect();
                Ok(text_of(&texts.join("|")))
            }
            Form::Regex(expression) if expression.is_empty() => fail("the expression is empty".into()),
            // Read by itself first: within the parentheses below a part of it could be taken for theirs.
            Form::Regex(expression) => match Regex::new(expression) {
                Ok(_) => Ok(text_of(expression)),
                Err(error) => fail(format!("the expression cannot be read: {error}")),
            },
            Form::JsonSchema(schema) => {
                let mut schema: serde_json::Value = match serde_json::from_str(schema) {
                    Ok(schema) => schema,
                    Err(error) => return fail(format!("the schema is no JSON: {error}")),
                };
                let Some(object) = schema.as_object_mut() else {
                    return fail("the schema is no JSON object".into());
                };
                if !object.contains_key(OWN_OPTIONS) {
                    let mut options = serde_json::Map::new();
                    options.insert("whitespace_flexible".into(), false.into());
                    SPACING
                        .iter()
                        .for_each(|(name, text)| _ = options.insert((*name).into(), (*text).into()));
                    object.insert(OWN_OPTIONS.into(), options.into());
                }
                Ok(TopLevelGrammar::from_lark(format!("start: \" \"? answer\nanswer: %json {schema}\n")))
            }
        }
    }
}

/// The grammar of texts that match an expression: behind a space that is no part of them, or without one where they do not begin with
/// one themselves.
fn text_of(expression: &str) -> TopLevelGrammar {
    let mut written = String::with_capacity(expression.len());
    let mut escaped = false;
    for c in expression.chars() {
        match c {
            '/' if !escaped => written += "\\/",
            '\n' if escaped => written += "n",
            '\n' => written += "\\n",
            c => written.push(c),
        }
        escaped = c == '\\' && !escaped;
    }
    TopLevelGrammar::from_lark(format!(
        "start: TEXT\nTEXT: \" \" WANTED | WANTED & /([^ ](?s:.*))?/\nWANTED: /(?:{written})/\n"
    ))
}

/// Begins constrained answers of one tokenizer.
pub struct Constrainer {
    factory: ParserFactory,
}

impl Constrainer {
    /// Lays out a tokenizer's pieces: some milliseconds.
    ///
    /// # Errors
    /// [`FormError`] for a tokenizer that it cannot take.
    pub fn new(tokenizer: &SentencePiece) -> Result<Self, FormError> {
        let ids = 0..tokenizer.len() as u32;
        // A byte for a space would stay where the piece for one is taken away, before an answer.
        let has_space = ids.clone().any(|id| tokenizer.piece(id) == " ");
        let text = |id| match tokenizer.piece(id).as_str() {
            "<0x20>" if has_space => Vec::new(),
            _ => tokenizer.bytes(id),
        };
        let pieces: Vec<Vec<u8>> = ids.map(text).collect();
        let info = TokRxInfo::new(pieces.len() as u32, tokenizer.eos());
        let pieces: TokEnv = Arc::new(Pieces(TokTrie::from(&info, &pieces)));
        let mut factory = ParserFactory::new_simple(&pieces).map_err(|e| FormError(e.to_string()))?;
        factory.quiet();
        let limits = factory.limits_mut();
        (limits.max_lexer_states, limits.verbose_errors) = (MAX_STATES, false);
        Ok(Constrainer { factory })
    }

    /// An answer of this form, before its first token.
    ///
    /// # Errors
    /// [`FormError`] for one that cannot be read, or that is too large.
    pub fn begin(&self, form: &Form) -> Result<Constraint, FormError> {
        let mut matcher = Matcher::new(self.factory.create_parser(form.grammar()?));
        if let Some(why) = matcher.get_error() {
            return Err(FormError(why));
        }
        // What no text can be is told before anybody is asked.
        matcher.compute_mask().map_err(|e| FormError(e.to_string()))?;
        Ok(Constraint { matcher })
    }
}

impl fmt::Debug for Constrainer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constrainer").finish_non_exhaustive()
    }
}

/// What an answer may go on with. A clone goes its own way.
pub struct Constraint {
    matcher: Matcher,
}

impl Constraint {
    /// Which tokens may come next; the one that ends an answer where it is whole.
    ///
    /// # Errors
    /// [`FormError`] when finding out takes more than an answer may.
    pub fn allowed(&mut self) -> Result<Allowed, FormError> {
        self.matcher.compute_mask_or_eos().map(Allowed).map_err(|e| FormError(e.to_string()))
    }

    /// Goes on with a token that is allowed.
    ///
    /// # Errors
    /// [`FormError`] for any other.
    pub fn take(&mut self, id: u32) -> Result<(), FormError> {
        self.matcher.consume_token(id).map_err(|e| FormError(e.to_string()))
    }

    /// Whether the answer is whole and nothing can come after it.
    pub fn is_over(&self) -> bool {
        self.matcher.is_stopped()
    }
}

impl Clone for Constraint {
    fn clone(&self) -> Self {
        // What is kept of the expressions would be shared by a plain one, and be waited for.
        Constraint { matcher: self.matcher.deep_clone() }
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraint").field("over", &self.is_over()).finish_non_exhaustive()
    }
}

/// Tokens that may come next.
#[derive(Debug, Clone)]
pub struct Allowed(SimpleVob);

impl Allowed {
    /// Whether this one is among them.
    pub fn has(&self, id: u32) -> bool {
        (id as usize) < self.0.len() && self.0.is_allowed(id)
    }
}

/// All pieces of a tokenizer, as the parser looks at them.
struct Pieces(TokTrie);

impl TokenizerEnv for Pieces {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.0.greedy_tokenize(bytes)
    }

    /// No: of the ways to split a text the model chooses, and no token is put in for it.
    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::seq::IndexedRandom;
    use rand::{RngExt, SeedableRng};
    use rand_pcg::Pcg64Mcg;

    use super::*;

    fn tokenizer() -> SentencePiece {
        SentencePiece::from_bytes(include_bytes!("../../assets/nano/tokenizer.model")).unwrap()
    }

    fn constrainer() -> Constrainer {
        Constrainer::new(&tokenizer()).unwrap()
    }

    /// A text of this form: any allowed token is drawn, until the answer is whole.
    fn drawn(constrainer: &Constrainer, form: &Form, seed: u64, most: usize) -> Option<String> {
        let (tokenizer, mut random) = (tokenizer(), Pcg64Mcg::seed_from_u64(seed));
        let (mut constraint, mut ids) = (constrainer.begin(form).unwrap(), Vec::new());
        for _ in 0..most {
            let allowed = constraint.allowed().unwrap();
            let all: Vec<u32> = (0..tokenizer.len() as u32).filter(|&id| allowed.has(id)).collect();
            let end = allowed.has(tokenizer.eos()) && random.random_bool(0.3);
            let id = if end { tokenizer.eos() } else { *all.choose(&mut random).unwrap() };
            if id == tokenizer.eos() {
                return Some(tokenizer.decode(&ids));
            }
            constraint.take(id).unwrap();
            ids.push(id);
            if constraint.is_over() {
                return Some(tokenizer.decode(&ids));
            }
        }
        None
    }

    #[test]
    fn whatever_is_drawn_is_of_the_form() {
        let constrainer = constrainer();
        let texts = ["red", "red circle", "a (small) star?", " ä|ö", "a/b\\nc"].map(String::from).to_vec();
        let dates = r"\d{4}-\d{2}-\d{2}( [A-Z][a-z]{2,5})?";
        let schema = r#"{
            "type": "object",
            "properties": {
                "shape": { "enum": ["circle", "star"] },
                "count": { "type": "integer", "minimum": 1, "maximum": 20 },
                "tags": { "type": "array", "items": { "type": "string", "maxLength": 4 }, "maxItems": 2 }
            },
            "required": ["shape", "count", "tags"],
            "additionalProperties": false
        }"#;
        let whole = Regex::new(&format!("^(?:{dates})$")).unwrap();
        let mut different = std::collections::BTreeSet::new();
        for seed in 0..60 {
            let choice = drawn(&constrainer, &Form::Choice(texts.clone()), seed, 200).unwrap();
            assert!(texts.contains(&choice), "{choice}");
            different.insert(choice);
            let date = drawn(&constrainer, &Form::Regex(dates.into()), seed, 200).unwrap();
            assert!(whole.is_match(&date), "{date}");
            let Some(json) = drawn(&constrainer, &Form::JsonSchema(schema.into()), seed, 400) else {
                continue;
            };
            let value: serde_json::Value =
                serde_json::from_str(&json).unwrap_or_else(|e| panic!("{e}: {json}"));
            assert!(["circle", "star"].contains(&value["shape"].as_str().unwrap()), "{json}");
            assert!((1..=20).contains(&value["count"].as_u64().unwrap()), "{json}");
            let tags = value["tags"].as_array().unwrap();
            assert!(tags.iter().all(|tag| tag.as_str().unwrap().chars().count() <= 4), "{json}");
            assert!(tags.len() <= 2 && value.as_object().unwrap().len() == 3, "{json}");
        }
        assert_eq!(different.len(), texts.len(), "each can be chosen");
    }

    #[test]
    fn a_clone_goes_its_own_way() {
        let constrainer = constrainer();
        let form = Form::Choice(vec!["ab".into(), "ac".into()]);
        let (tokenizer, mut one) = (tokenizer(), constrainer.begin(&form).unwrap());
        let byte = |byte: u8| (0..tokenizer.len() as u32).find(|&id| tokenizer.bytes(id) == [byte]).unwrap();
        one.take(byte(b'a')).unwrap();
        let mut other = one.clone();
        one.take(byte(b'b')).unwrap();
        assert!(one.is_over() && !other.is_over());
        assert!(other.allowed().unwrap().has(byte(b'c')) && !other.allowed().unwrap().has(tokenizer.eos()));
        assert!(other.clone().take(byte(b'd')).is_err());
        assert!(!other.allowed().unwrap().has(u32::MAX));
    }

    #[test]
    fn forms_that_are_none_are_told() {
        let constrainer = constrainer();
        let told = |form: Form| constrainer.begin(&form).unwrap_err().to_string();
        let long = "a".repeat(MAX_FORM_BYTES + 1);
        assert!(told(Form::Choice(vec![])).contains("no texts"));
        assert!(told(Form::Choice(vec!["a".into(), String::new()])).contains("empty"));
        assert!(told(Form::Choice(vec![long.clone()])).contains("65536"));
        for bad in ["", "(", "a)|(b", "a(?=b)", r"(a)\1", long.as_str()] {
            assert!(constrainer.begin(&Form::Regex(bad.into())).is_err(), "{bad}");
        }
        // More states than are given.
        assert!(constrainer.begin(&Form::Regex("(?:a{1000}){1000}".into())).is_err());
        for bad in [
            "",
            "[]",
            "3",
            "{",
            r#"{"type": "colour"}"#,
            r##"{"$ref": "#/none"}"##,
            r#"{"$ref": "http://example.com/a.json"}"#,
        ] {
            assert!(constrainer.begin(&Form::JsonSchema(bad.into())).is_err(), "{bad}");
        }
        assert!(constrainer.begin(&Form::JsonSchema(r#"{"type": "string", "enum": [1]}"#.into())).is_err());
    }

    proptest! {
        /// Whatever comes, it is a form or an error.
        #[test]
        fn any_text_is_a_form_or_an_error(text in r#"[ -~\n]{0,40}"#, json in r#"[\[\]{}":,a-z0-9$/# ]{0,40}"#) {
            let constrainer = constrainer();
            for form in [Form::Regex(text.clone()), Form::Choice(vec![text.clone()]), Form::JsonSchema(text), Form::JsonSchema(json)] {
                if let Ok(mut constraint) = constrainer.begin(&form) {
                    prop_assert!(constraint.allowed().is_ok());
                }
            }
        }
    }
}
