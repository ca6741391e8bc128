import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from minigpt_ext.training.checkpoint import CheckpointError, load_checkpoint, load_facts, save_checkpoint

TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "b.t": torch.arange(6.0).view(2, 3).T,
    "scalar": torch.tensor(3.5),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "random": torch.arange(200, dtype=torch.uint8),
}
FACTS = {"step": 7, "loss": 0.1 + 0.2, "never": float("inf"), "name": "é"}


def test_everything_comes_back_bit_for_bit(tmp_path):
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, TENSORS, FACTS)
    tensors, facts = load_checkpoint(path)
    assert facts == FACTS == load_facts(path)
    assert tensors.keys() == TENSORS.keys()
    assert all(
        torch.equal(tensors[name], TENSORS[name]) and tensors[name].dtype == TENSORS[name].dtype for name in TENSORS
    )
    assert os.listdir(tmp_path) == ["x.safetensors"]


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_file_cut_short_is_a_clear_error(tmp_path, kept):
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, TENSORS, FACTS)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"x\.safetensors is damaged"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        load_facts(path)


def test_a_flipped_bit_is_found(tmp_path):
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, TENSORS, FACTS)
    content = bytearray(path.read_bytes())
    content[-20] ^= 4
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged: .* is not what was written"):
        load_checkpoint(path)


def test_what_is_no_checkpoint_of_ours_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(TENSORS | {"b.t": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of minigpt"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="cannot read"):
        load_checkpoint(tmp_path / "missing.safetensors")


def test_a_failed_write_keeps_the_old_file(tmp_path):
    """A limit on the size of files stands for a full disk."""
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, TENSORS, FACTS)
    before = path.read_bytes()
    script = """
import resource, signal, sys, torch
from pathlib import Path
from minigpt_ext.training.checkpoint import CheckpointError, save_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    save_checkpoint(Path(sys.argv[1]), {"a": torch.zeros(100_000)}, {})
except CheckpointError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=120)
    assert f"cannot write {path}" in done.stdout, done.stderr
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["x.safetensors"]


def test_a_changed_fact_is_damage(tmp_path):
    path = tmp_path / "state.safetensors"
    save_checkpoint(path, {"a": torch.ones(3)}, {"step": 20})
    path.write_bytes(path.read_bytes().replace(b'\\"step\\": 20', b'\\"step\\": 10'))
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)
