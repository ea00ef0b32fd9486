//! `items` and `delete`: what is stored of items, listed, counted, changed and deleted.

use std::io::Write;
use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, Subcommand};
use serde_json::json;
use viscache::serve::proto;
use viscache::types::Filter;

use super::ask::ROWS_PER_REQUEST;
use super::change::{ids, tag};
use super::flags::Given;
use super::show::{self, Shown};
use super::target::{self, STORED};
use super::{Target, filter};
use crate::config::Config;

/// What is known of items, and what is done with them.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct ItemsArgs {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    get: GetArgs,
}

#[derive(Subcommand)]
enum What {
    /// What is known of items by their ids.
    Get(GetArgs),
    /// Items by ascending id, all or those that match a filter.
    List(ListArgs),
    /// How many items a search finds, all or those that match a filter.
    Count(CountArgs),
    /// Delete items by id, or all that match a filter.
    Delete(DeleteArgs),
    /// Change tags and uri of items, without their embeddings.
    Tag(TagArgs),
}

#[derive(Args)]
struct GetArgs {
    /// Ids of the items.
    #[arg(long, value_name = "ID,ID,…|FILE.npy", required = true, help_heading = "Input")]
    ids: Option<String>,
    #[command(flatten)]
    target: Target,
    /// Print their embeddings too, as JSON.
    #[arg(long, requires = "json", help_heading = "Output")]
    vectors: bool,
    /// Print one JSON object per item.
    #[arg(long, help_heading = "Output")]
    json: bool,
}

#[derive(Args)]
struct ListArgs {
    /// Only the items that match, as in `tag.species = dog`.
    #[arg(long, value_name = "FILTER", value_parser = filter::parse, help_heading = "Input")]
    filter: Option<Filter>,
    /// Most items printed; without it, all.
    #[arg(long, value_name = "N", help_heading = "Output")]
    limit: Option<u64>,
    #[command(flatten)]
    target: Target,
    /// Print their embeddings too, as JSON.
    #[arg(long, requires = "json", help_heading = "Output")]
    vectors: bool,
    /// Print one JSON object per item.
    #[arg(long, help_heading = "Output")]
    json: bool,
}

#[derive(Args)]
struct CountArgs {
    /// Only the items that match, as in `tag.species = dog`.
    #[arg(long, value_name = "FILTER", value_parser = filter::parse, help_heading = "Input")]
    filter: Option<Filter>,
    #[command(flatten)]
    target: Target,
    /// Print a JSON object.
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// Which items.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// Ids of the items.
    #[arg(long, value_name = "ID,ID,…|FILE.npy", help_heading = "Input")]
    ids: Option<String>,
    /// All items that match, as in `tag.species = dog`.
    #[arg(long, value_name = "FILTER", value_parser = filter::parse, help_heading = "Input")]
    filter: Option<Filter>,
}

#[derive(Args)]
pub(super) struct DeleteArgs {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    target: Target,
    /// Print one JSON object per id, or one with their number for a filter.
    #[arg(long, help_heading = "Output")]
    json: bool,
}

#[derive(Args)]
struct TagArgs {
    #[command(flatten)]
    which: Which,
    /// A tag to have; repeat for several.
    #[arg(long, value_name = "NAME=VALUE", value_parser = tag, help_heading = "Change")]
    set: Vec<(String, String)>,
    /// A tag to have no more; repeat for several.
    #[arg(long, value_name = "NAME", help_heading = "Change")]
    unset: Vec<String>,
    /// Take away all tags that are not set.
    #[arg(long, conflicts_with = "unset", help_heading = "Change")]
    replace: bool,
    /// Another uri, for one item.
    #[arg(long, value_name = "URI", requires = "ids", help_heading = "Change")]
    uri: Option<String>,
    #[command(flatten)]
    target: Target,
    /// Print one JSON object per item.
    #[arg(long, help_heading = "Output")]
    json: bool,
}

impl ItemsArgs {
    /// The settings that were given.
    pub(super) fn given(&self) -> Given<'_> {
        match &self.what {
            None => self.get.target.given(),
            Some(What::Get(args)) => args.target.given(),
            Some(What::List(args)) => args.target.given(),
            Some(What::Count(args)) => args.target.given(),
            Some(What::Delete(args)) => args.given(),
            Some(What::Tag(args)) => Given { writable: true, ..args.target.given() },
        }
    }
}

impl DeleteArgs {
    /// The settings that were given.
    pub(super) fn given(&self) -> Given<'_> {
        Given { writable: true, ..self.target.given() }
    }
}

/// Runs what is done with items.
pub(super) async fn run(config: &Config, args: ItemsArgs) -> anyhow::Result<ExitCode> {
    match args.what {
        None => get(config, args.get).await,
        Some(What::Get(args)) => get(config, args).await,
        Some(What::List(args)) => list(config, args).await,
        Some(What::Count(args)) => count(config, args).await,
        Some(What::Delete(args)) => delete(config, args).await,
        Some(What::Tag(args)) => change(config, args).await,
    }
}

async fn get(config: &Config, args: GetArgs) -> anyhow::Result<ExitCode> {
    let mut client = target::cache(target::open(config, &args.target, STORED).await?);
    let mut shown = Shown::new("item", args.json);
    for ids in ids(&args.ids.unwrap_or_default())?.chunks(ROWS_PER_REQUEST) {
        let cache = args.target.cache.clone().unwrap_or_default();
        let request = proto::GetItemsRequest { cache, ids: ids.to_vec(), return_vectors: args.vectors };
        let reply = client.get_items(request).await.map_err(show::refused)?.into_inner();
        for item in &reply.items {
            shown.item(item)?;
        }
    }
    Ok(shown.exit_code())
}

