//! `upsert`, `delete`: items into a cache, and out of it.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use serde_json::json;
use viscache::media::npy;
use viscache::serve::encode_tensor;
use viscache::serve::proto::{self, Dtype, upsert_item};

use super::ask::{ROWS_PER_REQUEST, read};
use super::show::{self, Shown};
use super::{DeleteArgs, UpsertArgs, target};
use crate::config::Config;

pub async fn upsert(config: &Config, args: UpsertArgs) -> anyhow::Result<ExitCode> {
    let ids = args.ids.as_deref().map(ids).transpose()?;
    let cache = args.target.cache.clone().unwrap_or_default();
    let (count, requests) = match &args.vectors {
        Some(path) => vectors(path, &cache)?,
        None => {
            let item = |(uri, media): (String, proto::Media)| proto::UpsertItem {
                content: Some(upsert_item::Content::Media(media)),
                uri,
                ..Default::default()
            };
            let items: Vec<_> = args.media.read()?.into_iter().map(item).collect();
            (items.len(), vec![proto::UpsertRequest { cache, items, vectors: None }])
        }
    };
    if count == 0 {
        bail!("there is nothing to store; give --image, --text, --audio, another input, or --vectors");
    }
    if let Some(ids) = &ids
        && ids.len() != count
    {
        bail!("--ids has {} ids for {count} items", ids.len());
    }
    let mut ids = ids.into_iter().flatten();
    let mut client =
        target::admin(target::open(config, &args.target, target::wants(args.vectors.is_none())).await?);
    let mut shown = Shown::new("item", args.json);
    for mut request in requests {
        for item in &mut request.items {
            item.id = ids.next();
            item.tags.extend(args.tags.iter().cloned());
        }
        let reply = client.upsert(request).await.map_err(show::refused)?.into_inner();
        for result in &reply.results {
            shown.upserted(result)?;
        }
    }
    Ok(shown.exit_code())
}

pub async fn delete(config: &Config, args: DeleteArgs) -> anyhow::Result<ExitCode> {
    let ids = ids(&args.ids)?;
    let mut client = target::admin(target::open(config, &args.target, target::STORED).await?);
    let (mut deleted, mut unknown) = (0, 0);
    for ids in ids.chunks(ROWS_PER_REQUEST) {
        let cache = args.target.cache.clone().unwrap_or_default();
        let request = proto::DeleteRequest { cache, ids: ids.to_vec() };
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
        println!("{deleted} deleted, {unknown} were not there");
    }
    Ok(ExitCode::SUCCESS)
}

/// One `--tag`.
pub fn tag(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("is not NAME=VALUE".into()),
    }
}

/// The rows of a file as requests, and their number.
fn vectors(path: &Path, cache: &str) -> anyhow::Result<(usize, Vec<proto::UpsertRequest>)> {
    let bytes = read(path)?;
    let matrix = npy::read(&bytes).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?;
    let request = |(i, rows): (usize, &[f32])| {
        let count = rows.len() / matrix.dim;
        let uri = |row: usize| format!("{}#{}", path.display(), i * ROWS_PER_REQUEST + row);
        let item = |row| proto::UpsertItem { uri: uri(row), ..Default::default() };
        proto::UpsertRequest {
            cache: cache.to_owned(),
            vectors: Some(encode_tensor(rows, matrix.dim, Dtype::F32)),
            items: (0..count).map(item).collect(),
        }
    };
    let chunks = matrix.values.chunks(ROWS_PER_REQUEST * matrix.dim);
    Ok((matrix.values.len() / matrix.dim, chunks.enumerate().map(request).collect()))
}

/// Ids from a list, or from a file of them.
fn ids(words: &str) -> anyhow::Result<Vec<u64>> {
    if words.ends_with(".npy") {
        let bytes = read(Path::new(words))?;
        return npy::read_ids(&bytes).map_err(|e| anyhow::anyhow!("{words}: {e}"));
    }
    let one = |word: &str| word.trim().parse().with_context(|| format!("`{word}` is not an id"));
    words.split(',').map(one).collect()
}
