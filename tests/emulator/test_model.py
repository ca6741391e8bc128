"""A GPT trains and generates on the emulated CUDA kernels as it does on torch's ops."""

from dataclasses import replace

import pytest
import torch

import minigpt_ext as mg
from minigpt_ext.generation import generate

pytestmark = pytest.mark.usefixtures("built")

CONFIG = mg.GPTConfig(vocab_size=11, block_size=20, n_layer=2, n_head=2, n_embd=24)
MODERN = mg.GPTConfig(
    **dict(vocab_size=11, block_size=20, n_layer=2, n_head=4, n_kv_head=2, n_embd=24, head_dim=8, norm="rms_norm"),
    **dict(activation="swiglu", positions="rope", qk_norm=True, window=[6, None], bias=False, attention_softcap=20.0),
)
IDS = torch.arange(42).remainder(7).view(2, 21)  # each token tells the next


def trained(steps: int, dropout: float, config: mg.GPTConfig = CONFIG) -> tuple[mg.GPT, list[float]]:
    model = mg.GPT(replace(config, dropout=dropout), seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(1)
    losses = []
    for _ in range(steps):
        _, loss = model(IDS[:, :-1], IDS[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses


@pytest.mark.parametrize(
    "config, other, dropout", [(CONFIG, "torch", 0.0), (CONFIG, "kernels", 0.1), (MODERN, "torch", 0.0)]
)
def test_twenty_steps_and_a_text(config, other, dropout):
    """The same losses as torch's ops give, and with dropout as the CPU kernels, whose masks are the same; then the same
    tokens, past block_size, where the cache is filled anew."""
    with mg.backend(other):
        model, wanted = trained(20, dropout, config)
        text = generate(model, IDS[:, :5], 24, temperature=0)
    with mg.backend("emulated"):
        emulated, losses = trained(20, dropout, config)
        torch.testing.assert_close(losses, wanted, rtol=2e-4, atol=2e-4)
        assert losses[-1] < losses[0] / 2
        assert torch.equal(generate(emulated, IDS[:, :5], 24, temperature=0), text)
    assert text[0, :12].tolist() == IDS[0, :12].tolist()  # it has learned to count


@pytest.mark.parametrize("check, seed", [("none", 5), ("race", 0)])
def test_steps_and_tokens_do_not_depend_on_the_order(check, seed):
    with mg.backend("emulated"):
        model, losses = trained(2, 0.1)
        text = generate(model, IDS[:, :5], 4, seed=3)
    with mg.backend("emulated", check=check, seed=seed):
        again, same = trained(2, 0.1)
        assert same == losses
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
        assert torch.equal(generate(again, IDS[:, :5], 4, seed=3), text)
