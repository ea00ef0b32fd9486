#!/usr/bin/env bash
# cargo with the RocksDB library that scripts/rocksdb.sh keeps for this machine.
set -euo pipefail
cd "$(dirname "$0")/.."
ROCKSDB_LIB_DIR=$(scripts/rocksdb.sh)
export ROCKSDB_LIB_DIR ROCKSDB_STATIC=1
exec cargo "$@"
