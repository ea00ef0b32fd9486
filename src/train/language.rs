//! A decoder that learns to read and to answer, from nothing or from another's weights, before it sees anything.
//!
//! ```text
//! instructions ─► ids, labels, once (`texts.rs`) ─► batches ─► models::llama::Learner ─► gradients of the whole backbone
//! ```
//! An answer's tokens count 1 each and a prompt's `prompt_weight`, so that what is asked is learned as well, and what is answered
//! first. Nothing is shown: an adapter comes later ([`super::adapter`]).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::checkpoint::put;
use super::data::{Instructions, Order, Reason, Skipped, Split};
use super::loading::Machine;
use super::run::Plan;
use super::task::{Measure, Moment, Task, measured_as};
use super::texts::{Form, Text, padded};
use super::{Error, Stop, within};
use crate::models::learning::{Gradients, Values, Variables, adamw, write};
use crate::models::llama::{self, Checkpoint, Config, Family, Files, Group, Learner, Shown};
use crate::models::weights::Weights;
use crate::models::{self, nano};
use crate::text::{SentencePiece, Template};

/// In the folder of a run: the backbone as a decoder's file, its sizes, its tokenizer.
const BACKBONE: &str = "backbone.safetensors";
const SIZES: &str = "params.json";
const TOKENIZER: &str = "tokenizer.model";

/// What is taught, by which data, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LanguageRecipe {
    /// Sizes: `nano`, or a `params.json`.
    pub model: String,
    /// A `tokenizer.model`; the built-in one for `nano`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// The decoder that is gone on with, as `--decoder` takes it; first values are drawn where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<PathBuf>,
    /// Tokens of a text, at most; all that the decoder has positions for where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<usize>,
    /// How much a token of a prompt counts beside one of an answer.
    #[serde(default = "LanguageRecipe::prompt_weight")]
    pub prompt_weight: f32,
    /// What it learns from.
    pub train: Instructions,
    /// What it is tested by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<Instructions>,
    /// How the optimiser moves weights.
    #[serde(default = "adamw::Settings::adapters")]
    pub optimiser: adamw::Settings,
    /// Hold the activations of one block at a time; each is computed twice for that.
    #[serde(default)]
    pub blockwise: bool,
}

impl LanguageRecipe {
    /// Default of [`prompt_weight`](field@LanguageRecipe::prompt_weight).
    pub const DEFAULT_PROMPT_WEIGHT: f32 = 0.1;

    fn prompt_weight() -> f32 {
        Self::DEFAULT_PROMPT_WEIGHT
    }
}

/// Texts that are ready.
#[derive(Default)]
pub struct Texts {
    items: Vec<(Text, String)>,
    /// What gave none.
    pub skipped: Skipped,
    /// How many were cut to the length.
    pub cut: usize,
}

impl Texts {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

/// Texts of one length.
pub struct Batch {
    ids: Vec<u32>,
    labels: Vec<u32>,
    weights: Vec<f32>,
    length: usize,
    places: Vec<String>,
}

/// The task.
pub struct LanguageTask {
    recipe: LanguageRecipe,
    learner: Learner,
    train: Texts,
    test: Texts,
    /// Texts that are tested together.
    batch: usize,
    /// The files of its sizes and of its tokenizer.
    sizes: String,
    tokenizer: Vec<u8>,
}

impl LanguageTask {
    /// Reads the texts and makes the network.
    ///
    /// * `base`: the recipe's folder. `plan`: of which the seed and the size of batches count. `machine`: what there is to work with.
    ///
    /// # Errors
    /// [`Stop::Recipe`], [`Stop::Data`], [`Stop::Model`], [`Stop::File`].
    pub fn open(recipe: &LanguageRecipe, base: &Path, plan: &Plan, machine: Machine) -> Result<Self, Stop> {
        let weight = f64::from(recipe.prompt_weight);
        within("language.prompt_weight", weight, (0.0..=1.0).contains(&weight), "a number from 0 to 1")?;
        let read = |path: &Path| std::fs::read(path).map_err(Stop::file(path));
        let is_nano = recipe.model == nano::NAME;
        let file = match &recipe.tokenizer {
            Some(path) => read(&base.join(path))?,
            None if is_nano => nano::TOKENIZER.to_vec(),
            None => {
                let why = "a model that is not `nano` needs its tokenizer: name it by `language.tokenizer`";
                return Err(Error::Contradiction(why).into());
            }
        };
        let tokenizer = SentencePiece::from_bytes(&file).map_err(|e| models::Error::Weights {
            path: recipe.tokenizer.as_deref().unwrap_or(Path::new(TOKENIZER)).display().to_string(),
            why: e.to_string(),
        })?;
        let sizes = match is_nano {
            true => nano::PARAMS.to_owned(),
            false => {
                let path = base.join(&recipe.model);
                std::fs::read_to_string(&path).map_err(Stop::file(&path))?
            }
        };
        let config = Config::from_params(&sizes, Family::ImageBindLlm)?;
        let (checkpoint, config) = match &recipe.start {
            Some(start) => {
                let backbone = base.join(start);
                let (checkpoint, own) =
                    Checkpoint::open(Files { backbone: &backbone, adapter: None, clip: None })?;
                if (own.dim, own.n_layers, own.n_heads) != (config.dim, config.n_layers, config.n_heads) {
                    let why = "what is gone on with has other sizes than `language.model`";
                    return Err(Error::Contradiction(why).into());
                }
                (checkpoint, own)
            }
            None => {
                let values = llama::bare(&config, tokenizer.len(), plan.seed);
                let file = Weights::from_memory("first values", write(&values, Default::default())?)?;
                (Checkpoint::new(vec![file], None, config.n_heads), config)
            }
        };
        let length = recipe.length.unwrap_or(config.max_seq_len);
        if length < 2 || length > config.max_seq_len {
            let allowed = "2 or more, and no more than the decoder has positions for";
            let (name, value) = ("language.length", length.to_string());
            return Err(Error::Parameter { name, value, allowed }.into());
        }
        let list = |instructions: &Instructions, split| -> Result<Texts, Stop> {
            Ok(ready(instructions.list(base, split)?, &tokenizer, length))
        };
        let train = list(&recipe.train, Split::Train)?;
        let test = recipe.test.as_ref().map(|test| list(test, Split::Test)).transpose()?.unwrap_or_default();
        if train.is_empty() {
            return Err(Stop::Spoiled { why: format!("none of the texts can be used: {}", train.skipped) });
        }
        let learner = Learner::on(machine.device, &checkpoint, &config, tokenizer.len(), &[Group::BACKBONE])?;
        let learner = learner.spread(machine.threads, recipe.blockwise)?;
        let (recipe, batch) = (recipe.clone(), plan.batch.max(1));
        Ok(LanguageTask { recipe, learner, train, test, batch, sizes, tokenizer: file })
    }

