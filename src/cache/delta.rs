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
//! few times at most.
//!
//! **The scan is exact**, and reads a thirtieth of the bytes. Three looks at a row, each at what the one before left over;
//! the first two at the row less the generation's mean, rotated:
//!
//! ```text
//! signs    a bit a component       estimate ± six deviations of its error       from 256 components on
//! code     8 bits a component      estimate ± likewise                          below: ± |what the code leaves out|
//! row      f32                     its score                                    (Cauchy–Schwarz)
//! ```
//!
//! A row is done with when its upper bound does not reach what is needed: the score that the generation's k-th hit has, or
//! the k-th best lower bound. Six deviations are not a proof, as Cauchy–Schwarz is; one row in 10⁹ would be missed.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::clock::Clock;
use super::mask::Mask;
use crate::index::exact::{Scored, TopK};
use crate::index::{SignQuery, Signs};
use crate::kernels::Kernels;
use crate::types::{Filter, ItemId, Slot, norm};

/// Most rows of a block that was made by merging.
pub(super) const BLOCK_ROWS: usize = 1024;
/// Rows below which codes do not pay.
const SCAN_BELOW: usize = 32;
/// Longest row whose code product fits the kernels' integers.
const MAX_CODED_DIM: usize = 1 << 15;
/// Lengths of queries whose bounds neither overflow nor vanish in f32.
const CODED_LENGTHS: std::ops::Range<f32> = 1e-12..1e12;
/// What f32 sums may be off, for vectors of length 1.
const ROUNDING: f32 = 1e-4;

/// Rows that a filter keeps of which so many are worth scanning all: one costs in full what four cost on codes.
const SCAN_SHARE: usize = 4;
/// Bytes that a tag takes beside its texts.
const TAG_OVERHEAD: usize = 64;

/// Tags of an item; most have none.
#[derive(Clone, Default)]
pub(super) struct Tags(Option<Arc<BTreeMap<String, String>>>);

impl Tags {
    pub(super) fn new(tags: BTreeMap<String, String>) -> Self {
        Tags((!tags.is_empty()).then(|| Arc::new(tags)))
    }

    pub(super) fn get(&self) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        self.0.as_deref().unwrap_or(&NONE)
    }

    pub(super) fn bytes(&self) -> u64 {
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
    pub(super) dim: usize,
    blocks: Vec<Arc<Block>>,
    /// Rows in the blocks.
    pub(super) rows: u32,
    /// Bytes of their tags.
    tag_bytes: u64,
    pub(super) dead: Mask,
    pub(super) masked: Mask,
    pub(super) sequence: u64,
}

/// Rows that came one after another.
pub(super) struct Block {
    /// Position of the first.
    start: u32,
    pub(super) ids: Vec<ItemId>,
    pub(super) tags: Vec<Tags>,
    /// Row-major `[n, dim]`.
    pub(super) rows: Vec<f32>,
    /// 128 + the row, [`Signs::turned`], in steps of its scale, likewise.
    codes: Vec<u8>,
    coded: Vec<RowCode>,
    /// [`Signs`] of the rows, and the lengths of what they are of; none for short rows.
    signs: Vec<u8>,
    lengths: Vec<f32>,
}

/// How a row's code stands for it.
#[derive(Clone, Copy)]
struct RowCode {
    /// What one step is worth.
    scale: f32,
    /// Length of what the code leaves out.
    error: f32,
    /// Length of what the code says.
    length: f32,
}

