//! Value codecs: a version byte, then JSON.
//!
//! JSON because these records are small beside a row of 4 KiB, can be read by a person with `ldb`, and grow by
//! optional fields without a new version. Rows and blobs have formats of their own.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{CacheId, Error};
use crate::media::Orientation;
use crate::types::{CacheName, Fingerprint, Generation, ItemId, Modality, Origin};

/// First byte of every record.
const VERSION: u8 = 1;

/// How rows are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RowType {
    /// Four bytes a component.
    F32,
    /// Two bytes a component; scores keep three digits.
    F16,
}

impl RowType {
    /// Bytes of a component.
    pub fn bytes(self) -> usize {
        match self {
            RowType::F32 => 4,
            RowType::F16 => 2,
        }
    }

    /// The word used in settings and reports.
    pub fn word(self) -> &'static str {
        match self {
            RowType::F32 => "f32",
            RowType::F16 => "f16",
        }
    }
}

/// A cache.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CacheRecord {
    /// Its number.
    pub id: CacheId,
    /// Its name.
    pub name: CacheName,
    /// Components of every embedding.
    pub dim: usize,
    /// How rows are stored.
    pub rows: RowType,
    /// What made the embeddings.
    pub origin: Origin,
    /// How to load the model that made them, so that a server can embed queries; `None` for imports that state none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelSource>,
    /// The generation that is served, if the cache has been indexed.
    pub current: Option<Generation>,
    /// Items stored, indexed or not.
    pub items: u64,
    /// The id the next item gets.
    pub next_item: ItemId,
    /// Number of the last change in the log; 0 when nothing was ever upserted or deleted.
    #[serde(default)]
    pub sequence: u64,
    /// Items that builds have put in the place of others.
    #[serde(default)]
    pub replaced: u64,
    /// Items that builds have put at all. They are in no log: a generation that was made before knows nothing of them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub put: u64,
    /// Whether it was made by itself, and not by the first build into it: what it says of its embeddings then holds although
    /// it has none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub made: bool,
    /// Whether every item can be looked up by its uri. Caches of before layout 4 come to that at the first wish for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub uris: bool,
    /// Requests with an id that were answered.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub requests: u64,
    /// When it was made, milliseconds since 1970.
    pub created_ms: u64,
}

impl CacheRecord {
    /// Most components of an embedding.
    pub const MAX_DIM: usize = 1 << 16;
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Where a model comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelSource {
    /// The word of its network, as in `illama-base`; `None` is ImageBind. A word, so that a record that names a network of a later
    /// program is read all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// The checkpoint; `None` is the built-in nano model.
    pub weights: Option<PathBuf>,
    /// Sizes as JSON; `None` with a checkpoint is the published `imagebind_huge`, or what an iLLaMA's weights say.
    pub sizes: Option<PathBuf>,
    /// What is done with EXIF orientation.
    pub orientation: Orientation,
}

/// Recall by `ef_search`, ascending.
pub type RecallCurve = Vec<(usize, f64)>;

/// Recall of one way to search.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RecallPoint {
    /// Width of the beam.
    pub ef_search: usize,
    /// Candidates that are scored again on their rows, at the most.
    pub rescore: usize,
    /// How far below the tenth best the beam goes on, for a query of length 1: as far as a beam of this width reaches, in the
    /// mean of the measured queries. None where its width alone ends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin: Option<f32>,
    /// Whether all codes were scored, because that costs less than a beam as wide: what was found then, no beam finds.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub scan: bool,
    /// Recall@10 against exact.
    pub recall: f64,
    /// Recall@100, where the beam is as wide; none with a margin, which is made for the ten best.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recall_100: Option<f64>,
    /// Rows scored on codes, in the mean.
    pub scored: f64,
}

/// What was measured with queries of one kind.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// How many queries.
    pub queries: usize,
    /// Ways to search, each by width, ascending: for every depth of rescoring one without margins and one with them.
    pub ways: Vec<Vec<RecallPoint>>,
}

/// Which codes a build chose, and why.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// The codes, by their word.
    pub codes: String,
    /// Candidates that are scored again on their rows.
    pub rescore: usize,
    /// What was measured for it.
    pub tried: Vec<Tried>,
    /// Where the queries of other kinds than the rows came from.
    pub queries: QuerySource,
}

/// Where queries to try an index on came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QuerySource {
    /// A sample of real ones was given.
    Given,
    /// Rows of other modalities, moved a little.
    Rows,
    /// They were made: what is measured by them is a guess.
    #[default]
    Made,
}

/// What some codes leave within reach of some rescoring.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tried {
    /// What the queries were.
    pub kind: String,
    /// The codes, by their word.
    pub codes: String,
    /// Candidates that are scored again on their rows.
    pub rescore: usize,
    /// Share of the true ten among as many rows that are best by their codes.
    pub within: f64,
}

