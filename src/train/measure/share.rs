//! So many of so many.

/// How many of some things something is true of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// Of how many it is true.
    pub true_of: u64,
    /// Of how many it was asked.
    pub all: u64,
}

impl Share {
    /// Asks it of one more.
    pub fn add(&mut self, is_true: bool) {
        self.true_of += u64::from(is_true);
        self.all += 1;
    }

    /// From 0 to 1; nothing of nothing.
    pub fn value(self) -> Option<f64> {
        (self.all > 0).then(|| self.true_of as f64 / self.all as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_has_no_share() {
        let mut share = Share::default();
        assert_eq!(share.value(), None);
        for is_true in [true, false, false, true, true] {
            share.add(is_true);
        }
        assert_eq!((share.value(), share.true_of), (Some(0.6), 3));
    }
}
