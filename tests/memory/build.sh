#!/bin/sh
# Builds the memory check without torch: tests/memory/build.sh sanitizers|plain FOLDER makes FOLDER/memory_check.
# sanitizers: with ASan and UBSan (but for what ASan sees itself); plain: for valgrind. CXX names the g++, MAX_JOBS
# says how many of them run at once (2).
set -eu
kind=$1 folder=$2
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
cd "$(dirname "$0")/../.."
flags="-std=c++20 -O1 -g1 -ffp-contract=fast -Wno-psabi -Wno-ignored-attributes -DMINIGPT_CHECK_SCRATCH -Icsrc"
case $kind in
  sanitizers)
    # Checks as calls: the code is a third as large, and compiled in half the time.
    flags="$flags -fsanitize=address,undefined -fno-sanitize=null,object-size,pointer-overflow,vptr"
    flags="$flags -fno-sanitize-recover=all -fno-omit-frame-pointer"
    flags="$flags --param asan-instrumentation-with-call-threshold=0" ;;
  plain) ;;
  *) echo "build.sh: the first argument is sanitizers or plain, not $kind" >&2; exit 2 ;;
esac
export flags folder
# shellcheck disable=SC2016
printf '%s\n' csrc/*/*_cpu.cpp csrc/common/simd.cpp csrc/decoder/*.cpp tests/memory/*.cpp | grep -v bindings.cpp |
  xargs -P "${MAX_JOBS:-2}" -I {} sh -c '${CXX:-g++} $flags -c {} -o "$folder/$(echo {} | tr / _).o"'
# shellcheck disable=SC2086
${CXX:-g++} $flags "$folder"/*.o -pthread -o "$folder/memory_check"
