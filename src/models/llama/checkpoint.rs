//! A decoder's tensors from whichever files hold them, under the names that the adapter's program gives them.
//!
//! ```text
//! values("llama.layers.0.attention.wq.weight")
//!   1  the adapter file          the name as it is, `llma.…` in old files, or without `llama.` (V2 chat): its norms win
//!   2  CLIP's file               `clip.visual.…` only; `visual.…` in OpenAI's own
//!   3  the backbone, one of      consolidated.NN.pth   the name without `llama.`; shards are joined
//!                                *.safetensors (HF)    model.layers.0.self_attn.q_proj.weight, rotary order undone
//!                                one file              with `llama.` or without
//! ```
//! Names are claimed as they are read, so that a file made for another model is told by what is left over.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

use super::adapter_files::{AdapterFiles, CLIP_PREFIX, PREFIX, adapter_file, named};
use super::config::{Config, Family};
use super::digest::check_adapter;
use super::saved::{Saved, matrix_name};
use crate::kernels::q8::{Lent, Tiles};
use crate::models::layers::{LayerNorm, Linear, Tuning};
use crate::models::weights::Weights;
use crate::models::{Error, Placement};
use crate::types::{Fingerprint, WeightDtype};

/// The files of a decoder.
#[derive(Debug, Clone, Copy)]
pub struct Files<'a> {
    /// A folder of `consolidated.*.pth` and `params.json`, a folder of safetensors or `pytorch_model*.bin` and `config.json`, or one
    /// file beside its `params.json`.
    pub backbone: &'a Path,
    /// The adapter made for it: a file, or a folder that training wrote.
    pub adapter: Option<&'a Path>,
    /// CLIP ViT-L/14, for the multimodal LLaMA-Adapter V2.
    pub clip: Option<&'a Path>,
}

/// Open files.
pub struct Checkpoint {
    adapter: AdapterFiles,
    clip: Option<Weights>,
    backbone: Vec<Weights>,
    naming: Naming,
    heads: usize,
    claimed: RefCell<BTreeSet<String>>,
    /// Whether names and shapes are compared and nothing is read.
    shapes_only: bool,
    /// What names within the backbone contain that count as missing.
    left_out: &'static [&'static str],
    /// A decoder that was saved, what it has ready, and its file in memory.
    ready: Option<Ready>,
    /// What is added to the backbone.
    delta: Option<Box<Checkpoint>>,
}

/// Matrices that are used as they lie in a file.
struct Ready {
    /// In 8 bits.
    matrices: BTreeMap<String, [usize; 2]>,
    /// In ggml's blocks.
    blocks: BTreeMap<String, [usize; 2]>,
    numbers: WeightDtype,
    memory: Lent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Naming {
    /// With the prefix.
    Whole,
    /// Without it.
    Plain,
    /// Hugging Face's.
    HuggingFace,
}

impl Ready {
    fn shape(&self, name: &str) -> Option<[usize; 2]> {
        self.matrices.get(name).or_else(|| self.blocks.get(name)).copied()
    }
}

impl Checkpoint {
    /// Opens the files of a decoder.
    ///
    /// # Errors
    /// [`Error::Weights`] and [`Error::Config`].
    pub fn open(files: Files<'_>) -> Result<(Self, Config), Error> {
        Self::open_for(files, None)
    }

