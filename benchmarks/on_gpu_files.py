"""The files in a folder of results: JSON and CSV that are whole at any moment, and one log; none above 16 MiB."""

import csv
import io
import json
import os
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

LIMIT = 16 * 2**20  # bytes a file
KEPT_OUTPUT = 2 * 2**20  # bytes of each end of what a step printed

ROOT = Path(__file__).resolve().parents[1]
# By its path: the package itself would want torch and the extension, which may not be built yet.
files = runpy.run_path(str(ROOT / "minigpt_ext" / "data" / "files.py"))


def write(path: Path, text: str) -> None:
    """Raises ValueError where the text is too long for a file of results."""
    content = without_own_paths(text).encode()
    if len(content) > LIMIT:
        raise ValueError(f"{path.name} would be larger than {LIMIT >> 20} MiB")
    files["write_atomically"](path, content)


def without_own_paths(text: str) -> str:
    """Where this checkout and this Python lie says nothing to a reader elsewhere."""
    return text.replace(sys.executable, "python").replace(f"{ROOT}/", "").replace(str(ROOT), ".")


def read_json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write(path, json.dumps(content, indent=1) + "\n")


def put_result(path: Path, facts: Mapping[str, Any], step: str, result: Mapping[str, Any]) -> None:
    """Puts a step's result in the place of the one that it had: an entry of "steps", or in a .csv the rows it names."""
    if path.suffix == ".csv":
        return put_rows(path, step, result["rows"])
    content = read_json(path) or {"format": f"minigpt-on-gpu-{path.stem}", "version": 1, **facts, "steps": {}}
    content["steps"][step] = result
    write_json(path, content)


def put_rows(path: Path, step: str, rows: list[dict[str, str]]) -> None:
    """The same for a table, whose first column names the step."""
    before = list(csv.DictReader(io.StringIO(path.read_text()))) if path.exists() else []
    table = [row for row in before if row["step"] != step] + [{"step": step} | row for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in table for name in row)), restval="")
    writer.writeheader()
    writer.writerows(table)
    write(path, text.getvalue())


def both_ends(output: IO[bytes]) -> str:
    """What was printed; of very much the beginning and the end."""
    size = output.seek(0, os.SEEK_END)
    output.seek(0)
    if size <= 2 * KEPT_OUTPUT:
        return output.read().decode(errors="replace")
    head = output.read(KEPT_OUTPUT)
    output.seek(size - KEPT_OUTPUT)
    return cut(head, size - 2 * KEPT_OUTPUT, output.read()).decode(errors="replace")


def append_to_log(path: Path, text: str) -> None:
    """At the end of the log; one that grows too long loses its middle."""
    with path.open("ab") as log:
        log.write(without_own_paths(text).encode())
    content = path.read_bytes()
    if len(content) > LIMIT:
        end = LIMIT // 2 - 200  # room for the line that says so
        files["write_atomically"](path, cut(content[:end], len(content) - 2 * end, content[-end:]))


def cut(head: bytes, left_out: int, tail: bytes) -> bytes:
    return head + f"\n[... {left_out:,} bytes left out here ...]\n".encode() + tail
