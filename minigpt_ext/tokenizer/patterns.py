"""How a text is cut into pieces before pairs are merged: a merge never crosses the border of two pieces.

Each pattern is a list of alternatives, tried in this order at every place; together they match every character.
"""

_CONTRACTIONS = "'(?:[sdmt]|ll|ve|re)"  # it's, I'd, I'm, don't, we'll, we've, we're
_ANY_CASE_CONTRACTIONS = "'(?i:[sdmt]|ll|ve|re)"
_SPACES_BUT_ONE = r"\s+(?!\S)"  # the last space before a word belongs to the word
_AT_THE_END = r"(?![\s\S])"  # `$` means the end of a line to some engines, and of the text to others

GPT2 = "|".join(
    [
        _CONTRACTIONS,
        r" ?\p{L}+",  # a word, with the space before it
        r" ?\p{N}+",  # a number
        r" ?[^\s\p{L}\p{N}]+",  # signs
        _SPACES_BUT_ONE,
        r"\s+",
    ]
)


def _later(digits: str, newlines: list[str]) -> str:
    return "|".join(
        [
            _ANY_CASE_CONTRACTIONS,
            r"[^\r\n\p{L}\p{N}]?\p{L}+",  # a word, with the space or the sign before it
            digits,
            r" ?[^\s\p{L}\p{N}]+[\r\n]*",  # signs, with the line breaks behind them
            *newlines,
            _SPACES_BUT_ONE,
            r"\s+",
        ]
    )


# What GPT-4 and most models after it use, in three forms. Where `cl100k` (as tiktoken has it) takes all white space at
# the end of the text as one piece, the two others end a piece behind the last line break.
CL100K = _later(r"\p{N}{1,3}", [r"\s+" + _AT_THE_END, r"\s*[\r\n]"])
LLAMA3 = _later(r"\p{N}{1,3}", [r"\s*[\r\n]+"])
QWEN2 = _later(r"\p{N}", [r"\s*[\r\n]+"])

PATTERNS = {"gpt2": GPT2, "cl100k": CL100K, "llama3": LLAMA3, "qwen2": QWEN2}
NAMES = (*PATTERNS, "smollm", "none")  # smollm: every digit alone, GPT2 on the rest; none: the text is one piece


def known(pattern: str) -> str:
    """`pattern` itself. Raises ValueError where it is no name of a pattern."""
    if pattern not in NAMES:
        raise ValueError(f"pattern: expected one of {', '.join(NAMES)}, got {pattern!r}")
    return pattern
