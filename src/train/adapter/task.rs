//! The task: texts, what is shown beside them, and the decoder that learns.

use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::alternate::Alternate;
use super::recipe::{AdapterRecipe, Phase};
use super::seen::Seen;
use super::sight::{Gallery, Sight};
use crate::media::{MediaLimits, Orientation};
use crate::models::encoder::{Encoder, EncoderOptions};
use crate::models::learning::{Gradients, Values, Variables, adamw, write, write_all};
use crate::models::llama::{self, AdapterFiles, Group, Learner, Stages, WHOLE_ADAPTER};
use crate::models::weights::Weights;
use crate::models::{self, llm, nano};
use crate::text::SentencePiece;
use crate::train::checkpoint::put;
use crate::train::data::{Exchanges, Instructions, Order, Place, Reason, Skipped, Source, Split, Wanted};
use crate::train::loading::{Filled, Machine, filled, loaders};
use crate::train::run::Plan;
use crate::train::task::{Measure, Moment, Task, measured_as};
use crate::train::texts::{Form, Text, padded};
use crate::train::{Error, Stop};
use crate::types::Modality;

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
    picture: Option<Place>,
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
    spoiled: Vec<String>,
    /// What may move by them, where that is not all that learns.
    group: Option<Group>,
}

/// The task.
pub struct AdapterTask {
    recipe: AdapterRecipe,
    learner: Learner,
    /// What of the adapter does not learn: where it begins, and the file that is gone on with.
    frozen: AdapterFiles,
    sight: Sight,
    /// Captions and instructions, to learn from and to test by.
    train: [Texts; 2],
    test: [Texts; 2],
    alternate: Option<Alternate>,
    /// Texts that are tested together.
    batch: usize,
    files: Vec<String>,
    loaders: rayon::ThreadPool,
}

