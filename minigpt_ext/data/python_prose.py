"""The `python` corpus: English that every CPython installation carries.

Two sources: the topics of `pydoc` (the language reference as plain text) and the docstrings of the standard library,
found by parsing its sources with `ast`, so that no module runs. Both are technical writing full of markup, code and
tables; what is kept is whole sentences of plain words, a paragraph a line, in ASCII.

The text depends on the Python version alone: documents stand in the order of a hash of their names, so that the head
and the tail of the corpus (the training and the validation split) are of one kind.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
import re
import sysconfig
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path

_SKIPPED_FOLDERS = {
    "__pycache__", "site-packages", "dist-packages", "lib-dynload", "pydoc_data",  # not sources, or read on their own
    "test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "ensurepip",  # tests and programs
    "encodings",  # tables
}  # fmt: skip
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

_ROLE = re.compile(r":[a-zA-Z:]+:`~?([^`<]*?)(?: *<[^`]*>)?`")  # :class:`~os.PathLike` -> os.PathLike
_FOOTNOTE = re.compile(r" ?\[[\w#*]+\]_?")
_QUOTE_THAT_IS_NO_APOSTROPHE = re.compile(r"(?<![A-Za-z])'|'(?![A-Za-z])")
_BULLET = re.compile(r"^\s*(?:[-*+o•]|\(?\d+[.)]|\[\d+\]|:\w+(?: \w+)*:)\s+")  # of a list, or a :param name: field
_COLON_IN_A_WORD = re.compile(r":[^ )]")
_SENTENCE_END = re.compile(r"(?<=[.?!])\)?\s+(?=[A-Z])")
_SENTENCE = re.compile(r"[A-Z][A-Za-z0-9 ,.;:?!'()/-]*[a-z)][.?!]")
_WORD = re.compile(r"\(?(?:[A-Z]?[a-z]+(?:['-][a-z]+)*|[AI]|[0-9]{1,3})\)?[,;:.?!]*")
_COMMON = frozenset(
    "a an and are as at be by can for from has have if in is it its not of on or that the this to used was when which "
    "will with you".split()
)
_SHORTEST_PARAGRAPH = 40  # characters


def python_prose() -> str:
    """The corpus as one string of ASCII text: a paragraph a line, about a megabyte.

    Raises ValueError where Python is installed without the sources of its standard library.
    """
    library = Path(sysconfig.get_path("stdlib"))
    seen: set[str] = set()
    lines = []
    for _, text in sorted(_documents(library), key=lambda document: hashlib.sha256(document[0].encode()).digest()):
        for paragraph in prose_paragraphs(text):
            if paragraph not in seen:
                seen.add(paragraph)
                lines.append(paragraph)
    if not lines:
        raise ValueError(f"data: no standard-library sources with docstrings in {library}; give --data PATH instead")
    return "\n".join(lines) + "\n"


def prose_paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of `text` (a docstring or a page of reST) that are prose, each a line of whole sentences."""
    for block in re.split(r"\n\s*\n", text):
        lines = block.splitlines()
        if any(line.lstrip().startswith((">>>", "...", "..", "|", "+-", "$")) for line in lines):
            continue  # a doctest, a directive, a table
        items: list[str] = []
        for line in lines:  # every bullet starts an item of its own
            if _BULLET.match(line) or not items:
                items.append(_BULLET.sub("", line))
            else:
                items[-1] += " " + line
        for item in items:
            paragraph = " ".join(s for s in _SENTENCE_END.split(_without_markup(item)) if _is_english(s))
            if len(paragraph) >= _SHORTEST_PARAGRAPH:
                yield paragraph


def _without_markup(text: str) -> str:
    text = _ROLE.sub(r"\1", text)
    text = re.sub(r"\s*(?:-{2,}|—)\s*", " - ", text).replace("’", "'").replace("–", "-")
    text = unicodedata.normalize("NFKD", text)
    text = _FOOTNOTE.sub("", text)
    text = re.sub(r'[*`"“”]|\(\)', "", text)  # emphasis, literals, quoted names, the brackets of f()
    text = _QUOTE_THAT_IS_NO_APOSTROPHE.sub("", text)
    return " ".join(text.split())


def _is_english(sentence: str) -> bool:
    """Whether all but a few of the words are plain, enough of them common, and brackets close."""
    if not _SENTENCE.fullmatch(sentence) or sentence.count("(") != sentence.count(")"):
        return False
    if _COLON_IN_A_WORD.search(sentence):
        return False
    words = sentence.split()
    plain = sum(_WORD.fullmatch(word) is not None for word in words)
    common = sum(word.lower() in _COMMON for word in words)
    return len(words) >= 4 and len(words) - plain <= len(words) // 8 and 6 * common >= len(words)


def _documents(library: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of every pydoc topic and of every module, with all docstrings of the module in one text."""
    from pydoc_data.topics import topics  # a table of strings; importing it is all there is to running it

    for name, text in topics.items():
        yield f"topic {name}", text
    for folder, folders, files in os.walk(library):
        folders[:] = [f for f in folders if f not in _SKIPPED_FOLDERS and not f.startswith("config-")]
        for file in files:
            if file.endswith(".py"):
                path = Path(folder, file)
                yield path.relative_to(library).as_posix(), "\n\n".join(_docstrings(path.read_bytes()))


def _docstrings(source: bytes) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a library's own invalid escapes are not this run's business
            nodes: list[ast.AST] = [ast.parse(source)]
    except (SyntaxError, ValueError):
        return  # a template, or a sample of broken code: Python itself could find no docstring in it
    while nodes:
        node = nodes.pop()
        if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node, clean=False)):
            yield inspect.cleandoc(text)
        for field in ("finalbody", "orelse", "handlers", "body"):
            nodes.extend(n for n in reversed(getattr(node, field, ())) if isinstance(n, ast.stmt | ast.excepthandler))
