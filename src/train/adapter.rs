//! An adapter that learns to answer about pictures.
//!
//! ```text
//! pretrain   captions     ─► gates, prefix, bind network
//! finetune   instructions ─► norms, biases, low-rank matrices
//! joint      both in turn, a batch each: captions move the first, instructions the second
//!
//! pictures ─► embeddings, once (`seen.rs`) ─┐
//! texts ─► ids, labels, once (`texts.rs`) ──┴─► batches ─► models::llama::Learner ─► gradients
//! ```
//! Backbone and encoder never move; what does not learn in a phase is the same afterwards, bit for bit. Joint training is the idea of
//! LLaMA-Adapter V2's paper, with ImageBind-LLM's groups.
//!
//! Source: the training programs of ImageBind-LLM (arXiv 2309.03905).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::alternate::Alternate;
use super::checkpoint::put;
use super::data::{Exchange, Exchanges, Instructions, Order, Reason, Skipped, Source, Split, Wanted};
use super::run::Plan;
use super::seen::Seen;
use super::task::{Measure, Moment, Task, measured_as};
use super::texts::{Text, padded};
use super::{Error, Stop};
use crate::media::{MediaLimits, Orientation};
use crate::models::encoder::{Encoder, EncoderOptions};
use crate::models::learning::{Gradients, Values, Variables, adamw, write, write_all};
use crate::models::llama::{self, AdapterSizes, Group, Learner, Shown, Stages, WHOLE_ADAPTER};
use crate::models::weights::Weights;
use crate::models::{DeviceKind, llm, nano};
use crate::text::SentencePiece;
use crate::types::Modality;

/// Whose adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// ImageBind-LLM's.
    ImagebindLlm,
}

/// What learns, and by which data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Captions move gates, prefix and bind network.
    Pretrain,
    /// Instructions move norms, biases and low-rank matrices.
    Finetune,
    /// Both, in turn.
    Joint,
}

impl Phase {
    /// Tokens of a text where the recipe does not say.
    fn length(self) -> usize {
        match self {
            Phase::Pretrain => 96,
            Phase::Finetune | Phase::Joint => 512,
        }
    }

    fn groups(self) -> &'static [Group] {
        const GROUPS: [Group; 2] = [Group::BIND_PRETRAIN, Group::BIND_FINETUNE];
        match self {
            Phase::Pretrain => &GROUPS[..1],
            Phase::Finetune => &GROUPS[1..],
            Phase::Joint => &GROUPS,
        }
    }
}

/// What is taught, by which data, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterRecipe {
    /// Whose adapter.
    pub family: Family,
    /// What of it learns.
    pub phase: Phase,
    /// The LLaMA: `nano` for the built-in one's backbone, or as `--decoder` takes it.
    pub backbone: String,
    /// Its `tokenizer.model`, when it is not beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// The adapter that is gone on with: a file, or the folder of a run. A finetune needs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<PathBuf>,
    /// What pictures are embedded by: `nano`, or a checkpoint of ImageBind's.
    pub encoder: String,
    /// Sizes of that checkpoint as JSON; those of `imagebind_huge` where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder_sizes: Option<PathBuf>,
    /// Tokens of a text, at most; the published program's where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<usize>,
    /// Sizes of what is new.
    #[serde(default)]
    pub sizes: AdapterSizes,
    /// Pictures with captions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub captions: Option<Source>,
    /// Instructions with answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instructions: Option<Instructions>,
    /// What it is tested by.
    #[serde(default)]
    pub test: Tests,
    /// Memory for embeddings, MiB.
    #[serde(default = "AdapterRecipe::memory_mib")]
    pub memory_mib: usize,
    /// How the optimiser moves weights.
    #[serde(default = "adamw::Settings::adapters")]
    pub optimiser: adamw::Settings,
    /// Hold the activations of one block at a time; each is computed twice for that.
    #[serde(default)]
    pub blockwise: bool,
}

impl AdapterRecipe {
    /// Default of [`memory_mib`](field@AdapterRecipe::memory_mib).
    pub const DEFAULT_MEMORY_MIB: usize = 8192;

    fn memory_mib() -> usize {
        Self::DEFAULT_MEMORY_MIB
    }
}

/// Data that are not learned.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tests {
    /// Pictures with captions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub captions: Option<Source>,
    /// Instructions with answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instructions: Option<Instructions>,
}

/// Texts of one kind that are ready.
#[derive(Default)]
pub struct Texts {
    items: Vec<Item>,
    /// What gave none.
    pub skipped: Skipped,
    /// How many were cut to the length.
    pub cut: usize,
}

