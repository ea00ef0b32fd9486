//! Which codes a search runs on, and how many candidates it scores again: by what the codes' errors do to the ranking.
//!
//! ```text
//! queries, by kind ─► the nearest rows of each, exactly (one pass) ─► the same rows by each kind of code
//!                                                                     └─► share of the true ten among the best 40, 100, …
//! of all pairs of codes and rescoring whose share is enough for every kind: the one that costs least
//! ```
//!
//! No width of a beam finds what codes confuse. How much they do depends on the rows and on the queries: where the ten best lie
//! within some thousandths of each other, as those of a query from another modality may, 4 bits cannot tell them apart.
//!
//! Prices are counts of rows and bytes, not times: the same rows and queries give the same choice on every machine.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::Error;
use super::calibrate::{DEPTHS, RECALL_K};
use super::scan::{RowAccess, offer};
use crate::index::exact::{self, Scored, TopK};
use crate::index::{AlignedBytes, BuildParams, CodeKind, Codec, Coded, SearchParams};
use crate::store::{Choice, QuerySource, Tried};
use crate::types::Slot;

/// Share of the true ten that codes must leave within reach.
const ENOUGH: f64 = 0.995;
/// Rows nearest to a query that codes are tried on. What lies farther would have to be confused past all of them.
const NEAREST: usize = 1000;
/// Queries of a kind that are looked at.
pub(super) const QUERIES: usize = 200;
/// Rows that a common beam scores for each of its places: `benches/search.rs` prints some ten.
const SCORED: f64 = 10.0;
/// What reaching a row costs, in bytes read one after another: it lies anywhere.
const REACH: f64 = 512.0;

