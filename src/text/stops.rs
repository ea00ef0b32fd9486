//! Texts that end an answer, found while it comes piece by piece.

/// Watches for texts that end an answer, and keeps back what may be the beginning of one.
#[derive(Debug, Default)]
pub struct Stops {
    stops: Vec<String>,
    kept: String,
    found: bool,
}

impl Stops {
    /// For these texts.
    pub fn new(stops: Vec<String>) -> Self {
        Stops { stops, ..Stops::default() }
    }

    /// Takes more of the answer, and gives back what is surely part of it.
    pub fn push(&mut self, text: &str) -> String {
        if self.found {
            return String::new();
        }
        self.kept += text;
        if let Some(at) = self.stops.iter().filter_map(|stop| self.kept.find(stop)).min() {
            self.found = true;
            self.kept.truncate(at);
            return std::mem::take(&mut self.kept);
        }
        let begun = |from: usize| self.stops.iter().any(|stop| stop.starts_with(&self.kept[from..]));
        let places = self.kept.char_indices().map(|(at, _)| at);
        let sure = places.into_iter().find(|&at| begun(at)).unwrap_or(self.kept.len());
        let rest = self.kept.split_off(sure);
        std::mem::replace(&mut self.kept, rest)
    }

    /// Whether one of them has come.
    pub fn found(&self) -> bool {
        self.found
    }

    /// What was kept back for nothing.
    pub fn rest(&mut self) -> String {
        std::mem::take(&mut self.kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_of_a_stop_text_is_kept_back() {
        let mut stops = Stops::new(vec!["###".into()]);
        assert_eq!(stops.push("a #"), "a ");
        assert_eq!(stops.push("b"), "#b");
        assert_eq!(stops.push("##"), "");
        assert_eq!(stops.push("#c"), "");
        assert!(stops.found);
    }
}
