//! A wished recall becomes a beam and a depth of rescoring: the cheapest pair that was measured to reach it.
//!
//! ```text
//! ln(1 − recall)  ●
//!                   ╲●          measured points of one kind of query; between two of them a straight line,
//!      target ┄┄┄┄┄┄┄┄┄╲●       because what a beam misses falls about as a power of its width
//!                       ┆ ╲●
//!                      ln ef
//! ```
//!
//! Of several ways that reach a target (by margins or without, rescoring more or less) the one that costs least is taken, in
//! rows scored. A target that no measured way reached, or that lies beyond what a measurement can tell ([`ENOUGH`]), is reached
//! by a scan of every row, which is what happens then: a promise that is dear beats one that is broken.
//!
//! **A promise is only as good as its sample.** Of few queries, a share that was found may be luck: more is asked of it, so
//! that the truth is not more than [`SLACK`] below the target, 99 times in 100. And by `n` queries of which none missed anything,
//! no more is known than that less than 3 in 10·n neighbours are missed (the rule of three): a target beyond that counts as not
//! measured.
//!
//! A kind that was not measured, or is not known, gets a beam that is as wide, and rescores as many, as any measured kind needs,
//! without a margin: margins of one kind say nothing of another. It is never narrower than the usual beam for such a kind: of spoken
//! scenes, which were not measured, a beam that was enough for pictures and made queries found 0.6 where 0.95 was asked for
//! (`benches/nano.rs`).
//!
//! The promise is of the ten nearest, or of the hundred where more hits are wanted ([`of_many`]), and of queries as those that were
//! measured.

use std::borrow::Cow;

use super::apart::APART;
use super::calibrate::{ENOUGH, MANY, RECALL_K};
use super::{Error, Snapshot};
use crate::index::{SearchParams, TargetRecall};
use crate::store::{GenerationRecord, Measured, RecallCurve, RecallPoint};
use crate::types::{Modality, QueryKind};

/// How far below a target its truth may lie.
const SLACK: f64 = 0.01;
/// Deviations that a share of few queries may err by: one in a hundred errs by more, to the side that counts.
const DEVIATIONS: f64 = 2.33;
/// Neighbours of one query are missed together: so many are worth one that is independent.
const TOGETHER: f64 = 3.0;

/// Queries that a curve is taken to be of when it is not known how many they were: it is believed, as it was when it was measured.
const UNCOUNTED: usize = 2000;

/// What reaches a target.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    /// A beam.
    Beam(RecallPoint),
    /// All rows.
    Scan,
}

impl Snapshot {
    /// How to search where nobody has said how wide: wider for a kind of query that was not measured.
    ///
    /// * `params`: all but the width is taken from them. `kind`: as in [`Snapshot::params_for`].
    pub fn usual(&self, params: SearchParams, kind: Option<&QueryKind>) -> SearchParams {
        SearchParams { ef_search: usual(self.generation_record(), kind), ..params }
    }

    /// How to search for a recall, as calibrated when the generation was built.
    ///
    /// * `kind`: of the query; without it, or when it was not calibrated, what suffices for every kind that was. `top_k`: hits that
    ///   are wanted: of more than ten, the recall is that of a hundred.
    ///
    /// # Errors
    /// [`Error::NotCalibrated`] for a generation whose recall was never measured.
    pub fn params_for(
        &self,
        target: TargetRecall,
        kind: Option<&QueryKind>,
        top_k: usize,
    ) -> Result<SearchParams, Error> {
        let mut measured = kinds(self.generation_record());
        if top_k > RECALL_K {
            measured = measured.into_iter().map(|(kind, measured)| (kind, of_many(measured))).collect();
        }
        let measured: Vec<(&str, &Measured)> =
            measured.iter().map(|(kind, measured)| (kind.as_str(), measured.as_ref())).collect();
        match way(&measured, target, kind, self.row_price(), usual(self.generation_record(), kind)) {
            Some(Way::Beam(RecallPoint { ef_search, rescore, margin, scan, .. })) => Ok(SearchParams {
                ef_search,
                rescore: Some(rescore),
                margin,
                scan,
                ..SearchParams::default()
            }),
            Some(Way::Scan) => Ok(SearchParams { exact: true, ..SearchParams::default() }),
            // What has no generation is scanned whatever is asked for.
            None if self.index().is_empty() => Ok(SearchParams { exact: true, ..SearchParams::default() }),
            None => Err(Error::NotCalibrated(self.record().name.clone())),
        }
    }
}

