//! What an index finds while its rows come and go.

use std::ops::Range;

use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64;
use roaring::RoaringBitmap;

use super::super::{BuildParams, CodeKind, Codec, Error, Index, Parts, SearchParams, Searcher, build, exact};
use super::{Editor, Places, upper_graph};
use crate::types::{ItemId, Slot};

const DIM: usize = 32;

/// Rows around a few centres.
fn cloud(seed: u64, n: usize) -> Vec<f32> {
    let (mut random, mut centres) = (Pcg64::seed_from_u64(seed), Pcg64::seed_from_u64(1));
    let centres: Vec<f32> = (0..20 * DIM).map(|_| centres.random_range(-1.0f32..1.0)).collect();
    let mut rows = Vec::with_capacity(n * DIM);
    for _ in 0..n {
        let centre = random.random_range(0..20) * DIM;
        let row = centres[centre..][..DIM].iter().map(|c| c + random.random_range(-0.8f32..0.8));
        let row: Vec<f32> = row.collect();
        let norm = crate::types::norm(&row) as f32;
        rows.extend(row.iter().map(|v| v / norm));
    }
    rows
}

fn params() -> BuildParams {
    BuildParams { m: 8, ef_construction: 60, threads: 2, ..BuildParams::default() }
}

fn index(kind: CodeKind, rows: &[f32]) -> Index {
    let codec = Codec::train(kind, rows, DIM);
    let graph = build(&params(), &codec, rows, &[], |_, _| ()).unwrap();
    let ids: Vec<ItemId> = (0..(rows.len() / DIM) as u64).map(ItemId).collect();
    let mut bytes = Vec::new();
    Parts { graph: &graph, codec: &codec, ids: &ids, codes: &codec.encode(rows) }.write(&mut bytes).unwrap();
    Index::open(&bytes).unwrap()
}

/// Recall@10 of queries among the live rows, which are found by their ids.
fn recall(index: &Index, dead: &RoaringBitmap, rows: &[f32], alive: std::ops::Range<usize>) -> f64 {
    let (mut searcher, queries) = (Searcher::default(), cloud(99, 100));
    let params = SearchParams { ef_search: 100, ..Default::default() };
    let mut sum = 0.0;
    for query in queries.chunks_exact(DIM) {
        let truth = exact::search(&rows[alive.start * DIM..alive.end * DIM], query, 10);
        let truth: Vec<u64> = truth.iter().map(|s| (s.slot.index() + alive.start) as u64).collect();
        let (found, _) = searcher.search(index, query, 100, &params).unwrap();
        let live = found.iter().filter(|c| !dead.contains(c.slot.0)).map(|c| c.slot);
        let found: Vec<u64> = live.map(|slot| index.id(slot).0).take(40).collect();
        assert!(found.iter().all(|&id| alive.contains(&(id as usize))), "a row that went is not found");
        sum += exact::recall(&truth, &found) / 100.0;
    }
    sum
}

const ALL: Places = Places { chunks: usize::MAX, new: usize::MAX };

/// All rows are replaced, half as many again and again, and nothing is lost of what stays.
#[test]
fn an_index_outlives_all_of_its_rows() {
    const ROWS: usize = 5000;
    for kind in CodeKind::ALL {
        let rows = cloud(2, 3 * ROWS);
        let first = index(kind, &rows[..ROWS * DIM]);
        let before = recall(&first, &RoaringBitmap::new(), &rows, 0..ROWS);
        let (mut editor, mut dead) = (Editor::new(&first, &params()), RoaringBitmap::new());
        let held = editor.index();
        for start in (0..2 * ROWS).step_by(500) {
            // The oldest go, and as many come.
            for id in start..start + 500 {
                let slot = editor.index.slot(ItemId(id as u64)).unwrap();
                assert!(dead.insert(slot.0));
            }
            let new = start + ROWS..start + ROWS + 500;
            let items: Vec<(ItemId, &[f32])> =
                new.map(|id| (ItemId(id as u64), &rows[id * DIM..][..DIM])).collect();
            let slots = editor.insert(&items, &dead, ALL).unwrap();
            assert_eq!(slots.len(), 500);
            for ((id, _), slot) in items.iter().zip(&slots) {
                dead.remove(slot.0);
                assert_eq!((editor.index.slot(*id), editor.index.id(*slot)), (Some(*slot), *id));
            }
            let mut pass = editor.begin(&dead);
            while !editor.consolidate(&mut pass, 1700, &dead) {}
            assert_eq!(editor.free(), dead.len());
            editor.release();
            let lost: Vec<Slot> =
                editor.index().unreachable().into_iter().filter(|s| !dead.contains(s.0)).collect();
            assert_eq!(lost, [], "{kind:?}");
            let climbers = editor.climbers(&dead);
            let of = |(id, _): &(ItemId, Slot)| rows[id.0 as usize * DIM..][..DIM].to_vec();
            let some = |range: Range<usize>| Ok::<_, Error>(climbers[range].iter().flat_map(of).collect());
            let graph = upper_graph(&params(), DIM, climbers.len(), &[], some).unwrap();
            // One of them goes meanwhile.
            dead.insert(climbers[0].1.0);
            editor.set_upper(&graph, &climbers, &dead);
            assert_eq!(editor.climbers(&dead)[..], climbers[1..]);
            dead.remove(climbers[0].1.0);
        }
        let last = editor.index();
        assert!(last.len() <= ROWS + 1500, "{kind:?}: {} slots", last.len());
        let after = recall(&last, &dead, &rows, 2 * ROWS..3 * ROWS);
        assert!(after > before - 0.02 && after > 0.95, "{kind:?}: {before} → {after}");
        // Whoever held the first version finds what it has.
        assert_eq!((held.len(), held.ids()), (ROWS, (0..ROWS as u64).collect()));
        let again = recall(&held, &RoaringBitmap::new(), &rows, 0..ROWS);
        assert!(kind == CodeKind::U4 || again > 0.0);

        // What is stored of it has the live rows, by their ids, and is as good.
        let live: Vec<(ItemId, Slot)> =
            last.items_from(ItemId(0)).filter(|(_, slot)| !dead.contains(slot.0)).collect();
        assert!(live.iter().map(|(id, _)| id.0).eq(2 * ROWS as u64..3 * ROWS as u64));
        let mut bytes = Vec::new();
        assert_eq!(last.write_some(live, &mut bytes).unwrap(), bytes.len() as u64);
        let stored = Index::open(&bytes).unwrap();
        assert_eq!((stored.len(), stored.unreachable()), (ROWS, Vec::new()));
        let stored = recall(&stored, &RoaringBitmap::new(), &rows, 2 * ROWS..3 * ROWS);
        assert!(stored > after - 0.01, "{kind:?}: {after} → {stored}");
    }
}

