//! Caches and items from the command line, on a store and on a server; and a store of a thousand small caches.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tempfile::TempDir;
use viscache::cache::{Cache, CompactOptions, LoadOptions, NewCache, NewItem};
use viscache::media::npy;
use viscache::store::{Access, ItemRecord, RowType, Store};
use viscache::types::{CacheName, Embedding, Fingerprint, Origin};

use crate::store::{self, ROWS, ROWS_DIM};
use crate::world::{Served, World, expect, lines, viscache};

/// Runs commands of a list on a store or a server, expecting exit codes.
struct On<'a> {
    folder: &'a Path,
    place: Vec<String>,
}

impl On<'_> {
    fn run(&self, code: i32, arguments: &[&str]) -> String {
        let output = viscache(self.folder).args(arguments).args(&self.place).output().unwrap();
        String::from_utf8(expect(code, arguments, output).stdout).unwrap()
    }

    fn json(&self, code: i32, arguments: &[&str]) -> Vec<Value> {
        let arguments = [arguments, &["--json"]].concat();
        lines(&expect(
            code,
            &arguments,
            viscache(self.folder).args(&arguments).args(&self.place).output().unwrap(),
        ))
    }

    fn refused(&self, code: i32, arguments: &[&str], says: &str) {
        let output = viscache(self.folder).args(arguments).args(&self.place).output().unwrap();
        let errors = String::from_utf8(expect(code, arguments, output).stderr).unwrap();
        assert!(errors.contains(says), "{arguments:?}: {errors}");
    }
}

