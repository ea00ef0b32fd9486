//! Items listed, counted, deleted by what they are, and changed without their embeddings.

use std::sync::Arc;
use std::time::Duration;

use super::change::{Changed, compact_behind, writable};
use super::{App, Call, Error};
use crate::cache::{self, Edit, Snapshot, decode_row};
use crate::store::ItemRecord;
use crate::types::{Filter, ItemId};

/// Items of a page that is not told how many.
pub const DEFAULT_PAGE: usize = 100;
/// Bytes after which a page ends: less than what clients take by default, one more item included.
const PAGE_BYTES: usize = 3 << 20;
/// Bytes that an item takes beside its texts and its row.
const ITEM_BYTES: usize = 128;
/// Items read at a time.
const TOGETHER: usize = 256;
/// Items deleted in one batch.
const DELETED_TOGETHER: usize = 1024;

/// A stored item.
#[derive(Debug, Clone)]
pub struct Item {
    /// Its id.
    pub id: ItemId,
    /// What is known of it.
    pub record: ItemRecord,
    /// Its row, where that was asked for.
    pub row: Option<Vec<f32>>,
}

/// Some items of a list.
#[derive(Debug)]
pub struct Page {
    /// By ascending id.
    pub items: Vec<Item>,
    /// The last id that was looked at, when there may be more behind it.
    pub next: Option<ItemId>,
}

/// The items of a snapshot after one, as they are stored now.
///
/// * `limit`: how many at most. `rows`: whether their rows are wanted.
///
/// # Errors
/// Tags or items that cannot be read, deadline and cancellation.
pub fn list(
    snapshot: &Snapshot,
    filter: Option<&Filter>,
    after: Option<ItemId>,
    limit: usize,
    rows: bool,
    call: &Call,
) -> Result<Page, Error> {
    let (store, cache) = (snapshot.store(), snapshot.record());
    let filtered = filter.map(|filter| snapshot.filtered(filter)).transpose()?;
    let ids_after = |after, limit| match &filtered {
        Some(filtered) => filtered.ids_after(after, limit),
        None => snapshot.ids_after(after, limit),
    };
    let (mut items, mut bytes, mut at) = (Vec::new(), 0, after);
    loop {
        call.check()?;
        let wanted = TOGETHER.min(limit - items.len());
        let mut ids = ids_after(at, wanted + 1);
        let more = ids.len() > wanted;
        ids.truncate(wanted);
        let found = store.items(cache.id, &ids)?;
        let mut stored = if rows { store.rows(cache.id, &ids)? } else { vec![None; ids.len()] }.into_iter();
        for (i, (&id, record)) in ids.iter().zip(found).enumerate() {
            let row = stored.next().flatten();
            // Deleted since, or changed so that it no longer matches.
            let record = record.filter(|record| filter.is_none_or(|f| f.matches(id, &record.tags)));
            at = Some(id);
            let Some(record) = record else { continue };
            let row = row.map(|row| decode_row(&row, cache.rows));
            bytes += ITEM_BYTES + record.uri.len() + ItemRecord::tag_bytes(&record.tags);
            bytes += row.as_ref().map_or(0, |row| 4 * row.len());
            items.push(Item { id, record, row });
            if bytes >= PAGE_BYTES {
                let end = !more && i + 1 == ids.len();
                return Ok(Page { items, next: at.filter(|_| !end) });
            }
        }
        if !more || items.len() >= limit {
            return Ok(Page { items, next: at.filter(|_| more) });
        }
    }
}

/// How many items of a snapshot match.
///
/// # Errors
/// Tags that cannot be read.
pub fn count(snapshot: &Snapshot, filter: Option<&Filter>) -> Result<u64, Error> {
    Ok(match filter {
        Some(filter) => snapshot.filtered(filter)?.len(),
        None => snapshot.live(),
    } as u64)
}

/// Deletes the items that match a filter when this begins, and when their turn comes. Says how many they were.
///
/// # Errors
/// As [`super::delete`]. Items whose turn had come by then are deleted.
pub fn delete_matching(
    app: &App,
    cache: &str,
    filter: &Filter,
    call: &Call,
) -> Result<(u64, Arc<Snapshot>), Error> {
    let cache = writable(app, cache)?;
    // As of one moment, however long it takes: what is put meanwhile is not deleted unless it has an id of then.
    let begun = cache.snapshot();
    let filtered = begun.filtered(filter)?;
    let (mut deleted, mut after) = (0, None);
    loop {
        call.check()?;
        let ids = filtered.ids_after(after, DELETED_TOGETHER);
        let Some(&last) = ids.last() else { break };
        deleted += cache.delete_matching(&ids, filter)?;
        after = Some(last);
        cache.compact_if_due(&app.compact, &app.background);
    }
    Ok((deleted, cache.snapshot()))
}

/// Changes what is said of items, each with a result of its own. What is acknowledged is on disk and is found by the next search.
///
/// # Errors
/// As [`super::delete`].
pub fn update(
    app: &App,
    cache: &str,
    edits: Vec<Result<Edit, Error>>,
    call: &Call,
) -> Result<Changed<Result<(), Error>>, Error> {
    let cache = writable(app, cache)?;
    call.check()?;
    let (mut good, mut refused) = (Vec::with_capacity(edits.len()), Vec::with_capacity(edits.len()));
    for edit in edits {
        refused.push(edit.map(|edit| good.push(edit)).err());
    }
    let done = cache.update(good);
    compact_behind(app, &cache, &done);
    let mut done = done?.into_iter();
    let results = refused.into_iter().map(|refused| match refused {
        Some(error) => Err(error),
        None => done.next().unwrap_or_else(|| Err(cache::Error::Deleted(cache.name()))).map_err(Error::from),
    });
    Ok(Changed { results: results.collect(), snapshot: cache.snapshot(), embed: Duration::ZERO })
}
