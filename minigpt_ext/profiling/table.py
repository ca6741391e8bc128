"""Aligned text: a name, and figures beside it."""

from collections.abc import Sequence

_WIDEST_NAME = 48


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column to the left, cut where it is very long; the others to the right."""
    cut = [[row[0] if len(row[0]) <= _WIDEST_NAME else row[0][: _WIDEST_NAME - 3] + "...", *row[1:]] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(headings, *cut, strict=True)]
    lines = [headings, ["-" * width for width in widths], *cut]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        ).rstrip()
        for line in lines
    )
