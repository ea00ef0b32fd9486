//! How well the pixels of pictures are named.
//!
//! ```text
//! n[t][p]   pixels of class t that were taken for p; pixels without a label are not counted
//!
//! IoU of c         n[c][c] / (Σ n[c][·] + Σ n[·][c] − n[c][c])
//! mIoU             mean over the classes that are there or were named
//! mean accuracy    mean of n[c][c] / Σ n[c][·] over the classes that are there
//! pixel accuracy   Σ n[c][c] / Σ n
//! ```
//! Counted over all pictures together, as ADE20K's benchmark has it, and not picture by picture.
//!
//! Source: Everingham et al., *The Pascal Visual Object Classes Challenge* (IJCV 2015); mmsegmentation, `iou_metric.py`.

/// What pixels were taken for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confusion {
    classes: usize,
    /// `[C, C]`, by truth, then by what was named.
    counts: Vec<u64>,
}

impl Confusion {
    /// Of no pixels.
    pub fn new(classes: usize) -> Self {
        Confusion { classes, counts: vec![0; classes * classes] }
    }

    /// Takes the pixels of a picture.
    ///
    /// * `truth`: labels from 1 on, 0 for none. `named`: labels from 1 on, of the same pixels. Labels beyond the classes are not counted.
    pub fn add(&mut self, truth: &[u8], named: &[u8]) {
        let class = |label: u8| usize::from(label).checked_sub(1).filter(|&class| class < self.classes);
        for (&truth, &named) in truth.iter().zip(named) {
            if let Some((truth, named)) = class(truth).zip(class(named)) {
                self.counts[truth * self.classes + named] += 1;
            }
        }
    }

    /// Both together; of the same classes.
    pub fn join(&mut self, other: &Confusion) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(sum, count)| *sum += count);
    }

    /// Pixels of a class.
    pub fn there(&self, class: usize) -> u64 {
        self.counts[class * self.classes..(class + 1) * self.classes].iter().sum()
    }

    /// Pixels that were taken for a class.
    fn named(&self, class: usize) -> u64 {
        self.counts.iter().skip(class).step_by(self.classes).sum()
    }

    fn right(&self, class: usize) -> u64 {
        self.counts[class * self.classes + class]
    }

    /// Intersection over union, 0 to 1; nothing of a class that is not there and was not named.
    pub fn iou(&self, class: usize) -> Option<f64> {
        let union = self.there(class) + self.named(class) - self.right(class);
        (union > 0).then(|| self.right(class) as f64 / union as f64)
    }

    /// The share of a class's pixels that are named right; nothing of a class that is not there.
    pub fn accuracy(&self, class: usize) -> Option<f64> {
        let there = self.there(class);
        (there > 0).then(|| self.right(class) as f64 / there as f64)
    }

    /// The mean of [`Confusion::iou`] over the classes that have one; nothing without pixels.
    pub fn mean_iou(&self) -> Option<f64> {
        mean((0..self.classes).filter_map(|class| self.iou(class)))
    }

    /// The mean of [`Confusion::accuracy`] over the classes that are there; nothing without pixels.
    pub fn mean_accuracy(&self) -> Option<f64> {
        mean((0..self.classes).filter_map(|class| self.accuracy(class)))
    }

    /// The share of all pixels that are named right; nothing without pixels.
    pub fn pixel_accuracy(&self) -> Option<f64> {
        let right: u64 = (0..self.classes).map(|class| self.right(class)).sum();
        let all = self.pixels();
        (all > 0).then(|| right as f64 / all as f64)
    }

    /// Pixels that were counted.
    pub fn pixels(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// C.
    pub fn classes(&self) -> usize {
        self.classes
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(received: Option<f64>, expected: f64) {
        assert!((received.unwrap() - expected).abs() < 1e-12, "{received:?} {expected}");
    }

    #[test]
    fn means_are_those_computed_by_hand() {
        let mut confusion = Confusion::new(4);
        //             1  1  1  1  2  2  2  3  none
        confusion.add(&[1, 1, 1, 1, 2, 2, 2, 3, 0, 0], &[1, 1, 1, 2, 2, 2, 1, 2, 1, 3]);
        // 1: three of four right, one more named: 3/5. 2: two of three right, two more named: 2/5. 3: none of one: 0/1. 4: nowhere.
        near(confusion.iou(0), 3.0 / 5.0);
        near(confusion.iou(1), 2.0 / 5.0);
        near(confusion.iou(2), 0.0);
        assert_eq!((confusion.iou(3), confusion.accuracy(3)), (None, None));
        near(confusion.mean_iou(), 1.0 / 3.0);
        near(confusion.mean_accuracy(), (3.0 / 4.0 + 2.0 / 3.0) / 3.0);
        near(confusion.pixel_accuracy(), 5.0 / 8.0);
        assert_eq!((confusion.pixels(), confusion.there(0)), (8, 4));
    }

    #[test]
    fn a_class_that_is_only_named_counts_against_the_mean() {
        let mut confusion = Confusion::new(3);
        confusion.add(&[1, 1, 1, 1], &[1, 1, 3, 3]);
        // 1: 2/4, 3: 0/2, and 2 is nowhere.
        near(confusion.mean_iou(), 0.25);
        near(confusion.mean_accuracy(), 0.5);
    }

    #[test]
    fn pictures_are_counted_together() {
        let (mut one, mut other) = (Confusion::new(2), Confusion::new(2));
        one.add(&[1, 1, 1, 1], &[1, 1, 1, 1]);
        other.add(&[1, 2], &[2, 2]);
        one.join(&other);
        // 1: 4/5, 2: 1/2; picture by picture it would be (1 + (0 + 1/2)/2)/2.
        near(one.mean_iou(), 0.65);
        assert_eq!(Confusion::new(2).mean_iou(), None);
        assert_eq!(Confusion::new(2).pixel_accuracy(), None);
        // What is beyond the classes is not counted.
        let mut beyond = Confusion::new(2);
        beyond.add(&[3, 1], &[1, 9]);
        assert_eq!(beyond.pixels(), 0);
    }
}
