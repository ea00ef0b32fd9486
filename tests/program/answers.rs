//! Queries on a store and on a server.

use serde_json::Value;
use viscache::media::npy;

use crate::store::{self, ROWS, ROWS_DIM, SCENE_COUNT, SCENES};
use crate::world::{Served, World, expect, lines};

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
            ["model_loaded", "model_dtype", "decoder"].iter().for_each(|key| drop(o.remove(*key)));
            // What the system leaves is another at every moment.
            if let Some(limits) = o.get_mut("limits").and_then(Value::as_object_mut) {
                let memory = ["max_request_memory_bytes", "max_answer_memory_bytes"];
                memory.iter().for_each(|key| assert!(limits.remove(*key).is_some()));
            }
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
    let given = last["text"].as_str().unwrap().trim();
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
    let scores = world.on_store(0, &[&score[..], &[given, "--answer", "a tiny pink heart"]].concat());
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
