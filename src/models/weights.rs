//! Checkpoints: safetensors and PyTorch `.pth`, one tensor at a time.
//!
//! ```text
//! open   header only: every tensor's name, type, shape and place in the file
//! take   maps that one tensor's bytes, converts them to f32, unmaps      so memory holds the model and one tensor
//! ```
//!
//! A `.pth` is a zip of a pickle and raw storages. The pickle is interpreted by candle's reader, which builds tables
//! and runs no code; the storages lie in the zip uncompressed, so they are mapped like any other bytes. A flat
//! dictionary, `{"model": {…}}` and a scripted archive (OpenAI's CLIP), whose modules' attributes make the names, are read.
//!
//! The fingerprint identifies the weights whatever the container: names, types, shapes, and of every tensor its
//! beginning, its end and evenly spaced pieces between. It reads some 20 MB of a checkpoint of 5 GB. It tells trained
//! weights apart; it is no defence against someone who forges a file to collide.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;
use std::sync::Arc;

use candle_core::pickle::{Object, Stack, TensorInfo};
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::Error;
use crate::kernels::q8::Lent;
use crate::types::Fingerprint;

/// Bytes of one fingerprint sample, and how many are taken of a large tensor.
const SAMPLE_LEN: usize = 1024;
const SAMPLES: usize = 16;
/// Most bytes of a safetensors header: that of 100 000 tensors.
const MAX_HEADER: u64 = 64 << 20;

/// An open checkpoint.
pub struct Weights {
    path: String,
    source: Source,
    entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
    /// A file whose tensors take the place of those of the same names.
    overlay: Option<Box<Weights>>,
}

enum Source {
    File(File),
    Static(&'static [u8]),
    Owned(Arc<Vec<u8>>),
}

#[derive(Debug, Clone, PartialEq)]
struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    start: u64,
    len: usize,
    /// Numbers from one to the next along every axis, where they do not lie in row-major order.
    strides: Option<Vec<usize>>,
}

