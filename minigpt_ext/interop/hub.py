"""Models by name: a folder that is there, or an id of the Hugging Face Hub, fetched by its own library."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minigpt_ext.data.download import cache_folder
from minigpt_ext.data.files import write_atomically

from .checkpoint import INDEX, WEIGHTS, read_index

# What is fetched beside the weights, where a model has it. Never programs (*.py), never pickles (*.bin, *.pt).
COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
_INSTALL = "pip install 'minigpt-ext[hub]'"


def resolve_model(name: str | os.PathLike[str]) -> Path:
    """The folder of a model: `name` itself where that exists, else what the hub has under that id.

    From the hub come `config.json`, the safetensors weights (one file, or the index and its shards), and files of the
    tokenizer, into the cache of the `huggingface_hub` library, which other tools share; what is there is not fetched
    again. Each file is checked once against the digest that the hub tells (sha256 of large files, git's sha1 of small
    ones). Without a network, the cache is taken as it is.

    Args:
        name: a path, or "owner/name", or "owner/name@revision" (a branch, a tag or a commit).

    Raises:
        FileNotFoundError: there is no such path, and `name` is not shaped as an id of the hub.
        ValueError: the model cannot be fetched; the message says why, and how to fetch it by hand.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    shape = _ID.fullmatch(os.fspath(name))
    if shape is None:
        raise FileNotFoundError(
            f"there is no directory {path}, and {os.fspath(name)!r} is no id of the hub either: those are owner/name "
            "or owner/name@revision, as openai-community/gpt2"
        )
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        raise ValueError(
            f"there is no directory {path}; to fetch a model of that name from the hub, install its library: {_INSTALL}"
        ) from error
    return _Model(huggingface_hub, shape["id"], shape["revision"]).fetch()


class _Model:
    """A model of the hub, by the library `hub`."""

    def __init__(self, hub: Any, name: str, revision: str | None) -> None:
        self.hub, self.name, self.revision = hub, name, revision

    def fetch(self) -> Path:
        # The first file tells which commit the revision is now. The library answers from its cache without a network.
        with self._explained():
            folder = Path(self.hub.hf_hub_download(self.name, "config.json", revision=self.revision)).parent
        commit = folder.name
        try:
            files = self.hub.HfApi().model_info(self.name, revision=commit, files_metadata=True).siblings
        except self._failures as error:
            if _is_complete(folder):
                return folder
            raise self._error(error) from error
        listed = {file.rfilename: file for file in files}
        for name in COMPANIONS:
            if name in listed:
                self._obtain(listed[name], commit)
        if WEIGHTS in listed:
            self._obtain(listed[WEIGHTS], commit)
        elif INDEX in listed:
            for name in sorted(set(read_index(self._obtain(listed[INDEX], commit)).values())):
                if name not in listed:
                    raise ValueError(f"{self._what}: its {INDEX} names {name}, which it lacks")
                self._obtain(listed[name], commit)
        else:
            pickles = [name for name in listed if name.endswith((".bin", ".pt", ".pth"))]
            instead = f"; it has {pickles[0]}, a pickle, which is never loaded" if pickles else ""
            raise ValueError(f"{self._what}: it has neither {WEIGHTS} nor {INDEX}{instead}")
        return folder

    def _obtain(self, file: Any, commit: str) -> Path:
        with self._explained():
            path = Path(self.hub.hf_hub_download(self.name, file.rfilename, revision=commit))
        if problem := _wrong_content(path, file):
            stored = path.resolve()  # the cache holds the content by its digest, and links to it
            path.unlink()
            stored.unlink(missing_ok=True)
            raise ValueError(
                f"{self._what}: {file.rfilename} {problem}; it was removed, try once more. {self._by_hand}"
            )
        return path

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except self._failures as error:
            raise self._error(error) from error

    @property
    def _failures(self) -> tuple[type[BaseException], ...]:
        """What the library raises: its own errors, and those of the HTTP library that it is built on (it changed)."""
        errors = self.hub.errors
        return (OSError, *errors.HfHubHTTPError.__bases__, errors.EntryNotFoundError, errors.HFValidationError)

    def _error(self, error: BaseException) -> ValueError:
        errors = self.hub.errors
        if isinstance(error, errors.GatedRepoError):
            reason = "its owners ask for consent first: give it on the model's page, then run `hf auth login`"
        elif isinstance(error, errors.RepositoryNotFoundError):
            reason = "the hub has no model of that name, or only for those who are logged in (`hf auth login`)"
        elif isinstance(error, errors.RevisionNotFoundError):
            reason = f"the model has no revision {self.revision}"
        elif isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
            reason = "it is not in the cache, and the hub cannot be reached"
        elif isinstance(error, errors.EntryNotFoundError):
            reason = "the model has no config.json, so it is none of transformers'"
        else:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return ValueError(f"{self._what}: {reason}. {self._by_hand}")

    @property
    def _what(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"{self.name}{revision} is no directory here, and cannot be taken from the hub"

    @property
    def _by_hand(self) -> str:
        page = f"{self.hub.constants.ENDPOINT}/{self.name}/tree/{self.revision or 'main'}"
        return (
            f"By hand: put config.json, *.safetensors and the tokenizer's files of {page} into a folder, and name that"
        )


def _is_complete(folder: Path) -> bool:
    if (folder / WEIGHTS).is_file():
        return True
    index = folder / INDEX
    return index.is_file() and all((folder / name).is_file() for name in set(read_index(index).values()))


def _wrong_content(path: Path, file: Any) -> str | None:
    """What is wrong with a file of the cache; None where it has the digest that the hub tells.

    That takes a second a gigabyte, and so is done once: a note of the file's size and time is kept, under the digest.
    """
    status = path.stat()
    if file.lfs is not None:
        kind, expected, digest = "sha256", file.lfs.sha256, hashlib.sha256()
    else:
        start = f"blob {status.st_size}\0".encode()  # as git counts it
        kind, expected, digest = "git sha1", file.blob_id, hashlib.sha1(start, usedforsecurity=False)
    if not isinstance(expected, str) or not re.fullmatch("[0-9a-f]{40,64}", expected):
        return f"has no {kind} that the hub tells of"
    note, told = cache_folder() / "hub" / expected, f"{status.st_size} {status.st_mtime_ns}"
    if note.is_file() and note.read_text() == told:
        return None
    with path.open("rb") as content:
        while piece := content.read(1 << 20):
            digest.update(piece)
    if digest.hexdigest() != expected:
        return f"has {kind} {digest.hexdigest()}, and the hub tells of {expected}"
    note.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(note, told)
    return None
