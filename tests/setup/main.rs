//! The scripts that make a bare machine ready, on machines made up for it: `scripts/setup.sh`, which checks and installs
//! what is missing, and `scripts/rocksdb.sh`, which builds RocksDB once.
//!
//! A made-up machine is a folder: `bin` is all of its PATH, `root/usr/lib` all of its libraries. What a newcomer's machine
//! may lack is not there, or is a program of the test's own.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod needs;
mod rocksdb;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// What every Debian has.
const ESSENTIAL: [&str; 24] = [
    "awk", "bash", "cat", "cksum", "cp", "cut", "dirname", "env", "find", "flock", "getconf", "grep", "head",
    "id", "ln", "mkdir", "mktemp", "mv", "nproc", "rm", "sed", "sh", "sort", "xargs",
];
const MORE: [&str; 4] = ["sleep", "tail", "touch", "uname"];

struct Machine {
    folder: TempDir,
}

/// How a script ended and what it said.
#[derive(Debug)]
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Machine {
    /// One with what every Debian has, and Rust.
    fn new() -> Self {
        let machine = Machine { folder: TempDir::new().unwrap() };
        for folder in ["bin", "root/usr/lib", "installs"] {
            fs::create_dir_all(machine.path(folder)).unwrap();
        }
        for program in ESSENTIAL.iter().chain(&MORE) {
            let real = ["/usr/bin", "/bin", "/usr/sbin"].map(|folder| Path::new(folder).join(program));
            let real = real.iter().find(|path| path.exists());
            symlink(
                real.unwrap_or_else(|| panic!("{program} is not there")),
                machine.path("bin").join(program),
            )
            .unwrap();
        }
        machine.program("rustc", "echo 'rustc 1.99.0 (0123abc 2026-01-01)'");
        machine.program("cargo", "echo 'cargo 1.99.0'");
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Puts a program of the test's own on the PATH.
    fn program(&self, name: &str, script: &str) {
        write_program(&self.path("bin").join(name), script);
    }

    /// Puts this machine's own compilers on the PATH.
    fn compilers(&self) {
        for name in ["cc", "c++", "ar"] {
            self.program(name, &format!("PATH=/usr/bin:/bin exec /usr/bin/{name} \"$@\""));
        }
    }

    /// An `apt-get` that notes its arguments and, when it installs, runs a script with `installs` as its folder.
    fn apt(&self, on_install: &str) {
        let (log, installs) = (self.path("apt.log"), self.path("installs"));
        self.program(
            "apt-get",
            &format!(
                "echo \"$@\" >>{log}; case \" $* \" in *' install '*) cd {installs} && {{ {on_install}; }} ;; esac",
                log = log.display(),
                installs = installs.display()
            ),
        );
    }

    /// What was asked of `apt-get` to install.
    fn installed(&self) -> Vec<String> {
        let log = fs::read_to_string(self.path("apt.log")).unwrap_or_default();
        let packages = |line: &str| -> Vec<String> {
            let (_, words) = line.split_once(" install ").unwrap_or_default();
            let packages = words.split(' ').filter(|word| !word.is_empty() && !word.starts_with('-'));
            packages.map(str::to_owned).collect()
        };
        log.lines().flat_map(packages).collect()
    }

    /// A library that answers as libclang does: it reads a header with or without an error.
    fn libclang(&self, at: &Path, good: bool) {
        let source = self.path("libclang.c");
        let text = format!(
            "void *clang_createIndex(int a, int b) {{ return (void *)1; }}\n\
             void *clang_parseTranslationUnit(void *i, const char *f, const char *const *a, int n, void *u, unsigned c, unsigned o) {{ return (void *)1; }}\n\
             unsigned clang_getNumDiagnostics(void *u) {{ return {}; }}\n\
             void *clang_getDiagnostic(void *u, unsigned n) {{ return (void *)1; }}\n\
             int clang_getDiagnosticSeverity(void *d) {{ return 4; }}\n",
            u8::from(!good)
        );
        fs::write(&source, text).unwrap();
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        let mut compiler = Command::new("/usr/bin/cc");
        compiler.args(["-shared", "-fPIC", "-w", "-o"]).arg(at).arg(&source);
        assert!(compiler.status().unwrap().success());
    }

    fn command(&self, script: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("/bin/bash");
        command
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(script))
            .args(arguments)
            .env_clear()
            .env("PATH", self.path("bin"))
            .env("HOME", self.folder.path())
            .env("VISCACHE_SETUP_ROOT", self.path("root"))
            .stdin(Stdio::null());
        command
    }

    fn run(&self, script: &str, arguments: &[&str]) -> Ran {
        finish(self.command(script, arguments))
    }
}

fn finish(mut command: Command) -> Ran {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ran { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
}

fn write_program(path: &Path, script: &str) {
    // Replaced, not written over: it may be running.
    let _ = fs::remove_file(path);
    fs::write(path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}
