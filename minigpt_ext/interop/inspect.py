"""What a checkpoint holds, and what becomes of it here: read from headers and the config, no tensor is touched."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .checkpoint import INDEX, WEIGHTS, Checkpoint
from .families import FAMILIES, family_of, read_config
from .plan import make_plan
from .safetensors_header import TensorInfo

# What a checkpoint without a config calls its constants.
_CONSTANTS = {
    re.compile(r"(?:.*\.)?" + re.escape(name).replace(r"\{n\}", r"\d+")): why
    for family in FAMILIES.values()
    for name, why in family.skipped.items()
}


@dataclass
class Inspection:
    """A checkpoint as people and programs want it told.

    Args:
        path: what was inspected.
        files: name, bytes and number of tensors of each file of weights.
        tensors: what the headers say, by name; in the order of our parameters where it is known, else in the files'.
        file_of: the name of the file each tensor lies in.
        metadata: the files' own notes.
        family: "gpt2", "llama", "minigpt", or None where no config tells.
        model_type: what the config calls the model within its family: "qwen3" is of the family "llama".
        config: the fields of the model's GPTConfig, or None.
        becomes: by name, the place in our model, or in brackets why there is none; empty without a config.
        constants: by name, why a tensor is no parameter: masks and tables that follow from the config, a tied head.
        problems: what stands against loading the checkpoint, a phrase each.
    """

    path: Path
    files: list[tuple[str, int, int]]
    tensors: dict[str, TensorInfo]
    file_of: dict[str, str]
    metadata: dict[str, str]
    family: str | None = None
    model_type: str | None = None
    config: dict[str, Any] | None = None
    becomes: dict[str, str] = field(default_factory=dict)
    constants: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def num_parameters(self) -> int:
        return sum(info.numel for name, info in self.tensors.items() if name not in self.constants)

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        tensors = [
            {
                "name": name,
                "dtype": info.dtype,
                "shape": list(info.shape),
                "bytes": info.nbytes,
                "file": self.file_of[name],
                "data_offsets": [info.begin, info.end],
                "becomes": self.becomes.get(name),
                "constant": self.constants.get(name),
            }
            for name, info in self.tensors.items()
        ]
        return {
            "path": str(self.path),
            "family": self.family,
            "model_type": self.model_type,
            "config": self.config,
            "files": [dict(zip(("name", "bytes", "tensors"), file, strict=True)) for file in self.files],
            "metadata": self.metadata,
            "tensors": tensors,
            "parameters": self.num_parameters,
            "bytes": sum(info.nbytes for info in self.tensors.values()),
            "problems": self.problems,
        }


def inspect(path: Path) -> Inspection:
    """Look at the weights at `path`: a run directory, a Hugging Face directory, a safetensors file, an index of shards.

    A `config.json` that is missing, or of a model this package has not, is told among the problems; weights are needed.

    Raises:
        ValueError: there are no weights, or a file of them is malformed.
        OSError: there is no such path, or it cannot be read.
    """
    with Checkpoint.open(path) as checkpoint:
        folder = path if path.is_dir() else path.parent
        found = Inspection(
            path=path,
            files=[(str(file.path.relative_to(folder)), file.size, len(file.names)) for file in checkpoint.files],
            tensors={name: checkpoint.info(name) for name in checkpoint.names},
            file_of={name: str(checkpoint.file_of(name).path.relative_to(folder)) for name in checkpoint.names},
            metadata={key: value for file in checkpoint.files for key, value in file.metadata.items()},
        )
        # Beside a config there may lie other files than its model's, as what a run needs to be resumed.
        if path.is_dir() or (path.name in (WEIGHTS, INDEX) and (folder / "config.json").exists()):
            _read_plan(found, folder, checkpoint)
    if not found.becomes:
        found.constants = {
            name: why for name in found.tensors for key, why in _CONSTANTS.items() if key.fullmatch(name)
        }
    return found


def _read_plan(found: Inspection, folder: Path, checkpoint: Checkpoint) -> None:
    try:
        values = read_config(folder)
    except (ValueError, FileNotFoundError) as error:
        found.problems = [str(error)]
        return
    try:
        family = family_of(values)
        found.family = family.name
        found.model_type = values.get("model_type", family.name)
        config = family.config_of(values)
        found.config = config.to_dict()
        plan = make_plan(checkpoint, family, config)
    except ValueError as error:
        found.problems = [f"{folder / 'config.json'}: {error}"]
        return
    found.becomes, found.constants, found.problems = plan.becomes(), plan.skipped, plan.wrong
    if plan.copies:
        ours = {part.ours: place for place, part in enumerate(family.parts(config))}
        order = {name: (ours[part.ours], part.begin) for name, part in plan.copies}
        found.tensors = dict(sorted(found.tensors.items(), key=lambda item: order.get(item[0], (len(ours), 0))))