/// What was measured of an index.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recalls {
    /// For queries like the stored rows.
    pub rows: RecallCurve,
    /// For other kinds of queries, by their names.
    pub by_kind: BTreeMap<String, RecallCurve>,
    /// For all of them, every way that was tried, by their names. The rows are of the kind `image`, unless other queries are.
    pub measured: BTreeMap<String, Measured>,
    /// By kind, the score that the nearest item reaches in all but one of a hundred queries.
    pub nearest: BTreeMap<String, f32>,
}

/// A committed generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerationRecord {
    /// Its number.
    pub generation: Generation,
    /// Items in it.
    pub items: u64,
    /// Length of the index blob.
    pub index_bytes: u64,
    /// Length of the table of tags; a generation made before there were any has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags_bytes: Option<u64>,
    /// Length of the sample of queries; none without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queries_bytes: Option<u64>,
    /// Candidates that a search scores again on their rows unless it says otherwise; none in a generation of before it was
    /// measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rescore: Option<usize>,
    /// Which codes were chosen, if the build was to choose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choice: Option<Choice>,
    /// How the graph was built.
    pub build: serde_json::Value,
    /// Items that it was built of from nothing; the others have come since. None in a generation of before they could.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub built: Option<u64>,
    /// Recall@10 against exact for queries like the stored rows, by `ef_search`.
    pub recall: RecallCurve,
    /// The same for held-out queries of other kinds, by the kind's name (`text`, `audio`, …); empty without a sample of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub recall_by: BTreeMap<String, RecallCurve>,
    /// What [`Recalls::measured`] was; empty in a generation that was measured before that was kept.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub measured: BTreeMap<String, Measured>,
    /// What [`Recalls::nearest`] was; empty in a generation that was measured before it was.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "known_numbers")]
    pub nearest: BTreeMap<String, f32>,
    /// What [`CacheRecord::put`] was when everything stored was last read for it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub put: u64,
    /// Watermark: every change up to this one is in it. Later ones may be; replaying them again does no harm.
    #[serde(default)]
    pub sequence: u64,
    /// When it was committed, milliseconds since 1970.
    pub created_ms: u64,
}

/// The numbers of a map; JSON has `null` for one that is none, and such a one says nothing.
fn known_numbers<'de, D: serde::Deserializer<'de>>(from: D) -> Result<BTreeMap<String, f32>, D::Error> {
    let all = BTreeMap::<String, Option<f32>>::deserialize(from)?;
    Ok(all.into_iter().filter_map(|(kind, number)| Some((kind, number?))).collect())
}

impl GenerationRecord {
    /// Of a cache that has no generation: nothing is in it, and all changes come after it. It is not stored.
    pub fn none() -> Self {
        GenerationRecord::empty(Generation(0), 0, 0)
    }

    /// Of one without items. It has no blobs.
    pub fn empty(generation: Generation, sequence: u64, created_ms: u64) -> Self {
        GenerationRecord {
            generation,
            items: 0,
            index_bytes: 0,
            tags_bytes: None,
            queries_bytes: None,
            rescore: None,
            choice: None,
            build: serde_json::Value::Null,
            built: None,
            recall: RecallCurve::new(),
            recall_by: BTreeMap::new(),
            measured: BTreeMap::new(),
            nearest: BTreeMap::new(),
            put: 0,
            sequence,
            created_ms,
        }
    }

    /// Whether it is one without items.
    pub fn is_empty(&self) -> bool {
        self.items == 0 && self.index_bytes == 0
    }
}

/// An entry of the change log. It says which item, not what became of it: that lies in `items` and `vectors`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeRecord {
    /// What was done.
    pub kind: ChangeKind,
    /// To which item.
    pub item: ItemId,
}

/// What was done to an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// Put, new or in the place of what had its id.
    Upsert,
    /// Taken out.
    Delete,
}

/// What is known of an item beside its row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ItemRecord {
    /// Where it came from: a path, `shard.tar!member`, or what an import said.
    pub uri: String,
    /// What kind of input it was; imports may not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modality: Option<Modality>,
    /// Digest of its bytes (of the row for imports).
    pub digest: Fingerprint,
    /// Whatever else the user said of it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
}

/// What tells an item's record and row of one change from those of another: a reader of a store that is being written might find
/// a new record beside an old row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemStamp {
    /// The cache's last change when the item was written, itself included; nothing was kept in stores of before.
    #[serde(default, rename = "seq", skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// Of the row's bytes.
    #[serde(default, rename = "row", skip_serializing_if = "Option::is_none")]
    pub row: Option<u32>,
}

impl ItemStamp {
    pub(super) fn of(sequence: u64, row: &[u8]) -> Self {
        ItemStamp { sequence: Some(sequence), row: Some(sum(row)) }
    }

    /// Whether an item is not older than a change, and this its row, as far as the stamp tells.
    pub fn fits(self, sequence: u64, row: &[u8]) -> bool {
        self.sequence.is_none_or(|own| own >= sequence) && self.row.is_none_or(|own| own == sum(row))
    }
}

