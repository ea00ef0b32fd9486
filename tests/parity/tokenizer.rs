//! LLaMA's tokenizer on whatever it is given: nothing is lost on the way to ids and back, text comes in whole characters, and a
//! file that is no tokenizer is refused.

use proptest::prelude::*;
use viscache::text::{Detokenizer, SentencePiece};

const FILE: &[u8] = include_bytes!("../../assets/nano/tokenizer.model");

fn tokenizer() -> SentencePiece {
    SentencePiece::from_bytes(FILE).unwrap()
}

/// Texts of any characters, with many spaces, line ends, digits and control words among them.
fn text() -> impl Strategy<Value = String> {
    let pieces = prop_oneof![
        4 => any::<char>().prop_map(String::from),
        2 => "[a-z ]{0,12}",
        1 => prop::sample::select(&["<s>", "</s>", "<0x0A>", "\n\n", "  ", "### ", "🙂", "é"][..]).prop_map(String::from),
    ];
    // A ▁ of the text cannot be told from a space: the format has it so.
    prop::collection::vec(pieces, 0..40).prop_map(|pieces| pieces.concat().replace('\u{2581}', "_"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_text_comes_back(text in text()) {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode(&text).unwrap();
        prop_assert!(ids.iter().all(|&id| id != tokenizer.bos() && id != tokenizer.eos() && id != 0));
        prop_assert_eq!(tokenizer.decode(&ids), text);
    }

    #[test]
    fn ids_as_they_come_are_the_whole_text(ids in prop::collection::vec(0..tokenizer().len() as u32 + 8, 0..60)) {
        let tokenizer = tokenizer();
        let mut stream = Detokenizer::default();
        let parts: Vec<String> = ids.iter().map(|&id| stream.push(&tokenizer, id)).collect();
        let whole = parts.concat() + &stream.finish();
        prop_assert_eq!(&whole, &tokenizer.decode(&ids));
        // What was given out is never taken back: every beginning of the ids is a beginning of the text, but for an end that waits.
        for end in 0..ids.len() {
            let begun = parts[..end].concat();
            prop_assert!(whole.starts_with(&begun));
        }
    }

    #[test]
    fn a_damaged_file_is_refused_or_still_encodes(at in 0..FILE.len(), byte in any::<u8>(), cut in 0..FILE.len()) {
        let mut file = FILE.to_vec();
        file[at] = byte;
        for file in [&file[..], &file[..cut]] {
            if let Ok(tokenizer) = SentencePiece::from_bytes(file) {
                let ids = tokenizer.encode("a large orange cross").unwrap();
                tokenizer.decode(&ids);
            }
        }
    }

    #[test]
    fn bytes_that_are_no_tokenizer_are_refused(file in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(SentencePiece::from_bytes(&file).is_err());
    }
}
