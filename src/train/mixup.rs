//! Two pictures become one, and so do their labels: mixup and cutmix of a whole batch.
//!
//! ```text
//! random ─► choose ─► Choice ─► apply: pictures in place, soft targets out
//!
//! partner of picture i of B:   B − 1 − i, the batch in reverse order
//! mixup    λ·x + (1−λ)·partner, everywhere                               target  λ·y + (1−λ)·y of the partner
//! cutmix   the partner's pixels in a box of about 1−λ of the area        λ is then what the box left: 1 − box/area
//! y        1 − s + s/C at the label, s/C elsewhere                       s: smoothing
//! ```
//!
//! Chance and arithmetic are apart, so that a choice can be made by hand, stored, or told by another program.
//!
//! **The box is even.** Its side is `⌊S·√(1−λ)⌋`, and half of that is rounded down again before it is laid around the centre: a
//! side of 9 becomes 8, and one of 1 no box at all. The published program does so, and the recorded choices show it.
//!
//! λ ~ Beta(α, α). Below α = 1 by Jöhnk's method, in logarithms because `u^(1/α)` runs out of an f64; from 1 on by drawing
//! evenly and keeping as the density says.
//!
//! Left out: a choice for each picture or pair, and boxes drawn between bounds; no recipe uses them.
//!
//! Source: Zhang et al., arXiv 1710.09412; Yun et al., arXiv 1905.04899; timm 0.5.4, `data/mixup.py`, batch mode.

use std::ops::Range;

use rand::RngExt;
use rand_pcg::Pcg64;
use serde::{Deserialize, Serialize};

use super::{Error, from_zero, within};

/// How often and how much is mixed, as a recipe says it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// α of mixup: the higher, the nearer λ comes to a half. 0 is no mixup.
    pub mixup_alpha: f64,
    /// α of cutmix. 0 is no cutmix.
    pub cutmix_alpha: f64,
    /// Share of the batches that are mixed at all.
    #[serde(default = "Options::all")]
    pub probability: f64,
    /// Share of cutmix among those, where there are both.
    #[serde(default = "Options::half")]
    pub cutmix_share: f64,
}

impl Options {
    /// Default of [`Options::probability`].
    pub const DEFAULT_PROBABILITY: f64 = 1.0;
    /// Default of [`Options::cutmix_share`].
    pub const DEFAULT_CUTMIX_SHARE: f64 = 0.5;

    fn all() -> f64 {
        Self::DEFAULT_PROBABILITY
    }

