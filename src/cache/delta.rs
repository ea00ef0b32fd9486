//! What was upserted and deleted since the generation was made.
//!
//! ```text
//! blocks   [ids, tags, rows, codes] [ids, …] …        upserted rows, scanned exactly
//! dead     positions in the blocks  ┐ replaced or deleted since: passed over
//! masked   slots of the generation  ┘
//! ```
//!
//! A [`Delta`] is immutable and cheap to copy: blocks and masks are shared, so a write makes the next one without
//! touching what readers hold. Small blocks are merged as they come (never above [`BLOCK_ROWS`]), so a row is copied a
//! few times at most. An [`Overlay`] is the writer's side: the newest delta, and where each item lies in it.
//!
//! **The scan is exact**, and reads a quarter of the bytes: every row has an 8-bit code and the length of what the code
//! leaves out. That bounds its score from both sides (Cauchy–Schwarz); only rows whose upper bound reaches the k-th
//! best lower bound are scored on f32.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::Error;
use super::mask::Mask;
use super::rows::check_row;
use crate::index::Index;
use crate::index::exact::{Scored, TopK};
use crate::kernels::Kernels;
use crate::store::{CacheRecord, ChangeKind, Store};
use crate::types::{Filter, ItemId, Slot, norm};

/// Most rows of a block that was made by merging.
const BLOCK_ROWS: usize = 1024;
/// Rows below which codes do not pay.
const SCAN_BELOW: usize = 32;
/// Longest row whose code product fits the kernels' integers.
const MAX_CODED_DIM: usize = 1 << 15;
/// Lengths of queries whose bounds neither overflow nor vanish in f32.
const CODED_LENGTHS: std::ops::Range<f32> = 1e-12..1e12;
/// What f32 sums may be off, for vectors of length 1.
const ROUNDING: f32 = 1e-4;
/// Dead rows that are borne before the live ones are moved together.
const DEAD_BORNE: usize = 1024;
/// Changes replayed at a time.
const REPLAY_CHUNK: usize = 1024;

/// Rows that a filter keeps of which so many are worth scanning all: one costs in full what four cost on codes.
const SCAN_SHARE: usize = 4;
/// Bytes that a tag takes beside its texts.
const TAG_OVERHEAD: usize = 64;

/// The change of one item: its new row and tags, or nothing for a deletion.
pub(super) type Change = (ItemId, Option<(Vec<f32>, Tags)>);

/// Tags of an item; most have none.
#[derive(Clone, Default)]
pub(super) struct Tags(Option<Arc<BTreeMap<String, String>>>);

impl Tags {
    pub(super) fn new(tags: BTreeMap<String, String>) -> Self {
        Tags((!tags.is_empty()).then(|| Arc::new(tags)))
    }

    fn get(&self) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        self.0.as_deref().unwrap_or(&NONE)
    }

    fn bytes(&self) -> u64 {
        bytes_of_tags(self.get())
    }
}

/// Bytes that tags take in a delta.
pub(super) fn bytes_of_tags(tags: &BTreeMap<String, String>) -> u64 {
    tags.iter().map(|(name, value)| (name.len() + value.len() + TAG_OVERHEAD) as u64).sum()
}

/// Changes since a generation, as of one moment.
#[derive(Clone)]
pub(super) struct Delta {
    dim: usize,
    blocks: Vec<Arc<Block>>,
    /// Rows in the blocks.
    rows: u32,
    /// Bytes of their tags.
    tag_bytes: u64,
    dead: Mask,
    masked: Mask,
    sequence: u64,
}

/// Rows that came one after another.
struct Block {
    /// Position of the first.
    start: u32,
    ids: Vec<ItemId>,
    tags: Vec<Tags>,
    /// Row-major `[n, dim]`.
    rows: Vec<f32>,
    /// 128 + the row in steps of its scale, likewise.
    codes: Vec<u8>,
    coded: Vec<Coded>,
}

