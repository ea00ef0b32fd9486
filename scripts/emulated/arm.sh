#!/usr/bin/env bash
# Runs the kernels for 64-bit Arm under an emulator, on processors with `dotprod` and without it, and fails where a path
# differs from the scalar one. Needs a Rust with the standard library for Arm (rustup: `rustup target add
# aarch64-unknown-linux-gnu`; Debian: rustc, cargo, libstd-rust-dev:arm64), gcc-aarch64-linux-gnu and qemu-user-static.
set -euo pipefail
cd "$(dirname "$0")/../.."

target=aarch64-unknown-linux-gnu
export CARGO_TARGET_DIR=$PWD/target/emulated
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
# Static, so that the emulator needs no libraries of the other machine.
RUSTFLAGS=-Ctarget-feature=+crt-static cargo build --quiet --locked --target $target --manifest-path scripts/emulated/Cargo.toml
for processor in cortex-a53 neoverse-n1 max; do
    echo "$processor: $(qemu-aarch64-static -cpu $processor "$CARGO_TARGET_DIR/$target/debug/kernels-alone" "$@")"
done
