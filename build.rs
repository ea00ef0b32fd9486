//! Turns `proto/` into Rust and into the descriptor set that reflection serves, without `protoc`.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-env-changed=ROCKSDB_LIB_DIR");
    if std::env::var_os("ROCKSDB_LIB_DIR").is_none() {
        println!(
            "cargo::warning=RocksDB is compiled file by file, which takes half an hour of CPU, for this profile alone. \
             `scripts/cargo.sh` in place of `cargo` takes 7 minutes of it, once for this machine (docs/building.md)."
        );
    }
    let files =
        ["types", "cache", "embed", "generate", "admin"].map(|name| format!("viscache/v1/{name}.proto"));
    println!("cargo::rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true).open_files(&files)?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptor.bin"), compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure()
        .bytes(".viscache")
        .codec_path("crate::serve::codec::Counted")
        .extern_path(".google.rpc.Status", "::tonic_types::pb::Status")
        .compile_fds(compiler.file_descriptor_set())?;
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() {
        compile_passes(&out)?;
    }
    Ok(())
}

/// The models' own passes for CUDA, as PTX that the driver finishes for the card at hand (Ampere or newer).
fn compile_passes(out: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
    const SOURCE: &str = "src/models/cuda/passes.cu";
    println!("cargo::rerun-if-changed={SOURCE}");
    for variable in ["NVCC", "CUDA_HOME"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let nvcc = std::env::var_os("NVCC").map(PathBuf::from);
    let nvcc = nvcc.or_else(|| Some(PathBuf::from(std::env::var_os("CUDA_HOME")?).join("bin/nvcc")));
    let nvcc = nvcc.unwrap_or_else(|| "nvcc".into());
    let status = std::process::Command::new(&nvcc)
        .args(["-ptx", "-O3", "-std=c++17", "-arch=compute_80", SOURCE, "-o"])
        .arg(out.join("passes.ptx"))
        .status()
        .map_err(|e| format!("cannot run {}: {e}; name the compiler by NVCC or CUDA_HOME", nvcc.display()))?;
    if !status.success() {
        return Err(format!("{} does not compile {SOURCE}", nvcc.display()).into());
    }
    Ok(())
}