async fn list(config: &Config, args: ListArgs) -> anyhow::Result<ExitCode> {
    let mut client = target::admin(target::open(config, &args.target, STORED).await?);
    let mut shown = Shown::new("item", args.json);
    let mut left = args.limit.unwrap_or(u64::MAX);
    let mut request = proto::ListItemsRequest {
        cache: args.target.cache.clone().unwrap_or_default(),
        filter: args.filter.as_ref().map(filter::message),
        return_vectors: args.vectors,
        ..Default::default()
    };
    while left > 0 {
        request.page_size = left.min(ROWS_PER_REQUEST as u64) as u32;
        let reply = client.list_items(request.clone()).await.map_err(show::refused)?.into_inner();
        for item in &reply.items {
            shown.item(item)?;
        }
        left -= reply.items.len() as u64;
        if reply.next_page_token.is_empty() {
            break;
        }
        request.page_token = reply.next_page_token;
    }
    Ok(shown.exit_code())
}

async fn count(config: &Config, args: CountArgs) -> anyhow::Result<ExitCode> {
    let mut client = target::admin(target::open(config, &args.target, STORED).await?);
    let cache = args.target.cache.clone().unwrap_or_default();
    let request = proto::CountItemsRequest { cache, filter: args.filter.as_ref().map(filter::message) };
    let reply = client.count_items(request).await.map_err(show::refused)?.into_inner();
    let source = reply.source.unwrap_or_default();
    match args.json {
        true => show::print_line(
            &json!({ "count": reply.count, "cache": source.cache, "generation": source.generation }),
        )?,
        false => writeln!(std::io::stdout(), "{}", reply.count)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Deletes items.
pub(super) async fn delete(config: &Config, args: DeleteArgs) -> anyhow::Result<ExitCode> {
    let ids = args.which.ids.as_deref().map(ids).transpose()?;
    let mut client = target::admin(target::open(config, &args.target, STORED).await?);
    let cache = args.target.cache.clone().unwrap_or_default();
    let Some(ids) = ids else {
        let filter = args.which.filter.as_ref().map(filter::message);
        let request = proto::DeleteRequest { cache, ids: Vec::new(), filter };
        let reply = client.delete(request).await.map_err(show::refused)?.into_inner();
        match args.json {
            true => show::print_line(&json!({ "deleted": reply.deleted }))?,
            false => writeln!(std::io::stdout(), "{} deleted", reply.deleted)?,
        }
        return Ok(ExitCode::SUCCESS);
    };
    let (mut deleted, mut unknown) = (0, 0);
    for ids in ids.chunks(ROWS_PER_REQUEST) {
        let request = proto::DeleteRequest { cache: cache.clone(), ids: ids.to_vec(), filter: None };
        let reply = client.delete(request).await.map_err(show::refused)?.into_inner();
        for result in &reply.results {
            if args.json {
                show::print_line(&json!({ "id": result.id, "found": result.found }))?;
            }
            unknown += u64::from(!result.found);
        }
        deleted += reply.deleted;
    }
    if !args.json {
        writeln!(std::io::stdout(), "{deleted} deleted, {unknown} were not there")?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn change(config: &Config, args: TagArgs) -> anyhow::Result<ExitCode> {
    let ids = args.which.ids.as_deref().map(ids).transpose()?;
    if args.set.is_empty() && args.unset.is_empty() && !args.replace && args.uri.is_none() {
        bail!("nothing changes; give --set, --unset, --replace or --uri");
    }
    if let (Some(ids), true) = (&ids, args.uri.is_some())
        && ids.len() != 1
    {
        bail!("--uri is for one item, and --ids names {}", ids.len());
    }
    let mut mask: Vec<String> = args.uri.iter().map(|_| "uri".to_owned()).collect();
    match args.replace {
        true => mask.push("tags".into()),
        false => {
            mask.extend(args.set.iter().map(|(name, _)| name).chain(&args.unset).map(|n| format!("tags.{n}")))
        }
    }
    let update = |id: u64| proto::ItemUpdate {
        id,
        uri: args.uri.clone().unwrap_or_default(),
        tags: args.set.iter().cloned().collect(),
        mask: mask.clone(),
    };
    let mut client = target::admin(target::open(config, &args.target, STORED).await?);
    let cache = args.target.cache.clone().unwrap_or_default();
    let mut shown = Shown::new("item", args.json);
    let mut listed = proto::ListItemsRequest {
        cache: cache.clone(),
        filter: args.which.filter.as_ref().map(filter::message),
        page_size: ROWS_PER_REQUEST as u32,
        ..Default::default()
    };
    let mut named = ids.as_ref().map(|ids| ids.chunks(ROWS_PER_REQUEST));
    loop {
        // What is changed may no longer match: the next page begins behind it all the same.
        let (ids, last) = match &mut named {
            Some(chunks) => match chunks.next() {
                Some(ids) => (ids.to_vec(), false),
                None => break,
            },
            None => {
                let page = client.list_items(listed.clone()).await.map_err(show::refused)?.into_inner();
                listed.page_token = page.next_page_token;
                (page.items.iter().map(|item| item.id).collect(), listed.page_token.is_empty())
            }
        };
        if !ids.is_empty() {
            let updates = ids.into_iter().map(update).collect();
            let request = proto::UpdateItemsRequest { cache: cache.clone(), updates };
            let reply = client.update_items(request).await.map_err(show::refused)?.into_inner();
            for result in &reply.results {
                shown.updated(result)?;
            }
        }
        if last {
            break;
        }
    }
    shown.summed("changed")?;
    Ok(shown.exit_code())
}
