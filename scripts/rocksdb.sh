#!/usr/bin/env bash
# Prints the folder of a static librocksdb.a of the version that Cargo.lock names, building it first if need be.
#
# Cargo compiles RocksDB's 342 C++ files one by one, and anew for every profile and target folder: half an hour of CPU
# each time, nearly all of it spent on the same headers. Here they are put together into eight files (what RocksDB's
# own `make unity` does with one) and the library is kept for this user: docs/building.md has what that costs.
#
# A folder belongs to one version, compiler, C library and set of flags. Runs at the same time wait for one another;
# one that was killed is taken up where it was.
# Use:  export ROCKSDB_LIB_DIR="$(scripts/rocksdb.sh)" ROCKSDB_STATIC=1
set -euo pipefail
cd "$(dirname "$0")/.."

cxx=${CXX:-c++}
flags=(-std=c++20 -O2 -fPIC -ffunction-sections -fdata-sections -w -DNDEBUG -include cstdint
    -DLZ4=1 -DZSTD=1 -DHAVE_ALIGNED_NEW -DHAVE_UINT128_EXTENSION -DOS_LINUX -DROCKSDB_PLATFORM_POSIX
    -DROCKSDB_LIB_IO_POSIX -DROCKSDB_SCHED_GETCPU_PRESENT -DROCKSDB_AUXV_GETAUXVAL_PRESENT
    -DROCKSDB_FALLOCATE_PRESENT -DROCKSDB_RANGESYNC_PRESENT)
# Checksums of blocks take the processor's own instructions where it has them.
has() { grep -m 1 -E '^(flags|Features)' /proc/cpuinfo | grep -qw "$1"; }
case $(uname -m) in
    x86_64)
        has sse4_2 && flags+=(-msse4.2)
        has pclmulqdq && flags+=(-mpclmul)
        ;;
    aarch64) has crc32 && has aes && has pmull && flags+=(-march=armv8-a+crc+aes+crypto) ;;
esac

version=$(awk '/^name = "librocksdb-sys"/ { getline; gsub(/version = |"/, ""); print }' Cargo.lock)
key=$({ $cxx --version && getconf GNU_LIBC_VERSION 2>&1 && echo "${flags[*]}"; } | cksum | cut -d ' ' -f 1)
kept="${XDG_CACHE_HOME:-$HOME/.cache}/viscache/rocksdb-$version-$(uname -m)-$key"
mkdir -p "$kept"

# The folder of a crate's sources, wherever cargo keeps them.
sources() { grep -oE "\"manifest_path\":\"[^\"]*/$1-[0-9][^\"/]*/Cargo.toml\"" <<<"$metadata" | head -n 1 | sed 's/.*:"//; s|/Cargo.toml"$||'; }

build() {
    local metadata rocksdb lz4 zstd unit parallel memory_mib start=$SECONDS
    metadata=$(cargo metadata --locked --format-version 1)
    rocksdb=$(sources librocksdb-sys) lz4=$(sources lz4-sys) zstd=$(sources zstd-sys)
    : "${rocksdb:?cargo metadata names no sources of librocksdb-sys}" "${lz4:?…of lz4-sys}" "${zstd:?…of zstd-sys}"
    flags+=(-I"$rocksdb/rocksdb/include" -I"$rocksdb/rocksdb" -I"$rocksdb" -I"$lz4/liblz4/lib" -I"$zstd/zstd/lib")

    # Neighbours in RocksDB's list share most headers, so each unit is a run of it.
    rm -f "$kept"/unit-*.cc
    { grep -v '^util/build_version.cc$' "$rocksdb/rocksdb_lib_sources.txt" | sed "s|^ *|$rocksdb/rocksdb/|" && echo "$rocksdb/build_version.cc"; } |
        awk -v kept="$kept" -v units=8 '{ files[NR] = $0 } END { for (i = 1; i <= NR; i++)
            printf "#include \"%s\"\n", files[i] > sprintf("%s/unit-%d.cc", kept, (i - 1) * units / NR) }'

    # A unit takes up to 2.1 GB.
    memory_mib=$(awk '/^MemAvailable/ { print int($2 / 1024) }' /proc/meminfo)
    parallel=$((memory_mib / 2048 < $(nproc) ? memory_mib / 2048 : $(nproc)))
    echo "RocksDB $version is built once for this machine, into $kept (5 minutes on two cores)" >&2
    export cxx
    # shellcheck disable=SC2016 # the inner shell expands these
    printf '%s\0' "$kept"/unit-*.cc | xargs -0 -n 1 -P "$((parallel < 1 ? 1 : parallel))" sh -c '
        for unit; do :; done # the last argument
        object=${unit%.cc}.o
        [ -f "$object" ] && exit 0
        $cxx "$@" -o "$object.part" && mv "$object.part" "$object" && echo "  compiled ${unit##*/}" >&2' sh "${flags[@]}" -c
    rm -f "$kept/librocksdb.part"
    ar cr "$kept/librocksdb.part" "$kept"/unit-*.o
    mv "$kept/librocksdb.part" "$kept/librocksdb.a" # last, and atomic: an interrupted build leaves no half library behind
    rm -f "$kept"/unit-*
    echo "RocksDB took $((SECONDS - start)) s" >&2
}

if [ ! -f "$kept/librocksdb.a" ]; then
    exec 9>"$kept/lock"
    flock 9
    [ -f "$kept/librocksdb.a" ] || build
fi
echo "$kept"
