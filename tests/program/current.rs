//! The current goes while a server takes changes: what it acknowledged is on disk.
//!
//! ```text
//! serve --writable, watched ◄── three clients that change, one that compacts and publishes; each notes what it asks and what
//!       │                       is answered
//!    SIGKILL at any moment ─► power cut ─► every acknowledged change is there, and of the last one that each client asked
//!                                          either all or nothing; `verify` finds nothing; a server answers
//! ```
//! The crash suites (`tests/crash_living.rs`) end a process at every step; only here an fsync that is missing is missed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use tempfile::TempDir;
use tokio::sync::Barrier;
use tonic::Code;
use tonic::transport::Channel;
use viscache::cache::{Cache, LoadOptions, RowsMode, decode_row, encode_row};
use viscache::index::{SearchParams, Searcher};
use viscache::serve::encode_tensor;
use viscache::serve::proto::admin_service_client::AdminServiceClient;
use viscache::serve::proto::cache_service_client::CacheServiceClient;
use viscache::serve::proto::{
    CompactRequest, DeleteRequest, DescribeRequest, Dtype, PublishRequest, UpsertItem, UpsertRequest,
};
use viscache::store::{Access, LedgerRecord, Outcome, RowType, Stamp, Store};
use viscache::types::{CacheName, Embedding, ItemId};

use crate::common::{say, seed};
use crate::power::{Cut, Power};
use crate::programs::programs;
use crate::store::{self, ROWS, ROWS_DIM};
use crate::world::{Served, viscache};

/// Clients that change items, each some of its own.
const CLIENTS: u64 = 3;
/// Ids that each of them changes.
const IDS: u64 = 60;
/// Items there are before.
const FIRST: usize = 100;

type Admin = AdminServiceClient<Channel>;

/// Items by id: the version, none where it is deleted.
type Versions = BTreeMap<u64, Option<u64>>;

/// What one client knows.
#[derive(Debug, Default)]
struct Known {
    /// As acknowledged.
    settled: Versions,
    /// What it has asked and was not answered.
    asked: Versions,
    /// Changes that were acknowledged.
    changes: usize,
}

/// Which generation is current: as acknowledged, and what an answer that is missing would have made of it.
#[derive(Debug, Clone, Copy)]
struct Current {
    settled: u64,
    asked: u64,
}

/// What a version of an item says, unit.
fn row(id: u64, version: u64) -> Vec<f32> {
    store::random_rows(1, ROWS_DIM, id << 32 | version).remove(0)
}

/// The same as it is stored and read back.
fn stored(id: u64, version: u64) -> Vec<f32> {
    let unit = Embedding::new(row(id, version)).unwrap().unit().unwrap();
    decode_row(&encode_row(unit.as_slice(), RowType::F16), RowType::F16)
}

fn uri(id: u64, version: u64) -> String {
    format!("{id}/{version}")
}

async fn admin(address: &str) -> Admin {
    AdminServiceClient::connect(format!("http://{address}")).await.unwrap()
}

/// Asks for one change after another until nobody answers.
async fn change(mut admin: Admin, client: u64, round: u64, mut random: Pcg64, mut known: Known) -> Known {
    let first = 1000 * (client + 1);
    for call in 0.. {
        let version = round << 16 | call;
        let mut ids: Vec<u64> =
            (0..random.random_range(1..5)).map(|_| first + random.random_range(0..IDS)).collect();
        ids.sort_unstable();
        ids.dedup();
        let upsert = random.random_range(0..3) > 0;
        known.asked = ids.iter().map(|&id| (id, upsert.then_some(version))).collect();
        let answered = match upsert {
            true => {
                let rows: Vec<f32> = ids.iter().flat_map(|&id| row(id, version)).collect();
                let vectors = Some(encode_tensor(&rows, ROWS_DIM, Dtype::F32));
                let item =
                    |&id: &u64| UpsertItem { id: Some(id), uri: uri(id, version), ..UpsertItem::default() };
                let items = ids.iter().map(item).collect();
                admin
                    .upsert(UpsertRequest { cache: ROWS.into(), vectors, items, ..Default::default() })
                    .await
                    .map(drop)
            }
            false => {
                admin.delete(DeleteRequest { cache: ROWS.into(), ids, ..Default::default() }).await.map(drop)
            }
        };
        if answered.is_err() {
            return known;
        }
        known.changes += known.asked.len();
        known.settled.append(&mut known.asked);
    }
    known
}

