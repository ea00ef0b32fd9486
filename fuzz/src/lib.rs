//! What is fuzzed: the modules that read bytes, compiled by themselves, since instrumenting RocksDB and candle as well
//! would cost an hour and reach nothing more. The targets' bodies are those of the ordinary tests (`bodies`).

#![allow(dead_code, unused_imports, reason = "only what reads bytes is called")]

extern crate self as viscache;

#[path = "../../src/index/mod.rs"]
pub mod index;
#[path = "../../src/kernels/mod.rs"]
pub mod kernels;
#[path = "../../src/types.rs"]
pub mod types;

#[path = "../../src/media/mod.rs"]
pub mod media;

#[path = "../../index-builder/src/import/mod.rs"]
pub mod import;

#[path = "../bodies/import.rs"]
pub mod import_body;
#[path = "../bodies/media.rs"]
pub mod media_body;
#[path = "../bodies/view.rs"]
pub mod view_body;
