//! Files, exit codes, settings, changes.

use std::process::Command;

use tempfile::TempDir;
use viscache::media::npy;
use viscache::store::Recalls;

use crate::store::{self, ROWS, ROWS_DIM, SCENES};
use crate::world::{Served, World, expect, lines, viscache};

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
    let (code, _, errors) = config(viscache(folder.path()).env("VISCACHE_THREADS", "many").arg("config"));
    assert_eq!(code, Some(1));
    assert!(errors.contains("VISCACHE_THREADS"), "{errors}");
    std::fs::write(&file, "[limits]\nmax_bach = 11\n").unwrap();
    let (code, _, errors) = config(viscache(folder.path()).arg("config"));
    assert_eq!(code, Some(1));
    assert!(errors.contains("unknown setting `limits.max_bach`"), "{errors}");
    assert!(errors.contains("did you mean `limits.max_batch`?") && errors.len() < 300, "{errors}");
    std::fs::write(&file, "[blend]\nweight = 2.0\n").unwrap();
    let (code, _, errors) = config(viscache(folder.path()).arg("config"));
    assert_eq!(code, Some(1));
    assert!(errors.contains("weight"), "{errors}");
}

#[test]
fn variables_that_kubernetes_sets_for_a_service_are_named_and_ignored() {
    let folder = TempDir::new().unwrap();
    let mut command = viscache(folder.path());
    command.envs([
        ("VISCACHE_SERVICE_HOST", "10.0.0.7"),
        ("VISCACHE_SERVICE_PORT", "50051"),
        ("VISCACHE_SERVICE_PORT_GRPC", "50051"),
        ("VISCACHE_PORT", "tcp://10.0.0.7:50051"),
        ("VISCACHE_PORT_50051_TCP", "tcp://10.0.0.7:50051"),
        ("VISCACHE_PORT_50051_TCP_PORT", "50051"),
        ("VISCACHE_METRICS_PORT", "tcp://10.0.0.8:9091"),
        ("VISCACHE_THREDS", "3"),
        ("VISCACHE_LIMITS__MAX_BATCH", "11"),
    ]);
    let output = expect(0, &["config"], command.arg("config").output().unwrap());
    let (text, said) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(text.contains("max_batch = 11"), "{text}");
    assert_eq!(said.lines().count(), 1, "{said}");
    for name in
        ["VISCACHE_SERVICE_HOST", "VISCACHE_PORT", "VISCACHE_METRICS_PORT", "VISCACHE_PORT_50051_TCP_PORT"]
    {
        assert!(said.contains(name), "{name}: {said}");
    }
    assert!(said.contains("did you mean VISCACHE_THREADS?") && !said.contains("MAX_BATCH"), "{said}");
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
fn a_broken_sound_is_no_error_of_the_program() {
    let world = World::new();
    // What symphonia's probe looks through to the end and then calls an error.
    std::fs::write(world.folder.path().join("noise.wav"), vec![7; 5000]).unwrap();
    std::fs::write(world.folder.path().join("memo.m4a"), b"\0\0\0\x1cftypM4A \0\0\x02\0M4A isomiso2")
        .unwrap();
    for (file, says) in [("noise.wav", "not a readable sound"), ("memo.m4a", "ffmpeg -i voice.m4a")] {
        let arguments = ["--store", "none", "--model", "nano", "embed", "--audio", file];
        let said = String::from_utf8(expect(3, &arguments, world.run(&arguments)).stderr).unwrap();
        assert!(said.contains(says) && !said.contains("ERROR"), "{file}: {said}");
    }
}

#[test]
fn reading_asks_for_a_writable_temporary_folder_by_name() {
    let world = World::new();
    let mut command = viscache(world.folder.path());
    command.env("TMPDIR", "/nowhere").args(["describe", "--cache", ROWS, "--store"]).arg(&world.store);
    let said = String::from_utf8(expect(1, &["describe"], command.output().unwrap()).stderr).unwrap();
    assert!(said.contains("/nowhere") && said.contains("writable temporary folder"), "{said}");
    assert!(said.contains("TMPDIR"), "{said}");

    let temporary = TempDir::new().unwrap();
    let mut command = viscache(world.folder.path());
    command.env("TMPDIR", temporary.path()).args(["describe", "--cache", ROWS, "--store"]).arg(&world.store);
    expect(0, &["describe"], command.output().unwrap());
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0, "it is removed at the end");
}

