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
use std::iter::once;

use super::calibrate::{ENOUGH, RECALL_K, RECALL_SAMPLE};
use super::{Error, Snapshot};
use crate::index::{SearchParams, TargetRecall};
use crate::store::RecallCurve;
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
        match beam(&record.recall, &record.recall_by, target, kind) {
            Some(Beam::Width(ef_search)) => Ok(SearchParams::of_beam(ef_search)),
            Some(Beam::Scan) => Ok(SearchParams { exact: true, ..SearchParams::default() }),
            None => Err(Error::NotCalibrated(self.record().name.clone())),
        }
    }
}

/// * `recall`: for queries like the stored rows, which are images. `by_kind`: for others. A sample of real queries that was
///   named `image` counts for more than moved rows.
fn beam(
    recall: &RecallCurve,
    by_kind: &BTreeMap<String, RecallCurve>,
    target: TargetRecall,
    kind: Option<&QueryKind>,
) -> Option<Beam> {
    let measured = |curve: &&RecallCurve| !curve.is_empty();
    let of_kind = |kind: &QueryKind| {
        let rows = (kind.as_str() == Modality::Image.word()).then_some(recall);
        by_kind.get(kind.as_str()).filter(measured).or(rows.filter(measured))
    };
    match kind.and_then(of_kind) {
        Some(curve) => Some(reach(curve, target)),
        None => once(recall).chain(by_kind.values()).filter(measured).map(|c| reach(c, target)).max(),
    }
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
        let find = |recall: &RecallCurve, kind: Option<QueryKind>, wished: f64| {
            beam(recall, &by_kind, target(wished), kind.as_ref())
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
        assert_eq!(beam(&vec![], &BTreeMap::new(), target(0.9), None), None);
        let named = BTreeMap::from([("image".to_owned(), vec![(48, 0.9)])]);
        assert_eq!(beam(&recall, &named, target(0.9), kind("image").as_ref()), Some(Beam::Width(48)));
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