/// How a row's code stands for it.
#[derive(Clone, Copy)]
struct Coded {
    /// What one step is worth.
    scale: f32,
    /// Length of what the code leaves out.
    error: f32,
    /// Length of what the code says.
    length: f32,
}

impl Delta {
    fn new(dim: usize, sequence: u64) -> Self {
        let (dead, masked) = (Mask::default(), Mask::default());
        Delta { dim, blocks: Vec::new(), rows: 0, tag_bytes: 0, dead, masked, sequence }
    }

    /// Rows that are scanned, dead ones included.
    pub(super) fn rows(&self) -> usize {
        self.rows as usize
    }

    /// Items in it.
    pub(super) fn live(&self) -> usize {
        self.rows() - self.dead.len()
    }

    /// Slots of the generation that were replaced or deleted.
    pub(super) fn masked(&self) -> &Mask {
        &self.masked
    }

    /// Number of the last change in it.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Bytes it takes.
    pub(super) fn bytes(&self) -> u64 {
        (self.rows() * bytes_per_row(self.dim)) as u64 + self.tag_bytes
    }

    /// The item and row at a position.
    pub(super) fn row(&self, position: Slot) -> (ItemId, &[f32]) {
        let block = self.blocks.partition_point(|block| block.start <= position.0) - 1;
        let (block, dim) = (&self.blocks[block], self.dim);
        let at = (position.0 - block.start) as usize;
        (block.ids[at], &block.rows[at * dim..][..dim])
    }

    /// The `k` best live rows, best first, by position; exactly those that scoring every row would give.
    pub(super) fn search(&self, query: &[f32], k: usize) -> Vec<Scored> {
        let mut best = TopK::new(k);
        let query_code = CodedQuery::of(query);
        let few = self.live() <= SCAN_BELOW.max(k);
        if few || self.dim > MAX_CODED_DIM || !CODED_LENGTHS.contains(&query_code.length) {
            self.each_live(|block, at, slot| best.push(Scored { slot, score: block.score(at, query) }));
            return best.into_sorted();
        }
        let mut lowest = TopK::new(k);
        let mut bounds = Vec::with_capacity(self.rows());
        let longest = self.blocks.iter().map(|block| block.ids.len() as u32).max().unwrap_or(0);
        let (all, mut products): (Vec<u32>, _) = ((0..longest).collect(), Vec::new());
        for block in &self.blocks {
            let rows = &all[..block.ids.len()];
            Kernels::get().score_codes(&block.codes, rows, &query_code.steps, &mut products);
            for (&product, (row, position)) in products.iter().zip(block.coded.iter().zip(block.start..)) {
                if self.dead.is_empty() || !self.dead.contains(position) {
                    let (estimate, bound) = query_code.score(product, *row);
                    bounds.push((Slot(position), estimate + bound));
                    lowest.push(Scored { slot: Slot(position), score: estimate - bound });
                }
            }
        }
        let needed = lowest.into_sorted().last().map_or(f32::NEG_INFINITY, |worst| worst.score);
        for (slot, _) in bounds.into_iter().filter(|&(_, upper)| upper >= needed) {
            best.push(Scored { slot, score: Kernels::get().dot(query, self.row(slot).1) });
        }
        best.into_sorted()
    }

    /// The live rows that a filter keeps.
    pub(super) fn kept_by(&self, filter: &Filter) -> Kept {
        let (mut positions, mut rest) = (Vec::new(), self.dead.clone());
        self.each_live(|block, at, slot| match filter.matches(block.ids[at], block.tags[at].get()) {
            true => positions.push(slot),
            false => rest.insert(slot.0),
        });
        let many = SCAN_SHARE * positions.len() >= self.rows();
        let rest = many.then(|| Delta { dead: rest, ..self.clone() });
        Kept { positions, rest }
    }