struct Item {
    text: Text,
    row: usize,
    told: String,
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

/// Texts with what is shown with them.
pub struct Batch {
    ids: Vec<u32>,
    labels: Vec<u32>,
    length: usize,
    shown: Vec<f32>,
    places: Vec<String>,
    /// What may move by them, where that is not all that learns.
    group: Option<Group>,
}

/// The task.
pub struct AdapterTask {
    recipe: AdapterRecipe,
    learner: Learner,
    /// What of the adapter does not learn.
    frozen: Values,
    seen: Seen,
    /// Captions and instructions, to learn from and to test by.
    train: [Texts; 2],
    test: [Texts; 2],
    alternate: Option<Alternate>,
    /// Texts that are tested together.
    batch: usize,
    files: Vec<String>,
}

impl AdapterTask {
    /// Names of the two kinds of texts.
    pub const KINDS: [&'static str; 2] = ["captions", "instructions"];

    /// Lists the data, embeds the pictures and makes the network.
    ///
    /// * `base`: the recipe's folder. `plan`: of which the seed and the sizes of batches count. `threads`: that learn, and that prepare. `watch`: hears how many pictures are embedded, of how many.
    ///
    /// # Errors
    /// [`Stop::Recipe`], [`Stop::Data`], [`Stop::Model`], [`Stop::Media`], [`Stop::Threads`].
    pub fn open(
        recipe: &AdapterRecipe,
        base: &Path,
        plan: &Plan,
        threads: usize,
        watch: &mut dyn FnMut(usize, usize),
    ) -> Result<Self, Stop> {
        let wrong = |why| Err(Stop::from(Error::Contradiction(why)));
        match (recipe.phase, &recipe.captions, &recipe.instructions) {
            (Phase::Pretrain, Some(_), None)
            | (Phase::Finetune, None, Some(_))
            | (Phase::Joint, Some(_), Some(_)) => {}
            (Phase::Pretrain, ..) => return wrong("the phase `pretrain` learns from `captions` alone"),
            (Phase::Finetune, ..) => return wrong("the phase `finetune` learns from `instructions` alone"),
            (Phase::Joint, ..) => return wrong("the phase `joint` needs `captions` and `instructions`"),
        }
        let classes = |source: &Option<Source>| matches!(source, Some(Source::Folder(_) | Source::Cifar(_)));
        if classes(&recipe.captions) || classes(&recipe.test.captions) {
            return wrong(
                "`captions` come from a `table`, from `tars` or from `scenes`: folders have classes",
            );
        }
        if recipe.phase == Phase::Finetune && recipe.start.is_none() {
            return wrong("a finetune goes on with an adapter that has learned to look: name it by `start`");
        }
        let path = |word: &str| (word != nano::NAME).then(|| base.join(word));
        let (backbone, start) = (path(&recipe.backbone), recipe.start.as_ref());
        let start =
            start.map(|start| if start == Path::new(nano::NAME) { start.clone() } else { base.join(start) });
        let (checkpoint, config) = match (&backbone, &start) {
            (Some(backbone), start) => {
                let adapter = start.as_deref();
                llama::Checkpoint::open(llama::Files { backbone, adapter, clip: None })?
            }
            (None, None) => nano::backbone(None)?,
            (None, Some(start)) if start == Path::new(nano::NAME) => nano::backbone(Some(nano::adapter()?))?,
            (None, Some(start)) => nano::backbone(Some(Weights::open(&llama::adapter_file(start))?))?,
        };
        let tokenizer = recipe.tokenizer.as_ref().map(|path| base.join(path));
        let tokenizer = llm::tokenizer(backbone.as_deref(), tokenizer.as_deref())?;
        let length = recipe.length.unwrap_or(recipe.phase.length().min(config.max_seq_len));
        if length < 2 || length > config.max_seq_len {
            let allowed = "2 or more, and no more than the decoder has positions for";
            return Err(
                Error::Parameter { name: "adapter.length", value: length.to_string(), allowed }.into()
            );
        }
        let encoder = Encoder::open(&EncoderOptions {
            network: Default::default(),
            weights: path(&recipe.encoder),
            sizes: recipe.encoder_sizes.as_ref().map(|path| base.join(path)),
            modalities: Some(vec![Modality::Image]),
            device: DeviceKind::Cpu,
            dtype: None,
            threads,
            orientation: Orientation::Reference,
            limits: MediaLimits::default(),
        })?;
        let mut files: Vec<String> = checkpoint.fingerprints()?.iter().map(ToString::to_string).collect();
        files.extend(encoder.origin().weights.map(|weights| weights.to_string()));

        let list = |captions: &Option<Source>, instructions: &Option<Instructions>, split| {
            let captions = captions
                .as_ref()
                .map(|source| Exchanges::of_captions(source.list(base, Wanted::Captions, split, None)?));
            let instructions = instructions.as_ref().map(|instructions| instructions.list(base, split));
            Ok::<_, Stop>([captions.transpose()?, instructions.transpose()?].map(Option::unwrap_or_default))
        };
        let train = list(&recipe.captions, &recipe.instructions, Split::Train)?;
        let test = list(&recipe.test.captions, &recipe.test.instructions, Split::Test)?;
        let all = || train.iter().chain(&test).flat_map(|kind| &kind.exchanges);
        let loaders =
            rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("load-{i}"));
        let loaders = loaders.build().map_err(|e| Stop::Threads(e.to_string()))?;
        let pictures = all().filter_map(|exchange| exchange.picture.as_ref());
        let nothing = all().any(|exchange| exchange.picture.is_none());
        let seen = Seen::embed(&encoder, pictures, nothing, recipe.memory_mib, &loaders, watch)?;
        drop(encoder);
        let ready = |kind: Exchanges| ready(kind, &seen, &tokenizer, length);
        let (train, test) = (train.map(ready), test.map(ready));
        for (kind, texts) in train.iter().enumerate() {
            let wanted = [recipe.captions.is_some(), recipe.instructions.is_some()][kind];
            if wanted && texts.is_empty() {
                let why = format!("none of the {} can be used: {}", Self::KINDS[kind], texts.skipped);
                return Err(Stop::Spoiled { why });
            }
        }

        let stages = Stages { first: true, second: recipe.phase != Phase::Pretrain };
        let values = llama::begin(&checkpoint, &config, &recipe.sizes, seen.width(), stages, plan.seed)?;
        let adapter = Weights::from_memory("the adapter as it begins", write(&values, Default::default())?)?;
        let checkpoint = checkpoint.adapted_by(adapter);
        let config = llama::Config { family: Some(llama::Family::ImageBindLlm), ..config };
        let learner = Learner::of_groups(&checkpoint, &config, tokenizer.len(), recipe.phase.groups())?;
        let learner = learner.spread(threads, recipe.blockwise)?;
        if learner.embedding_width() != Some(seen.width()) {
            return wrong("the adapter that is gone on with was made for embeddings of another width");
        }
        let frozen = values.into_iter().filter(|(name, _)| !learner.variables().contains_key(name)).collect();
        let counts = [0, 1].map(|kind: usize| train[kind].len() as u32);
        let alternate =
            (recipe.phase == Phase::Joint).then(|| Alternate::new(counts, plan.batch, plan.accumulate));
        let (recipe, batch) = (recipe.clone(), plan.batch.max(1));
        Ok(AdapterTask { recipe, learner, frozen, seen, train, test, alternate, batch, files })
    }

