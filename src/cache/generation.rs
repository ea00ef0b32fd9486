//! One generation in memory: loaded, verified, searched.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::Error;
use super::rows::{Rows, RowsMode, check_row};
use crate::index::exact::{self, Scored, TopK};
use crate::index::{self, AlignedBytes, Cost, Index, SearchParams, Searcher};
use crate::kernels::Kernels;
use crate::store::{BlobKind, CacheRecord, GenerationRecord, RowType, Store};
use crate::types::{CacheName, Embedding, Generation, Hit, ItemId, Slot};

/// How a generation is brought into memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoadOptions {
    /// Where rows are kept.
    pub rows: RowsMode,
    /// Most bytes this cache may take.
    pub memory_budget: u64,
}

/// What a generation takes in memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct MemoryPlan {
    /// Graph, codes and ids.
    pub index: u64,
    /// Stored rows, if they are kept in memory.
    pub rows: u64,
}

impl MemoryPlan {
    /// Both together.
    pub fn total(&self) -> u64 {
        self.index + self.rows
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "graph and codes {} MiB, rows {} MiB", self.index >> 20, self.rows >> 20)
    }
}

/// What loading did.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Loaded {
    /// Memory taken.
    pub plan: MemoryPlan,
    /// Whether rows are in memory.
    pub rows_in_memory: bool,
    /// Time it took.
    pub took: Duration,
}

/// A generation that readers share.
pub struct Snapshot {
    store: Arc<Store>,
    record: CacheRecord,
    generation: GenerationRecord,
    index: Index,
    rows: Rows,
    loaded: Loaded,
}

/// The answer to one search.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// At most `top_k` hits, best first.
    pub hits: Vec<Hit>,
    /// The work it took.
    pub cost: Cost,
}

impl Snapshot {
    /// Loads the current generation of a cache.
    ///
    /// # Errors
    /// As [`super::Cache::open`].
    pub fn load(store: &Arc<Store>, name: &CacheName, options: LoadOptions) -> Result<Self, Error> {
        let start = Instant::now();
        let record = store.cache(name)?;
        let current = record.current.ok_or_else(|| Error::NotIndexed(name.clone()))?;
        let generations = store.generations(record.id)?;
        let generation = generations.iter().find(|g| g.generation == current).cloned().ok_or_else(|| {
            let known = known_generations(&generations);
            Error::NoGeneration { cache: name.clone(), generation: current, known }
        })?;

        let rows_bytes = generation.items * (record.dim * record.rows.bytes()) as u64;
        let keep_rows = match options.rows {
            RowsMode::Ram => true,
            RowsMode::Disk => false,
            RowsMode::Auto => generation.index_bytes + rows_bytes <= options.memory_budget,
        };
        let plan = MemoryPlan { index: generation.index_bytes, rows: if keep_rows { rows_bytes } else { 0 } };
        if plan.total() > options.memory_budget {
            let (needed, budget) = (plan.total().div_ceil(1 << 20), options.memory_budget >> 20);
            return Err(Error::Memory { cache: name.clone(), needed, budget, plan });
        }

        let index = load_index(store, &record, &generation)?;
        let rows = match keep_rows {
            true => Rows::Ram { kind: record.rows, bytes: load_rows(store, &record, index.ids())? },
            false => Rows::Disk { kind: record.rows },
        };
        let loaded = Loaded { plan, rows_in_memory: keep_rows, took: start.elapsed() };
        Ok(Snapshot { store: store.clone(), record, generation, index, rows, loaded })
    }

    /// The cache's record as of loading.
    pub fn record(&self) -> &CacheRecord {
        &self.record
    }

    /// The generation's record.
    pub fn generation_record(&self) -> &GenerationRecord {
        &self.generation
    }

    /// The generation's number.
    pub fn generation(&self) -> Generation {
        self.generation.generation
    }

