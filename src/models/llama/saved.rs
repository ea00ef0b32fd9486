//! A rounded decoder as one file that is opened by mapping it.
//!
//! A safetensors file: for every matrix in ggml's blocks `NAME.blocks` (u8), for every other `NAME.codes` (u8, first, each at a multiple of 64 bytes) and `NAME.scales` (f16) as
//! [`q8::Tiles`] lie in memory, everything else as f32 or f16 under its usual name, and the tokenizer. Its metadata has the sizes, the
//! shapes of the matrices, and the digest of the files it was made from. Low-rank matrices and scales are in their weights
//! already; the bare projections that the adapter needs are `attention.bare_wk` and `bare_wv`, where they differ.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use candle_core::{DType, Tensor};
use half::f16;
use serde_json::json;

use super::{Config, Decoder};
use crate::kernels::q8;
use crate::models::Error;
use crate::models::layers::{Blocks, LayerNorm, Linear};
use crate::models::weights::Weights;
use crate::types::{Fingerprint, WeightDtype};

/// Of the metadata: what the file is, in which form.
const KIND: &str = "viscache.decoder";
const FORM: &str = "q8_0 tiles 1";
const TOKENIZER: &str = "tokenizer.model";
/// Codes begin at a multiple of it.
const ALIGNMENT: usize = 64;

/// The name of a matrix in 8 bits: that of its weight, without the ending.
pub(super) fn matrix_name(weight: &str) -> &str {
    weight.strip_suffix(".weight").unwrap_or(weight)
}

/// What a saved decoder says of itself.
pub struct Saved {
    /// The sizes.
    pub config: Config,
    /// `[out, in]` of every matrix in 8 bits.
    pub matrices: BTreeMap<String, [usize; 2]>,
    /// `[out, in]` of every matrix in blocks of [`Saved::numbers`].
    pub blocks: BTreeMap<String, [usize; 2]>,
    /// What it was rounded to.
    pub numbers: WeightDtype,
    /// The tokenizer's file.
    pub tokenizer: Vec<u8>,
    /// Digest of the files it was made from.
    pub fingerprint: Fingerprint,
}

impl Saved {
    /// Whether a file is a saved decoder, and what it says.
    ///
    /// # Errors
    /// [`Error::Weights`] for one of another form, or that is damaged.
    pub fn of(file: &Weights) -> Result<Option<Self>, Error> {
        let Some(form) = file.metadata(KIND) else { return Ok(None) };
        let fail = |why: String| Error::Weights { path: file.path().into(), why };
        if form != FORM {
            return Err(fail(format!("it has form `{form}`; this program reads `{FORM}`")));
        }
        let said = |key: &str| file.metadata(key).ok_or_else(|| fail(format!("it says nothing of `{key}`")));
        let config: Config =
            serde_json::from_str(said("config")?).map_err(|e| fail(format!("its sizes: {e}")))?;
        let shapes = |key: &str| serde_json::from_str(key).map_err(|e| fail(format!("its matrices: {e}")));
        let matrices = shapes(said("matrices")?)?;
        // Files in 8 bits need not say so.
        let blocks = shapes(file.metadata("blocks").unwrap_or("{}"))?;
        let numbers = file.metadata("numbers").map_or(Ok(WeightDtype::Q8_0), str::parse);
        let numbers = numbers.map_err(|e: crate::types::Error| fail(e.to_string()))?;
        let fingerprint = Fingerprint::try_from(said("fingerprint")?.to_owned())?;
        let place = file.place(TOKENIZER).ok_or_else(|| fail("it has no tokenizer".into()))?;
        let memory = file.mapped()?;
        let tokenizer = (*memory).as_ref().get(place).map(<[u8]>::to_vec);
        let tokenizer = tokenizer.ok_or_else(|| fail("it is cut short".into()))?;
        Ok(Some(Saved { config: config.checked()?, matrices, blocks, numbers, tokenizer, fingerprint }))
    }
}

/// A tensor to be written.
struct Item<'a> {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    bytes: Bytes<'a>,
}

enum Bytes<'a> {
    /// Blocks where they lie.
    Blocks(Cow<'a, [u8]>),
    /// Codes or scales of a matrix of this place in the list.
    Of(usize, usize),
    Own(Vec<u8>),
}

