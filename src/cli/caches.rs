//! `caches`, `items`, `stats`, `publish`, `reload`, `compact`: looking after a server, or a store.

use std::process::ExitCode;

use serde_json::json;
use viscache::serve::proto;

use super::change::ids;
use super::show::{self, Shown};
use super::target::{self, STORED};
use super::{ItemsArgs, Target};
use crate::config::Config;

/// Every cache of the store, served or not.
pub async fn list(config: &Config, target: &Target, json: bool) -> anyhow::Result<ExitCode> {
    let mut client = target::admin(target::open(config, target, STORED).await?);
    let reply = client.list_caches(proto::ListCachesRequest {}).await.map_err(show::refused)?.into_inner();
    for cache in reply.caches {
        if json {
            show::print_line(&json!({
                "name": cache.name,
                "items": cache.items,
                "dim": cache.dim,
                "model": cache.model,
                "generations": cache.generations,
                "current_generation": cache.current_generation,
                "served_generation": cache.served_generation,
                "problem": cache.problem,
            }))?;
            continue;
        }
        let generation = match (cache.current_generation, cache.served_generation) {
            (0, _) => "not indexed".into(),
            (current, served) if current == served => format!("generation {current}"),
            (current, 0) => format!("generation {current}, not served"),
            (current, served) => format!("generation {current}, {served} is served"),
        };
        println!(
            "{}\t{} items of {} components\t{}\t{generation}",
            cache.name, cache.items, cache.dim, cache.model
        );
        if !cache.problem.is_empty() {
            println!("\t{}", cache.problem);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What is known of items.
pub async fn items(config: &Config, args: ItemsArgs) -> anyhow::Result<ExitCode> {
    let mut client = target::cache(target::open(config, &args.target, STORED).await?);
    let mut shown = Shown::new("item", args.json);
    for ids in ids(&args.ids)?.chunks(super::ask::ROWS_PER_REQUEST) {
        let cache = args.target.cache.clone().unwrap_or_default();
        let request = proto::GetItemsRequest { cache, ids: ids.to_vec(), return_vectors: args.vectors };
        let reply = client.get_items(request).await.map_err(show::refused)?.into_inner();
        for item in &reply.items {
            shown.item(item)?;
        }
    }
    Ok(shown.exit_code())
}

/// What a server has done since it started.
pub async fn stats(config: &Config, target: &Target, json: bool) -> anyhow::Result<ExitCode> {
    let mut client = target::admin(target::open(config, target, STORED).await?);
    let reply = client.stats(proto::StatsRequest {}).await.map_err(show::refused)?.into_inner();
    let method = |m: &proto::MethodStats| json!({ "method": m.method, "calls": m.calls, "errors": m.errors, "items": m.items, "item_errors": m.item_errors });
    if json {
        show::print_line(&json!({
            "uptime_seconds": reply.uptime_seconds,
            "in_flight": reply.in_flight,
            "methods": reply.methods.iter().map(method).collect::<Vec<_>>(),
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    println!("up for {:.0} s, {} requests under way", reply.uptime_seconds, reply.in_flight);
    println!("{:>10} {:>8} {:>10} {:>8}  method", "calls", "errors", "items", "bad");
    for m in &reply.methods {
        println!("{:>10} {:>8} {:>10} {:>8}  {}", m.calls, m.errors, m.items, m.item_errors, m.method);
    }
    Ok(ExitCode::SUCCESS)
}

/// Serves a stored generation: a roll-back, or its opposite.
pub async fn publish(config: &Config, target: &Target, generation: u64) -> anyhow::Result<ExitCode> {
    let mut client = target::admin(target::open(config, target, STORED).await?);
    let cache = target.cache.clone().unwrap_or_default();
    let request = proto::PublishRequest { cache, generation };
    let reply = client.publish(request).await.map_err(show::refused)?.into_inner();
    println!("generation {} is served", reply.generation);
    Ok(ExitCode::SUCCESS)
}

/// Lets a server look at what others have published and changed.
pub async fn reload(config: &Config, target: &Target) -> anyhow::Result<ExitCode> {
    let mut client = target::admin(target::open(config, target, STORED).await?);
    let request = proto::ReloadRequest { cache: target.cache.clone().unwrap_or_default() };
    let reply = client.reload(request).await.map_err(show::refused)?.into_inner();
    let same = if reply.changed { "" } else { ", as before" };
    println!("generation {} and changes up to {} are served{same}", reply.generation, reply.sequence);
    Ok(ExitCode::SUCCESS)
}

/// Builds a generation of everything that has changed.
pub async fn compact(config: &Config, target: &Target) -> anyhow::Result<ExitCode> {
    let mut client = target::admin(target::open(config, target, STORED).await?);
    let request = proto::CompactRequest { cache: target.cache.clone().unwrap_or_default() };
    let reply = client.compact(request).await.map_err(show::refused)?.into_inner();
    println!("generation {} has {} items", reply.generation, reply.items);
    Ok(ExitCode::SUCCESS)
}