impl Weights {
    /// Reads the table of contents of a checkpoint file.
    ///
    /// # Errors
    /// [`Error::Weights`] for a file that is neither format or is cut short.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let name = path.display().to_string();
        let fail = |why: String| Error::Weights { path: name.clone(), why };
        let file = File::open(path).map_err(|e| fail(e.to_string()))?;
        let total = file.metadata().map_err(|e| fail(e.to_string()))?.len();
        let mut magic = [0u8; 4];
        read_at(&file, 0, &mut magic)
            .map_err(|e| fail(format!("it is shorter than any checkpoint ({e})")))?;
        let (entries, metadata) = match &magic {
            b"PK\x03\x04" => (pth_entries(path, total).map_err(&fail)?, BTreeMap::new()),
            _ => safetensors_entries(total, |at, into| read_at(&file, at, into)).map_err(&fail)?,
        };
        Ok(Weights { path: name, source: Source::File(file), entries, metadata, overlay: None })
    }

    /// Reads safetensors bytes that are part of the program.
    ///
    /// # Errors
    /// [`Error::Weights`].
    pub fn from_static(name: &str, bytes: &'static [u8]) -> Result<Self, Error> {
        Self::from_bytes(name, bytes, Source::Static(bytes))
    }

    /// Reads safetensors bytes that were made in memory.
    ///
    /// # Errors
    /// [`Error::Weights`].
    pub fn from_memory(name: &str, bytes: Vec<u8>) -> Result<Self, Error> {
        let bytes = Arc::new(bytes);
        Self::from_bytes(name, &bytes, Source::Owned(bytes.clone()))
    }

    /// No tensors, for a model all of whose tensors are variables.
    pub(super) fn none() -> Self {
        let (entries, metadata) = Default::default();
        Weights { path: "no file".into(), source: Source::Static(&[]), entries, metadata, overlay: None }
    }

    fn from_bytes(name: &str, bytes: &[u8], source: Source) -> Result<Self, Error> {
        let read = |at: u64, into: &mut [u8]| {
            let start = usize::try_from(at).map_err(std::io::Error::other)?;
            let from = bytes.get(start..start + into.len()).ok_or(std::io::ErrorKind::UnexpectedEof)?;
            into.copy_from_slice(from);
            Ok(())
        };
        let (entries, metadata) = safetensors_entries(bytes.len() as u64, read)
            .map_err(|why| Error::Weights { path: name.into(), why })?;
        Ok(Weights { path: name.into(), source, entries, metadata, overlay: None })
    }

    /// These weights with those of another file in the place of the tensors of the same names.
    ///
    /// # Errors
    /// [`Error::SurplusTensor`] for a tensor that takes nobody's place.
    pub fn overlaid(self, overlay: Weights) -> Result<Self, Error> {
        overlay.refuse_surplus(|name| self.entries.contains_key(name))?;
        Ok(Weights { overlay: Some(Box::new(overlay)), ..self })
    }

    /// The file's name, for messages.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Shape of a tensor; `None` when the file lacks it.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        if let Some(shape) = self.overlay.as_ref().and_then(|overlay| overlay.shape(name)) {
            return Some(shape);
        }
        self.entries.get(name).map(|entry| &entry.shape[..])
    }

    /// The floats that a tensor is stored in; f32 for all that are no halves.
    pub fn floats(&self, name: &str) -> DType {
        if let Some(overlay) = self.overlay.as_ref().filter(|overlay| overlay.entries.contains_key(name)) {
            return overlay.floats(name);
        }
        match self.entries.get(name).map(|entry| entry.dtype) {
            Some(Dtype::F16) => DType::F16,
            Some(Dtype::BF16) => DType::BF16,
            _ => DType::F32,
        }
    }

    /// Loads one tensor as `dtype` on `device`.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::TensorShape`] naming both shapes, [`Error::Weights`].
    pub fn take(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor, Error> {
        let values = self.values(name, shape)?;
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?)
    }

    /// Loads one tensor as f32 numbers in row-major order.
    ///
    /// # Errors
    /// As [`Weights::take`].
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        if let Some(overlay) = self.overlay.as_ref().filter(|overlay| overlay.entries.contains_key(name)) {
            return overlay.values(name, shape);
        }
        let entry = self.entries.get(name).ok_or_else(|| Error::MissingTensor {
            path: self.path.clone(),
            name: name.into(),
            expected: shape.to_vec(),
        })?;
        if entry.shape != shape {
            return Err(Error::TensorShape {
                path: self.path.clone(),
                name: name.into(),
                expected: shape.to_vec(),
                received: entry.shape.clone(),
            });
        }
        let values = self.with_bytes(entry.start, entry.len, |bytes| to_f32(entry.dtype, bytes))?;
        let values = values.ok_or_else(|| {
            self.fail(format!("tensor `{name}` has type {:?}; f64, f32, f16 and bf16 are read", entry.dtype))
        })?;
        Ok(match &entry.strides {
            Some(strides) => gathered(&values, shape, strides),
            None => values,
        })
    }

    /// Refuses every tensor that `known` does not claim.
    ///
    /// # Errors
    /// [`Error::SurplusTensor`] naming the first.
    pub fn refuse_surplus(&self, known: impl Fn(&str) -> bool) -> Result<(), Error> {
        match self.entries.iter().find(|(name, _)| !known(name)) {
            None => Ok(()),
            Some((name, entry)) => Err(Error::SurplusTensor {
                path: self.path.clone(),
                name: name.clone(),
                received: entry.shape.clone(),
            }),
        }
    }

    /// Identifies the weights; see the module's description.
    ///
    /// # Errors
    /// [`Error::Weights`] when the file cannot be read.
    pub fn fingerprint(&self) -> Result<Fingerprint, Error> {
        let mut hasher = blake3::Hasher::new();
        if let Some(overlay) = &self.overlay {
            hasher.update(overlay.fingerprint()?.as_bytes());
        }
        for (name, entry) in &self.entries {
            hasher.update(format!("{name} {:?} {:?}\n", entry.dtype, entry.shape).as_bytes());
            let step = (entry.len.saturating_sub(SAMPLE_LEN)) / (SAMPLES - 1);
            if step < SAMPLE_LEN {
                self.with_bytes(entry.start, entry.len, |bytes| hasher.update(bytes).count())?;
                continue;
            }
            for sample in 0..SAMPLES {
                let at = entry.start + (sample * step) as u64;
                self.with_bytes(at, SAMPLE_LEN, |bytes| hasher.update(bytes).count())?;
            }
        }
        Ok(Fingerprint::from_digest(*hasher.finalize().as_bytes()))
    }

    fn with_bytes<T>(&self, start: u64, len: usize, read: impl FnOnce(&[u8]) -> T) -> Result<T, Error> {
        match &self.source {
            Source::Static(bytes) => Ok(read(&bytes[start as usize..][..len])),
            Source::Owned(bytes) => Ok(read(&bytes[start as usize..][..len])),
            Source::File(_) if len == 0 => Ok(read(&[])),
            Source::File(file) => Ok(read(&self.map(file, start, len)?)),
        }
    }

    fn map(&self, file: &File, start: u64, len: usize) -> Result<memmap2::Mmap, Error> {
        let mut options = memmap2::MmapOptions::new();
        let options = options.offset(start).len(len);
        // SAFETY: the map is read-only. Whoever truncates a checkpoint while it is mapped ends the process, as with every
        // program that maps files; nothing is written through it.
        unsafe { options.map(file) }.map_err(|e| self.fail(e.to_string()))
    }

    /// The whole file, mapped, for models that work on it where it lies.
    ///
    /// # Errors
    /// [`Error::Weights`].
    pub fn mapped(&self) -> Result<Lent, Error> {
        match &self.source {
            Source::Static(bytes) => Ok(Arc::new(*bytes)),
            Source::Owned(bytes) => Ok(bytes.clone()),
            Source::File(file) => {
                let len = file.metadata().map_err(|e| self.fail(e.to_string()))?.len();
                Ok(Arc::new(self.map(file, 0, len as usize)?))
            }
        }
    }

    /// Where a tensor's bytes lie in the file, row by row.
    pub fn place(&self, name: &str) -> Option<std::ops::Range<usize>> {
        let entry = self.entries.get(name).filter(|entry| entry.strides.is_none());
        entry.map(|entry| entry.start as usize..entry.start as usize + entry.len)
    }

    /// What a safetensors file says of itself.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    fn fail(&self, why: String) -> Error {
        Error::Weights { path: self.path.clone(), why }
    }
}

