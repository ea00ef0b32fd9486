//! The program as a person or a script meets it: arguments in, lines and exit codes out.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use viscache::media::npy;
use viscache::store::Recalls;

use crate::store::{self, ROWS, ROWS_DIM, SCENE_COUNT, SCENES};

/// The program in an empty folder, without settings from outside.
fn viscache(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_viscache"));
    command.current_dir(folder);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("VISCACHE_")) {
        command.env_remove(name);
    }
    command
}

struct World {
    folder: TempDir,
    store: PathBuf,
}

impl World {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let store = folder.path().join("store");
        store::make_scenes(&store);
        store::make_rows(&store, 200);
        for i in 0..2 {
            std::fs::write(folder.path().join(format!("{i}.png")), store::scene(i)).unwrap();
        }
        std::fs::write(folder.path().join("broken.png"), b"no picture").unwrap();
        let queries = store::random_rows(3, ROWS_DIM, 5);
        std::fs::write(folder.path().join("q.npy"), npy::write(&queries.concat(), ROWS_DIM)).unwrap();
        World { folder, store }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        viscache(self.folder.path()).args(arguments).output().unwrap()
    }

    /// Runs it on the store, expecting an exit code.
    fn on_store(&self, code: i32, arguments: &[&str]) -> Vec<Value> {
        let store = ["--store", self.store.to_str().unwrap()];
        lines(&expect(code, arguments, self.run(&[&store, arguments].concat())))
    }

    fn read(&self, file: &str) -> npy::Matrix {
        npy::read(&std::fs::read(self.folder.path().join(file)).unwrap()).unwrap()
    }
}

fn expect(code: i32, arguments: &[&str], output: Output) -> Output {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
    output
}

/// Standard output as JSON lines, without what differs from run to run.
fn lines(output: &Output) -> Vec<Value> {
    let text = std::str::from_utf8(&output.stdout).unwrap();
    let line = |line: &str| {
        let mut value: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        if let Some(object) = value.as_object_mut() {
            object.remove("timings_us");
        }
        value
    };
    text.lines().map(line).collect()
}

/// A running server; ended when dropped.
struct Served {
    child: Child,
    address: String,
}

impl Served {
    /// One that samples no recall: what it describes is what the store says.
    fn start(world: &World, arguments: &[&str]) -> Self {
        Served::with(world, arguments, &[("VISCACHE_RECALL_SAMPLING__RATE", "0")])
    }

    fn with(world: &World, arguments: &[&str], settings: &[(&str, &str)]) -> Self {
        let mut command = viscache(world.folder.path());
        command.envs(settings.iter().copied());
        command.arg("--store").arg(&world.store).arg("serve").args(arguments);
        Served::of(command)
    }

