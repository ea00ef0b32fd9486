//! Items as a list, a count, a filter, an update and a uri see them: held to a map of them, through compactions, restarts and
//! roll-backs, and seen alike by a reader beside.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use tempfile::TempDir;
use viscache::cache::{
    Cache, CompactOptions, Edit, Error, LoadOptions, NewCache, NewItem, Repeatable, RowsMode, Snapshot,
    TagEdit, Upserted, Upserts, Writer,
};
use viscache::index::{SearchParams, Searcher};
use viscache::store::{Access, ItemRecord, REQUEST_WINDOW, RequestResult, RowType, Store};
use viscache::types::{CacheName, Embedding, Filter, Fingerprint, Generation, ItemId, Origin};

const DIM: usize = 8;
const COMPACT: CompactOptions = CompactOptions {
    automatic: false,
    after_changes: 1,
    after_share: 0.0,
    threads: 1,
    rebuild_below: usize::MAX,
};

type Tags = BTreeMap<String, String>;
/// Uri and tags by id.
type Items = BTreeMap<u64, (String, Tags)>;

fn name() -> CacheName {
    "a".parse().unwrap()
}

fn row(number: u64) -> Embedding {
    let row = (0..DIM as u64).map(|i| ((number * 31 + i * i * 7) % 23) as f32 - 11.2).collect();
    Embedding::new(row).unwrap().unit().unwrap()
}

fn tags(tag: &Option<u8>) -> Tags {
    tag.iter().map(|value| ("kind".to_owned(), value.to_string())).collect()
}

fn item(id: Option<u64>, uri: &str, tag: &Option<u8>) -> NewItem {
    let digest = Fingerprint::of(uri.as_bytes());
    let record = ItemRecord { uri: uri.into(), modality: None, digest, tags: tags(tag) };
    NewItem { id: id.map(ItemId), embedding: row(id.unwrap_or(uri.len() as u64)), record }
}

fn kind(value: u8) -> Filter {
    Filter::Tag { key: "kind".into(), values: [value.to_string()].into() }
}

fn filters() -> Vec<Option<Filter>> {
    let not = Filter::Not(Box::new(Filter::HasTag("kind".into())));
    let some = Filter::Ids((0..40).step_by(3).map(ItemId).collect());
    vec![None, Some(kind(0)), Some(kind(1)), Some(not), Some(some)]
}

/// A store with a cache that was made by itself.
fn make(path: &Path) {
    let store = Store::open(path, Access::Write).unwrap();
    let new = NewCache { dim: DIM, rows: RowType::F32, origin: Origin::of("test"), model: None };
    new.make(&store, &name()).unwrap();
}

fn open(path: &Path, access: Access, rows: RowsMode) -> Arc<Cache> {
    let store = Arc::new(Store::open(path, access).unwrap());
    Arc::new(Cache::open(&store, &name(), None, LoadOptions { rows, memory_budget: 1 << 28 }).unwrap())
}

/// All ids, a page at a time.
fn listed(snapshot: &Snapshot, filter: Option<&Filter>, page: usize) -> Vec<u64> {
    let filtered = filter.map(|filter| snapshot.filtered(filter).unwrap());
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let ids = match &filtered {
            Some(filtered) => filtered.ids_after(after, page),
            None => snapshot.ids_after(after, page),
        };
        assert!(ids.len() <= page);
        let Some(&last) = ids.last() else { return all };
        all.extend(ids.iter().map(|id| id.0));
        after = Some(last);
    }
}