#[test]
fn caches_and_items_are_looked_after_alike_on_a_store_and_on_a_server() {
    for served in [false, true] {
        let folder = TempDir::new().unwrap();
        let rows = store::random_rows(6, 8, 5);
        std::fs::write(folder.path().join("r.npy"), npy::write(&rows.concat(), 8)).unwrap();
        let store = folder.path().join("store");
        let direct =
            On { folder: folder.path(), place: vec!["--store".into(), store.to_str().unwrap().into()] };
        // The store comes with its first cache.
        assert_eq!(
            direct.run(0, &["caches", "create", "a", "--dim", "8"]),
            "`a` is made, for embeddings of 8 components\n"
        );
        let server = served.then(|| {
            let mut command = viscache(folder.path());
            command.arg("serve").args(&direct.place).arg("--writable");
            Served::of(command)
        });
        let on = match &server {
            None => direct,
            Some(server) => {
                On { folder: folder.path(), place: vec!["--connect".into(), server.address.clone()] }
            }
        };
        let made = on.json(0, &["caches", "create", "b", "--like", "a", "--row-type", "f16"]);
        assert_eq!(
            (&made[0]["name"], &made[0]["dim"], &made[0]["rows"]),
            (&"b".into(), &8.into(), &"DTYPE_F16".into())
        );
        on.refused(1, &["caches", "create", "b", "--dim", "8"], "ALREADY_EXISTS [NAME_TAKEN]");
        on.refused(1, &["caches", "create", "c"], "INVALID_ARGUMENT");
        on.refused(2, &["caches", "create", "c", "--like", "a", "--served-model"], "cannot be used with");
        on.refused(2, &["caches", "create"], "NAME");

        // Stored once, by its request and by its uris.
        let upsert = ["upsert", "--cache", "a", "--vectors", "r.npy", "--tag", "kind=cat"];
        for _ in 0..2 {
            let stored = on.json(0, &[&upsert[..], &["--request-id", "first"]].concat());
            assert_eq!(
                stored.iter().map(|line| line["id"].as_u64().unwrap()).collect::<Vec<_>>(),
                [0, 1, 2, 3, 4, 5]
            );
        }
        on.json(0, &[&upsert[..], &["--key", "uri"]].concat());
        on.refused(
            1,
            &[&upsert[..], &["--request-id", "first", "--key", "uri"]].concat(),
            "REQUEST_ID_REUSED",
        );
        on.refused(1, &[&upsert[..], &["--key", "uri", "--ids", "1,2,3,4,5,6"]].concat(), "--key uri");
        assert_eq!(on.run(0, &["items", "count", "--cache", "a"]), "6\n");

        // Listed, counted, tagged.
        assert_eq!(
            on.run(
                0,
                &["items", "tag", "--cache", "a", "--ids", "1,2", "--set", "kind=dog", "--set", "seen=no"]
            ),
            "2 changed\n"
        );
        let cats = ["--cache", "a", "--filter", "tag.kind = cat"];
        let listed = on.json(0, &[&["items", "list"][..], &cats].concat());
        let ids: BTreeSet<u64> = listed.iter().map(|line| line["id"].as_u64().unwrap()).collect();
        assert_eq!(ids, [0, 3, 4, 5].into());
        assert_eq!(listed[0]["uri"], "r.npy#0");
        assert_eq!(
            on.json(0, &["items", "list", "--cache", "a", "--limit", "2", "--vectors"])[1]["vector"]
                .as_array()
                .unwrap()
                .len(),
            8
        );
        assert_eq!(on.json(0, &[&["items", "count"][..], &cats].concat())[0]["count"], 4);
        assert!(on.run(0, &["items", "list", "--cache", "a"]).lines().count() == 6);
        assert_eq!(
            on.run(0, &["items", "tag", "--cache", "a", "--filter", "has tag.seen", "--unset", "seen"]),
            "2 changed\n"
        );
        let changed = on.json(3, &["items", "tag", "--cache", "a", "--ids", "4,99", "--replace"]);
        assert_eq!(
            (&changed[0]["id"], &changed[1]["error"]["reason"]),
            (&4.into(), &"ITEM_NOT_FOUND".into())
        );
        assert_eq!(
            on.json(0, &["items", "get", "--cache", "a", "--ids", "4"])[0]["tags"],
            serde_json::json!({})
        );
        on.json(0, &["items", "tag", "--cache", "a", "--ids", "4", "--uri", "elsewhere"]);
        assert_eq!(on.json(0, &["items", "--cache", "a", "--ids", "4"])[0]["uri"], "elsewhere");
        on.refused(1, &["items", "tag", "--cache", "a", "--ids", "4"], "nothing changes");
        on.refused(1, &["items", "tag", "--cache", "a", "--ids", "4,5", "--uri", "x"], "one item");
        on.refused(2, &["items", "tag", "--cache", "a", "--set", "a=b"], "--ids");
        on.refused(2, &["items", "--cache", "a"], "--ids");
        on.refused(
            2,
            &["delete", "--cache", "a", "--ids", "1", "--filter", "has tag.kind"],
            "cannot be used with",
        );

        // Names.
        assert_eq!(on.run(0, &["caches", "alias", "live", "a"]), "`live` stands for `a`\n");
        assert_eq!(
            on.run(0, &["caches", "alias", "live", "b"]),
            "`live` stands for `b`, and no longer for `a`\n"
        );
        on.run(0, &["caches", "alias", "live", "a"]);
        assert_eq!(on.run(0, &["items", "count", "--cache", "live"]), "6\n");
        assert_eq!(on.run(0, &["caches", "rename", "a", "z"]), "`a` is `z` now\n");
        let all = on.json(0, &["caches"]);
        assert_eq!(
            (&all[1]["name"], &all[1]["aliases"][0], &all[1]["items"]),
            (&"z".into(), &"live".into(), &6.into())
        );
        assert_eq!(all, on.json(0, &["caches", "list"]));
        assert!(
            on.run(0, &["caches"])
                .contains("z\t6 items of 8 components\tunknown\tno generation yet\talso live\n")
        );

        // Gone.
        assert_eq!(on.run(0, &["delete", "--cache", "live", "--filter", "tag.kind = cat"]), "3 deleted\n");
        assert_eq!(
            on.run(0, &["items", "delete", "--cache", "z", "--ids", "1,77"]),
            "1 deleted, 1 were not there\n"
        );
        assert_eq!(
            on.json(0, &["items", "delete", "--cache", "z", "--filter", "id in (2)"])[0]["deleted"],
            1
        );
        on.refused(1, &["caches", "delete", "z"], "has 1 items; say --yes");
        on.refused(1, &["caches", "delete", "z", "--yes"], "HAS_ALIASES");
        on.refused(1, &["caches", "delete", "live", "--yes"], "IS_ALIAS");
        assert_eq!(
            on.run(0, &["caches", "delete", "z", "--yes", "--force"]),
            "`z` is deleted, with 1 items\nso are its aliases: live\n"
        );
        on.refused(1, &["caches", "unalias", "live"], "ALIAS_NOT_FOUND");
        assert_eq!(on.json(0, &["caches"]).len(), 1);
        assert_eq!(on.run(0, &["caches", "delete", "b"]), "`b` is deleted, with 0 items\n");
    }
}

