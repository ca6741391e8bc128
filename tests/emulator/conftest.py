"""Builds the emulator before the first test that needs it, and sums up what it did."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from emulator.schedules import count

import minigpt_ext as mg
from minigpt_ext.emulator.libraries import Library

KERNELS = Path(__file__).parent / "kernels"
build_seconds = 0.0


@contextlib.contextmanager
def building() -> Iterator[None]:
    global build_seconds
    began = time.perf_counter()
    yield
    build_seconds += time.perf_counter() - began


@pytest.fixture(scope="session")
def built() -> None:
    """The ops in both builds, from the cache where it holds them."""
    with building():
        for checked in (False, True):
            mg.emulator.ops(checked=checked)


def compiled(check: str) -> Library:
    """The kernels of features.cu and faults.cu."""
    with building():
        return mg.emulator.compile(KERNELS / "features.cu", KERNELS / "faults.cu", check=check)


@pytest.fixture(scope="session")
def plain() -> Library:
    return compiled("none")


@pytest.fixture(scope="session")
def checked() -> Library:
    return compiled("race")


@pytest.fixture(params=["plain", "checked"])
def library(request) -> Library:
    """Either build."""
    return request.getfixturevalue(request.param)


def pytest_terminal_summary(terminalreporter) -> None:
    if not count.plain:
        return
    plain, checked = (mg.emulator.statistics(checked=checked) for checked in (False, True))
    terminalreporter.write_line(
        f"emulated: {count.plain + count.checked:,} cases ({count.plain:,} plain, {count.checked:,} race-checked), "
        f"{plain.launches + checked.launches:,} launches, {plain.seconds + checked.seconds:.0f} s in kernels; "
        f"built in {build_seconds:.0f} s"
    )
