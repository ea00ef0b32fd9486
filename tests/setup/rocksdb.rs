//! `scripts/rocksdb.sh`: built once, by whoever comes first, and kept apart by what it was built with.

use std::fs;

use crate::{Machine, finish};

/// A machine with sources of RocksDB that are names alone, and compilers that note what they are asked.
fn machine() -> Machine {
    let machine = Machine::new();
    let sources = machine.path("registry");
    let crates = [("librocksdb-sys-0.19.0+11.8.1", ""), ("lz4-sys-1.11.1", ""), ("zstd-sys-2.0.0", "")];
    for (name, text) in crates {
        fs::create_dir_all(sources.join(name)).unwrap();
        fs::write(sources.join(name).join("Cargo.toml"), text).unwrap();
    }
    let files: String = (0..40).map(|i| format!("db/file_{i}.cc\n")).collect();
    fs::write(sources.join(crates[0].0).join("rocksdb_lib_sources.txt"), files + "util/build_version.cc\n")
        .unwrap();
    let packages: Vec<String> = crates
        .iter()
        .map(|(name, _)| format!("{{\"manifest_path\":\"{}/{name}/Cargo.toml\"}}", sources.display()))
        .collect();
    fs::write(machine.path("metadata.json"), format!("[{}]", packages.join(","))).unwrap();
    machine.program("cargo", &format!("cat {}", machine.path("metadata.json").display()));
    compiler(&machine, "c++ (Debian 12.2.0) 12.2.0", "0");
    machine.program("ar", "out=$2; shift 2; cat \"$@\" >\"$out\"");
    machine
}

/// A compiler that takes its time for every unit and notes it.
fn compiler(machine: &Machine, version: &str, seconds: &str) {
    let log = machine.path("compiled.log");
    machine.program(
        "c++",
        &format!(
            "[ \"$1\" = --version ] && {{ echo '{version}'; exit; }}\n\
             sleep {seconds}; previous=''; for word; do [ \"$previous\" = -o ] && out=$word; [ \"$previous\" = -c ] && unit=$word; previous=$word; done\n\
             echo \"$unit\" >>{}; cat \"$unit\" >\"$out\"",
            log.display()
        ),
    );
}

fn compiled(machine: &Machine) -> usize {
    fs::read_to_string(machine.path("compiled.log")).unwrap_or_default().lines().count()
}

#[test]
fn it_is_built_once_for_each_compiler() {
    let machine = machine();
    let first = machine.run("rocksdb.sh", &[]);
    assert_eq!(first.code, 0, "{}", first.err);
    let folder = std::path::Path::new(first.out.trim());
    assert!(folder.join("librocksdb.a").is_file() && folder.starts_with(machine.path(".cache/viscache")));
    assert_eq!(compiled(&machine), 8);
    let again = machine.run("rocksdb.sh", &[]);
    assert_eq!((again.out == first.out, again.err.as_str(), compiled(&machine)), (true, "", 8));
    compiler(&machine, "c++ (Debian 14.2.0) 14.2.0", "0");
    let other = machine.run("rocksdb.sh", &[]);
    assert!(other.code == 0 && other.out != first.out && compiled(&machine) == 16, "{}", other.err);
}

#[test]
fn every_source_is_in_one_unit() {
    let machine = machine();
    // What is compiled is what is in the units: the stand-in for a compiler copies them.
    machine.program(
        "ar",
        &format!("shift; out=$1; shift; cat \"$@\" >{}; touch \"$out\"", machine.path("all").display()),
    );
    assert_eq!(machine.run("rocksdb.sh", &[]).code, 0);
    let all = fs::read_to_string(machine.path("all")).unwrap();
    let mut included: Vec<&str> = all.lines().map(|line| line.rsplit('/').next().unwrap()).collect();
    included.sort_unstable();
    let mut expected: Vec<String> = (0..40).map(|i| format!("file_{i}.cc\"")).collect();
    expected.push("build_version.cc\"".into());
    expected.sort_unstable();
    assert_eq!(included, expected);
}

#[test]
fn two_first_runs_build_it_together() {
    let machine = machine();
    compiler(&machine, "c++ 1", "0.1");
    let runs: Vec<_> = (0..3)
        .map(|_| {
            let command = machine.command("rocksdb.sh", &[]);
            std::thread::spawn(move || finish(command))
        })
        .collect();
    let ran: Vec<_> = runs.into_iter().map(|run| run.join().unwrap()).collect();
    assert!(ran.iter().all(|one| one.code == 0 && one.out == ran[0].out), "{ran:?}");
    assert_eq!(compiled(&machine), 8, "each unit once");
}

#[test]
fn a_build_that_was_killed_is_taken_up() {
    let machine = machine();
    compiler(&machine, "c++ 1", "0.2");
    let mut child = machine.command("rocksdb.sh", &[]).spawn().unwrap();
    while compiled(&machine) < 2 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // What the killed one had begun may still be under way.
    std::thread::sleep(std::time::Duration::from_millis(600));
    let before = compiled(&machine);
    let ran = machine.run("rocksdb.sh", &[]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(before < 8 && compiled(&machine) <= 8 + 2, "{before}, then {}", compiled(&machine));
}

#[test]
fn a_compiler_that_fails_leaves_no_library() {
    let machine = machine();
    machine.program(
        "c++",
        "[ \"$1\" = --version ] && { echo 'c++ 1'; exit; }; echo 'no space left' >&2; exit 1",
    );
    let ran = machine.run("rocksdb.sh", &[]);
    assert!(ran.code != 0 && ran.err.contains("no space left"), "{}", ran.err);
    compiler(&machine, "c++ 1", "0");
    assert_eq!(machine.run("rocksdb.sh", &[]).code, 0, "mended, it goes on");
}
