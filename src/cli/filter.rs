//! The text of `--filter`, and the message that it becomes.
//!
//! ```text
//! filter    all { "or" all }
//! all       one { "and" one }
//! one       "not" one  │  "(" filter ")"  │  "has" name  │  name test  │  "id" test
//! name      "tag." and a text, as in tag.species or tag."date taken"
//! test      "=" text  │  "!=" text  │  [ "not" ] "in" "(" text { "," text } ")"
//! text      between " or ', where \ stands before quotes and itself; or one word without spaces, quotes and ( ) , = !
//! ```
//!
//! `and` binds closer than `or`. What [`Filter`] prints is read back as the same filter.

use viscache::serve::proto::{self, filter::Condition};
use viscache::types::{Filter, ItemId};

/// Characters that end a word.
const ENDS: &[char] = &['(', ')', ',', '=', '!', '"', '\''];

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    Quoted(String),
    Sign(&'static str),
}

/// Reads a filter.
///
/// # Errors
/// A sentence that says where it cannot be read and what is expected there.
pub fn parse(text: &str) -> Result<Filter, String> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0 };
    let filter = parser.any(Filter::MAX_DEPTH)?;
    match parser.peek() {
        None => Ok(filter),
        Some(_) => Err(parser.expected("`and`, `or` or the end")),
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, len) = match first {
            '"' | '\'' => quoted(rest, first).ok_or_else(|| format!("the quote at {rest} is not closed"))?,
            '!' if rest.starts_with("!=") => (Token::Sign("!="), 2),
            '(' => (Token::Sign("("), 1),
            ')' => (Token::Sign(")"), 1),
            ',' => (Token::Sign(","), 1),
            '=' => (Token::Sign("="), 1),
            '!' => return Err("`!` stands only before `=`; write `not`".into()),
            _ => {
                let end = rest.find(|c: char| c.is_whitespace() || ENDS.contains(&c)).unwrap_or(rest.len());
                (Token::Word(rest[..end].to_owned()), end)
            }
        };
        tokens.push(token);
        rest = rest[len..].trim_start();
    }
    Ok(tokens)
}