    fn of(mut command: Command) -> Self {
        command.args(["--listen", "127.0.0.1:0"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address =
            line.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("`{line}`")).to_owned();
        Served { child, address }
    }

    /// Asks it to end and waits.
    fn end(mut self, signal: &str) -> Option<i32> {
        let id = self.child.id().to_string();
        // The shell's own `kill`: a bare machine has no other.
        let kill = format!("kill -s {signal} {id}");
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_store_and_a_server_over_it_give_equal_answers() {
    let world = World::new();
    let server = Served::start(&world, &[]);
    let questions: &[(i32, usize, &[&str])] = &[
        (
            0,
            1,
            &[
                "enhance",
                "--json",
                "--cache",
                SCENES,
                "--image",
                "0.png",
                "--text",
                "a red circle",
                "--mix",
                "2,1",
            ],
        ),
        (
            0,
            3,
            &["enhance", "--json", "--cache", ROWS, "--vectors", "q.npy", "--top-k", "4", "--weight", "0.2"],
        ),
        (0, 3, &["enhance", "--json", "--cache", ROWS, "--vectors", "q.npy", "--as-is", "--exact"]),
        (
            0,
            1,
            &["enhance", "--json", "--cache", SCENES, "--text", "a star", "--variant", "image-generation"],
        ),
        (0, 1, &["search", "--json", "--cache", SCENES, "--image", "1.png", "--top-k", "3"]),
        (0, 3, &["search", "--json", "--cache", ROWS, "--vectors", "q.npy", "--exact"]),
        (0, 3, &["search", "--json", "--cache", ROWS, "--vectors", "q.npy", "--filter", "id in (3, 5)"]),
        (3, 3, &["enhance", "--json", "--cache", ROWS, "--vectors", "q.npy", "--filter", "has tag.none"]),
        (0, 3, &["embed", "--json", "--image", "0.png", "--image", "1.png", "--text", "a disc"]),
        (0, 1, &["embed", "--json", "--text", "a disc", "--output", "prenorm"]),
        (3, 2, &["embed", "--json", "--image", "broken.png", "--text", "a disc"]),
        (3, 1, &["enhance", "--json", "--cache", SCENES, "--image", "broken.png"]),
        (0, 1, &["describe", "--json", "--cache", ROWS]),
    ];
    for (code, count, question) in questions {
        let mut direct = world.on_store(*code, question);
        let connected = [*question, &["--connect", &server.address]].concat();
        let mut served = lines(&expect(*code, &connected, world.run(&connected)));
        assert_eq!(direct.len(), *count, "one line per query: {question:?}");
        // A store that is only described needs no models, and none are loaded.
        direct.iter_mut().chain(&mut served).filter_map(Value::as_object_mut).for_each(|o| {
            ["model_loaded", "model_dtype", "decoder"].iter().for_each(|key| drop(o.remove(*key)))
        });
        assert_eq!(direct, served, "{question:?}");
    }
    let checked = world.on_store(0, &["check", "--json"]);
    let connected = ["check", "--json", "--connect", &server.address];
    let served = lines(&expect(0, &connected, world.run(&connected)));
    let caches = |lines: &[Value]| -> Vec<Value> {
        lines.iter().filter(|l| l["what"].as_str().unwrap().starts_with("cache ")).cloned().collect()
    };
    assert_eq!(caches(&checked).len(), 2);
    assert_eq!(caches(&checked), caches(&served));
    assert!(checked.iter().chain(&served).all(|line| line["ok"] == true));
    assert_eq!(server.end("TERM"), Some(0));
}

#[test]
fn answers_are_those_of_the_cache() {
    let world = World::new();
    let found =
        world.on_store(0, &["search", "--json", "--cache", SCENES, "--image", "1.png", "--top-k", "2"]);
    assert_eq!(found[0]["neighbors"][0]["uri"], "scenes/0001.png");
    assert_eq!(found[0]["neighbors"].as_array().unwrap().len(), 2);
    assert_eq!((&found[0]["cache"], &found[0]["generation"]), (&SCENES.into(), &1.into()));
    let described = world.on_store(0, &["describe", "--json", "--cache", SCENES]);
    assert_eq!((&described[0]["items"], &described[0]["dim"]), (&SCENE_COUNT.into(), &128.into()));
    assert_eq!(described[0]["made_by"]["model"], "nano");

    // For people: text, not JSON.
    let store = world.store.to_str().unwrap();
    for arguments in [
        &["--store", store, "search", "--cache", SCENES, "--image", "1.png"][..],
        &["--store", store, "enhance", "--cache", SCENES, "--text", "a disc"],
        &["--store", store, "describe", "--cache", SCENES],
        &["--store", store, "check"],
    ] {
        let output = expect(0, arguments, world.run(arguments));
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("scenes"), "{arguments:?}: {text}");
    }
}

#[test]
fn the_decoder_is_asked_and_judges() {
    let world = World::new();
    let server = Served::start(&world, &[]);
    let question = [
        "ask",
        "--cache",
        SCENES,
        "--image",
        "0.png",
        "Generate caption of this image",
        "--temperature",
        "0",
    ];
    let said =
        |arguments: &[&str]| String::from_utf8(expect(0, arguments, world.run(arguments)).stdout).unwrap();
    let connected = [&question[..], &["--connect", &server.address]].concat();
    let answer = said(&connected);
    assert!(answer.ends_with('\n') && answer.contains(" background"), "{answer}");
    let both = said(&[&connected[..], &["--compare"]].concat());
    assert!(
        both.contains("cache off: ") && both.contains(&format!("cache on:  {}", answer.trim())),
        "{both}"
    );
    // On the store the same, as events.
    let events = world.on_store(0, &[&question[..], &["--json", "--logprobs"]].concat());
    assert_eq!((&events[0]["event"], &events[0]["neighbors"][9]["id"].is_u64()), (&"begin".into(), &true));
    let last = events.last().unwrap();
    assert_eq!((&last["event"], &last["stop_reason"]), (&"summary".into(), &"end_of_text".into()));
    assert_eq!(last["text"].as_str().unwrap().trim(), answer.trim());
    let tokens = &events[1..events.len() - 1];
    assert!(tokens.iter().all(|token| token["logprob"].is_number()), "{tokens:?}");
    // Judged, the answer it gave is likelier than another.
    let given = format!(" {}", answer.trim());
    let score = [
        "score",
        "--json",
        "--cache",
        SCENES,
        "--image",
        "0.png",
        "Generate caption of this image",
        "--answer",
    ];
    let scores = world.on_store(0, &[&score[..], &[&given, "--answer", " a tiny pink heart"]].concat());
    assert!(scores[0]["logprob"].as_f64() > scores[1]["logprob"].as_f64(), "{scores:?}");
    let refused = world.run(&["ask", "--connect", &server.address, "--image", "broken.png", "What?"]);
    let refused = String::from_utf8(expect(1, &["ask"], refused).stderr).unwrap();
    assert!(refused.contains("BAD_MEDIA"), "{refused}");
    let store = world.store.to_str().unwrap();
    let none = world.run(&["--decoder", "none", "ask", "--store", store, "--cache", SCENES, "What?"]);
    let none = String::from_utf8(expect(1, &["ask"], none).stderr).unwrap();
    assert!(none.contains("DECODER_NOT_LOADED"), "{none}");
    assert_eq!(server.end("TERM"), Some(0));
}

#[test]
fn a_filter_leaves_what_it_says() {
    let world = World::new();
    let store = world.store.to_str().unwrap();
    let ask = |filter: &str| {
        let search = ["search", "--json", "--cache", ROWS, "--vectors", "q.npy", "--filter", filter];
        let line = world.on_store(0, &search).remove(0);
        let ids = line["neighbors"].as_array().unwrap().iter().map(|n| n["id"].as_u64().unwrap());
        let mut ids: Vec<u64> = ids.collect();
        ids.sort_unstable();
        assert_eq!(line["cost"]["matching_items"], ids.len());
        ids
    };
    assert_eq!(ask("tag.number = 7 or tag.number in ('8', \"9\", 777)"), [7, 8, 9]);
    assert_eq!(ask("id in (1, 2, 3) and not tag.number = 2"), [1, 3]);
    assert!(ask("tag.colour = red").is_empty());
    let more = npy::write(&store::random_rows(1, ROWS_DIM, 9).concat(), ROWS_DIM);
    std::fs::write(world.folder.path().join("more.npy"), more).unwrap();
    let upsert =
        ["upsert", "--cache", ROWS, "--vectors", "more.npy", "--tag", "colour=red", "--tag", "x=a=b"];
    world.on_store(0, &upsert);
    assert_eq!(ask("tag.colour = red and tag.x = 'a=b'"), [200]);

    let shown = ["--store", store, "search", "--cache", ROWS, "--vectors", "q.npy", "--filter", "id = 4"];
    let text = String::from_utf8(expect(0, &shown, world.run(&shown)).stdout).unwrap();
    assert!(text.contains("matching items 1 · plan exact"), "{text}");
    let nothing = ["enhance", "--json", "--cache", ROWS, "--vectors", "q.npy", "--filter", "id = 999"];
    assert_eq!(world.on_store(3, &nothing)[0]["error"]["reason"], "NO_MATCH");
    for (wrong, why) in [("colour = red", "`tag.`"), ("tag.a =", "it ends"), ("id = x", "whole numbers")] {
        let arguments = ["search", "--cache", ROWS, "--vectors", "q.npy", "--filter", wrong];
        let errors = String::from_utf8(expect(2, &arguments, world.run(&arguments)).stderr).unwrap();
        assert!(errors.contains(why), "{wrong}: {errors}");
    }
}

#[test]
fn rows_go_in_and_come_out_as_numpy_files() {
    let world = World::new();
    let shown = world.on_store(0, &["enhance", "--json", "--cache", ROWS, "--vectors", "q.npy"]);
    let written = ["enhance", "--json", "--cache", ROWS, "--vectors", "q.npy", "--out", "e.npy"];
    let lines = world.on_store(0, &written);
    assert!(lines.iter().all(|line| line.get("vector").is_none()), "the rows are in the file");
    let matrix = world.read("e.npy");
    assert_eq!((matrix.dim, matrix.values.len()), (ROWS_DIM, 3 * ROWS_DIM));
    for (row, line) in matrix.values.chunks_exact(ROWS_DIM).zip(&shown) {
        let shown: Vec<f32> = serde_json::from_value(line["vector"].clone()).unwrap();
        assert_eq!(row, shown);
        assert!((row.iter().map(|v| v * v).sum::<f32>() - 1.0).abs() < 1e-5);
    }
    // Enhanced queries are queries again.
    world.on_store(0, &["search", "--json", "--cache", ROWS, "--vectors", "e.npy"]);
    world.on_store(0, &["embed", "--json", "--image", "0.png", "--text", "a disc", "--out", "m.npy"]);
    let matrix = world.read("m.npy");
    assert_eq!((matrix.dim, matrix.values.len()), (128, 256));
}

#[test]
fn exit_codes_tell_what_went_wrong() {
    let world = World::new();
    let store = world.store.to_str().unwrap();
    let mut zero = store::random_rows(2, ROWS_DIM, 6);
    zero[0] = vec![0.0; ROWS_DIM];
    std::fs::write(world.folder.path().join("zero.npy"), npy::write(&zero.concat(), ROWS_DIM)).unwrap();
    let cases: &[(i32, &str, &[&str])] = &[
        (0, "", &["--store", store, "check"]),
        (0, "", &["--help"]),
        (1, "nowhere", &["--store", store, "describe", "--cache", "nowhere"]),
        (1, "no-such-store", &["--store", "no-such-store", "describe"]),
        (1, "absent.npy", &["--store", store, "enhance", "--cache", ROWS, "--vectors", "absent.npy"]),
        (1, "broken.png", &["--store", store, "enhance", "--cache", ROWS, "--vectors", "broken.png"]),
        (1, "nothing", &["--store", store, "search", "--cache", ROWS]),
        (1, "top_k", &["--store", store, "search", "--cache", ROWS, "--vectors", "q.npy", "--top-k", "0"]),
        (1, "--mix", &["--store", store, "search", "--cache", SCENES, "--text", "a", "--mix", "1,2"]),
        (
            1,
            "MODEL_NOT_LOADED",
            &["--store", store, "--model", "none", "enhance", "--cache", SCENES, "--text", "a"],
        ),
        (1, "no server answers", &["describe", "--connect", "127.0.0.1:1"]),
        (1, "no-such-file", &["--config", "no-such-file", "config"]),
        (2, "usage", &["enhance", "--no-such-flag"]),
        (2, "usage", &[]),
        (2, "usage", &["search", "--text", "a", "--vectors", "q.npy"]),
        (3, "DEGENERATE", &["--store", store, "enhance", "--cache", ROWS, "--vectors", "zero.npy"]),
        (3, "BAD_MEDIA", &["--store", store, "search", "--cache", SCENES, "--image", "broken.png"]),
    ];
    for (code, says, arguments) in cases {
        let output = expect(*code, arguments, world.run(arguments));
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(errors.to_lowercase().contains(&says.to_lowercase()), "{arguments:?}: {errors}");
    }
    let lines = world.on_store(3, &["enhance", "--json", "--cache", ROWS, "--vectors", "zero.npy"]);
    assert_eq!(lines[0]["error"]["reason"], "DEGENERATE");
    assert_eq!(lines[1]["query"], 1);
    assert!(lines[1].get("error").is_none(), "the other row is answered");
}

#[test]
fn settings_come_from_flags_then_environment_then_file() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("viscache.toml");
    std::fs::write(&file, "threads = 3\nrows = \"disk\"\nlog = \"error\"\n[limits]\nmax_batch = 11\n")
        .unwrap();
    let config = |command: &mut Command| {
        let output = command.output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let mut command = viscache(folder.path());
    command.env("VISCACHE_THREADS", "5").env("VISCACHE_ROWS", "ram").env("VISCACHE_LIMITS__MAX_PARTS", "7");
    let (code, text, errors) = config(command.args(["--threads", "9", "config"]));
    assert_eq!(code, Some(0), "{errors}");
    let line = |name: &str| {
        text.lines().find(|l| l.starts_with(&format!("{name} ="))).unwrap_or_else(|| panic!("{name}: {text}"))
    };
    for (name, value, origin) in [
        ("threads", "9", "flag"),
        ("rows", "\"ram\"", "VISCACHE_ROWS"),
        ("log", "\"error\"", "viscache.toml"),
        ("max_batch", "11", "viscache.toml"),
        ("max_parts", "7", "VISCACHE_LIMITS__MAX_PARTS"),
        ("max_concurrent", "256", "default"),
        ("device", "\"cpu\"", "default"),
    ] {
        let line = line(name);
        let (setting, from) = line.split_once(" # ").unwrap();
        assert_eq!(setting.trim(), format!("{name} = {value}"));
        assert!(from.ends_with(origin), "{line}");
    }

    // What is printed is a file that gives the same settings.
    let printed = folder.path().join("printed.toml");
    std::fs::write(&printed, &text).unwrap();
    let (code, again, errors) = config(viscache(folder.path()).args(["--config", "printed.toml", "config"]));
    assert_eq!(code, Some(0), "{errors}");
    let values = |text: &str| {
        text.lines().map(|l| l.split(" # ").next().unwrap().trim().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(values(&again), values(&text));

    std::fs::remove_file(&file).unwrap();
    let (code, _, errors) = config(viscache(folder.path()).env("VISCACHE_THREDS", "5").arg("config"));
    assert_eq!(code, Some(1));
    assert!(errors.contains("threds"), "{errors}");
    std::fs::write(&file, "[limits]\nmax_bach = 11\n").unwrap();
    let (code, _, errors) = config(viscache(folder.path()).arg("config"));
    assert_eq!(code, Some(1));
    assert!(errors.contains("max_bach"), "{errors}");
    std::fs::write(&file, "[blend]\nweight = 2.0\n").unwrap();
    let (code, _, errors) = config(viscache(folder.path()).arg("config"));
    assert_eq!(code, Some(1));
    assert!(errors.contains("weight"), "{errors}");
}

#[test]
fn a_server_says_its_address_and_ends_on_a_signal() {
    let world = World::new();
    for signal in ["TERM", "INT"] {
        let server = Served::start(&world, &["--cache", ROWS]);
        assert!(server.address.parse::<std::net::SocketAddr>().unwrap().port() > 0);
        // The only cache of this server is meant when none is named.
        let arguments = ["describe", "--json", "--connect", &server.address];
        let described = lines(&expect(0, &arguments, world.run(&arguments)));
        assert_eq!(described[0]["cache"], ROWS);
        let arguments = ["search", "--connect", &server.address, "--cache", SCENES, "--text", "a disc"];
        let output = expect(1, &arguments, world.run(&arguments));
        assert!(String::from_utf8_lossy(&output.stderr).contains("CACHE_NOT_FOUND"));
        assert_eq!(server.end(signal), Some(0), "{signal}");
    }
    let empty = TempDir::new().unwrap();
    let arguments = ["--store", empty.path().to_str().unwrap(), "serve", "--listen", "127.0.0.1:0"];
    expect(1, &arguments, world.run(&arguments));
}

#[test]
fn items_are_upserted_and_deleted_on_a_store_and_on_a_server() {
    let world = World::new();
    let upserted = world.on_store(0, &["upsert", "--cache", ROWS, "--vectors", "q.npy", "--json"]);
    let ids: Vec<u64> = upserted.iter().map(|line| line["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, [200, 201, 202]);
    let found =
        world.on_store(0, &["search", "--cache", ROWS, "--vectors", "q.npy", "--top-k", "1", "--json"]);
    let best: Vec<u64> = found.iter().map(|line| line["neighbors"][0]["id"].as_u64().unwrap()).collect();
    assert_eq!(best, ids);
    assert!(found[2]["neighbors"][0]["uri"].as_str().unwrap().ends_with("q.npy#2"));

    let server = Served::start(&world, &["--cache", ROWS, "--writable"]);
    let connect = ["--connect", server.address.as_str()];
    let run = |code: i32, arguments: &[&str]| {
        let arguments = [arguments, &connect].concat();
        expect(code, &arguments, world.run(&arguments))
    };
    // The server is the one writer now.
    let store = world.store.to_str().unwrap();
    let arguments = ["--store", store, "delete", "--cache", ROWS, "--ids", "1"];
    let output = expect(1, &arguments, world.run(&arguments));
    assert!(String::from_utf8_lossy(&output.stderr).contains("written by another process"));

    let ids = [7u64, 300, 8].iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>();
    let header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (3,), }";
    let file = [npy::MAGIC, &[1, 0], &(header.len() as u16).to_le_bytes(), header, &ids].concat();
    std::fs::write(world.folder.path().join("ids.npy"), file).unwrap();
    let output = run(0, &["upsert", "--vectors", "q.npy", "--ids", "ids.npy"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "7\n300\n8\n");
    let output = run(0, &["delete", "--ids", "300,5000"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1 deleted, 1 were not there\n");
    let deleted = lines(&run(0, &["delete", "--ids", "ids.npy", "--json"]));
    assert_eq!(deleted.iter().map(|line| &line["found"]).collect::<Vec<_>>(), [true, false, true]);
    let described = lines(&run(0, &["describe", "--json"]));
    assert_eq!((&described[0]["live_items"], &described[0]["writable"]), (&201.into(), &true.into()));
    run(1, &["upsert", "--vectors", "q.npy", "--ids", "1,2"]);
    run(1, &["delete", "--ids", "x"]);
    assert_eq!(server.end("TERM"), Some(0));

    let server = Served::start(&world, &["--cache", ROWS]);
    let arguments = ["delete", "--ids", "1", "--connect", &server.address];
    let output = expect(1, &arguments, world.run(&arguments));
    assert!(String::from_utf8_lossy(&output.stderr).contains("READ_ONLY"));
}

/// A file of `[ids.len() / width, width]` int64.
fn write_ids(path: &Path, ids: &[u64], width: usize) {
    let shape = format!("({}, {width})", ids.len() / width);
    let header = format!("{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}");
    let body = ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>();
    let length = (header.len() as u16).to_le_bytes();
    std::fs::write(path, [npy::MAGIC, &[1, 0], &length, header.as_bytes(), &body].concat()).unwrap();
}

#[test]
fn models_are_served_without_a_store() {
    let world = World::new();
    let mut command = viscache(world.folder.path());
    command.args(["--store", "none", "--model", "nano", "serve"]);
    let server = Served::of(command);
    let asked = |code: i32, question: &[&str]| {
        let question = [question, &["--connect", &server.address]].concat();
        expect(code, &question, world.run(&question))
    };
    let embedded = lines(&asked(0, &["embed", "--json", "--image", "0.png", "--text", "a disc"]));
    assert_eq!(embedded, world.on_store(0, &["embed", "--json", "--image", "0.png", "--text", "a disc"]));
    let answer =
        asked(0, &["ask", "--json", "--image", "0.png", "--no-cache", "Generate caption of this image"]);
    assert!(String::from_utf8_lossy(&answer.stdout).contains("stop_reason"), "{answer:?}");
    let refused = asked(1, &["search", "--cache", ROWS, "--vectors", "q.npy"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains(ROWS), "{refused:?}");
    drop(server);
    let nothing = ["--store", "none", "serve"];
    let refused = String::from_utf8(expect(1, &nothing, world.run(&nothing)).stderr).unwrap();
    assert!(refused.contains("neither a store nor a model"), "{refused}");
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

/// A page of an HTTP server, or nothing when it does not answer.
fn page(address: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
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
