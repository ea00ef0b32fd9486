//! A film is looked at one view at a time: others are answered in between, and lanes that are free share it.
//!
//! ```text
//! film ─► 15 views, each a job, each due a little after the one before ─► mean of what they give ─► one answer
//! ```

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::Error;
use crate::models::encoder::Encoded;

/// How much later than the one before a view is due: inputs that come meanwhile go before those that are left.
pub(super) const PACE: Duration = Duration::from_millis(250);

/// What is known of a film's views.
pub(super) struct Film(Mutex<Seen>);

struct Seen {
    views: Vec<Option<Encoded>>,
    /// Its answer is on its way.
    answered: bool,
}

impl Film {
    pub(super) fn of(views: usize) -> Arc<Self> {
        Arc::new(Film(Mutex::new(Seen { views: vec![None; views], answered: false })))
    }

    /// Whether its other views need not be looked at.
    pub(super) fn is_answered(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).answered
    }

    /// Takes what became of a view; returns what became of the film, once that is known.
    pub(super) fn seen(&self, at: usize, view: Result<Encoded, Error>) -> Option<Result<Encoded, Error>> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.answered {
            return None;
        }
        match view {
            Ok(view) => seen.views[at] = Some(view),
            Err(error) => {
                seen.answered = true;
                return Some(Err(error));
            }
        }
        let views: Option<Vec<Encoded>> = seen.views.iter().cloned().collect();
        let views = views?;
        seen.answered = true;
        Some(Encoded::mean(&views).map_err(Error::from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Embedding;

    fn view(values: [f32; 2]) -> Result<Encoded, Error> {
        let embedding = Embedding::new(values.to_vec()).unwrap();
        Ok(Encoded { prenorm: embedding.clone(), embedding })
    }

    #[test]
    fn the_last_view_answers_for_all_and_an_error_at_once() {
        let film = Film::of(2);
        assert!(film.seen(1, view([1.0, 0.0])).is_none() && !film.is_answered());
        let whole = film.seen(0, view([0.0, 0.5])).unwrap().unwrap();
        assert_eq!(whole.embedding.as_slice(), [0.5, 0.25]);
        assert!(film.is_answered());

        let film = Film::of(3);
        assert!(film.seen(0, view([1.0, 0.0])).is_none());
        assert!(matches!(film.seen(2, Err(Error::Deadline)), Some(Err(Error::Deadline))));
        assert!(film.seen(1, view([1.0, 0.0])).is_none() && film.is_answered());
    }
}
