//! Progress for people (a bar on a terminal) or for programs (`--json`: an object a line, at most one a second).

use std::io::Write as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

/// Time between two lines for programs.
const INTERVAL: Duration = Duration::from_secs(1);

/// One stage's progress.
pub struct Progress {
    bar: ProgressBar,
    stage: &'static str,
    json: bool,
    last: std::sync::Mutex<Instant>,
}

impl Progress {
    /// Begins a stage of `total` steps. The bar shows only on a terminal.
    pub fn new(stage: &'static str, total: u64, json: bool) -> Self {
        let bar = if json { ProgressBar::hidden() } else { ProgressBar::new(total) };
        bar.set_length(total);
        let style =
            ProgressStyle::with_template("{prefix:>8} {wide_bar} {pos}/{len} · {per_sec} · {eta} left{msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_prefix(stage);
        Progress { bar, stage, json, last: std::sync::Mutex::new(Instant::now()) }
    }

    /// So many more steps are done, and so many items have been bad so far.
    pub fn advance(&self, steps: u64, bad: u64) {
        self.bar.inc(steps);
        if bad > 0 {
            self.bar.set_message(format!(" · {bad} bad"));
        }
        if !self.json {
            return;
        }
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if last.elapsed() >= INTERVAL {
            *last = Instant::now();
            let (done, total) = (self.bar.position(), self.bar.length());
            let rate = self.bar.per_sec();
            let eta = self.bar.eta().as_secs();
            // Who has stopped listening does not stop the build.
            let _ = writeln!(
                std::io::stdout(),
                "{}",
                json!({ "stage": self.stage, "done": done, "total": total, "per_second": rate, "eta_seconds": eta, "bad": bad })
            );
        }
    }

    /// Ends the stage.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
