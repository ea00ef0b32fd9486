//! The words of the house as types (ARCHITECTURE.md §1).
//!
//! A constructor validates; what it returns is the proof, so nothing below checks again and accessors cannot fail.
//! Everything here is plain data: no I/O, no threads, no numerics beyond a norm.

// In full, because `fuzz/` takes this file by a path of its own.
#[path = "types/filter.rs"]
mod filter;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use filter::Filter;

/// Why a value was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// A vector without components.
    #[error("the embedding is empty; it needs at least one component")]
    EmptyEmbedding,
    /// NaN or an infinity.
    #[error("component {position} of the embedding is {value}; every component must be a finite number")]
    NotFinite {
        /// Index of the first offending component.
        position: usize,
        /// Its value.
        value: f32,
    },
    /// A vector without a direction where one is needed.
    #[error(
        "the embedding is the zero vector, which has no direction; send an embedding with a norm above 0"
    )]
    ZeroVector,
    /// A cache name that could not be a name.
    #[error("`{name}` is not a cache name: use 1 to {max} of a-z, A-Z, 0-9, `.`, `_`, `-`, beginning with a letter or digit", max = CacheName::MAX_LEN)]
    CacheName {
        /// What was given.
        name: String,
    },
    /// A word that names no numbers of a model.
    #[error("`{0}` is none of f32, bf16, q8_0 and, for decoders, f16, q6_k, q4_k")]
    WeightDtype(String),
    /// A fingerprint that is not 64 hexadecimal digits.
    #[error("`{0}` is not a fingerprint (64 hexadecimal digits)")]
    Fingerprint(String),
    /// A modality nobody knows.
    #[error("`{0}` is not a modality; there are: {known}", known = Modality::ALL.map(Modality::word).join(", "))]
    Modality(String),
    /// A word that could not be the kind of a query.
    #[error("`{word}` is not a kind of query: use 1 to {max} of a-z, 0-9, `_`, as in `text` or `audio`", max = QueryKind::MAX_LEN)]
    QueryKind {
        /// What was given.
        word: String,
    },
}

/// The stable name by which a user knows a reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ItemId(pub u64);

impl fmt::Display for ItemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An item's dense position inside one generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

impl Slot {
    /// The position as an array index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// One immutable, committed state of a cache. Generations count from 1; a cache without one has not been indexed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What kind of input an embedding was made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Modality {
    /// A still picture.
    Image,
    /// A sentence.
    Text,
    /// A film: its moving pictures, without its sound.
    Video,
    /// A sound.
    Audio,
    /// How far away every point of a picture is.
    Depth,
    /// How warm every point of a picture is.
    Thermal,
    /// Acceleration and rotation over time.
    Imu,
    /// A cloud of points in space.
    Point,
}

impl Modality {
    /// Every modality this version embeds.
    pub const ALL: [Modality; 8] = [
        Modality::Image,
        Modality::Text,
        Modality::Video,
        Modality::Audio,
        Modality::Depth,
        Modality::Thermal,
        Modality::Imu,
        Modality::Point,
    ];

    /// The word used in protos, settings, records and messages.
    pub fn word(self) -> &'static str {
        match self {
            Modality::Image => "image",
            Modality::Text => "text",
            Modality::Video => "video",
            Modality::Audio => "audio",
            Modality::Depth => "depth",
            Modality::Thermal => "thermal",
            Modality::Imu => "imu",
            Modality::Point => "point",
        }
    }
}

impl fmt::Display for Modality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl std::str::FromStr for Modality {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self, Error> {
        Modality::ALL.into_iter().find(|m| m.word() == word).ok_or_else(|| Error::Modality(word.into()))
    }
}

/// What kind of query something is asked by or measured for: a modality, or any other word that its user chose. Recall
/// differs between them at the same beam, so it is kept and promised for each.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct QueryKind(Arc<str>);

impl QueryKind {
    /// Longest accepted word, in bytes.
    pub const MAX_LEN: usize = 32;

    /// Checks a word.
    ///
    /// # Errors
    /// [`Error::QueryKind`] with the rule.
    pub fn new(word: impl AsRef<str>) -> Result<Self, Error> {
        let word = word.as_ref();
        let well_formed = (1..=Self::MAX_LEN).contains(&word.len())
            && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if well_formed { Ok(QueryKind(word.into())) } else { Err(Error::QueryKind { word: word.into() }) }
    }

    /// The word.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for QueryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for QueryKind {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self, Error> {
        QueryKind::new(word)
    }
}

impl TryFrom<String> for QueryKind {
    type Error = Error;

    fn try_from(word: String) -> Result<Self, Error> {
        QueryKind::new(word)
    }
}

impl From<QueryKind> for String {
    fn from(kind: QueryKind) -> String {
        kind.as_str().to_owned()
    }
}

impl From<Modality> for QueryKind {
    fn from(modality: Modality) -> Self {
        QueryKind(modality.word().into())
    }
}

/// `D` finite numbers, `D ≥ 1`. Not necessarily unit: the reference's mixed query is not
/// (ImageBind-LLM, `forward_visual`), and [`Embedding::unit`] is the way to one that is.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding(Vec<f32>);

