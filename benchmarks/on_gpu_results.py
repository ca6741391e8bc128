"""From what a step printed or wrote to what is kept of it. Each raises ValueError where there is no result."""

import csv
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

LONGEST_MESSAGE, MOST_FAILURES, MOST_LINES = 2000, 200, 100
NOT_KEPT = ("Process ID", "Process Name", "Host Name", "Context", "Stream")  # of ncu's columns


def last_json(text: str) -> dict[str, Any]:
    """The JSON object in the last line that holds one."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            return json.loads(line)
    raise ValueError("it printed no JSON")


def read(path: Path) -> str:
    if not path.exists():
        raise ValueError(f"it wrote no {path.name}")
    return path.read_text(errors="replace")


def pytest_report(path: Path) -> dict[str, Any]:
    """Of a JUnit file: counts, of the cases on CUDA too, failures with their messages, reasons of what was skipped."""
    try:
        cases = list(ElementTree.fromstring(read(path)).iter("testcase"))
    except ElementTree.ParseError as error:
        raise ValueError(f"{path.name} is no XML: {error}") from None
    counts = dict.fromkeys(("passed", "failed", "skipped"), 0)
    on_cuda, failures, reasons = dict(counts), [], {}
    for case in cases:
        name = f"{case.get('classname')}::{case.get('name')}"
        failure = next((each for each in case if each.tag in ("failure", "error")), None)
        skipped = case.find("skipped")
        ending = "failed" if failure is not None else "skipped" if skipped is not None else "passed"
        counts[ending] += 1
        on_cuda[ending] += "cuda" in name
        if failure is not None:
            message = f"{failure.get('message') or ''}\n{failure.text or ''}".strip()
            failures.append({"name": name, "message": message[:LONGEST_MESSAGE]})
        if skipped is not None:
            reason = skipped.get("message") or ""
            reasons[reason] = reasons.get(reason, 0) + 1
    told = f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped"
    return {
        "told": f"{told}; on CUDA {on_cuda['passed']} passed, {on_cuda['failed']} failed",
        "counts": counts,
        "on_cuda": on_cuda,
        "failures": failures[:MOST_FAILURES],
        "skipped": reasons,
    }


def sanitizer_report(text: str) -> dict[str, Any]:
    """What compute-sanitizer found: its own count, and its lines as they are."""
    lines = [line for line in text.splitlines() if line.startswith("=========")]
    errors = re.search(r"ERROR SUMMARY: (\d+) error", text)
    hazards = re.search(r"RACECHECK SUMMARY: (\d+) hazards? displayed \((\d+) errors?, (\d+) warnings?\)", text)
    if not errors and not hazards:
        raise ValueError("compute-sanitizer printed no summary")
    found, warnings = (int(hazards[2]), int(hazards[3])) if hazards else (int(errors[1]), 0)
    cases = len(re.findall(r"^small shape ", text, re.MULTILINE))
    return {
        "told": f"{found} errors, {warnings} warnings in {cases} small shapes",
        "errors": found,
        "warnings": warnings,
        "cases": cases,
        "lines": lines[:MOST_LINES],
    }


def bench_report(path: Path) -> dict[str, Any]:
    report = json.loads(read(path))
    rows = report["rows"]
    slower = sum(ratio < 1 for row in rows for ratio in row["ratios"].values())
    return {"told": f"{len(rows)} rows; slower than a peer {slower} times", **report}


def ncu_rows(path: Path) -> dict[str, Any]:
    """The table in ncu's log, without the lines in which ncu tells what it does."""
    lines = [line for line in read(path).splitlines() if line and not line.startswith("==")]
    rows = list(csv.DictReader(lines))
    if not rows or "Kernel Name" not in rows[0]:
        raise ValueError("ncu wrote no table: " + " ".join(read(path).split())[:300])
    launches = len({row["ID"] for row in rows})
    kept = [{name: value for name, value in row.items() if name not in NOT_KEPT} for row in rows]
    return {"told": f"{launches} launches, {len(rows)} figures", "rows": kept}


def training_report(path: Path) -> dict[str, Any]:
    """First and last validation loss, and the median speed of the second half of the steps, of metrics.jsonl."""
    rows = [json.loads(line) for line in read(path).splitlines()]
    losses = [(row["step"], row["val_loss"]) for row in rows if row["val_loss"] is not None]
    speeds = sorted(row["tokens_per_second"] for row in rows[len(rows) // 2 :] if row["tokens_per_second"])
    if not losses or not speeds:
        raise ValueError(f"{path.name} holds no loss and no speed")
    speed, (step, loss) = speeds[len(speeds) // 2], losses[-1]
    return {
        "told": f"{speed:,.0f} tokens/s; validation loss {loss:.4f} after {step} steps",
        "tokens_per_second": speed,
        "validation_losses": losses,
    }


def generation_report(text: str) -> dict[str, Any]:
    if not (speed := re.search(r"first token after ([\d.]+) ms, then (\d+) tokens/s", text)):
        raise ValueError("it told no speed")
    return {
        "told": f"{speed[2]} tokens/s",
        "first_token_ms": float(speed[1]),
        "tokens_per_second": int(speed[2]),
        "text": text[:LONGEST_MESSAGE],
    }


def build_report(text: str) -> dict[str, Any]:
    by = "setup.py build_ext --inplace, as pip could not" if "\npip could not" in f"\n{text}" else "pip install -e ."
    return {"told": f"by {by}", "by": by}
