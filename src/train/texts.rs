//! An instruction and its answer as token ids, and what is learned of them.
//!
//! ```text
//! <s> prompt answer </s>          one text: prompt and answer are split into tokens together
//! 0   0      answer </s>          labels: as many first ones as the prompt alone has are not learned, nor is padding
//! ```
//! As published: a text that is too long is cut at its end and loses `</s>`; where a token crosses from the prompt into the answer, the
//! two counts may be off by one. A batch is padded with 0 to its longest text; the published program pads to the most that is allowed,
//! which changes nothing but the work: nobody looks at what stands behind.
//!
//! Left out: the published loader's slip of writing instructions without a picture as `('…',)`.
//!
//! Source: `data/dataset.py` of ImageBind-LLM.

use crate::text::{SentencePiece, Template};

/// A text of which something is learned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// All of it.
    pub ids: Vec<u32>,
    /// How many of its first are the prompt's; fewer than there are.
    pub prompt: usize,
    /// Whether it was cut.
    pub cut: bool,
}

impl Text {
    /// Splits it into tokens; nothing where none of the answer would be left, or where it is longer than any text may be.
    ///
    /// * `input`: empty for none. `length`: tokens allowed.
    pub fn new(
        tokenizer: &SentencePiece,
        [instruction, input, answer]: [&str; 3],
        length: usize,
    ) -> Option<Text> {
        let prompt = Template::ImageBindLlm.fill(instruction, Some(input));
        let own = tokenizer.encode(&prompt).ok()?.len() + 1;
        let mut ids = vec![tokenizer.bos()];
        ids.extend(tokenizer.encode(&(prompt + answer)).ok()?);
        ids.push(tokenizer.eos());
        let cut = ids.len() > length;
        ids.truncate(length);
        (own < ids.len()).then_some(Text { ids, prompt: own, cut })
    }
}

/// Ids and labels of some texts, `[B · T]` each, and T: the longest of them.
pub fn padded<'a>(texts: impl Iterator<Item = &'a Text> + Clone) -> (Vec<u32>, Vec<u32>, usize) {
    let length = texts.clone().map(|text| text.ids.len()).max().unwrap_or_default();
    let (mut ids, mut labels) = (Vec::new(), Vec::new());
    for (i, text) in texts.enumerate() {
        ids.extend_from_slice(&text.ids);
        ids.resize((i + 1) * length, 0);
        labels.resize(i * length + text.prompt, 0);
        labels.extend_from_slice(&text.ids[text.prompt..]);
        labels.resize((i + 1) * length, 0);
    }
    (ids, labels, length)
}
