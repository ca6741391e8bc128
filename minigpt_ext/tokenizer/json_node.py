"""JSON of other people: every value knows its file and its place there, so that an error can name both."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_FILE = 2**28  # bytes; the largest vocabularies in use take a tenth of it


class Node:
    """A value of a JSON file. What it is asked for it gives in the type asked for, or raises ValueError.

    Attributes:
        value: as `json` reads it; None also where the file has nothing.
        file: where it stands.
        place: its path in the file, as `model.vocab` or `added_tokens[3].id`.
    """

    __slots__ = ("file", "place", "value")

    def __init__(self, value: Any, file: Path, place: str = ""):
        self.value = value
        self.file = file
        self.place = place

    def error(self, message: str) -> ValueError:
        """An error to raise, of what is wrong with this value."""
        return ValueError(f"{self.file}: {self.place}: {message}" if self.place else f"{self.file}: {message}")

    def refused(self, allowed: str) -> ValueError:
        """An error to raise where the value is none that this program can follow."""
        return self.error(f"got {self.shown()}; {allowed}")

    def shown(self) -> str:
        text = json.dumps(self.value)
        return text if len(text) <= 200 else f"{text[:200]}..."

    def get(self, key: str) -> Node:
        """The value of a key of this object, holding None where there is none."""
        return Node(self.object().get(key), self.file, f"{self.place}.{key}" if self.place else key)

    def __getitem__(self, key: str) -> Node:
        """The value of a key that must be there."""
        if key not in self.object():
            raise self.error(f'"{key}" is missing')
        return self.get(key)

    def __contains__(self, key: str) -> bool:
        return key in self.object()

    def items(self) -> Iterator[Node]:
        """The elements of this list."""
        if not isinstance(self.value, list):
            raise self.error(f"expected a list, got {self.shown()}")
        for i, element in enumerate(self.value):
            yield Node(element, self.file, f"{self.place}[{i}]")

    def object(self) -> dict[str, Any]:
        if not isinstance(self.value, dict):
            raise self.error(f"expected an object, got {self.shown()}")
        return self.value

    def text(self) -> str:
        if not isinstance(self.value, str):
            raise self.error(f"expected a text, got {self.shown()}")
        if lone := re.search("[\ud800-\udfff]", self.value):
            raise self.error(f"holds the lone surrogate U+{ord(lone[0]):04X}, which is no text")
        return self.value

    def integer(self, low: int, high: int) -> int:
        if not isinstance(self.value, int) or isinstance(self.value, bool) or not low <= self.value <= high:
            raise self.error(f"expected an integer from {low} to {high}, got {self.shown()}")
        return self.value

    def flag(self, default: bool = False) -> bool:
        if self.value is None:
            return default
        if not isinstance(self.value, bool):
            raise self.error(f"expected true or false, got {self.shown()}")
        return self.value

    def only(self, *allowed: Any) -> None:
        """Refuse every value but these."""
        if not any(self.value == one and type(self.value) is type(one) for one in allowed):
            raise self.refused(f"this program can do {' or '.join(json.dumps(one) for one in allowed)} only")

    def known(self, *keys: str) -> None:
        """Refuse an object with a key that is not among these: it may ask for something that would be passed over."""
        for key in self.object():
            if key not in keys:
                raise self.get(key).refused(f"this program knows no such field; it knows {', '.join(keys)}")


def read_json(path: Path) -> Node:
    """The content of a JSON file. Raises ValueError, naming the file, where it is none; OSError as the system does."""
    if (size := path.stat().st_size) > MAX_FILE:
        raise ValueError(f"{path}: it has {size} bytes, and {MAX_FILE} are the limit")
    try:
        content = json.loads(path.read_bytes().decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_number)
    except RecursionError:
        raise ValueError(f"{path}: its lists and objects are nested too deep") from None
    except ValueError as error:  # not UTF-8, not JSON, or one of ours
        raise ValueError(f"{path}: not valid JSON: {error}") from None
    return Node(content, path)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {json.dumps(repeated)} stands in one object more than once")
    return content


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")
