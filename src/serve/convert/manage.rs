//! Caches to be made and named; items to be changed and listed.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;

use super::{argument, check_bytes};
use crate::cache::{Edit, Snapshot, TagEdit};
use crate::flow::{App, Create, DEFAULT_PAGE, Error, MadeBy};
use crate::serve::proto::{self, Dtype, UpsertKey, create_cache_request::MadeBy as Said};
use crate::store::{CacheId, CacheRecord, ItemRecord, RowType};
use crate::types::{CacheName, Filter, Fingerprint, ItemId};

/// Bytes of the id of a request.
pub const MAX_REQUEST_ID_BYTES: usize = 128;
/// Bytes of a model's name.
const MAX_MODEL_NAME_BYTES: usize = 256;
/// What stands before the name of a tag in a mask.
const TAG: &str = "tags.";

/// A name of a cache or an alias.
pub(in crate::serve) fn name(field: &str, name: &str) -> Result<CacheName, Error> {
    CacheName::new(name).map_err(|e| argument(field, e.to_string()))
}

/// A cache to be made.
pub(in crate::serve) fn create(request: proto::CreateCacheRequest) -> Result<Create, Error> {
    let name = self::name("name", &request.name)?;
    let dim = request.dim.map(|dim| dim as usize);
    if let Some(dim) = dim.filter(|dim| !(1..=CacheRecord::MAX_DIM).contains(dim)) {
        return Err(argument("dim", format!("{dim} is not from 1 to {}", CacheRecord::MAX_DIM)));
    }
    let rows = match Dtype::try_from(request.row_dtype) {
        Ok(Dtype::Unspecified) => None,
        Ok(Dtype::F32) => Some(RowType::F32),
        Ok(Dtype::F16) => Some(RowType::F16),
        Ok(Dtype::Bf16) | Err(_) => {
            return Err(argument("row_dtype", "rows are stored as f32 or f16"));
        }
    };
    let made_by = match request.made_by {
        None => MadeBy::Named(None),
        Some(Said::Like(like)) => MadeBy::Like(self::name("like", &like)?),
        Some(Said::ServedModel(true)) => MadeBy::Served,
        Some(Said::ServedModel(false)) => {
            return Err(argument("served_model", "is false; leave it out, or set it"));
        }
        Some(Said::ModelName(model)) => {
            check_bytes("model_name", model.len(), MAX_MODEL_NAME_BYTES)?;
            if model.trim().is_empty() || model.chars().any(char::is_control) {
                return Err(argument("model_name", "is empty, or not a line of text"));
            }
            MadeBy::Named(Some(model))
        }
    };
    Ok(Create { name, dim, rows, made_by })
}

/// The id that makes a request one that may be sent again, if it has one.
pub(in crate::serve) fn request_id(id: &str) -> Result<Option<&str>, Error> {
    check_bytes("request_id", id.len(), MAX_REQUEST_ID_BYTES)?;
    Ok(Some(id).filter(|id| !id.is_empty()))
}

/// Whether items are told apart by their uris. They then name no ids.
pub(in crate::serve) fn by_uri(request: &proto::UpsertRequest) -> Result<bool, Error> {
    match UpsertKey::try_from(request.key) {
        Ok(UpsertKey::Unspecified | UpsertKey::Id) => Ok(false),
        Ok(UpsertKey::Uri) => match request.items.iter().position(|item| item.id.is_some()) {
            Some(i) => Err(argument(
                format!("items[{i}].id"),
                "is not taken where items are told apart by their uris",
            )),
            None => Ok(true),
        },
        Err(_) => Err(argument("key", format!("{} is not a known key", request.key))),
    }
}

/// A digest of what an upsert asks for, whatever the order of its tags on the way.
pub(in crate::serve) fn content(request: &proto::UpsertRequest) -> Fingerprint {
    let mut digest = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        digest.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
    };
    part(&request.key.to_le_bytes());
    part(&request.vectors.as_ref().map(prost::Message::encode_to_vec).unwrap_or_default());
    for item in &request.items {
        let mut item = item.clone();
        let tags: BTreeMap<String, String> = std::mem::take(&mut item.tags).into_iter().collect();
        part(&item.encode_to_vec());
        part(&(tags.len() as u64).to_le_bytes());
        for (name, value) in tags {
            part(name.as_bytes());
            part(value.as_bytes());
        }
    }
    Fingerprint::from_digest(*digest.finalize().as_bytes())
}

