#!/usr/bin/env bash
# Prints the folder of a static librocksdb.a of the version that Cargo.lock names, building it first if need be.
#
# RocksDB is 342 C++ files and costs some 30 CPU-minutes. Cargo would pay that once for every profile and target
# folder; kept in the user's cache folder, keyed by version and machine type, it is paid once per machine.
# Use:  export ROCKSDB_LIB_DIR="$(scripts/rocksdb.sh)" ROCKSDB_STATIC=1
set -euo pipefail
cd "$(dirname "$0")/.."

version=$(awk '/^name = "librocksdb-sys"/ { getline; gsub(/version = |"/, ""); print }' Cargo.lock)
cache="${XDG_CACHE_HOME:-$HOME/.cache}/viscache/librocksdb-$version-$(uname -m)"
if [ ! -f "$cache/librocksdb.a" ]; then
    echo "building RocksDB $version once into $cache (a quarter of an hour or more on two cores)" >&2
    mkdir -p "$cache"
    env -u ROCKSDB_LIB_DIR -u ROCKSDB_STATIC \
        cargo build --quiet --release --locked -p librocksdb-sys --target-dir "$cache/build" >&2
    built=$(find "$cache/build/release/build" -path '*/out/librocksdb.a' | head -n 1)
    mv "$built" "$cache/librocksdb.a" # last, and atomic: an interrupted build leaves no half library behind
    rm -rf "$cache/build"
fi
echo "$cache"
