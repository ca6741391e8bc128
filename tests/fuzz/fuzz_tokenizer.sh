#!/bin/sh
# Builds and runs the fuzzer of the tokenizer's core: tests/fuzz/fuzz_tokenizer.sh [SECONDS] [FOLDER]
# It runs for a minute by default. What it learns, and what it finds, is kept in FOLDER (build/fuzz). CLANGXX names
# a clang++ that has libFuzzer.
set -eu
cd "$(dirname "$0")/../.."
seconds=${1:-60}
folder=${2:-build/fuzz}
mkdir -p "$folder/corpus"
core=$(ls csrc/tokenizer/*.cpp | grep -v bindings.cpp)
# shellcheck disable=SC2086
${CLANGXX:-clang++} -std=c++20 -O1 -g -Icsrc -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
  tests/fuzz/fuzz_tokenizer.cpp $core -pthread -o "$folder/fuzz_tokenizer"
# Not by exec: libFuzzer limits the peak of memory, and this process's may be that of the one that started it.
"$folder/fuzz_tokenizer" -max_total_time="$seconds" -max_len=1000 -len_control=0 -timeout=20 -malloc_limit_mb=512 \
  -print_final_stats=1 -artifact_prefix="$folder/" "$folder/corpus"
