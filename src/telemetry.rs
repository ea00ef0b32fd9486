//! Log lines to standard error, for people or as JSON; numbers for Prometheus.

use std::io::IsTerminal;
use std::net::SocketAddr;

use anyhow::Context;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use tracing_subscriber::EnvFilter;
use viscache::metrics;

/// Sets up logging for the whole process.
///
/// # Errors
/// A filter that does not parse.
pub fn init(filter: &str, json: bool) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).map_err(|e| anyhow::anyhow!("log filter `{filter}`: {e}"))?;
    // Its decoders call a caller's broken file an error; the caller is told, and a server is none the worse. A filter that names one
    // of its crates, as `symphonia_core`, still hears it.
    let filter = filter.add_directive("symphonia=off".parse()?);
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let lines = lines.with_ansi(std::io::stderr().is_terminal());
    match json {
        true => lines.json().init(),
        false => lines.with_target(false).init(),
    }
    Ok(())
}

/// Keeps the numbers of [`metrics`] and serves them over HTTP until the process ends. Belongs before what they are of is opened.
///
/// # Errors
/// An address that cannot be listened on.
pub fn serve_metrics(listen: SocketAddr) -> anyhow::Result<()> {
    let search = Matcher::Full(metrics::SEARCH.name.into());
    let exporter = PrometheusBuilder::new()
        .with_http_listener(listen)
        .set_buckets_for_metric(search, &metrics::SEARCH_BUCKETS)
        .context("the buckets of the search histogram")?;
    exporter.install().with_context(|| format!("cannot serve metrics on {listen}"))?;
    metrics::describe();
    Ok(())
}
