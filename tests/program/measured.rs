//! What the program measures.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use viscache::media::npy;
use viscache::store::Recalls;

use crate::store::{self, ROWS, ROWS_DIM, SCENES};
use crate::world::{Served, World, expect, lines, viscache, write_ids};

/// A page of an HTTP server, or nothing when it does not answer.
fn page(address: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

#[test]
fn the_search_is_measured() {
    let world = World::new();
    // A change, so that the truth is of items that the graph does not know.
    world.on_store(0, &["upsert", "--cache", ROWS, "--vectors", "q.npy", "--ids", "7,300,8"]);
    let bench = |code: i32, more: &[&str]| {
        let bench = ["bench", "search", "--json", "--cache", ROWS, "--vectors", "q.npy", "--seconds", "0.05"];
        let (store, arguments) = (world.store.to_str().unwrap(), [&bench, more].concat());
        expect(code, &arguments, world.run(&[&["--store", store], &arguments[..]].concat()))
    };
    let computed = bench(0, &["--top-k", "5", "--ef-search", "1,200", "--rescore", "200", "--threads", "2"]);
    let errors = String::from_utf8_lossy(&computed.stderr).into_owned();
    assert!(errors.contains("exactly") && errors.contains("that took"), "{errors}");
    let computed = lines(&computed);
    assert_eq!(computed.len(), 2, "a line for every width");
    for (line, ef_search) in computed.iter().zip([1, 200]) {
        assert_eq!((&line["cache"], &line["generation"]), (&ROWS.into(), &1.into()));
        assert_eq!((&line["ef_search"], &line["rescore"]), (&ef_search.into(), &200.into()));
        assert_eq!((&line["queries"], &line["threads"], &line["top_k"]), (&3.into(), &2.into(), &5.into()));
        assert_eq!(line["truth"], "exact");
        // The beam is raised to what is rescored, all of the cache, and that is scanned.
        assert_eq!(line["recall"], 1.0);
        let number = |name: &str| line[name].as_f64().unwrap_or_else(|| panic!("{name}: {line}"));
        assert!(number("visited_nodes") == 0.0 && number("scored_vectors") >= 200.0, "{line}");
        assert!(0.0 < number("p50_us") && number("p50_us") <= number("p99_us"), "{line}");
        assert!(number("seconds") >= 0.05 && number("searches") >= 3.0, "{line}");
        let rate = number("searches") / number("seconds");
        assert!((rate / number("queries_per_second") - 1.0).abs() < 1e-6, "{line}");
    }

    // Widths as calibrated for a recall: wider for more, and alone where none is named.
    let reached =
        lines(&bench(0, &["--target-recall", "0.5,0.99", "--query-kind", "image", "--ef-search", "40"]));
    assert_eq!(reached.len(), 3);
    assert!(reached[0]["target_recall"].is_null() && reached[0]["ef_search"] == 40, "{reached:?}");
    for (line, target) in reached[1..].iter().zip([0.5, 0.99]) {
        assert_eq!((&line["target_recall"], &line["query_kind"]), (&target.into(), &"image".into()));
        assert!(line["exact"] == true || line["recall"].as_f64() >= Some(target - 0.1), "{line}");
    }
    assert_eq!(lines(&bench(0, &["--target-recall", "0.9"])).len(), 1);

    // The same truth, told: as wide as wanted and wider.
    let found = world
        .on_store(0, &["search", "--json", "--exact", "--cache", ROWS, "--vectors", "q.npy", "--top-k", "9"]);
    let ids = |line: &Value| -> Vec<u64> {
        line["neighbors"].as_array().unwrap().iter().map(|n| n["id"].as_u64().unwrap()).collect()
    };
    let ids: Vec<u64> = found.iter().flat_map(ids).collect();
    assert!(ids.contains(&300), "the change is part of the truth: {ids:?}");
    let file = |name: &str| world.folder.path().join(name);
    write_ids(&file("t.npy"), &ids, 9);
    for top_k in [2, 9] {
        let narrow = ["--top-k", &top_k.to_string(), "--ef-search", "1,200"];
        let told = bench(0, &[&narrow[..], &["--truth", "t.npy"]].concat());
        assert_eq!(String::from_utf8_lossy(&told.stderr), "");
        let (told, computed) = (lines(&told), lines(&bench(0, &narrow)));
        for (told, computed) in told.iter().zip(&computed) {
            assert_eq!(told["truth"], "file");
            for name in ["recall", "visited_nodes", "scored_vectors", "rescored_vectors", "rescore"] {
                assert_eq!(told[name], computed[name], "{name}");
            }
        }
        assert_eq!(told[0]["rescore"], top_k);
        // Two are looked for along the graph, nine among all.
        let found = [("recall", 1.0), ("visited_nodes", 0.0)].map(|(name, number)| told[0][name] == number);
        assert_eq!(found, [top_k == 9; 2], "{told:?}");
    }
    // A truth that is another: the others' neighbours, and nobody's.
    let strangers: Vec<u64> = (0..27).map(|i| 5000 + i).collect();
    write_ids(&file("strangers.npy"), &strangers, 9);
    assert_eq!(lines(&bench(0, &["--truth", "strangers.npy", "--top-k", "9"]))[0]["recall"], 0.0);

    write_ids(&file("short.npy"), &ids[..18], 9);
    std::fs::write(file("wide.npy"), npy::write(&[1.0; 64], 64)).unwrap();
    let mut broken = store::random_rows(2, ROWS_DIM, 6).concat();
    broken[ROWS_DIM] = f32::NAN;
    std::fs::write(file("nan.npy"), npy::write(&broken, ROWS_DIM)).unwrap();
    let cases: &[(i32, &str, &[&str])] = &[
        (1, "--truth short.npy has 2 rows for the 3 queries", &["--truth", "short.npy"]),
        (1, "--truth t.npy has 9 ids a row", &["--truth", "t.npy"]),
        (1, "--truth q.npy: dtype", &["--truth", "q.npy"]),
        (1, "absent.npy", &["--truth", "absent.npy"]),
        (1, "--threads is 4", &["--threads", "4"]),
        (1, "--top-k is", &["--top-k", "1000000000"]),
        (2, "--threads", &["--threads", "0"]),
        (2, "--top-k", &["--top-k", "0"]),
        (2, "--rescore", &["--rescore", "0"]),
        (2, "--ef-search", &["--ef-search", "16,0"]),
        (2, "--ef-search", &["--ef-search", "16,,32"]),
        (2, "--ef-search", &["--ef-search", ""]),
        (2, "16384", &["--ef-search", "16385"]),
        (2, "for all of it, search exactly", &["--target-recall", "1.0"]),
        (2, "--target-recall", &["--target-recall", "most"]),
        (2, "--target-recall", &["--query-kind", "text"]),
        (2, "Text!", &["--target-recall", "0.9", "--query-kind", "Text!"]),
        (2, "--connect", &["--connect", "127.0.0.1:1"]),
    ];
    for (code, says, more) in cases {
        let errors = String::from_utf8(bench(*code, more).stderr).unwrap();
        assert!(errors.contains(says), "{more:?}: {errors}");
    }
    let store = world.store.to_str().unwrap();
    for (code, says, arguments) in [
        (2, "--seconds", &["bench", "search", "--vectors", "q.npy", "--seconds", "nan"][..]),
        (2, "--vectors", &["bench", "search"]),
        (1, "--threads is 0", &["--threads", "0", "bench", "search", "--vectors", "q.npy"]),
    ] {
        let errors = String::from_utf8(expect(code, arguments, world.run(arguments)).stderr).unwrap();
        assert!(errors.contains(says), "{arguments:?}: {errors}");
    }
    for (file, says) in [
        ("wide.npy", "--vectors wide.npy has rows of 64 components, cache `rows` has 32"),
        ("nan.npy", "--vectors nan.npy, row 1: component 0"),
        ("broken.png", "--vectors broken.png: it is not"),
    ] {
        let arguments = ["--store", store, "bench", "search", "--cache", ROWS, "--vectors", file];
        let output = expect(1, &arguments, world.run(&arguments));
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(errors.contains(says), "{file}: {errors}");
    }
    let arguments = ["--store", store, "bench", "search", "--cache", ROWS, "--vectors", "q.npy"];
    let output = expect(0, &arguments, world.run(&[&arguments[..], &["--seconds", "0.01"]].concat()));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 3 + 5, "two lines of what, the heads, the widths: {text}");
    assert!(text.contains("queries/s"), "{text}");
}