    /// What it learns from: captions and instructions.
    pub fn train(&self) -> &[Texts; 2] {
        &self.train
    }

    /// What it is tested by, likewise.
    pub fn test(&self) -> &[Texts; 2] {
        &self.test
    }

    /// Embeddings that are kept.
    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    /// Fingerprints of the files that its numbers hang on.
    pub fn files(&self) -> &[String] {
        &self.files
    }

    fn batch(&self, items: &[&Item], group: Option<Group>) -> Batch {
        let (ids, labels, length) = padded(items.iter().map(|item| &item.text));
        let shown = items.iter().flat_map(|item| self.seen.row(item.row)).copied().collect();
        let places = items.iter().map(|item| item.told.clone()).collect();
        Batch { ids, labels, length, shown, places, group }
    }

    /// What a kind of texts costs: the sum of `−log p`, and of how many tokens.
    fn cost(&self, texts: &Texts) -> Result<(f64, usize), Stop> {
        let mut sum = (0.0, 0);
        let items: Vec<&Item> = texts.items.iter().collect();
        for some in items.chunks(self.batch) {
            let batch = self.batch(some, None);
            let shown = llama::embeddings(&batch.shown, self.seen.width())?;
            let (loss, count) = self.learner.loss(&lesson(&batch, Shown::Embeddings(&shown)))?;
            sum = (sum.0 + loss, sum.1 + count);
        }
        Ok(sum)
    }