    /// The same, of a decoder that is to have a family's adapter, whatever the files say.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_for(files: Files<'_>, family: Option<Family>) -> Result<(Self, Config), Error> {
        let Files { backbone, adapter, clip } = files;
        let fail = |path: &Path, why: String| Error::Weights { path: path.display().to_string(), why };
        let read = |path: PathBuf| std::fs::read_to_string(&path).map_err(|e| fail(&path, e.to_string()));
        if !backbone.exists() {
            return Err(fail(backbone, "there is no such file or folder".into()));
        }
        type Read = fn(&str, Family) -> Result<Config, Error>;
        let (paths, sizes, parse): (_, _, Read) = if backbone.is_dir() {
            let mut names: Vec<PathBuf> = std::fs::read_dir(backbone)
                .map_err(|e| fail(backbone, e.to_string()))?
                .filter_map(|entry| Some(entry.ok()?.path()))
                .collect();
            names.sort();
            let of = |test: &dyn Fn(&str) -> bool| -> Vec<PathBuf> {
                let matches = |path: &&PathBuf| path.file_name().and_then(|n| n.to_str()).is_some_and(test);
                names.iter().filter(matches).cloned().collect()
            };
            let original = of(&|name| name.starts_with("consolidated.") && name.ends_with(".pth"));
            let mut converted = of(&|name| name.ends_with(".safetensors"));
            if converted.is_empty() {
                converted = of(&|name| name.starts_with("pytorch_model") && name.ends_with(".bin"));
            }
            if !original.is_empty() {
                (original, read(backbone.join("params.json"))?, Config::from_params)
            } else if !converted.is_empty() {
                (converted, read(backbone.join("config.json"))?, Config::from_hugging_face)
            } else {
                let why = "the folder holds neither consolidated.*.pth (with params.json) nor *.safetensors or pytorch_model*.bin (with config.json)";
                return Err(fail(backbone, why.into()));
            }
        } else {
            let folder = backbone.parent().unwrap_or(Path::new("."));
            (vec![backbone.to_owned()], read(folder.join("params.json"))?, Config::from_params)
        };
        let backbone = paths.iter().map(|path| Weights::open(path)).collect::<Result<_, _>>()?;
        let adapter = adapter.map(adapter_file);
        adapter.as_deref().map_or(Ok(()), check_adapter)?;
        let adapter = adapter.as_deref().map(Weights::open).transpose()?;
        let clip = clip.map(Weights::open).transpose()?;
        let mut checkpoint = Checkpoint { clip, ..Self::new(backbone, adapter, 1) };
        let family = family.unwrap_or_else(|| checkpoint.family());
        let config = Config { family: Some(family), ..parse(&sizes, family)? };
        checkpoint.heads = config.n_heads;
        Ok((checkpoint, config))
    }

    /// From files that are open.
    ///
    /// * `heads`: of attention; matters for files of Hugging Face's, whose rotary order is undone by head.
    pub fn new(backbone: Vec<Weights>, adapter: Option<Weights>, heads: usize) -> Self {
        let has = |name: &str| backbone.iter().any(|file| file.shape(name).is_some());
        let naming = if has("model.embed_tokens.weight") {
            Naming::HuggingFace
        } else if has("llama.tok_embeddings.weight") {
            Naming::Whole
        } else {
            Naming::Plain
        };
        let claimed = RefCell::default();
        Checkpoint {
            adapter: AdapterFiles::new(adapter),
            clip: None,
            backbone,
            naming,
            heads,
            claimed,
            shapes_only: false,
            left_out: &[],
            ready: None,
            delta: None,
        }
    }

    /// The same files, of which names and shapes alone are looked at: every number is 0.
    pub(super) fn shapes_only(self) -> Self {
        Checkpoint { shapes_only: true, ..self }
    }

