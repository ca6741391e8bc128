import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The models here are too small to share out, and threads that wait for each other suffer on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
