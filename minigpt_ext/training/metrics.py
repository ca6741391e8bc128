"""metrics.jsonl: a row a step, as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from minigpt_ext.training.checkpoint import CheckpointError


@dataclass(frozen=True)
class Row:
    """What is known of a step. Losses are in nats a token; None where nothing was measured.

    Attributes:
        step: updates made; 0 is the model as it was drawn.
        train_loss: of the step's batch, before its update.
        val_loss: mean over the validation windows, after the update.
        lr: of the update.
        grad_norm: before clipping.
        tokens_per_second: of this step, evaluation and saving left out.
        elapsed_s: since the run began, its interruptions left out.
    """

    step: int
    train_loss: float | None
    val_loss: float | None
    lr: float | None
    grad_norm: float | None
    tokens_per_second: float | None
    elapsed_s: float


class MetricsLog:
    """Appends rows to a file that can be taken back to an earlier length. A context manager.

    Args:
        path: the file.
        length: bytes to keep of what is there: the rest was written after the state a run resumes from.

    Raises CheckpointError, from any method, where the file is shorter than `length` or cannot be written.
    """

    def __init__(self, path: Path, length: int):
        self._path = path
        with self._errors_named():
            self._file = open(path, "ab", buffering=0)
            found = self._file.tell()
            self._file.truncate(min(length, found))
        if found < length:
            self._file.close()
            raise CheckpointError(f"{path} has {found} bytes, but {length} when the run was saved: rows are missing")

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def write(self, row: Row) -> None:
        line = json.dumps(asdict(row)).encode() + b"\n"
        with self._errors_named():
            while line:
                line = line[self._file.write(line) :]

    def sync(self) -> int:
        """Bring every row to the disk; returns the length in bytes."""
        with self._errors_named():
            os.fsync(self._file.fileno())
            return os.fstat(self._file.fileno()).st_size

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(f"cannot write {self._path}: {error.strerror or error}") from error


def read_metrics(path: str | Path) -> list[Row]:
    """The rows of a run, in the order written. A last line that a kill cut short is left out."""
    lines = Path(path).read_bytes().splitlines(keepends=True)
    return [Row(**json.loads(line)) for line in lines if line.endswith(b"\n")]