    /// As [`Delta::search`], among the rows that a filter keeps of this very delta. Says how many it scored, too.
    pub(super) fn search_kept(&self, query: &[f32], k: usize, kept: &Kept) -> (Vec<Scored>, usize) {
        if let Some(rest) = &kept.rest {
            return (rest.search(query, k), self.rows());
        }
        let mut best = TopK::new(k);
        for &slot in &kept.positions {
            best.push(Scored { slot, score: Kernels::get().dot(query, self.row(slot).1) });
        }
        (best.into_sorted(), kept.positions.len())
    }

    fn each_live<'a>(&'a self, mut visit: impl FnMut(&'a Block, usize, Slot)) {
        for block in &self.blocks {
            for at in 0..block.ids.len() {
                let position = block.start + at as u32;
                if self.dead.is_empty() || !self.dead.contains(position) {
                    visit(block, at, Slot(position));
                }
            }
        }
    }

    fn push(&mut self, block: Block) {
        let mut block = block;
        self.tag_bytes += block.tags.iter().map(Tags::bytes).sum::<u64>();
        while let Some(last) = self.blocks.last()
            && last.ids.len() <= block.ids.len()
            && last.ids.len() + block.ids.len() <= BLOCK_ROWS
        {
            block = last.followed_by(&block);
            self.blocks.pop();
        }
        self.rows = block.start + block.ids.len() as u32;
        self.blocks.push(Arc::new(block));
    }
}

/// What a filter keeps of a delta.
pub(super) struct Kept {
    positions: Vec<Slot>,
    /// The delta with all others dead, where it is worth scanning.
    rest: Option<Delta>,
}

impl Kept {
    /// Rows kept.
    pub(super) fn len(&self) -> usize {
        self.positions.len()
    }
}

/// Bytes a row takes in a delta, the texts of its tags aside.
fn bytes_per_row(dim: usize) -> usize {
    dim * 5 + size_of::<ItemId>() + size_of::<Tags>() + size_of::<Coded>()
}

impl Block {
    fn new(start: u32, ids: Vec<ItemId>, tags: Vec<Tags>, rows: Vec<f32>, dim: usize) -> Self {
        let (mut codes, mut coded) = (Vec::with_capacity(rows.len()), Vec::with_capacity(ids.len()));
        let mut steps = vec![0i8; dim];
        for row in rows.chunks_exact(dim) {
            coded.push(code(row, &mut steps));
            codes.extend(steps.iter().map(|&step| (i16::from(step) + 128) as u8));
        }
        Block { start, ids, tags, rows, codes, coded }
    }

    fn followed_by(&self, next: &Block) -> Block {
        Block {
            start: self.start,
            ids: [&self.ids[..], &next.ids].concat(),
            tags: [&self.tags[..], &next.tags].concat(),
            rows: [&self.rows[..], &next.rows].concat(),
            codes: [&self.codes[..], &next.codes].concat(),
            coded: [&self.coded[..], &next.coded].concat(),
        }
    }

    fn score(&self, at: usize, query: &[f32]) -> f32 {
        Kernels::get().dot(query, &self.rows[at * query.len()..][..query.len()])
    }
}

/// Writes a vector in steps of its largest component's 127th part.
fn code(values: &[f32], steps: &mut [i8]) -> Coded {
    // The kernel gives steps per unit. A vector too small for that gets no code: all of it is left out.
    let per_unit = Kernels::get().scale_query(values, steps);
    let scale = if per_unit > 0.0 && per_unit.is_finite() { per_unit.recip() } else { 0.0 };
    let (mut error, mut length) = (0f64, 0f64);
    for (&value, &step) in values.iter().zip(&*steps) {
        let said = f64::from(scale) * f64::from(step);
        error += (f64::from(value) - said).powi(2);
        length += said * said;
    }
    Coded { scale, error: error.sqrt() as f32, length: length.sqrt() as f32 }
}