fn sum(row: &[u8]) -> u32 {
    let [a, b, c, d, ..] = *blake3::hash(row).as_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// An item's record as it is written.
#[derive(Serialize)]
pub(super) struct Stamped<'a> {
    #[serde(flatten)]
    pub(super) record: &'a ItemRecord,
    #[serde(flatten)]
    pub(super) stamp: ItemStamp,
}

impl ItemRecord {
    /// Most bytes of a uri that a caller gives.
    pub const MAX_URI_BYTES: usize = 4096;
    /// Most bytes of the tags that a caller gives an item, names and values together.
    pub const MAX_TAG_BYTES: usize = 16 << 10;

    /// Bytes of some tags, names and values together.
    pub fn tag_bytes(tags: &BTreeMap<String, String>) -> usize {
        tags.iter().map(|(name, value)| name.len() + value.len()).sum()
    }
}

/// What a request with an id was answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestRecord {
    /// Its number among those of its cache, from 1.
    pub number: u64,
    /// Digest of what it asked for.
    pub content: Fingerprint,
    /// The outcome of each of its items, in order.
    pub results: Vec<RequestResult>,
}

/// What came of an item of such a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RequestResult {
    /// Stored as this item.
    Stored(ItemId),
    /// Refused.
    Refused {
        /// Number of the status code that was told.
        code: i32,
        /// The reason, in a word.
        reason: String,
        /// The reason, in a sentence.
        message: String,
    },
}

/// What a build did with one unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LedgerRecord {
    /// The unit's name.
    pub uri: String,
    /// Its size and time when it was read: a unit whose stamp has changed is read again.
    pub stamp: Stamp,
    /// What came of it.
    pub outcome: Outcome,
    /// The item stored from this unit, now or when its file had other content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<ItemId>,
    /// Digest of what that item was stored with: an item that has other content now is somebody else's. Entries of before it was
    /// kept have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Fingerprint>,
    /// Digest of a duplicate's content: when the item that holds it changes, the unit is to be read again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Fingerprint>,
}

/// Size and modification time of a unit's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stamp {
    /// Bytes.
    pub bytes: u64,
    /// Nanoseconds since 1970.
    pub modified_ns: u64,
}

/// What came of a unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Stored as this item.
    Stored(ItemId),
    /// Its content was already stored as this item.
    Duplicate(ItemId),
    /// Refused, with the reason.
    Bad(String),
    /// Could not be read or embedded, with the reason; another time it might. Tried again by the next run.
    Failed(String),
    /// Not what caches are built from, with the reason.
    Passed(String),
    /// An archive of which everything was done: what that came to, so that it need not be opened again.
    Archive(ArchiveRecord),
    /// Stored once; its item was deleted since, or given to something else, by request. Not read again unless its file
    /// changes.
    Deleted,
}

/// What came of the members of an archive.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveRecord {
    /// Pictures stored, or stored before.
    pub stored: u64,
    /// Pictures whose content was stored already.
    pub duplicates: u64,
    /// Pictures refused.
    pub bad: u64,
    /// Pictures of a name that another one had.
    pub repeated: u64,
    /// What was passed over, by ending and reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passed: Vec<(String, String, u64)>,
    /// Texts beside pictures, by ending.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub beside: BTreeMap<String, u64>,
    /// [`CacheRecord::replaced`] and [`CacheRecord::sequence`] of then: a later one may have taken away what a duplicate
    /// relies on.
    pub as_of: (u64, u64),
}

pub(super) fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    // Writing to memory does not fail, and every record's map keys are strings.
    serde_json::to_writer(&mut bytes, record).expect("records serialise because their keys are strings");
    bytes
}

pub(super) fn decode<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, Error> {
    let damaged = |why: String| Error::Damaged { what: what.into(), why };
    match bytes.split_first() {
        Some((&VERSION, json)) => serde_json::from_slice(json).map_err(|e| damaged(e.to_string())),
        Some((version, _)) => Err(damaged(format!("record version {version}, this program reads {VERSION}"))),
        None => Err(damaged("it is empty".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_and_damage_is_named() {
        let record = LedgerRecord {
            uri: "a/ü.jpg".into(),
            stamp: Stamp { bytes: 3, modified_ns: 4 },
            outcome: Outcome::Bad("not an image".into()),
            item: Some(ItemId(7)),
            content: None,
            digest: None,
        };
        let bytes = encode(&record);
        assert_eq!(decode::<LedgerRecord>("ledger record", &bytes).unwrap(), record);
        for (bytes, why) in [(&[][..], "empty"), (&[9, 1][..], "version 9"), (&bytes[..5], "EOF")] {
            let error = decode::<LedgerRecord>("ledger record", bytes).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("ledger record"), "{error}");
        }
    }
}
