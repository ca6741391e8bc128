"""The folder of a run: which files it holds, and who may write to it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from minigpt_ext.data.files import write_atomically
from minigpt_ext.training.recipe import KEYS, Recipe, resolve_device

_FORMAT = "minigpt-run"
_VERSION = 1
# Settings that runs did not record before there was a choice, and what those runs did.
_LATER_KEYS: dict[str, Any] = {"model": {}, "tokenizer": "char"}


class RunDirectory:
    """Names the files of a run, and holds the folder for one process at a time.

    Nothing is written outside `claimed`.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()
        self.config = self.path / "config.json"
        self.tokenizer = self.path / "tokenizer.json"
        self.tokenizer_config = self.path / "tokenizer_config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.state = self.path / "resume.safetensors"
        self.model = self.path / "model.safetensors"
        self.plot = self.path / "loss.png"

    @property
    def files(self) -> tuple[Path, ...]:
        return self.config, self.tokenizer, self.tokenizer_config, self.metrics, self.state, self.model, self.plot

    def check_free(self) -> None:
        """Refuse a folder that holds a run which saved anything, or files of these names that no run of ours wrote.

        Raises ValueError.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"out: {self.path} is a file, not a folder")
        for saved in (self.state, self.model):
            if saved.exists():
                raise ValueError(f"out: {self.path} holds a run; go on with it by --resume, or choose another --out")
        present = [file.name for file in self.files if file.exists()]
        if present and not self._holds_config_of_ours():
            raise ValueError(f"out: {self.path} holds {', '.join(present)} of something else; choose another --out")

    def _holds_config_of_ours(self) -> bool:
        try:
            self.read_config()
        except ValueError:
            return False
        return True

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Make the folder where it is missing, and keep other processes of ours out of it.

        Raises ValueError where it cannot be made or written to, or another process trains in it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not os.access(self.path, os.W_OK):
                raise PermissionError(errno.EACCES, "the folder is not writable")
            lock = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise ValueError(f"out: cannot write to {self.path}: {error.strerror}") from error
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"out: another process is training in {self.path}") from None
            except OSError:
                pass  # a file system without locks: there nobody can be kept out
            yield
        finally:
            os.close(lock)

    def write_config(self, config: Mapping[str, Any]) -> None:
        write_atomically(self.config, json.dumps({"format": _FORMAT, "version": _VERSION, **config}, indent=2) + "\n")

    def read_config(self) -> dict[str, Any]:
        """What `write_config` wrote. Raises ValueError where this is not the folder of a run."""
        try:
            config = json.loads(self.config.read_bytes())
        except FileNotFoundError:
            raise ValueError(f"{self.path} holds no run: there is no config.json") from None
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read {self.config}: {error}") from error
        if not isinstance(config, dict) or config.get("format") != _FORMAT:
            raise ValueError(f'{self.config} is not of a run: its "format" is not "{_FORMAT}"')
        if config.get("version") != _VERSION:
            raise ValueError(f"{self.config}: version {config.get('version')!r}; this program reads {_VERSION}")
        return config


def recorded_recipe(config: Mapping[str, Any]) -> Recipe:
    """The recipe in a run's config. Raises ValueError where it is not one."""
    values, data = config.get("training"), config.get("data")
    if not isinstance(data, dict) or "sha256" not in data:
        raise ValueError('config.json: "data" does not tell the sha256 of the text')
    if isinstance(values, dict):
        values = _LATER_KEYS | values
    if not isinstance(values, dict) or set(values) != set(KEYS):
        raise ValueError("config.json: the training settings are not those of this program")
    return Recipe(**values)


def resumed_recipe(recorded: Recipe, asked: Mapping[str, Any]) -> Recipe:
    """`recorded`, with the larger `steps` that may be asked for.

    The schedule stays the recorded one: `lr_decay_iters` does not move with `steps`. `data` and `tokenizer` are not
    compared here: what they stand for is, by sha256, wherever it lies now.

    Raises ValueError naming each key asked for that differs, with both values, or a device that is not there.
    """
    asked = {key: value for key, value in asked.items() if key not in ("data", "tokenizer")}
    if "device" in asked:
        asked["device"] = resolve_device(asked["device"])
    steps = asked.pop("steps", recorded.steps)
    if steps < recorded.steps:
        raise ValueError(f"steps: the run has {recorded.steps}, and {steps} were asked for; only more can be")
    different = [
        f"{key} is {before!r} in the run and {value!r} was asked for"
        for key, value in asked.items()
        if value != (before := recorded.setting(key))
    ]
    if different:
        raise ValueError(f"a resumed run keeps its settings: {'; '.join(different)}")
    resolve_device(recorded.device)  # a run stays on the kind of device it began on
    return replace(recorded, steps=steps)
