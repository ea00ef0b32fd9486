//! Encoders that learn to agree on scenes: a picture with a text, or with what is spoken of it.
//!
//! ```text
//! both learn         a small world ─► pictures, drawn anew ─► with texts                 (`worlds`)
//! pictures are done  drawn and embedded once ─► with texts, any wording; or with speech, each phrase at most once in a batch
//! ```
//! In a batch from all scenes, colours alone nearly tell its pictures apart, and places are never learned; so it is of a small world.
//! Encoders that do not learn are as `start` has them.
//!
//! | file | its one idea |
//! |---|---|
//! | `recipe.rs` | what a recipe says |
//! | `drawn.rs` | what a batch is made of |

mod drawn;
mod recipe;

use std::path::Path;

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use rayon::prelude::*;

use super::checkpoint::put;
use super::data::Order;
use super::loading::{Machine, loaders};
use super::stop::told;
use super::task::{Measure, Moment, Task, measured_as};
use super::{Error, Stop, within};
use crate::index::exact;
use crate::media::audio::{AudioFront, AudioLimits, Sound, decode};
use crate::models::encoder::tokenizer;
use crate::models::imagebind::{self, Config, Learner, LogitScale, SCALE, Side};
use crate::models::learning::{Gradients, Values, Variables, adamw, read, write};
use crate::models::nano;
use crate::models::weights::Weights;
use crate::scenes::speech::{self, Speakers, Voice};
use crate::scenes::{Scene, Set, Wording};
use crate::text::ClipTokenizer;
use crate::types::Modality;

use drawn::{Place, altered, blur, heard, picture};
pub use recipe::{PairsRecipe, PictureOptions, SpeechOptions, TextOptions, World};

/// In the folder of a run: all encoders and their sizes.
const ENCODERS: &str = "imagebind.safetensors";
const SIZES: &str = "imagebind.json";

/// Pictures that are embedded together.
const TOGETHER: usize = 256;
/// Times that each phrase is spoken for the test.
const TESTED: usize = 4;
/// Seconds of a sound that an encoder hears.
const SECONDS: u32 = 2;

/// What pictures belong together with.
enum Other {
    Texts(ClipTokenizer, Wording),
    Speech(SpeechOptions, Box<Spoken>),
}

/// What was spoken.
struct Spoken {
    front: AudioFront,
    frames: usize,
    bands: usize,
    /// For each phrase how it was spoken, and the pictures that show it.
    phrases: Vec<(Vec<Sound>, Vec<u32>)>,
    /// For the test: spectrograms, one behind the other, and of which phrases.
    test: (Vec<f32>, Vec<Scene>),
}

/// One side of a batch.
enum Ready {
    Pictures(Vec<f32>),
    Texts(Vec<u32>),
    Sounds(Vec<f32>),
    Embeddings(Vec<f32>),
}

impl Ready {
    fn side(&self) -> Side<'_> {
        match self {
            Ready::Pictures(x) => Side::Pictures(x),
            Ready::Texts(ids) => Side::Texts(ids),
            Ready::Sounds(x) => Side::Sounds(x),
            Ready::Embeddings(x) => Side::Embeddings(x),
        }
    }
}

/// Two sides that belong together row by row.
pub struct Batch {
    sides: [Ready; 2],
    places: Vec<String>,
}

/// The task.
pub struct PairsTask {
    recipe: PairsRecipe,
    config: Config,
    /// The text of the sizes.
    sizes: String,
    learner: Learner,
    /// Tensors of `start` that do not learn.
    rest: Values,
    /// Scenes of pictures that are embedded once, and their embeddings, `[N, D]`.
    seen: (Vec<Scene>, Vec<f32>),
    other: Other,
    scale: LogitScale,
    side: usize,
    loaders: rayon::ThreadPool,
}