/// Holds what a snapshot lists, counts and finds to the items that there are.
fn check(snapshot: &Snapshot, items: &Items, page: usize) {
    let cache = snapshot.record().id;
    for filter in filters() {
        let matches = |(&id, (_, tags)): (&u64, &(String, Tags))| {
            filter.as_ref().is_none_or(|filter| filter.matches(ItemId(id), tags)).then_some(id)
        };
        let expected: Vec<u64> = items.iter().filter_map(matches).collect();
        assert_eq!(listed(snapshot, filter.as_ref(), page), expected, "{filter:?}");
        let count =
            filter.as_ref().map_or(snapshot.live(), |filter| snapshot.filtered(filter).unwrap().len());
        assert_eq!(count, expected.len(), "{filter:?}");
        let exact = SearchParams { exact: true, ..SearchParams::default() };
        let (mut searcher, query) = (Searcher::default(), row(3));
        let found = match &filter {
            Some(filter) => snapshot.filtered(filter).unwrap().search(&mut searcher, &query, 1000, &exact),
            None => snapshot.search(&mut searcher, &query, 1000, &exact),
        };
        let mut found: Vec<u64> = found.unwrap().hits.iter().map(|hit| hit.id.0).collect();
        found.sort_unstable();
        assert_eq!(found, expected, "a search finds what a list has: {filter:?}");
    }
    let mut by_uri: BTreeMap<&str, Vec<ItemId>> = BTreeMap::new();
    for (&id, (uri, tags)) in items {
        let stored = snapshot.store().item(cache, ItemId(id)).unwrap().unwrap();
        assert_eq!((&stored.uri, &stored.tags), (uri, tags), "item {id}");
        by_uri.entry(uri).or_default().push(ItemId(id));
    }
    for uri in (0..8).map(|uri| format!("uri-{uri}")) {
        let expected = by_uri.remove(uri.as_str()).unwrap_or_default();
        assert_eq!(snapshot.store().items_of_uri(cache, &uri).unwrap(), expected, "{uri}");
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// An item under an id or a new one.
    Upsert(Option<u64>, u8, Option<u8>),
    /// Items told by their uris.
    Keyed(Vec<(u8, Option<u8>)>),
    Delete(Vec<u64>),
    DeleteMatching(usize),
    Uri(u64, u8),
    Replace(u64, Option<u8>),
    Set(u64, Option<u8>),
    Compact,
    Back,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let (id, uri, tag) = (0u64..30, 0u8..8, prop::option::of(0u8..3));
    prop_oneof![
        4 => (prop::option::of(id.clone()), uri.clone(), tag.clone()).prop_map(|(id, uri, tag)| Step::Upsert(id, uri, tag)),
        4 => prop::collection::vec((uri.clone(), tag.clone()), 1..5).prop_map(Step::Keyed),
        1 => prop::collection::vec(id.clone(), 1..6).prop_map(Step::Delete),
        1 => (1usize..5).prop_map(Step::DeleteMatching),
        2 => (id.clone(), uri).prop_map(|(id, uri)| Step::Uri(id, uri)),
        2 => (id.clone(), tag.clone()).prop_map(|(id, tag)| Step::Replace(id, tag)),
        2 => (id, tag).prop_map(|(id, tag)| Step::Set(id, tag)),
        1 => Just(Step::Compact),
        1 => Just(Step::Back),
        1 => Just(Step::Reopen),
    ]
}

struct World {
    folder: TempDir,
    mode: RowsMode,
    cache: Option<Arc<Cache>>,
    items: Items,
    next: u64,
}

impl World {
    fn new(mode: RowsMode) -> Self {
        let folder = tempfile::tempdir().unwrap();
        make(folder.path());
        let cache = Some(open(folder.path(), Access::Write, mode));
        World { folder, mode, cache, items: Items::new(), next: 0 }
    }

    fn cache(&self) -> &Arc<Cache> {
        self.cache.as_ref().unwrap()
    }

    fn put(&mut self, id: u64, uri: String, tag: &Option<u8>) {
        self.items.insert(id, (uri, tags(tag)));
        self.next = self.next.max(id + 1);
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Upsert(id, uri, tag) => {
                let uri = format!("uri-{uri}");
                let given = self.cache().upsert(vec![item(*id, &uri, tag)]).unwrap().remove(0).unwrap();
                assert_eq!(given.0, id.unwrap_or(self.next));
                self.put(given.0, uri, tag);
            }
            Step::Keyed(keyed) => {
                let items = keyed.iter().map(|(uri, tag)| item(None, &format!("uri-{uri}"), tag)).collect();
                let upserts = Upserts { items, named: &[], by_uri: true, request: None };
                let Upserted::Now(results) = self.cache().put(upserts).unwrap() else { panic!() };
                let before = self.items.clone();
                for (result, (uri, tag)) in results.into_iter().zip(keyed) {
                    let uri = format!("uri-{uri}");
                    let has = |items: &Items| {
                        items.iter().filter(|(_, item)| item.0 == uri).map(|(&id, _)| id).collect::<Vec<_>>()
                    };
                    // What stands before it in the request is told by its uri as well.
                    match (has(&before).len(), has(&self.items).first().copied(), result) {
                        (2.., _, result) => assert!(matches!(result, Err(Error::AmbiguousUri { .. }))),
                        (_, Some(id), Ok(given)) => {
                            assert_eq!(given.0, id);
                            self.put(id, uri, tag);
                        }
                        (_, None, Ok(given)) => {
                            assert_eq!(given.0, self.next);
                            self.put(given.0, uri, tag);
                        }
                        (_, _, Err(error)) => panic!("{error}"),
                    }
                }
            }
            Step::Delete(ids) => {
                let ids: Vec<ItemId> = ids.iter().map(|&id| ItemId(id)).collect();
                let found = self.cache().delete(&ids).unwrap();
                for (id, found) in ids.iter().zip(found) {
                    assert_eq!(self.items.remove(&id.0).is_some(), found);
                }
            }
            Step::DeleteMatching(which) => {
                let Some(filter) = &filters()[*which] else { return };
                let (snapshot, mut after, mut deleted) = (self.cache().snapshot(), None, 0);
                let filtered = snapshot.filtered(filter).unwrap();
                loop {
                    let ids = filtered.ids_after(after, 3);
                    let Some(&last) = ids.last() else { break };
                    deleted += self.cache().delete_matching(&ids, filter).unwrap();
                    after = Some(last);
                }
                let before = self.items.len();
                self.items.retain(|&id, (_, tags)| !filter.matches(ItemId(id), tags));
                assert_eq!(deleted as usize, before - self.items.len());
            }
            Step::Uri(id, uri) => {
                let uri = format!("uri-{uri}");
                self.edit(*id, Some(uri.clone()), TagEdit::Some(Default::default()), |item| item.0 = uri);
            }
            Step::Replace(id, tag) => {
                let new = tags(tag);
                self.edit(*id, None, TagEdit::All(new.clone()), |item| item.1 = new);
            }
            Step::Set(id, tag) => {
                let value = tag.map(|value| value.to_string());
                let edit = TagEdit::Some([("kind".to_owned(), value.clone())].into());
                self.edit(*id, None, edit, |item| match value {
                    Some(value) => drop(item.1.insert("kind".into(), value)),
                    None => drop(item.1.remove("kind")),
                });
            }
            Step::Compact => {
                let done = self.cache().compact(&COMPACT).unwrap();
                assert_eq!(done.items as usize, self.items.len());
            }
            Step::Back => {
                // To the generation before, if there is one.
                let snapshot = self.cache().snapshot();
                let known = snapshot.store().generations(snapshot.record().id).unwrap();
                if let Some(generation) = known.first() {
                    self.cache().publish(generation.generation).unwrap();
                }
            }
            Step::Reopen => {
                self.cache = None;
                self.cache = Some(open(self.folder.path(), Access::Write, self.mode));
            }
        }
    }

    fn edit(&mut self, id: u64, uri: Option<String>, tags: TagEdit, apply: impl FnOnce(&mut (String, Tags))) {
        let edit = Edit { id: ItemId(id), uri, tags };
        let result = self.cache().update(vec![edit]).unwrap().remove(0);
        match self.items.get_mut(&id) {
            Some(item) => {
                result.unwrap();
                apply(item);
            }
            None => assert!(matches!(result, Err(Error::NoItem(missing)) if missing.0 == id)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn lists_counts_filters_and_uris_are_those_of_a_map(
        steps in prop::collection::vec(step(), 1..40), page in 1usize..9, disk in any::<bool>()
    ) {
        let mut world = World::new(if disk { RowsMode::Disk } else { RowsMode::Ram });
        let follower = open(world.folder.path(), Access::Read, world.mode);
        for step in &steps {
            world.run(step);
            check(&world.cache().snapshot(), &world.items, page);
        }
        prop_assert!(follower.reload().is_ok());
        check(&follower.snapshot(), &world.items, page);
        world.run(&Step::Reopen);
        check(&world.cache().snapshot(), &world.items, page);
    }
}

#[test]
fn a_list_goes_on_behind_its_last_item_whatever_is_changed_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path());
    let cache = open(folder.path(), Access::Write, RowsMode::Ram);
    cache.upsert((0..100).map(|id| item(Some(2 * id), "uri-0", &None)).collect()).unwrap();
    let (mut seen, mut after) = (Vec::new(), None);
    for round in 0u64.. {
        let ids = cache.snapshot().ids_after(after, 10);
        let Some(&last) = ids.last() else { break };
        seen.extend(ids.iter().map(|id| id.0));
        after = Some(last);
        // Before and behind the page, and a compaction between two pages.
        cache.delete(&[ItemId(round * 6), ItemId(190 - round * 4)]).unwrap();
        cache.upsert(vec![item(Some(round * 2 + 1), "uri-1", &None)]).unwrap();
        if round % 3 == 1 {
            cache.compact(&COMPACT).unwrap();
        }
    }
    assert!(seen.windows(2).all(|pair| pair[0] < pair[1]), "none twice, in order: {seen:?}");
    let stayed = |id: &u64| cache.snapshot().store().item(cache.id(), ItemId(*id)).unwrap().is_some();
    let evens: Vec<u64> = (0..200).step_by(2).filter(stayed).collect();
    assert!(evens.iter().all(|id| seen.contains(id)), "what was there all along was seen");
}

/// A cache as a build makes it, and one whose record knows nothing of uris.
#[test]
fn what_a_build_put_is_told_by_its_uri_too_and_so_is_what_was_stored_before_there_were_any() {
    for known in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), Access::Write).unwrap();
        let new = NewCache { dim: DIM, rows: RowType::F32, origin: Origin::of("test"), model: None };
        let mut writer = Writer::open(&store, &name(), &new).unwrap();
        let count = 5000u64;
        let items = (0..count).map(|id| item(None, &format!("uri-{id}"), &None)).collect();
        writer.put(items, |_, _, _| {}).unwrap();
        // A later run replaces one under another name.
        writer.put(vec![item(Some(7), "moved", &None)], |_, _, _| {}).unwrap();
        writer
            .index(&Default::default(), &Default::default(), |_| {}, |_, _, _| Ok(Default::default()))
            .unwrap();
        let mut record = store.cache(&name()).unwrap();
        assert!(record.uris);
        if !known {
            // As an older program left it: no entries, and a record that says nothing of them.
            let mut batch = store.batch();
            for id in 0..count {
                batch.delete_uri(record.id, &format!("uri-{id}"), ItemId(id));
            }
            batch.delete_uri(record.id, "moved", ItemId(7));
            record.uris = false;
            batch.put_cache(&record);
            store.commit(batch).unwrap();
            assert!(store.items_of_uri(record.id, "uri-4999").unwrap().is_empty());
        }
        drop(store);
        let cache = open(folder.path(), Access::Write, RowsMode::Ram);
        let keyed = |uri: &str| {
            let items = vec![item(None, uri, &Some(1))];
            match cache.put(Upserts { items, named: &[], by_uri: true, request: None }).unwrap() {
                Upserted::Now(mut results) => results.remove(0).unwrap().0,
                Upserted::Before(_) => panic!(),
            }
        };
        assert_eq!([keyed("uri-4999"), keyed("moved"), keyed("uri-3")], [4999, 7, 3], "known: {known}");
        assert_eq!(
            [keyed("uri-7"), keyed("uri-7")],
            [count, count],
            "nobody has it any more, and then one has"
        );
        assert!(cache.snapshot().record().uris);
        assert_eq!(cache.snapshot().live() as u64, count + 1);
    }
}

