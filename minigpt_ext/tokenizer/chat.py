"""Chat templates: the Jinja programs that come with models and turn messages into the text a model was trained on.

A message is {"role": "user", "content": "..."}, or whatever else its template reads (tool_calls, reasoning_content).
Templates are programs of strangers: they run in a process of their own, see `chat_worker`. What they make of given
messages equals what `apply_chat_template` of the library `transformers` makes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_ext.tokenizer.chat_process import ChatProcess
from minigpt_ext.tokenizer.json_node import Node, read_json

if TYPE_CHECKING:
    from minigpt_ext.tokenizer.base import Tokenizer

Message = Mapping[str, Any]

_REASONING = ("reasoning_content", "thinking", "reasoning")  # names in use for the same thing, the standard one first
_NONCHARACTERS = tuple(map(chr, range(0xFDD0, 0xFDF0)))  # which Unicode keeps for a program's own use


class ChatTemplate:
    """The chat template of a model, or several by name.

    Args:
        sources: the template, or templates by name: "default", and "tool_use" for when there are tools.
        variables: what every rendering sees: bos_token, eos_token and the like.

    Raises:
        TypeError: a source is no string. (Whether it is a template shows when it is rendered.)
    """

    def __init__(self, sources: str | Mapping[str, str], variables: Mapping[str, Any] | None = None):
        self.sources = {"default": sources} if isinstance(sources, str) else dict(sources)
        for name, source in self.sources.items():
            if not isinstance(source, str):
                raise TypeError(f"chat template {name!r}: expected a string, got {type(source).__name__}")
        self.variables = dict(variables or {})
        self._process = ChatProcess()

    @classmethod
    def load(cls, directory: str | Path) -> ChatTemplate:
        """The templates of a Hugging Face directory, with its bos_token, eos_token and so on as variables.

        They are chat_template.jinja and additional_chat_templates/*.jinja, or else chat_template in
        tokenizer_config.json.

        Raises:
            FileNotFoundError: the directory holds none.
            ValueError: a file of it cannot be read; the message names it.
        """
        directory = Path(directory)
        file = directory / "tokenizer_config.json"
        config = read_json(file) if file.is_file() else Node({}, file)
        sources = _of_files(directory) or _of_config(config.get("chat_template"))
        if not sources:
            raise FileNotFoundError(
                f"{directory} has no chat template, neither a chat_template.jinja nor chat_template in a "
                "tokenizer_config.json: its model continues texts"
            )
        tokens = {key: value for key, value in config.value.items() if key.endswith("_token")}
        tokens = {key: value.get("content") if isinstance(value, dict) else value for key, value in tokens.items()}
        return cls(sources, {key: value for key, value in tokens.items() if isinstance(value, str)})

    def source(self, name: str | None = None, *, tools: bool = False) -> str:
        """The template of that name; without one "tool_use" if there are tools and it is there, else "default"."""
        wanted = name or ("tool_use" if tools and "tool_use" in self.sources else "default")
        if wanted not in self.sources:
            raise ValueError(f"there is no chat template {wanted!r}; there are {', '.join(map(repr, self.sources))}")
        return self.sources[wanted]

    def render(self, messages: Sequence[Message], **options: Any) -> str:
        """The text of a conversation.

        A special token that stands in a message looks in it like those of the template; :meth:`encode` keeps the two
        apart.

        Args:
            messages: the conversation, each message with a "role". Entries that are None count as missing.
            add_generation_prompt: whether the text ends with what begins an answer; False by default.
            tools: JSON schemas of functions that the model may call.
            documents: texts to answer from.
            name: which template, where there are several.
            options: anything else is a variable of the template, such as enable_thinking.

        Raises:
            TypeError: a message is no mapping, or something holds what JSON does not have.
            ValueError: there is no message, one has no role, there is no template of that name; or the template failed,
                and the message tells why: it refuses these messages, has an error in it, reaches for what the sandbox
                forbids, or takes more time or memory than it gets.
        """
        return self._render(_checked(messages), options)

    def encode(self, tokenizer: Tokenizer, messages: Sequence[Message], **options: Any) -> list[int]:
        """The ids of a conversation in which no message can pass for the template's own words.

        Special tokens count as such where the template wrote them. In a message, tool, document or variable they are
        text: of {"role": "user", "content": "<|im_end|>"} the model sees the letters. Three things are not covered:
        added tokens that are not marked special are words of the vocabulary wherever they stand; a template that puts
        tokens together around its input, as in '<|' + message.role + '|>', needs roles that you have checked; and one
        that takes letters out of its input or changes them (replace, lower, split and join) may leave a token behind.

        Args:
            tokenizer: of the same model.
            messages, options: see :meth:`render`.

        Raises:
            TypeError, ValueError: as :meth:`render` does, and as the tokenizer does.
        """
        messages = _checked(messages)
        names = sorted(tokenizer.special_tokens, key=len, reverse=True)
        specials = re.compile("|".join(map(re.escape, names)) or "(?!)")
        beginnings = {name[:n] for name in names for n in range(1, len(name))}
        used = _json([messages, options], ascii=False) + "".join(self.sources.values())
        free = [mark for mark in _NONCHARACTERS if mark not in used and _escaped(mark) not in used]
        if len(free) < 2:
            raise ValueError("messages: they hold nearly all noncharacters (U+FDD0 to U+FDEF), and two are needed")
        begin, end = free[:2]

        def marked(value: Any) -> Any:
            if isinstance(value, str):
                # A string that ends like the beginning of a token gets a mark too: the next one may hold the rest.
                open_end = any(value[-n:] in beginnings for n in range(1, len(names[0]))) if names else False
                return specials.sub(lambda found: begin + found[0] + end, value) + end * open_end
            if isinstance(value, Mapping):
                return {marked(key): marked(entry) for key, entry in value.items()}
            return [marked(entry) for entry in value] if isinstance(value, list | tuple) else value

        try:
            given = marked(messages), {key: v if key == "name" else marked(v) for key, v in options.items()}
        except RecursionError:
            raise ValueError("messages: they, tools, documents or variables nest too deep") from None
        text = self._render(*given)
        for mark in (begin, end):
            text = text.replace(_escaped(mark), mark)  # by tojson(ensure_ascii=true)
        # Text of the template, a special token of a message, text, ...; None for a mark without a partner, since
        # templates may cut strings. There the text stays cut, so that two pieces cannot join into a special token.
        parts = re.split(f"{begin}({specials.pattern}){end}|[{begin}{end}]", text)
        ids = tokenizer.encode(parts[0])
        for i, part in enumerate(parts[1:], start=1):
            if part:
                ids += _encode_inside(tokenizer, part, special=i % 2 == 0)
        return ids

    def _render(self, messages: list[dict[str, Any]], options: Mapping[str, Any]) -> str:
        known = {"add_generation_prompt": False, "tools": None, "documents": None}
        seen = known | self.variables | options | {"messages": messages}
        source = self.source(seen.pop("name", None), tools=seen["tools"] is not None)
        return self._process.render(_json({"template": source, "variables": seen}))


def _encode_inside(tokenizer: Tokenizer, text: str, special: bool) -> list[int]:
    """The ids of text that does not begin a conversation.

    Tokenizers of SentencePiece's kind put a space in front of what they get. A newline in front takes it instead.
    """
    newline = tokenizer.encode("\n")
    ids = tokenizer.encode("\n" + text, special=special)
    ids = ids[len(newline) :] if ids[: len(newline)] == newline else tokenizer.encode(text, special=special)
    if not special and tokenizer.special_tokens[text] in ids:
        raise ValueError(f"messages: {text!r} cannot be told from the special token; this tokenizer spells both alike")
    return ids


def _checked(messages: Sequence[Message]) -> list[dict[str, Any]]:
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise TypeError(f"messages: expected a list of messages, got {type(messages).__name__}")
    if not messages:
        raise ValueError("messages: there are none; a conversation needs at least one")
    checked = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TypeError(f"messages[{i}]: expected a mapping with role and content, got {type(message).__name__}")
        entries = {key: value for key, value in message.items() if value is not None}
        if not isinstance(entries.get("role"), str):
            raise ValueError(f'messages[{i}]: "role" must be a string, such as "user", not {entries.get("role")!r}')
        reasoning = next((entries[name] for name in _REASONING if name in entries), None)
        if reasoning is not None:  # templates read it by two of its names
            entries = {"thinking": reasoning} | entries | {"reasoning_content": reasoning}
        checked.append(entries)
    return checked


def _escaped(mark: str) -> str:
    return f"\\u{ord(mark):04x}"


def _json(value: Any, *, ascii: bool = True) -> str:
    try:
        return json.dumps(value, ensure_ascii=ascii)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"messages: they, tools, documents and variables must be plain JSON: {error}") from None


def _of_files(directory: Path) -> dict[str, str]:
    files = {file.stem: file for file in sorted((directory / "additional_chat_templates").glob("*.jinja"))}
    if (directory / "chat_template.jinja").is_file():
        files["default"] = directory / "chat_template.jinja"
    try:
        return {name: file.read_text(encoding="utf-8") for name, file in files.items()}
    except ValueError as error:
        raise ValueError(f"{directory}: a chat template is not UTF-8: {error}") from None


def _of_config(entry: Node) -> dict[str, str]:
    if entry.value is None:
        return {}
    if isinstance(entry.value, list):
        return {one["name"].text(): one["template"].text() for one in entry.items()}
    return {"default": entry.text()}
