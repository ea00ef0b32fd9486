//! `viscache check`: whether everything that serving needs is in order.

use std::io::Write;
use std::process::ExitCode;

use serde_json::json;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use viscache::serve::proto::ListCachesRequest;
use viscache::serve::proto::admin_service_client::AdminServiceClient;

use super::{FAILED, Target, show, target};
use crate::app;
use crate::config::Config;

/// Prints a line for each thing checked; fails if any is not in order.
pub async fn run(config: &Config, target: &Target, json: bool) -> anyhow::Result<ExitCode> {
    let mut healthy = true;
    let mut say = |what: String, problem: Option<String>| -> anyhow::Result<()> {
        healthy &= problem.is_none();
        if json {
            return show::print_line(&json!({ "what": what, "ok": problem.is_none(), "problem": problem }));
        }
        match problem {
            None => writeln!(std::io::stdout(), "ok    {what}")?,
            Some(problem) => writeln!(std::io::stdout(), "FAIL  {what}: {problem}")?,
        }
        Ok(())
    };
    match &target.connect {
        Some(address) => {
            let channel = target::open(config, target, target::STORED).await?;
            let health = HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await;
            let problem = match health.map(|reply| reply.into_inner().status()) {
                Ok(tonic_health::pb::health_check_response::ServingStatus::Serving) => None,
                Ok(status) => Some(format!("{status:?}")),
                Err(status) => Some(show::refused(status).to_string()),
            };
            say(format!("server at {address}"), problem)?;
            let caches = AdminServiceClient::new(channel).list_caches(ListCachesRequest {}).await;
            for cache in caches.map_err(show::refused)?.into_inner().caches {
                let what = format!(
                    "cache {} generation {} of {} items",
                    cache.name, cache.served_generation, cache.items
                );
                say(what, Some(cache.problem).filter(|p| !p.is_empty()))?;
            }
        }
        None => {
            let app = match app::open(config, target::ANSWERS) {
                Ok(app) => app,
                Err(problem) => {
                    say(format!("store {}", config.store.display()), Some(format!("{problem:#}")))?;
                    return Ok(ExitCode::from(FAILED));
                }
            };
            say(format!("store {}", config.store.display()), None)?;
            for (name, cache) in &app.caches.all() {
                match cache {
                    Ok(cache) => {
                        let snapshot = cache.snapshot();
                        let what = format!(
                            "cache {name} generation {} of {} items",
                            snapshot.generation(),
                            snapshot.index().len()
                        );
                        say(what, None)?;
                    }
                    Err(problem) => say(format!("cache {name}"), Some(problem.clone()))?,
                }
            }
            let model = app.encoder().map_or("none: embeddings only".into(), |e| e.origin().model.clone());
            say(format!("model {model}"), None)?;
        }
    }
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}
