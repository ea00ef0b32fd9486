//! `viscache`: serve visual caches over gRPC, and ask them from the command line.

mod app;
mod cli;
mod config;
mod telemetry;

use std::process::ExitCode;

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
