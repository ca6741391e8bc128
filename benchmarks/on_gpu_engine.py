"""Steps that are bounded in time, stages made of them, and what is kept so that a later call goes on where one stopped.

A folder of results holds summary.json (what ran, how it ended), log.txt (what it printed) and a file of results for
each kind of stage. All but the log are whole at any moment, so a kill costs the step that was running and nothing else.
"""

import os
import shlex
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import on_gpu_files
from on_gpu_files import ROOT

KILL_AFTER = 15  # seconds between the interrupt, at which pytest still writes its report, and the kill
OUTPUT_LIMIT = 64 * 2**20  # bytes a step may print
MARK = "MINIGPT_ON_GPU_STEP"  # in the environment of a step's processes, whatever session or group they move to
FINISHED = ("passed", "failed", "timed out")


@dataclass(frozen=True)
class Step:
    """One command. It passes if it exits with 0 and `collect` finds its result.

    seconds: its bound. collect: from what it printed to what is kept, ready for JSON; an entry "told" is also printed.
    It is asked whatever the exit code, and raises ValueError where there is no result.
    """

    name: str
    command: Sequence[str]
    seconds: int
    environment: Mapping[str, str] = field(default_factory=dict)
    collect: Callable[[str], Mapping[str, Any]] | None = None

    @property
    def bounded(self) -> list[str]:
        return ["timeout", "--signal=INT", f"--kill-after={KILL_AFTER}", str(self.seconds), *self.command]

    def __str__(self) -> str:
        """As a person would type it."""
        return shlex.join([*(["env"] if self.environment else []), *assignments(self.environment), *self.bounded])


@dataclass(frozen=True)
class Stage:
    """Steps that answer one question. file: where their results go; into summary.json if None.

    skip: why it cannot run here, None where it can. whole: its steps need each other's traces on this machine, so a
    stage that was cut off begins anew. extension: it needs the built one. gone: what it made is no longer there.
    """

    name: str
    steps: Sequence[Step]
    file: str | None = None
    skip: str | None = None
    whole: bool = False
    extension: bool = True
    gone: bool = False


def assignments(environment: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in environment.items()]


class Stopped(BaseException):
    """A signal asked this program to end."""


@dataclass(frozen=True)
class Ending:
    """How a command ended. problem: why it failed beside its exit code."""

    exit_code: int | None  # None: it cannot be killed, as where a driver hangs
    seconds: float
    timed_out: bool
    problem: str | None
    output: str


