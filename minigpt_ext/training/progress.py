"""What a training run shows while it runs."""

from __future__ import annotations

import sys
from statistics import harmonic_mean
from typing import TextIO

from tqdm import tqdm

from minigpt_ext.training.metrics import Row

_PREFIX = "  | "


class Progress:
    """Is told of every step, evaluation and sample, and shows nothing: for training from Python."""

    def begin(self, message: str, first_step: int, last_step: int) -> None:
        """A run starts, or goes on after `first_step`."""

    def step(self, row: Row) -> None:
        """A step was made, or an evaluation."""

    def sample(self, step: int, text: str) -> None:
        """The model wrote `text`."""

    def end(self) -> None:
        """No more steps."""


class TerminalProgress(Progress):
    """A bar with loss, tokens/s and the time left; above it a line an evaluation, and the samples.

    Where the stream is no terminal (a log), there is no bar.
    """

    def __init__(self, stream: TextIO | None = None):
        self.stream = sys.stderr if stream is None else stream
        self.is_terminal = self.stream.isatty()

    def begin(self, message: str, first_step: int, last_step: int) -> None:
        self.last_step = last_step
        self.first: Row | None = None
        self.rates: list[float] = []  # tokens/s of the steps since the last evaluation
        print(message, file=self.stream, flush=True)
        self.bar = tqdm(
            total=last_step,
            initial=first_step,
            file=self.stream,
            disable=not self.is_terminal,
            dynamic_ncols=True,
            leave=False,
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix} [{elapsed}, {remaining} left]",
        )

    def step(self, row: Row) -> None:
        if self.first is None:
            self.first = row
        if row.tokens_per_second is not None:
            self.rates.append(row.tokens_per_second)
            self.bar.set_postfix_str(f"loss {row.train_loss:.3f}, {row.tokens_per_second:,.0f} tokens/s", refresh=False)
            self.bar.update(row.step - self.bar.n)
        if row.val_loss is not None:
            self._line(self._evaluation(row))
            self.rates.clear()

    def sample(self, step: int, text: str) -> None:
        self._line("\n".join(_PREFIX + line for line in text.strip("\n").split("\n")))

    def end(self) -> None:
        self.bar.close()

    def _evaluation(self, row: Row) -> str:
        train = f"train {row.train_loss:.4f}  " if row.train_loss is not None else ""
        speed = f"  {harmonic_mean(self.rates):,.0f} tokens/s" if self.rates else ""
        steps_here = row.step - self.first.step
        seconds = (row.elapsed_s - self.first.elapsed_s) / steps_here * (self.last_step - row.step) if steps_here else 0
        left = f"  {tqdm.format_interval(seconds)} left" if seconds and not self.is_terminal else ""
        return f"step {row.step:>{len(str(self.last_step))}}  {train}val {row.val_loss:.4f}{speed}{left}"

    def _line(self, text: str) -> None:
        tqdm.write(text, file=self.stream)
        self.stream.flush()
