"""Generation: how the next token is chosen, and the loop that feeds it back."""

from .generate import generate, stream

__all__ = ["generate", "stream"]
