"""Where text comes from: a corpus by name, or files of one's own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minigpt_ext.data.download import TINY_SHAKESPEARE, obtain
from minigpt_ext.data.python_prose import python_prose

NAMED_CORPORA = ("python", "shakespeare")
FOLDER_SUFFIX = ".txt"  # what is read of a folder


@dataclass(frozen=True)
class Corpus:
    """A text to train on.

    Attributes:
        text: all of it.
        sources: what it was read from, as `load_corpus` takes it: names, and absolute paths.
    """

    text: str
    sources: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Of the text in UTF-8."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()


def load_corpus(sources: Sequence[str]) -> Corpus:
    """Read a corpus from one source or several, joined in the order given, a line break between them.

    Args:
        sources: each `python` (see `python_prose`), `shakespeare` (Tiny Shakespeare), the path of a UTF-8 file, or
            the path of a folder, whose `.txt` files are read in the order of their paths, subfolders included.

    Raises:
        TypeError: one string in place of a sequence of them.
        ValueError: no source; no such file; not UTF-8 (naming file and byte offset); a folder without text files;
            a download that fails.
    """
    if isinstance(sources, str):
        raise TypeError(f"sources: expected a sequence of names and paths, got the string {sources!r}")
    if not sources:
        raise ValueError(f"data: give {', '.join(NAMED_CORPORA)} or a path")
    texts: list[str] = []
    names: list[str] = []
    for source in sources:
        if source == "python":
            texts.append(python_prose())
            names.append(source)
        elif source == "shakespeare":
            texts.append(obtain(TINY_SHAKESPEARE).decode())
            names.append(source)
        else:
            path = Path(source).expanduser().resolve()
            texts.extend(_read_text(file) for file in _files(source, path))
            names.append(str(path))
    return Corpus(_joined(texts), tuple(names))


def split(text: str) -> tuple[str, str]:
    """(training, validation): the first int(0.9 n) characters and the rest, as nanoGPT splits."""
    boundary = int(0.9 * len(text))
    return text[:boundary], text[boundary:]


def _files(source: str, path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if path.is_dir():
        files = sorted((f for f in path.rglob(f"*{FOLDER_SUFFIX}") if f.is_file()), key=lambda f: f.as_posix())
        if not files:
            raise ValueError(f"data: the folder {path} holds no {FOLDER_SUFFIX} files")
        return files
    raise ValueError(f"data: {source!r} is not a file, a folder, or one of {', '.join(NAMED_CORPORA)}")


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8").removeprefix("\ufeff")  # the mark some editors write
    except UnicodeDecodeError as error:
        raise ValueError(f"data: {path} is not UTF-8: {error.reason} at byte offset {error.start}") from None
    except OSError as error:
        raise ValueError(f"data: cannot read {path}: {error.strerror or error}") from error


def _joined(texts: list[str]) -> str:
    ended = [text if text.endswith("\n") or not text else text + "\n" for text in texts[:-1]]
    return "".join([*ended, texts[-1]])