    /// The opened index.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// What loading did.
    pub fn loaded(&self) -> Loaded {
        self.loaded
    }

    /// The store it came from.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The `top_k` nearest items of a query, best first, scored in f32 on the stored rows.
    ///
    /// * `query`: length D, not necessarily unit. `top_k`: min(top_k, items) hits come back.
    ///
    /// # Errors
    /// [`Error::Dimension`], [`index::Error::Parameter`], [`Error::Row`].
    pub fn search(
        &self,
        searcher: &mut Searcher,
        query: &Embedding,
        top_k: usize,
        params: &SearchParams,
    ) -> Result<Found, Error> {
        if query.dim() != self.record.dim {
            let (expected, received) = (self.record.dim, query.dim());
            return Err(Error::Dimension { cache: self.record.name.clone(), expected, received });
        }
        params.validate()?;
        if params.exact {
            return self.search_exact(query, top_k);
        }
        let wanted = top_k.max(params.rescore);
        let (candidates, mut cost) = searcher.search(&self.index, query.as_slice(), wanted, params)?;
        let slots: Vec<Slot> = candidates.iter().map(|c| c.slot).collect();
        let mut best = TopK::new(top_k);
        cost.scored_vectors += slots.len() as u64;
        if let Some(rows) = self.rows.as_f32() {
            let (mut scores, flat) = (Vec::new(), slots.iter().map(|s| s.0).collect::<Vec<_>>());
            Kernels::get().score_f32(rows, &flat, query.as_slice(), &mut scores);
            slots.iter().zip(scores).for_each(|(&slot, score)| best.push(Scored { slot, score }));
            return Ok(Found { hits: self.hits(best.into_sorted())?, cost });
        }
        let ids: Vec<ItemId> = slots.iter().map(|&slot| self.index.id(slot)).collect();
        let rows = self.rows.read(&self.store, &self.record, &slots, &ids)?;
        for (&slot, row) in slots.iter().zip(&rows) {
            best.push(Scored { slot, score: Kernels::get().dot(query.as_slice(), row) });
        }
        let by_slot: std::collections::HashMap<Slot, Vec<f32>> = slots.iter().copied().zip(rows).collect();
        let hits = best.into_sorted().into_iter().map(|scored| {
            let row = by_slot.get(&scored.slot).cloned().unwrap_or_default();
            self.hit(scored, row)
        });
        Ok(Found { hits: hits.collect::<Result<_, _>>()?, cost })
    }

    fn search_exact(&self, query: &Embedding, top_k: usize) -> Result<Found, Error> {
        let cost = Cost { visited_nodes: 0, scored_vectors: self.index.len() as u64 };
        if let Some(rows) = self.rows.as_f32() {
            return Ok(Found { hits: self.hits(exact::search(rows, query.as_slice(), top_k))?, cost });
        }
        let mut best = TopK::new(top_k);
        let mut slot = 0u32;
        let (record, ids) = (&self.record, self.index.ids());
        self.store.scan_rows(record.id, ItemId(ids[0]), |id, bytes| {
            // Items put since this generation are not in it.
            if ids.get(slot as usize) == Some(&id.0) {
                let row = check_row(&record.name, id, Some(bytes), record.rows, record.dim)?;
                best.push(Scored { slot: Slot(slot), score: Kernels::get().dot(query.as_slice(), &row) });
                slot += 1;
            }
            Ok::<bool, Error>((slot as usize) < ids.len())
        })?;
        Ok(Found { hits: self.hits(best.into_sorted())?, cost })
    }

    fn hits(&self, scored: Vec<Scored>) -> Result<Vec<Hit>, Error> {
        let slots: Vec<Slot> = scored.iter().map(|s| s.slot).collect();
        let ids: Vec<ItemId> = slots.iter().map(|&slot| self.index.id(slot)).collect();
        let rows = self.rows.read(&self.store, &self.record, &slots, &ids)?;
        scored.into_iter().zip(rows).map(|(scored, row)| self.hit(scored, row)).collect()
    }