impl PairsTask {
    /// Draws, speaks and embeds what is needed once, and makes the encoders.
    ///
    /// * `base`: the recipe's folder. `seed`, `batch`: of the run. `machine`: what there is to work with. `watch`: hears what is being done.
    ///
    /// # Errors
    /// [`Stop::Recipe`], [`Stop::Model`], [`Stop::Made`], [`Stop::Threads`].
    pub fn open(
        recipe: &PairsRecipe,
        base: &Path,
        (seed, batch): (u64, usize),
        machine: Machine,
        watch: &mut dyn FnMut(&str),
    ) -> Result<Self, Stop> {
        check(recipe, batch)?;
        let sizes = match recipe.model.as_str() {
            nano::NAME => nano::CONFIG.to_owned(),
            path => {
                let path = base.join(path);
                std::fs::read_to_string(&path).map_err(Stop::file(&path))?
            }
        };
        let config = Config::from_json(&sizes)?;
        let side = match config.vision.as_ref().map(|vision| vision.image_size) {
            Some([height, width]) if height == width => height,
            _ => return Err(Error::Contradiction("`pairs.model` needs square pictures").into()),
        };
        let start = recipe.start.as_ref().map(|start| match start == Path::new(nano::NAME) {
            true => nano::weights(),
            false => Weights::open(&encoders(&base.join(start))),
        });
        let start = start.transpose()?;
        let mut senses = vec![Modality::Image];
        senses.push(if recipe.texts.is_some() { Modality::Text } else { Modality::Audio });
        let learns = |sense: &Modality| recipe.learns.contains(sense);
        let taught: Vec<Modality> = senses.iter().copied().filter(learns).collect();
        if taught.len() < senses.len() && start.is_none() {
            let why = "an encoder that does not learn must be there already: name it by `pairs.start`";
            return Err(Error::Contradiction(why).into());
        }
        let mut values = imagebind::initial(&config, &taught, seed)?;
        let scale = match recipe.scale {
            Some(scale) => LogitScale::Fixed(scale),
            None => {
                values.insert(SCALE.into(), (Vec::new(), vec![(1.0f32 / 0.07).ln()]));
                LogitScale::Learned
            }
        };
        let loaders = loaders(machine.threads)?;
        let learner =
            Learner::new(&config, &senses, &values, start.as_ref(), machine.threads, machine.device)?;
        let seen = match taught.contains(&Modality::Image) {
            true => (Vec::new(), Vec::new()),
            false => {
                watch(&format!("embedding {} pictures", recipe.pictures.count));
                embedded(&learner, Set::Train, &recipe.pictures, side, &loaders)?
            }
        };
        let other = match (&recipe.texts, &recipe.speech) {
            (Some(texts), _) => {
                let text = config.text.as_ref().ok_or(crate::models::Error::NotLoaded(Modality::Text))?;
                Other::Texts(tokenizer(text)?, texts.wording)
            }
            (None, Some(options)) => {
                watch(&format!("speaking each phrase {} times", options.utterances));
                let spoken = loaders.install(|| spoken(options, &config, &seen.0, seed))?;
                Other::Speech(*options, Box::new(spoken))
            }
            (None, None) => return Err(Error::Contradiction(TWO_SIDES).into()),
        };
        let mut rest = start.as_ref().map(read).transpose()?.unwrap_or_default();
        rest.retain(|name, _| !learner.variables().contains_key(name));
        let recipe = recipe.clone();
        Ok(PairsTask { recipe, config, sizes, learner, rest, seen, other, scale, side, loaders })
    }

    /// In words: what it learns from.
    pub fn told(&self) -> String {
        let pictures = match self.seen.0.len() {
            0 => format!("{} pictures an epoch, drawn anew", self.recipe.pictures.count),
            count => format!("{count} pictures, embedded once"),
        };
        match &self.other {
            Other::Texts(_, wording) => format!("{pictures}, with texts ({wording:?})"),
            Other::Speech(options, spoken) => {
                let count = spoken.phrases.len();
                format!("{pictures}, with {count} phrases that are spoken {} times each", options.utterances)
            }
        }
    }

    /// A picture for each place of a batch: its scene, and its side.
    fn pictures(&self, order: Order, samples: &[u32], random: &mut Pcg64) -> (Vec<Scene>, Ready) {
        let PictureOptions { seed, noise, worlds, .. } = &self.recipe.pictures;
        if !self.seen.0.is_empty() {
            let scenes = samples.iter().map(|&sample| self.seen.0[sample as usize]).collect();
            return (scenes, Ready::Embeddings(self.rows(samples)));
        }
        let world = worlds.iter().find(|world| world.until.is_none_or(|until| order.epoch < until));
        let place = world.map(|world| Place::any(world, random));
        let indices: Vec<(u64, u64)> =
            samples.iter().map(|_| (Place::index(place.as_ref(), *seed, random), random.random())).collect();
        let drawn: Vec<(Scene, Vec<f32>)> = self.loaders.install(|| {
            let one = |&(index, own): &(u64, u64)| {
                let (scene, mut values) = picture(Set::Train, *seed, index, self.side);
                blur(&mut values, *noise, &mut Pcg64::seed_from_u64(own));
                (scene, values)
            };
            indices.par_iter().map(one).collect()
        });
        let (scenes, values): (Vec<Scene>, Vec<Vec<f32>>) = drawn.into_iter().unzip();
        (scenes, Ready::Pictures(values.concat()))
    }