struct CodedQuery {
    steps: Vec<i8>,
    sum: i64,
    coded: Coded,
    length: f32,
}

impl CodedQuery {
    fn of(query: &[f32]) -> Self {
        let mut steps = vec![0i8; query.len()];
        let coded = code(query, &mut steps);
        let sum = steps.iter().map(|&step| i64::from(step)).sum();
        CodedQuery { steps, sum, coded, length: norm(query) as f32 }
    }

    /// An estimate of a row's score, from the product of the codes, and how far it may be off.
    fn score(&self, product: i32, row: Coded) -> (f32, f32) {
        let estimate = self.coded.scale * row.scale * (i64::from(product) - 128 * self.sum) as f32;
        let bound = self.length * row.error + self.coded.error * row.length;
        (estimate, bound + ROUNDING * self.length * (row.length + row.error))
    }
}

/// The writer's side of a delta.
pub(super) struct Overlay {
    delta: Delta,
    /// Where the live rows are.
    at: HashMap<ItemId, u32>,
}

impl Overlay {
    /// No changes since a watermark.
    pub(super) fn new(dim: usize, sequence: u64) -> Self {
        Overlay { delta: Delta::new(dim, sequence), at: HashMap::new() }
    }

    /// The newest delta.
    pub(super) fn delta(&self) -> &Delta {
        &self.delta
    }

    /// Takes in changes, in order; `sequence` is the number of the last.
    pub(super) fn apply(&mut self, index: &Index, changes: Vec<Change>, sequence: u64) {
        let (mut ids, mut tags, mut rows, start) = (Vec::new(), Vec::new(), Vec::new(), self.delta.rows);
        for (id, put) in changes {
            if let Some(position) = self.at.remove(&id) {
                self.delta.dead.insert(position);
            }
            if let Some(slot) = index.slot(id) {
                self.delta.masked.insert(slot.0);
            }
            if let Some((row, said)) = put {
                self.at.insert(id, start + ids.len() as u32);
                ids.push(id);
                tags.push(said);
                rows.extend_from_slice(&row);
            }
        }
        if !ids.is_empty() {
            self.delta.push(Block::new(start, ids, tags, rows, self.delta.dim));
        }
        self.delta.sequence = sequence;
        let dead = self.delta.dead.len();
        if dead > DEAD_BORNE && 2 * dead > self.delta.rows() {
            self.squeeze();
        }
    }