/// The usual beam for queries of a kind.
fn usual(generation: &GenerationRecord, kind: Option<&QueryKind>) -> usize {
    let measured = kinds(generation);
    let mut measured = measured.iter().map(|(word, _)| word.as_str());
    let known = match kind {
        Some(kind) => measured.any(|word| word == kind.as_str()),
        // One of those that were measured, if any are but the rows' own and what was made for want of queries.
        None => measured.any(|word| word != Modality::Image.word() && word != APART),
    };
    if known { SearchParams::DEFAULT_EF_SEARCH } else { SearchParams::UNMEASURED_EF_SEARCH }
}

/// What was measured of a hundred hits, as if of ten: beams without margins, that score as many again. What was measured before
/// more than ten were looked at is taken as it is.
fn of_many(measured: Cow<'_, Measured>) -> Cow<'_, Measured> {
    let of_way = |points: &Vec<RecallPoint>| -> Vec<RecallPoint> {
        let of_point = |point: &RecallPoint| {
            let (recall, rescore) = (point.recall_100?, point.rescore.max(MANY));
            Some(RecallPoint { recall, rescore, ..*point })
        };
        points.iter().filter_map(of_point).collect()
    };
    let ways: Vec<Vec<RecallPoint>> =
        measured.ways.iter().map(of_way).filter(|points| !points.is_empty()).collect();
    match ways.is_empty() {
        true => measured,
        false => Cow::Owned(Measured { queries: measured.queries, ways }),
    }
}

/// What was measured, by kind. The rows' own stand for images, unless a sample of real queries was named so.
fn kinds(record: &GenerationRecord) -> Vec<(String, Cow<'_, Measured>)> {
    let own = record.measured.iter().map(|(kind, measured)| (kind.clone(), Cow::Borrowed(measured)));
    if !record.measured.is_empty() {
        return own.collect();
    }
    // A generation of before: curves by width alone, of which it is not known how many queries they are of.
    let of_curve = |curve: &RecallCurve| {
        let point = |&(ef_search, recall): &(usize, f64)| RecallPoint {
            ef_search,
            rescore: SearchParams::DEFAULT_RESCORE.min(ef_search),
            margin: None,
            scan: false,
            recall,
            recall_100: None,
            scored: ef_search as f64,
        };
        Cow::Owned(Measured { queries: UNCOUNTED, ways: vec![curve.iter().map(point).collect()] })
    };
    let image = Modality::Image.word();
    let rows =
        Some((image, &record.recall)).filter(|_| record.recall_by.get(image).is_none_or(Vec::is_empty));
    let given = record.recall_by.iter().map(|(kind, curve)| (kind.as_str(), curve));
    let all = rows.into_iter().chain(given).filter(|(_, curve)| !curve.is_empty());
    all.map(|(kind, curve)| (kind.to_owned(), of_curve(curve))).collect()
}

/// * `measured`: by kind; nothing that is empty. `row_price`: of a row scored in full, in rows scored on codes. `usual`: the least
///   width for a kind that was not measured.
fn way(
    measured: &[(&str, &Measured)],
    target: TargetRecall,
    kind: Option<&QueryKind>,
    row_price: f64,
    usual: usize,
) -> Option<Way> {
    let target = target.get();
    if measured.is_empty() {
        return None;
    }
    let own = measured.iter().find(|(word, _)| kind.is_some_and(|kind| kind.as_str() == *word));
    if let Some((_, own)) = own.filter(|(_, own)| tells(own.queries, target)) {
        return Some(cheapest(own, target, row_price, |_| true));
    }
    // What little its own sample says counts as well.
    let known = measured
        .iter()
        .filter(|(word, of)| tells(of.queries, target) || own.is_some_and(|(own, _)| own == word));
    if !measured.iter().any(|(_, of)| tells(of.queries, target)) {
        return Some(Way::Scan);
    }
    let plain = |points: &[RecallPoint]| points.iter().all(|point| point.margin.is_none());
    let enough = known.map(|(_, of)| cheapest(of, target, row_price, plain)).reduce(wider);
    // What is easy for those that were measured may be hard for others.
    enough.map(|way| match way {
        Way::Beam(point) => Way::Beam(RecallPoint { ef_search: point.ef_search.max(usual), ..point }),
        Way::Scan => Way::Scan,
    })
}

/// Whether so many queries can tell that a target is reached.
fn tells(queries: usize, target: f64) -> bool {
    target <= 1.0 - 3.0 / (queries * RECALL_K) as f64 + 1e-9
}

/// The recall that so many queries must show for a target.
fn needed(queries: usize, target: f64) -> f64 {
    let error = (target * (1.0 - target) * TOGETHER / (queries * RECALL_K) as f64).sqrt();
    (target + (DEVIATIONS * error - SLACK).max(0.0)).min(ENOUGH.max(target))
}

/// The way that costs least of those that reach a target.
fn cheapest(
    measured: &Measured,
    target: f64,
    row_price: f64,
    allowed: impl Fn(&[RecallPoint]) -> bool,
) -> Way {
    // What a perfect measurement may have missed: one neighbour of the sample. Without it, a line towards ln 0 would promise too
    // much from the first point on.
    let missed = 1.0 / (measured.queries * RECALL_K).max(1) as f64;
    let needed = needed(measured.queries, target);
    let ways = measured.ways.iter().filter(|points| allowed(points));
    let reached = ways.filter_map(|points| reach(points, needed, missed));
    let price = |point: &RecallPoint| point.scored + row_price * point.rescore as f64;
    reached.min_by(|a, b| price(a).total_cmp(&price(b))).map_or(Way::Scan, Way::Beam)
}

/// What does for both.
fn wider(one: Way, other: Way) -> Way {
    match (one, other) {
        (Way::Beam(one), Way::Beam(other)) => Way::Beam(RecallPoint {
            ef_search: one.ef_search.max(other.ef_search),
            rescore: one.rescore.max(other.rescore),
            margin: None,
            scan: one.scan || other.scan,
            recall: one.recall.min(other.recall),
            recall_100: None,
            scored: one.scored.max(other.scored),
        }),
        _ => Way::Scan,
    }
}

/// The narrowest beam of one way that shows a recall.
///
/// * `points`: by width, ascending. `missed`: the least share that is taken for missed.
fn reach(points: &[RecallPoint], needed: f64, missed: f64) -> Option<RecallPoint> {
    if needed > ENOUGH {
        return None;
    }
    let at = points.iter().position(|point| point.recall >= needed)?;
    let wide = points[at];
    // Between a beam and a scan there is nothing: a beam a little narrower than the scan finds what the narrow beam found.
    let narrow = at.checked_sub(1).map(|before| points[before]).filter(|_| !wide.scan);
    let Some(narrow) = narrow else { return Some(wide) };
    let missed = |recall: f64| (1.0 - recall).max(missed).ln();
    let (from, to) = (missed(narrow.recall), missed(wide.recall));
    // Above 0, because the narrow one's recall is below what is needed and the wide one's is not; where both are taken for
    // perfect, the wide one it is.
    let share = if from > to { (from - missed(needed)) / (from - to) } else { 1.0 };
    let (from, to) = ((narrow.ef_search as f64).ln(), (wide.ef_search as f64).ln());
    // Rounded up; what the logarithms lose adds nothing to a whole number, and never leads out of the two.
    let ef_search = ((from + share * (to - from)).exp() - 1e-9).ceil() as usize;
    let ef_search = ef_search.clamp(narrow.ef_search, wide.ef_search);
    // All else is straight in the logarithm of the width.
    let share = ((ef_search as f64).ln() - from) / (to - from);
    let between = |narrow: f64, wide: f64| narrow + share * (wide - narrow);
    let margin = match (narrow.margin, wide.margin) {
        (Some(narrow), Some(wide)) => Some(between(f64::from(narrow), f64::from(wide)) as f32),
        (_, margin) => margin,
    };
    Some(RecallPoint {
        ef_search,
        rescore: wide.rescore.min(ef_search),
        margin,
        scan: false,
        recall: needed,
        recall_100: None,
        scored: between(narrow.scored, wide.scored),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn way(
        measured: &[(&str, &Measured)],
        target: TargetRecall,
        kind: Option<&QueryKind>,
        row_price: f64,
    ) -> Option<Way> {
        super::way(measured, target, kind, row_price, SearchParams::DEFAULT_EF_SEARCH)
    }

    fn target(recall: f64) -> TargetRecall {
        TargetRecall::new(recall).unwrap()
    }

    fn kind(word: &str) -> Option<QueryKind> {
        Some(QueryKind::new(word).unwrap())
    }

    fn point(ef_search: usize, recall: f64) -> RecallPoint {
        RecallPoint {
            ef_search,
            rescore: ef_search.min(40),
            margin: None,
            scan: false,
            recall,
            recall_100: None,
            scored: 10.0 * ef_search as f64,
        }
    }

    fn curve(points: &[(usize, f64)]) -> Vec<RecallPoint> {
        points.iter().map(|&(ef_search, recall)| point(ef_search, recall)).collect()
    }

    fn of(queries: usize, points: &[(usize, f64)]) -> Measured {
        Measured { queries, ways: vec![curve(points)] }
    }

    /// The width that is found; 0 for a scan.
    fn width(way: Option<Way>) -> Option<usize> {
        way.map(|way| match way {
            Way::Beam(point) => point.ef_search,
            Way::Scan => 0,
        })
    }

    const MANY_QUERIES: usize = 1_000_000;

    #[test]
    fn between_two_points_the_line_is_straight_in_logarithms() {
        let text = of(MANY_QUERIES, &[(16, 0.8), (64, 0.95), (256, 0.9875)]);
        for (recall, expected) in [
            (0.5, 16),
            (0.8, 16),
            // Each halving of what is missed is a doubling of the beam here.
            (0.9, 32),
            (0.95, 64),
            (0.975, 128),
            (0.9875, 256),
            (0.99, 0),
        ] {
            let way = way(&[("text", &text)], target(recall), kind("text").as_ref(), 1.0);
            assert_eq!(width(way), Some(expected), "{recall}");
        }
    }

    #[test]
    fn between_a_beam_and_a_scan_there_is_nothing() {
        let scan = |ef_search, recall| RecallPoint { scan: true, ..point(ef_search, recall) };
        // Of 6000 rows, 96 is a beam and 128 a scan; 110 would be a beam that finds 0.9.
        let text = Measured {
            queries: MANY_QUERIES,
            ways: vec![vec![point(96, 0.9), scan(128, 0.998), scan(192, 1.0)]],
        };
        let image = of(MANY_QUERIES, &[(16, 0.999)]);
        let find = |wished, of: &str| {
            way(&[("image", &image), ("text", &text)], target(wished), kind(of).as_ref(), 1.0).unwrap()
        };
        assert_eq!(find(0.9, "text"), Way::Beam(point(96, 0.9)));
        for wished in [0.91, 0.95, 0.99, 0.998] {
            let Way::Beam(found) = find(wished, "text") else { panic!("no way to {wished}") };
            assert_eq!((found.ef_search, found.scan), (128, true), "{wished}");
            let Way::Beam(unknown) = find(wished, "audio") else { panic!("no way to {wished}") };
            assert!(unknown.scan, "{wished}: what one kind needs a scan for, an unknown one does");
        }
    }

    #[test]
    fn more_hits_go_by_what_was_measured_of_a_hundred() {
        let hundred = |ef_search, recall, recall_100| RecallPoint {
            recall_100: Some(recall_100),
            ..point(ef_search, recall)
        };
        let margin = RecallPoint { margin: Some(0.1), ..point(64, 0.999) };
        let text = Measured {
            queries: MANY_QUERIES,
            ways: vec![
                vec![point(64, 0.95), hundred(128, 0.99, 0.8), hundred(256, 0.999, 0.95)],
                vec![margin],
            ],
        };
        let many = of_many(Cow::Borrowed(&text));
        let find = |wished| {
            let measured: [(&str, &Measured); 1] = [("text", &many)];
            way(&measured, target(wished), kind("text").as_ref(), 1.0)
        };
        let Some(Way::Beam(found)) = find(0.95) else { panic!("no beam") };
        assert_eq!((found.ef_search, found.rescore, found.margin), (256, MANY, None));
        assert_eq!(width(find(0.8)), Some(128));
        assert_eq!(find(0.99), Some(Way::Scan), "no beam has found as many of a hundred");
        // What knows of ten alone says what it knows.
        let old = of(MANY_QUERIES, &[(64, 0.95)]);
        assert_eq!(*of_many(Cow::Borrowed(&old)), old);
    }

    #[test]
    fn a_perfect_measurement_does_not_promise_too_much() {
        let find = |queries, points: &[(usize, f64)], wished| {
            width(way(&[("text", &of(queries, points))], target(wished), kind("text").as_ref(), 1.0)).unwrap()
        };
        // Towards ln 0 the line would be steep, and 16 would do for all.
        let ef = find(300, &[(16, 0.9), (64, 1.0)], 0.99);
        assert!((25..=60).contains(&ef), "{ef}");
        assert_eq!(find(300, &[(16, 0.9995), (24, 1.0)], 0.999), 16);
        // Who never missed among three thousand may still miss one in a thousand.
        assert_eq!(find(300, &[(16, 0.9995), (24, 1.0)], 0.9995), 0);
        // What ten or one did not miss says less.
        assert_eq!(find(10, &[(16, 1.0)], 0.97), 16);
        assert_eq!(find(10, &[(16, 1.0)], 0.98), 0);
        assert_eq!(find(1, &[(16, 1.0)], 0.7), 16);
        assert_eq!(find(1, &[(16, 1.0)], 0.9), 0);
    }

    #[test]
    fn more_is_asked_of_few_queries() {
        let points = [(16, 0.90), (32, 0.95), (64, 0.99), (128, 1.0)];
        let find = |queries, wished| {
            width(way(&[("text", &of(queries, &points))], target(wished), kind("text").as_ref(), 1.0))
                .unwrap()
        };
        let (few, some, many) = (find(30, 0.9), find(300, 0.9), find(3000, 0.9));
        assert!(few > some && some > many && many == 16, "{few} {some} {many}");
        assert_eq!(find(30, 0.99), 128, "thirty that missed nothing");
        // A share of a hundredth less is within the promise.
        assert_eq!(find(3000, 0.99), 64);
    }

    #[test]
    fn what_is_not_known_gets_the_safe_beam() {
        let (image, text) = (of(MANY_QUERIES, &[(16, 0.99)]), of(MANY_QUERIES, &[(16, 0.8), (64, 0.95)]));
        let all = [("image", &image), ("text", &text)];
        let find = |measured: &[(&str, &Measured)], kind: Option<QueryKind>, wished: f64| {
            width(way(measured, target(wished), kind.as_ref(), 1.0))
        };
        assert_eq!(find(&all, kind("image"), 0.9), Some(16));
        assert_eq!(find(&all, kind("text"), 0.95), Some(64));
        for unknown in [None, kind("video"), kind("audio")] {
            assert_eq!(
                find(&all, unknown.clone(), 0.95),
                Some(96),
                "not narrower than the default: {unknown:?}"
            );
            assert_eq!(find(&all, unknown, 0.96), Some(0));
        }
        assert_eq!(find(&all, kind("image"), 0.96), Some(16));
        assert_eq!(find(&all[1..], kind("image"), 0.95), Some(96));
        assert_eq!(find(&[], None, 0.9), None);
        // A sample of its own that is too small counts with those of the others.
        let few = of(3, &[(480, 1.0)]);
        assert_eq!(find(&[("audio", &few), all[0]], kind("audio"), 0.98), Some(480));
        assert_eq!(
            find(&[("audio", &few), all[0]], kind("text"), 0.98),
            Some(96),
            "to others it says nothing"
        );
        let poor = of(3, &[(48, 0.9)]);
        assert_eq!(find(&[("audio", &poor), all[0]], kind("audio"), 0.98), Some(0));
    }

    #[test]
    fn unknown_kinds_are_not_promised_by_margins() {
        // By its margin one kind looks cheap, and its width says nothing of the width that another needs.
        let margin =
            |ef_search, margin, recall| RecallPoint { margin: Some(margin), ..point(ef_search, recall) };
        let text = Measured {
            queries: MANY_QUERIES,
            ways: vec![curve(&[(64, 0.97), (128, 0.99)]), vec![margin(64, 0.02, 0.99)]],
        };
        let audio = of(MANY_QUERIES, &[(64, 0.985), (96, 0.992)]);
        let all = [("audio", &audio), ("text", &text)];
        let Some(Way::Beam(own)) = way(&all, target(0.99), kind("text").as_ref(), 1.0) else { panic!() };
        assert_eq!((own.ef_search, own.margin), (64, Some(0.02)));
        let Some(Way::Beam(unknown)) = way(&all, target(0.99), None, 1.0) else { panic!() };
        assert_eq!((unknown.ef_search, unknown.margin), (128, None));
    }

    #[test]
    fn the_cheapest_pair_is_taken() {
        let deep = |ef_search, recall| RecallPoint { rescore: 200, ..point(ef_search, recall) };
        let margin = |ef_search, recall, scored| RecallPoint {
            margin: Some(ef_search as f32 / 1000.0),
            scored,
            ..point(ef_search, recall)
        };
        let text = Measured {
            queries: MANY_QUERIES,
            ways: vec![
                curve(&[(64, 0.80), (512, 0.98)]),
                vec![margin(64, 0.85, 500.0), margin(256, 0.95, 2000.0)],
                vec![deep(256, 0.985), deep(512, 0.995)],
            ],
        };
        let find = |wished, price| match way(&[("text", &text)], target(wished), kind("text").as_ref(), price)
        {
            Some(Way::Beam(point)) => (point.ef_search, point.rescore, point.margin.is_some()),
            _ => (0, 0, false),
        };
        assert_eq!(find(0.85, 1.0), (64, 40, true));
        assert_eq!(find(0.95, 8.0), (256, 40, true));
        // Rescoring more beats a wider beam where rows are cheap, and not where they are dear.
        assert_eq!(find(0.98, 1.0), (256, 200, false));
        assert_eq!(find(0.98, 64.0), (512, 40, false));
        assert_eq!(find(0.99, 64.0).1, 200);
        assert_eq!(find(0.998, 1.0), (0, 0, false));
        let Some(Way::Beam(between)) = way(&[("text", &text)], target(0.9), kind("text").as_ref(), 8.0)
        else {
            panic!()
        };
        let expected = 0.064 + 0.192 * (between.ef_search as f32 / 64.0).log(4.0);
        assert!((65..256).contains(&between.ef_search), "{between:?}");
        assert!((between.margin.unwrap() - expected).abs() < 1e-6, "{between:?}");
    }

    proptest! {
        #[test]
        fn a_higher_target_never_gets_a_narrower_beam(
            points in prop::collection::vec((1usize..200, 0.0f64..=1.0), 1..12),
            queries in 1usize..5000,
            a in 0.5f64..0.9999, b in 0.5f64..0.9999,
        ) {
            let mut width = 0;
            let points: Vec<(usize, f64)> = points.into_iter().map(|(step, recall)| {
                width += step;
                (width, recall)
            }).collect();
            let measured = of(queries, &points);
            let find = |wished| cheapest(&measured, wished, 1.0, |_| true);
            let (low, high) = (find(a.min(b)), find(a.max(b)));
            if let Way::Beam(high) = high {
                let Way::Beam(low) = low else { return Err(TestCaseError::fail("a scan for less")) };
                prop_assert!(low.ef_search <= high.ef_search, "{low:?} {high:?}");
                prop_assert!((points[0].0..=width).contains(&high.ef_search));
            }
        }
    }
}
