//! `index-builder`: pictures or ready embeddings in, an indexed visual cache out.
//!
//! ```text
//! build   survey ─► discover ─► decode ─► embed ─► write        ready embeddings (import) enter at write
//!                                                    └─ index ─► report.json
//! ```
//! [`pipeline`] is the file to read first.

mod cli;
mod decode;
mod discover;
mod import;
mod index;
mod ledger;
mod model;
mod pipeline;
mod plan;
mod progress;
mod report;
mod scenes;
mod sorted;
mod summary;
mod survey;
mod tag_cost;
mod verify;
mod write;

use std::process::ExitCode;

/// The C library's gives large pieces back to the system at once, which clears them for the next request: a third of the time
/// that a sound takes.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // SAFETY: this is the first statement of the process.
    unsafe { viscache::models::device::settle_process() };
    // `tests/crash.rs` says through the environment where this process is to die.
    #[cfg(feature = "failpoints")]
    let _scenario = fail::FailScenario::setup();
    match cli::run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(cli::FAILED)
        }
    }
}