    /// Moves the live rows together.
    fn squeeze(&mut self) {
        let (old, dim) = (self.delta.clone(), self.delta.dim);
        self.delta = Delta { masked: old.masked.clone(), ..Delta::new(dim, old.sequence) };
        self.at.clear();
        let (mut ids, mut tags, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        let mut full = |ids: &mut Vec<ItemId>, tags: &mut Vec<Tags>, rows: &mut Vec<f32>| {
            let (start, taken) = (self.delta.rows, std::mem::take(ids));
            self.at.extend(taken.iter().enumerate().map(|(i, &id)| (id, start + i as u32)));
            self.delta.push(Block::new(start, taken, std::mem::take(tags), std::mem::take(rows), dim));
        };
        old.each_live(|block, at, _| {
            ids.push(block.ids[at]);
            tags.push(block.tags[at].clone());
            rows.extend_from_slice(&block.rows[at * dim..][..dim]);
            if ids.len() == BLOCK_ROWS {
                full(&mut ids, &mut tags, &mut rows);
            }
        });
        if !ids.is_empty() {
            full(&mut ids, &mut tags, &mut rows);
        }
    }

    /// Takes in what the store's log has beyond this delta, with the rows and tags as they are stored now.
    ///
    /// # Errors
    /// [`Error::Store`] when the log is damaged, [`Error::Row`] for a row that should be there.
    pub(super) fn replay(&mut self, store: &Store, record: &CacheRecord, index: &Index) -> Result<(), Error> {
        // An upsert whose row is gone was followed by a deletion, which the log then has, perhaps in the next look at it.
        let mut absent = HashSet::new();
        loop {
            let changes = store.changes(record.id, self.delta.sequence)?;
            if changes.is_empty() {
                break;
            }
            for chunk in changes.chunks(REPLAY_CHUNK) {
                let mut last: HashMap<ItemId, ChangeKind> = HashMap::new();
                for (_, change) in chunk {
                    last.insert(change.item, change.kind);
                    absent.remove(&change.item);
                }
                let put = |kind: &ChangeKind| *kind == ChangeKind::Upsert;
                let mut ids: Vec<ItemId> =
                    last.iter().filter(|(_, kind)| put(kind)).map(|(&id, _)| id).collect();
                ids.sort_unstable();
                let rows = store.rows(record.id, &ids)?;
                let items = store.items(record.id, &ids)?;
                let mut changes: Vec<Change> =
                    last.iter().filter(|(_, kind)| !put(kind)).map(|(&id, _)| (id, None)).collect();
                for ((id, bytes), item) in ids.into_iter().zip(rows).zip(items) {
                    let row = match bytes {
                        Some(bytes) => {
                            let row = check_row(&record.name, id, Some(&bytes), record.rows, record.dim)?;
                            Some((row, Tags::new(item.map(|item| item.tags).unwrap_or_default())))
                        }
                        None => {
                            absent.insert(id);
                            None
                        }
                    };
                    changes.push((id, row));
                }
                let sequence = chunk.last().map_or(self.delta.sequence, |(sequence, _)| *sequence);
                self.apply(index, changes, sequence);
            }
        }
        match absent.into_iter().next() {
            Some(id) => Err(Error::Row { cache: record.name.clone(), id, why: "missing".into() }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_bounded_scan_finds_what_the_full_one_finds(
            rows in prop::collection::vec(-1.0f32..1.0, 8 * 40..8 * 200), query in prop::collection::vec(-1.0f32..1.0, 8),
            k in 1usize..12, dead in prop::collection::vec(any::<prop::sample::Index>(), 0..30), split in 1usize..50
        ) {
            let mut delta = Delta::new(8, 0);
            let n = rows.len() / 8;
            for (i, rows) in rows[..n * 8].chunks(split * 8).enumerate() {
                let ids = (0..rows.len() / 8).map(|j| ItemId((i * split + j) as u64)).collect();
                let tags = vec![Tags::default(); rows.len() / 8];
                delta.push(Block::new(delta.rows, ids, tags, rows.to_vec(), 8));
            }
            dead.iter().for_each(|at| delta.dead.insert(at.index(n) as u32));
            let mut truth = TopK::new(k);
            for (i, row) in rows[..n * 8].chunks_exact(8).enumerate() {
                prop_assert_eq!(delta.row(Slot(i as u32)), (ItemId(i as u64), row));
                if !delta.dead.contains(i as u32) {
                    truth.push(Scored { slot: Slot(i as u32), score: Kernels::get().dot(&query, row) });
                }
            }
            prop_assert_eq!(delta.search(&query, k), truth.into_sorted());
            // A filter keeps one in `split`: few of them are scored alone, many in a scan.
            let of_one = |id: &ItemId| id.0.is_multiple_of(split as u64);
            let filter = Filter::Ids((0..n as u64).map(ItemId).filter(of_one).collect());
            let mut truth = TopK::new(k);
            for (i, row) in rows[..n * 8].chunks_exact(8).enumerate() {
                if !delta.dead.contains(i as u32) && of_one(&ItemId(i as u64)) {
                    truth.push(Scored { slot: Slot(i as u32), score: Kernels::get().dot(&query, row) });
                }
            }
            let kept = delta.kept_by(&filter);
            prop_assert_eq!(delta.search_kept(&query, k, &kept).0, truth.into_sorted());
        }
    }
}
