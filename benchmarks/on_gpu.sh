#!/usr/bin/env bash
# Everything that a machine with a GPU should answer, in one command: benchmarks/on_gpu.sh --out DIR
# Finds a Python 3.10 or later that has torch ($PYTHON goes first); on_gpu.py does the rest, and has --help.
set -euo pipefail
folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
usable='import importlib.util, sys; sys.exit(sys.version_info < (3, 10) or importlib.util.find_spec("torch") is None)'

for python in ${PYTHON:+"$PYTHON"} python3 python; do
  if command -v "$python" >/dev/null && "$python" -c "$usable" 2>/dev/null; then
    exec "$python" "$folder/on_gpu.py" "$@"
  fi
done
echo "error: no Python 3.10 or later that has torch was found as ${PYTHON:+$PYTHON, }python3 or python; name one in PYTHON" >&2
exit 2