/// The text between quotes and how many bytes it took.
fn quoted(text: &str, quote: char) -> Option<(Token, usize)> {
    let (mut said, mut escaped) = (String::new(), false);
    for (at, c) in text.char_indices().skip(1) {
        match c {
            c if escaped => {
                said.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            c if c == quote => return Some((Token::Quoted(said), at + c.len_utf8())),
            c => said.push(c),
        }
    }
    None
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn any(&mut self, depth: usize) -> Result<Filter, String> {
        let filters = self.separated("or", |parser| parser.all(depth))?;
        Ok(one_or(filters, Filter::Any))
    }

    fn all(&mut self, depth: usize) -> Result<Filter, String> {
        let filters = self.separated("and", |parser| parser.one(depth))?;
        Ok(one_or(filters, Filter::All))
    }

    fn one(&mut self, depth: usize) -> Result<Filter, String> {
        let depth = depth.checked_sub(1);
        let depth = depth.ok_or_else(|| format!("is nested deeper than {}", Filter::MAX_DEPTH))?;
        if self.word("not") {
            return Ok(negated(self.one(depth)?));
        }
        if self.sign("(") {
            let inner = self.any(depth)?;
            self.close()?;
            return Ok(inner);
        }
        if self.word("has") {
            return Ok(Filter::HasTag(self.name()?.ok_or_else(|| self.expected("`tag.` and a name"))?));
        }
        if self.word("id") {
            let id = |value: String| match value.parse() {
                Ok(id) => Ok(ItemId(id)),
                Err(_) => Err(format!("`{value}` is not an id: they are whole numbers")),
            };
            return self.test(|values| values.into_iter().map(id).collect::<Result<_, _>>().map(Filter::Ids));
        }
        match self.name()? {
            Some(key) => {
                self.test(|values| Ok(Filter::Tag { key: key.clone(), values: values.into_iter().collect() }))
            }
            None => Err(self.expected("`tag.` and a name, `id`, `has`, `not` or `(`")),
        }
    }

    /// What follows a tag's name or `id`.
    fn test(&mut self, make: impl Fn(Vec<String>) -> Result<Filter, String>) -> Result<Filter, String> {
        let equal = self.sign("=");
        if equal || self.sign("!=") {
            let value = self.text()?;
            let filter = make(vec![value])?;
            return Ok(if equal { filter } else { negated(filter) });
        }
        let not = self.word("not");
        if !self.word("in") {
            return Err(self.expected(if not { "`in`" } else { "`=`, `!=`, `in` or `not in`" }));
        }
        if !self.sign("(") {
            return Err(self.expected("`(`"));
        }
        let mut values = vec![self.text()?];
        while self.sign(",") {
            values.push(self.text()?);
        }
        self.close()?;
        let filter = make(values)?;
        Ok(if not { negated(filter) } else { filter })
    }

    /// The name behind `tag.`, if that comes next.
    fn name(&mut self) -> Result<Option<String>, String> {
        let Some(Token::Word(word)) = self.peek() else { return Ok(None) };
        let Some(name) = word.strip_prefix("tag.").map(str::to_owned) else { return Ok(None) };
        self.at += 1;
        if !name.is_empty() {
            return Ok(Some(name));
        }
        match self.peek() {
            Some(Token::Quoted(_)) => self.text().map(Some),
            _ => Err(self.expected("a tag's name")),
        }
    }

    fn separated(
        &mut self,
        word: &str,
        mut part: impl FnMut(&mut Self) -> Result<Filter, String>,
    ) -> Result<Vec<Filter>, String> {
        let mut parts = vec![part(self)?];
        while self.word(word) {
            parts.push(part(self)?);
        }
        Ok(parts)
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn text(&mut self) -> Result<String, String> {
        match self.peek().cloned() {
            Some(Token::Word(text) | Token::Quoted(text)) => {
                self.at += 1;
                Ok(text)
            }
            _ => Err(self.expected("a text")),
        }
    }

    /// Takes a word that means something, if it comes next.
    fn word(&mut self, wanted: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Word(word)) if word.eq_ignore_ascii_case(wanted));
        self.at += usize::from(found);
        found
    }

    fn sign(&mut self, wanted: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Sign(sign)) if *sign == wanted);
        self.at += usize::from(found);
        found
    }

    fn close(&mut self) -> Result<(), String> {
        if self.sign(")") { Ok(()) } else { Err(self.expected("`)`")) }
    }

    fn expected(&self, what: &str) -> String {
        let found = match self.peek() {
            None => "it ends".into(),
            Some(Token::Word(text) | Token::Quoted(text)) => format!("`{text}` stands"),
            Some(Token::Sign(sign)) => format!("`{sign}` stands"),
        };
        format!("{found} where {what} is expected")
    }
}

fn negated(filter: Filter) -> Filter {
    Filter::Not(Box::new(filter))
}

fn one_or(mut filters: Vec<Filter>, several: impl Fn(Vec<Filter>) -> Filter) -> Filter {
    match filters.pop() {
        Some(only) if filters.is_empty() => only,
        last => {
            filters.extend(last);
            several(filters)
        }
    }
}

