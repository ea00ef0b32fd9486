//! Log lines to standard error, for people or as JSON.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Sets up logging for the whole process.
///
/// # Errors
/// A filter that does not parse.
pub fn init(filter: &str, json: bool) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).map_err(|e| anyhow::anyhow!("log filter `{filter}`: {e}"))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let lines = lines.with_ansi(std::io::stderr().is_terminal());
    match json {
        true => lines.json().init(),
        false => lines.with_target(false).init(),
    }
    Ok(())
}