#[test]
fn what_no_longer_matches_when_its_turn_comes_is_not_deleted() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path());
    let cache = open(folder.path(), Access::Write, RowsMode::Ram);
    cache.upsert((0..9).map(|id| item(Some(id), "u", &Some(0))).collect()).unwrap();
    let (begun, zero) = (cache.snapshot(), kind(0));
    let ids = begun.filtered(&zero).unwrap().ids_after(None, 100);
    let other = TagEdit::Some([("kind".to_owned(), Some("1".to_owned()))].into());
    cache.update(vec![Edit { id: ItemId(4), uri: None, tags: other }]).unwrap();
    cache.delete(&[ItemId(5)]).unwrap();
    assert_eq!(cache.delete_matching(&ids, &zero).unwrap(), 7);
    assert_eq!(listed(&cache.snapshot(), None, 5), [4]);
}

#[test]
fn a_uri_that_several_have_tells_none_and_an_empty_one_is_none() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path());
    let cache = open(folder.path(), Access::Write, RowsMode::Ram);
    cache.upsert(vec![item(Some(3), "uri-1", &None), item(Some(9), "uri-1", &None)]).unwrap();
    let items = vec![item(None, "uri-1", &None), item(None, "", &None), item(None, "uri-2", &None)];
    let put = cache.put(Upserts { items, named: &[], by_uri: true, request: None }).unwrap();
    let Upserted::Now(results) = put else { panic!() };
    assert!(
        matches!(&results[0], Err(Error::AmbiguousUri { first, second, .. }) if (first.0, second.0) == (3, 9))
    );
    assert!(matches!(&results[1], Err(Error::NoUri)));
    assert_eq!(results[2].as_ref().unwrap().0, 10);
}

