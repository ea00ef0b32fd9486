//! Queries for a cache that was given none: what its codes and beams are tried on, beside rows that are moved a little.
//!
//! Queries of another modality lie apart from the rows: most of their length is in directions in which the rows hardly differ, so
//! that little of it tells rows from each other, while all of it meets the errors of codes.
//!
//! ```text
//! row less the mean, moved ──► a fifth    ┐
//! noise, less what lies along other rows ─┴► one of length 1
//! ```
//!
//! A fifth is about what the models' own queries have: captions score 0.1 to 0.3 on their pictures. Of the nano model's pictures 4
//! bits leave 0.77 of a caption's ten nearest within their best 40, and 0.76 of such a query's; of synthetic rows with 1024
//! components all of both. They stand in for real queries and are no more than that.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use super::Error;
use super::calibrate::{RECALL_SAMPLE, moved};
use super::queries::Queries;
use super::scan::RowAccess;
use crate::kernels::Kernels;
use crate::store::ItemRecord;
use crate::types::{ItemId, Modality, Slot, norm};

/// Share of a query's length that lies along the rows.
const ALONG: f32 = 0.2;
/// How far a row is moved, in lengths of what it is without the mean.
const MOVED: f32 = 0.35;
/// Directions that are taken out of the noise, at the most: their number squared is what it costs.
const DIRECTIONS: usize = 512;
const SEED: u64 = 0x6170_6172;

/// The kind of queries that were made, for want of real ones: they lie apart from the rows.
pub const APART: &str = "apart";

/// Rows of a modality that are worth being a sample of its queries.
const LEAST_OF_MODALITY: usize = 30;
const MODALITY_SEED: u64 = 0x6d6f_6461;

/// Some rows of every modality but pictures, moved a little, by the modality's word; of none that has hardly any.
///
/// * `items`: visits all items. `slot`: of an item, if it has one.
pub(super) fn of_other_modalities(
    dim: usize,
    items: impl FnOnce(&mut dyn FnMut(ItemId, &ItemRecord)) -> Result<(), Error>,
    slot: impl Fn(ItemId) -> Option<Slot>,
    rows: &impl RowAccess,
) -> Result<Queries, Error> {
    let mut random = Pcg64::seed_from_u64(MODALITY_SEED);
    let mut chosen: BTreeMap<&str, (usize, Vec<ItemId>)> = BTreeMap::new();
    items(&mut |id, item| {
        if let Some(modality) = item.modality.filter(|modality| *modality != Modality::Image) {
            let (seen, ids) = chosen.entry(modality.word()).or_default();
            *seen += 1;
            // Every one has the same chance to stay, however many there turn out to be.
            if ids.len() < RECALL_SAMPLE {
                ids.push(id);
            } else if let Some(place) = ids.get_mut(random.random_range(0..*seen)) {
                *place = id;
            }
        }
    })?;
    let mut queries = Queries::new();
    for (word, (_, ids)) in chosen.into_iter().filter(|(_, (_, ids))| ids.len() >= LEAST_OF_MODALITY) {
        let slots: Vec<Slot> = ids.into_iter().filter_map(&slot).collect();
        queries.insert(word.to_owned(), moved(&slots, dim, rows)?);
    }
    Ok(queries)
}

/// Makes queries that lie apart from rows, each of length 1; fewer where rows are all alike.
///
/// * `rows`: some of the rows, row-major `[n, dim]`. `mean`: of the rows.
pub(super) fn apart(rows: &[f32], mean: &[f32], count: usize) -> Vec<Vec<f32>> {
    let dim = mean.len();
    let n = rows.len() / dim.max(1);
    let mut random = Pcg64::seed_from_u64(SEED);
    let centred = |random: &mut Pcg64| -> Vec<f32> {
        let at = random.random_range(0..n);
        rows[at * dim..][..dim].iter().zip(mean).map(|(v, m)| v - m).collect()
    };
    if n == 0 {
        return Vec::new();
    }
    let mut directions: Vec<Vec<f32>> = Vec::new();
    for _ in 0..(dim / 2).min(DIRECTIONS) {
        let mut direction = centred(&mut random);
        let before = norm(&direction);
        // Twice: once leaves what rounding makes of nearly parallel ones.
        take_out(&directions, &mut direction);
        take_out(&directions, &mut direction);
        if norm(&direction) > 1e-3 * before.max(1e-12) {
            directions.extend(unit(direction));
        }
    }
    let noise = |random: &mut Pcg64| (0..dim).map(|_| random.random_range(-1.0f32..1.0)).collect::<Vec<_>>();
    let query = |_| {
        let mut along = unit(centred(&mut random))?;
        let moved = unit(noise(&mut random))?;
        along.iter_mut().zip(moved).for_each(|(v, n)| *v += MOVED * n);
        let mut off = noise(&mut random);
        take_out(&directions, &mut off);
        let (along, off) = (unit(along)?, unit(off)?);
        let rest = (1.0 - ALONG * ALONG).sqrt();
        Some(along.iter().zip(off).map(|(along, off)| ALONG * along + rest * off).collect())
    };
    (0..count).filter_map(query).collect()
}

/// Takes the parts along some directions, at right angles and of length 1, out of a vector.
fn take_out(directions: &[Vec<f32>], vector: &mut [f32]) {
    for direction in directions {
        let part = Kernels::get().dot(direction, vector);
        vector.iter_mut().zip(direction).for_each(|(v, d)| *v -= part * d);
    }
}

fn unit(mut vector: Vec<f32>) -> Option<Vec<f32>> {
    let length = norm(&vector) as f32;
    (length > 1e-12 && length.is_finite()).then(|| {
        vector.iter_mut().for_each(|v| *v /= length);
        vector
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_lie_where_rows_hardly_differ() {
        // Rows that differ in four of 32 components.
        let (dim, n) = (32, 400);
        let mut random = Pcg64::seed_from_u64(1);
        let mut rows = Vec::new();
        for _ in 0..n {
            let row = (0..dim).map(|i| if i < 4 { random.random_range(-1.0f32..1.0) } else { 0.5 });
            rows.extend(unit(row.collect()).unwrap());
        }
        let mean: Vec<f32> =
            (0..dim).map(|i| rows.chunks_exact(dim).map(|row| row[i]).sum::<f32>() / n as f32).collect();
        let queries = apart(&rows, &mean, 50);
        assert_eq!(queries.len(), 50);
        for query in &queries {
            assert!((norm(query) - 1.0).abs() < 0.1, "{}", norm(query));
            let along = norm(&query[..4]);
            assert!(along > 0.05 && along < 0.45, "{along}");
        }
        assert_eq!(apart(&rows, &mean, 50), queries, "the same every time");
    }

    #[test]
    fn rows_without_any_difference_give_none() {
        assert!(apart(&[0.6, 0.8, 0.6, 0.8], &[0.6, 0.8], 5).is_empty());
        assert!(apart(&[], &[0.6, 0.8], 5).is_empty());
        assert!(apart(&[1.0, -1.0], &[0.0], 5).iter().all(|query| query.iter().all(|v| v.is_finite())));
    }
}
