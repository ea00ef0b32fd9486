//! Holds every path of the kernels against the scalar one on random cases, on whatever processor runs it.

#[path = "../../src/kernels/mod.rs"]
#[allow(dead_code, unused_imports, reason = "only what is compared is called")]
mod kernels;
#[path = "../../src/kernels/twins.rs"]
mod twins;

use kernels::{Kernels, PLANES, q8};

/// Cases, unless told otherwise.
const CASES: u64 = 3000;

fn main() {
    let cases = std::env::args().nth(1).map_or(CASES, |cases| cases.parse().expect("a number of cases"));
    (0..cases).for_each(|seed| twins::check(&twins::Case::random(seed)));
    let names: Vec<&str> = Kernels::available().into_iter().map(Kernels::name).collect();
    println!("kernels tested on {cases} cases: {}; in use: {}", names.join(" "), Kernels::get().name());
}
