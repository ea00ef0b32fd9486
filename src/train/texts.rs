//! What is asked and answered as token ids, and what is learned of them.
//!
//! ```text
//! instruction    <s> prompt answer </s>                          one text: prompt and answer are split into tokens together
//!                0   0      answer </s>                          labels: as many first ones as the prompt alone has are not learned
//! conversation   <s> system ### Human: a ### Assistant: b ### Human: c ### Assistant: d ### </s>
//!                0   0                                  b ###                         d ### </s>
//! ```
//! As published: a text that is too long is cut at its end and loses `</s>`; where a token crosses from what is told into an answer, the
//! two counts may be off by one. A batch is padded with 0 to its longest text; the published programs pad to the most that is allowed,
//! which changes nothing but the work: nobody looks at what stands behind.
//!
//! How the chat program was trained is not published. Here every answer of a conversation is learned, with what ends it, so that the
//! decoder says where it stops.
//!
//! Left out: the published loader's slip of writing instructions without a picture as `('…',)`.
//!
//! Source: `data/dataset.py` of ImageBind-LLM and of the multimodal LLaMA-Adapter V2.

use std::ops::Range;

use super::data::Exchange;
use crate::text::{ChatTemplate, Conversation, SentencePiece, Speaker, Template, Turn};

/// How what is asked and answered becomes one text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// An instruction and its answer; how a conversation goes on is left out.
    Instruction(Template),
    /// All of a conversation. An input follows its instruction on a line of its own.
    Conversation(ChatTemplate),
}

/// A text of which something is learned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// All of it.
    pub ids: Vec<u32>,
    /// Which of them are learned: at least one, in order.
    pub learned: Vec<Range<usize>>,
    /// Whether it was cut.
    pub cut: bool,
}

impl Text {
    /// Splits it into tokens; nothing where nothing to be learned would be left, or where it is longer than any text may be.
    ///
    /// * `length`: tokens allowed.
    pub fn new(tokenizer: &SentencePiece, form: Form, exchange: &Exchange, length: usize) -> Option<Text> {
        let Exchange { instruction, input, answer, later, .. } = exchange;
        match form {
            Form::Instruction(template) => {
                let prompt = template.fill(instruction, input.as_deref());
                let whole = format!("{prompt}{answer}");
                Self::of(tokenizer, &whole, &[[prompt, whole.clone()]], length)
            }
            Form::Conversation(template) => {
                let asked = match input.as_deref().filter(|input| !input.is_empty()) {
                    Some(input) => format!("{instruction}\n{input}"),
                    None => instruction.clone(),
                };
                let mut talk = Conversation { template, system: None, turns: Vec::new() };
                let mut answers = Vec::new();
                let first = [&asked, answer];
                for [asked, answer] in std::iter::once(first).chain(later.iter().map(|[q, a]| [q, a])) {
                    talk.turns.push(Turn { by: Speaker::Human, text: asked.clone() });
                    let before = talk.text();
                    talk.turns.push(Turn { by: Speaker::Assistant, text: answer.clone() });
                    answers.push([before, talk.said()]);
                }
                Self::of(tokenizer, &talk.said(), &answers, length)
            }
        }
    }

    /// * `answers`: for each, the text before it and the text to its end.
    fn of(tokenizer: &SentencePiece, whole: &str, answers: &[[String; 2]], length: usize) -> Option<Text> {
        let mut ids = vec![tokenizer.bos()];
        ids.extend(tokenizer.encode(whole).ok()?);
        ids.push(tokenizer.eos());
        let cut = ids.len() > length;
        ids.truncate(length);
        let mut learned = Vec::new();
        for (i, [before, after]) in answers.iter().enumerate() {
            let begin = tokenizer.encode(before).ok()?.len() + 1;
            if begin >= ids.len() {
                break;
            }
            let end = match i + 1 == answers.len() {
                true => ids.len(),
                false => (tokenizer.encode(after).ok()?.len() + 1).min(ids.len()),
            };
            learned.push(begin..end);
        }
        (!learned.is_empty()).then_some(Text { ids, learned, cut })
    }
}

/// Ids and labels of some texts, `[B · T]` each, and T: the longest of them.
pub fn padded<'a>(texts: impl Iterator<Item = &'a Text> + Clone) -> (Vec<u32>, Vec<u32>, usize) {
    let length = texts.clone().map(|text| text.ids.len()).max().unwrap_or_default();
    let (mut ids, mut labels) = (Vec::new(), Vec::new());
    for (i, text) in texts.enumerate() {
        ids.extend_from_slice(&text.ids);
        ids.resize((i + 1) * length, 0);
        for learned in &text.learned {
            labels.resize(i * length + learned.start, 0);
            labels.extend_from_slice(&text.ids[learned.clone()]);
        }
        labels.resize((i + 1) * length, 0);
    }
    (ids, labels, length)
}
