#!/usr/bin/env bash
# Checks what it takes to build viscache, and installs what a bare Debian or Ubuntu lacks of it.
#
# Every need is tried out, because a file of the right name proves nothing: Rust says its version, a program of C++20 is
# compiled and linked, and the library that bindgen will load reads a header (scripts/libclang.c). Rust is never installed
# from here: it belongs to whoever works on this machine. Does nothing, and needs no rights, where all of it is there.
# Further programs can be named, with their packages where these are called otherwise.
# Use:  scripts/setup.sh [PROGRAM[=PACKAGE]…]
#       VISCACHE_SETUP_ROOT: the folder below which /usr/lib is looked through (for tests/setup; else nothing).
set -euo pipefail
cd "$(dirname "$0")/.."

root=${VISCACHE_SETUP_ROOT:-}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Rust, of the version that Cargo.toml asks for.
rust() {
    local needed found how
    needed=$(awk -F '"' '/^rust-version/ { print $2; exit }' Cargo.toml)
    how='get it from https://rustup.rs (Debian 12 has 1.63 and Debian 13 has 1.85: too old), then run this again'
    found=$(rustc --version 2>"$scratch/rust" | awk '{ print $2 }') || found=''
    if [ -z "$found" ] || ! command -v cargo >/dev/null; then
        echo "viscache is built with Rust $needed or newer, and there is no working rustc and cargo here: $how" >&2
        sed 's/^/    /' "$scratch/rust" >&2
        return 1
    fi
    if [ "$(printf '%s\n' "$needed" "${found%%-*}" | sort -V | head -n 1)" != "$needed" ]; then
        echo "viscache is built with Rust $needed or newer, and $(command -v rustc) is $found: \`rustup update\`, or $how" >&2
        return 1
    fi
}

# A program of C++20, from source to running, and the tool that makes a library of it.
compilers() {
    printf '%s\n' '#include <atomic>' '#include <span>' '#include <string>' \
        'template <typename T> concept Sized = requires(T t) { t.size(); };' \
        'static int length(Sized auto s) { return static_cast<int>(s.size()); }' \
        'int main() { std::string text = "ab"; return length(std::span(text)) - 2; }' >"$scratch/probe.cc"
    printf 'int main(void) { return 0; }\n' >"$scratch/probe.c"
    ${CC:-cc} "$scratch/probe.c" -o "$scratch/probe-c" &&
        ${CXX:-c++} -std=c++20 "$scratch/probe.cc" -o "$scratch/probe" && "$scratch/probe" && ar --version >/dev/null
} >"$scratch/compilers" 2>&1

# The library that bindgen would load: the newest of the right name. Those of C++ (libclang-cpp) are none.
libclang() {
    local folder folders=() more prefix
    if [ -n "${LIBCLANG_PATH:-}" ]; then
        [ ! -f "$LIBCLANG_PATH" ] || { echo "$LIBCLANG_PATH" && return; }
        folders=("$LIBCLANG_PATH")
    else
        prefix=$("${LLVM_CONFIG_PATH:-llvm-config}" --prefix 2>/dev/null) && folders+=("$prefix/lib" "$prefix/lib64")
        IFS=: read -ra more <<<"${LD_LIBRARY_PATH:-}"
        folders+=(${more[@]+"${more[@]}"} "$root"/usr/local/lib{,/*,/*/*} "$root"/usr/lib{,32,64}{,/*,/*/*})
    fi
    for folder in "${folders[@]}"; do
        [ -d "$folder" ] && find -L "$folder" -maxdepth 1 \( -name 'libclang.so*' -o -name 'libclang-*.so*' \) ! -name '*-cpp.*'
    done | awk -F / '{ version = $NF; sub(/^libclang(\.so)?[-.]?/, "", version); print version "\t" $0 }' |
        sort -s -r -V -k 1,1 | head -n 1 | cut -f 2
}

# A header that bindgen can read.
bindgen() {
    local library
    library=$(libclang)
    [ -n "$library" ] || { echo 'there is no libclang.so' && return 1; }
    printf '#include <%s.h>\n' stdarg stdbool stddef stdint stdio >"$scratch/probe.h"
    ${CC:-cc} scripts/libclang.c -o "$scratch/libclang" -ldl && "$scratch/libclang" "$library" "$scratch/probe.h"
} >"$scratch/bindgen" 2>&1

lacking() {
    missing=()
    compilers || missing+=(build-essential)
    # Without a compiler it cannot be tried; a bare machine that lacks the one lacks the other.
    bindgen || missing+=(libclang-dev)
    local program
    for program in "$@"; do
        command -v "${program%%=*}" >/dev/null || missing+=("${program#*=}")
    done
    [ ${#missing[@]} -gt 0 ]
}

# What was tried and failed, for whom installing did not help.
tried() { sed 's/^/    /' "$scratch/compilers" "$scratch/bindgen" | tail -n 20 >&2; }

rust
lacking "$@" || exit 0
if ! command -v apt-get >/dev/null; then
    echo "please install what Debian calls ${missing[*]} (a compiler for C++20; libclang with its headers), then run this again. What was tried:" >&2
    tried
    exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || {
        echo "please run this as root, or install sudo:  apt-get install ${missing[*]}" >&2
        exit 1
    }
    as_root=(sudo)
fi
echo "installing ${missing[*]}" >&2
${as_root[@]+"${as_root[@]}"} apt-get -o DPkg::Lock::Timeout=600 update -qq
${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive \
    apt-get -o DPkg::Lock::Timeout=600 install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
if lacking "$@"; then
    echo "still missing after installing: ${missing[*]}. What was tried:" >&2
    tried
    exit 1
fi