/// Numbers in row-major order, of a tensor that lies otherwise.
///
/// * `values`: from its first number to its last, as they lie.
fn gathered(values: &[f32], shape: &[usize], strides: &[usize]) -> Vec<f32> {
    let mut places = vec![0];
    for (&side, &stride) in shape.iter().zip(strides) {
        places = places.iter().flat_map(|place| (0..side).map(move |i| place + i * stride)).collect();
    }
    places.into_iter().map(|place| values[place]).collect()
}

fn to_f32(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let values = match dtype {
        Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Dtype::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Dtype::BF16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Dtype::F64 => bytes
            .chunks_exact(8)
            .map(|b| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32)
            .collect(),
        _ => return None,
    };
    Some(values)
}

fn read_at(file: &File, at: u64, into: &mut [u8]) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, into, at)
}

/// Tensors of a file, and what it says of itself.
type Contents = (BTreeMap<String, Entry>, BTreeMap<String, String>);

fn safetensors_entries(
    total: u64,
    read: impl Fn(u64, &mut [u8]) -> std::io::Result<()>,
) -> Result<Contents, String> {
    let not_one =
        |e: &dyn std::fmt::Display| format!("it is neither safetensors nor a zip-format .pth ({e})");
    let mut length = [0u8; 8];
    read(0, &mut length).map_err(|e| not_one(&e))?;
    let header_len = u64::from_le_bytes(length);
    if header_len > MAX_HEADER || header_len + 8 > total {
        return Err(not_one(&"its first bytes are no header length"));
    }
    let mut header = vec![0u8; header_len as usize];
    read(8, &mut header).map_err(|e| not_one(&e))?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|e| not_one(&e))?;
    let data = 8 + header_len;
    let said =
        metadata.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect();
    let entries = metadata
        .tensors()
        .into_iter()
        .map(|(name, info)| {
            let (from, to) = info.data_offsets;
            let (start, end) = (data + from as u64, data + to as u64);
            if from > to || end > total {
                return Err(format!("tensor `{name}` lies beyond the end of the file; is it cut short?"));
            }
            Ok((
                name,
                Entry { dtype: info.dtype, shape: info.shape.clone(), start, len: to - from, strides: None },
            ))
        })
        .collect::<Result<_, String>>()?;
    Ok((entries, said))
}

