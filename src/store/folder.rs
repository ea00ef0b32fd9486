//! The folder of a store, and the one where a follower keeps its own log.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;

use tempfile::TempDir;

/// Makes a folder, those that it is in, and their names on disk: RocksDB syncs what is inside of its folder, and a power cut could
/// leave all of that without a name.
///
/// # Errors
/// As the system has them.
pub(super) fn make(path: &Path) -> std::io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    make(parent)?;
    match fs::create_dir(path) {
        // Another process was quicker.
        Err(problem) if problem.kind() == ErrorKind::AlreadyExists && path.is_dir() => {}
        made => made?,
    }
    File::open(parent)?.sync_all()
}

/// A follower's folder, of a name that nobody can foresee; those of processes that were killed are swept away on the way.
///
/// # Errors
/// Where the system's temporary folder cannot be written.
pub(super) fn scratch() -> std::io::Result<TempDir> {
    const PREFIX: &str = "viscache-follower-";
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        let gone =
            |id: u32| Path::new("/proc/self").exists() && !Path::new("/proc").join(id.to_string()).exists();
        if process.is_some_and(gone) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    tempfile::Builder::new().prefix(&format!("{PREFIX}{}-", std::process::id())).tempdir()
}
