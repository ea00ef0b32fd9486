//! The program in a folder of its own, and as a server: arguments in, lines and exit codes out.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tonic::transport::Endpoint;
use viscache::media::npy;

use crate::store::{self, ROWS_DIM};

/// The program in an empty folder, without settings from outside.
pub(crate) fn viscache(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_viscache"));
    command.current_dir(folder);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("VISCACHE_")) {
        command.env_remove(name);
    }
    command
}

pub(crate) struct World {
    pub(crate) folder: TempDir,
    pub(crate) store: PathBuf,
}

impl World {
    pub(crate) fn new() -> Self {
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

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        viscache(self.folder.path()).args(arguments).output().unwrap()
    }

    /// Runs it on the store, expecting an exit code.
    pub(crate) fn on_store(&self, code: i32, arguments: &[&str]) -> Vec<Value> {
        let store = ["--store", self.store.to_str().unwrap()];
        lines(&expect(code, arguments, self.run(&[&store, arguments].concat())))
    }

    pub(crate) fn read(&self, file: &str) -> npy::Matrix {
        npy::read(&std::fs::read(self.folder.path().join(file)).unwrap()).unwrap()
    }
}

pub(crate) fn expect(code: i32, arguments: &[&str], output: Output) -> Output {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
    output
}

/// Standard output as JSON lines, without what differs from run to run.
pub(crate) fn lines(output: &Output) -> Vec<Value> {
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

/// Where a client connects to.
pub(crate) fn endpoint(address: &str) -> Endpoint {
    Endpoint::from_shared(format!("http://{address}")).unwrap()
}

/// A running server; ended when dropped.
pub(crate) struct Served {
    pub(crate) child: Child,
    pub(crate) address: String,
}

impl Served {
    /// One that samples no recall: what it describes is what the store says.
    pub(crate) fn start(world: &World, arguments: &[&str]) -> Self {
        Served::with(world, arguments, &[("VISCACHE_RECALL_SAMPLING__RATE", "0")])
    }

    pub(crate) fn with(world: &World, arguments: &[&str], settings: &[(&str, &str)]) -> Self {
        let mut command = viscache(world.folder.path());
        command.envs(settings.iter().copied());
        command.arg("--store").arg(&world.store).arg("serve").args(arguments);
        Served::of(command)
    }

    /// One whose log is a file, which is named beside it; started by a shell that has run `before`.
    pub(crate) fn logged(
        world: &World,
        before: &str,
        arguments: &[&str],
        settings: &[(&str, &str)],
    ) -> (Self, PathBuf) {
        let log = world.folder.path().join("log");
        let mut command = Command::new("sh");
        command.current_dir(world.folder.path()).envs(settings.iter().copied());
        let program = viscache(world.folder.path());
        command.args(["-c", &format!("{before}\nexec \"$0\" \"$@\"")]).arg(program.get_program());
        command.arg("--store").arg(&world.store).arg("serve").args(arguments);
        (Served::with_log(command, File::create(&log).unwrap().into()), log)
    }

    pub(crate) fn of(command: Command) -> Self {
        Served::with_log(command, Stdio::null())
    }

    fn with_log(mut command: Command, log: Stdio) -> Self {
        command.args(["--listen", "127.0.0.1:0"]);
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address =
            line.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("`{line}`")).to_owned();
        Served { child, address }
    }

    /// Time of the processor that it has taken.
    pub(crate) fn taken(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        // User and system, in hundredths of a second.
        let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum();
        Duration::from_millis(10 * ticks)
    }

    /// Asks it to end and waits.
    pub(crate) fn end(mut self, signal: &str) -> Option<i32> {
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

/// A file of `[ids.len() / width, width]` int64.
pub(crate) fn write_ids(path: &Path, ids: &[u64], width: usize) {
    let shape = format!("({}, {width})", ids.len() / width);
    let header = format!("{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}");
    let body = ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>();
    let length = (header.len() as u16).to_le_bytes();
    std::fs::write(path, [npy::MAGIC, &[1, 0], &length, header.as_bytes(), &body].concat()).unwrap();
}