#[test]
fn a_reader_is_told_to_look_and_serves_an_alias_as_its_default() {
    let world = World::new();
    let store = world.store.to_str().unwrap();
    world.on_store(0, &["caches", "create", "new", "--dim", "4", "--json"]);
    let on = |words: &[&str]| {
        let output = world.run(&[words, &["--store", store]].concat());
        String::from_utf8(expect(0, words, output).stdout).unwrap()
    };
    on(&["caches", "alias", "live", ROWS]);
    // Named by an alias, the cache is served alone; requests may name either, or none.
    let reader = Served::start(&world, &["--cache", "live", "--default-cache", "live"]);
    let asked = |words: &[&str]| {
        let arguments = [words, &["--connect", &reader.address]].concat();
        String::from_utf8(expect(0, words, world.run(&arguments)).stdout).unwrap()
    };
    assert_eq!([asked(&["items", "count", "--cache", "live"]), asked(&["items", "count"])], ["200\n"; 2]);
    on(&["caches", "alias", "live", "new"]);
    assert_eq!(asked(&["items", "count"]), "200\n", "before it was told");
    let told = asked(&["reload", "--all"]);
    assert!(
        told.contains("`new` is served from now on\n")
            && told.contains(&format!("`{ROWS}` is served no more\n")),
        "{told}"
    );
    assert_eq!(asked(&["items", "count"]), "0\n");
}

/// A store of so many caches of 20 items each, of which every tenth is indexed.
fn many(path: &Path, count: usize) {
    let store = Arc::new(Store::open(path, Access::Write).unwrap());
    let compact = CompactOptions { automatic: false, threads: 1, ..CompactOptions::default() };
    for number in 0..count {
        let name = CacheName::new(format!("cache-{number:04}")).unwrap();
        let new = NewCache { dim: ROWS_DIM, rows: RowType::F32, origin: Origin::of("test"), model: None };
        new.make(&store, &name).unwrap();
        let cache = Arc::new(Cache::open(&store, &name, None, LoadOptions::default()).unwrap());
        let item = |(i, row): (usize, Vec<f32>)| NewItem {
            id: None,
            embedding: Embedding::new(row).unwrap(),
            record: ItemRecord {
                uri: format!("{number}/{i}"),
                modality: None,
                digest: Fingerprint::of(&[i as u8]),
                tags: [("number".to_owned(), number.to_string())].into(),
            },
        };
        let rows = store::random_rows(20, ROWS_DIM, number as u64);
        cache.upsert(rows.into_iter().enumerate().map(item).collect()).unwrap();
        if number % 10 == 0 {
            cache.compact(&compact).unwrap();
        }
    }
    store.flush().unwrap();
}

/// A number of /proc/PID/status.
#[cfg(target_os = "linux")]
fn status(server: &Served, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", server.child.id())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn a_thousand_small_caches_take_no_thread_and_little_memory_each() {
    let (few, all) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    many(few.path(), 1);
    many(all.path(), 1000);
    let serve = |folder: &TempDir, more: &[&str]| {
        let mut command = viscache(folder.path());
        command.args(["serve", "--store", "."]).args(more);
        Served::of(command)
    };
    for more in [&[][..], &["--writable"]] {
        let one = serve(&few, more);
        let (threads, memory) = (status(&one, "Threads"), status(&one, "VmHWM"));
        let begun = std::time::Instant::now();
        let thousand = serve(&all, more);
        println!("open after {:.2} s, {} kB", begun.elapsed().as_secs_f64(), status(&thousand, "VmHWM"));
        assert!(
            status(&thousand, "Threads") <= threads + 8,
            "threads: {} and {threads}",
            status(&thousand, "Threads")
        );
        let beyond = status(&thousand, "VmHWM").saturating_sub(memory);
        assert!(beyond < 300 << 10, "{beyond} kB more than one cache");
        let on = On { folder: all.path(), place: vec!["--connect".into(), thousand.address.clone()] };
        let caches = on.json(0, &["caches"]);
        assert_eq!(caches.len(), 1000);
        assert!(
            caches.iter().all(|cache| cache["served"] == true && cache["items"] == 20),
            "{:?}",
            caches[0]
        );
        for number in [0, 10, 511, 999] {
            let row = store::random_rows(20, ROWS_DIM, number).remove(7);
            std::fs::write(all.path().join("q.npy"), npy::write(&row, ROWS_DIM)).unwrap();
            let cache = format!("cache-{number:04}");
            let found = on.json(0, &["search", "--cache", &cache, "--vectors", "q.npy", "--top-k", "1"]);
            assert_eq!(found[0]["neighbors"][0]["id"], 7, "{cache}");
        }
        // What names no cache that there is, is told some of those there are.
        on.refused(1, &["items", "count", "--cache", "nowhere"], "and 980 more");
    }
}