/// Links are shared by all versions: what an editor linked that was dropped stays linked.
#[test]
fn links_of_an_editor_that_gave_up_do_no_harm() {
    let rows = cloud(2, 6000);
    let first = index(CodeKind::U4, &rows[..5000 * DIM]);
    let items =
        |ids: Range<u64>| ids.map(|id| (ItemId(id), &rows[id as usize * DIM..][..DIM])).collect::<Vec<_>>();
    let none = RoaringBitmap::new();
    let mut gave_up = Editor::new(&first, &params());
    gave_up.insert(&items(5000..6000), &none, ALL).unwrap();
    drop(gave_up);
    let (mut editor, mut dead) = (Editor::new(&first, &params()), (0..300).collect::<RoaringBitmap>());
    let mut pass = editor.begin(&dead);
    assert!(editor.consolidate(&mut pass, u32::MAX, &dead));
    editor.release();
    for slot in editor.insert(&items(5000..5200), &dead, ALL).unwrap() {
        dead.remove(slot.0);
    }
    editor.fix(&cloud(5, 50), &dead).unwrap();
    let last = editor.index();
    let live: Vec<(ItemId, Slot)> =
        last.items_from(ItemId(0)).filter(|(_, slot)| !dead.contains(slot.0)).collect();
    let mut bytes = Vec::new();
    last.write_some(live, &mut bytes).unwrap();
    let stored = Index::open(&bytes).unwrap();
    assert_eq!((stored.len(), stored.unreachable()), (4900, Vec::new()));
    let of_live = |index: &Index| recall(index, &RoaringBitmap::new(), &rows, 300..5200);
    assert!(of_live(&stored) > 0.95, "{}", of_live(&stored));
}

#[test]
fn without_places_fewer_rows_come() {
    let rows = cloud(2, 6000);
    let first = index(CodeKind::U8, &rows[..5000 * DIM]);
    let mut editor = Editor::new(&first, &params());
    let items =
        |ids: Range<u64>| ids.map(|id| (ItemId(id), &rows[id as usize * DIM..][..DIM])).collect::<Vec<_>>();
    let none = RoaringBitmap::new();
    let places = Places { chunks: usize::MAX, new: 7 };
    assert_eq!(editor.insert(&items(5000..5020), &none, places).unwrap().len(), 7);
    let dead: RoaringBitmap = (100..110).chain(4500..4800).collect();
    let mut pass = editor.begin(&dead);
    assert!(editor.consolidate(&mut pass, u32::MAX, &dead));
    editor.release();
    let places = Places { chunks: usize::MAX, new: 0 };
    let slots = editor.insert(&items(5020..5330), &dead, places).unwrap();
    // Those of the chunk that has most come first.
    assert!(slots[..300].iter().all(|slot| slot.0 >= 4500) && slots.len() == 310);
    assert_eq!(editor.insert(&items(5330..5340), &dead, places).unwrap(), []);
    let places = Places { chunks: 0, new: 3 };
    assert_eq!(editor.insert(&items(5330..5340), &dead, places).unwrap(), [5007, 5008, 5009].map(Slot));
}

#[test]
fn an_index_may_lose_all_of_its_rows_and_get_others() {
    let rows = cloud(2, 2000);
    let first = index(CodeKind::U8, &rows[..1000 * DIM]);
    let mut editor = Editor::new(&first, &params());
    let mut dead: RoaringBitmap = (0..1000).collect();
    let mut pass = editor.begin(&dead);
    assert!(editor.consolidate(&mut pass, u32::MAX, &dead));
    editor.release();
    let items: Vec<_> = (1000..2000).map(|id| (ItemId(id as u64), &rows[id * DIM..][..DIM])).collect();
    for items in items.chunks(100) {
        for slot in editor.insert(items, &dead, ALL).unwrap() {
            dead.remove(slot.0);
        }
    }
    assert!(dead.is_empty());
    let found = recall(&editor.index(), &dead, &rows, 1000..2000);
    assert!(found > 0.95, "{found}");
}
