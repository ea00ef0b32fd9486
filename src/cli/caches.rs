//! `caches`, `stats`, `publish`, `reload`, `compact`: looking after a server, or a store.

use std::io::Write;
use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use viscache::serve::proto::{self, Dtype, create_cache_request::MadeBy};
use viscache::store::{Access, Store};

use super::flags::{Given, ModelFlags};
use super::show;
use super::target::{self, NAMES, STORED};
use super::{Keeper, Target};
use crate::config::Config;

/// Every cache of the store, and what is done with caches.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct CachesArgs {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Subcommand)]
enum What {
    /// Every cache of the store, served or not.
    List(ListArgs),
    /// Make an empty cache, and the store if there is none.
    Create(CreateArgs),
    /// Delete a cache with everything in it. There is no way back.
    Delete(DeleteArgs),
    /// Give a cache another name. Its aliases stay its own.
    Rename {
        /// The cache.
        #[arg(value_name = "NAME")]
        name: String,
        /// Its new name.
        #[arg(value_name = "NEW")]
        to: String,
        #[command(flatten)]
        keeper: Keeper,
    },
    /// Let a name stand for a cache, in place of what it stood for.
    Alias {
        /// The name.
        #[arg(value_name = "ALIAS")]
        alias: String,
        /// The cache, or another alias of it.
        #[arg(value_name = "NAME")]
        name: String,
        #[command(flatten)]
        keeper: Keeper,
    },
    /// Take an alias away. Its cache stays.
    Unalias {
        /// The alias.
        #[arg(value_name = "ALIAS")]
        alias: String,
        #[command(flatten)]
        keeper: Keeper,
    },
}

#[derive(Args)]
struct ListArgs {
    #[command(flatten)]
    target: Target,
    /// Print one JSON object a line.
    #[arg(long, help_heading = "Output")]
    json: bool,
}

#[derive(Args)]
struct CreateArgs {
    /// Its name.
    #[arg(value_name = "NAME")]
    name: String,
    /// Components of every embedding, where nothing else says it.
    #[arg(long, value_name = "N", help_heading = "Cache")]
    dim: Option<u32>,
    /// How rows are stored: `f32` or `f16`.
    #[arg(long, value_enum, value_name = "TYPE", hide_possible_values = true, help_heading = "Cache")]
    row_type: Option<RowTypeArg>,
    /// As this cache: its dimension, type of rows and model.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["served_model", "made_by"], help_heading = "Cache")]
    like: Option<String>,
    /// For the model that the server has, or that `--model` names.
    #[arg(long, conflicts_with = "made_by", help_heading = "Cache")]
    served_model: bool,
    /// A word for what makes the embeddings, where they come ready.
    #[arg(long, value_name = "WORD", help_heading = "Cache")]
    made_by: Option<String>,
    #[command(flatten)]
    keeper: Keeper,
    #[command(flatten)]
    model: ModelFlags,
    /// Print a JSON object.
    #[arg(long, help_heading = "Output")]
    json: bool,
}

#[derive(Args)]
struct DeleteArgs {
    /// Its name.
    #[arg(value_name = "NAME")]
    name: String,
    /// Do it although the cache has items.
    #[arg(long)]
    yes: bool,
    /// Do it although aliases stand for the cache, and delete them too.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    keeper: Keeper,
}

#[derive(Clone, Copy, ValueEnum)]
enum RowTypeArg {
    F32,
    F16,
}

impl CachesArgs {
    /// The settings that were given.
    pub(super) fn given(&self) -> Given<'_> {
        match &self.what {
            None => self.list.target.given(),
            Some(What::List(list)) => list.target.given(),
            Some(What::Create(create)) => Given { model: Some(&create.model), ..create.keeper.given() },
            Some(What::Delete(DeleteArgs { keeper, .. }))
            | Some(What::Rename { keeper, .. } | What::Alias { keeper, .. } | What::Unalias { keeper, .. }) => {
                keeper.given()
            }
        }
    }
}

