//! The folder of the programs under test.

#![allow(dead_code, reason = "every test crate uses a part of this")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The folder of `viscache` and `index-builder`, which is built where it is not there: cargo builds the programs of the package
/// that it tests.
pub fn programs() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_BIN_EXE_viscache")).parent().unwrap();
        if !folder.join("index-builder").is_file() {
            let profile = match folder.file_name().unwrap().to_str().unwrap() {
                "debug" => "dev",
                profile => profile,
            };
            let built = Command::new(env!("CARGO"))
                .args(["build", "--locked", "-p", "index-builder", "--profile", profile, "--target-dir"])
                .arg(folder.parent().unwrap())
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .status();
            assert!(built.unwrap().success(), "index-builder is built");
        }
        folder.to_owned()
    })
}
