//! The cleaning before tokenising: repair, unescape, fold white space, lower case.
//!
//! Order matters and is the reference's: `ftfy.fix_text`, HTML unescape *twice*, trim, every run of white space becomes
//! one space, trim, lower case. Repair is the crate `plsfix`, a port of ftfy.
//!
//! Source: openai/CLIP, `clip/simple_tokenizer.py`, as ImageBind carries it.

/// Cleans a text as CLIP's tokenizer does.
pub(super) fn clean(text: &str) -> String {
    let fixed = plsfix::fix_text(text, None);
    let once = htmlize::unescape(&fixed);
    let twice = htmlize::unescape(once.as_ref());
    let words: Vec<&str> = twice.split(is_space).filter(|word| !word.is_empty()).collect();
    words.join(" ").to_lowercase()
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
            ("", ""),
            ("ΟΔΟΣ", "οδος"),
        ] {
            assert_eq!(clean(text), cleaned, "{text:?}");
        }
    }
}