/// Asks for new generations, and for the one before, until nobody answers or so often.
///
/// * `other`: the generation that is kept beside the current one, if there is one.
async fn generations(mut admin: Admin, times: usize, current: u64, mut other: Option<u64>) -> Current {
    let mut now = Current { settled: current, asked: current };
    for time in 0..times {
        let cache = ROWS.to_owned();
        let answered = match other.filter(|_| time % 2 == 1) {
            Some(generation) => {
                now.asked = generation;
                admin.publish(PublishRequest { cache, generation }).await.map(|r| r.into_inner().generation)
            }
            None => {
                now.asked = 1 + now.settled.max(other.unwrap_or_default());
                admin.compact(CompactRequest { cache }).await.map(|r| r.into_inner().generation)
            }
        };
        match answered {
            Ok(generation) => assert_eq!(generation, now.asked),
            Err(status) => {
                let gone = [Code::Unavailable, Code::Unknown, Code::Internal, Code::Cancelled];
                assert!(gone.contains(&status.code()), "{status:?}");
                return now;
            }
        }
        other = Some(now.settled);
        now.settled = now.asked;
    }
    now
}

/// A store as a builder leaves it: it knows where an item is from.
fn make(path: &Path) {
    let items = store::make_rows(path, FIRST);
    let store = Store::open(path, Access::Write).unwrap();
    let cache = store.cache(&CacheName::new(ROWS).unwrap()).unwrap().id;
    let mut batch = store.batch();
    let (uri, id) = (items[0].uri.clone(), ItemId(items[0].id));
    let (stamp, outcome) = (Stamp::default(), Outcome::Stored(id));
    batch.put_ledger(
        cache,
        &LedgerRecord { uri, stamp, outcome, item: Some(id), content: None, digest: None },
    );
    store.commit(batch).unwrap();
}

/// A program that serves a store.
fn serving(folder: &Path, store: &Path, arguments: &[&str]) -> Command {
    let mut command = viscache(folder);
    command.env("VISCACHE_RECALL_SAMPLING__RATE", "0").env("VISCACHE_COMPACT__AUTOMATIC", "false");
    command.arg("--store").arg(store).args(["--model", "none", "serve"]).args(arguments);
    command
}

/// What the store holds must be what was acknowledged; of what was asked and not answered all or nothing, for each client.
/// Returns the versions there are, the current generation, and the one that is kept beside it.
fn check(path: &Path, known: &[Known], current: Current) -> (Vec<Versions>, u64, Option<u64>) {
    let store = Arc::new(Store::open(path, Access::Write).unwrap());
    let name = CacheName::new(ROWS).unwrap();
    let record = store.cache(&name).unwrap();
    let (mut items, mut rows) = (BTreeMap::new(), BTreeMap::new());
    store
        .scan_items(record.id, ItemId(0), |id, item| {
            items.insert(id.0, item.uri);
            Ok::<bool, viscache::store::Error>(true)
        })
        .unwrap();
    store
        .scan_rows(record.id, ItemId(0), |id, row| {
            rows.insert(id.0, decode_row(row, record.rows));
            Ok::<bool, viscache::store::Error>(true)
        })
        .unwrap();
    assert!(items.keys().eq(rows.keys()) && items.len() as u64 == record.items);
    assert_eq!(items.keys().filter(|id| **id < 1000).count(), FIRST);

    let mut versions = Vec::new();
    for known in known {
        let there = |(&id, &version): (&u64, &Option<u64>)| match version {
            None => !items.contains_key(&id),
            Some(version) => items.get(&id) == Some(&uri(id, version)) && rows[&id] == stored(id, version),
        };
        let mut after = known.settled.clone();
        after.append(&mut known.asked.clone());
        let states = [after, known.settled.clone()];
        let state = states.into_iter().find(|state| state.iter().all(there));
        let lost: Vec<_> = known.settled.iter().filter(|&change| !there(change)).collect();
        versions.push(
            state.unwrap_or_else(|| {
                panic!("of what was acknowledged {lost:?} is not there; {:?}", known.asked)
            }),
        );
    }
    let expected: usize = versions.iter().map(|state| state.values().flatten().count()).sum();
    assert_eq!(items.len(), FIRST + expected, "nothing else is there");

    let options = LoadOptions { rows: RowsMode::Ram, memory_budget: 1 << 28 };
    let cache = Cache::open(&store, &name, None, options).unwrap();
    let now = cache.snapshot();
    let generation = now.generation().0;
    assert!([current.settled, current.asked].contains(&generation), "{current:?}, not {generation}");
    let query = Embedding::new(row(7, 7)).unwrap();
    let exact = SearchParams { exact: true, ..SearchParams::default() };
    let hits = now.search(&mut Searcher::default(), &query, items.len() + 1, &exact).unwrap().hits;
    let found: BTreeMap<u64, Vec<f32>> =
        hits.into_iter().map(|hit| (hit.id.0, hit.embedding.into_vec())).collect();
    assert_eq!(found, rows, "a search finds what is stored");
    let mut kept = store.generations(record.id).unwrap().into_iter().map(|g| g.generation.0);
    (versions, generation, kept.find(|kept| *kept != generation))
}

