//! `scripts/setup.sh`: what is missing is found by trying it, named, and installed.

use std::fs;

use crate::{Machine, Ran};

/// A machine that lacks nothing.
fn ready() -> Machine {
    let machine = Machine::new();
    machine.compilers();
    machine.libclang(&machine.path("root/usr/lib/llvm-14/lib/libclang.so.1"), true);
    machine.apt("true");
    machine
}

/// Runs it as root would.
fn setup(machine: &Machine, arguments: &[&str]) -> Ran {
    machine.program("id", "echo 0");
    machine.run("setup.sh", arguments)
}

/// What `apt-get` does when it installs a good libclang.
fn brings_libclang(machine: &Machine) -> String {
    let good = machine.path("installs/good.so");
    machine.libclang(&good, true);
    let folder = machine.path("root/usr/lib/llvm-19/lib");
    format!("mkdir -p {0}; cp good.so {0}/libclang-19.so.1", folder.display())
}

#[test]
fn a_ready_machine_is_left_alone() {
    let machine = ready();
    let ran = setup(&machine, &["sh", "bash=bash-static"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert!(machine.installed().is_empty());
}

#[test]
fn the_library_for_cpp_is_not_taken_for_libclang() {
    let machine = Machine::new();
    machine.compilers();
    for name in ["libclang-cpp.so.14", "libclang-cpp.so"] {
        machine.libclang(&machine.path("root/usr/lib/llvm-14/lib").join(name), true);
    }
    machine.apt(&brings_libclang(&machine));
    let ran = setup(&machine, &[]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(machine.installed(), ["libclang-dev"]);
}

#[test]
fn a_libclang_without_its_headers_is_not_enough() {
    let machine = Machine::new();
    machine.compilers();
    machine.libclang(&machine.path("root/usr/lib/x86_64-linux-gnu/libclang-14.so.14.0.6"), false);
    machine.apt(&brings_libclang(&machine));
    let ran = setup(&machine, &[]);
    assert_eq!((ran.code, machine.installed()), (0, vec!["libclang-dev".to_owned()]), "{}", ran.err);
}

#[test]
fn bindgen_takes_the_newest_so_that_one_has_to_work() {
    let machine = ready();
    machine.libclang(&machine.path("root/usr/lib/llvm-20/lib/libclang-20.so.20"), false);
    let ran = setup(&machine, &[]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("still missing after installing: libclang-dev"), "{}", ran.err);
    assert!(ran.err.contains("libclang-20.so.20 does not find its own headers"), "{}", ran.err);
}

#[test]
fn a_file_that_is_no_library_is_not_enough() {
    let machine = ready();
    fs::write(machine.path("root/usr/lib/llvm-14/lib/libclang.so.2"), "").unwrap();
    let ran = setup(&machine, &[]);
    assert!(ran.code == 1 && machine.installed() == ["libclang-dev"], "{}", ran.err);
}

#[test]
fn a_library_that_is_named_is_the_one_tried() {
    let machine = ready();
    let named = machine.path("elsewhere/libclang.so");
    for (good, code) in [(true, 0), (false, 1)] {
        machine.libclang(&named, good);
        machine.program("id", "echo 0");
        let mut command = machine.command("setup.sh", &[]);
        command.env("LIBCLANG_PATH", named.parent().unwrap());
        assert_eq!(crate::finish(command).code, code);
    }
}

#[test]
fn compilers_are_installed_when_there_are_none() {
    let machine = Machine::new();
    machine.compilers();
    let bin = machine.path("bin");
    for name in ["cc", "c++", "ar"] {
        fs::rename(bin.join(name), machine.path("installs").join(name)).unwrap();
    }
    let libclang = brings_libclang(&machine);
    machine.apt(&format!("cp cc c++ ar {}; {libclang}", bin.display()));
    let ran = setup(&machine, &[]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(machine.installed(), ["build-essential", "libclang-dev"]);
}

#[test]
fn a_compiler_that_cannot_do_what_is_needed_is_said() {
    let machine = ready();
    machine.program("c++", "echo 'unrecognized option -std=c++20' >&2; exit 1");
    let ran = setup(&machine, &[]);
    assert_eq!((ran.code, machine.installed()), (1, vec!["build-essential".to_owned()]));
    assert!(ran.err.contains("unrecognized option -std=c++20"), "{}", ran.err);
}

#[test]
fn other_programs_are_installed_by_their_package() {
    let machine = ready();
    machine.apt(&format!("ln -s /bin/sh {}", machine.path("bin/tesseract").display()));
    let ran = setup(&machine, &["tesseract=tesseract-ocr"]);
    assert_eq!((ran.code, machine.installed()), (0, vec!["tesseract-ocr".to_owned()]), "{}", ran.err);
}

#[test]
fn rust_that_is_missing_or_too_old_is_never_installed_but_said() {
    let machine = ready();
    machine.program("rustc", "echo 'rustc 1.63.0 (4b91a6ea7 2022-08-08)'");
    let ran = setup(&machine, &[]);
    assert_eq!(ran.code, 1);
    for word in ["or newer", "is 1.63.0", "rustup update", "https://rustup.rs", "Debian 12"] {
        assert!(ran.err.contains(word), "no {word} in {}", ran.err);
    }
    // Where rustup is and no toolchain.
    machine.program("rustc", "echo 'error: rustup could not choose a version of rustc to run' >&2; exit 1");
    let ran = setup(&machine, &[]);
    assert!(ran.code == 1 && ran.err.contains("could not choose a version"), "{}", ran.err);
    fs::remove_file(machine.path("bin/rustc")).unwrap();
    let ran = setup(&machine, &[]);
    assert!(ran.code == 1 && ran.err.contains("no working rustc"), "{}", ran.err);
    for good in ["1.92.0", "1.100.0-nightly", "2.0.0"] {
        machine.program("rustc", &format!("echo 'rustc {good} (0 2026-01-01)'"));
        assert_eq!(setup(&machine, &[]).code, 0, "{good}");
    }
    assert!(machine.installed().is_empty());
}

#[test]
fn without_apt_it_says_what_to_install() {
    let machine = Machine::new();
    let ran = setup(&machine, &["ffmpeg"]);
    assert_eq!(ran.code, 1);
    for word in ["build-essential libclang-dev ffmpeg", "C++20", "What was tried"] {
        assert!(ran.err.contains(word), "no {word} in {}", ran.err);
    }
}

#[test]
fn who_is_not_root_needs_sudo() {
    let machine = ready();
    fs::remove_dir_all(machine.path("root/usr/lib/llvm-14")).unwrap();
    machine.apt(&brings_libclang(&machine));
    machine.program("id", "echo 1000");
    let ran = machine.run("setup.sh", &[]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("as root, or install sudo:  apt-get install libclang-dev"), "{}", ran.err);
    assert!(machine.installed().is_empty());
    machine.program("sudo", &format!("touch {}; exec \"$@\"", machine.path("asked").display()));
    let ran = machine.run("setup.sh", &[]);
    assert!(ran.code == 0 && machine.path("asked").exists(), "{}", ran.err);
}