    fn rows(&self, of: &[u32]) -> Vec<f32> {
        let width = self.config.out_embed_dim;
        of.iter().flat_map(|&i| &self.seen.1[i as usize * width..][..width]).copied().collect()
    }

    /// Phrases, each with a picture that shows it.
    fn spoken(
        &self,
        options: &SpeechOptions,
        spoken: &Spoken,
        count: usize,
        random: &mut Pcg64,
    ) -> Result<Batch, Stop> {
        let mut phrases: Vec<usize> = (0..spoken.phrases.len()).collect();
        phrases.shuffle(random);
        phrases.truncate(count);
        let chosen: Vec<(&Sound, u32, u64)> = phrases
            .iter()
            .map(|&phrase| {
                let (sounds, pictures) = &spoken.phrases[phrase];
                let sound = &sounds[random.random_range(0..sounds.len())];
                (sound, pictures[random.random_range(0..pictures.len())], random.random())
            })
            .collect();
        let rolled = random.random_range(0..=options.roll);
        let bands = random.random_range(0..=options.bands.min(spoken.bands));
        let first = random.random_range(0..=spoken.bands - bands);
        let one = |&(sound, _, own): &(&Sound, u32, u64)| {
            let most = (sound.rate * SECONDS) as usize;
            let mut random = Pcg64::seed_from_u64(own);
            let mut spectrogram = heard(sound, &spoken.front, options, most, &mut random)?;
            altered(&mut spectrogram, spoken.frames, rolled, first..first + bands);
            Ok(spectrogram)
        };
        let heard = self.loaders.install(|| chosen.par_iter().map(one).collect::<Result<Vec<_>, _>>());
        let heard = heard.map_err(|e: crate::media::Error| Stop::Made(e.to_string()))?;
        let pictures: Vec<u32> = chosen.iter().map(|(_, picture, _)| *picture).collect();
        let places = phrases.iter().map(|phrase| format!("phrase {phrase}")).collect();
        Ok(Batch { sides: [Ready::Embeddings(self.rows(&pictures)), Ready::Sounds(heard.concat())], places })
    }

    /// How often the nearest pictures of a test show what a text or phrase says.
    fn measures(&self) -> Result<Vec<Measure>, Stop> {
        if self.recipe.test == 0 {
            return Ok(Vec::new());
        }
        let options = PictureOptions { count: self.recipe.test, ..self.recipe.pictures.clone() };
        let (scenes, rows) = embedded(&self.learner, Set::Test, &options, self.side, &self.loaders)?;
        let (said, queries): (&[Scene], Ready) = match &self.other {
            Other::Texts(tokenizer, _) => {
                let ids = texts(tokenizer, scenes.iter().map(Scene::caption))?;
                (&scenes, Ready::Texts(ids))
            }
            Other::Speech(_, spoken) => (&spoken.test.1, Ready::Sounds(spoken.test.0.clone())),
        };
        let queries = self.learner.embeddings(queries.side())?;
        let width = self.config.out_embed_dim;
        let spoken = matches!(self.other, Other::Speech(..));
        let same = |a: &Scene, b: &Scene| if spoken { a.spoken() == b.spoken() } else { a == b };
        let found = said.par_iter().zip(queries.par_chunks(width)).map(|(scene, query)| {
            let found = exact::search(&rows, query, 10.min(scenes.len()));
            let right = |rank: &usize| same(&scenes[found[*rank].slot.index()], scene);
            let first = (0..found.len()).find(right);
            [first == Some(0), first.is_some()].map(usize::from)
        });
        let found: Vec<[usize; 2]> = self.loaders.install(|| found.collect());
        let share = |i: usize| found.iter().map(|one| one[i]).sum::<usize>() as f64 / said.len() as f64;
        let measure = |name: &str, value| Measure { name: name.to_owned(), value };
        Ok(vec![
            measure("recall_at_1", share(0)),
            measure("recall_at_10", share(1)),
            measure("queries", said.len() as f64),
            measure("pictures", scenes.len() as f64),
        ])
    }
}

const TWO_SIDES: &str =
    "pictures belong together with `pairs.texts` or with `pairs.speech`: name one of them";