impl Embedding {
    /// Takes the components if they are finite.
    ///
    /// # Errors
    /// [`Error::EmptyEmbedding`], [`Error::NotFinite`].
    pub fn new(values: Vec<f32>) -> Result<Self, Error> {
        if values.is_empty() {
            return Err(Error::EmptyEmbedding);
        }
        if all_finite(&values) {
            return Ok(Embedding(values));
        }
        let position = values.iter().position(|v| !v.is_finite()).unwrap_or_default();
        Err(Error::NotFinite { position, value: values[position] })
    }

    /// Number of components, D.
    pub fn dim(&self) -> usize {
        self.0.len()
    }

    /// The components.
    pub fn as_slice(&self) -> &[f32] {
        &self.0
    }

    /// The components, owned.
    pub fn into_vec(self) -> Vec<f32> {
        self.0
    }

    /// Euclidean norm, accumulated in f64.
    pub fn norm(&self) -> f64 {
        norm(&self.0)
    }

    /// The same direction with norm 1.
    ///
    /// # Errors
    /// [`Error::ZeroVector`] when there is no direction.
    pub fn unit(&self) -> Result<Self, Error> {
        let norm = self.norm();
        if norm == 0.0 {
            return Err(Error::ZeroVector);
        }
        Ok(Embedding(self.0.iter().map(|&v| (f64::from(v) / norm) as f32).collect()))
    }
}

/// Whether all are numbers and none is infinite. Every hit of a search is asked, so it has no branch in the loop.
pub fn all_finite(values: &[f32]) -> bool {
    let magnitude = |v: &f32| (v.to_bits() & i32::MAX as u32) as i32;
    values.iter().fold(0, |largest, v| largest.max(magnitude(v))) < f32::INFINITY.to_bits() as i32
}

/// Euclidean norm of `values`, accumulated in f64 (so that no f32 input overflows it).
pub fn norm(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt()
}

/// One neighbour of a query. The embedding travels along because the blend needs it.
#[derive(Debug, Clone, PartialEq)]
pub struct Hit {
    /// Which item.
    pub id: ItemId,
    /// Inner product with the query as given; for a unit query the cosine. Higher is closer.
    pub score: f32,
    /// The stored embedding, unit norm.
    pub embedding: Embedding,
}

/// The name of a cache inside a store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CacheName(String);

impl CacheName {
    /// Longest accepted name, in bytes.
    pub const MAX_LEN: usize = 64;
    /// Names that a message lists before the rest are only counted: there may be thousands.
    pub const SHOWN: usize = 20;

    /// Checks a name.
    ///
    /// # Errors
    /// [`Error::CacheName`] with the rule.
    pub fn new(name: impl Into<String>) -> Result<Self, Error> {
        let name = name.into();
        let well_formed = name.len() <= Self::MAX_LEN
            && name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
        if well_formed { Ok(CacheName(name)) } else { Err(Error::CacheName { name }) }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CacheName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::borrow::Borrow<str> for CacheName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for CacheName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        CacheName::new(name)
    }
}

impl TryFrom<String> for CacheName {
    type Error = Error;

    fn try_from(name: String) -> Result<Self, Error> {
        CacheName::new(name)
    }
}

impl From<CacheName> for String {
    fn from(name: CacheName) -> String {
        name.0
    }
}

/// A BLAKE3 digest that identifies bytes: of weights, of preprocessing rules, of an item's content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Fingerprint(*blake3::hash(bytes).as_bytes())
    }

    /// Wraps a finished digest.
    pub fn from_digest(digest: [u8; 32]) -> Self {
        Fingerprint(digest)
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first twelve hexadecimal digits: enough to tell two apart in a message.
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        blake3::Hash::from_hex(&text)
            .map(|h| Fingerprint(*h.as_bytes()))
            .map_err(|_| Error::Fingerprint(text))
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> String {
        fingerprint.to_string()
    }
}

/// Numbers that a model's weights are held in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightDtype {
    /// 32 bits, as published.
    F32,
    /// 16 bits, on a card.
    Bf16,
    /// 8 bits and a scale for each 32 weights, on the CPU. Of an encoder's, the codes keep to ±63.
    Q8_0,
    /// 16 bits, on the CPU; decoders only, as the following.
    F16,
    /// 4.5 bits a weight, ggml's `q4_K`, on the CPU.
    #[serde(rename = "q4_k")]
    Q4K,
    /// 6.6 bits a weight, ggml's `q6_K`, on the CPU.
    #[serde(rename = "q6_k")]
    Q6K,
}

impl WeightDtype {
    /// Its name.
    pub fn word(self) -> &'static str {
        match self {
            WeightDtype::F32 => "f32",
            WeightDtype::Bf16 => "bf16",
            WeightDtype::Q8_0 => "q8_0",
            WeightDtype::F16 => "f16",
            WeightDtype::Q4K => "q4_k",
            WeightDtype::Q6K => "q6_k",
        }
    }
}

