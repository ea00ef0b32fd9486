//! What a server tells of itself in numbers: one list of them, and one function for each moment at which they change.
//!
//! Every number is in [`ALL`] with its unit and labels; nobody else writes a name or a label. They go to whatever recorder the
//! process has installed (`metrics.listen` installs one for Prometheus); without one, everything here does nothing.
//!
//! Left out: numbers that Describe has and that never change while a generation is served, such as the calibrated curves.

use std::time::Duration;

use ::metrics::{Unit, counter, gauge, histogram};

/// One number, or one for each value of its labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// How it moves.
    pub kind: Kind,
    /// What it counts.
    pub unit: Unit,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// What it says, in a line.
    pub help: &'static str,
}

/// How a number moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only up.
    Counter,
    /// Up and down.
    Gauge,
    /// Counts by size.
    Histogram,
}

const REQUESTS: Metric = Metric {
    name: "viscache_requests_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &["rpc", "code"],
    help: "Requests that ended, by method and gRPC code. A batch counts as one.",
};

/// Seconds of one search.
pub const SEARCH: Metric = Metric {
    name: "viscache_search_seconds",
    kind: Kind::Histogram,
    unit: Unit::Seconds,
    labels: &["cache"],
    help: "Time of one query's search, rescoring included.",
};

const RECALL: Metric = Metric {
    name: "viscache_recall_at_10",
    kind: Kind::Gauge,
    unit: Unit::Count,
    labels: &["cache", "kind"],
    help: "Mean recall@10 of the last sampled searches against exact ones, 0 to 1, by kind of query.",
};

const RECALL_SAMPLES: Metric = Metric {
    name: "viscache_recall_samples_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &["cache", "kind"],
    help: "Searches whose recall was measured.",
};

const RECALL_DROPPED: Metric = Metric {
    name: "viscache_recall_dropped_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &["cache"],
    help: "Searches that were chosen for measuring and not measured, because the one thread for it was behind.",
};

const GENERATION: Metric = Metric {
    name: "viscache_generation",
    kind: Kind::Gauge,
    unit: Unit::Count,
    labels: &["cache"],
    help: "The generation being served.",
};

const ITEMS: Metric = Metric {
    name: "viscache_items",
    kind: Kind::Gauge,
    unit: Unit::Count,
    labels: &["cache"],
    help: "Items that a search can find.",
};

const DELTA: Metric = Metric {
    name: "viscache_delta_items",
    kind: Kind::Gauge,
    unit: Unit::Count,
    labels: &["cache"],
    help: "Items that were upserted since the generation and are searched exactly.",
};

const TOMBSTONES: Metric = Metric {
    name: "viscache_tombstones",
    kind: Kind::Gauge,
    unit: Unit::Count,
    labels: &["cache"],
    help: "Items of the generation that were replaced or deleted since.",
};

const EMBEDDED: Metric = Metric {
    name: "viscache_embedded_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &["modality"],
    help: "Inputs that the model worked on.",
};

/// Seconds of waiting for the model.
pub const EMBED_WAIT: Metric = Metric {
    name: "viscache_embed_wait_seconds",
    kind: Kind::Histogram,
    unit: Unit::Seconds,
    labels: &["modality"],
    help: "Time that the first input of a batch waited for the model.",
};

const EMBED_DROPPED: Metric = Metric {
    name: "viscache_embed_dropped_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &["modality"],
    help: "Inputs whose caller was gone or late before the model came to them.",
};

/// Every number.
pub const ALL: [Metric; 12] = [
    REQUESTS,
    SEARCH,
    RECALL,
    RECALL_SAMPLES,
    RECALL_DROPPED,
    GENERATION,
    ITEMS,
    DELTA,
    TOMBSTONES,
    EMBEDDED,
    EMBED_WAIT,
    EMBED_DROPPED,
];

/// Upper bounds of [`SEARCH`]'s buckets, seconds: a search of a hundred thousand items on codes to a scan of as many on disk.
pub const SEARCH_BUCKETS: [f64; 14] =
    [0.000_02, 0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0];

/// Tells the recorder what the numbers mean.
pub fn describe() {
    for Metric { name, kind, unit, help, .. } in ALL {
        match kind {
            Kind::Counter => ::metrics::describe_counter!(name, unit, help),
            Kind::Gauge => ::metrics::describe_gauge!(name, unit, help),
            Kind::Histogram => ::metrics::describe_histogram!(name, unit, help),
        }
    }
}

/// A request has ended.
///
/// * `rpc`: service and method. `code`: the canonical name of a gRPC code.
pub fn observe_request(rpc: &'static str, code: &'static str) {
    counter!(REQUESTS.name, "rpc" => rpc, "code" => code).increment(1);
}

/// A query was searched.
pub fn observe_search(cache: &str, took: Duration) {
    histogram!(SEARCH.name, "cache" => cache.to_owned()).record(took);
}

/// The model takes a batch.
///
/// * `waited`: its first input.
pub fn observe_batch(modality: &'static str, inputs: usize, waited: Duration) {
    counter!(EMBEDDED.name, "modality" => modality).increment(inputs as u64);
    histogram!(EMBED_WAIT.name, "modality" => modality).record(waited);
}

/// An input was dropped before the model came to it.
pub fn observe_embed_dropped(modality: &'static str) {
    counter!(EMBED_DROPPED.name, "modality" => modality).increment(1);
}

/// The recall of a search was measured.
///
/// * `mean`: over the last ones of this kind.
pub fn observe_recall(cache: &str, kind: &str, mean: f64) {
    gauge!(RECALL.name, "cache" => cache.to_owned(), "kind" => kind.to_owned()).set(mean);
    counter!(RECALL_SAMPLES.name, "cache" => cache.to_owned(), "kind" => kind.to_owned()).increment(1);
}

/// A search was to be measured and there was no room.
pub fn observe_recall_dropped(cache: &str) {
    counter!(RECALL_DROPPED.name, "cache" => cache.to_owned()).increment(1);
}

/// Readers see another state of a cache.
///
/// * `items`: that can be found. `delta`: of those, upserted since. `tombstones`: replaced or deleted since.
pub fn observe_cache(cache: &str, generation: u64, items: u64, delta: u64, tombstones: u64) {
    for (metric, value) in
        [(GENERATION, generation), (ITEMS, items), (DELTA, delta), (TOMBSTONES, tombstones)]
    {
        gauge!(metric.name, "cache" => cache.to_owned()).set(value as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_one_name_and_stands_in_the_docs() {
        let page = include_str!("../docs/metrics.md");
        for metric in ALL {
            assert_eq!(ALL.iter().filter(|other| other.name == metric.name).count(), 1, "{}", metric.name);
            assert_eq!(metric.kind == Kind::Counter, metric.name.ends_with("_total"), "{}", metric.name);
            let named = format!("`{}{{{}}}`", metric.name, metric.labels.join(","));
            assert!(page.contains(&named), "docs/metrics.md lists {named}");
        }
        assert!(SEARCH_BUCKETS.is_sorted());
    }
}
