//! The tensors of an adapter: those of its file, and in training first values of what that lacks.
//!
//! Names are those of the adapter's own program. Old files say `llma.…`; V2's chat program leaves `llama.` out.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::models::Error;
use crate::models::learning::Values;
use crate::models::weights::Weights;
use crate::types::Fingerprint;

pub(super) const PREFIX: &str = "llama.";
pub(super) const CLIP_PREFIX: &str = "clip.";
const OLD_PREFIX: &str = "llma.";
/// In the folder of a run, an adapter with the parts that did not learn.
pub const WHOLE_ADAPTER: &str = "adapter.safetensors";

/// The file of an adapter: of a folder that training wrote, the whole adapter, or what learned where that is all of it.
pub fn adapter_file(path: &Path) -> PathBuf {
    if !path.is_dir() {
        return path.to_owned();
    }
    let whole = path.join(WHOLE_ADAPTER);
    if whole.is_file() { whole } else { path.join("weights.safetensors") }
}

/// An adapter's tensors, in the files that have them.
#[derive(Default)]
pub struct AdapterFiles {
    /// First values of what the file lacks, under whole names.
    begun: Option<Weights>,
    file: Option<Weights>,
}

impl AdapterFiles {
    pub(super) fn new(file: Option<Weights>) -> Self {
        AdapterFiles { begun: None, file }
    }

    pub(super) fn beginning_with(self, begun: Weights) -> Self {
        AdapterFiles { begun: Some(begun), ..self }
    }

    /// The file.
    pub(super) fn file(&self) -> Option<&Weights> {
        self.file.as_ref()
    }

    /// Names of everything there is, an encoder's and a backbone's tensors too.
    pub(super) fn all_names(&self) -> impl Iterator<Item = String> {
        self.begun.iter().chain(&self.file).flat_map(Weights::names).map(named)
    }

    /// Names of the file's tensors that are an adapter's: not the encoders and the backbone's matrices that a checkpoint of training has
    /// beside it.
    pub(super) fn names(&self) -> BTreeSet<String> {
        let kept = |name: &String| match name.strip_prefix(PREFIX) {
            Some(plain) => ["bias", "gate", "lora", "norm", "scale"].iter().any(|part| plain.contains(part)),
            None => !["image_bind.", CLIP_PREFIX, "prefix_projector_norm."]
                .iter()
                .any(|part| name.starts_with(part)),
        };
        self.file.iter().flat_map(Weights::names).map(named).filter(kept).collect()
    }

    /// Whether there is an adapter's tensor that is not among some names.
    pub fn has_beside(&self, others: impl Fn(&str) -> bool) -> bool {
        let own = self.names();
        let begun = self.begun.iter().flat_map(Weights::names);
        own.iter().map(String::as_str).chain(begun).any(|name| !others(name))
    }

    /// Those of an adapter's tensors that are wanted, the first values too.
    ///
    /// # Errors
    /// [`Error::Weights`].
    pub fn values(&self, wanted: impl Fn(&str) -> bool) -> Result<Values, Error> {
        let begun = self.begun.iter().flat_map(Weights::names).map(str::to_owned);
        let mut values = Values::new();
        for name in self.names().into_iter().chain(begun).filter(|name| wanted(name)) {
            if let Some((file, own)) = self.find(&name) {
                let shape = file.shape(&own).unwrap_or_default().to_vec();
                let numbers = file.values(&own, &shape)?;
                values.insert(name, (shape, numbers));
            }
        }
        Ok(values)
    }

    /// The file that has a tensor, and how it is spelled there.
    pub(super) fn find(&self, name: &str) -> Option<(&Weights, String)> {
        let plain = name.strip_prefix(PREFIX);
        let spellings = [
            (&self.begun, Some(name.to_owned())),
            (&self.file, Some(name.to_owned())),
            (&self.file, plain.map(|plain| format!("{OLD_PREFIX}{plain}"))),
            (&self.file, plain.map(str::to_owned)),
        ];
        spellings.into_iter().find_map(|(file, name)| {
            let (file, name) = (file.as_ref()?, name?);
            file.shape(&name).is_some().then_some((file, name))
        })
    }

    /// Refuses a file with tensors that no part of the model has asked for.
    ///
    /// # Errors
    /// [`Error::SurplusTensor`].
    pub(super) fn refuse_surplus(&self, claimed: &BTreeSet<String>) -> Result<(), Error> {
        let known = |name: &str| {
            let plain = name.strip_prefix(OLD_PREFIX).unwrap_or(name);
            claimed.contains(name)
                || claimed.contains(&format!("{PREFIX}{plain}"))
                // Encoders of a training checkpoint, and parts of old files that nothing uses.
                || name.starts_with("image_bind.")
                || name.starts_with(CLIP_PREFIX)
                || name.starts_with("prefix_projector_norm.")
                || name.ends_with("rope.freqs")
        };
        self.file.as_ref().map_or(Ok(()), |file| file.refuse_surplus(known))
    }

    /// Identifies the file.
    ///
    /// # Errors
    /// [`Error::Weights`].
    pub(super) fn fingerprint(&self) -> Result<Option<Fingerprint>, Error> {
        self.file.as_ref().map(Weights::fingerprint).transpose()
    }
}

/// A name as the adapter's program spells it.
pub(super) fn named(name: &str) -> String {
    match name.strip_prefix(OLD_PREFIX) {
        Some(plain) => format!("{PREFIX}{plain}"),
        // The backbone's own files, and the chat program's, leave the prefix out.
        None if ["layers.", "norm.", "output.", "tok_embeddings."]
            .iter()
            .any(|part| name.starts_with(part)) =>
        {
            format!("{PREFIX}{name}")
        }
        None => name.to_owned(),
    }
}