    /// What it learns from.
    pub fn train(&self) -> &Texts {
        &self.train
    }

    /// What it is tested by.
    pub fn test(&self) -> &Texts {
        &self.test
    }

    fn batch(&self, items: &[&(Text, String)], prompt_weight: f32) -> Batch {
        let texts = items.iter().map(|(text, _)| text);
        let (ids, mut labels, length) = padded(texts.clone());
        let mut weights = vec![1.0; labels.len()];
        if prompt_weight > 0.0 {
            // The prompt's tokens are to be learned as well, but for the first, before which there is nothing.
            for (i, text) in texts.enumerate() {
                let answer = text.learned.first().map_or(0, |learned| learned.start);
                let prompt = i * length + 1..i * length + answer;
                labels[prompt.clone()].copy_from_slice(&ids[prompt.clone()]);
                weights[prompt].fill(prompt_weight);
            }
        }
        Batch { ids, labels, weights, length, places: items.iter().map(|(_, told)| told.clone()).collect() }
    }

    fn measures(&self) -> Result<Vec<Measure>, Stop> {
        let items: Vec<&(Text, String)> = self.test.items.iter().collect();
        let mut sum = (0.0, 0);
        for some in items.chunks(self.batch) {
            let (loss, tokens) = self.learner.loss(&lesson(&self.batch(some, 0.0)))?;
            sum = (sum.0 + loss, sum.1 + tokens);
        }
        let (loss, tokens) = sum;
        if tokens == 0 {
            return Ok(Vec::new());
        }
        let measure = |name: &str, value| Measure { name: name.to_owned(), value };
        let mean = loss / tokens as f64;
        Ok(vec![
            measure("log_likelihood", -mean),
            measure("loss", mean),
            measure("tokens", tokens as f64),
            measure("tested", self.test.len() as f64),
        ])
    }
}

fn lesson(batch: &Batch) -> llama::Batch<'_> {
    let Batch { ids, labels, weights, length, .. } = batch;
    llama::Batch { ids, labels, weights, length: *length, shown: Shown::Nothing }
}

fn ready(all: super::data::Exchanges, tokenizer: &SentencePiece, length: usize) -> Texts {
    let mut texts = Texts { skipped: all.skipped, ..Texts::default() };
    for exchange in all.exchanges {
        match Text::new(tokenizer, Form::Instruction(Template::ImageBindLlm), &exchange, length) {
            Some(text) => {
                texts.cut += usize::from(text.cut);
                texts.items.push((text, exchange.told));
            }
            None => texts.skipped.add(Reason::TooLong, exchange.told),
        }
    }
    texts
}

impl Task for LanguageTask {
    type Batch = Batch;

    fn variables(&self) -> &Variables {
        self.learner.variables()
    }

    fn optimiser(&self) -> adamw::Settings {
        self.recipe.optimiser.clone()
    }

    fn samples(&self) -> u32 {
        self.train.len() as u32
    }

    fn prepare(&self, _: Order, samples: &[u32]) -> Result<Batch, Stop> {
        let items: Vec<_> =
            samples.iter().filter_map(|&sample| self.train.items.get(sample as usize)).collect();
        Ok(self.batch(&items, self.recipe.prompt_weight))
    }

    fn spoiled<'a>(&self, _: &'a Batch) -> &'a [String] {
        // All were looked at before the first step.
        &[]
    }

    fn places(&self, batch: &Batch) -> Vec<String> {
        batch.places.clone()
    }

    fn gradients(&self, batch: &Batch, _: Moment) -> Result<(f32, Gradients), Stop> {
        Ok(self.learner.gradients(&lesson(batch))?)
    }

    fn evaluate(&self, values: &Values, _: usize, average: bool) -> Result<Vec<Measure>, Stop> {
        measured_as(self.variables(), average.then_some(values), || self.measures())
    }

    fn describe(&self, folder: &Path, values: &Values) -> Result<(), Stop> {
        let own = |name: &String| name.strip_prefix("llama.").unwrap_or(name).to_owned();
        let backbone: Values = values.iter().map(|(name, value)| (own(name), value.clone())).collect();
        put(&folder.join(BACKBONE), &write(&backbone, Default::default())?)?;
        put(&folder.join(SIZES), self.sizes.as_bytes())?;
        put(&folder.join(TOKENIZER), &self.tokenizer)
    }
}
