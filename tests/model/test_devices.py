"""The same model on a GPU: weights, logits, generated text. Skipped, with the reason, where there is none."""

import pytest
import torch

from minigpt_ext.model import GPT, GPTConfig

CONFIG = GPTConfig(vocab_size=23, block_size=16, n_layer=2, n_head=2, n_embd=32)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")


def make(device):
    with torch.device(device):
        model = GPT(CONFIG, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model


def test_a_seed_gives_the_same_weights():
    here, there = make("cpu"), make("cuda")
    for name, weight in there.state_dict().items():
        assert weight.is_cuda and torch.equal(weight.cpu(), here.state_dict()[name]), name


def test_logits_and_gradients():
    here, there = make("cpu"), make("cuda")
    ids = torch.randint(23, (2, 16), generator=torch.Generator().manual_seed(0))
    expected, loss = here(ids, ids)
    logits, there_loss = there(ids.cuda(), ids.cuda())
    assert (logits.cpu() - expected).abs().max() <= 1e-4 * expected.abs().max()
    loss.backward()
    there_loss.backward()
    largest = max(parameter.grad.abs().max() for parameter in here.parameters())
    for ours, theirs in zip(here.parameters(), there.parameters(), strict=True):
        assert (ours.grad - theirs.grad.cpu()).abs().max() <= 1e-4 * largest


@torch.no_grad()
def test_cache():
    model = make("cuda")
    ids = torch.randint(23, (2, 16), device="cuda")
    expected, _ = model(ids)
    cache = model.new_cache(2)
    pieces = [model(part, cache=cache)[0] for part in ids.split([5, 3] + [1] * 8, dim=1)]
    assert (torch.cat(pieces, dim=1) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_seed_gives_the_same_text():
    ids = torch.tensor([[1, 2, 3]])
    there = make("cuda").generate(ids.cuda(), 40, seed=1)
    assert torch.equal(there.cpu(), make("cpu").generate(ids, 40, seed=1))
