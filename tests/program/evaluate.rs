//! Evaluation, of the built-in model and of a list; and what else needs no store: decoders asked by themselves, files that are only
//! looked at.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Output};

use rand::SeedableRng;
use serde_json::Value;
use viscache::scenes::{DEFAULT_SEED, Set, Wording, draw, png};

use crate::common::{self, of_one_root, roots};
use crate::programs::programs;
use crate::store::SCENES;
use crate::world::{World, expect};

fn viscache(arguments: &[&str]) -> Output {
    // Settings of whoever runs the tests do not count.
    let folder = tempfile::tempdir().unwrap();
    Command::new(env!("CARGO_BIN_EXE_viscache")).args(arguments).current_dir(folder.path()).output().unwrap()
}

fn said(arguments: &[&str]) -> String {
    let output = viscache(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn refused(arguments: &[&str]) -> String {
    let output = viscache(arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn the_cache_lifts_texts_and_leaves_pictures() {
    let few = ["evaluate", "nano", "--pictures", "1000", "--queries", "40", "--no-speech"];
    let lines = said(&[&few[..], &["--json"]].concat());
    let rows: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let row = |name: &str| rows.iter().find(|row| row["queries"] == name).unwrap();
    let all = |row: &Value, side: &str| row[side]["all"].as_f64().unwrap();
    // Recorded with 20 000 pictures and 500 queries: text 0.02 → 0.68, pictures 0.68 → 0.66. Fewer of both blur it.
    let text = row("text, test");
    assert!(all(text, "off") < 0.2 && all(text, "on") > 0.35, "{text}");
    assert!(text["gain_interval"][0].as_f64().unwrap() > 0.1, "{text}");
    let picture = row("image, test");
    assert!(all(picture, "off") > 0.5 && all(picture, "on") > 0.4, "{picture}");
    for side in ["off", "on"] {
        let colour = picture[side]["attributes"]["colour"].as_f64().unwrap();
        assert!(colour > 0.9, "{picture}");
        let range = &picture[side]["interval"];
        assert!(
            range[0].as_f64().unwrap() <= all(picture, side)
                && all(picture, side) <= range[1].as_f64().unwrap()
        );
    }
    let table = said(&few);
    assert!(
        table.contains("image, pairs never seen") && table.contains("gain") && table.contains("CLIP's gap"),
        "{table}"
    );
    assert!(refused(&["evaluate", "nano", "--pictures", "3"]).contains("fewer than the 10"));
}

#[test]
fn an_encoder_without_a_gap_gains_nothing() {
    let Some([overlay, model]) = of_one_root(["nano/text_joint.safetensors", "nano/imagebind.safetensors"])
    else {
        return common::say("skipped: the overlays are not here");
    };
    // The model that they were trained beside.
    let model = model.parent().unwrap().to_str().unwrap();
    let arguments = [
        "evaluate",
        "nano",
        "--pictures",
        "1000",
        "--queries",
        "60",
        "--no-speech",
        "--json",
        "--model",
        model,
        "--overlay",
    ];
    let lines = said(&[&arguments[..], &[overlay.to_str().unwrap()]].concat());
    let text: Value = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .find(|row| row["queries"] == "text, test")
        .unwrap();
    assert!(text["off"]["all"].as_f64().unwrap() > 0.4 && text["gain"].as_f64().unwrap() < 0.15, "{text}");
    let other = overlay.with_file_name("adapter.safetensors");
    let refused = refused(&[&arguments[..], &[other.to_str().unwrap()]].concat());
    assert!(refused.contains("no place for"), "{refused}");
}

#[test]
fn models_alone_need_no_store() {
    let picture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/assets/sign.png");
    let picture = picture.to_str().unwrap();
    let ask =
        ["ask", "--store", "none", "--model", "nano", "--image", picture, "Generate caption of this image"];
    assert!(said(&[&ask[..], &["--no-cache"]].concat()).contains("background"));
    assert!(refused(&ask).contains("CACHE_NOT_FOUND"));
    let odd = [&ask[..], &["--no-cache", "--chat", "v1", "--said", "Hi"]].concat();
    assert!(refused(&odd).contains("given 1 times"));
    assert!(refused(&["serve", "--store", "none", "--writable"]).contains("name the store"));
}

#[test]
fn files_are_looked_at_before_they_are_read() {
    for root in roots() {
        let folder = root.join("llama_adapter_v2/chat65b_tiny");
        let tokenizer = root.join("imagebind_llm_decoder/tokenizer.model");
        if !folder.join("tuned.pth").exists() || !tokenizer.exists() {
            continue;
        }
        let (backbone, tuned) = (folder.join("llama"), folder.join("tuned.pth"));
        let files = [
            "convert",
            "--dry-run",
            "--decoder",
            backbone.to_str().unwrap(),
            "--adapter",
            tuned.to_str().unwrap(),
            "--tokenizer",
            tokenizer.to_str().unwrap(),
        ];
        let sizes: Value = serde_json::from_str(&said(&files)).unwrap();
        assert_eq!((&sizes["family"], &sizes["max_seq_len"]), (&"v2-chat".into(), &2048.into()));
        // The tuned tensors of one program are not those of another's backbone.
        let other = root.join("llama_adapter_v2/mm_tiny_lora/llama");
        if other.exists() {
            let mut mixed = files;
            mixed[3] = other.to_str().unwrap();
            let refused = refused(&mixed);
            assert!(refused.contains("do not make a decoder"), "{refused}");
        }
    }
}

/// Pictures and texts that nobody has seen, with their captions; gives the list.
fn unseen(folder: &Path, count: u64) -> String {
    let mut list = String::from("file,text,answers,kind\r\n");
    for i in 0..count {
        let (scene, style, mut random) = Set::Test.scene(DEFAULT_SEED, i);
        std::fs::write(folder.join(format!("{i}.png")), png(&draw(&scene, style, &mut random)).unwrap())
            .unwrap();
        // An article and a mark more, and another answer that is not given.
        let answers = format!("The {}!|nothing at all", scene.caption());
        let text = Wording::Canonical.of(&scene, &mut rand_pcg::Pcg64::seed_from_u64(i));
        write!(list, "{i}.png,,{answers},picture\r\n,\"{text}\",{answers},text\r\n").unwrap();
    }
    list
}

/// Fails for what is no well-formed XML: tags that do not match, quotes that stay open, letters that should be escaped.
fn check_xml(text: &str) {
    let (mut open, mut rest) = (Vec::new(), text.trim());
    while let Some(begin) = rest.find('<') {
        let (between, tag) = rest.split_at(begin);
        let entities = ["&amp;", "&lt;", "&gt;", "&quot;", "&apos;"];
        let plain = entities.iter().fold(between.to_owned(), |text, entity| text.replace(entity, ""));
        assert!(!plain.contains(['&', '>']), "{between}");
        let end = tag.find('>').unwrap_or_else(|| panic!("open: {tag}"));
        let inner = &tag[1..end];
        assert_eq!(inner.matches('"').count() % 2, 0, "{inner}");
        assert!(!inner.contains('<'), "{inner}");
        let name = |tag: &str| tag.split_whitespace().next().unwrap().to_owned();
        match inner.strip_prefix('/') {
            Some(closed) => assert_eq!(open.pop(), Some(name(closed))),
            None if inner.ends_with('/') || inner.starts_with(['!', '?']) => {}
            None => open.push(name(inner)),
        }
        rest = &tag[end + 1..];
        assert!(!open.is_empty() || rest.trim().is_empty(), "one root: {rest}");
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn a_list_of_ones_own_says_what_the_cache_does() {
    let folder = tempfile::tempdir().unwrap();
    let build = |arguments: &[&str]| {
        let builder = programs().join("index-builder");
        let output = Command::new(builder).args(arguments).current_dir(folder.path()).output().unwrap();
        expect(0, arguments, output)
    };
    build(&["scenes", "--count", "1000", "--out", "photos"]);
    build(&["build", "--store", "store", "--cache", "photos", "--images", "photos"]);
    let mut list = unseen(folder.path(), 24);
    list += "gone.png,,a cat,picture\r\n";
    std::fs::write(folder.path().join("list.csv"), list).unwrap();
    let run = |code: i32, more: &[&str]| {
        let all =
            ["evaluate", "data", "list.csv", "--store", "store", "--cache", "photos", "--weight", "0.5,1"];
        let all = [&all[..], more].concat();
        let output = crate::world::viscache(folder.path()).args(&all).output().unwrap();
        let output = expect(code, &all, output);
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (printed, said) = run(3, &["--out", "out", "--json"]);
    assert!(said.contains("line 50: the file `gone.png` cannot be read"), "{said}");
    let summary: Value = serde_json::from_str(&printed).unwrap();
    let file = |name: &str| std::fs::read_to_string(folder.path().join("out").join(name)).unwrap();
    assert_eq!(file("summary.json"), printed);
    assert_eq!((&summary["rows"], &summary["measured"]), (&49.into(), &48.into()));
    assert_eq!(summary["bad"].as_array().unwrap().len(), 1);
    let tables = summary["tables"].as_array().unwrap();
    let table = |measure: &str, kind: Option<&str>| {
        let is = |table: &&Value| table["measure"] == measure && table["kind"].as_str() == kind;
        tables.iter().find(is).unwrap()
    };
    assert_eq!(tables.len(), 6);
    for measure in ["accuracy", "likelihood"] {
        let [all, picture, text] = [None, Some("picture"), Some("text")].map(|kind| table(measure, kind));
        assert_eq!([all, picture, text].map(|table| table["rows"].as_u64().unwrap()), [48, 24, 24]);
        // Kinds are of one size, so that the whole lies in the middle between them.
        let off = [all, picture, text].map(|table| table["off"].as_f64().unwrap());
        assert!((off[0] - (off[1] + off[2]) / 2.0).abs() < 1e-9, "{off:?}");
        // Recorded of 500 texts and 20 000 pictures: .02 → .68. Fewer of both blur it.
        let best = &text["on"][0];
        assert_eq!(
            (&best["top_k"], &best["temperature"], &best["weight"]),
            (&10.into(), &20.0.into(), &0.5.into())
        );
        assert_eq!(best["told_apart"], true, "{text}");
        assert!(best["difference"]["interval"][0].as_f64().unwrap() > 0.1, "{text}");
    }
    let text = table("accuracy", Some("text"));
    assert!(text["off"].as_f64().unwrap() < 0.2 && text["on"][0]["on"].as_f64().unwrap() > 0.35, "{text}");
    let all = table("accuracy", None);
    // Of 48 inputs a half chooses, and twelve of each kind.
    let best = &all["best"];
    assert_eq!(
        (&best["held_out"], &best["chosen_on"], &best["told_on"]),
        (&true.into(), &24.into(), &24.into())
    );
    assert_eq!(text["best"]["held_out"], false);

    // A line for each row and setting, and one without the cache; their sums are the figures.
    let mut results = csv::Reader::from_path(folder.path().join("out/results.csv")).unwrap();
    let columns = results.headers().unwrap().clone();
    let at = |name: &str| columns.iter().position(|column| column == name).unwrap();
    let lines: Vec<csv::StringRecord> = results.records().map(Result::unwrap).collect();
    assert_eq!(lines.len(), 48 * 3);
    let off: Vec<f64> = lines
        .iter()
        .filter(|line| &line[at("cache")] == "off" && &line[at("kind")] == "text")
        .map(|line| line[at("right")].parse().unwrap())
        .collect();
    assert_eq!(off.len(), 24);
    assert!((off.iter().sum::<f64>() / 24.0 - text["off"].as_f64().unwrap()).abs() < 1e-9);
    let right = lines.iter().find(|line| &line[at("right")] == "1").unwrap();
    assert!(right[at("answer")].contains(" on a ") && right[at("question")].starts_with("Generate"));
    let svg = file("grid.svg");
    check_xml(&svg);
    assert!(svg.contains("share of right answers") && svg.contains("Cache photos, off and on"), "{svg}");

    // The same for people; the same numbers come again.
    let (table, _) = run(3, &["--measure", "accuracy", "--choose-on-half=false"]);
    assert!(table.contains("49 rows in list.csv: 48 measured, 1 bad"), "{table}");
    let row = format!("text                     24     {:.2}", text["off"].as_f64().unwrap());
    assert!(table.contains(&row) && table.contains("  better"), "{row} is not in\n{table}");
    assert!(table.contains("chosen on these very 48 rows") && !table.contains("likelihood"), "{table}");
}

#[test]
fn right_answers_stand_against_wrong_ones_and_inputs_are_of_any_kind() {
    let world = World::new();
    let sound = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/nano/large_orange_cross.wav");
    std::fs::copy(sound, world.folder.path().join("said.wav")).unwrap();
    std::fs::write(world.folder.path().join("text.txt"), "a red circle").unwrap();
    let list = "text\tfile\tmodality\tquestion\tanswers\twrong\n\
        a large red circle on a white background\t\t\tWhat colour is it?\tred\tgreen|blue\n\
        \tsaid.wav\t\tWhat shape is it?\tcross|a cross\tcircle\n\
        \ttext.txt\ttext\tWhat shape is it?\tcircle\tstar\n\
        \t0.png\t\tWhat colour is it?\tred\tblue\n\
        \t0.png\t\tWhat shape is it?\tcircle\tstar\n";
    std::fs::write(world.folder.path().join("list.tsv"), list).unwrap();
    let arguments = [
        "evaluate",
        "data",
        "list.tsv",
        "--cache",
        SCENES,
        "--measure",
        "accuracy",
        "--top-k",
        "3,50",
        "--json",
    ];
    let [summary] = &world.on_store(0, &arguments)[..] else { panic!() };
    assert_eq!((&summary["rows"], &summary["measured"]), (&5.into(), &5.into()));
    let tables = summary["tables"].as_array().unwrap();
    let of = |table: &Value| (table["kind"].clone(), table["rows"].clone(), table["choices"].clone());
    let expected = [(Value::Null, 5), ("text".into(), 2), ("audio".into(), 1), ("image".into(), 2)];
    let expected = expected.map(|(kind, rows)| (kind, Value::from(rows), Value::from(rows)));
    assert_eq!(tables.iter().map(of).collect::<Vec<_>>(), expected);
    // Five rows, two of them about one picture.
    assert_eq!(tables[0]["inputs"], 4);
    assert_eq!(tables[3]["off"], 1.0, "the decoder sees what is in a picture: {summary}");
    let few = ["evaluate", "data", "list.tsv", "--cache", SCENES, "--measure", "likelihood"];
    let store = ["--store", world.store.to_str().unwrap()];
    let output = expect(0, &few, world.run(&[&store, &few[..]].concat()));
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("all rows: 4 are too few inputs to tell a setting from off"), "{table}");
}

#[test]
fn what_is_wrong_with_a_list_is_named() {
    let world = World::new();
    let folder = world.folder.path();
    let list = |text: &str| std::fs::write(folder.join("list.csv"), text).unwrap();
    let run = |code: i32, more: &[&str]| {
        let all =
            ["evaluate", "data", "list.csv", "--store", world.store.to_str().unwrap(), "--max-tokens", "5"];
        let all = [&all[..], more].concat();
        String::from_utf8(expect(code, &all, world.run(&all)).stderr).unwrap()
    };
    let scenes = ["--cache", SCENES];
    list("file,answers,note\n0.png,x,\nbroken.png,x,\n1.png,,\nnone.png,x,\n");
    let said = run(3, &scenes);
    assert!(said.contains("columns of the list that are not used: note"), "{said}");
    let order = ["line 3: ", "line 4: it has no right answer", "line 5: the file `none.png`"];
    let found: Vec<_> =
        order.iter().map(|part| said.find(part).unwrap_or_else(|| panic!("{part}: {said}"))).collect();
    assert!(found.is_sorted(), "{said}");
    // By its name it is a picture, and its bytes are none: that is only found out when it is read.
    let strict = run(1, &[&scenes[..], &["--strict"]].concat());
    assert!(strict.contains("2 rows of list.csv are bad; line 4"), "{strict}");
    list("file,answers\nbroken.png,x\n0.png,x\n");
    assert!(run(1, &[&scenes[..], &["--strict"]].concat()).contains("line 2: "));
    list("file,answers\nbroken.png,x\n");
    assert!(run(1, &scenes).contains("none of the 1 rows of list.csv can be asked; line 2: "));
    list("file,answers\n\n");
    assert!(run(1, &scenes).contains("the list list.csv has no rows"));
    list("file,question\n0.png,x\n");
    assert!(run(1, &scenes).contains("no column `answers`"));
    list("file,answers\n0.png,x\n");
    assert!(run(1, &["--cache", "fotos"]).contains("fotos"));
    assert!(run(1, &[]).contains("names no cache"), "two caches, and none is named");
    assert!(run(1, &["--cache", "rows"]).contains("model"), "rows of an unknown origin");
    assert!(run(1, &[&scenes[..], &["--weight", "1.5"]].concat()).contains("1.5"));
    assert!(run(2, &[&scenes[..], &["--top-k", "many"]].concat()).contains("many"));
    assert!(run(2, &[&scenes[..], &["--max-tokens", "0"]].concat()).contains("max-tokens"));
    assert!(run(1, &[&scenes[..], &["--decoder", "none"]].concat()).contains("name one by --decoder"));
    assert!(run(1, &[&scenes[..], &["--out", "broken.png"]].concat()).contains("cannot make the folder"));
    std::fs::remove_file(folder.join("list.csv")).unwrap();
    assert!(run(1, &scenes).contains("cannot read the list list.csv"));
    // Settings of a prompt that is longer than the decoder's positions.
    list(&format!("file,answers,question\n0.png,x,{}\n0.png,x,\n", "zebra ".repeat(200)));
    assert!(run(3, &scenes).contains("line 2: the prompt has"));
    // A decoder that has nothing to look with.
    let files = ["llama_adapter_v2/chat65b_tiny/llama", "llama_adapter_v2/chat65b_tiny/tuned.pth"];
    if let Some([decoder, adapter]) = of_one_root(files) {
        let Some([tokenizer]) = of_one_root(["imagebind_llm_decoder/tokenizer.model"]) else { return };
        let [decoder, adapter, tokenizer] =
            [&decoder, &adapter, &tokenizer].map(|path| path.to_str().unwrap());
        let chat = ["--decoder", decoder, "--adapter", adapter, "--tokenizer", tokenizer];
        assert!(run(1, &[&scenes[..], &chat].concat()).contains("takes no embeddings"));
    }
}