#[test]
fn a_request_is_answered_as_the_first_time_as_long_as_it_is_remembered() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path());
    let mut cache = open(folder.path(), Access::Write, RowsMode::Ram);
    let put = |cache: &Cache, id: &str, content: &str| {
        let answer = |results: &[Result<ItemId, Error>]| {
            results.iter().map(|result| RequestResult::Stored(*result.as_ref().unwrap())).collect()
        };
        let request = Repeatable { id, content: Fingerprint::of(content.as_bytes()), answer: &answer };
        let items = vec![item(None, content, &None)];
        match cache.put(Upserts { items, named: &[], by_uri: false, request: Some(request) })? {
            Upserted::Now(results) => Ok((false, results[0].as_ref().unwrap().0)),
            Upserted::Before(results) => match results[..] {
                [RequestResult::Stored(id)] => Ok((true, id.0)),
                _ => panic!(),
            },
        }
    };
    assert_eq!(put(&cache, "r", "x").unwrap(), (false, 0));
    assert_eq!(put(&cache, "r", "x").unwrap(), (true, 0));
    assert!(matches!(put(&cache, "r", "y"), Err(Error::RequestReused(_))));
    assert_eq!(put(&cache, "s", "x").unwrap(), (false, 1), "another request may ask for the same");
    // It is remembered beyond the process, and though its item is gone.
    cache.delete(&[ItemId(0)]).unwrap();
    drop(cache);
    cache = open(folder.path(), Access::Write, RowsMode::Ram);
    assert_eq!(put(&cache, "r", "x").unwrap(), (true, 0));
    assert_eq!(cache.snapshot().live(), 1);
    for n in 0..REQUEST_WINDOW - 1 {
        assert!(!put(&cache, &n.to_string(), "z").unwrap().0);
    }
    // `r` has left the window, `s` has not.
    assert!(put(&cache, "s", "x").unwrap().0);
    assert!(!put(&cache, "r", "x").unwrap().0);

    // Of two at the same time one stores.
    let stored: Vec<bool> = std::thread::scope(|scope| {
        let (cache, put) = (&cache, &put);
        let calls: Vec<_> = (0..8).map(|_| scope.spawn(move || put(cache, "both", "x").unwrap().0)).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert_eq!(stored.iter().filter(|repeated| !**repeated).count(), 1);
}

#[test]
fn an_updated_item_keeps_its_row_its_digest_and_its_place_in_the_log() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path());
    let cache = open(folder.path(), Access::Write, RowsMode::Ram);
    cache.upsert((0..20).map(|id| item(Some(id), &format!("uri-{id}"), &Some(0))).collect()).unwrap();
    cache.compact(&COMPACT).unwrap();
    let (store, id) = (cache.snapshot().store().clone(), cache.id());
    let before = (store.row(id, ItemId(4)).unwrap(), store.item(id, ItemId(4)).unwrap().unwrap());
    let set =
        |name: &str, value: Option<&str>| TagEdit::Some([(name.to_owned(), value.map(str::to_owned))].into());
    let edits = vec![
        Edit { id: ItemId(4), uri: None, tags: set("colour", Some("red")) },
        Edit { id: ItemId(4), uri: Some("elsewhere".into()), tags: set("kind", None) },
        // Nothing changes: no change is written.
        Edit { id: ItemId(5), uri: Some("uri-5".into()), tags: set("kind", Some("0")) },
        Edit { id: ItemId(99), uri: None, tags: set("kind", None) },
        Edit { id: ItemId(6), uri: None, tags: set("long", Some(&"x".repeat(ItemRecord::MAX_TAG_BYTES))) },
    ];
    let sequence = cache.snapshot().delta().sequence;
    let results = cache.update(edits).unwrap();
    assert!(results[..3].iter().all(Result::is_ok));
    assert!(matches!(results[3], Err(Error::NoItem(_))) && matches!(results[4], Err(Error::TagBytes { .. })));
    let delta = cache.snapshot().delta();
    assert_eq!((delta.sequence - sequence, delta.items, delta.masked), (2, 1, 1));
    let now = (store.row(id, ItemId(4)).unwrap(), store.item(id, ItemId(4)).unwrap().unwrap());
    assert_eq!((&now.0, now.1.digest), (&before.0, before.1.digest));
    assert_eq!(
        (now.1.uri.as_str(), now.1.tags),
        ("elsewhere", [("colour".to_owned(), "red".to_owned())].into())
    );

    // Back to the graph of before any of it, and in one that was made since.
    let of_kind = |cache: &Cache| listed(&cache.snapshot(), Some(&kind(0)), 7).contains(&4);
    assert!(!of_kind(&cache));
    cache.compact(&COMPACT).unwrap();
    assert!(!of_kind(&cache));
    cache.publish(Generation(1)).unwrap();
    assert!(!of_kind(&cache), "the log brings the update to the old generation");
}