    fn half() -> f64 {
        Self::DEFAULT_CUTMIX_SHARE
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Parameter`] naming the field, its value and what is allowed.
    pub fn check(&self) -> Result<(), Error> {
        from_zero("mixup_alpha", self.mixup_alpha)?;
        from_zero("cutmix_alpha", self.cutmix_alpha)?;
        for (name, share) in [("probability", self.probability), ("cutmix_share", self.cutmix_share)] {
            within(name, share, (0.0..=1.0).contains(&share), "a number from 0 to 1")?;
        }
        Ok(())
    }
}

/// What is done with a batch. `lambda` is the share that stays each picture's own, in `[0, 1]`.
#[derive(Debug, Clone, PartialEq)]
pub enum Choice {
    /// Nothing.
    Plain,
    /// Partners show through each other.
    Mixup {
        /// The share.
        lambda: f64,
    },
    /// A box of every picture is its partner's.
    Cutmix {
        /// The share outside of the box, by area.
        lambda: f64,
        /// Rows of the box.
        rows: Range<usize>,
        /// Columns of the box.
        columns: Range<usize>,
    },
}

impl Choice {
    /// The box that leaves about `lambda` of a square picture, around a centre, as far as it lies in the picture.
    ///
    /// * `side`: of the picture. `centre`: row and column.
    pub fn cutmix(lambda: f64, centre: [usize; 2], side: usize) -> Self {
        let half = (side as f64 * (1.0 - lambda).max(0.0).sqrt()) as usize / 2;
        let [rows, columns] =
            centre.map(|centre| centre.saturating_sub(half).min(side)..centre.saturating_add(half).min(side));
        let area = (side * side).max(1) as f64;
        Choice::Cutmix { lambda: 1.0 - (rows.len() * columns.len()) as f64 / area, rows, columns }
    }
}

/// Chooses for one batch.
///
/// Draws, in this order and only those that are needed: whether to mix, which of the two, λ, the row and the column of the
/// centre.
///
/// * `side`: of the square pictures, above 0 where boxes are to be chosen.
///
/// # Errors
/// As [`Options::check`].
pub fn choose(random: &mut Pcg64, side: usize, options: &Options) -> Result<Choice, Error> {
    options.check()?;
    let Options { mixup_alpha, cutmix_alpha, probability, cutmix_share } = *options;
    if (mixup_alpha == 0.0 && cutmix_alpha == 0.0) || random.random::<f64>() >= probability {
        return Ok(Choice::Plain);
    }
    let cut = match (mixup_alpha > 0.0, cutmix_alpha > 0.0) {
        (true, true) => random.random::<f64>() < cutmix_share,
        (_, cut) => cut,
    };
    if !cut {
        return Ok(Choice::Mixup { lambda: beta(random, mixup_alpha) });
    }
    let lambda = beta(random, cutmix_alpha);
    let centre = [(); 2].map(|()| if side > 0 { random.random_range(0..side) } else { 0 });
    Ok(Choice::cutmix(lambda, centre, side))
}

/// Mixes a batch in place, and makes its targets, `[B, classes]` (as [`targets`]).
///
/// * `images`: `[B, C, H, W]`, prepared. `shape`: that. `labels`: a class for each picture.
///
/// # Errors
/// [`Error::Pictures`], [`Error::Outside`] and [`Error::Odd`] for pictures that do not fit the choice; as [`targets`]. Nothing
/// is changed then.
pub fn apply(
    choice: &Choice,
    images: &mut [f32],
    shape: [usize; 4],
    labels: &[u32],
    classes: usize,
    smoothing: f64,
) -> Result<Vec<f32>, Error> {
    let [batch, channels, height, width] = shape;
    let expected = shape.iter().fold(1usize, |all, &part| all.saturating_mul(part));
    if images.len() != expected {
        return Err(Error::Pictures { shape, expected, received: images.len() });
    }
    if labels.len() != batch {
        return Err(Error::Labels { expected: batch, received: labels.len() });
    }
    if let Choice::Cutmix { rows, columns, .. } = choice
        && (rows.end > height || columns.end > width || rows.start > rows.end || columns.start > columns.end)
    {
        return Err(Error::Outside { rows: rows.clone(), columns: columns.clone(), height, width });
    }
    let targets = targets(choice, labels, classes, smoothing)?;
    let (first, second) = images.split_at_mut(expected / 2);
    let size = channels * height * width;
    // Without pixels there is nothing to mix, and no picture to take in turn.
    if size == 0 {
        return Ok(targets);
    }
    for (one, other) in first.chunks_exact_mut(size).zip(second.rchunks_exact_mut(size)) {
        match choice {
            Choice::Plain => {}
            Choice::Mixup { lambda } => mix(one, other, *lambda),
            Choice::Cutmix { rows, columns, .. } => {
                for row in
                    (0..channels).flat_map(|channel| rows.clone().map(move |row| channel * height + row))
                {
                    let cut = row * width + columns.start..row * width + columns.end;
                    one[cut.clone()].swap_with_slice(&mut other[cut]);
                }
            }
        }
    }
    Ok(targets)
}

/// Soft targets of a batch, `[B, classes]`; each row sums to 1. With [`Choice::Plain`], those of label smoothing alone.
///
/// * `smoothing`: the share that all classes have alike, in `[0, 1)`.
///
/// # Errors
/// [`Error::Label`] for a label that is no class, [`Error::Parameter`] for another smoothing or λ, [`Error::Odd`] where labels
/// are to be mixed in pairs and cannot.
pub fn targets(choice: &Choice, labels: &[u32], classes: usize, smoothing: f64) -> Result<Vec<f32>, Error> {
    within("smoothing", smoothing, (0.0..1.0).contains(&smoothing), "a number from 0 to 1, 1 excluded")?;
    let wrong = labels.iter().position(|&label| label as usize >= classes);
    if let Some(position) = wrong {
        return Err(Error::Label { position, label: labels[position], classes });
    }
    let lambda = match choice {
        Choice::Plain => 1.0,
        Choice::Mixup { lambda } | Choice::Cutmix { lambda, .. } => *lambda,
    };
    within("lambda", lambda, (0.0..=1.0).contains(&lambda), "a number from 0 to 1")?;
    if *choice != Choice::Plain && !labels.len().is_multiple_of(2) {
        return Err(Error::Odd { received: labels.len() });
    }
    let off = smoothing / classes.max(1) as f64;
    let (on, off) = ((1.0 - smoothing + off) as f32, off as f32);
    let (own, partner) = (lambda as f32, (1.0 - lambda) as f32);
    let mut targets = Vec::with_capacity(labels.len() * classes);
    for (&label, &other) in labels.iter().zip(labels.iter().rev()) {
        let at = |class: usize, label: u32| if class == label as usize { on } else { off };
        targets.extend((0..classes).map(|class| at(class, label) * own + at(class, other) * partner));
    }
    Ok(targets)
}

fn mix(one: &mut [f32], other: &mut [f32], lambda: f64) {
    let (own, partner) = (lambda as f32, (1.0 - lambda) as f32);
    for (a, b) in one.iter_mut().zip(other) {
        (*a, *b) = (*a * own + *b * partner, *b * own + *a * partner);
    }
}

/// A number in `[0, 1]` from Beta(α, α), α > 0.
fn beta(random: &mut Pcg64, alpha: f64) -> f64 {
    loop {
        if alpha >= 1.0 {
            let x = random.random::<f64>();
            if random.random::<f64>() <= (4.0 * x * (1.0 - x)).powf(alpha - 1.0) {
                return x;
            }
            continue;
        }
        // 1 − u is never 0, so a logarithm is never infinite.
        let [x, y] = [(); 2].map(|()| (1.0 - random.random::<f64>()).ln() / alpha);
        if x.exp() + y.exp() <= 1.0 {
            return 1.0 / (1.0 + (y - x).exp());
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    const BOTH: Options =
        Options { mixup_alpha: 0.5, cutmix_alpha: 0.5, probability: 1.0, cutmix_share: 0.5 };

    #[test]
    fn shares_have_the_mean_and_the_spread_of_their_distribution() {
        for alpha in [0.01, 0.1, 0.5, 0.95, 1.0, 2.5, 20.0] {
            let mut random = Pcg64::seed_from_u64(11);
            let n = 40_000;
            let drawn: Vec<f64> = (0..n).map(|_| beta(&mut random, alpha)).collect();
            assert!(drawn.iter().all(|x| (0.0..=1.0).contains(x)), "α = {alpha}");
            let mean = drawn.iter().sum::<f64>() / f64::from(n);
            let variance = drawn.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / f64::from(n);
            let expected = 1.0 / (4.0 * (2.0 * alpha + 1.0));
            assert!((mean - 0.5).abs() < 0.01, "α = {alpha}: mean {mean}");
            assert!(
                (variance / expected - 1.0).abs() < 0.03,
                "α = {alpha}: variance {variance}, not {expected}"
            );
        }
    }

    #[test]
    fn choices_are_as_often_as_the_options_say() {
        let count = |options: &Options| {
            let mut random = Pcg64::seed_from_u64(3);
            let mut counts = [0; 3];
            for _ in 0..4000 {
                match choose(&mut random, 16, options).unwrap() {
                    Choice::Plain => counts[0] += 1,
                    Choice::Mixup { .. } => counts[1] += 1,
                    Choice::Cutmix { lambda, rows, columns } => {
                        assert_eq!(lambda, 1.0 - (rows.len() * columns.len()) as f64 / 256.0);
                        assert!(rows.end <= 16 && columns.end <= 16);
                        counts[2] += 1;
                    }
                }
            }
            counts
        };
        let near = |count: i32, expected: i32| (count - expected).abs() < 150;
        let [plain, mixup, cutmix] = count(&BOTH);
        assert!(plain == 0 && near(mixup, 2000) && near(cutmix, 2000), "{mixup} {cutmix}");
        let [plain, mixup, cutmix] = count(&Options { probability: 0.5, cutmix_share: 0.25, ..BOTH });
        assert!(near(plain, 2000) && near(mixup, 1500) && near(cutmix, 500), "{plain} {mixup} {cutmix}");
        assert_eq!(count(&Options { mixup_alpha: 0.0, ..BOTH }), [0, 0, 4000]);
        assert_eq!(count(&Options { cutmix_alpha: 0.0, ..BOTH }), [0, 4000, 0]);
        assert_eq!(count(&Options { mixup_alpha: 0.0, cutmix_alpha: 0.0, ..BOTH }), [4000, 0, 0]);
    }

    #[test]
    fn the_same_seed_chooses_the_same() {
        let chosen = |seed| {
            let mut random = Pcg64::seed_from_u64(seed);
            (0..20).map(|_| choose(&mut random, 224, &BOTH).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(chosen(5), chosen(5));
        assert_ne!(chosen(5), chosen(6));
    }

    #[test]
    fn boxes_are_even_and_clipped() {
        let cut = |lambda, centre| match Choice::cutmix(lambda, centre, 16) {
            Choice::Cutmix { rows, columns, lambda } => (rows, columns, lambda),
            other => panic!("{other:?}"),
        };
        // A side of 16·√0.36 = 9.6 becomes 8.
        assert_eq!(cut(0.64, [8, 8]), (4..12, 4..12, 0.75));
        assert_eq!(cut(0.64, [0, 15]), (0..4, 11..16, 1.0 - 20.0 / 256.0));
        assert_eq!(cut(1.0, [3, 4]), (3..3, 4..4, 1.0));
        assert_eq!(cut(0.0, [8, 8]), (0..16, 0..16, 0.0));
        assert_eq!(Choice::cutmix(0.5, [0, 0], 0), Choice::Cutmix { lambda: 1.0, rows: 0..0, columns: 0..0 });
    }

    #[test]
    fn pictures_and_labels_are_mixed_with_those_at_the_other_end() {
        // Two channels of 1×2, four pictures: picture n is all n.
        let shape = [4, 2, 1, 2];
        let pictures: Vec<f32> = (0..16u8).map(|i| f32::from(i / 4)).collect();
        let mut mixed = pictures.clone();
        let targets =
            apply(&Choice::Mixup { lambda: 0.75 }, &mut mixed, shape, &[0, 1, 2, 2], 3, 0.0).unwrap();
        let firsts: Vec<f32> = mixed.chunks(4).map(|picture| picture[0]).collect();
        assert_eq!(firsts, [0.75, 1.25, 1.75, 2.25]);
        assert_eq!(targets, [0.75, 0.0, 0.25, 0.0, 0.75, 0.25, 0.0, 0.25, 0.75, 0.25, 0.0, 0.75]);

        let mut cut = pictures.clone();
        let choice = Choice::Cutmix { lambda: 0.5, rows: 0..1, columns: 1..2 };
        let targets = apply(&choice, &mut cut, shape, &[0, 1, 2, 2], 3, 0.0).unwrap();
        assert_eq!(cut, [0., 3., 0., 3., 1., 2., 1., 2., 2., 1., 2., 1., 3., 0., 3., 0.]);
        assert_eq!(targets[..3], [0.5, 0.0, 0.5]);

        let mut plain = pictures.clone();
        let targets = apply(&Choice::Plain, &mut plain, shape, &[0, 1, 2, 2], 4, 0.2).unwrap();
        assert_eq!(plain, pictures);
        assert_eq!(targets[..4], [0.85, 0.05, 0.05, 0.05]);
    }

    #[test]
    fn what_does_not_fit_is_refused_and_nothing_is_changed() {
        let mixup = Choice::Mixup { lambda: 0.5 };
        let refused = |choice: &Choice, shape: [usize; 4], labels: &[u32], smoothing: f64| {
            let mut pictures: Vec<f32> = (0..12u8).map(f32::from).collect();
            let before = pictures.clone();
            let error = apply(choice, &mut pictures, shape, labels, 2, smoothing).unwrap_err();
            assert_eq!(pictures, before);
            error.to_string()
        };
        assert!(refused(&mixup, [2, 1, 2, 2], &[0, 1], 0.0).contains("8 numbers, received 12"));
        assert!(refused(&mixup, [2, usize::MAX, 2, 2], &[0, 1], 0.0).contains("received 12"));
        assert!(refused(&mixup, [2, 1, 2, 3], &[0], 0.0).contains("1 labels"));
        assert!(refused(&mixup, [2, 1, 2, 3], &[0, 2], 0.0).contains("picture 1 has the label 2"));
        assert!(refused(&mixup, [3, 1, 2, 2], &[0, 1, 0], 0.0).contains("3 pictures cannot be mixed"));
        assert!(refused(&mixup, [2, 1, 2, 3], &[0, 1], 1.0).starts_with("smoothing is 1"));
        assert!(
            refused(&Choice::Mixup { lambda: f64::NAN }, [2, 1, 2, 3], &[0, 1], 0.0).starts_with("lambda")
        );
        let outside = Choice::Cutmix { lambda: 0.5, rows: 0..3, columns: 0..1 };
        assert!(refused(&outside, [2, 1, 2, 3], &[0, 1], 0.0).contains("rows 0..3"));
        let mut random = Pcg64::seed_from_u64(1);
        for options in [
            Options { mixup_alpha: -1.0, ..BOTH },
            Options { cutmix_alpha: f64::INFINITY, ..BOTH },
            Options { probability: 1.5, ..BOTH },
            Options { cutmix_share: f64::NAN, ..BOTH },
        ] {
            assert!(choose(&mut random, 8, &options).is_err(), "{options:?}");
        }
    }

    #[test]
    fn batches_without_pixels_or_pictures_are_nothing_to_mix() {
        let mixup = Choice::Mixup { lambda: 0.5 };
        assert_eq!(apply(&mixup, &mut [], [0, 3, 8, 8], &[], 4, 0.1).unwrap(), [0.0; 0]);
        assert_eq!(apply(&mixup, &mut [], [2, 3, 0, 8], &[0, 1], 2, 0.0).unwrap(), [0.5; 4]);
    }

    #[test]
    fn recipes_name_both_alphas_and_nothing_unknown() {
        let read = |json: &str| serde_json::from_str::<Options>(json);
        assert_eq!(read(r#"{"mixup_alpha": 0.5, "cutmix_alpha": 0.5}"#).unwrap(), BOTH);
        assert!(read(r#"{"mixup_alpha": 0.5}"#).is_err());
        assert!(read(r#"{"mixup_alpha": 0.5, "cutmix_alpha": 0.5, "mode": "pair"}"#).is_err());
    }
}
