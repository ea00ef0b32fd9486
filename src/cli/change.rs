//! `upsert`: items into a cache.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use prost::Message as _;
use viscache::media::npy;
use viscache::serve::proto::{self, Dtype, upsert_item};
use viscache::serve::{MAX_REQUEST_ID_BYTES, encode_tensor};
use viscache::store::REQUEST_WINDOW;

use super::ask::ROWS_PER_REQUEST;
use super::media::MediaArgs;
use super::media::read;
use super::show::{self, Shown};
use super::{KeyArg, UpsertArgs, target};
use crate::config::Config;

/// Bytes of files after which a request is full: one more file of the largest size has room in what a server takes by default.
const BYTES_PER_REQUEST: usize = 16 << 20;

pub async fn upsert(config: &Config, args: UpsertArgs) -> anyhow::Result<ExitCode> {
    let ids = args.ids.as_deref().map(ids).transpose()?;
    let cache = args.target.cache.clone().unwrap_or_default();
    let (count, requests): (usize, Requests<'_>) = match &args.vectors {
        Some(path) => vectors(path, &cache)?,
        None => media(&args.media, &cache),
    };
    if count == 0 {
        bail!("there is nothing to store; give --image, --text, --audio, another input, or --vectors");
    }
    if ids.is_some() && args.key == KeyArg::Uri {
        bail!("--ids names the items, and --key uri tells them by their uris; give one of the two");
    }
    if let Some(ids) = &ids
        && ids.len() != count
    {
        bail!("--ids has {} ids for {count} items", ids.len());
    }
    if let Some(id) = &args.request_id {
        check_request_id(id, count, args.vectors.is_some(), args.key, ids.is_some())?;
    }
    let mut ids = ids.into_iter().flatten();
    let mut client =
        target::admin(target::open(config, &args.target, target::wants(args.vectors.is_none())).await?);
    let mut shown = Shown::new("item", args.json);
    for (number, request) in requests.enumerate() {
        let mut request = request?;
        if args.key == KeyArg::Uri {
            request.key = proto::UpsertKey::Uri.into();
        }
        if let Some(id) = &args.request_id {
            // The same inputs make the same requests.
            request.request_id = if number == 0 { id.clone() } else { format!("{id}/{number}") };
        }
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

/// Refuses an id that would not keep what it promises: a cache remembers its last requests alone, and ids have a length.
fn check_request_id(id: &str, count: usize, rows: bool, key: KeyArg, named: bool) -> anyhow::Result<()> {
    // Files are put together by their sizes as well, so that there may be a message for each of them.
    let messages = if rows { count.div_ceil(ROWS_PER_REQUEST) } else { count };
    let longest = id.len() + format!("/{messages}").len() * usize::from(messages > 1);
    if longest > MAX_REQUEST_ID_BYTES {
        bail!(
            "--request-id has {} bytes, and with the number of a message {longest}; {MAX_REQUEST_ID_BYTES} are taken",
            id.len()
        );
    }
    // Items that are told by themselves take their own places again, remembered or not.
    if messages as u64 > REQUEST_WINDOW && key != KeyArg::Uri && !named {
        bail!(
            "{count} items may take {messages} messages, and a cache remembers its last {REQUEST_WINDOW}: sent again, the first would \
             be stored twice. Send parts of them under ids of their own, or tell the items by --ids or --key uri"
        );
    }
    Ok(())
}

/// Requests, made one after the other: files are read when their turn comes.
type Requests<'a> = Box<dyn Iterator<Item = anyhow::Result<proto::UpsertRequest>> + 'a>;

/// Files and texts as requests that a server's limits let pass, and their number.
fn media<'a>(media: &'a MediaArgs, cache: &'a str) -> (usize, Requests<'a>) {
    let sources = media.sources();
    let count = sources.len();
    let mut sources = sources.into_iter().peekable();
    let requests = std::iter::from_fn(move || {
        sources.peek()?;
        let (mut items, mut bytes) = (Vec::new(), 0);
        while bytes < BYTES_PER_REQUEST && items.len() < ROWS_PER_REQUEST {
            let Some((uri, read)) = sources.next() else { break };
            let kind = match read() {
                Ok(kind) => kind,
                Err(error) => return Some(Err(error)),
            };
            let media = proto::Media { kind: Some(kind) };
            bytes += media.encoded_len();
            items.push(proto::UpsertItem {
                content: Some(upsert_item::Content::Media(media)),
                uri,
                ..Default::default()
            });
        }
        Some(Ok(proto::UpsertRequest { cache: cache.to_owned(), items, ..Default::default() }))
    });
    (count, Box::new(requests))
}

/// One `--tag`.
pub fn tag(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("is not NAME=VALUE".into()),
    }
}

/// The rows of a file as requests, and their number.
fn vectors(path: &Path, cache: &str) -> anyhow::Result<(usize, Requests<'static>)> {
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
            ..Default::default()
        }
    };
    let chunks = matrix.values.chunks(ROWS_PER_REQUEST * matrix.dim);
    let requests: Vec<_> = chunks.enumerate().map(request).map(Ok).collect();
    Ok((matrix.values.len() / matrix.dim, Box::new(requests.into_iter())))
}

/// Ids from a list, or from a file of them.
pub(super) fn ids(words: &str) -> anyhow::Result<Vec<u64>> {
    if words.ends_with(".npy") {
        let bytes = read(Path::new(words))?;
        return npy::read_ids(&bytes).map_err(|e| anyhow::anyhow!("{words}: {e}"));
    }
    let one = |word: &str| word.trim().parse().with_context(|| format!("`{word}` is not an id"));
    words.split(',').map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_refused_that_would_not_keep_what_it_promises() {
        let check = |id: &str, count, rows, key, named| {
            check_request_id(id, count, rows, key, named).map_err(|refused| refused.to_string())
        };
        let (all, window) = (REQUEST_WINDOW as usize * ROWS_PER_REQUEST, REQUEST_WINDOW as usize);
        assert_eq!(check("nightly", all, true, KeyArg::Id, false), Ok(()));
        assert!(check("nightly", all + 1, true, KeyArg::Id, false).unwrap_err().contains("--key uri"));
        assert_eq!(check("nightly", all + 1, true, KeyArg::Uri, false), Ok(()));
        assert_eq!(check("nightly", all + 1, true, KeyArg::Id, true), Ok(()));
        assert!(check("nightly", window + 1, false, KeyArg::Id, false).is_err());
        let long = "x".repeat(MAX_REQUEST_ID_BYTES);
        assert_eq!(check(&long, ROWS_PER_REQUEST, true, KeyArg::Id, false), Ok(()));
        let refused = check(&long, ROWS_PER_REQUEST + 1, true, KeyArg::Id, false).unwrap_err();
        assert!(refused.contains("128 are taken"), "{refused}");
    }
}