    /// The same files, but within the backbone nothing counts as there whose name contains one of these: a first phase of
    /// training is of a model that has no biases (`.bias`) or low-rank matrices (`.lora_`) yet.
    pub fn without(self, parts: &'static [&'static str]) -> Self {
        Checkpoint { left_out: parts, ..self }
    }

    /// The same decoder, which looks through CLIP.
    pub fn looking_through(self, clip: Weights) -> Self {
        Checkpoint { clip: Some(clip), ..self }
    }

    /// The same decoder with first values of what its adapter lacks, under their whole names.
    pub fn beginning_with(self, begun: Weights) -> Self {
        Checkpoint { adapter: self.adapter.beginning_with(begun), ..self }
    }

    /// The adapter's tensors.
    pub fn adapter(&self) -> &AdapterFiles {
        &self.adapter
    }

    /// The same, of which nothing else is needed any more.
    pub fn into_adapter(self) -> AdapterFiles {
        self.adapter
    }

    /// Whose adapter the files hold.
    pub fn family(&self) -> Family {
        if self.shape("visual_query.weight").is_some() {
            Family::V2Picture
        } else if [
            "llama.layers.0.attention.wq_bias",
            "llama.layers.0.attention.wq_scale",
            "adapter_query.weight",
        ]
        .iter()
        .any(|name| self.shape(name).is_some())
        {
            Family::V2Chat
        } else {
            Family::ImageBindLlm
        }
    }

    /// A decoder that [`super::Decoder::save`] wrote.
    ///
    /// # Errors
    /// [`Error::Weights`].
    pub fn saved(file: Weights, saved: &Saved) -> Result<Self, Error> {
        let memory = file.mapped()?;
        let checkpoint = Checkpoint::new(vec![file], None, saved.config.n_heads);
        let (matrices, blocks) = (saved.matrices.clone(), saved.blocks.clone());
        let ready = Ready { matrices, blocks, numbers: saved.numbers, memory };
        Ok(Checkpoint { ready: Some(ready), ..checkpoint })
    }

    /// A tensor, where the model is.
    ///
    /// # Errors
    /// As [`Checkpoint::values`].
    pub(super) fn tensor(&self, name: &str, shape: &[usize], placement: &Placement) -> Result<Tensor, Error> {
        if let Some(variable) = self.variable(name, shape, placement)? {
            return Ok(variable);
        }
        Ok(placement.tensor(self.values(name, shape)?, shape)?)
    }

    /// As [`Checkpoint::tensor`], in f32 whatever the model's numbers: for what is small and goes through functions.
    pub(super) fn small(&self, name: &str, shape: &[usize], placement: &Placement) -> Result<Tensor, Error> {
        if let Some(variable) = self.variable(name, shape, placement)? {
            return Ok(variable);
        }
        Ok(Tensor::from_vec(self.values(name, shape)?, shape, &placement.device)?)
    }

    /// A matrix that is learned, or learned through: in the floats that its file has it in.
    pub(super) fn as_given(
        &self,
        name: &str,
        shape: &[usize],
        placement: &Placement,
    ) -> Result<Tensor, Error> {
        if let Some(variable) = self.variable(name, shape, placement)? {
            return Ok(variable);
        }
        let values = Tensor::from_vec(self.values(name, shape)?, shape, &Device::Cpu)?;
        Ok(values.to_dtype(self.floats(name))?.to_device(&placement.device)?)
    }

    fn variable(&self, name: &str, shape: &[usize], placement: &Placement) -> Result<Option<Tensor>, Error> {
        let Some(variable) = placement.variable(name) else { return Ok(None) };
        self.claimed.borrow_mut().insert(name.to_owned());
        if variable.dims() == shape {
            return Ok(Some(variable));
        }
        let (path, expected) = ("the variables".to_owned(), shape.to_vec());
        Err(Error::TensorShape { path, name: name.into(), expected, received: variable.dims().to_vec() })
    }

    fn floats(&self, name: &str) -> DType {
        match self.adapted(name) {
            Some((file, found)) => file.floats(&found),
            None if self.delta.is_some() => DType::F16,
            None => self.backbone.first().map_or(DType::F32, |file| file.floats(&self.own_name(name))),
        }
    }

    /// A layer norm.
    ///
    /// # Errors
    /// As [`Checkpoint::values`].
    pub(super) fn layer_norm(
        &self,
        name: &str,
        width: usize,
        eps: f32,
        placement: &Placement,
    ) -> Result<LayerNorm, Error> {
        let part = |part: &str| self.tensor(&format!("{name}.{part}"), &[width], placement);
        Ok(LayerNorm::new(part("weight")?, part("bias")?, eps))
    }

    /// A linear layer by the names of its weight and, if it has one, its bias; in 8 bits where the placement says so.
    ///
    /// # Errors
    /// As [`Checkpoint::values`].
    pub(super) fn linear(
        &self,
        weight: &str,
        bias: Option<&str>,
        [out, width]: [usize; 2],
        placement: &Placement,
    ) -> Result<Linear, Error> {
        if placement.variables.is_some() {
            let bias = bias.map(|bias| self.tensor(bias, &[out], placement)).transpose()?;
            let weight = self.as_given(weight, &[out, width], placement)?;
            return Ok(Linear::as_given(weight, bias, Tuning::default()));
        }
        if self.is_ready(matrix_name(weight)) {
            let bias = bias.map(|bias| self.tensor(bias, &[out], placement)).transpose()?;
            return self.ready(matrix_name(weight), [out, width], bias);
        }
        self.layer([weight, bias.unwrap_or_default()], [out, width], placement, |_| Ok(()))
    }

    /// A linear layer that is not in 8 bits already, by the names of its weight and its bias (empty: it has none).
    ///
    /// * `fold`: what is added to its weights, `[out, width]` row by row, before they are rounded.
    ///
    /// # Errors
    /// As [`Checkpoint::values`].
    pub(super) fn layer(
        &self,
        [weight, bias]: [&str; 2],
        [out, width]: [usize; 2],
        placement: &Placement,
        fold: impl FnOnce(&mut [f32]) -> Result<(), Error>,
    ) -> Result<Linear, Error> {
        let bias = match bias {
            "" => None,
            bias => Some(self.tensor(bias, &[out], placement)?),
        };
        let mut weight = self.values(weight, &[out, width])?;
        if self.shapes_only {
            fold(&mut [])?;
            return Linear::of(placement, Vec::new(), width, bias);
        }
        fold(&mut weight)?;
        Linear::of(placement, weight, width, bias)
    }

    /// Whether a matrix lies in the file as it is used.
    pub(super) fn is_ready(&self, name: &str) -> bool {
        self.ready.as_ref().is_some_and(|ready| ready.shape(name).is_some())
    }

    /// A layer whose weights lie in the file as they are used.
    ///
    /// # Errors
    /// [`Error::TensorShape`], and [`Error::Weights`] for a file that is damaged.
    pub(super) fn ready(
        &self,
        name: &str,
        [out, width]: [usize; 2],
        bias: Option<Tensor>,
    ) -> Result<Linear, Error> {
        let found = self.ready.as_ref().zip(self.backbone.first());
        let Some(((ready, file), shape)) =
            found.and_then(|(ready, file)| Some(((ready, file), ready.shape(name)?)))
        else {
            return Err(Error::Config(format!("matrix `{name}` does not lie ready")));
        };
        let path = || file.path().to_owned();
        if shape != [out, width] {
            let (expected, received) = (vec![out, width], shape.to_vec());
            return Err(Error::TensorShape { path: path(), name: name.into(), expected, received });
        }
        let damaged = || Error::Weights { path: path(), why: format!("matrix `{name}` is not whole") };
        if ready.blocks.contains_key(name) {
            let place = file.place(&format!("{name}.blocks")).ok_or_else(damaged)?;
            let bytes = (*ready.memory).as_ref().get(place).ok_or_else(damaged)?;
            return Linear::of_blocks(ready.numbers, bytes, [out, width], bias);
        }
        let places = file.place(&format!("{name}.codes")).zip(file.place(&format!("{name}.scales")));
        let tiles =
            places.and_then(|(codes, scales)| Tiles::lent(out, width, ready.memory.clone(), codes, scales));
        tiles.map(|tiles| Linear::ready(tiles, bias)).ok_or_else(damaged)
    }

    /// `[out, in]` of a matrix, in whatever form it lies there.
    pub fn matrix_shape(&self, name: &str) -> Option<[usize; 2]> {
        if let Some(shape) = self.ready.as_ref().and_then(|ready| ready.shape(name)) {
            return Some(shape);
        }
        self.shape(&format!("{name}.weight"))?.try_into().ok()
    }

    /// Names of everything in the files, as the adapter's program spells them. Files of Hugging Face's are not listed.
    pub fn names(&self) -> BTreeSet<String> {
        let backbone = self.backbone.iter().flat_map(Weights::names).map(named);
        self.adapter.all_names().chain(backbone).collect()
    }

    /// Shape of a tensor; `None` when no file has it.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        if name.starts_with(PREFIX) && self.left_out.iter().any(|part| name.contains(part)) {
            return None;
        }
        if let Some((file, found)) = self.adapted(name) {
            return file.shape(&found).map(<[usize]>::to_vec);
        }
        let own = self.own_name(name);
        let mut shapes = self.backbone.iter().filter_map(|file| file.shape(&own));
        let mut whole = shapes.next()?.to_vec();
        if let Some(axis) = self.axis(name) {
            // What is no matrix is left as it is: reading it will say so.
            if let Some(length) = whole.get_mut(axis) {
                *length += shapes.filter_map(|shape| shape.get(axis)).sum::<usize>();
            }
        }
        Some(whole)
    }

    /// A tensor as f32 numbers in row-major order.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::TensorShape`], [`Error::Weights`].
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        self.claimed.borrow_mut().insert(name.to_owned());
        if self.shapes_only {
            return self.fits(name, shape).map(|()| vec![0.0; shape.iter().product()]);
        }
        if let Some((file, found)) = self.adapted(name) {
            return file.values(&found, shape);
        }
        self.bare(name, shape)
    }

    /// Whether a tensor is there in this shape.
    fn fits(&self, name: &str, shape: &[usize]) -> Result<(), Error> {
        let file = self.adapted(name).map(|(file, _)| file).or(self.backbone.first()).or(self.adapter.file());
        let path = || file.map(|file| file.path().to_owned()).unwrap_or_default();
        let (name, expected) = (name.to_owned(), shape.to_vec());
        match self.shape(&name) {
            Some(found) if found == shape => {
                match self.delta.as_ref().filter(|_| self.adapted(&name).is_none()) {
                    Some(delta) => delta.fits(&name, shape),
                    None => Ok(()),
                }
            }
            Some(received) => Err(Error::TensorShape { path: path(), name, expected, received }),
            None => Err(Error::MissingTensor { path: path(), name, expected }),
        }
    }

    /// With a delta, another backbone of the same sizes that is added to this one: sums are made in f32 and rounded to f16, as who
    /// publishes a delta has made its whole.
    pub fn plus(self, delta: Checkpoint) -> Self {
        Checkpoint { delta: Some(Box::new(delta)), ..self }
    }

    /// A tensor of the backbone, whatever the adapter has of that name.
    fn bare(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        let mut values = self.base(name, shape)?;
        if let Some(delta) = &self.delta {
            let delta = delta.base(name, shape)?;
            values.iter_mut().zip(delta).for_each(|(v, d)| *v = half::f16::from_f32(*v + d).to_f32());
        }
        Ok(values)
    }

    /// A tensor of the backbone without its delta.
    fn base(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        let own = self.own_name(name);
        let holders: Vec<&Weights> = self.backbone.iter().filter(|file| file.shape(&own).is_some()).collect();
        let values = match (&holders[..], self.axis(name)) {
            ([], _) => match self.backbone.first() {
                Some(first) => return first.values(&own, shape), // says what is missing where
                None => return Err(Error::Config("a decoder without files".into())),
            },
            ([one], _) | ([one, ..], None) => one.values(&own, shape)?,
            (shards, Some(axis)) => joined(shards, &own, shape, axis)?,
        };
        let permuted = self.naming == Naming::HuggingFace
            && (name.ends_with("attention.wq.weight") || name.ends_with("attention.wk.weight"));
        Ok(if permuted { in_pairs(&values, self.heads, shape) } else { values })
    }

    /// Refuses an adapter file with tensors that no part of the model has asked for.
    ///
    /// # Errors
    /// [`Error::SurplusTensor`].
    pub fn refuse_surplus(&self) -> Result<(), Error> {
        self.adapter.refuse_surplus(&self.claimed.borrow())
    }

    /// Identifies the files, the adapter's last.
    ///
    /// # Errors
    /// [`Error::Weights`].
    pub fn fingerprints(&self) -> Result<Vec<Fingerprint>, Error> {
        let delta = self.delta.iter().flat_map(|delta| &delta.backbone);
        let files = self.backbone.iter().chain(delta).chain(&self.clip).map(Weights::fingerprint);
        files.chain(self.adapter.fingerprint().transpose()).collect()
    }

    /// A tensor that is not the backbone's: the file that has it, and how it is spelled there.
    fn adapted(&self, name: &str) -> Option<(&Weights, String)> {
        let of_clip = || {
            let clip = self.clip.as_ref()?;
            let names = [Some(name), name.strip_prefix(CLIP_PREFIX)];
            let there = names.into_iter().flatten().find(|name| clip.shape(name).is_some())?;
            Some((clip, there.to_owned()))
        };
        self.adapter.find(name).or_else(of_clip)
    }

    fn own_name(&self, name: &str) -> String {
        let plain = name.strip_prefix(PREFIX).unwrap_or(name);
        match self.naming {
            Naming::Whole => name.to_owned(),
            Naming::Plain => plain.to_owned(),
            Naming::HuggingFace => hugging_face(plain),
        }
    }

    /// The axis along which shards of the original files are joined; `None` for what each of them has whole.
    fn axis(&self, name: &str) -> Option<usize> {
        const OUTPUTS: [&str; 6] = ["wq", "wk", "wv", "w1", "w3", "output"];
        const INPUTS: [&str; 3] = ["wo", "w2", "tok_embeddings"];
        if self.naming == Naming::HuggingFace {
            return None; // its files hold whole tensors
        }
        let part = name.strip_suffix(".weight")?.rsplit('.').next()?;
        match part {
            part if OUTPUTS.contains(&part) => Some(0),
            part if INPUTS.contains(&part) => Some(1),
            _ => None,
        }
    }
}