#[test]
fn a_file_of_embeddings_says_which_rows_are_zeros() {
    let world = World::new();
    let said = |code: i32, arguments: &[&str]| {
        let store = ["--store", world.store.to_str().unwrap()];
        let output = expect(code, arguments, world.run(&[&store, arguments].concat()));
        String::from_utf8(output.stderr).unwrap()
    };
    let good = said(0, &["embed", "--image", "0.png", "--image", "1.png", "--out", "m.npy"]);
    assert!(good.ends_with("2 embeddings written to m.npy\n"), "{good}");
    let images = ["--image", "broken.png", "--image", "0.png", "--image", "broken.png"];
    let some = said(3, &[&["embed", "--out", "m.npy"], &images[..4]].concat());
    assert!(some.ends_with("1 of 2 embeddings written to m.npy; row 0 is zeros\n"), "{some}");
    let some = said(3, &[&["embed", "--out", "m.npy"], &images[..]].concat());
    assert!(some.ends_with("1 of 3 embeddings written to m.npy; rows 0, 2 are zeros\n"), "{some}");
    assert!(world.read("m.npy").values[..128].iter().all(|v| *v == 0.0));

    let mut rows = store::random_rows(2, ROWS_DIM, 6);
    rows[1] = vec![0.0; ROWS_DIM];
    std::fs::write(world.folder.path().join("zero.npy"), npy::write(&rows.concat(), ROWS_DIM)).unwrap();
    let some = said(3, &["enhance", "--cache", ROWS, "--vectors", "zero.npy", "--out", "e.npy"]);
    assert!(some.ends_with("1 of 2 enhanced queries written to e.npy; row 1 is zeros\n"), "{some}");
    let none = said(3, &["enhance", "--cache", SCENES, "--image", "broken.png", "--out", "e.npy"]);
    assert!(none.ends_with("0 of 1 enhanced queries written to e.npy; row 0 is zeros\n"), "{none}");
}

#[test]
fn help_lists_what_a_command_takes() {
    let folder = TempDir::new().unwrap();
    let help = |arguments: &[&str]| {
        let arguments = [arguments, &["--help"]].concat();
        let output = expect(0, &arguments, viscache(folder.path()).args(&arguments).output().unwrap());
        String::from_utf8(output.stdout).unwrap()
    };
    let all = help(&[]);
    assert!(
        all.contains("0 done, 1 failed, 2 the command line is wrong, 3 some items were bad, 130 interrupted")
    );
    assert!(!all.contains("--decoder") && all.lines().count() < 50, "{all}");
    for (command, model, decoder) in [
        ("serve", true, true),
        ("enhance", true, false),
        ("search", true, false),
        ("embed", true, false),
        ("ask", true, true),
        ("score", true, true),
        ("upsert", true, false),
        ("delete", false, false),
        ("describe", false, false),
        ("check", true, true),
        ("convert", false, true),
        ("config", false, false),
    ] {
        let help = help(&[command]);
        assert_eq!(help.contains("--model"), model, "{help}");
        assert_eq!(help.contains("--adapter"), decoder, "{help}");
        assert!(help.contains("--log") && help.contains("--config"), "{help}");
        assert_eq!(help.contains("\nModel:\n"), model, "{help}");
        assert!(help.lines().count() < 90, "{help}");
    }
    let refused = viscache(folder.path()).args(["describe", "--model", "nano"]).output().unwrap();
    expect(2, &["describe", "--model"], refused);
}

#[test]
fn a_flag_behind_the_command_wins_over_one_before_it() {
    let world = World::new();
    let store = world.store.to_str().unwrap();
    let arguments = ["--store", "nowhere", "describe", "--store", store, "--cache", ROWS];
    expect(0, &arguments, world.run(&arguments));
    let arguments = ["describe", "--store", store, "--cache", ROWS, "--memory-budget-mib", "0"];
    let said = String::from_utf8(expect(1, &arguments, world.run(&arguments)).stderr).unwrap();
    assert!(said.contains("memory_budget_mib"), "{said}");
}

