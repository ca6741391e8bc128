"""The weights of a model, wherever they lie: one safetensors file, or several (shards) and an index of them."""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath, PureWindowsPath

from torch import Tensor

from .safetensors_header import TensorInfo, shown, unique_keys
from .safetensors_reader import SafetensorsFile

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_INDEX = 100_000_000  # bytes; the largest models' are a few million
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class Checkpoint:
    """The tensors of one or several safetensors files, under one interface; see `SafetensorsFile`.

    Args:
        files: the opened files, which belong to the checkpoint from then on.

    Raises:
        ValueError: two of the files hold a tensor of the same name.
    """

    def __init__(self, files: list[SafetensorsFile]) -> None:
        self.files = files
        self._home: dict[str, SafetensorsFile] = {}
        for file in files:
            for name in file.names:
                if name in self._home:
                    raise ValueError(
                        f"{file.path}: tensor {shown(name)} is also in {self._home[name].path.name}: which of the two "
                        "is meant cannot be known"
                    )
                self._home[name] = file
        self.names = list(self._home)  #: of the tensors, file by file, in the order in which they lie there

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Checkpoint:
        """Open the weights at `path`.

        Args:
            path: a safetensors file; an index of shards (`*.index.json`); or a directory that holds
                `model.safetensors`, or `model.safetensors.index.json` and its shards. What a shard holds that the index
                does not name is there too, as in transformers.

        Raises:
            ValueError: no such weights are there, a file is malformed, or the index and its shards disagree; the
                message names the file and the tensor.
            OSError: there is no `path`, or a file may not be read.
        """
        path = Path(path)
        if path.is_dir():
            path = _weights_in(path)
        if path.name.endswith(".index.json"):
            return _open_shards(path)
        if any(path.match(pattern) for pattern in _PICKLES):
            raise ValueError(_about_pickles(path))
        return cls([SafetensorsFile(path)])

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files. Tensors taken before stay valid."""
        for file in self.files:
            file.close()

    def file_of(self, name: str) -> SafetensorsFile:
        """The file that holds the tensor `name`. Raises ValueError where there is no tensor of that name."""
        try:
            return self._home[name]
        except KeyError:
            where = self.files[0].path if len(self.files) == 1 else self.files[0].path.parent
            raise ValueError(f"{where}: there is no tensor {shown(name)}") from None

    def info(self, name: str) -> TensorInfo:
        """What the header says of the tensor `name`. Raises ValueError where there is none of that name."""
        return self.file_of(name).info(name)

    def tensor(self, name: str) -> Tensor:
        """The tensor `name`: a view of its file. See `SafetensorsFile.tensor`."""
        return self.file_of(name).tensor(name)

    def release(self, name: str) -> None:
        """Let go of the memory of the tensor `name` for now. See `SafetensorsFile.release`."""
        self.file_of(name).release(name)


def _weights_in(directory: Path) -> Path:
    """The one file to begin with. Of a single file and an index the file counts, as it does in transformers."""
    for name in (WEIGHTS, INDEX):
        if os.path.lexists(directory / name):
            return directory / name
    for pattern in _PICKLES:
        for found in sorted(directory.glob(pattern)):
            raise ValueError(_about_pickles(found))
    others = sorted(file.name for file in directory.glob("*.safetensors"))
    also = f"; it holds {', '.join(others[:4])}: name the file that is meant" if others else ""
    raise ValueError(f"{directory} holds neither {WEIGHTS} nor {INDEX}{also}")


def _about_pickles(path: Path) -> str:
    return (
        f"{path} is a pickle, which can run any program when it is loaded, and is never loaded here. Get the model's "
        "safetensors files; or convert it, where that does no harm, with transformers: "
        "AutoModelForCausalLM.from_pretrained(directory).save_pretrained(another)"
    )


def _open_shards(index: Path) -> Checkpoint:
    homes = read_index(index)
    files: dict[str, SafetensorsFile] = {}
    for name, shard in sorted(homes.items(), key=lambda home: home[1]):
        if shard not in files:
            try:
                files[shard] = SafetensorsFile(index.parent / shard)
            except FileNotFoundError:
                raise ValueError(f"{index}: the shard {shard} is not there; it is to hold {shown(name)}") from None
            except OSError as error:  # as of a name that is too long, or leads through a file
                raise ValueError(f"{index}: the shard {shown(shard)} cannot be opened: {error.strerror}") from error
    checkpoint = Checkpoint(list(files.values()))
    for name, shard in homes.items():
        if name not in files[shard]:
            raise ValueError(f"{index}: tensor {shown(name)} is not in {shard}, where the index puts it")
    return checkpoint


def read_index(index: Path) -> dict[str, str]:
    """The index's "weight_map": the shard of each tensor, by their names; every shard inside of the index's folder."""
    if not index.is_file():
        raise ValueError(f"{index} is not a file")
    if (size := index.stat().st_size) > MAX_INDEX:
        raise ValueError(f"{index}: an index of {size} bytes; {MAX_INDEX} are the limit")
    try:
        values = json.loads(index.read_bytes(), object_pairs_hook=unique_keys)
    except RecursionError:
        raise ValueError(f"{index} nests too deep for an index") from None
    except ValueError as error:
        raise ValueError(f"{index} is not JSON: {error}") from None
    homes = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(homes, dict) or not homes:
        raise ValueError(f'{index} is not an index of shards: it has no "weight_map" of tensors\' names to files')
    for name, shard in homes.items():
        if not isinstance(shard, str) or not shard.endswith(".safetensors") or not shard.isprintable():
            raise ValueError(f"{index}: tensor {shown(name)}: {shown(shard)} does not name a safetensors file")
        path = PurePosixPath(shard)
        if path.is_absolute() or ".." in path.parts or PureWindowsPath(shard).anchor or "\\" in shard:
            raise ValueError(f"{index}: tensor {shown(name)}: {shown(shard)} leads out of the folder of the index")
    return homes
