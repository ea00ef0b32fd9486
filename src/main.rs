//! `viscache`: serve visual caches over gRPC, and ask them from the command line.

// It ends the process when nobody reads; `writeln!` says so.
#![warn(clippy::print_stdout)]

mod app;
mod cli;
mod config;
mod memory;
mod telemetry;

use std::io::ErrorKind;
use std::process::ExitCode;

/// The C library's gives large pieces back to the system at once, which clears them for the next request: a third of the time
/// that a sound takes.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // SAFETY: this is the first statement of the process.
    unsafe { viscache::models::device::settle_process() };
    match cli::run() {
        Ok(code) => code,
        // Only writing to standard output fails like this without a word about what was written.
        Err(error)
            if error.downcast_ref().is_some_and(|e: &std::io::Error| e.kind() == ErrorKind::BrokenPipe) =>
        {
            ExitCode::from(cli::UNREAD)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(cli::FAILED)
        }
    }
}