fn check(recipe: &PairsRecipe, batch: usize) -> Result<(), Error> {
    let PairsRecipe { learns, scale, pictures, texts, speech, .. } = recipe;
    if texts.is_some() == speech.is_some() {
        return Err(Error::Contradiction(TWO_SIDES));
    }
    let other = if texts.is_some() { Modality::Text } else { Modality::Audio };
    if learns.is_empty() || learns.iter().any(|sense| ![Modality::Image, other].contains(sense)) {
        let why = "`pairs.learns` names one or both of the two sides: `image`, and `text` or `audio`";
        return Err(Error::Contradiction(why));
    }
    let taught = learns.contains(&Modality::Image);
    if speech.is_some() && taught {
        return Err(Error::Contradiction(
            "with speech, pictures do not learn: name their encoder by `start`",
        ));
    }
    if !taught && (!pictures.worlds.is_empty() || pictures.noise != 0.0) {
        return Err(Error::Contradiction("`worlds` and `noise` are for pictures whose encoder learns"));
    }
    if let Some(scale) = *scale {
        within("pairs.scale", scale, scale > 0.0 && scale <= 100.0, "above 0, and 100 at most")?;
    }
    within("pairs.pictures.count", pictures.count.into(), pictures.count > 0, "1 or more")?;
    let noise = f64::from(pictures.noise);
    within("pairs.pictures.noise", noise, noise.is_finite() && noise >= 0.0, "a finite number, 0 or above")?;
    for world in &pictures.worlds {
        for (name, value) in
            [("pairs.pictures.worlds.colours", world.colours), ("pairs.pictures.worlds.shapes", world.shapes)]
        {
            within(name, value as f64, (1..=8).contains(&value), "from 1 to 8")?;
        }
    }
    if let Some(speech) = speech {
        let phrases = speech::phrases(false).len();
        let allowed = "at most as many as there are phrases to speak, 112";
        within("run.batch", batch as f64, batch <= phrases, allowed)?;
        within("pairs.speech.utterances", speech.utterances.into(), speech.utterances > 0, "1 or more")?;
        let silence = speech.silence;
        let most = f64::from(SECONDS);
        within("pairs.speech.silence", silence, (0.0..most).contains(&silence), "from 0 to 2, excluded")?;
        for range in [Some(speech.gain), speech.noise].into_iter().flatten() {
            let ordered = range[0] <= range[1] && range.iter().all(|v| (-10.0..=3.0).contains(v));
            within("pairs.speech.gain or noise", range[0], ordered, "powers of ten, the lower first")?;
        }
    }
    Ok(())
}

/// The file of encoders: itself, or that of a run.
fn encoders(path: &Path) -> std::path::PathBuf {
    if path.is_dir() { path.join(ENCODERS) } else { path.to_owned() }
}

/// The first pictures of a set, their scenes and unit embeddings.
fn embedded(
    learner: &Learner,
    set: Set,
    options: &PictureOptions,
    side: usize,
    loaders: &rayon::ThreadPool,
) -> Result<(Vec<Scene>, Vec<f32>), Stop> {
    let (mut scenes, mut rows) = (Vec::new(), Vec::new());
    for first in (0..options.count).step_by(TOGETHER) {
        let last = options.count.min(first + TOGETHER as u32);
        let drawn: Vec<(Scene, Vec<f32>)> = loaders.install(|| {
            (first..last).into_par_iter().map(|i| picture(set, options.seed, i.into(), side)).collect()
        });
        let (some, values): (Vec<Scene>, Vec<Vec<f32>>) = drawn.into_iter().unzip();
        scenes.extend(some);
        rows.extend(learner.embeddings(Side::Pictures(&values.concat()))?);
    }
    Ok((scenes, rows))
}

fn texts(tokenizer: &ClipTokenizer, texts: impl Iterator<Item = String>) -> Result<Vec<u32>, Stop> {
    let ids = texts.map(|text| tokenizer.encode(&text).map_err(|e| Stop::Made(e.to_string())));
    Ok(ids.collect::<Result<Vec<_>, _>>()?.concat())
}