impl std::str::FromStr for WeightDtype {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self, Error> {
        use WeightDtype::{Bf16, F16, F32, Q4K, Q6K, Q8_0};
        [F32, Bf16, Q8_0, F16, Q4K, Q6K]
            .into_iter()
            .find(|dtype| dtype.word() == word)
            .ok_or_else(|| Error::WeightDtype(word.into()))
    }
}

impl fmt::Display for WeightDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// How near the embeddings of coarser numbers come to those of f32, on some of a cache's own pictures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// Mean cosine.
    pub mean: f32,
    /// Least cosine.
    pub min: f32,
    /// Pictures compared.
    pub pictures: u32,
}

/// What made the embeddings of a cache. A query only fits a cache of the same origin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// A name for people: `nano`, `imagebind_huge`, or what an import was told.
    pub model: String,
    /// Digest of the weights and sizes; `None` for imported embeddings whose model nobody stated.
    pub weights: Option<Fingerprint>,
    /// Digest of the preprocessing rules, orientation included; `None` likewise.
    pub preprocessing: Option<Fingerprint>,
    /// Numbers of the encoder; `None` likewise. Queries fit whatever the numbers, for the weights are the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder_dtype: Option<WeightDtype>,
    /// What those numbers cost, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<Agreement>,
}

impl Origin {
    /// Of a model of which nothing but a name is known.
    pub fn of(model: impl Into<String>) -> Self {
        Origin {
            model: model.into(),
            weights: None,
            preprocessing: None,
            encoder_dtype: None,
            agreement: None,
        }
    }

    /// Says in words how two origins differ, or `None` when embeddings of the one fit the other.
    ///
    /// An unknown fingerprint fits everything: imported embeddings carry none unless the user states one.
    pub fn difference(&self, other: &Origin) -> Option<String> {
        let differ = |a: Option<Fingerprint>, b: Option<Fingerprint>| match (a, b) {
            (Some(a), Some(b)) if a != b => Some((a.short(), b.short())),
            _ => None,
        };
        if let Some((ours, theirs)) = differ(self.weights, other.weights) {
            return Some(format!(
                "model weights differ: {} `{ours}` against {} `{theirs}`",
                self.model, other.model
            ));
        }
        differ(self.preprocessing, other.preprocessing).map(|(ours, theirs)| {
            format!("preprocessing differs (same weights): `{ours}` against `{theirs}`; check the orientation setting")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embedding_refuses_what_is_not_a_vector() {
        assert_eq!(Embedding::new(vec![]), Err(Error::EmptyEmbedding));
        assert!(matches!(
            Embedding::new(vec![0.0, f32::NAN]),
            Err(Error::NotFinite { position: 1, value }) if value.is_nan()
        ));
        assert!(matches!(Embedding::new(vec![f32::INFINITY]), Err(Error::NotFinite { position: 0, .. })));
    }

    #[test]
    fn all_are_finite_up_to_the_largest() {
        let mut values = vec![0.0, -0.0, f32::MAX, f32::MIN, f32::from_bits(1), -1.0, 2.0, 3.0, 4.0];
        assert!(all_finite(&values) && all_finite(&[]));
        for wrong in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in 0..values.len() {
                let right = std::mem::replace(&mut values[at], wrong);
                assert!(!all_finite(&values), "{wrong} at {at}");
                values[at] = right;
            }
        }
    }

    #[test]
    fn unit_has_norm_one_even_where_f32_squares_overflow_or_vanish() {
        for scale in [1.0f32, 1e30, 1e-30] {
            let unit = Embedding::new(vec![3.0 * scale, 4.0 * scale]).unwrap().unit().unwrap();
            assert!((unit.norm() - 1.0).abs() < 1e-6, "{scale}: {}", unit.norm());
        }
        assert_eq!(Embedding::new(vec![0.0, 0.0]).unwrap().unit(), Err(Error::ZeroVector));
    }

    #[test]
    fn cache_names() {
        for good in ["photos", "a", "Photos-2.v_1", "7"] {
            assert!(CacheName::new(good).is_ok(), "{good}");
        }
        let long = "x".repeat(65);
        for bad in ["", "-a", ".", "a b", "a/b", "ä", long.as_str()] {
            assert!(CacheName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn origins_differ_only_where_both_are_known() {
        let known = |w: &[u8], p: &[u8]| Origin {
            model: "m".into(),
            weights: Some(Fingerprint::of(w)),
            preprocessing: Some(Fingerprint::of(p)),
            ..Origin::of("")
        };
        let unknown = Origin::of("import");
        assert_eq!(known(b"a", b"b").difference(&known(b"a", b"b")), None);
        assert_eq!(known(b"a", b"b").difference(&unknown), None);
        assert!(known(b"a", b"b").difference(&known(b"x", b"b")).unwrap().contains("weights"));
        assert!(known(b"a", b"b").difference(&known(b"a", b"x")).unwrap().contains("preprocessing"));
    }

    #[test]
    fn fingerprints_survive_text() {
        let fingerprint = Fingerprint::of(b"bytes");
        assert_eq!(Fingerprint::try_from(fingerprint.to_string()), Ok(fingerprint));
        assert!(Fingerprint::try_from("xyz".to_owned()).is_err());
    }
}
