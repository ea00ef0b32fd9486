//! Whether an answer is right: it is one of the right ones, or has one in it, word for word, after both were brought into one form.
//!
//! ```text
//! "The dog's on a Sofa, isn't it?" ─► small letters ─► no apostrophes ─► punctuation is a space ─► no a, an, the ─► single spaces
//!                                     "dogs on sofa isnt it"
//! ```
//! What stays is what numbers need: a point between digits, and a minus before a digit that nothing stands before. A comma between
//! digits goes without a space: `1,000` is `1000`. Articles stay where there is nothing else: an answer `A` has to be all that is
//! said. In scripts that write no spaces between words (Chinese, Japanese, Thai and their like) a right answer may stand anywhere.
//!
//! Left out of what VQA does: numbers in words are not made digits, and contractions are not put right; list both as answers. What is
//! in an answer is not understood: "not a cat" has "cat" in it.
//!
//! Source: Antol et al., *VQA* (arXiv 1505.00468), `vqaEvaluation/vqaEval.py`.

use std::sync::LazyLock;

use regex::Regex;

/// Unicode's punctuation.
static PUNCTUATION: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^\p{P}$").expect("a constant pattern that a test compiles"));
const ARTICLES: [&str; 3] = ["a", "an", "the"];

/// Whether an answer is, or has in it, one of the right ones.
///
/// * `right`: as the list has them.
pub(super) fn is_right(answer: &str, right: &[String]) -> bool {
    let answer = form(answer);
    right.iter().any(|right| has(&answer, &form(right)))
}

/// The form in which answers are compared; nothing for one of punctuation alone.
pub(super) fn form(text: &str) -> String {
    let letters: Vec<char> = text.to_lowercase().chars().collect();
    let mut form = String::with_capacity(text.len());
    for (i, &letter) in letters.iter().enumerate() {
        let (before, after) = (i.checked_sub(1).and_then(|i| letters.get(i)), letters.get(i + 1));
        let digits = before.is_some_and(char::is_ascii_digit) && after.is_some_and(char::is_ascii_digit);
        let minus = after.is_some_and(char::is_ascii_digit) && !before.is_some_and(|c| c.is_alphanumeric());
        match letter {
            '\'' | '’' | '‘' | 'ʼ' | '`' => {}
            ',' if digits => {}
            '.' if digits => form.push('.'),
            '-' | '−' if minus => form.push('-'),
            letter if is_punctuation(letter) => form.push(' '),
            letter => form.push(letter),
        }
    }
    let words: Vec<&str> = form.split_whitespace().collect();
    let telling: Vec<&str> = words.iter().copied().filter(|word| !ARTICLES.contains(word)).collect();
    if telling.is_empty() { words.join(" ") } else { telling.join(" ") }
}

fn is_punctuation(letter: char) -> bool {
    match letter.is_ascii() {
        true => letter.is_ascii_punctuation(),
        false => PUNCTUATION.is_match(letter.encode_utf8(&mut [0; 4])),
    }
}

/// Whether some words stand in others, in a row.
fn has(text: &str, words: &str) -> bool {
    let (Some(first), Some(last)) = (words.chars().next(), words.chars().next_back()) else { return false };
    text.char_indices().any(|(at, _)| {
        let (before, rest) = text.split_at(at);
        rest.strip_prefix(words).is_some_and(|after| {
            is_border(before.chars().next_back(), first) && is_border(after.chars().next(), last)
        })
    })
}

/// Whether a word may end between two letters.
fn is_border(outside: Option<char>, inside: char) -> bool {
    outside.is_none_or(|outside| outside == ' ' || writes_no_spaces(outside) || writes_no_spaces(inside))
}

/// Whether a letter is of a script that has no spaces between words.
fn writes_no_spaces(letter: char) -> bool {
    matches!(letter,
        '\u{0e00}'..='\u{0eff}' // Thai, Lao
        | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}' // Burmese, Khmer
        | '\u{3040}'..='\u{30ff}' | '\u{31f0}'..='\u{31ff}' // kana
        | '\u{3400}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}') // Han
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_brought_into_one_form() {
        for (text, expected) in [
            ("The dog's on a Sofa, isn't it?", "dogs on sofa isnt it"),
            ("  A\tred -  ring!\n", "red ring"),
            ("well-known", "well known"),
            ("1,000 people; 3.5 m", "1000 people 3.5 m"),
            ("-5 degrees, 2-3", "-5 degrees 2 3"),
            ("−5", "-5"),
            ("C++ & C#", "c c"),
            ("«Straße» … ¿qué?", "straße qué"),
            ("A", "a"),
            ("the", "the"),
            ("the a", "the a"),
            ("Theatre and ants", "theatre and ants"),
            ("?!", ""),
            ("", ""),
            ("ÉCOLE’S 20 €", "écoles 20 €"),
            ("猫。", "猫"),
        ] {
            assert_eq!(form(text), expected, "{text}");
            assert_eq!(form(&form(text)), expected, "twice is once: {text}");
        }
    }

    #[test]
    fn right_answers_are_found_word_for_word() {
        let right = |answer: &str, right: &[&str]| {
            is_right(answer, &right.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert!(right("A cat.", &["cat"]) && right("a black CAT on a mat", &["the black cat", "dog"]));
        assert!(!right("a category", &["cat"]) && !right("concat", &["cat"]) && !right("cats", &["cat"]));
        assert!(!right("black or white cat", &["black cat"]), "in a row");
        assert!(right("a cat and a dog", &["cat and dog"]), "articles are no words");
        assert!(!right("", &["cat"]) && !right("cat", &["?!"]) && !right("cat", &[]));
        assert!(!right("-5", &["5"]) && right("it is 5.", &["5"]) && !right("3.5", &["5"]));
        assert!(right("xa b a b a", &["b a b a"]) && right("ab a b a b", &["a b a b"]), "overlaps");
        assert!(right("b", &["B", "C"]) && right("A.", &["a"]) && !right("the answer is A", &["a"]));
        assert!(right("一只红色的猫在这里", &["猫"]) && right("แมวสีดำ", &["แมว"]));
    }
}