def run_bounded(step: Step, mark: str) -> Ending:
    """Runs a step from the repository's root, and leaves none of its processes behind, however it ends.

    mark: tells them from all others. A step of a step carries both marks.
    """
    with tempfile.TemporaryFile() as output:
        began, problem = time.monotonic(), None
        environment = os.environ | dict(step.environment) | {MARK: os.environ.get(MARK, "") + mark}
        process = subprocess.Popen(
            step.bounded, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            bound = began + step.seconds + KILL_AFTER + 5  # `timeout` itself waits for what cannot be killed
            while process.poll() is None and problem is None and time.monotonic() < bound:
                time.sleep(0.05)
                if os.fstat(output.fileno()).st_size > OUTPUT_LIMIT:
                    problem = f"it printed more than {OUTPUT_LIMIT >> 20} MiB"
            seconds = time.monotonic() - began
        finally:
            end_processes(mark)
            code = process.poll()
        timed_out = problem is None and seconds >= step.seconds and code in (None, 124, 137, -signal.SIGKILL)
        return Ending(code, seconds, timed_out, problem, on_gpu_files.both_ends(output))


def end_processes(mark: str) -> None:
    """Kills every process that carries the mark; gives up on one that the kernel does not let go within 10 s."""
    until = time.monotonic() + 10
    while (found := marked_processes(mark)) and time.monotonic() < until:
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it has ended by itself
        time.sleep(0.05)


def marked_processes(mark: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # another user's, or it has ended
        if any(entry.startswith(MARK.encode()) and mark.encode() in entry for entry in environment):
            found.append(int(folder.name))
    return found


class Run:
    """One call of the command: runs stages, and keeps what came of them in `out`.

    facts: what every result is of (commit, sources); goes to the head of each file.
    """

    def __init__(self, out: Path, facts: Mapping[str, Any]) -> None:
        self.out, self.facts = out, facts
        self.deadline: float | None = None  # when (time.monotonic) no step may run any more
        self.ran_any = False  # under the deadline
        self.summary = {"format": "minigpt-on-gpu", "version": 1, **facts, "machine": {}, "stages": {}}
        if kept := on_gpu_files.read_json(out / "summary.json"):
            self.summary |= {name: kept[name] for name in ("machine", "stages")}
        for stage in self.summary["stages"].values():
            for step in stage["steps"].values():
                if step["status"] == "running":  # the call before was killed
                    end_processes(step.pop("mark"))
                    step["status"] = "cut off"

    def status(self, name: str) -> str | None:
        return self.summary["stages"].get(name, {}).get("status")

    def save(self) -> None:
        on_gpu_files.write_json(self.out / "summary.json", self.summary)

    def run(self, stage: Stage, again: bool = False) -> None:
        """Runs the steps of a stage that have not finished before; all of them if `again`."""
        kept = self.summary["stages"].setdefault(stage.name, {"steps": {}})
        finished = [step.name for step in stage.steps if kept["steps"].get(step.name, {}).get("status") in FINISHED]
        if again or stage.gone or (stage.whole and len(finished) < len(stage.steps)):
            finished = []
        broken = stage.extension and self.status("build") not in (None, "passed")
        reason = stage.skip or ("the extension was not built" if broken else None)
        if reason and len(finished) < len(stage.steps):
            kept.update(status="skipped", reason=reason)
            self.save()
            print(f"{stage.name}: skipped: {reason}", flush=True)
            return
        kept.pop("reason", None)
        kept["steps"] = {name: kept["steps"][name] for name in finished}
        for step in stage.steps:
            if step.name in finished:
                continue
            if not self.has_time_for(step):
                break
            self.run_step(stage, step, kept["steps"])
        kept.update(verdict(stage, kept["steps"]))
        self.save()
        before = " (before)" if len(finished) == len(stage.steps) else ""
        print(f"{stage.name}: {kept['status']}{before}, {kept['seconds']:.0f} s", flush=True)

    def has_time_for(self, step: Step) -> bool:
        """A step whose time would be cut below a quarter of its bound waits for the next call."""
        return self.deadline is None or not self.ran_any or self.time_left() >= step.seconds / 4

    def time_left(self) -> float:
        return float("inf") if self.deadline is None else self.deadline - time.monotonic()

    def run_step(self, stage: Stage, step: Step, kept: dict[str, Any]) -> None:
        seconds = max(1, int(min(step.seconds, self.time_left())))
        # Cut off, it is run again; unless it had a whole call for itself, where another would end the same way.
        may_go_on = seconds < step.seconds and self.ran_any
        self.ran_any |= self.deadline is not None
        step = replace(step, seconds=seconds)
        mark = uuid.uuid4().hex
        record = {"command": str(step), "date": now()}
        kept[step.name] = record | {"status": "running", "mark": mark}
        self.save()
        try:
            ending = run_bounded(step, mark)
        except Stopped:
            kept[step.name] = record | {"status": "cut off"}
            self.save()
            raise
        record = kept[step.name] = record | self.outcome(stage, step, ending, may_go_on)
        name = f"{stage.name} / {step.name}"
        on_gpu_files.append_to_log(
            self.out / "log.txt",
            f"\n=== {name}\n{record['date']} $ {step}\n{ending.output}\n=== {name}: {told(record)}\n",
        )
        self.save()
        print(f"  {name}: {told(record)}", flush=True)
        if record["status"] == "failed":
            print("\n".join(f"    | {line[:200]}" for line in ending.output.strip().splitlines()[-6:]), flush=True)

    def outcome(self, stage: Stage, step: Step, ending: Ending, may_go_on: bool) -> dict[str, Any]:
        """The record of a step that ended; its result is kept first."""
        record: dict[str, Any] = {"exit_code": ending.exit_code, "seconds": round(ending.seconds, 1)}
        if ending.timed_out and may_go_on:
            return record | {"status": "cut off", "reason": "this call's time was over"}
        problem = ending.problem or (f"exit code {ending.exit_code}" if ending.exit_code else None)
        if step.collect is not None:
            try:
                result = step.collect(ending.output)
                record |= {"told": result["told"]} if "told" in result else {}
                if stage.file is None:
                    record["result"] = result
                else:
                    on_gpu_files.put_result(self.out / stage.file, self.facts, step.name, result)
            except Exception as error:  # whatever it is, it must not cost the steps that follow
                reason = str(error) if isinstance(error, ValueError) else f"its result cannot be read: {error!r}"
                problem = f"{problem}; {reason}" if problem else reason
        if ending.timed_out:
            return record | {"status": "timed out", "reason": f"it had not ended after {step.seconds} s"}
        return record | ({"status": "failed", "reason": problem} if problem else {"status": "passed"})


def verdict(stage: Stage, steps: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    statuses = [steps.get(step.name, {}).get("status", "not run") for step in stage.steps]
    unfinished = [status for status in statuses if status not in FINISHED]
    worst = next((status for status in ("failed", "timed out") if status in statuses), "passed")
    seconds = round(sum(step.get("seconds", 0) for step in steps.values()), 1)
    return {"status": "not finished" if unfinished else worst, "seconds": seconds}


def told(record: Mapping[str, Any]) -> str:
    parts = [f"{record['status']}, {record['seconds']:.0f} s", record.get("reason"), record.get("told")]
    return "; ".join(filter(None, parts))


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
