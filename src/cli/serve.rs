//! `viscache serve`.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};
use viscache::flow::Sampler;
use viscache::serve;
use viscache::store::Access;

use crate::config::Config;
use crate::{app, telemetry};

/// Serves until SIGINT or SIGTERM, then answers what has begun.
pub async fn run(config: &Config) -> anyhow::Result<ExitCode> {
    if let Some(listen) = config.metrics_address()? {
        telemetry::serve_metrics(listen)?;
    }
    let mut app = app::open(config, super::target::ANSWERS)?;
    app.sampler = Sampler::start(config.recall_sampling).context("the thread that measures live recall")?;
    match &app.store {
        None if app.embedder.is_none() && app.generator.is_none() => {
            bail!("there is neither a store nor a model to serve; name one by --store, --model or --decoder");
        }
        None => {}
        // Whoever may change it can make a cache by request.
        Some(store) if store.access() == Access::Write && app.caches.all().is_empty() => {
            info!("the store has no cache yet");
        }
        Some(_) => {
            let caches = app.caches.all();
            let problems: Vec<&str> =
                caches.values().filter_map(|c| c.as_ref().err().map(String::as_str)).collect();
            if caches.is_empty() {
                bail!(
                    "the store at {} has no cache; make one with `index-builder build`, `index-builder import` or `viscache caches create`",
                    config.store.display()
                );
            }
            if problems.len() == caches.len() {
                bail!("no cache can be served: {}", problems.join("; "));
            }
        }
    }
    let listener = TcpListener::bind(&config.listen)
        .await
        .with_context(|| format!("cannot listen on {}", config.listen))?;
    let address = listener.local_addr()?;
    info!(%address, "serving");
    // For scripts that asked for port 0. Who does not listen may ask the log.
    let _ = writeln!(std::io::stdout(), "listening on {address}");
    let stopped = serve::run(listener, Arc::new(app), stop_signal()?).await?;
    match stopped.cut {
        0 => info!("every request is answered; goodbye"),
        cut => warn!(cut, "requests took longer than stop.drain_seconds and were cut off; goodbye"),
    }
    Ok(ExitCode::SUCCESS)
}

/// The first SIGINT or SIGTERM. A second one ends the process at once.
fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        told(&mut interrupt, &mut terminate).await;
        info!("stopping: what has begun is answered; another signal ends it at once");
        tokio::spawn(async move {
            told(&mut interrupt, &mut terminate).await;
            warn!("ended by a second signal");
            // What is acknowledged is on disk.
            std::process::exit(super::INTERRUPTED.into());
        });
    })
}

async fn told(interrupt: &mut Signal, terminate: &mut Signal) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