impl AdapterTask {
    /// Names of the two kinds of texts.
    pub const KINDS: [&'static str; 2] = ["captions", "instructions"];

    /// Lists the data, makes the network, and embeds the pictures where that is what it is shown.
    ///
    /// * `base`: the recipe's folder. `plan`: of which the seed and the sizes of batches count. `machine`: what there is to work with.
    ///   `watch`: hears how many pictures are embedded, of how many.
    ///
    /// # Errors
    /// [`Stop::Recipe`], [`Stop::Data`], [`Stop::Model`], [`Stop::Media`], [`Stop::Threads`].
    pub fn open(
        recipe: &AdapterRecipe,
        base: &Path,
        plan: &Plan,
        machine: Machine,
        watch: &mut dyn FnMut(usize, usize),
    ) -> Result<Self, Stop> {
        recipe.check()?;
        let form = recipe.form()?;
        let family = recipe.family.of_decoder();
        let (checkpoint, config) = opened(recipe, base)?;
        let config = llama::Config { family: Some(family), ..config };
        let tokenizer = recipe.tokenizer.as_ref().map(|path| base.join(path));
        let tokenizer = llm::tokenizer(path(base, &recipe.backbone).as_deref(), tokenizer.as_deref())?;
        let length = recipe.length.unwrap_or(recipe.usual_length().min(config.max_seq_len));
        if length < 2 || length > config.max_seq_len {
            let allowed = "2 or more, and no more than the decoder has positions for";
            return Err(
                Error::Parameter { name: "adapter.length", value: length.to_string(), allowed }.into()
            );
        }
        let mut files: Vec<String> = checkpoint.fingerprints()?.iter().map(ToString::to_string).collect();
        let encoder = recipe.encoder.as_ref().map(|word| encoder(recipe, word, base, machine)).transpose()?;
        let origin = encoder.as_ref().and_then(|encoder| encoder.origin().weights);
        files.extend(origin.map(|weights| weights.to_string()));

        let list = |captions: &Option<Source>, instructions: &Option<_>, split| {
            let captions = captions
                .as_ref()
                .map(|source| Exchanges::of_captions(source.list(base, Wanted::Captions, split, None)?));
            let listed = |instructions: &Instructions| instructions.list(base, split);
            let instructions = instructions.as_ref().map(listed);
            Ok::<_, Stop>([captions.transpose()?, instructions.transpose()?].map(Option::unwrap_or_default))
        };
        let train = list(&recipe.captions, &recipe.instructions, Split::Train)?;
        let test = list(&recipe.test.captions, &recipe.test.instructions, Split::Test)?;
        let loaders = loaders(machine.threads)?;
        let seen = match &encoder {
            Some(encoder) => {
                let all = || train.iter().chain(&test).flat_map(|kind| &kind.exchanges);
                let pictures = all().filter_map(|exchange| exchange.picture.as_ref());
                let nothing = all().any(|exchange| exchange.picture.is_none());
                Some(Seen::embed(encoder, pictures, nothing, recipe.memory_mib, &loaders, watch)?)
            }
            None => None,
        };
        drop(encoder);

        let width = match &seen {
            Some(seen) => seen.width(),
            None => checkpoint.shape("clip.visual.proj").and_then(|shape| shape.get(1).copied()).unwrap_or(0),
        };
        let stages = Stages { first: true, second: recipe.phase != Phase::Pretrain };
        let begun = llama::begin(&checkpoint, &config, &recipe.sizes, width, stages, plan.seed)?;
        let checkpoint = match begun.is_empty() {
            true => checkpoint,
            false => {
                let begun = write(&begun, Default::default())?;
                checkpoint.beginning_with(Weights::from_memory("the adapter as it begins", begun)?)
            }
        };
        let learner = Learner::on(machine.device, &checkpoint, &config, tokenizer.len(), &recipe.groups())?;
        let learner = learner.spread(machine.threads, recipe.blockwise)?;
        let frozen = checkpoint.into_adapter();
        let sight = match (seen, learner.picture()) {
            (Some(seen), _) if learner.embedding_width() != Some(seen.width()) => {
                let why = "the adapter that is gone on with was made for embeddings of another width";
                return Err(Error::Contradiction(why).into());
            }
            (Some(seen), _) => Sight::Embeddings(seen),
            (None, Some(picture)) => {
                let crop = recipe.crop.unwrap_or(AdapterRecipe::DEFAULT_CROP);
                Sight::Pictures(Gallery::new(picture, crop)?)
            }
            (None, None) => Sight::Nothing,
        };

        let ready = |kind: Exchanges| ready(kind, &sight, &tokenizer, form, length);
        let (train, test) = (train.map(ready), test.map(ready));
        for (kind, texts) in train.iter().enumerate() {
            let wanted = [recipe.captions.is_some(), recipe.instructions.is_some()][kind];
            if wanted && texts.is_empty() {
                let why = format!("none of the {} can be used: {}", Self::KINDS[kind], texts.skipped);
                return Err(Stop::Spoiled { why });
            }
        }
        let counts = [0, 1].map(|kind: usize| train[kind].len() as u32);
        let alternate =
            (recipe.phase == Phase::Joint).then(|| Alternate::new(counts, plan.batch, plan.accumulate));
        let (recipe, batch) = (recipe.clone(), plan.batch.max(1));
        Ok(AdapterTask { recipe, learner, frozen, sight, train, test, alternate, batch, files, loaders })
    }

    /// What it learns from: captions and instructions.
    pub fn train(&self) -> &[Texts; 2] {
        &self.train
    }

    /// What it is tested by, likewise.
    pub fn test(&self) -> &[Texts; 2] {
        &self.test
    }

    /// What it is shown, in words.
    pub fn shown(&self) -> String {
        self.sight.to_string()
    }

    /// Fingerprints of the files that its numbers hang on.
    pub fn files(&self) -> &[String] {
        &self.files
    }

    /// What is shown beside texts.
    ///
    /// * `chance`: what it hangs on, and the items' numbers; none in a test.
    fn look(&self, items: &[&Item], chance: Option<(Order, &[u32])>) -> Vec<Result<Vec<f32>, String>> {
        let one = |(i, item): (usize, &&Item)| {
            let mut random = chance.and_then(|(order, samples)| Some(order.random(*samples.get(i)?)));
            self.sight.values(item.picture.as_ref(), random.as_mut())
        };
        self.loaders.install(|| items.par_iter().enumerate().map(one).collect())
    }

    /// What a kind of texts costs: the sum of `−log p`, of how many tokens, of how many texts. Those whose picture cannot be read are
    /// left out.
    fn cost(&self, texts: &Texts) -> Result<(f64, usize, usize), Stop> {
        let mut sum = (0.0, 0, 0);
        for some in texts.items.chunks(self.batch) {
            let some: Vec<&Item> = some.iter().collect();
            let read = self.look(&some, None);
            let whole: Vec<(&Item, Vec<f32>)> =
                some.into_iter().zip(read).filter_map(|(item, read)| Some((item, read.ok()?))).collect();
            if whole.is_empty() {
                continue;
            }
            let tested = whole.len();
            let batch = together(whole);
            let (loss, count) =
                self.sight.show(&batch.shown, |shown| self.learner.loss(&lesson(&batch, shown)))?;
            sum = (sum.0 + loss, sum.1 + count, sum.2 + tested);
        }
        Ok(sum)
    }

    fn measures(&self) -> Result<Vec<Measure>, Stop> {
        let kinds: Vec<(usize, &Texts)> =
            self.test.iter().enumerate().filter(|(_, texts)| !texts.is_empty()).collect();
        let costs: Vec<(f64, usize, usize)> =
            kinds.iter().map(|(_, texts)| self.cost(texts)).collect::<Result<_, _>>()?;
        let measure = |name: String, value| Measure { name, value };
        let mean = |loss: f64, tokens: usize| loss / tokens.max(1) as f64;
        let (loss, tokens, tested) =
            costs.iter().fold((0.0, 0, 0), |sum, cost| (sum.0 + cost.0, sum.1 + cost.1, sum.2 + cost.2));
        if kinds.is_empty() {
            return Ok(Vec::new());
        }
        if tokens == 0 {
            return Err(Stop::Spoiled { why: "no picture of the test can be read".into() });
        }
        let mut measures = vec![
            measure("log_likelihood".into(), -mean(loss, tokens)),
            measure("loss".into(), mean(loss, tokens)),
        ];
        if kinds.len() > 1 {
            let each = kinds.iter().zip(&costs);
            measures.extend(each.map(|((kind, _), (loss, tokens, _))| {
                measure(format!("{}_loss", Self::KINDS[*kind]), mean(*loss, *tokens))
            }));
        }
        measures.push(measure("tokens".into(), tokens as f64));
        measures.push(measure("tested".into(), tested as f64));
        Ok(measures)
    }
}

/// Texts with what is shown beside them.
fn together(items: Vec<(&Item, Vec<f32>)>) -> Batch {
    let (ids, labels, length) = padded(items.iter().map(|(item, _)| &item.text));
    let places = items.iter().map(|(item, _)| item.told.clone()).collect();
    let shown = items.into_iter().flat_map(|(_, values)| values).collect();
    Batch { ids, labels, length, shown, places, spoiled: Vec::new(), group: None }
}

/// What the learner is given.
fn lesson<'a>(batch: &'a Batch, shown: llama::Shown<'a>) -> llama::Batch<'a> {
    llama::Batch { ids: &batch.ids, labels: &batch.labels, weights: &[], length: batch.length, shown }
}

/// Where a word of the recipe leads; nowhere for the built-in one.
fn path(base: &Path, word: &str) -> Option<PathBuf> {
    (word != nano::NAME).then(|| base.join(word))
}

/// Backbone, CLIP and the adapter that is gone on with.
fn opened(recipe: &AdapterRecipe, base: &Path) -> Result<(llama::Checkpoint, llama::Config), models::Error> {
    let (backbone, start) = (path(base, &recipe.backbone), recipe.start.as_ref());
    let start =
        start.map(|start| if start == Path::new(nano::NAME) { start.clone() } else { base.join(start) });
    let clip = recipe.clip.as_ref().map(|clip| base.join(clip));
    match (&backbone, &start) {
        (Some(backbone), start) => {
            let files = llama::Files { backbone, adapter: start.as_deref(), clip: clip.as_deref() };
            llama::Checkpoint::open_for(files, Some(recipe.family.of_decoder()))
        }
        (None, start) => {
            let adapter = match start {
                None => None,
                Some(start) if start == Path::new(nano::NAME) => Some(nano::adapter()?),
                Some(start) => Some(Weights::open(&llama::adapter_file(start))?),
            };
            nano::backbone(adapter, clip.as_deref())
        }
    }
}

/// What makes embeddings of pictures.
fn encoder(
    recipe: &AdapterRecipe,
    word: &str,
    base: &Path,
    machine: Machine,
) -> Result<Encoder, models::Error> {
    Encoder::open(&EncoderOptions {
        network: Default::default(),
        weights: path(base, word),
        sizes: recipe.encoder_sizes.as_ref().map(|path| base.join(path)),
        modalities: Some(vec![Modality::Image]),
        device: machine.device,
        dtype: None,
        threads: machine.threads,
        orientation: Orientation::Reference,
        limits: MediaLimits::default(),
    })
}

/// Texts as ids, as far as what they are about can be shown.
fn ready(kind: Exchanges, sight: &Sight, tokenizer: &SentencePiece, form: Form, length: usize) -> Texts {
    let Exchanges { exchanges, skipped } = kind;
    let mut texts = Texts { skipped, ..Texts::default() };
    for exchange in exchanges {
        if matches!(sight, Sight::Nothing) && exchange.picture.is_some() {
            texts.skipped.add(Reason::AboutAPicture, exchange.told);
            continue;
        }
        if let Err(why) = sight.check(exchange.picture.as_ref()) {
            texts.skipped.add(Reason::Damaged, format!("{}: {why}", exchange.told));
            continue;
        }
        match Text::new(tokenizer, form, &exchange, length) {
            Some(text) => {
                texts.cut += usize::from(text.cut);
                texts.items.push(Item { text, picture: exchange.picture, told: exchange.told });
            }
            None => texts.skipped.add(Reason::TooLong, exchange.told),
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
                (kind, samples, self.recipe.groups().get(kind).copied())
            }
            (None, Phase::Pretrain) => (0, samples.to_vec(), None),
            (None, _) => (1, samples.to_vec(), None),
        };
        let items = &self.train[kind].items;
        let items: Vec<&Item> = samples.iter().filter_map(|&sample| items.get(sample as usize)).collect();
        let Filled { samples: read, spoiled } = filled(self.look(&items, Some((order, &samples))))?;
        let whole = read.into_iter().map(|(from, values)| (items[from], values)).collect();
        Ok(Batch { group, spoiled, ..together(whole) })
    }