impl Decoder {
    /// Writes a decoder in q8_0, q6_k or q4_k.
    ///
    /// # Errors
    /// [`Error::Config`] for one in other numbers; [`Error::Weights`] when the file cannot be written.
    pub fn save(&self, path: &Path, tokenizer: &[u8], fingerprint: Fingerprint) -> Result<(), Error> {
        if !self.placement.coarse() {
            let why = "only a decoder in q8_0, q6_k or q4_k can be saved; load it with one of these types";
            return Err(Error::Config(why.into()));
        }
        let parts = self.parts()?;
        let mut matrices: Vec<(String, &q8::Tiles)> = Vec::new();
        let mut blocks: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
        // Codes first, whose places are whole lines; then blocks, of any even number of bytes.
        let (mut codes, mut blocked, mut rest) = (Vec::new(), Vec::new(), Vec::new());
        for (name, part) in &parts {
            let tensor = |name: String, tensor: &Tensor, into: &mut Vec<Item<'_>>| -> Result<(), Error> {
                let (dtype, bytes) = little_endian(tensor)?;
                into.push(Item { name, dtype, shape: tensor.dims().to_vec(), bytes: Bytes::Own(bytes) });
                Ok(())
            };
            match part {
                Part::Tensor(x) => tensor(name.clone(), x, &mut rest)?,
                Part::Matrix(linear) => {
                    let own = matrix_name(name);
                    if let Some(Blocks { shape, bytes }) = linear.blocks()? {
                        let name = format!("{own}.blocks");
                        let (len, bytes) = (vec![bytes.len()], Bytes::Blocks(bytes));
                        blocked.push(Item { name, dtype: "U8", shape: len, bytes });
                        blocks.insert(own, shape);
                        continue;
                    }
                    match (linear.tiles(), linear.matrix()?) {
                        (Some(tiles), _) => {
                            let sizes = q8::Tiles::sizes(tiles.out(), tiles.width());
                            let of = |i: usize| Bytes::Of(matrices.len(), i);
                            let item = |what: &str, dtype, len, i| Item {
                                name: format!("{own}.{what}"),
                                dtype,
                                shape: vec![len],
                                bytes: of(i),
                            };
                            codes.push(item("codes", "U8", sizes[0], 0));
                            rest.push(item("scales", "F16", sizes[1] / size_of::<f16>(), 1));
                            matrices.push((own.to_owned(), tiles));
                        }
                        (None, Some(weight)) => tensor(name.clone(), &weight, &mut rest)?,
                        (None, None) => {}
                    }
                }
            }
        }
        let own = Bytes::Own(tokenizer.to_vec());
        rest.push(Item { name: TOKENIZER.into(), dtype: "U8", shape: vec![tokenizer.len()], bytes: own });
        codes.extend(blocked.into_iter().chain(rest));
        let shapes: BTreeMap<&str, [usize; 2]> =
            matrices.iter().map(|(name, tiles)| (name.as_str(), [tiles.out(), tiles.width()])).collect();
        let config =
            Config { vocab_size: Some(self.vocab_size), family: Some(self.family), ..self.config.clone() };
        let told = json!({
            KIND: FORM,
            "config": json!(config).to_string(),
            "matrices": json!(shapes).to_string(),
            "blocks": json!(blocks).to_string(),
            "numbers": self.placement.numbers.word(),
            "fingerprint": fingerprint.to_string(),
        });
        let fail =
            |e: std::io::Error| Error::Weights { path: path.display().to_string(), why: e.to_string() };
        let bytes = |item: &Item<'_>| -> Vec<u8> {
            match &item.bytes {
                Bytes::Own(bytes) => bytes.clone(),
                Bytes::Blocks(bytes) => bytes.to_vec(),
                Bytes::Of(matrix, i) => matrices[*matrix].1.bytes()[*i].to_vec(),
            }
        };
        // Beside its name first: a file that is there is whole.
        let unfinished = path.with_extension("part");
        let mut file = BufWriter::with_capacity(1 << 20, File::create(&unfinished).map_err(fail)?);
        file.write_all(&header(&codes, told, |item| match &item.bytes {
            Bytes::Own(bytes) => bytes.len(),
            Bytes::Blocks(bytes) => bytes.len(),
            Bytes::Of(matrix, i) => {
                let tiles = matrices[*matrix].1;
                q8::Tiles::sizes(tiles.out(), tiles.width())[*i]
            }
        }))
        .map_err(fail)?;
        for item in &codes {
            file.write_all(&bytes(item)).map_err(fail)?;
        }
        file.into_inner().map_err(|e| fail(e.into_error()))?.sync_all().map_err(fail)?;
        std::fs::rename(&unfinished, path).map_err(fail)
    }
}

/// A part of a decoder.
pub(super) enum Part<'a> {
    /// Without its bias.
    Matrix(&'a Linear),
    Tensor(Tensor),
}

impl<'a> Part<'a> {
    /// A linear layer by the names of its weight and its bias.
    pub(super) fn linear(weight: String, bias: String, linear: &'a Linear) -> Vec<(String, Part<'a>)> {
        let bias = linear.bias().map(|x| (bias, Part::Tensor(x.clone())));
        std::iter::once((weight, Part::Matrix(linear))).chain(bias).collect()
    }

    /// A layer norm by its name.
    pub(super) fn layer_norm(name: &str, norm: &LayerNorm) -> Vec<(String, Part<'a>)> {
        let named = ["weight", "bias"].into_iter().zip(norm.parts());
        named.map(|(part, x)| (format!("{name}.{part}"), Part::Tensor(x.clone()))).collect()
    }
}

/// Length and text of a safetensors header, filled up so that data begins at the alignment.
fn header(items: &[Item<'_>], metadata: serde_json::Value, len: impl Fn(&Item<'_>) -> usize) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), metadata);
    let mut end = 0;
    for item in items {
        let start = end;
        end += len(item);
        let entry = json!({ "dtype": item.dtype, "shape": item.shape, "data_offsets": [start, end] });
        header.insert(item.name.clone(), entry);
    }
    let mut text = serde_json::Value::Object(header).to_string().into_bytes();
    text.resize((text.len() + 8).next_multiple_of(ALIGNMENT) - 8, b' ');
    let mut whole = (text.len() as u64).to_le_bytes().to_vec();
    whole.extend(text);
    whole
}

/// A tensor's type and bytes.
fn little_endian(tensor: &Tensor) -> Result<(&'static str, Vec<u8>), Error> {
    let flat = tensor.flatten_all()?;
    Ok(match tensor.dtype() {
        DType::F16 => ("F16", flat.to_vec1::<f16>()?.iter().flat_map(|v| v.to_le_bytes()).collect()),
        _ => {
            let flat = flat.to_dtype(DType::F32)?.to_vec1::<f32>()?;
            ("F32", flat.iter().flat_map(|v| v.to_le_bytes()).collect())
        }
    })
}
