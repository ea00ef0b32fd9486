//! The service as a client meets it: real gRPC on a loopback port over a real store.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../common/asking.rs"]
mod asking;
#[path = "../common/classifier.rs"]
mod classifier;
#[path = "../common/mod.rs"]
mod common;
#[path = "../common/raw.rs"]
mod raw;
#[path = "../common/server.rs"]
mod server;
#[path = "../common/store.rs"]
mod store;

mod answers;
mod answers_v2;
mod arbitrary;
mod caches;
mod enhance;
mod features;
mod filters;
mod items;
mod limits;
mod living;
mod packing;
mod python;
mod reads;
mod recall;
mod refusals;
mod running;
mod senses;
mod world;
