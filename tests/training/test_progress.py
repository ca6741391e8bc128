import io

import pytest

from minigpt_ext.training.metrics import Row
from minigpt_ext.training.progress import TerminalProgress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def show(stream):
    progress = TerminalProgress(stream)
    progress.begin("tiny, 437,888 parameters", 0, 100)
    progress.step(Row(0, None, 4.17, None, None, None, 1.0))
    for step in range(1, 51):
        progress.step(Row(step, 2.5, 2.25 if step % 25 == 0 else None, 1e-3, 0.5, 41_234.0, 1.0 + step / 10))
    progress.sample(50, "\nROMEO:\nWhat light\n")
    progress.end()
    return stream.getvalue()


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_evaluations_and_samples_are_lines(kind):
    lines = [line.split("\r")[-1] for line in show(kind()).splitlines()]
    assert lines[0] == "tiny, 437,888 parameters"
    assert any("step  25  train 2.5000  val 2.2500  41,234 tokens/s" in line for line in lines)
    assert [line for line in lines if "|" in line and "%" not in line][-2:] == ["  | ROMEO:", "  | What light"]


def test_a_terminal_has_a_bar_with_loss_speed_and_time_left():
    shown = show(Terminal())
    assert "50/100, loss 2.500, 41,234 tokens/s [" in shown and "left]" in shown


def test_a_log_has_no_bar_but_the_time_left():
    shown = show(io.StringIO())
    assert "\r" not in shown and len(shown.splitlines()) == 6
    assert "tokens/s  00:05 left" in shown