/// The changes of an update, each with an error of its own.
///
/// # Errors
/// For the request as a whole: none, or too many.
pub(in crate::serve) fn edits(
    app: &App,
    updates: Vec<proto::ItemUpdate>,
) -> Result<Vec<Result<Edit, Error>>, Error> {
    let limit = app.limits.max_batch;
    if updates.is_empty() || updates.len() > limit {
        return Err(argument(
            "updates",
            format!("1 to {limit} updates are taken, {} were sent", updates.len()),
        ));
    }
    let one = |(i, update)| edit(update, &format!("updates[{i}]"));
    Ok(updates.into_iter().enumerate().map(one).collect())
}

fn edit(update: proto::ItemUpdate, field: &str) -> Result<Edit, Error> {
    let proto::ItemUpdate { id, uri, mut tags, mask } = update;
    if mask.is_empty() {
        return Err(argument(format!("{field}.mask"), "is empty: name what changes (uri, tags, tags.NAME)"));
    }
    let mut named = BTreeSet::new();
    let (mut new_uri, mut all, mut some) = (None, false, BTreeMap::new());
    for (i, path) in mask.iter().enumerate() {
        let place = || format!("{field}.mask[{i}]");
        if !named.insert(path) {
            return Err(argument(place(), format!("`{path}` stands there twice")));
        }
        match path.as_str() {
            "uri" => new_uri = Some(uri.clone()),
            "tags" => all = true,
            _ => match path.strip_prefix(TAG).filter(|name| !name.is_empty()) {
                Some(name) => drop(some.insert(name.to_owned(), tags.remove(name))),
                None => {
                    let why = format!("`{path}` is none of uri, tags and tags.NAME");
                    return Err(argument(place(), why));
                }
            },
        }
        if all && !some.is_empty() {
            return Err(argument(place(), "all tags and one of them do not go together"));
        }
    }
    if new_uri.is_none() && !uri.is_empty() {
        return Err(argument(format!("{field}.uri"), "is sent and not in the mask"));
    }
    if let (false, Some(tag)) = (all, tags.keys().next()) {
        return Err(argument(format!("{field}.tags"), format!("`{tag}` is sent and not in the mask")));
    }
    check_bytes(&format!("{field}.uri"), uri.len(), ItemRecord::MAX_URI_BYTES)?;
    let tags = match all {
        true => TagEdit::All(tags.into_iter().collect()),
        false => TagEdit::Some(some),
    };
    let bytes = match &tags {
        TagEdit::All(tags) => ItemRecord::tag_bytes(tags),
        TagEdit::Some(tags) => {
            tags.iter().map(|(name, value)| name.len() + value.as_ref().map_or(0, String::len)).sum()
        }
    };
    check_bytes(&format!("{field}.tags"), bytes, ItemRecord::MAX_TAG_BYTES)?;
    Ok(Edit { id: ItemId(id), uri: new_uri, tags })
}

/// Items of a page.
pub(in crate::serve) fn page_size(app: &App, size: u32) -> Result<usize, Error> {
    let limit = app.limits.max_batch;
    match size as usize {
        0 => Ok(DEFAULT_PAGE.min(limit)),
        size if size <= limit => Ok(size),
        size => Err(argument("page_size", format!("{size} items are more than the limit of {limit}"))),
    }
}

/// What says where a page ended: the last id, and a digest of what is listed.
///
/// ```text
/// id₁₆ digest₁₆      hexadecimal
/// ```
pub(in crate::serve) fn page_token(
    snapshot: &Snapshot,
    filter: Option<&Filter>,
    next: Option<ItemId>,
) -> String {
    next.map(|ItemId(id)| format!("{id:016x}{}", listed(snapshot.record().id, filter))).unwrap_or_default()
}

/// The id that a page begins after.
///
/// # Errors
/// A token of another list, or none of ours.
pub(in crate::serve) fn page_after(
    snapshot: &Snapshot,
    filter: Option<&Filter>,
    token: &str,
) -> Result<Option<ItemId>, Error> {
    if token.is_empty() {
        return Ok(None);
    }
    let id = token.get(..16).filter(|_| token.len() == 32 && token.bytes().all(|b| b.is_ascii_hexdigit()));
    let Some(id) = id.and_then(|id| u64::from_str_radix(id, 16).ok()) else {
        return Err(argument("page_token", "is not a token of this service"));
    };
    if token[16..] != listed(snapshot.record().id, filter) {
        let why = "is of another cache or filter; begin again without one";
        return Err(argument("page_token", why));
    }
    Ok(Some(ItemId(id)))
}

fn listed(CacheId(cache): CacheId, filter: Option<&Filter>) -> String {
    let filter = filter.map(ToString::to_string).unwrap_or_default();
    Fingerprint::of(format!("{cache} {filter}").as_bytes()).to_string()[..16].to_owned()
}
