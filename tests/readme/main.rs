//! The README and the pages of `docs/`, held to the programs that they speak of.
//!
//! ```text
//! README.md, docs/**.md ─► blocks of sh and console ─┬─ below <!-- run --> ─► bash, page by page, in a folder of its own
//!                          `viscache …` in a sentence ┴─ all of them ─► bash, where a program is asked `… --help`
//! ```
//! With `--help` behind it, a program reads its command line up to there and refuses a command, a flag or a value that it
//! does not know; nothing else is done. So what may be said is known from the programs themselves.
//!
//! **Where blocks run.** Each page has one shell for its blocks, in a folder with a clone's `assets`, `docs`, `proto` and
//! `Makefile`, and `target/release` leads to the programs under test. The README's shell finds nothing else. That of another
//! page has the programs on its `PATH`, and in its folder what such a reader has:
//!
//! | file | what it is |
//! |---|---|
//! | `store` | the caches `photos`, of the folder `photos`, and `mine`, of `embeddings.npy` with `items.jsonl` |
//! | `cat.jpg` `dog.jpg` `new.jpg` `street.jpg` | pictures that no cache holds |
//! | `rain.wav` | a sound |
//! | `texts.npy` `other-texts.npy` `sounds.npy` | embeddings of them, a row each |
//! | `queries.npy` `more.npy` | a few of those |
//!
//! **Servers.** A line of `viscache serve` ends a block and is tried out. A block that connects to [`ADDRESS`] finds the
//! server of the last such line there, or else one of the store, on a port that is free.
//!
//! Left out: what needs the network or a checkpoint (it is only read), and `make`, which has made these programs: its
//! targets have to be there.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

#[path = "../common/programs.rs"]
mod programs;

use programs::programs;

/// The address of a server, as the pages write it.
const ADDRESS: &str = "127.0.0.1:50051";
/// Where pages lie; each folder has an `index.md` that lists its own.
const FOLDERS: [&str; 2] = ["docs", "docs/decisions"];
/// Stands before a block that is run.
const MARK: &str = "<!-- run -->";
/// Seconds that the blocks of a page may take.
const PATIENCE: &str = "600";

/// Around the blocks of a page.
const SHELL: &str = r#"
set -euo pipefail
make() { grep -q "^$1:" Makefile; }
server=(viscache serve --store ./store)
begin() {
    : >served
    VISCACHE_LISTEN=127.0.0.1:0 "${server[@]}" >served &
    pid=$!
    until address=$(sed -n 's/^listening on //p' served) && [ -n "$address" ]; do
        kill -0 "$pid"
        sleep 0.1
    done
}
end() { [ -z "${pid:-}" ] || { kill "$pid" && wait "$pid" || :; pid=; }; }
trap end EXIT
"#;

/// In the place of the programs: each is asked whether it knows its command line. Everything else does nothing.
const ASKED: &str = r#"
viscache() { known "$@"; }
index-builder() { known "$@"; }
known() {
    local said
    echo "${FUNCNAME[1]}" >>asked
    said=$("$PROGRAMS/${FUNCNAME[1]}" "$@" --help 2>&1 >/dev/null </dev/null) || echo "${FUNCNAME[1]} $*: $said" >>unknown
}
make() { [[ $(<"$CLONE/Makefile") == *$'\n'"$1:"* ]] || echo "make $1: there is no such target" >>unknown; }
command_not_found_handle() { :; }
PATH=
"#;