fn pth_entries(path: &Path, total: u64) -> Result<BTreeMap<String, Entry>, String> {
    let file = File::open(path).map_err(|e| e.to_string())?;
    let mut zip = zip::ZipArchive::new(std::io::BufReader::new(file)).map_err(|e| e.to_string())?;
    tensors_of(&mut zip)?
        .into_iter()
        .map(|info| {
            let name = info.name;
            let stored = zip.by_name(&info.path).map_err(|e| format!("tensor `{name}`: {e}"))?;
            if stored.compression() != zip::CompressionMethod::Stored {
                return Err(format!("tensor `{name}` is compressed; save it again with torch.save"));
            }
            let dtype = safetensors_type(info.dtype)
                .ok_or_else(|| format!("tensor `{name}` has type {:?}", info.dtype))?;
            let beyond =
                || format!("tensor `{name}` lies beyond the end of its storage; is the file cut short?");
            // From the first number to the last; the reader gives offsets in bytes.
            let span = span(info.layout.dims(), info.layout.stride());
            let len =
                span.and_then(|span| span.checked_mul(info.dtype.size_in_bytes())).ok_or_else(beyond)?;
            let offset = info.layout.start_offset();
            let data =
                stored.data_start().ok_or_else(|| format!("tensor `{name}` has no data in the file"))?;
            let start = data + offset as u64;
            if offset.checked_add(len).is_none_or(|end| end as u64 > stored.size())
                || start + len as u64 > total
            {
                return Err(beyond());
            }
            let strides = (!info.layout.is_contiguous()).then(|| info.layout.stride().to_vec());
            Ok((name.clone(), Entry { dtype, shape: info.layout.dims().to_vec(), start, len, strides }))
        })
        .collect()
}

/// Numbers from the first of a tensor to its last; nothing where they cannot be counted.
fn span(shape: &[usize], strides: &[usize]) -> Option<usize> {
    if shape.contains(&0) {
        return Some(0);
    }
    shape
        .iter()
        .zip(strides)
        .try_fold(1usize, |span, (side, stride)| span.checked_add((side - 1).checked_mul(*stride)?))
}

/// Modules of a scripted archive inside one another, at most.
const MAX_DEPTH: usize = 16;

/// The tensors that the pickle of a `.pth` names.
fn tensors_of(zip: &mut zip::ZipArchive<impl Read + Seek>) -> Result<Vec<TensorInfo>, String> {
    let names: Vec<String> = zip
        .file_names()
        .map(|name| name.map(|name| name.into_owned()))
        .collect::<Result<_, _>>()
        .map_err(said)?;
    let pickle = names
        .into_iter()
        .find(|name| name == "data.pkl" || name.ends_with("/data.pkl"))
        .ok_or("it is a zip file without a `data.pkl`, so no .pth")?;
    let mut stack = Stack::empty();
    stack.read_loop(&mut BufReader::new(zip.by_name(&pickle).map_err(said)?)).map_err(said)?;
    let folder = Path::new(pickle.trim_end_matches(".pkl"));
    let object = stack.finalize().map_err(said)?;
    let mut found = Vec::new();
    gather(&object, "", folder, 0, &mut found);
    if found.is_empty()
        && let Object::Dict(entries) = &object
        && let Some((_, model)) = entries.iter().find(|(key, _)| *key == Object::Unicode("model".into()))
    {
        gather(model, "", folder, 0, &mut found);
    }
    if found.is_empty() {
        return Err("it holds neither tensors nor a `model` dictionary of tensors".into());
    }
    Ok(found)
}