#[test]
fn a_server_is_measured_under_load() {
    let world = World::new();
    let server = Served::start(&world, &["--cache", ROWS]);
    let bench = ["bench", "enhance", "--json", "--connect", &server.address];
    let one = |code: i32, more: &[&str]| {
        let arguments = [&bench, more].concat();
        lines(&expect(code, &arguments, world.run(&arguments))).remove(0)
    };
    let load = ["--duration", "1", "--concurrency", "20", "--batch", "3", "--top-k", "4", "--weight", "0.3"];
    let line = one(0, &load);
    assert_eq!((&line["cache"], &line["batch"]), (&ROWS.into(), &3.into()));
    assert_eq!((&line["concurrency"], &line["connections"]), (&20.into(), &2.into()));
    assert_eq!((&line["failed_requests"], &line["errors"]), (&0.into(), &serde_json::json!({})));
    let number = |name: &str| line[name].as_f64().unwrap_or_else(|| panic!("{name}: {line}"));
    assert!(number("seconds") >= 1.0 && number("requests") >= 20.0, "{line}");
    assert!((number("queries_per_second") / number("requests_per_second") - 3.0).abs() < 1e-6, "{line}");
    let times = ["p50_ms", "p90_ms", "p99_ms", "max_ms"].map(number);
    assert!(times[0] > 0.0 && times.is_sorted(), "{line}");

    // A batch larger than the file goes round it.
    let short = ["--duration", "0.1", "--concurrency", "2"];
    let line = one(0, &[&short[..], &["--vectors", "q.npy", "--batch", "7"]].concat());
    assert_eq!(line["failed_requests"], 0);
    // What the server refuses is counted, and nothing was answered.
    let line = one(1, &[&short[..], &["--top-k", "100000"]].concat());
    assert_eq!(line["failed_requests"], line["requests"]);
    assert_eq!(line["errors"]["INVALID_ARGUMENT"], line["requests"]);
    assert_eq!((&line["p50_ms"], &line["queries_per_second"]), (&Value::Null, &0.0.into()));

    // More callers than places: some are refused, the others answered.
    let narrow = ["--store", world.store.to_str().unwrap(), "--config", "narrow.toml"];
    std::fs::write(world.folder.path().join("narrow.toml"), "[limits]\nmax_concurrent = 1\n").unwrap();
    let crowd = [
        "bench",
        "enhance",
        "--json",
        "--cache",
        ROWS,
        "--duration",
        "0.5",
        "--concurrency",
        "32",
        "--batch",
        "64",
    ];
    let arguments = [&narrow[..], &crowd].concat();
    let line = lines(&expect(3, &arguments, world.run(&arguments))).remove(0);
    assert!(line["errors"]["RESOURCE_EXHAUSTED"].as_u64() > Some(0), "{line}");
    assert!(line["queries_per_second"].as_f64() > Some(0.0), "{line}");
    assert_eq!(line["connections"], 1, "the service in this process has one");

    for (code, says, more) in [
        (2, "--concurrency", &["--concurrency", "0"][..]),
        (2, "--batch", &["--batch", "0"]),
        (2, "--duration", &["--duration", "0"]),
        (1, "--batch is 5000", &["--batch", "5000"]),
        (1, "absent.npy", &["--vectors", "absent.npy"]),
        (1, "CACHE_NOT_FOUND", &["--cache", SCENES]),
    ] {
        let arguments = [&bench, more].concat();
        let errors = String::from_utf8(expect(code, &arguments, world.run(&arguments)).stderr).unwrap();
        assert!(errors.contains(says), "{more:?}: {errors}");
    }
    // For people.
    let arguments = ["bench", "enhance", "--connect", &server.address, "--duration", "0.1"];
    let text = String::from_utf8(expect(0, &arguments, world.run(&arguments)).stdout).unwrap();
    assert!(text.contains("requests/s") && text.lines().count() == 4, "{text}");
    let arguments = ["bench", "enhance", "--connect", "127.0.0.1:1"];
    let output = expect(1, &arguments, world.run(&arguments));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no server answers"));
}

