//! The cache and its index as a library: against models of themselves, against damage, while they change.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../common/mod.rs"]
mod common;

mod chosen;
mod codecs;
mod items;
mod large;
mod living;
mod model;
mod properties;
mod upsert_delete;
mod view;
mod warming;