/// The tensors of a dictionary, or of a scripted module and the modules in it, whose attributes make their names.
fn gather(object: &Object, prefix: &str, folder: &Path, depth: usize, into: &mut Vec<TensorInfo>) {
    let (entries, module) = match object {
        Object::Dict(entries) => (entries, false),
        Object::Build { args, .. } => match &**args {
            Object::Dict(entries) => (entries, true),
            _ => return,
        },
        _ => return,
    };
    for (key, value) in entries {
        let Object::Unicode(key) = key else { continue };
        let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            Object::Build { .. } if module && depth < MAX_DEPTH => {
                gather(value, &name, folder, depth + 1, into);
            }
            Object::Reduce { .. } => {
                // Of a type that nothing here reads: missing, if it is asked for.
                into.extend(value.clone().into_tensor_info(Object::Unicode(name), folder).ok().flatten());
            }
            _ => {}
        }
    }
}

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn safetensors_type(dtype: DType) -> Option<Dtype> {
    Some(match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::I64 => Dtype::I64,
        DType::I32 => Dtype::I32,
        DType::U32 => Dtype::U32,
        DType::U8 => Dtype::U8,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn two_tensors() -> Vec<u8> {
        let view = |dtype, shape: Vec<usize>, data| {
            safetensors::tensor::TensorView::new(dtype, shape, data).unwrap()
        };
        let (a, b) = ([1.0f32, 2.0], [f16::from_f32(0.5)]);
        let tensors = [
            ("a", view(Dtype::F32, vec![2], bytemuck::cast_slice(&a))),
            ("b", view(Dtype::F16, vec![1, 1], bytemuck::cast_slice(&b))),
        ];
        safetensors::serialize(tensors, None).unwrap()
    }

    /// What `torch.save` writes of a transposed matrix, a part of one, and one number repeated: one storage of six, and three views.
    #[test]
    fn tensors_that_do_not_lie_row_by_row_are_gathered() {
        let mut p = vec![0x80, 2, b'}', b'('];
        let text = |p: &mut Vec<u8>, text: &str| {
            p.push(b'X');
            p.extend((text.len() as u32).to_le_bytes());
            p.extend(text.as_bytes());
        };
        let int = |p: &mut Vec<u8>, value: i32| {
            p.push(b'J');
            p.extend(value.to_le_bytes());
        };
        let views = [("turned", 0, [3, 2], [1, 3]), ("part", 1, [2, 2], [3, 1]), ("same", 5, [2, 3], [0, 0])];
        for (name, offset, shape, strides) in views {
            text(&mut p, name);
            p.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
            text(&mut p, "storage");
            p.extend(b"ctorch\nFloatStorage\n");
            text(&mut p, "0");
            text(&mut p, "cpu");
            int(&mut p, 6);
            p.extend(b"tQ");
            int(&mut p, offset);
            p.push(b'(');
            shape.iter().for_each(|&side| int(&mut p, side));
            p.extend(b"t(");
            strides.iter().for_each(|&stride| int(&mut p, stride));
            p.extend(b"t\x89ccollections\nOrderedDict\n)RtR");
        }
        p.extend(b"u.");
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut zip = zip::ZipWriter::new(File::create(file.path()).unwrap());
        let stored =
            zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        zip.start_file("archive/data.pkl", stored).unwrap();
        zip.write_all(&p).unwrap();
        zip.start_file("archive/data/0", stored).unwrap();
        zip.write_all(bytemuck::cast_slice(&[0.0f32, 1.0, 2.0, 3.0, 4.0, 5.0])).unwrap();
        zip.finish().unwrap();
        let weights = Weights::open(file.path()).unwrap();
        assert_eq!(weights.values("turned", &[3, 2]).unwrap(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(weights.values("part", &[2, 2]).unwrap(), [1.0, 2.0, 4.0, 5.0]);
        assert_eq!(weights.values("same", &[2, 3]).unwrap(), [5.0; 6]);
        assert_eq!((weights.place("turned"), span(&[2, usize::MAX], &[1, 2])), (None, None));
    }

    #[test]
    fn tensors_come_out_as_f32_and_errors_name_both_shapes() {
        let file = file(&two_tensors());
        let weights = Weights::open(file.path()).unwrap();
        assert_eq!(weights.values("a", &[2]).unwrap(), [1.0, 2.0]);
        assert_eq!(weights.values("b", &[1, 1]).unwrap(), [0.5]);
        let shape = weights.values("a", &[3]).unwrap_err().to_string();
        assert!(shape.contains("`a`") && shape.contains("[2]") && shape.contains("[3]"), "{shape}");
        let missing = weights.values("c", &[4]).unwrap_err().to_string();
        assert!(missing.contains("`c`") && missing.contains("[4]"), "{missing}");
        let surplus = weights.refuse_surplus(|name| name == "a").unwrap_err().to_string();
        assert!(surplus.contains("`b`") && surplus.contains("[1, 1]"), "{surplus}");
    }

    #[test]
    fn a_changed_weight_changes_the_fingerprint() {
        let bytes = two_tensors();
        let mut other = bytes.clone();
        *other.last_mut().unwrap() ^= 1;
        let print = |bytes: &[u8]| Weights::open(file(bytes).path()).unwrap().fingerprint().unwrap();
        assert_eq!(print(&bytes), print(&bytes));
        assert_ne!(print(&bytes), print(&other));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn arbitrary_and_cut_files_are_errors(
            noise in prop::collection::vec(any::<u8>(), 0..200), cut in 0usize..60, zip in any::<bool>()
        ) {
            let noise = if zip { [b"PK\x03\x04", &noise[..]].concat() } else { noise };
            prop_assert!(Weights::open(file(&noise).path()).is_err());
            let bytes = two_tensors();
            let keep = bytes.len().saturating_sub(1 + cut);
            prop_assert!(Weights::open(file(&bytes[..keep]).path()).is_err());
        }
    }
}
