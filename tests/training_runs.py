"""What the tests of training share: small runs, and how two runs are compared."""

import json
import sys

import torch
from safetensors.torch import load_file

from minigpt_ext.training import make_recipe
from minigpt_ext.training.metrics import read_metrics

MINIGPT = [sys.executable, "-c", "from minigpt_ext.cli import main; main()"]

SMALL = {
    "preset": "tiny",
    "batch_size": 4,
    "block_size": 16,
    "warmup_iters": 5,
    "learning_rate": 3e-3,
    "min_lr": 3e-4,
    "eval_interval": 5,
    "checkpoint_interval": 4,
    "sample_interval": 0,
    "steps": 20,
    "device": "cpu",
}


def small_recipe(text_file, **changes):
    return make_recipe(SMALL | {"data": str(text_file)} | changes)


def assignments(settings):
    """Settings as the command line takes them."""
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


def write_text(path, n=2000):
    """A text of n characters over a small alphabet, with some order in it."""
    generator = torch.Generator().manual_seed(3)
    words = ["the ", "cat ", "sat ", "on ", "a ", "mat.\n"]
    text = "".join(words[i] for i in torch.randint(len(words), (n,), generator=generator).tolist())
    path.write_text(text[:n])
    return path


def measured(run):
    """The rows of a run without the columns that depend on the clock."""
    return [(r.step, r.train_loss, r.val_loss, r.lr, r.grad_norm) for r in read_metrics(run / "metrics.jsonl")]


def assert_same_run(a, b):
    """Weights, optimizer, generators, best model and metrics of two runs are equal bit for bit."""
    assert measured(a) == measured(b)
    for name in ("resume.safetensors", "model.safetensors"):
        one, other = load_file(a / name), load_file(b / name)
        assert one.keys() == other.keys()
        different = [key for key in one if not torch.equal(one[key], other[key])]
        assert not different, f"{name}: {different[:5]} differ"


def run_config(run):
    return json.loads((run / "config.json").read_text())
