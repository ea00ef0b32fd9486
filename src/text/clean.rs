//! The cleaning before tokenising: repair, unescape, fold white space, lower case.
//!
//! Order matters and is the reference's: `ftfy.fix_text`, HTML unescape *twice*, trim, every run of white space becomes
//! one space, trim, lower case. Repair is the crate `plsfix`, a port of ftfy, with two of its habits mended here (0.1):
//! it never finds terminal escapes, and it unescapes entities in text that holds a `<`, which ftfy leaves alone from
//! the first line with one on.
//!
//! Source: openai/CLIP, `clip/simple_tokenizer.py`, as ImageBind carries it; ftfy's documentation of `fix_text`.

use std::sync::LazyLock;

use regex::Regex;

/// Stands for an `&` that repair must not see. A private-use character: no text means anything by it.
const KEPT_AMPERSAND: &str = "\u{f8fe}";

static TERMINAL_ESCAPES: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new("\u{1b}\\[[0-9;]*[a-zA-Z]").expect("the expression is a constant and a test compiles it")
});

/// Cleans a text as CLIP's tokenizer does.
pub(super) fn clean(text: &str) -> String {
    let fixed = repair(text);
    let once = htmlize::unescape(&fixed);
    let twice = htmlize::unescape(once.as_ref());
    let words: Vec<&str> = twice.split(is_space).filter(|word| !word.is_empty()).collect();
    words.join(" ").to_lowercase()
}

fn repair(text: &str) -> String {
    let text = TERMINAL_ESCAPES.replace_all(text, "");
    let markup = text.find('<').map(|at| text[..at].rfind('\n').map_or(0, |newline| newline + 1));
    let (free, marked) = text.split_at(markup.unwrap_or(text.len()));
    let kept = [free, &marked.replace('&', KEPT_AMPERSAND)].concat();
    plsfix::fix_text(&kept, None).replace(KEPT_AMPERSAND, "&")
}

/// White space as Python's `str.split` and `\s` see it: Unicode's, and the four separators U+001C to U+001F.
fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleaning() {
        for (text, cleaned) in [
            ("  A \t dog\n\nbarks ", "a dog barks"),
            ("fish &amp;amp; chips", "fish & chips"),
            ("\u{201c}quoted\u{201d}", "\"quoted\""),
            ("\u{1b}[31mred\u{1b}[0m", "red"),
            ("&EACUTE;\n<p>&EACUTE; &eacute;", "é <p>&eacute; é"),
            ("", ""),
            ("ΟΔΟΣ", "οδος"),
        ] {
            assert_eq!(clean(text), cleaned, "{text:?}");
        }
    }
}
