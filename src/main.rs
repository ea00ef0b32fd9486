//! `viscache`: serve visual caches over gRPC, and ask them from the command line.

mod app;
mod cli;
mod config;
mod telemetry;

use std::process::ExitCode;

/// The C library's gives large pieces back to the system at once, which clears them for the next request: a third of the time
/// that a sound takes.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // SAFETY: this is the first statement of the process.
    unsafe { viscache::models::device::settle_threads() };
    match cli::run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(cli::FAILED)
        }
    }
}
