//! The methods that `proto/` declares, and what their requests cost.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::cost::Costs;
use super::proto::DESCRIPTOR;

/// A method of ours.
pub(super) struct Method {
    /// Its full name, without the first slash of its path.
    pub(super) name: String,
    /// Its requests, among the messages of [`COSTS`].
    pub(super) message: usize,
    /// Whether many requests come one after another.
    pub(super) stream: bool,
    /// Whether it is answered in a full house too.
    pub(super) always: bool,
}

/// What whoever looks after a server asks for: it reads some numbers.
const STATS: &str = "/viscache.v1.AdminService/Stats";

/// What requests cost.
pub(super) static COSTS: LazyLock<Costs> = LazyLock::new(|| {
    Costs::of(DESCRIPTOR).expect("descriptors that the build wrote, because a test reads them")
});

/// Every method by its path.
static METHODS: LazyLock<HashMap<&'static str, Method>> = LazyLock::new(|| {
    let all = COSTS.methods().map(|(path, message, stream)| {
        let name = path.trim_start_matches('/').to_owned();
        (path, Method { name, message, stream, always: path == STATS })
    });
    all.collect()
});

/// The method of a path; nothing for those of others: health, reflection.
pub(super) fn of(path: &str) -> Option<&'static Method> {
    METHODS.get(path)
}