/// A filter as a message.
pub fn message(filter: &Filter) -> proto::Filter {
    let several = |filters: &[Filter]| proto::Filters { filters: filters.iter().map(message).collect() };
    let condition = match filter {
        Filter::Tag { key, values } => {
            let (key, values) = (key.clone(), values.iter().cloned().collect());
            Condition::Tag(proto::TagCondition { key, values })
        }
        Filter::HasTag(key) => Condition::HasTag(key.clone()),
        Filter::Ids(ids) => Condition::Ids(proto::ItemIds { ids: ids.iter().map(|id| id.0).collect() }),
        Filter::All(filters) => Condition::AllOf(several(filters)),
        Filter::Any(filters) => Condition::AnyOf(several(filters)),
        Filter::Not(filter) => Condition::NoneOf(several(std::slice::from_ref(filter))),
    };
    proto::Filter { condition: Some(condition) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filter() -> impl Strategy<Value = Filter> {
        let key = "[a-z.\"'\\\\ =()ü-]{1,8}";
        let leaf = prop_oneof![
            (key, prop::collection::btree_set(any::<String>(), 1..4))
                .prop_map(|(key, values)| Filter::Tag { key, values }),
            key.prop_map(Filter::HasTag),
            prop::collection::btree_set(any::<u64>().prop_map(ItemId), 1..4).prop_map(Filter::Ids),
        ];
        leaf.prop_recursive(5, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 2..4).prop_map(Filter::All),
                prop::collection::vec(inner.clone(), 2..4).prop_map(Filter::Any),
                inner.prop_map(negated),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(filter in filter()) {
            prop_assert_eq!(parse(&filter.to_string()), Ok(filter));
        }

        #[test]
        fn arbitrary_texts_give_a_filter_or_a_sentence(
            text in any::<String>(), words in prop::collection::vec(prop::sample::select(&[
                "tag.", "tag.a", "id", "in", "not", "and", "or", "has", "(", ")", ",", "=", "!=", "\"x\"", "'", "7", "\\",
            ][..]), 0..30)
        ) {
            let _ = parse(&text);
            let _ = parse(&words.join(" "));
            let _ = parse(&words.concat());
        }
    }

    #[test]
    fn people_write_it_like_this() {
        let tag = |key: &str, values: &[&str]| Filter::Tag {
            key: key.into(),
            values: values.iter().map(|&value| value.into()).collect(),
        };
        let read = |text: &str| parse(text).unwrap();
        assert_eq!(read("tag.species=dog"), tag("species", &["dog"]));
        assert_eq!(read("tag.\"date taken\" = 'a \"b\"'"), tag("date taken", &["a \"b\""]));
        assert_eq!(read("tag.a != b"), negated(tag("a", &["b"])));
        assert_eq!(read("tag.a NOT IN (b, 'c')"), negated(tag("a", &["b", "c"])));
        assert_eq!(read("id = 7"), Filter::Ids([ItemId(7)].into()));
        let all = read("tag.species = \"dog\" and not tag.licence in (\"nc\",\"unknown\") or id in (1,2,3)");
        let dogs = Filter::All(vec![tag("species", &["dog"]), negated(tag("licence", &["nc", "unknown"]))]);
        let ids = Filter::Ids([1, 2, 3].map(ItemId).into());
        assert_eq!(all, Filter::Any(vec![dogs.clone(), ids.clone()]));
        assert_eq!(
            read("tag.species = dog and (not tag.licence in (nc, unknown) or has tag.x)"),
            Filter::All(vec![
                tag("species", &["dog"]),
                Filter::Any(vec![negated(tag("licence", &["nc", "unknown"])), Filter::HasTag("x".into())]),
            ])
        );
        for (text, why) in [
            ("", "it ends where"),
            ("tag.a", "`=`, `!=`, `in` or `not in`"),
            ("tag. = x", "a tag's name"),
            ("species = dog", "`species` stands where"),
            ("tag.a = b tag.c = d", "`and`, `or` or the end"),
            ("tag.a in ()", "a text"),
            ("id in (1, x)", "`x` is not an id"),
            ("tag.a = 'b", "not closed"),
            ("(tag.a = b", "`)`"),
            ("!tag.a", "write `not`"),
        ] {
            let said = parse(text).unwrap_err();
            assert!(said.contains(why), "{text}: {said}");
        }
        assert!(parse(&"(".repeat(100_000)).unwrap_err().contains("deeper"));
        assert!(parse(&"not ".repeat(100_000)).unwrap_err().contains("deeper"));
    }
}