impl Delta {
    pub(super) fn new(dim: usize, sequence: u64) -> Self {
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

    /// The `k` best live rows, best first, by position: those that scoring every row would give, of the scores that reach
    /// `floor`; perhaps others below it.
    ///
    /// * `signs`: of the index that this is the delta of. `clock`: looked at between blocks; once it is late, what comes back is
    ///   not all.
    pub(super) fn search(
        &self,
        query: &[f32],
        k: usize,
        floor: f32,
        signs: &Signs<'_>,
        clock: &Clock,
    ) -> Vec<Scored> {
        let mut best = Vec::new();
        let few = self.live() <= SCAN_BELOW.max(k);
        if few || self.dim > MAX_CODED_DIM || !CODED_LENGTHS.contains(&(norm(query) as f32)) {
            self.each_live(|block, at, slot| best.push(Scored { slot, score: block.score(at, query) }));
            return self.best(best, k);
        }
        let (turned, mean) = signs.turned_query(query);
        let query_code = StepQuery::of(&turned, mean);
        let (mut needed, mut products) = (floor, Vec::new());
        let left = self.sifted(k, &mut needed, &Signs::of_query(&turned, mean), clock);
        let mut lowest = TopK::new(k);
        let mut bounds = Vec::with_capacity(left.iter().map(Vec::len).sum());
        for (block, rows) in self.blocks.iter().zip(&left) {
            if clock.look() {
                return Vec::new();
            }
            Kernels::get().score_codes(&block.codes[..], rows, &query_code.steps, &mut products);
            for (&product, &row) in products.iter().zip(rows) {
                let (estimate, bound) = query_code.score(product, block.coded[row as usize]);
                let slot = Slot(block.start + row);
                bounds.push((slot, estimate + bound));
                lowest.push(Scored { slot, score: estimate - bound });
            }
        }
        needed = lowest.worst().map_or(needed, |worst| worst.max(needed));
        for (slot, _) in bounds.into_iter().filter(|&(_, upper)| upper >= needed) {
            best.push(Scored { slot, score: Kernels::get().dot(query, self.row(slot).1) });
        }
        self.best(best, k)
    }

    /// The `k` best of some rows, best first, equal ones by id: as a generation gives them, whose slots are in the order of ids.
    fn best(&self, mut rows: Vec<Scored>, k: usize) -> Vec<Scored> {
        let order = |a: &Scored, b: &Scored| {
            b.score.total_cmp(&a.score).then_with(|| self.row(a.slot).0.cmp(&self.row(b.slot).0))
        };
        if (1..rows.len()).contains(&k) {
            rows.select_nth_unstable_by(k - 1, order);
        }
        rows.truncate(k);
        rows.sort_unstable_by(order);
        rows
    }

    /// Of every block, the live rows that may score what is needed, as far as their signs say. Raises `needed` to what `k` rows
    /// surely score, where nothing is known of it.
    fn sifted(&self, k: usize, needed: &mut f32, query: &SignQuery, clock: &Clock) -> Vec<Vec<u32>> {
        let live = |block: &Block, row: u32| self.dead.is_empty() || !self.dead.contains(block.start + row);
        let longest = self.blocks.iter().map(|block| block.ids.len() as u32).max().unwrap_or(0);
        let (all, mut sums): (Vec<u32>, _) = ((0..longest).collect(), Vec::new());
        let blocks = self.blocks.iter().take_while(|_| !clock.look());
        if self.dim < Signs::LEAST_DIM {
            let rows = |block: &Arc<Block>| {
                all[..block.ids.len()].iter().copied().filter(|&row| live(block, row)).collect()
            };
            return blocks.map(rows).collect();
        }
        if *needed > f32::NEG_INFINITY {
            let rows = |block: &Arc<Block>| {
                let (all, mut kept) = (&all[..block.ids.len()], Vec::new());
                query.sift(&block.signs, &block.lengths, all, *needed, &mut sums, &mut kept);
                kept.retain(|&row| live(block, row));
                kept
            };
            return blocks.map(rows).collect();
        }
        let mut lowest = TopK::new(k);
        let mut left: Vec<Vec<(u32, f32)>> = Vec::with_capacity(self.blocks.len());
        for block in blocks {
            let mut rows = Vec::new();
            query.judge(
                &block.signs,
                &block.lengths,
                &all[..block.ids.len()],
                &mut sums,
                |row, estimate, bound| {
                    if estimate + bound >= *needed && live(block, row) {
                        rows.push((row, estimate + bound));
                        lowest.push(Scored { slot: Slot(block.start + row), score: estimate - bound });
                        *needed = lowest.worst().unwrap_or(*needed);
                    }
                },
            );
            left.push(rows);
        }
        let reach = |rows: Vec<(u32, f32)>| {
            rows.into_iter().filter(|&(_, upper)| upper >= *needed).map(|(row, _)| row).collect()
        };
        left.into_iter().map(reach).collect()
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
    pub(super) fn search_kept(
        &self,
        query: &[f32],
        k: usize,
        floor: f32,
        signs: &Signs<'_>,
        kept: &Kept,
        clock: &Clock,
    ) -> (Vec<Scored>, usize) {
        if let Some(rest) = &kept.rest {
            return (rest.search(query, k, floor, signs, clock), self.rows());
        }
        let mut best = Vec::with_capacity(kept.positions.len());
        for &slot in &kept.positions {
            best.push(Scored { slot, score: Kernels::get().dot(query, self.row(slot).1) });
        }
        (self.best(best, k), kept.positions.len())
    }

    pub(super) fn each_live<'a>(&'a self, mut visit: impl FnMut(&'a Block, usize, Slot)) {
        self.some_live(|block, at, slot| {
            visit(block, at, slot);
            true
        });
    }

    /// As [`Delta::each_live`], until `visit` answers false.
    pub(super) fn some_live<'a>(&'a self, mut visit: impl FnMut(&'a Block, usize, Slot) -> bool) {
        for block in &self.blocks {
            for at in 0..block.ids.len() {
                let position = block.start + at as u32;
                let live = self.dead.is_empty() || !self.dead.contains(position);
                if live && !visit(block, at, Slot(position)) {
                    return;
                }
            }
        }
    }

    pub(super) fn push(&mut self, block: Block) {
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

    /// Where they are.
    pub(super) fn positions(&self) -> &[Slot] {
        &self.positions
    }
}

/// Bytes a row takes in a delta, the texts of its tags aside.
fn bytes_per_row(dim: usize) -> usize {
    let beside = size_of::<ItemId>() + size_of::<Tags>() + size_of::<RowCode>() + size_of::<f32>();
    dim * 5 + Signs::bytes(dim) + beside
}

impl Block {
    pub(super) fn new(
        start: u32,
        ids: Vec<ItemId>,
        tags: Vec<Tags>,
        rows: Vec<f32>,
        dim: usize,
        signing: &Signs<'_>,
    ) -> Self {
        let (mut codes, mut coded) = (Vec::with_capacity(rows.len()), Vec::with_capacity(ids.len()));
        let mut steps = vec![0i8; dim];
        let (mut signs, mut lengths) = (Vec::new(), Vec::new());
        for row in rows.chunks_exact(dim) {
            let turned = signing.turned(row);
            coded.push(code(&turned, &mut steps));
            codes.extend(steps.iter().map(|&step| (i16::from(step) + 128) as u8));
            if dim >= Signs::LEAST_DIM {
                Signs::of_turned(&turned, &mut signs);
                lengths.push(norm(&turned) as f32);
            }
        }
        Block { start, ids, tags, rows, codes, coded, signs, lengths }
    }

    /// Some rows of others, in one block.
    pub(super) fn gathered(start: u32, rows: &[(&Block, usize)], dim: usize) -> Block {
        fn of<'a, T: Clone + 'a>(
            rows: &[(&'a Block, usize)],
            len: usize,
            part: impl Fn(&'a Block) -> &'a [T],
        ) -> Vec<T> {
            // What short rows have none of, is empty.
            let parts =
                rows.iter().map(|&(block, at)| part(block).get(at * len..(at + 1) * len).unwrap_or(&[]));
            parts.flatten().cloned().collect()
        }
        Block {
            start,
            ids: of(rows, 1, |block| &block.ids),
            tags: of(rows, 1, |block| &block.tags),
            rows: of(rows, dim, |block| &block.rows),
            codes: of(rows, dim, |block| &block.codes),
            coded: of(rows, 1, |block| &block.coded),
            signs: of(rows, Signs::bytes(dim), |block| &block.signs),
            lengths: of(rows, 1, |block| &block.lengths),
        }
    }

    fn followed_by(&self, next: &Block) -> Block {
        Block {
            start: self.start,
            ids: [&self.ids[..], &next.ids].concat(),
            tags: [&self.tags[..], &next.tags].concat(),
            rows: [&self.rows[..], &next.rows].concat(),
            codes: [&self.codes[..], &next.codes].concat(),
            coded: [&self.coded[..], &next.coded].concat(),
            signs: [&self.signs[..], &next.signs].concat(),
            lengths: [&self.lengths[..], &next.lengths].concat(),
        }
    }

    fn score(&self, at: usize, query: &[f32]) -> f32 {
        Kernels::get().dot(query, &self.rows[at * query.len()..][..query.len()])
    }
}

/// Writes a vector in steps of its largest component's 127th part.
fn code(values: &[f32], steps: &mut [i8]) -> RowCode {
    // The kernel gives steps per unit. A vector too small for that gets no code: all of it is left out.
    let per_unit = Kernels::get().scale_query(values, steps);
    let scale = if per_unit > 0.0 && per_unit.is_finite() { per_unit.recip() } else { 0.0 };
    let (mut error, mut length) = (0f64, 0f64);
    for (&value, &step) in values.iter().zip(&*steps) {
        let said = f64::from(scale) * f64::from(step);
        error += (f64::from(value) - said).powi(2);
        length += said * said;
    }
    RowCode { scale, error: error.sqrt() as f32, length: length.sqrt() as f32 }
}

struct StepQuery {
    steps: Vec<i8>,
    sum: i64,
    coded: RowCode,
    length: f32,
    /// Its score on the mean.
    mean: f32,
    /// What share of the most that two vectors' product may be it is surely below.
    surely: f32,
}

impl StepQuery {
    /// * `turned`, `mean`: [`Signs::turned_query`].
    fn of(turned: &[f32], mean: f32) -> Self {
        let mut steps = vec![0i8; turned.len()];
        let coded = code(turned, &mut steps);
        let sum = steps.iter().map(|&step| i64::from(step)).sum();
        // Errors of a rotated vector's components have nothing to do with another vector's, where there are many.
        let surely = match turned.len() {
            dim if dim >= Signs::LEAST_DIM => Signs::DEVIATIONS / (dim as f32).sqrt(),
            _ => 1.0,
        };
        StepQuery { steps, sum, coded, length: norm(turned) as f32, mean, surely }
    }

    /// An estimate of a row's score, from the product of the codes, and how far it may be off.
    fn score(&self, product: i32, row: RowCode) -> (f32, f32) {
        let estimate = self.coded.scale * row.scale * (i64::from(product) - 128 * self.sum) as f32;
        let left_out = self.length * row.error + self.coded.error * row.length;
        // Of the product with the mean as well, which is no longer than a row.
        let rounding = ROUNDING * self.length * (1.0 + row.length + row.error);
        (self.mean + estimate, self.surely * left_out + rounding)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{CodeKind, Codec};
    use proptest::prelude::*;

    /// A delta of rows in blocks of `split`, some of them dead, and the best of those that a filter keeps, by scoring all.
    struct Twin {
        delta: Delta,
        dim: usize,
        codec: Codec,
    }

    impl Twin {
        fn new(rows: &[f32], dim: usize, dead: &[prop::sample::Index], split: usize) -> Self {
            let codec = Codec::train(CodeKind::U8, rows, dim);
            let mut delta = Delta::new(dim, 0);
            for (i, rows) in rows.chunks(split * dim).enumerate() {
                let ids = (0..rows.len() / dim).map(|j| ItemId((i * split + j) as u64)).collect();
                let tags = vec![Tags::default(); rows.len() / dim];
                delta.push(Block::new(delta.rows, ids, tags, rows.to_vec(), dim, &Signs::new(&codec)));
            }
            dead.iter().for_each(|at| delta.dead.insert(at.index(rows.len() / dim) as u32));
            Twin { delta, dim, codec }
        }

        fn best(&self, rows: &[f32], query: &[f32], k: usize, keep: impl Fn(u64) -> bool) -> Vec<Scored> {
            let mut best = TopK::new(k);
            for (i, row) in rows.chunks_exact(self.dim).enumerate() {
                if !self.delta.dead.contains(i as u32) && keep(i as u64) {
                    best.push(Scored { slot: Slot(i as u32), score: Kernels::get().dot(query, row) });
                }
            }
            best.into_sorted()
        }

        /// Holds every search against the full one.
        fn check(&self, rows: &[f32], query: &[f32], k: usize, every: u64) -> Result<(), TestCaseError> {
            let (delta, signs) = (&self.delta, Signs::new(&self.codec));
            for (i, row) in rows.chunks_exact(self.dim).enumerate() {
                prop_assert_eq!(delta.row(Slot(i as u32)), (ItemId(i as u64), row));
            }
            let truth = self.best(rows, query, k, |_| true);
            prop_assert_eq!(&delta.search(query, k, f32::NEG_INFINITY, &signs, &Clock::never()), &truth);
            // Of a floor: all above it.
            for floor in truth.iter().step_by(3).map(|scored| scored.score) {
                let above =
                    |found: &[Scored]| found.iter().filter(|s| s.score >= floor).copied().collect::<Vec<_>>();
                prop_assert_eq!(
                    above(&delta.search(query, k, floor, &signs, &Clock::never())),
                    above(&truth)
                );
            }
            // A filter keeps one in `every`: few of them are scored alone, many in a scan.
            let n = (rows.len() / self.dim) as u64;
            let filter = Filter::Ids((0..n).filter(|id| id.is_multiple_of(every)).map(ItemId).collect());
            let found = delta
                .search_kept(query, k, f32::NEG_INFINITY, &signs, &delta.kept_by(&filter), &Clock::never())
                .0;
            prop_assert_eq!(found, self.best(rows, query, k, |id| id.is_multiple_of(every)));
            Ok(())
        }
    }

    proptest! {
        #[test]
        fn the_bounded_scan_finds_what_the_full_one_finds(
            rows in prop::collection::vec(-1.0f32..1.0, 8 * 40..8 * 200), query in prop::collection::vec(-1.0f32..1.0, 8),
            k in 1usize..12, dead in prop::collection::vec(any::<prop::sample::Index>(), 0..30), split in 1usize..50
        ) {
            let rows = &rows[..rows.len() / 8 * 8];
            Twin::new(rows, 8, &dead, split).check(rows, &query, k, split as u64)?;
        }

        /// The one that had come first was given, so that a compaction changed the answer.
        #[test]
        fn equal_scores_are_cut_by_id(ids in prop::collection::hash_set(0u64..1000, 2..200), k in 1usize..12) {
            let ids: Vec<ItemId> = ids.into_iter().map(ItemId).collect();
            let (row, tags) = ([0.6f32, 0.8], vec![Tags::default(); ids.len()]);
            let codec = Codec::train(CodeKind::U8, &row, 2);
            let (signs, mut delta) = (Signs::new(&codec), Delta::new(2, 0));
            delta.push(Block::new(0, ids.clone(), tags, row.repeat(ids.len()), 2, &signs));
            let found = delta.search(&row, k, f32::NEG_INFINITY, &signs, &Clock::never());
            let found: Vec<ItemId> = found.iter().map(|scored| delta.row(scored.slot).0).collect();
            let mut sorted = ids;
            sorted.sort_unstable();
            sorted.truncate(k);
            prop_assert_eq!(found, sorted);
        }

        #[test]
        fn so_does_the_scan_of_signs(
            seed in any::<u64>(), pull in 0.0f32..2.0, n in 40usize..160, k in 1usize..12,
            dead in prop::collection::vec(any::<prop::sample::Index>(), 0..30), split in 1usize..50
        ) {
            // Unit rows around a common centre, and a query from beside it.
            let mut state = seed | 1;
            let mut next = || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
            };
            let centre: Vec<f32> = (0..Signs::LEAST_DIM).map(|_| next()).collect();
            let mut rows = Vec::new();
            for _ in 0..=n {
                let row: Vec<f32> = centre.iter().map(|c| pull * c + next()).collect();
                let length = norm(&row) as f32;
                rows.extend(row.iter().map(|v| v / length));
            }
            let (query, rows) = rows.split_at(Signs::LEAST_DIM);
            Twin::new(rows, Signs::LEAST_DIM, &dead, split).check(rows, query, k, split as u64)?;
        }
    }
}