/// A later build asks which item has some content: the answer is that of the batch's end, however often an item comes in it.
#[test]
fn contents_are_known_as_a_batch_leaves_them() {
    let folder = TempDir::new().unwrap();
    make(folder.path());
    let cache = open(folder.path(), Access::Write, RowsMode::Ram);
    let store = Store::open(folder.path(), Access::Read).unwrap();
    let known = |uri: &str| {
        store.refresh().unwrap();
        store.item_of_digest(cache.id(), &Fingerprint::of(uri.as_bytes())).unwrap().map(|id| id.0)
    };
    let put = |items: &[(u64, &str)]| {
        let items = items.iter().map(|&(id, uri)| item(Some(id), uri, &None)).collect();
        cache.upsert(items).unwrap().into_iter().for_each(|stored| _ = stored.unwrap());
    };
    put(&[(1, "first"), (1, "second")]);
    assert_eq!((known("first"), known("second")), (None, Some(1)));
    // Two change places, by way of each other's contents.
    put(&[(2, "other")]);
    put(&[(1, "other"), (2, "second")]);
    assert_eq!((known("second"), known("other")), (Some(2), Some(1)));
    // And back, with a detour.
    put(&[(1, "detour"), (2, "other"), (1, "second")]);
    assert_eq!((known("second"), known("other"), known("detour")), (Some(1), Some(2), None));
    // The first that has a content stays known for it.
    put(&[(3, "other")]);
    assert_eq!(known("other"), Some(2));
    cache.delete(&[ItemId(1), ItemId(2), ItemId(3)]).unwrap();
    assert_eq!((known("second"), known("other")), (None, None));
}
