//! The program as a person or a script meets it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../common/classifier.rs"]
mod classifier;
#[path = "../common/mod.rs"]
mod common;
#[path = "../common/power.rs"]
mod power;
#[path = "../common/programs.rs"]
mod programs;
#[path = "../common/raw.rs"]
mod raw;
#[path = "../common/store.rs"]
mod store;

mod answers;
mod awake;
mod bounded;
mod caches;
mod classify;
mod commands;
mod current;
mod evaluate;
mod frames;
mod measured;
mod segmentation;
mod soak;
mod train;
mod train_adapter;
mod train_nano;
mod train_v2;
mod world;