fn hugging_face(plain: &str) -> String {
    let whole = match plain {
        "tok_embeddings.weight" => Some("model.embed_tokens.weight"),
        "norm.weight" => Some("model.norm.weight"),
        "output.weight" => Some("lm_head.weight"),
        _ => None,
    };
    if let Some(whole) = whole {
        return whole.to_owned();
    }
    const PARTS: [(&str, &str); 9] = [
        ("attention.wq.", "self_attn.q_proj."),
        ("attention.wk.", "self_attn.k_proj."),
        ("attention.wv.", "self_attn.v_proj."),
        ("attention.wo.", "self_attn.o_proj."),
        ("feed_forward.w1.", "mlp.gate_proj."),
        ("feed_forward.w2.", "mlp.down_proj."),
        ("feed_forward.w3.", "mlp.up_proj."),
        ("attention_norm.", "input_layernorm."),
        ("ffn_norm.", "post_attention_layernorm."),
    ];
    let renamed = PARTS.iter().find(|(ours, _)| plain.contains(ours));
    format!("model.{}", renamed.map_or(plain.to_owned(), |(ours, theirs)| plain.replace(ours, theirs)))
}

/// Shards of a matrix, side by side along an axis.
fn joined(shards: &[&Weights], name: &str, shape: &[usize], axis: usize) -> Result<Vec<f32>, Error> {
    let &[rows, columns] = shape else {
        return Err(Error::Config(format!("`{name}` is in shards and is no matrix")));
    };
    let mut parts = Vec::new();
    let mut length = 0;
    for shard in shards {
        let own = shard.shape(name).unwrap_or_default().to_vec();
        let fits = own.len() == 2 && own[1 - axis] == shape[1 - axis];
        if !fits {
            let (expected, received) = (shape.to_vec(), own);
            return Err(Error::TensorShape {
                path: shard.path().into(),
                name: name.into(),
                expected,
                received,
            });
        }
        length += own[axis];
        parts.push((shard.values(name, &own)?, own[1]));
    }
    if length != shape[axis] {
        let why = format!(
            "the {} shards of `{name}` have {length} along axis {axis}, not {}",
            shards.len(),
            shape[axis]
        );
        return Err(Error::Config(why));
    }
    if axis == 0 {
        return Ok(parts.into_iter().flat_map(|(values, _)| values).collect());
    }
    let mut whole = Vec::with_capacity(rows * columns);
    for row in 0..rows {
        for (values, width) in &parts {
            whole.extend_from_slice(&values[row * width..][..*width]);
        }
    }
    Ok(whole)
}

