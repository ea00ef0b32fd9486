//! A wished recall becomes the width of a beam.
//!
//! ```text
//! ln(1 − recall)  ●
//!                   ╲●          measured points of one kind of query; between two of them a straight line,
//!      target ┄┄┄┄┄┄┄┄┄╲●       because what a beam misses falls about as a power of its width
//!                       ┆ ╲●
//!                      ln ef
//! ```
//!
//! A target that no measured beam reached, or that lies beyond what a sample can tell ([`ENOUGH`]), is reached by a scan of
//! every row, which is what happens then: a promise that is dear beats one that is broken. A kind that was not measured, or is not known, gets the widest beam that any measured kind
//! needs.
//!
//! The promise is of the ten nearest and of queries as those that were measured. For more hits at the same target, ask for
//! a higher one.

use std::collections::BTreeMap;

use super::calibrate::{ENOUGH, RECALL_K, RECALL_SAMPLE};
use super::{Error, Snapshot};
use crate::index::{SearchParams, TargetRecall};
use crate::store::{MarginCurve, MarginPoint, RecallCurve};
use crate::types::{Modality, QueryKind};

/// What a perfect measurement may have missed: one neighbour of the sample. Without it, a line towards ln 0 would promise
/// too much from the first point on.
const MISSED: f64 = 1.0 / (RECALL_SAMPLE * RECALL_K) as f64;

/// What reaches a target; later is dearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Beam {
    Width(usize),
    Scan,
}

impl Snapshot {
    /// How to search for a recall, as calibrated when the generation was built.
    ///
    /// * `kind`: of the query; without it, or when it was not calibrated, what suffices for every kind that was.
    ///
    /// # Errors
    /// [`Error::NotCalibrated`] for a generation whose recall was never measured.
    pub fn params_for(&self, target: TargetRecall, kind: Option<&QueryKind>) -> Result<SearchParams, Error> {
        let record = self.generation_record();
        match beam(&record.recall, &record.recall_by, &record.margins, target, kind) {
            Some((Beam::Width(ef_search), margin)) => {
                Ok(SearchParams { margin, ..SearchParams::of_beam(ef_search) })
            }
            Some((Beam::Scan, _)) => Ok(SearchParams { exact: true, ..SearchParams::default() }),
            None => Err(Error::NotCalibrated(self.record().name.clone())),
        }
    }
}

/// * `recall`: for queries like the stored rows, which are images. `by_kind`: for others. A sample of real queries that was
///   named `image` counts for more than moved rows. `margins`: by kind, the rows' under `image`.
fn beam(
    recall: &RecallCurve,
    by_kind: &BTreeMap<String, RecallCurve>,
    margins: &BTreeMap<String, MarginCurve>,
    target: TargetRecall,
    kind: Option<&QueryKind>,
) -> Option<(Beam, Option<f32>)> {
    let image = Modality::Image.word();
    let rows = Some((image, recall)).filter(|_| by_kind.get(image).is_none_or(Vec::is_empty));
    let named = by_kind.iter().map(|(kind, curve)| (kind.as_str(), curve));
    let measured = || rows.into_iter().chain(named.clone()).filter(|(_, curve)| !curve.is_empty());
    let reached = |(kind, curve): (&str, &RecallCurve)| {
        let plain = reach(curve, target);
        let with_margin = margins.get(kind).and_then(|points| reach_by_margin(points, target));
        match with_margin {
            Some((width, margin)) if Beam::Width(width) < plain => (Beam::Width(width), Some(margin)),
            _ => (plain, None),
        }
    };
    match measured().find(|(word, _)| kind.is_some_and(|kind| kind.as_str() == *word)) {
        Some(curve) => Some(reached(curve)),
        None => measured().map(reached).max_by_key(|&(beam, _)| beam),
    }
}

/// The narrowest beam that reaches a target by its margin, and the margin.
fn reach_by_margin(points: &MarginCurve, target: TargetRecall) -> Option<(usize, f32)> {
    let curve: RecallCurve = points.iter().map(|point| (point.ef_search, point.recall)).collect();
    let Beam::Width(width) = reach(&curve, target) else { return None };
    let at = points.iter().position(|point| point.ef_search >= width)?;
    let MarginPoint { ef_search: wide, margin, .. } = points[at];
    let Some(before) = at.checked_sub(1).map(|before| points[before]) else { return Some((width, margin)) };
    // Straight in the logarithm of the width.
    let share = (width as f32 / before.ef_search as f32).ln() / (wide as f32 / before.ef_search as f32).ln();
    Some((width, before.margin + share * (margin - before.margin)))
}

