//! How likely answers are: judged on the thread that asks, one caller at a time, so that answers which grow meanwhile keep a share of
//! the processors.

use super::generate::Generator;
use super::line::Seen;
use super::{Error, Wait};
use crate::models;
use crate::models::llama::{Sequence, logprob};

/// Answers that are judged in one pass, and tokens of a prompt that are read in one: between two passes the caller is looked at.
const JUDGED: usize = 8;
const READ: usize = 128;

impl Generator {
    /// Log-probabilities of the tokens of each answer behind a prompt. The prompt is read once.
    ///
    /// # Errors
    /// [`Error::Model`]: a prompt without tokens, or more tokens than positions; what
    /// `wait` says.
    pub fn score(
        &self,
        prompt: &[u32],
        answers: &[&[u32]],
        seen: Option<&Seen>,
        wait: &Wait,
    ) -> Result<Vec<Vec<f32>>, Error> {
        let _turn = self.turn.take(wait)?;
        let decoder = self.llm().decoder();
        let visual = seen.map(|seen| seen.visual(self.llm())).transpose()?;
        let mut asked = decoder.begin(visual.as_ref(), prompt.len())?;
        let mut first = Vec::new();
        for slice in prompt.chunks(READ) {
            wait.check()?;
            let logits = decoder.forward(&mut [(&mut asked, slice)])?;
            first = logits.to_vec2::<f32>().map_err(models::Error::from)?.remove(0);
        }
        let mut scores = Vec::with_capacity(answers.len());
        for answers in answers.chunks(JUDGED) {
            wait.check()?;
            // The last token of an answer is judged and not read.
            let read = |answer: &&[u32]| answer.len().saturating_sub(1);
            let forks = answers.iter().filter(|answer| read(answer) > 0);
            let forks = forks.map(|answer| {
                Ok((asked.fork(prompt.len(), prompt.len() + read(answer))?, &answer[..read(answer)]))
            });
            let mut forks: Vec<(Sequence, &[u32])> = forks.collect::<Result<_, models::Error>>()?;
            let rows = match forks.is_empty() {
                true => Vec::new(),
                false => {
                    let mut batch: Vec<(&mut Sequence, &[u32])> =
                        forks.iter_mut().map(|(sequence, ids)| (sequence, *ids)).collect();
                    let logits = decoder.forward_all(&mut batch, &mut |_, _| {})?;
                    logits.to_vec2::<f32>().map_err(models::Error::from)?
                }
            };
            let mut rows = rows.iter();
            for answer in answers {
                let before = std::iter::once(&first).filter(|_| !answer.is_empty());
                let before = before.chain(rows.by_ref().take(read(answer)));
                scores.push(before.zip(*answer).map(|(logits, &id)| logprob(logits, id)).collect());
            }
        }
        Ok(scores)
    }
}