/// Chooses codes and rescoring.
///
/// * `coded`: the rows in 4 and in 8 bits. `exact`: a codec of f16. `row_bytes`: of a stored row.
/// * `queries`: by kind, each of length D, and where those come from that are not like the rows.
///
/// # Errors
/// Rows that cannot be read.
pub(super) fn choose(
    rows: &impl RowAccess,
    coded: [Coded<'_>; 2],
    half: &Codec,
    row_bytes: usize,
    (queries, source): (&BTreeMap<String, Vec<Vec<f32>>>, QuerySource),
) -> Result<Choice, Error> {
    let some = |(kind, all): (&String, &Vec<Vec<f32>>)| {
        let every = all.len().div_ceil(QUERIES).max(1);
        all.iter().step_by(every).map(|query| (kind.clone(), query.clone())).collect::<Vec<_>>()
    };
    let asked: Vec<(String, Vec<f32>)> = queries.iter().flat_map(some).collect();
    let nearest = nearest(rows, &asked)?;
    let mut tried = Vec::new();
    for codes in coded {
        let ranked = |((_, query), near): (&(String, Vec<f32>), &Vec<Slot>)| {
            let slots: Vec<u32> = near.iter().map(|slot| slot.0).collect();
            let mut scored: Vec<Scored> = codes
                .scores(query, &slots)
                .into_iter()
                .zip(near)
                .map(|(score, &slot)| Scored { slot, score })
                .collect();
            scored.sort_unstable_by(|a, b| b.score.total_cmp(&a.score).then(a.slot.cmp(&b.slot)));
            scored.into_iter().take(deepest()).map(|scored| scored.slot).collect()
        };
        let by_codes: Vec<Vec<Slot>> = asked.par_iter().zip(&nearest).map(ranked).collect();
        tally(&asked, &nearest, &by_codes, codes.codec.kind(), &mut tried);
    }
    if cheapest(&tried, half.dim(), row_bytes).is_none() {
        let by_codes = best_in_halves(rows, half, &asked)?;
        tally(&asked, &nearest, &by_codes, CodeKind::F16, &mut tried);
    }
    // Scores of f32 are the rows' own.
    let (codes, rescore) = cheapest(&tried, half.dim(), row_bytes).unwrap_or((CodeKind::F32, DEPTHS[0]));
    Ok(Choice { codes: codes.word().to_owned(), rescore, tried, queries: source })
}

fn deepest() -> usize {
    DEPTHS[DEPTHS.len() - 1]
}

/// The rows nearest to every query, best first.
fn nearest(rows: &impl RowAccess, asked: &[(String, Vec<f32>)]) -> Result<Vec<Vec<Slot>>, Error> {
    let mut best = vec![(TopK::new(NEAREST), Vec::new()); asked.len()];
    rows.scan(&mut |first, block| {
        let each = best.par_iter_mut().zip(asked);
        each.for_each(|((best, scores), (_, query))| offer(best, scores, query, first, block));
        true
    })?;
    let slots =
        |(best, _): (TopK<'_>, Vec<f32>)| best.into_sorted().into_iter().map(|scored| scored.slot).collect();
    Ok(best.into_iter().map(slots).collect())
}

/// The best rows of every query by their scores in f16, which nothing holds yet: one more pass.
fn best_in_halves(
    rows: &impl RowAccess,
    half: &Codec,
    asked: &[(String, Vec<f32>)],
) -> Result<Vec<Vec<Slot>>, Error> {
    let mut best = vec![TopK::new(deepest()); asked.len()];
    let mut failed = None;
    rows.scan(&mut |first, block| {
        // Halves lie at even addresses.
        let codes = match AlignedBytes::copy_of(&half.encode(block)) {
            Ok(codes) => codes,
            Err(error) => {
                failed = Some(error);
                return false;
            }
        };
        let coded = Coded { codec: half, codes: codes.as_slice() };
        let slots: Vec<u32> = (0..(block.len() / half.dim()) as u32).collect();
        best.par_iter_mut().zip(asked).for_each(|(best, (_, query))| {
            for (&slot, score) in slots.iter().zip(coded.scores(query, &slots)) {
                best.push(Scored { slot: Slot(first.0 + slot), score });
            }
        });
        true
    })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    let slots = |best: TopK<'_>| best.into_sorted().into_iter().map(|scored| scored.slot).collect();
    Ok(best.into_iter().map(slots).collect())
}

/// Notes the share of the true ten within each depth, by kind of query.
fn tally(
    asked: &[(String, Vec<f32>)],
    nearest: &[Vec<Slot>],
    by_codes: &[Vec<Slot>],
    codes: CodeKind,
    tried: &mut Vec<Tried>,
) {
    let mut sums: BTreeMap<&str, (usize, [f64; DEPTHS.len()])> = BTreeMap::new();
    for (((kind, _), near), found) in asked.iter().zip(nearest).zip(by_codes) {
        let truth = &near[..near.len().min(RECALL_K)];
        let (count, sum) = sums.entry(kind).or_default();
        *count += 1;
        for (sum, depth) in sum.iter_mut().zip(DEPTHS) {
            *sum += exact::recall(truth, &found[..depth.min(found.len())]);
        }
    }
    for (kind, (count, sum)) in sums {
        for (sum, rescore) in sum.into_iter().zip(DEPTHS) {
            let (kind, codes, within) = (kind.to_owned(), codes.word().to_owned(), sum / count as f64);
            tried.push(Tried { kind, codes, rescore, within });
        }
    }
}

/// The pair that costs least of those that leave enough within reach for every kind.
fn cheapest(tried: &[Tried], dim: usize, row_bytes: usize) -> Option<(CodeKind, usize)> {
    let kinds =
        [CodeKind::U4, CodeKind::U8, CodeKind::F16].into_iter().filter(|codes| dim <= codes.longest());
    let pairs = kinds.flat_map(|codes| DEPTHS.map(|rescore| (codes, rescore)));
    let enough = pairs.filter(|(codes, rescore)| {
        let mut of_pair =
            tried.iter().filter(|tried| tried.codes == codes.word() && tried.rescore == *rescore).peekable();
        of_pair.peek().is_some() && of_pair.all(|tried| tried.within >= ENOUGH)
    });
    let price = |(codes, rescore): &(CodeKind, usize)| {
        let stride = BuildParams { codes: *codes, ..BuildParams::default() }.code_bytes(dim) as f64;
        // What is rescored takes places of the beam.
        let places = SearchParams::DEFAULT_EF_SEARCH.max(*rescore) as f64;
        SCORED * places * (REACH + stride) + *rescore as f64 * (REACH + row_bytes as f64)
    };
    enough.min_by(|a, b| price(a).total_cmp(&price(b)))
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_pcg::Pcg64;

    use super::*;
    use crate::index::{InMemory, rows};

    const N: usize = 3000;

    /// Unit rows that differ in `live` of `dim` components, and queries of which the share `along` lies there.
    fn world(dim: usize, live: usize, along: f32, spread: f32) -> (Vec<f32>, Vec<Vec<f32>>) {
        let mut random = Pcg64::seed_from_u64(4);
        let mut unit = |live: usize, along: f32, spread: f32, centre: &[f32]| -> Vec<f32> {
            let mut row: Vec<f32> = (0..dim).map(|_| random.random_range(-1.0f32..1.0)).collect();
            let length = |part: &[f32]| crate::types::norm(part).max(1e-12) as f32;
            let (inside, outside) = row.split_at_mut(live);
            inside.iter_mut().zip(centre).for_each(|(v, c)| *v = c + spread * *v);
            let (a, b) = (length(inside), length(outside));
            inside.iter_mut().for_each(|v| *v *= along / a);
            outside.iter_mut().for_each(|v| *v *= (1.0 - along * along).max(0.0).sqrt() / b);
            row
        };
        let nothing = vec![0.0; live];
        let centre: Vec<f32> = (0..live).map(|i| (i % 3) as f32 - 1.0).collect();
        let around = if spread < 1.0 { &centre } else { &nothing };
        let rows = (0..N).flat_map(|_| unit(live, 1.0, spread, around)).collect();
        let queries = (0..60).map(|_| unit(live, along, spread, around)).collect();
        (rows, queries)
    }

    fn chosen(rows: &[f32], dim: usize, queries: Vec<Vec<f32>>) -> Choice {
        let matrix = InMemory { rows, dim };
        let [narrow, wide] = [CodeKind::U4, CodeKind::U8].map(|kind| Codec::train(kind, rows, dim));
        let [narrow_codes, wide_codes] = rows::encode(&matrix, [&narrow, &wide], &|_| ()).unwrap();
        let coded = [(&narrow, &narrow_codes[..]), (&wide, &wide_codes[..])]
            .map(|(codec, codes)| Coded { codec, codes });
        let queries = BTreeMap::from([("text".to_owned(), queries)]);
        let half = wide.in_floats(CodeKind::F16);
        choose(&matrix, coded, &half, 4 * dim, (&queries, QuerySource::Given)).unwrap()
    }

    #[test]
    fn codes_are_as_wide_as_the_ranking_needs() {
        // Long rows that differ everywhere: four bits tell them apart.
        let (rows, queries) = world(512, 512, 1.0, 1.0);
        assert_eq!(chosen(&rows, 512, queries).codes, "u4");
        // Queries that hardly lie where the rows differ.
        let (rows, queries) = world(128, 20, 0.15, 1.0);
        let choice = chosen(&rows, 128, queries);
        let short =
            |codes: &str| choice.tried.iter().find(|tried| tried.codes == codes && tried.rescore == 40);
        assert_eq!((choice.codes.as_str(), choice.rescore), ("u8", 40), "{choice:?}");
        assert!(short("u4").unwrap().within < 0.95 && short("u8").unwrap().within > 0.99, "{choice:?}");
        // Rows that are nearly the same: no eight bits are enough for what they differ in.
        let (rows, queries) = world(64, 64, 1.0, 1e-4);
        let choice = chosen(&rows, 64, queries);
        assert!(["f16", "f32"].contains(&choice.codes.as_str()) || choice.rescore > 40, "{choice:?}");
        assert_eq!(chosen(&rows, 64, Vec::new()).codes, "f32", "nothing was measured");
    }

    #[test]
    fn a_wider_code_is_cheaper_than_rescoring_many_short_rows() {
        let tried = |codes: &str, rescore: usize, within: f64| Tried {
            kind: "text".into(),
            codes: codes.into(),
            rescore,
            within,
        };
        let all = vec![tried("u4", 40, 0.9), tried("u4", 100, 0.996), tried("u8", 40, 0.999)];
        assert_eq!(cheapest(&all, 128, 512), Some((CodeKind::U8, 40)));
        // Of long ones, reading twice as much for every row costs more.
        assert_eq!(cheapest(&all, 2048, 8192), Some((CodeKind::U4, 100)));
        assert_eq!(cheapest(&all[..1], 128, 512), None);
    }
}