/// The narrowest beam of a curve that reaches a target.
///
/// * `curve`: by width, ascending; at least one point.
fn reach(curve: &RecallCurve, target: TargetRecall) -> Beam {
    let target = target.get();
    if target > ENOUGH {
        return Beam::Scan;
    }
    let Some(at) = curve.iter().position(|&(_, recall)| recall >= target) else { return Beam::Scan };
    let (width, recall) = curve[at];
    let Some((narrow, poor)) = at.checked_sub(1).map(|before| curve[before]) else {
        return Beam::Width(width);
    };
    let missed = |recall: f64| (1.0 - recall).max(MISSED).ln();
    let (from, to) = (missed(poor), missed(recall));
    // Above 0, because `poor` is below the target and `recall` is not.
    let share = (from - missed(target)) / (from - to);
    let (from, to) = ((narrow as f64).ln(), (width as f64).ln());
    // Rounded up; what the logarithms lose adds nothing to a whole number, and never leads out of the two.
    let ef_search = ((from + share * (to - from)).exp() - 1e-9).ceil() as usize;
    Beam::Width(ef_search.clamp(narrow, width))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn target(recall: f64) -> TargetRecall {
        TargetRecall::new(recall).unwrap()
    }

    fn kind(word: &str) -> Option<QueryKind> {
        Some(QueryKind::new(word).unwrap())
    }

    #[test]
    fn between_two_points_the_line_is_straight_in_logarithms() {
        let curve = vec![(16, 0.8), (64, 0.95), (256, 0.9875)];
        for (recall, expected) in [
            (0.5, Beam::Width(16)),
            (0.8, Beam::Width(16)),
            // Each halving of what is missed is a doubling of the beam here.
            (0.9, Beam::Width(32)),
            (0.95, Beam::Width(64)),
            (0.975, Beam::Width(128)),
            (0.9875, Beam::Width(256)),
            (0.99, Beam::Scan),
        ] {
            assert_eq!(reach(&curve, target(recall)), expected, "{recall}");
        }
    }

    #[test]
    fn a_perfect_measurement_does_not_promise_too_much() {
        // Towards ln 0 the line would be steep, and 16 would do for all.
        let Beam::Width(ef) = reach(&vec![(16, 0.9), (64, 1.0)], target(0.99)) else { panic!() };
        assert!((25..=60).contains(&ef), "{ef}");
        assert_eq!(reach(&vec![(16, 0.9995), (24, 1.0)], target(0.999)), Beam::Width(16));
        // Who never missed among two thousand may still miss one in a thousand.
        assert_eq!(reach(&vec![(16, 0.9995), (24, 1.0)], target(0.9995)), Beam::Scan);
    }

    #[test]
    fn what_is_not_known_gets_the_safe_beam() {
        let recall = vec![(16, 0.99)];
        let by_kind =
            BTreeMap::from([("text".to_owned(), vec![(16, 0.8), (64, 0.95)]), ("audio".to_owned(), vec![])]);
        let none = BTreeMap::new();
        let find = |recall: &RecallCurve, kind: Option<QueryKind>, wished: f64| {
            beam(recall, &by_kind, &none, target(wished), kind.as_ref()).map(|(beam, _)| beam)
        };
        assert_eq!(find(&recall, kind("image"), 0.9), Some(Beam::Width(16)));
        assert_eq!(find(&recall, kind("text"), 0.95), Some(Beam::Width(64)));
        for unknown in [None, kind("video"), kind("audio")] {
            assert_eq!(find(&recall, unknown.clone(), 0.95), Some(Beam::Width(64)), "{unknown:?}");
            assert_eq!(find(&recall, unknown, 0.96), Some(Beam::Scan));
        }
        assert_eq!(find(&recall, kind("image"), 0.96), Some(Beam::Width(16)));
        // Without a curve of the rows, images are as unknown as the rest.
        assert_eq!(find(&vec![], kind("image"), 0.95), Some(Beam::Width(64)));
        assert_eq!(beam(&vec![], &BTreeMap::new(), &none, target(0.9), None), None);
        let named = BTreeMap::from([("image".to_owned(), vec![(48, 0.9)])]);
        let image = beam(&recall, &named, &none, target(0.9), kind("image").as_ref());
        assert_eq!(image, Some((Beam::Width(48), None)));
    }

    #[test]
    fn a_margin_is_used_where_it_reaches_a_target_with_less() {
        let by_kind = BTreeMap::from([("text".to_owned(), vec![(16, 0.8), (64, 0.95), (256, 0.98)])]);
        let point = |ef_search, margin, recall| MarginPoint { ef_search, margin, recall };
        let margins = BTreeMap::from([
            ("image".to_owned(), vec![point(16, 0.2, 0.97)]),
            ("text".to_owned(), vec![point(16, 0.01, 0.7), point(64, 0.03, 0.975), point(256, 0.05, 0.99)]),
        ]);
        let find = |word: &str, wished: f64| {
            beam(&vec![(16, 0.98)], &by_kind, &margins, target(wished), kind(word).as_ref()).unwrap()
        };
        assert_eq!(find("text", 0.975), (Beam::Width(64), Some(0.03)));
        assert_eq!(find("text", 0.99), (Beam::Width(256), Some(0.05)));
        let (Beam::Width(width), Some(margin)) = find("text", 0.985) else { panic!() };
        let expected = 0.03 + 0.02 * (width as f32 / 64.0).log(4.0);
        assert!((65..256).contains(&width) && (margin - expected).abs() < 1e-6, "{width} {margin}");
        // Where it gains nothing, there is none.
        assert_eq!(find("text", 0.8), (Beam::Width(16), None));
        assert_eq!(find("image", 0.97), (Beam::Width(16), None));
        assert_eq!(find("text", 0.995), (Beam::Scan, None));
        // The dearest of all, with the margin of its own kind.
        assert_eq!(find("audio", 0.975), (Beam::Width(64), Some(0.03)));
    }

    proptest! {
        #[test]
        fn a_higher_target_never_gets_a_narrower_beam(
            points in prop::collection::vec((1usize..200, 0.0f64..=1.0), 1..12),
            a in 0.5f64..0.9999, b in 0.5f64..0.9999,
        ) {
            let mut width = 0;
            let curve: RecallCurve = points.into_iter().map(|(step, recall)| {
                width += step;
                (width, recall)
            }).collect();
            let (low, high) = (reach(&curve, target(a.min(b))), reach(&curve, target(a.max(b))));
            prop_assert!(low <= high, "{low:?} for {}, {high:?} for {}", a.min(b), a.max(b));
            if let Beam::Width(ef) = high {
                prop_assert!((curve[0].0..=width).contains(&ef));
            }
        }
    }
}
