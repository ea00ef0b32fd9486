//! The program as a person or a script meets it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/store.rs"]
mod store;

mod answers;
mod commands;
mod evaluate;
mod measured;
mod world;