#[test]
fn completions_are_printed_for_every_shell() {
    let folder = TempDir::new().unwrap();
    // Settings that cannot be used are no hindrance.
    std::fs::write(folder.path().join("viscache.toml"), "no settings").unwrap();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = viscache(folder.path()).args(["completions", shell]).output().unwrap();
        let script = String::from_utf8(expect(0, &[shell], output).stdout).unwrap();
        assert!(script.contains("viscache") && script.contains("enhance"), "{shell}");
    }
}

#[test]
fn a_query_unlike_anything_in_the_cache_is_told_in_a_line() {
    let world = World::new();
    let store = world.store.to_str().unwrap().to_owned();
    let told = |command: &str, more: &[&str]| {
        let arguments = [&["--store", &store, command, "--cache", SCENES, "--image", "0.png"], more].concat();
        let output = expect(0, &arguments, world.run(&arguments));
        String::from_utf8(output.stderr).unwrap().contains("the cache may have nothing like this image")
    };
    assert!(!told("search", &[]), "nothing was measured");
    for (usual, strange) in [(0.0, false), (1.5, true)] {
        let nearest = [("image".to_owned(), usual)].into();
        store::publish(
            &world.store,
            SCENES,
            Recalls { rows: vec![(96, 1.0)], nearest, ..Recalls::default() },
        );
        assert_eq!([told("search", &[]), told("enhance", &[]), told("ask", &["What is it?"])], [strange; 3]);
        assert!(!told("search", &["--json"]), "programs have the score");
        assert!(!told("search", &["--filter", "not id in (1)"]), "a filter may leave out what is near");
        // Of mixtures nothing is measured.
        assert!(!told("search", &["--text", "a disc"]));
    }
}

#[test]
fn a_reader_that_goes_away_ends_a_command_quietly() {
    let world = World::new();
    for arguments in [&["caches"][..], &["caches", "--json"], &["describe", "--cache", ROWS], &["config"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = viscache(world.store.parent().unwrap());
        let output =
            command.arg("--store").arg(&world.store).args(arguments).stdout(writer).output().unwrap();
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "{arguments:?}");
        assert_eq!(output.status.code(), Some(141), "{arguments:?}");
    }
}

#[test]
fn a_store_is_looked_after_by_commands() {
    let world = World::new();
    let caches = world.on_store(0, &["caches", "--json"]);
    assert!(caches.iter().any(|line| line["name"] == ROWS && line["served_generation"] == 1), "{caches:?}");
    let items = world.on_store(3, &["items", "--json", "--vectors", "--cache", ROWS, "--ids", "0,999999"]);
    assert_eq!((&items[0]["id"], items[0]["vector"].as_array().unwrap().len()), (&0.into(), ROWS_DIM));
    assert_eq!(items[1]["error"]["code"], "NOT_FOUND");
    let store = world.store.to_str().unwrap();
    let on_store = |words: &[&str]| {
        let arguments = [&["--store", store], words].concat();
        String::from_utf8(expect(0, &arguments, world.run(&arguments)).stdout).unwrap()
    };
    world.on_store(0, &["upsert", "--json", "--cache", ROWS, "--vectors", "q.npy"]);
    assert!(on_store(&["compact", "--cache", ROWS]).starts_with("generation 2 has "));
    assert_eq!(on_store(&["publish", "--cache", ROWS, "--generation", "1"]), "generation 1 is served\n");
    assert!(on_store(&["reload", "--cache", ROWS]).starts_with("generation 1 and changes up to 3"));
    assert!(on_store(&["stats"]).starts_with("up for "));
    assert!(on_store(&["items", "--cache", ROWS, "--ids", "0"]).contains("        0  "));
}

#[test]
fn many_pictures_are_stored_by_one_command_in_messages_that_pass() {
    let world = World::new();
    let names: Vec<String> = (0..300).map(|i| format!("copy-{i}.png")).collect();
    let picture = std::fs::read(world.folder.path().join("0.png")).unwrap();
    for name in &names {
        std::fs::write(world.folder.path().join(name), &picture).unwrap();
    }
    let words = ["upsert", "--json", "--cache", SCENES, "--image"];
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let stored = world.on_store(0, &[&words[..], &names].concat());
    assert_eq!(stored.len(), 300);
}