    fn measures(&self) -> Result<Vec<Measure>, Stop> {
        let kinds: Vec<(usize, &Texts)> =
            self.test.iter().enumerate().filter(|(_, texts)| !texts.is_empty()).collect();
        let costs: Vec<(f64, usize)> =
            kinds.iter().map(|(_, texts)| self.cost(texts)).collect::<Result<_, _>>()?;
        let measure = |name: String, value| Measure { name, value };
        let mean = |loss: f64, tokens: usize| loss / tokens.max(1) as f64;
        let (loss, tokens) = costs.iter().fold((0.0, 0), |sum, cost| (sum.0 + cost.0, sum.1 + cost.1));
        if tokens == 0 {
            return Ok(Vec::new());
        }
        let mut measures = vec![
            measure("log_likelihood".into(), -mean(loss, tokens)),
            measure("loss".into(), mean(loss, tokens)),
        ];
        if kinds.len() > 1 {
            let each = kinds.iter().zip(&costs);
            measures.extend(each.map(|((kind, _), (loss, tokens))| {
                measure(format!("{}_loss", Self::KINDS[*kind]), mean(*loss, *tokens))
            }));
        }
        let tested: usize = kinds.iter().map(|(_, texts)| texts.len()).sum();
        measures.push(measure("tokens".into(), tokens as f64));
        measures.push(measure("tested".into(), tested as f64));
        Ok(measures)
    }
}

/// What the learner is given.
fn lesson<'a>(batch: &'a Batch, shown: Shown<'a>) -> llama::Batch<'a> {
    llama::Batch { ids: &batch.ids, labels: &batch.labels, weights: &[], length: batch.length, shown }
}

/// Texts as ids, with the rows of their pictures.
fn ready(kind: Exchanges, seen: &Seen, tokenizer: &SentencePiece, length: usize) -> Texts {
    let Exchanges { exchanges, skipped } = kind;
    let mut texts = Texts { skipped, ..Texts::default() };
    for Exchange { picture, instruction, input, answer, told } in exchanges {
        let row = match seen.of(picture.as_ref()) {
            Ok(row) => row,
            Err(why) => {
                texts.skipped.add(Reason::Damaged, format!("{told}: {why}"));
                continue;
            }
        };
        match Text::new(tokenizer, [&instruction, &input, &answer], length) {
            Some(text) => {
                texts.cut += usize::from(text.cut);
                texts.items.push(Item { text, row, told });
            }
            None => texts.skipped.add(Reason::TooLong, told),
        }
    }
    texts
}

impl Task for AdapterTask {
    type Batch = Batch;

    fn variables(&self) -> &Variables {
        self.learner.variables()
    }

    fn optimiser(&self) -> adamw::Settings {
        self.recipe.optimiser.clone()
    }

    fn samples(&self) -> u32 {
        let counts = [0, 1].map(|kind: usize| self.train[kind].len() as u32);
        match self.recipe.phase {
            Phase::Pretrain => counts[0],
            Phase::Finetune => counts[1],
            Phase::Joint => Alternate::samples(counts),
        }
    }

    fn prepare(&self, order: Order, samples: &[u32]) -> Result<Batch, Stop> {
        let (kind, samples, group) = match (&self.alternate, self.recipe.phase) {
            (Some(alternate), _) => {
                let (kind, samples) = alternate.batch(order, samples.len());
                (kind, samples, self.recipe.phase.groups().get(kind).copied())
            }
            (None, Phase::Pretrain) => (0, samples.to_vec(), None),
            (None, _) => (1, samples.to_vec(), None),
        };
        let items = &self.train[kind].items;
        let items: Vec<&Item> = samples.iter().filter_map(|&sample| items.get(sample as usize)).collect();
        Ok(self.batch(&items, group))
    }

    fn spoiled<'a>(&self, _: &'a Batch) -> &'a [String] {
        // All were looked at before the first step.
        &[]
    }

    fn places(&self, batch: &Batch) -> Vec<String> {
        batch.places.clone()
    }

    fn gradients(&self, batch: &Batch, _: Moment) -> Result<(f32, Gradients), Stop> {
        let shown = llama::embeddings(&batch.shown, self.seen.width())?;
        let (loss, mut gradients) = self.learner.gradients(&lesson(batch, Shown::Embeddings(&shown)))?;
        if let Some(group) = batch.group {
            gradients.retain(|name, _| group.holds(name));
        }
        Ok((loss, gradients))
    }

    fn evaluate(&self, values: &Values, _: usize, average: bool) -> Result<Vec<Measure>, Stop> {
        measured_as(self.variables(), average.then_some(values), || self.measures())
    }

    fn describe(&self, folder: &Path, values: &Values) -> Result<(), Stop> {
        if self.frozen.is_empty() {
            // What learned is the whole adapter, and lies there already.
            return Ok(());
        }
        let whole = write_all(&[&self.frozen, values], Default::default())?;
        put(&folder.join(WHOLE_ADAPTER), &whole)
    }
}