    fn hit(&self, scored: Scored, row: Vec<f32>) -> Result<Hit, Error> {
        let id = self.index.id(scored.slot);
        let embedding = Embedding::new(row).map_err(|e| Error::Row {
            cache: self.record.name.clone(),
            id,
            why: e.to_string(),
        })?;
        Ok(Hit { id, score: scored.score, embedding })
    }
}

pub(super) fn known_generations(generations: &[GenerationRecord]) -> String {
    let numbers: Vec<String> = generations.iter().map(|g| g.generation.to_string()).collect();
    if numbers.is_empty() { "none".into() } else { numbers.join(", ") }
}

fn load_index(store: &Store, record: &CacheRecord, generation: &GenerationRecord) -> Result<Index, Error> {
    let len = usize::try_from(generation.index_bytes).unwrap_or(usize::MAX);
    let mut bytes = AlignedBytes::zeroed(len)?;
    store.read_blob(record.id, generation.generation, BlobKind::Index, bytes.as_mut_slice())?;
    let index = Index::open(bytes)?;
    if index.dim() != record.dim || index.len() as u64 != generation.items {
        let what = format!("it holds {} rows of {} components", index.len(), index.dim());
        return Err(index::Error::Format(format!(
            "{what}, its record says {} of {}",
            generation.items, record.dim
        ))
        .into());
    }
    Ok(index)
}

/// The rows of exactly these items, in their order, read by several threads.
///
/// * `ids`: ascending. The cache may hold other items between them, put since the generation was made.
fn load_rows(store: &Store, record: &CacheRecord, ids: &[u64]) -> Result<AlignedBytes, Error> {
    let len = record.dim * record.rows.bytes();
    let share = ids.len().div_ceil(rayon::current_num_threads()).max(1);
    let mut bytes = AlignedBytes::zeroed(ids.len() * len)?;
    bytes
        .as_mut_slice()
        .par_chunks_mut(share * len)
        .zip(ids.par_chunks(share))
        .try_for_each(|(into, ids)| load_share(store, record, ids, into))?;
    Ok(bytes)
}

/// One thread's share of [`load_rows`]: a scan from its first id, in step with the ids it wants.
fn load_share(store: &Store, record: &CacheRecord, ids: &[u64], into: &mut [u8]) -> Result<(), Error> {
    let len = record.dim * record.rows.bytes();
    let wrong = |id: u64, why: String| Error::Row { cache: record.name.clone(), id: ItemId(id), why };
    let Some(&first) = ids.first() else { return Ok(()) };
    let mut wanted = ids.iter().zip(into.chunks_exact_mut(len)).peekable();
    store.scan_rows(record.id, ItemId(first), |id, row| {
        match wanted.peek() {
            Some((want, _)) if **want > id.0 => return Ok(true),
            Some((want, _)) if **want < id.0 => return Err(wrong(**want, "missing".into())),
            _ => {}
        }
        if let Some((_, place)) = wanted.next() {
            if row.len() != len {
                return Err(wrong(id.0, format!("{} bytes long instead of {len}", row.len())));
            }
            place.copy_from_slice(row);
            // A row that is not finite would poison every score; rows are finite by type when they are put.
            if !finite(place, record.rows) {
                return Err(wrong(id.0, "not finite".into()));
            }
        }
        Ok(wanted.peek().is_some())
    })?;
    match wanted.next() {
        Some((id, _)) => Err(wrong(*id, "missing".into())),
        None => Ok(()),
    }
}

fn finite(row: &[u8], kind: RowType) -> bool {
    match kind {
        RowType::F32 => row.chunks_exact(4).all(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).is_finite()),
        RowType::F16 => row.chunks_exact(2).all(|b| half::f16::from_le_bytes([b[0], b[1]]).is_finite()),
    }
}
