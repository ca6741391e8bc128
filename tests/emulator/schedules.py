"""Every emulated case runs in order, under two random orders, and once in the race checker.

No CUDA kernel of this package uses atomics, so its results may not depend on the order: they are equal bit for bit.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import minigpt_ext as mg


@dataclass
class Count:
    """The cases of this session, for the summary: a case counts once a schedule."""

    plain: int = 0
    checked: int = 0


count = Count()


def schedules(case: object) -> Iterator[tuple[str, int]]:
    """(check, seed) of a case's runs. Seeds follow from its name: each case has orders of its own, always the same."""
    seed = zlib.crc32(str(case).encode()) + 1
    yield from (("none", 0), ("none", seed), ("none", seed + 1), ("race", 0))


def bits(t: Tensor) -> Tensor:
    """Comparable bit for bit: NaN equals NaN."""
    return t.contiguous().view(torch.uint8) if t.dim() else t.reshape(1).view(torch.uint8)


def assert_equal_bits(results: dict[str, Tensor], wanted: dict[str, Tensor], why: str) -> None:
    assert results.keys() == wanted.keys()
    for name, t in results.items():
        assert t.shape == wanted[name].shape and torch.equal(bits(t), bits(wanted[name])), f"{name} {why}"


def what_the_race_checker_says(run: Callable[[], object]) -> str:
    """Wrong values name no line of the kernel; where a synchronisation is missing the race checker does."""
    try:
        torch.manual_seed(0)
        with mg.backend("emulated", check="race"):
            run()
    except mg.emulator.EmulatorError as error:
        return f"\n  and in the race checker: {error}"
    except AssertionError:
        pass  # the same wrong values, and no race
    return ""


def run_on_every_schedule(case: object, run: Callable[[], dict[str, Tensor] | Tensor]) -> dict[str, Tensor]:
    """What run() gives under the emulator, the same on every schedule. run makes its inputs and judges its results.

    Where it fails, the error says how to repeat that run.
    """
    first: dict[str, Tensor] = {}
    for check, seed in schedules(case):
        try:
            torch.manual_seed(0)
            with mg.backend("emulated", check=check, seed=seed):
                results = run()
            results = results if isinstance(results, dict) else {"out": results}
            first = first or results
            assert_equal_bits(results, first, "depends on the order in which the threads run")
        except (AssertionError, mg.emulator.EmulatorError) as error:
            raise AssertionError(
                f'{error}\n  case: {case}\n  repeat it in: mg.backend("emulated", check={check!r}, seed={seed})'
                + ("" if isinstance(error, mg.emulator.EmulatorError) else what_the_race_checker_says(run))
            ) from error
        if check == "race":
            count.checked += 1
        else:
            count.plain += 1
    return first