/// Runs what is done with caches.
pub(super) async fn run(config: &Config, args: CachesArgs) -> anyhow::Result<ExitCode> {
    match args.what {
        None => list(config, &args.list.target, args.list.json).await,
        Some(What::List(ListArgs { target, json })) => list(config, &target, json).await,
        Some(What::Create(args)) => create(config, args).await,
        Some(What::Delete(args)) => delete(config, args).await,
        Some(What::Rename { name, to, keeper }) => {
            let request = proto::RenameCacheRequest { name, new_name: to };
            let said = format!("`{}` is `{}` now", request.name, request.new_name);
            admin(config, &keeper).await?.rename_cache(request).await.map_err(show::refused)?;
            writeln!(std::io::stdout(), "{said}")?;
            Ok(ExitCode::SUCCESS)
        }
        Some(What::Alias { alias, name, keeper }) => {
            let request = proto::SetAliasRequest { alias: alias.clone(), cache: name };
            let reply = admin(config, &keeper).await?.set_alias(request).await;
            let proto::SetAliasResponse { cache, previous } = reply.map_err(show::refused)?.into_inner();
            match previous.as_str() {
                "" => writeln!(std::io::stdout(), "`{alias}` stands for `{cache}`")?,
                previous if previous == cache => {
                    writeln!(std::io::stdout(), "`{alias}` stands for `{cache}`, as before")?
                }
                previous => writeln!(
                    std::io::stdout(),
                    "`{alias}` stands for `{cache}`, and no longer for `{previous}`"
                )?,
            }
            Ok(ExitCode::SUCCESS)
        }
        Some(What::Unalias { alias, keeper }) => {
            let request = proto::DeleteAliasRequest { alias: alias.clone() };
            let reply = admin(config, &keeper).await?.delete_alias(request).await;
            writeln!(
                std::io::stdout(),
                "`{alias}` no longer stands for `{}`",
                reply.map_err(show::refused)?.into_inner().cache
            )?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

type Admin = proto::admin_service_client::AdminServiceClient<tonic::transport::Channel>;

async fn admin(config: &Config, keeper: &Keeper) -> anyhow::Result<Admin> {
    Ok(target::admin(target::open_at(config, keeper.connect.as_deref(), NAMES).await?))
}

async fn create(config: &Config, args: CreateArgs) -> anyhow::Result<ExitCode> {
    let connect = args.keeper.connect.as_deref();
    // Whoever makes a cache in a store that is not there means to make that, too.
    if connect.is_none() && config.store.as_os_str() != crate::app::NO_STORE && !Store::exists(&config.store)
    {
        drop(Store::open(&config.store, Access::Write)?);
    }
    let made_by = match (args.like, args.served_model, args.made_by) {
        (Some(like), ..) => Some(MadeBy::Like(like)),
        (None, true, _) => Some(MadeBy::ServedModel(true)),
        (None, false, word) => word.map(MadeBy::ModelName),
    };
    let row_dtype = match args.row_type {
        None => Dtype::Unspecified,
        Some(RowTypeArg::F32) => Dtype::F32,
        Some(RowTypeArg::F16) => Dtype::F16,
    };
    let wants = crate::app::Wants { encoder: args.served_model, ..NAMES };
    let mut client = target::admin(target::open_at(config, connect, wants).await?);
    let request =
        proto::CreateCacheRequest { name: args.name, dim: args.dim, row_dtype: row_dtype.into(), made_by };
    let reply = client.create_cache(request).await.map_err(show::refused)?.into_inner();
    let cache = reply.cache.unwrap_or_default();
    match args.json {
        true => show::print_line(&summary(&cache))?,
        false => writeln!(
            std::io::stdout(),
            "`{}` is made, for embeddings of {} components",
            cache.name,
            cache.dim
        )?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn delete(config: &Config, args: DeleteArgs) -> anyhow::Result<ExitCode> {
    let mut client = admin(config, &args.keeper).await?;
    if !args.yes {
        let caches = client.list_caches(proto::ListCachesRequest {}).await.map_err(show::refused)?;
        let items = caches.into_inner().caches.into_iter().find(|cache| cache.name == args.name);
        let items = items.map_or(0, |cache| cache.items);
        if items > 0 {
            bail!("cache `{}` has {items} items; say --yes to delete them", args.name);
        }
    }
    let request = proto::DeleteCacheRequest { name: args.name.clone(), force: args.force };
    let reply = client.delete_cache(request).await.map_err(show::refused)?.into_inner();
    writeln!(std::io::stdout(), "`{}` is deleted, with {} items", args.name, reply.items)?;
    if !reply.aliases.is_empty() {
        writeln!(std::io::stdout(), "so are its aliases: {}", reply.aliases.join(", "))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn summary(cache: &proto::CacheSummary) -> serde_json::Value {
    json!({
        "name": cache.name,
        "aliases": cache.aliases,
        "items": cache.items,
        "dim": cache.dim,
        "rows": cache.row_dtype().as_str_name(),
        "model": cache.model,
        "generations": cache.generations,
        "current_generation": cache.current_generation,
        "served_generation": cache.served_generation,
        "served": cache.served,
        "problem": cache.problem,
    })
}

/// Every cache of the store, served or not.
async fn list(config: &Config, target: &Target, json: bool) -> anyhow::Result<ExitCode> {
    let mut client = target::admin(target::open(config, target, STORED).await?);
    let reply = client.list_caches(proto::ListCachesRequest {}).await.map_err(show::refused)?.into_inner();
    for cache in reply.caches {
        if json {
            show::print_line(&summary(&cache))?;
            continue;
        }
        let generation = match (cache.current_generation, cache.served_generation) {
            (0, _) if cache.served => "no generation yet".into(),
            (0, _) => "not indexed".into(),
            (current, served) if current == served => format!("generation {current}"),
            (current, 0) => format!("generation {current}, not served"),
            (current, served) => format!("generation {current}, {served} is served"),
        };
        let also = match cache.aliases.is_empty() {
            true => String::new(),
            false => format!("\talso {}", cache.aliases.join(", ")),
        };
        writeln!(
            std::io::stdout(),
            "{}\t{} items of {} components\t{}\t{generation}{also}",
            cache.name,
            cache.items,
            cache.dim,
            cache.model
        )?;
        if !cache.problem.is_empty() {
            writeln!(std::io::stdout(), "\t{}", cache.problem)?;
        }
    }
    Ok(ExitCode::SUCCESS)
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
    writeln!(
        std::io::stdout(),
        "up for {:.0} s, {} requests under way",
        reply.uptime_seconds,
        reply.in_flight
    )?;
    writeln!(std::io::stdout(), "{:>10} {:>8} {:>10} {:>8}  method", "calls", "errors", "items", "bad")?;
    for m in &reply.methods {
        writeln!(
            std::io::stdout(),
            "{:>10} {:>8} {:>10} {:>8}  {}",
            m.calls,
            m.errors,
            m.items,
            m.item_errors,
            m.method
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Serves a stored generation: a roll-back, or its opposite.
pub async fn publish(config: &Config, target: &Target, generation: u64) -> anyhow::Result<ExitCode> {
    let mut client = target::admin(target::open(config, target, STORED).await?);
    let cache = target.cache.clone().unwrap_or_default();
    let request = proto::PublishRequest { cache, generation };
    let reply = client.publish(request).await.map_err(show::refused)?.into_inner();
    writeln!(std::io::stdout(), "generation {} is served", reply.generation)?;
    Ok(ExitCode::SUCCESS)
}

/// Lets a server look at what others have published and changed.
pub async fn reload(config: &Config, target: &Target, all: bool) -> anyhow::Result<ExitCode> {
    let mut client = target::admin(target::open(config, target, STORED).await?);
    let request = proto::ReloadRequest { cache: target.cache.clone().unwrap_or_default(), all };
    let reply = client.reload(request).await.map_err(show::refused)?.into_inner();
    for name in &reply.opened {
        writeln!(std::io::stdout(), "`{name}` is served from now on")?;
    }
    for name in &reply.closed {
        writeln!(std::io::stdout(), "`{name}` is served no more")?;
    }
    if all {
        let what = if reply.changed { "some have another generation" } else { "all have their generations" };
        writeln!(std::io::stdout(), "every cache has been looked at: {what}")?;
        return Ok(ExitCode::SUCCESS);
    }
    let same = if reply.changed { "" } else { ", as before" };
    writeln!(
        std::io::stdout(),
        "generation {} and changes up to {} are served{same}",
        reply.generation,
        reply.sequence
    )?;
    Ok(ExitCode::SUCCESS)
}

/// Builds a generation of everything that has changed.
pub async fn compact(config: &Config, target: &Target) -> anyhow::Result<ExitCode> {
    let mut client = target::admin(target::open(config, target, STORED).await?);
    let request = proto::CompactRequest { cache: target.cache.clone().unwrap_or_default() };
    let reply = client.compact(request).await.map_err(show::refused)?.into_inner();
    writeln!(std::io::stdout(), "generation {} has {} items", reply.generation, reply.items)?;
    Ok(ExitCode::SUCCESS)
}
