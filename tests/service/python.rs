//! The Python client of the docs, run as its first lines say, against a real server.
//!
//! `VISCACHE_PYTHON` names an interpreter with grpcio, grpcio-tools, googleapis-common-protos and numpy; without it the test is
//! skipped and says so. `.ci/run` makes one.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;
use viscache::blend::BlendParams;
use viscache::cache::RowsMode;
use viscache::flow::Limits;
use viscache::media::npy;
use viscache::types::Modality;

use crate::server::Server;
use crate::store::{self, ROWS, SCENES, encode, enhanced, mixed, scene};

async fn run(python: &OsString, folder: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(python);
    command.args(arguments).env("PYTHONPATH", folder).current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_of_the_docs_enhances_rows_and_a_text() {
    let Some(python) = std::env::var_os("VISCACHE_PYTHON") else {
        println!("    skipped: the Python client (set VISCACHE_PYTHON)");
        return;
    };
    let folder = TempDir::new().unwrap();
    let scenes = store::make_scenes(folder.path());
    store::make_rows(folder.path(), 50);
    let app = store::app(folder.path(), Some(store::encoder()), RowsMode::Ram, Limits::default());
    let server = Server::start(app).await;
    let address = server.address.to_string();

    let out = folder.path().display().to_string();
    let mut protos = vec!["-m", "grpc_tools.protoc", "-I", "proto"];
    let (python_out, grpc_out) = (format!("--python_out={out}"), format!("--grpc_python_out={out}"));
    protos.extend([python_out.as_str(), grpc_out.as_str()]);
    let files: Vec<String> =
        std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/viscache/v1"))
            .unwrap()
            .map(|file| format!("proto/viscache/v1/{}", file.unwrap().file_name().to_str().unwrap()))
            .collect();
    protos.extend(files.iter().map(String::as_str));
    run(&python, folder.path(), &protos).await;

    let query = encode(&store::encoder(), Modality::Image, &scene(900)).embedding.into_vec();
    let (queries, result) = (format!("{out}/queries.npy"), format!("{out}/enhanced.npy"));
    std::fs::write(&queries, npy::write(&[query.clone(), query.clone()].concat(), query.len())).unwrap();
    let told = run(&python, folder.path(), &["docs/client.py", &address, SCENES, &queries, &result]).await;
    assert!(told.contains("query 1: cosine") && told.contains(".png"), "{told}");
    let matrix = npy::read(&std::fs::read(&result).unwrap()).unwrap();
    let BlendParams { top_k, temperature, weight } = BlendParams::default();
    let mixture = mixed(&[(&query, 1.0)]);
    let expected = enhanced(&mixture, &scenes, top_k, temperature.into(), weight.into()).vector;
    assert_eq!((matrix.dim, matrix.values.len()), (query.len(), 2 * query.len()));
    for (found, expected) in matrix.values.iter().zip(expected.iter().cycle()) {
        assert!((f64::from(*found) - expected).abs() < 1e-6, "{found} {expected}");
    }

    let told = run(&python, folder.path(), &["docs/client.py", &address, SCENES, "a large cyan star"]).await;
    assert!(told.contains("query 0: cosine") && told.contains("enhanced (1, "), "{told}");
    let bad = run(&python, folder.path(), &["docs/client.py", &address, ROWS, &queries]).await;
    assert!(bad.contains("query 0 failed") && bad.contains("components"), "{bad}");
}