    fn spoiled<'a>(&self, batch: &'a Batch) -> &'a [String] {
        &batch.spoiled
    }

    fn places(&self, batch: &Batch) -> Vec<String> {
        batch.places.clone()
    }

    fn gradients(&self, batch: &Batch, _: Moment) -> Result<(f32, Gradients), Stop> {
        let (loss, mut gradients) =
            self.sight.show(&batch.shown, |shown| self.learner.gradients(&lesson(batch, shown)))?;
        if let Some(group) = batch.group {
            gradients.retain(|name, _| group.holds(name));
        }
        Ok((loss, gradients))
    }

    fn evaluate(&self, values: &Values, _: usize, average: bool) -> Result<Vec<Measure>, Stop> {
        measured_as(self.variables(), average.then_some(values), || self.measures())
    }

    fn describe(&self, folder: &Path, values: &Values) -> Result<(), Stop> {
        let learns = |name: &str| self.variables().contains_key(name);
        if !self.frozen.has_beside(learns) {
            // What learned is the whole adapter, and lies there already.
            return Ok(());
        }
        let frozen = self.frozen.values(|name| !learns(name))?;
        let whole = write_all(&[&frozen, values], Default::default())?;
        put(&folder.join(WHOLE_ADAPTER), &whole)
    }
}