#[test]
fn a_server_that_goes_away_is_counted() {
    let world = World::new();
    let server = Served::start(&world, &["--cache", ROWS]);
    let mut command = viscache(world.folder.path());
    command.args(["bench", "enhance", "--json", "--duration", "2", "--connect", &server.address]);
    let running = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_secs(1));
    drop(server);
    let output = expect(3, &["bench", "enhance"], running.wait_with_output().unwrap());
    let line = lines(&output).remove(0);
    assert!(
        line["failed_requests"].as_u64() > Some(0) && line["requests_per_second"].as_f64() > Some(0.0),
        "{line}"
    );
}

#[test]
fn a_target_is_asked_for_and_what_was_found_is_counted() {
    let world = World::new();
    let kinds = [("text".to_owned(), vec![(16, 0.8), (64, 0.95)])].into();
    let rows = vec![(16, 0.9), (64, 0.99)];
    store::publish(&world.store, ROWS, Recalls { rows, by_kind: kinds, ..Recalls::default() });
    // A port that was free a moment ago.
    let metrics = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let settings = [
        ("VISCACHE_METRICS__LISTEN", metrics.as_str()),
        ("VISCACHE_RECALL_SAMPLING__RATE", "1"),
        ("VISCACHE_RECALL_SAMPLING__MAX_PER_SECOND", "1000000"),
    ];
    let server = Served::with(&world, &[], &settings);
    let ask = ["search", "--connect", &server.address, "--json", "--cache", ROWS, "--vectors", "q.npy"];
    let search = |code: i32, more: &[&str]| {
        let arguments = [&ask, more].concat();
        expect(code, &arguments, world.run(&arguments))
    };
    let used = |more: &[&str]| {
        let line = lines(&search(0, more)).remove(0);
        (line["cost"]["ef_search"].as_u64().unwrap(), line["cost"]["plan"] == "exact")
    };
    assert_eq!(used(&["--target-recall", "0.99", "--query-kind", "image"]), (64, false));
    assert_eq!(used(&["--target-recall", "0.9", "--query-kind", "text"]), (32, false));
    assert_eq!(used(&["--target-recall", "0.99", "--query-kind", "text"]), (0, true));
    assert_eq!(used(&[]), (96, false));
    search(2, &["--target-recall", "0.9", "--ef-search", "10"]);
    search(2, &["--query-kind", "No Kind"]);
    let refused = search(1, &["--target-recall", "1"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("target_recall"));

    let describe = ["describe", "--json", "--cache", ROWS, "--connect", &server.address];
    let described = || lines(&expect(0, &describe, world.run(&describe))).remove(0);
    let sampled = |described: &Value| {
        let live = described["live_recall"].as_array().unwrap().clone();
        live.into_iter().find(|l| l["kind"] == "audio")
    };
    // By the clock and not by a number of tries: the thread that measures has the lowest priority on a machine that is busy,
    // and must be left a moment.
    let until = Instant::now() + Duration::from_secs(180);
    let live = loop {
        search(0, &["--query-kind", "audio"]);
        if let Some(live) = sampled(&described()) {
            break live;
        }
        assert!(Instant::now() < until, "a search is sampled: {}", described());
        std::thread::sleep(Duration::from_millis(100));
    };
    let recall = live["recall_at_10"].as_f64().unwrap();
    assert!((0.5..=1.0).contains(&recall) && live["samples"].as_u64() > Some(0), "{live}");
    let told = described();
    assert_eq!(told["recall_sampling_rate"], 1.0);
    let curves = told["recall_curves"].as_array().unwrap();
    assert_eq!(curves.iter().map(|c| c["kind"].as_str().unwrap()).collect::<Vec<_>>(), ["image", "text"]);
    assert_eq!(curves[1]["points"][1]["ef_search"], 64);
    let words = ["describe", "--cache", ROWS, "--connect", &server.address];
    let text = String::from_utf8(expect(0, &words, world.run(&words)).stdout).unwrap();
    assert!(text.contains("for audio queries") && text.contains("0.9500 at ef_search 64 for text"), "{text}");

    let numbers = page(&metrics, "/metrics").unwrap();
    let number = |name: &str| -> f64 {
        let line = numbers.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
            .unwrap_or_else(|| panic!("{name}: {numbers}"))
    };
    assert!((number("viscache_recall_at_10{cache=\"rows\",kind=\"audio\"}") - recall).abs() <= 0.5);
    assert!(number("viscache_recall_samples_total{cache=\"rows\",kind=\"audio\"}") >= 1.0);
    assert_eq!(number("viscache_items{cache=\"rows\"}"), 200.0);
    assert_eq!(number("viscache_generation{cache=\"rows\"}"), 2.0);
    assert_eq!(number("viscache_tombstones{cache=\"rows\"}"), 0.0);
    assert_eq!(number("viscache_delta_items{cache=\"rows\"}"), 0.0);
    assert!(number("viscache_search_seconds_count{cache=\"rows\"}") >= 12.0);
    let requests = "viscache_requests_total{rpc=\"viscache.v1.CacheService/Search\",code=";
    assert!(number(&format!("{requests}\"OK\"}}")) >= 5.0);
    assert_eq!(number(&format!("{requests}\"INVALID_ARGUMENT\"}}")), 1.0);
    assert_eq!(server.end("TERM"), Some(0), "it ends while it samples");
    assert!(page(&metrics, "/metrics").is_none());
}
