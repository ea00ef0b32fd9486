//! A cache of items in versions, for tests of what a crash leaves: what is stored of an item says which version it is.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use viscache::cache::{Cache, LoadOptions, NewCache, NewItem, RowsMode, Writer};
use viscache::index::BuildParams;
use viscache::store::{Access, ItemRecord, RowType, Store};
use viscache::types::{CacheName, Embedding, Fingerprint, ItemId, Origin};

pub fn name() -> CacheName {
    CacheName::new("a").unwrap()
}

/// * `row`: of this version.
pub fn item(id: u64, version: u64, row: Vec<f32>) -> NewItem {
    let uri = format!("{id}/{version}");
    let digest = Fingerprint::of(uri.as_bytes());
    let record = ItemRecord { uri, modality: None, digest, tags: BTreeMap::new() };
    NewItem { id: Some(ItemId(id)), embedding: Embedding::new(row).unwrap(), record }
}

/// Makes the cache with these items.
pub fn make(path: &Path, items: Vec<NewItem>, params: &BuildParams) {
    let store = Store::open(path, Access::Write).unwrap();
    let (dim, origin) = (items[0].embedding.dim(), Origin::of("test"));
    let new = NewCache { dim, rows: RowType::F32, origin, model: None };
    let mut writer = Writer::open(&store, &name(), &new).unwrap();
    writer.put(items, |_, _, _| {}).unwrap();
    writer.index(params, &Default::default(), |_| {}, |_, _, _| Ok(Default::default())).unwrap();
}

pub fn open(path: &Path, access: Access) -> Arc<Cache> {
    let store = Arc::new(Store::open(path, access).unwrap());
    let options = LoadOptions { rows: RowsMode::Ram, memory_budget: 1 << 28 };
    Arc::new(Cache::open(&store, &name(), None, options).unwrap())
}
