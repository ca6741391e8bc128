"""What every test shares: devices, random state, hypothesis' settings."""

import os
from collections.abc import Callable, Iterator

# Before torch is loaded: its threads then sleep between two pieces of work instead of spinning, which makes the suite
# four times as fast on a machine that has other things to do, and no slower on one that has not.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from minigpt_ext.backend import why_no_kernels  # noqa: E402

# The same examples every time: a test that fails must fail again. Slow tests ask for more examples themselves.
hypothesis.settings.register_profile(
    "minigpt", derandomize=True, deadline=None, max_examples=25, database=None, print_blob=False
)
hypothesis.settings.load_profile("minigpt")

DEVICES = ["cpu"]
if torch.cuda.is_available() and why_no_kernels(torch.device("cuda", 0)) is None:
    DEVICES.append("cuda")


@pytest.fixture(params=DEVICES)
def device(request) -> str:
    """Every device that the kernels run on here."""
    return request.param


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """threads(n) makes torch and the CPU kernels use n threads, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
