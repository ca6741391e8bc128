"""The parent's side of `chat_worker`: starts the process when it is first needed, and tells how a template failed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path

SECONDS = 3.0  # of processor time a rendering may take; templates in use take milliseconds
MEMORY = 512 * 2**20  # bytes of address space for the process; Jinja itself takes 30 MB

_WORKER = Path(__file__).with_name("chat_worker.py")


class ChatProcess:
    """A process that renders templates; it is there from the first rendering on, and anew after one that ended it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None
        self._owner = 0  # the process id of who started it: a forked child must not write into the same pipe
        self._lock = threading.Lock()

    def render(self, request: str) -> str:
        """The text of a request: {"template", "variables"} as JSON, in a line. Raises ValueError where it fails."""
        with self._lock:
            process = self._running()
            try:
                process.stdin.write(request + "\n")
                process.stdin.flush()
                reply = process.stdout.readline()
            except BrokenPipeError:
                reply = ""
            except BaseException:  # interrupted between question and answer: the next answer would be of this question
                self._stop()
                raise
            if not reply:
                self._process = None
                raise ValueError(f"the chat template failed: {_ending(process.wait())}")
        answer = json.loads(reply)
        if "error" in answer:
            raise ValueError(f"the chat template failed: {answer['error']}")
        return answer["text"]

    def _running(self) -> subprocess.Popen:
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            command = [sys.executable, "-I", str(_WORKER), json.dumps(sys.path), str(SECONDS), str(MEMORY)]
            pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            process = subprocess.Popen(command, **pipes, encoding="utf-8")
            ready = json.loads(process.stdout.readline() or '{"error": "the process for them did not start"}')
            if "error" in ready:
                raise RuntimeError(ready["error"])
            self._process, self._owner = process, os.getpid()
            weakref.finalize(self, _end, process)
        return self._process

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            _end(self._process)
            self._process = None


def _end(process: subprocess.Popen) -> None:
    process.stdin.close()
    process.stdout.close()
    process.wait()


def _ending(status: int) -> str:
    if status == -signal.SIGPROF:
        return f"it did not finish within {SECONDS:g} s of processor time"
    return f"it brought down the process it ran in, with status {status}"