/// What a reader of `docs/` has.
const READER: &str = r#"
index-builder scenes --count 200 --out photos
index-builder build --store store --cache photos --images ./photos
index-builder scenes --set test --count 4 --out unseen
for picture in cat dog new street; do
    set -- unseen/*.png
    mv "$1" "$picture.jpg"
done
cp assets/nano/large_orange_cross.wav rain.wav
texts=() others=() sounds=() pictures=()
for shape in circle square star cross; do
    for colour in red green blue; do
        texts+=(--text "a small $colour $shape") others+=(--text "a large $colour $shape") sounds+=(--audio rain.wav)
    done
done
for picture in photos/*.png; do pictures+=(--image "$picture"); done
embed() { viscache embed --store store "${@:2}" --out "$1"; }
embed texts.npy "${texts[@]}"
embed other-texts.npy "${others[@]}"
embed sounds.npy "${sounds[@]}"
embed queries.npy "${texts[@]:0:6}"
embed more.npy "${others[@]:0:4}"
embed embeddings.npy "${pictures[@]}"
for id in {1..200}; do echo "{\"id\": $id, \"uri\": \"$id.jpg\", \"label\": \"cat\"}"; done >items.jsonl
index-builder import --store store --cache mine --vectors embeddings.npy --metadata items.jsonl --nano
"#;

/// Commands of a page.
struct Block {
    /// Page and line, for a person.
    place: String,
    commands: String,
    run: bool,
}

fn clone() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// README and pages, by their path in the clone.
fn pages() -> Vec<(String, String)> {
    let mut paths = vec!["README.md".to_owned()];
    for folder in FOLDERS {
        for file in fs::read_dir(clone().join(folder)).unwrap() {
            let name = file.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".md") {
                paths.push(format!("{folder}/{name}"));
            }
        }
    }
    paths.sort_unstable();
    paths.into_iter().map(|path| (path.clone(), fs::read_to_string(clone().join(path)).unwrap())).collect()
}

/// The blocks of a page, and whether each is to be run.
fn blocks(page: &str, text: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let (mut marked, mut open): (bool, Option<(usize, String)>) = (false, None);
    for (number, line) in text.lines().enumerate() {
        let inner = line.trim_start();
        match (inner.strip_prefix("```"), &mut open) {
            (Some(language), None) => {
                let commands = matches!(language, "sh" | "console");
                assert!(commands || !marked, "{page}:{}: a block of `{language}` cannot be run", number + 1);
                open = Some((line.len() - inner.len(), language.to_owned()));
                if commands {
                    let place = format!("{page}:{}", number + 2);
                    blocks.push(Block { place, commands: String::new(), run: std::mem::take(&mut marked) });
                }
            }
            (Some(_), Some(_)) => open = None,
            (None, Some((indent, language))) => {
                let line = line.get(*indent..).unwrap_or_default();
                let command = match language.as_str() {
                    "sh" => Some(line),
                    "console" => line.strip_prefix("$ "),
                    _ => None,
                };
                if let (Some(command), Some(block)) = (command, blocks.last_mut()) {
                    block.commands += &format!("{command}\n");
                }
            }
            (None, None) => {
                assert!(!marked || line.is_empty(), "{page}:{}: `{MARK}` has no block", number + 1);
                marked |= line == MARK;
                assert!(!line.starts_with("    "), "{page}:{}: commands stand in fences", number + 1);
            }
        }
    }
    blocks
}

/// Command lines between backticks, in sentences.
fn spans(page: &str, text: &str) -> Vec<Block> {
    let mut fenced = false;
    let mut prose = String::new();
    for line in text.lines() {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        prose += if fenced || fence { "\n" } else { line };
        prose += "\n";
    }
    let is_command = |span: &str| ["viscache ", "index-builder "].iter().any(|p| span.starts_with(p));
    let span = |span: &str| Block {
        place: format!("{page}, `{span}`"),
        commands: format!("{}\n", span.replace('\n', " ")),
        run: false,
    };
    // A span may go on over the end of a line, but not of a paragraph.
    let paragraphs = prose.split("\n\n");
    paragraphs.flat_map(|p| p.split('`').skip(1).step_by(2)).filter(|s| is_command(s)).map(span).collect()
}

fn bash(folder: &Path, script: &str, settings: &[(&str, &Path)]) -> Output {
    let file = folder.join("script.sh");
    fs::write(&file, script).unwrap();
    let mut command = Command::new("timeout");
    command.args([PATIENCE, "bash"]).arg(&file).current_dir(folder).env("HOME", folder);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("VISCACHE_")) {
        command.env_remove(name);
    }
    command.envs(settings.iter().copied()).output().unwrap()
}

/// What of these commands no program knows, a line each, and how many were asked.
fn unknown(commands: &str) -> (String, usize) {
    let folder = TempDir::new().unwrap();
    let settings = [("PROGRAMS", programs()), ("CLONE", clone())];
    let output = bash(folder.path(), &format!("{ASKED}\n{commands}\n: >finished\n"), &settings);
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap_or_default();
    let mut unknown = read("unknown");
    if !folder.path().join("finished").exists() {
        unknown += &String::from_utf8_lossy(&output.stderr); // the shell cannot read them
    }
    (unknown, read("asked").lines().count())
}

/// A folder for the blocks of a page.
fn folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    for name in ["assets", "docs", "proto", "Makefile"] {
        symlink(clone().join(name), folder.path().join(name)).unwrap();
    }
    fs::create_dir(folder.path().join("target")).unwrap();
    symlink(programs(), folder.path().join("target/release")).unwrap();
    folder
}

/// Runs a script that must succeed, and says what it printed where it does not.
fn must(page: &str, folder: &Path, script: &str, on_path: bool) {
    let path = std::env::var("PATH").unwrap();
    let path = if on_path { format!("{}:{path}", programs().display()) } else { path };
    let output = bash(folder, &format!("{SHELL}\n{script}"), &[("PATH", Path::new(&path))]);
    let [out, errors] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    assert!(output.status.success(), "{page}: {}\n{out}\n{errors}", output.status);
}

/// The blocks that are to be run, as one script; nothing when there are none.
fn script(blocks: &[Block]) -> Option<String> {
    let mut script = String::new();
    for block in blocks.iter().filter(|block| block.run) {
        script += &format!("echo '== {}' | tee /dev/stderr\n", block.place);
        let connects = block.commands.contains(ADDRESS);
        script += if connects { "begin\n" } else { "" };
        for line in block.commands.replace(ADDRESS, "$address").lines() {
            script += &match line.strip_prefix("viscache serve") {
                Some(rest) => format!("server=(viscache serve{rest}\n)\nbegin\nend\n"),
                None => format!("{line}\n"),
            };
        }
        script += if connects { "end\n" } else { "" };
    }
    (!script.is_empty()).then_some(script)
}

#[test]
fn the_blocks_of_the_readme_run_in_a_fresh_clone() {
    let readme = fs::read_to_string(clone().join("README.md")).unwrap();
    let blocks = blocks("README.md", &readme);
    let from = 1 + readme.lines().position(|line| line == "## Your own images").unwrap();
    let to = from + readme.lines().skip(from).position(|line| line.starts_with("## ")).unwrap();
    let line = |block: &Block| block.place.rsplit_once(':').unwrap().1.parse::<usize>().unwrap();
    let own: Vec<&Block> = blocks.iter().filter(|block| (from..to).contains(&line(block))).collect();
    assert!(own.len() >= 2, "commands for one's own images are there");
    for block in own {
        assert!(block.run, "{}: below `## Your own images` every block is marked `{MARK}`", block.place);
    }
    must("README.md", folder().path(), &script(&blocks).unwrap(), false);
}

#[test]
fn the_blocks_of_the_pages_run_where_a_reader_has_a_cache() {
    let reader = folder();
    must("what a reader has", reader.path(), READER, true);
    for (page, text) in pages().iter().filter(|(page, _)| page != "README.md") {
        if let Some(script) = script(&blocks(page, text)) {
            let folder = TempDir::new().unwrap();
            let copied =
                Command::new("cp").arg("-a").arg(reader.path().join(".")).arg(folder.path()).status();
            assert!(copied.unwrap().success());
            must(page, folder.path(), &script, true);
        }
    }
}

#[test]
fn every_command_is_known_to_its_program() {
    let mut complaints = String::new();
    let mut asked = 0;
    for (page, text) in pages() {
        for block in blocks(&page, &text).into_iter().chain(spans(&page, &text)) {
            let (unknown, count) = unknown(&block.commands);
            asked += count;
            if !unknown.is_empty() {
                complaints += &format!("{}: {unknown}\n", block.place);
            }
        }
    }
    assert!(complaints.is_empty(), "{complaints}");
    assert!(asked > 60, "only {asked} commands were found");
}

#[test]
fn an_unknown_command_flag_value_or_target_is_told() {
    let refused = [
        "viscache serach --store ./store",
        "viscache search --stroe ./store",
        "viscache search --store ./store \\\n  --filter 'tag.species ='",
        "VISCACHE_ROWS=disk viscache bench search --ef-search many # widths",
        "index-builder build --store ./store --cache photos --images a b --weigths c",
        "make demo release reader\nmake reader",
        "viscache search --text 'a",
    ];
    for commands in refused {
        assert!(!unknown(commands).0.is_empty(), "{commands}");
    }
    let (said, asked) =
        unknown("curl x | sh\nviscache search --text 'a # b' --top-k 5 # c\nviscache config > f");
    assert_eq!((said.as_str(), asked), ("", 2));
}

#[test]
fn links_lead_to_files_and_every_page_is_in_the_table() {
    let architecture = fs::read_to_string(clone().join("ARCHITECTURE.md")).unwrap();
    for (page, text) in pages().into_iter().chain([("ARCHITECTURE.md".to_owned(), architecture)]) {
        let file = clone().join(&page);
        let folder = file.parent().unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if !link.contains("://") {
                let file = folder.join(link.split('#').next().unwrap());
                assert!(file.exists(), "{page}: {link} leads nowhere");
            }
        }
        if let Some((folder, name)) = page.rsplit_once('/').filter(|(_, name)| *name != "index.md") {
            let index = fs::read_to_string(clone().join(folder).join("index.md")).unwrap();
            assert!(index.contains(&format!("]({name})")), "{folder}/index.md does not list {name}");
        }
    }
}

#[test]
fn the_readme_names_the_rust_that_cargo_asks_for() {
    let [readme, cargo] = ["README.md", "Cargo.toml"].map(|f| fs::read_to_string(clone().join(f)).unwrap());
    let version = cargo.split("rust-version = \"").nth(1).unwrap().split('"').next().unwrap();
    assert!(readme.contains(&format!("Rust {version} or newer")), "README.md asks for another Rust");
}