/// Speaks every phrase that is not held out.
fn spoken(options: &SpeechOptions, config: &Config, seen: &[Scene], seed: u64) -> Result<Spoken, Stop> {
    let audio = config.audio.as_ref().ok_or(crate::models::Error::NotLoaded(Modality::Audio))?;
    let made = |e: &dyn std::error::Error| Stop::Made(told(e));
    let say = |(scene, voice): &(Scene, Voice)| -> Result<Sound, Stop> {
        let file = speech::speak(scene, voice).map_err(|e| made(&e))?;
        decode(&file, &AudioLimits::default()).map_err(|e| made(&e))
    };
    let scenes = speech::phrases(false);
    let voices = |times: usize, seed: u64| -> Vec<(Scene, Voice)> {
        let mut random = Pcg64::seed_from_u64(seed);
        let all = scenes.iter().flat_map(|&scene| std::iter::repeat_n(scene, times));
        all.map(|scene| (scene, Voice::any(Speakers::Known, &mut random))).collect()
    };
    let times = options.utterances as usize;
    let learned = voices(times, seed);
    let sounds: Vec<Sound> = learned.par_iter().map(say).collect::<Result<_, _>>()?;
    let phrases = scenes.iter().zip(sounds.chunks(times)).map(|(scene, sounds)| {
        let shows = |(_, other): &(u32, &Scene)| other.spoken() == scene.spoken();
        let pictures: Vec<u32> = (0..).zip(seen).filter(shows).map(|(i, _)| i).collect();
        match pictures.is_empty() {
            true => {
                Err(Error::Contradiction("no picture shows some phrase: take more `pairs.pictures.count`"))
            }
            false => Ok((sounds.to_vec(), pictures)),
        }
    });
    let phrases = phrases.collect::<Result<_, _>>()?;
    let front = AudioFront::new(audio.num_mel_bins, audio.target_len, AudioLimits::default());
    // Other voices, speeds and pitches than those that are learned with.
    let tested = voices(TESTED, !seed);
    let test = tested.par_iter().map(|one| front.spectrogram(&say(one)?).map_err(|e| made(&e)));
    let test =
        (test.collect::<Result<Vec<_>, _>>()?.concat(), tested.iter().map(|(scene, _)| *scene).collect());
    Ok(Spoken { front, frames: audio.target_len, bands: audio.num_mel_bins, phrases, test })
}

impl Task for PairsTask {
    type Batch = Batch;

    fn variables(&self) -> &Variables {
        self.learner.variables()
    }

    fn optimiser(&self) -> adamw::Settings {
        let mut settings = self.recipe.optimiser.clone();
        // What has no direction to shrink to: positions, cls tokens, the extra keys and values, the scale.
        let kept = ["pos_embed", "cls_token", "bias_k", "bias_v", SCALE];
        let kept = self.variables().keys().filter(|name| kept.iter().any(|part| name.ends_with(part)));
        settings.undecayed.extend(kept.cloned());
        settings
    }

    fn samples(&self) -> u32 {
        self.recipe.pictures.count
    }

    fn prepare(&self, order: Order, samples: &[u32]) -> Result<Batch, Stop> {
        // Its chance is the epoch's and the place's, of which no sample has the number.
        let mut random = Order { seed: order.seed ^ order.position, ..order }.random(u32::MAX);
        match &self.other {
            Other::Speech(options, spoken) => self.spoken(options, spoken, samples.len(), &mut random),
            Other::Texts(tokenizer, wording) => {
                let (scenes, pictures) = self.pictures(order, samples, &mut random);
                let said: Vec<String> = scenes.iter().map(|scene| wording.of(scene, &mut random)).collect();
                let ids = texts(tokenizer, said.iter().cloned())?;
                Ok(Batch { sides: [pictures, Ready::Texts(ids)], places: said })
            }
        }
    }

    fn spoiled<'a>(&self, _: &'a Batch) -> &'a [String] {
        &[]
    }

    fn places(&self, batch: &Batch) -> Vec<String> {
        batch.places.clone()
    }

    fn gradients(&self, batch: &Batch, _: Moment) -> Result<(f32, Gradients), Stop> {
        Ok(self.learner.gradients([batch.sides[0].side(), batch.sides[1].side()], self.scale)?)
    }

    fn evaluate(&self, values: &Values, _: usize, average: bool) -> Result<Vec<Measure>, Stop> {
        measured_as(self.variables(), average.then_some(values), || self.measures())
    }

    fn others(&self) -> Option<&Values> {
        Some(&self.rest).filter(|rest| !rest.is_empty())
    }

    fn describe(&self, folder: &Path, values: &Values) -> Result<(), Stop> {
        let mut all = self.rest.clone();
        let learned = values.iter().filter(|(name, _)| name.as_str() != SCALE);
        all.extend(learned.map(|(name, value)| (name.clone(), value.clone())));
        let word = if self.recipe.texts.is_some() { "text" } else { "audio" };
        let logarithm = match (self.recipe.scale, values.get(SCALE)) {
            (Some(scale), _) => vec![(scale as f32).ln()],
            (None, Some((_, logarithm))) => logarithm.clone(),
            (None, None) => Vec::new(),
        };
        all.insert(format!("modality_postprocessors.{word}.1.{SCALE}"), (Vec::new(), logarithm));
        put(&folder.join(ENCODERS), &write(&all, Default::default())?)?;
        put(&folder.join(SIZES), self.sizes.as_bytes())
    }
}