/// `verify` finds nothing wrong, and a server answers.
async fn serves(folder: &Path, store: &Path, items: usize) {
    let verified =
        Command::new(programs().join("index-builder")).args(["verify", "--store"]).arg(store).output();
    let verified = verified.unwrap();
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
    let served = Served::of(serving(folder, store, &[]));
    let mut client = CacheServiceClient::connect(format!("http://{}", served.address)).await.unwrap();
    let described = client.describe(DescribeRequest { cache: ROWS.into() }).await.unwrap().into_inner();
    assert_eq!(described.live_items, items as u64);
}

/// One life of a server: what is asked of it before the current goes.
#[derive(Debug, Clone, Copy)]
enum Life {
    /// Changes, for a while.
    Changes,
    /// Changes for a while, and new generations.
    Both,
    /// A few changes, then so many compactions and publications, and nothing after the last answer.
    Generations(usize),
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_acknowledged_outlives_a_power_cut() {
    let mut random = Pcg64::seed_from_u64(seed());
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("store");
    make(&path);
    let Some(mut power) = Power::over(&path, say) else { return };
    let mut versions = vec![Versions::new(); CLIENTS as usize];
    let (mut current, mut other) = (1, None);
    let (mut lost, mut acknowledged) = (0, 0);
    let start = Instant::now();
    let lives = [
        (Life::Changes, Cut::Everything),
        (Life::Generations(1), Cut::Everything),
        (Life::Generations(2), Cut::Everything),
        (Life::Both, Cut::Everything),
        (Life::Changes, Cut::AsItComes),
        (Life::Both, Cut::AsItComes),
        (Life::Generations(3), Cut::AsItComes),
        (Life::Changes, Cut::AsItComes),
        (Life::Both, Cut::AsItComes),
    ];
    for (round, (life, how)) in (0..).zip(lives) {
        let mut command = serving(folder.path(), &path, &["--writable"]);
        power.watch(&mut command);
        let mut served = Served::of(command);
        let clients: u64 = match life {
            Life::Generations(_) => 0,
            Life::Changes | Life::Both => CLIENTS,
        };
        let begun = Arc::new(Barrier::new(clients as usize + 1));
        let mut changing = Vec::new();
        for client in 0..clients {
            let (admin, random) = (admin(&served.address).await, Pcg64::seed_from_u64(random.random()));
            let known = Known { settled: versions[client as usize].clone(), ..Known::default() };
            let begun = begun.clone();
            changing.push(tokio::spawn(async move {
                begun.wait().await;
                change(admin, client, round, random, known).await
            }));
        }
        begun.wait().await;
        let admin = admin(&served.address).await;
        let mut known: Vec<Known> = Vec::new();
        let now = match life {
            Life::Generations(times) => generations(admin, times, current, other).await,
            Life::Changes => {
                tokio::time::sleep(Duration::from_millis(random.random_range(30..400))).await;
                Current { settled: current, asked: current }
            }
            Life::Both => {
                let patience = Duration::from_millis(random.random_range(100..900));
                let publishing = tokio::spawn(generations(admin, usize::MAX, current, other));
                tokio::time::sleep(patience).await;
                served.child.kill().unwrap();
                publishing.await.unwrap()
            }
        };
        served.child.kill().unwrap();
        served.child.wait().unwrap();
        for client in changing {
            known.push(client.await.unwrap());
        }
        for settled in &versions[known.len()..] {
            known.push(Known { settled: settled.clone(), ..Known::default() });
        }
        let cut = power.cut(how, &mut random);
        lost += cut.bytes;
        acknowledged += known.iter().map(|known| known.changes).sum::<usize>();
        say(&format!("{life:?}, {how:?}: {cut:?}, {now:?}"));
        (versions, current, other) = check(&path, &known, now);
        let items = FIRST + versions.iter().map(|state| state.values().flatten().count()).sum::<usize>();
        serves(folder.path(), &path, items).await;
    }
    say(&format!(
        "{acknowledged} acknowledged changes outlived {} power cuts, which took {lost} bytes, in {:.1} s",
        lives.len(),
        start.elapsed().as_secs_f64()
    ));
    assert!(
        lost > 0 && acknowledged > 100,
        "something was there to be lost: {lost} bytes, {acknowledged} changes"
    );
}

/// What the program of the next test does, in order; not a test of its own.
#[test]
#[ignore = "started by the other test, in a folder"]
fn child() {
    let folder = std::env::var("CURRENT_TEST_FOLDER").unwrap();
    let path = |name: &str| Path::new(&folder).join(name);
    let sync_names = || File::open(&folder).unwrap().sync_all().unwrap();
    let write = |name: &str, text: &str| {
        let mut file = File::options().append(true).create(true).open(path(name)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    };
    write("grown", " more");
    write("synced", "synced").sync_all().unwrap();
    let mut tail = write("tail", "synced");
    fs::rename(path("over"), path("aim")).unwrap();
    fs::remove_file(path("gone")).unwrap();
    sync_names();
    tail.sync_data().unwrap();
    tail.write_all(b" and not").unwrap();
    write("nameless", "x").sync_all().unwrap();
    write("nothing", "x");
    fs::rename(path("new"), path("target")).unwrap();
    fs::remove_file(path("back")).unwrap();
    assert!(fs::remove_file(path("absent")).is_err() && File::open(path("absent")).is_err());
    std::process::abort();
}

#[test]
fn a_power_cut_takes_what_was_not_synced_and_nothing_else() {
    let folder = TempDir::new().unwrap();
    let root = folder.path().join("root");
    fs::create_dir(&root).unwrap();
    let Some(mut power) = Power::over(&root, say) else { return };
    for name in ["grown", "over", "aim", "gone", "new", "target", "back"] {
        fs::write(root.join(name), name).unwrap();
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "current::child", "--ignored", "--test-threads=1"]);
    child.env("CURRENT_TEST_FOLDER", &root);
    power.watch(&mut child);
    let output = child.output().unwrap();
    assert!(output.status.code().is_none(), "{}", String::from_utf8_lossy(&output.stdout));
    let lost = power.cut(Cut::Everything, &mut Pcg64::seed_from_u64(0));
    let left: BTreeMap<String, String> = fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().into(), fs::read_to_string(path).unwrap()))
        .collect();
    let expected = [
        ("aim", "over"),
        ("back", "back"),
        ("grown", "grown"),
        ("new", "new"),
        ("synced", "synced"),
        ("tail", "synced"),
        ("target", "target"),
    ];
    assert_eq!(left, expected.map(|(name, text)| (name.to_owned(), text.to_owned())).into());
    // Two files that were made, one renamed, one deleted; what was written behind synced bytes, twice.
    assert_eq!((lost.names, lost.bytes), (4, 5 + 8));
}