/// Rows of a projection from halves of a head that rotate together (j with j + d/2) to neighbours that do (2j with 2j + 1).
fn in_pairs(values: &[f32], heads: usize, shape: &[usize]) -> Vec<f32> {
    let width = shape[1];
    let head = shape[0] / heads;
    let mut paired = Vec::with_capacity(values.len());
    for row in 0..shape[0] {
        let (at, within) = (row / head * head, row % head);
        let from = at + within % 2 * (head / 2) + within / 2;
        paired.extend_from_slice(&values[from * width..][..width]);
    }
    paired
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::TensorView;

    fn weights(name: &str, values: &[f32]) -> Weights {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let tensor = TensorView::new(safetensors::Dtype::F32, vec![4, 2], &bytes).unwrap();
        Weights::from_memory("a.safetensors", safetensors::serialize([(name, tensor)], None).unwrap())
            .unwrap()
    }

    #[test]
    fn a_delta_is_added_whatever_it_calls_its_tensors() {
        let base: Vec<f32> = (0..8).map(|i| i as f32 / 3.0).collect();
        let of = |name, values: &[f32]| Checkpoint::new(vec![weights(name, values)], None, 1);
        let name = format!("{PREFIX}layers.0.attention.wq.weight");
        let whole = || of("layers.0.attention.wq.weight", &base);
        let expected: Vec<f32> = base.iter().map(|v| half::f16::from_f32(v + 0.1 * v).to_f32()).collect();
        let tenth: Vec<f32> = base.iter().map(|v| 0.1 * v).collect();
        let delta = of("layers.0.attention.wq.weight", &tenth);
        let sum = whole().plus(delta);
        assert_eq!(sum.values(&name, &[4, 2]).unwrap(), expected);
        assert_ne!(sum.fingerprints().unwrap(), whole().fingerprints().unwrap());
        // As Hugging Face has it: one head, its halves apart.
        let halves = [0, 2, 1, 3].map(|row| [tenth[2 * row], tenth[2 * row + 1]]).concat();
        let theirs = of("model.embed_tokens.weight", &halves);
        assert!(matches!(whole().plus(theirs).values(&name, &[4, 2]), Err(Error::MissingTensor { .. })));
        let mut theirs = of("model.layers.0.self_attn.q_proj.weight", &halves);
        theirs.naming = Naming::HuggingFace;
        assert_eq!(whole().plus(theirs).values(&name, &[4, 2]).unwrap(), expected);
    }

    #[test]
    fn halves_become_neighbours() {
        // Two heads of four rows, one column each: rows 0 1 | 2 3 of a head are halves.
        let rows: Vec<f32> = (0..8).map(|i| i as f32).collect();
        assert_eq!(in_pairs(&rows, 2, &[8, 1]), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    }

    #[test]
    fn names_of_converted_files() {
        assert_eq!(hugging_face("layers.3.attention.wo.weight"), "model.layers.3.self_attn.o_proj.weight");
        assert_eq!(
            hugging_face("layers.0.ffn_norm.weight"),
            "model.layers.0.post_attention_layernorm.weight"
        );
        assert_eq!(hugging_face("output.weight"), "lm_head.weight");
    }
}
