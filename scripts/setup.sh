#!/usr/bin/env bash
# Installs what a bare Debian or Ubuntu lacks to build viscache: a C and C++ compiler, and libclang for bindgen.
# Further programs can be named, with their packages where these are called otherwise. Does nothing, and needs no rights,
# where all of it is there.
# Use:  scripts/setup.sh [PROGRAM[=PACKAGE]…]
set -euo pipefail

missing=()
command -v cc >/dev/null && command -v c++ >/dev/null && command -v ar >/dev/null || missing+=(build-essential)
# bindgen loads libclang and reads the headers that Debian ships with it.
compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null || [ -n "${LIBCLANG_PATH:-}" ] || missing+=(libclang-dev)
for program in "$@"; do
    command -v "${program%%=*}" >/dev/null || missing+=("${program#*=}")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null; then
    echo "please install what Debian calls: ${missing[*]} (a C++20 compiler, libclang), then run this again" >&2
    exit 1
fi
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo)
echo "installing ${missing[*]}" >&2
"${as_root[@]}" apt-get update -qq
DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
