"""GPT: sizes, initial weights, loss, gradients, and what it refuses."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load, save

from minigpt_ext.backend import backend
from minigpt_ext.model import GPT, GPTConfig

CONFIG = GPTConfig(vocab_size=19, block_size=12, n_layer=2, n_head=2, n_embd=16)


def random_ids(b=3, t=12, v=19, seed=0):
    return torch.randint(v, (b, t), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("preset", "count"), [("tiny", 437_888), ("small", 3_241_728), ("medium", 10_770_816), ("gpt2", 124_439_808)]
)
def test_parameter_counts(preset, count):
    with torch.device("meta"):
        model = GPT(GPTConfig.preset(preset))
    assert model.num_parameters() == count


def test_without_bias_nothing_is_called_bias():
    model = GPT(GPTConfig(19, 12, 2, 2, 16, bias=False))
    assert not [name for name in model.state_dict() if name.endswith("bias")]
    logits, _ = model(random_ids())
    assert logits.isfinite().all()


def test_parameter_names_are_gpt2s():
    names = set(GPT(CONFIG).state_dict())
    parts = ["ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"]
    expected = {f"h.{n}.{part}.{kind}" for n in range(2) for part in parts for kind in ("weight", "bias")}
    assert names == expected | {"wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias"}


def test_initial_weights():
    model = GPT(GPTConfig.preset("small"), seed=0)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif parameter.ndim == 1:
            assert (parameter == 1).all(), name
        else:
            std = 0.02 / math.sqrt(2 * 4) if name.endswith("c_proj.weight") else 0.02
            # the standard error of a standard deviation of n draws is std / sqrt(2 n)
            assert parameter.std().item() == pytest.approx(std, abs=5 * std / math.sqrt(2 * parameter.numel())), name
            assert abs(parameter.mean().item()) < 5 * std / math.sqrt(parameter.numel()), name


def test_a_seed_gives_the_same_model_again():
    first, again, other = GPT(CONFIG, seed=3), GPT(CONFIG, seed=3), GPT(CONFIG, seed=4)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
    assert not torch.equal(first.wte.weight, other.wte.weight)


def test_without_a_seed_the_default_generator_is_drawn_from_as_by_a_seed():
    torch.manual_seed(3)
    model = GPT(CONFIG)
    assert torch.equal(model.h[1].mlp.c_proj.weight, GPT(CONFIG, seed=3).h[1].mlp.c_proj.weight)


def test_a_seed_leaves_the_default_generator_alone():
    before = torch.get_rng_state()
    GPT(CONFIG, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_first_loss_is_near_uniform():
    config = GPTConfig.preset("tiny")
    ids = random_ids(4, 129, 65)
    _, loss = GPT(config, seed=0)(ids[:, :-1], ids[:, 1:])
    assert loss.item() == pytest.approx(math.log(65), abs=0.1)


def test_logits_are_the_same_with_and_without_targets():
    model, ids = GPT(CONFIG, seed=0), random_ids()
    plain, none = model(ids)
    with_targets, loss = model(ids, ids)
    assert none is None and loss.ndim == 0
    assert plain.shape == (3, 12, 19)
    assert torch.equal(plain, with_targets)
    assert torch.equal(plain, model.head(model.trunk(ids)))


def test_loss_ignores_minus_one():
    model, ids, targets = GPT(CONFIG, seed=0), random_ids(), random_ids(seed=1)
    targets[0, 3:9] = -1
    targets[2] = -1
    logits, loss = model(ids, targets)
    counted = targets >= 0
    torch.testing.assert_close(loss, F.cross_entropy(logits[counted], targets[counted]))
    _, from_int32 = model(ids.int(), targets.int())
    assert torch.equal(loss, from_int32)


def test_no_token_sees_a_later_one():
    model, ids = GPT(CONFIG, seed=0).eval(), random_ids()
    changed = ids.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 19
    before, after = model(ids)[0], model(changed)[0]
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert (before[:, 7:] - after[:, 7:]).abs().amax(-1).min() > 1e-4


def test_every_parameter_gets_a_gradient():
    model = GPT(CONFIG, seed=0)
    model(random_ids(), random_ids(seed=1))[1].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu"])
def test_both_backends_agree(activation):
    model = GPT(GPTConfig(19, 12, 2, 2, 16, activation=activation), seed=0)
    ids, targets = random_ids(), random_ids(seed=1)
    seen = {}
    for name in ("kernels", "torch"):
        model.zero_grad()
        with backend(name):
            logits, loss = model(ids, targets)
            loss.backward()
        seen[name] = logits.detach(), {key: value.grad.clone() for key, value in model.named_parameters()}
    (ours, our_grads), (theirs, their_grads) = seen["kernels"], seen["torch"]
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    largest = max(grad.abs().max() for grad in their_grads.values())
    for name, grad in our_grads.items():
        assert (grad - their_grads[name]).abs().max() <= 1e-5 * largest, name


def test_activations_differ():
    logits = [GPT(GPTConfig(19, 12, 2, 2, 16, activation=a), seed=0)(random_ids())[0] for a in ("gelu", "gelu_tanh")]
    assert 0 < (logits[0] - logits[1]).abs().max() < 1e-3


def test_a_head_dim_of_ones_own():
    model = GPT(GPTConfig(19, 12, 2, n_head=3, n_embd=16, head_dim=8), seed=0)
    assert model.h[0].attn.c_attn.weight.shape == (72, 16)
    model(random_ids(), random_ids())[1].backward()


def test_dropout_only_in_training():
    model, ids = GPT(GPTConfig(19, 12, 2, 2, 16, dropout=0.5), seed=0), random_ids()
    torch.manual_seed(0)
    first = model(ids)[0]
    assert not torch.equal(first, model(ids)[0])
    torch.manual_seed(0)
    assert torch.equal(first, model(ids)[0])
    model.eval()
    assert torch.equal(model(ids)[0], model(ids)[0])
    assert torch.equal(model(ids)[0], GPT(CONFIG, seed=0)(ids)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype):
    model, ids = GPT(CONFIG, seed=0), random_ids()
    expected, expected_loss = model(ids, ids)
    logits, loss = copy.deepcopy(model).to(dtype)(ids, ids)
    assert logits.dtype == dtype
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(logits.float(), expected, rtol=0, atol=8 * torch.finfo(dtype).eps + 1e-6)
    assert loss.item() == pytest.approx(expected_loss.item(), abs=0.01)


def test_autocast():
    model, ids = GPT(CONFIG, seed=0), random_ids()
    expected, _ = model(ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, loss = model(ids, ids)
    assert logits.dtype == torch.bfloat16 and loss.dtype == torch.float32
    torch.testing.assert_close(logits.float(), expected, rtol=0, atol=0.05)
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def test_state_dict_through_safetensors():
    model, other = GPT(CONFIG, seed=0), GPT(CONFIG, seed=1)
    other.load_tensors(load(save(model.state_dict())))
    assert torch.equal(model(random_ids())[0], other(random_ids())[0])


def test_deepcopy_is_apart():
    model = GPT(CONFIG, seed=0)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.wte.weight.zero_()
    assert other.head(torch.ones(1, 16)).abs().max() == 0
    assert model.wte.weight.abs().max() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("ln_f.bias"), "ln_f.bias is missing"),
        (lambda t: t.update({"lm_head.weight": torch.zeros(2)}), "lm_head.weight is unknown"),
        (
            lambda t: t.update({"wpe.weight": torch.zeros(13, 16)}),
            r"wpe.weight has shape \(13, 16\) instead",
        ),
        (lambda t: t.clear(), "wte.weight is missing; .* and 20 more"),
    ],
)
def test_load_tensors_is_strict(change, message):
    model = GPT(CONFIG, seed=0)
    tensors = dict(GPT(CONFIG, seed=1).state_dict())
    change(tensors)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        model.load_tensors(tensors)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([[1, 2]], TypeError, "ids must be a tensor, not list"),
        (torch.zeros(1, 2), TypeError, "ids must be int64 or int32, not torch.float32"),
        (torch.zeros(2, dtype=torch.int64), ValueError, r"ids must be \(B, T\) .* not \(2,\)"),
        (
            torch.zeros(1, 0, dtype=torch.int64),
            ValueError,
            r"one token at least, not \(1, 0\)",
        ),
        (torch.zeros(0, 3, dtype=torch.int64), ValueError, r"ids must be \(B, T\)"),
        (torch.zeros(1, 13, dtype=torch.int64), ValueError, r"block_size \(12\) columns at most, not 13"),
        (torch.tensor([[0, 19]]), ValueError, r"ids must lie in \[0, 19\), and holds 19"),
        (torch.tensor([[0, -1]]), ValueError, r"ids must lie in \[0, 19\), and holds -1"),
        (
            torch.zeros(1, 2, dtype=torch.int64, device="meta"),
            ValueError,
            "ids must be on the model's device cpu, not meta",
        ),
    ],
)
def test_wrong_ids(ids, error, message):
    model = GPT(CONFIG)
    with pytest.raises(error, match=message):
        model(ids)
    if not isinstance(ids, torch.Tensor) or ids.ndim != 2 or ids.shape[1] != 13:
        with pytest.raises(error, match=message):
            model(ids, ids)


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        (torch.zeros(3, 12), TypeError, "targets must be int64 or int32"),
        (
            torch.zeros(3, 11, dtype=torch.int64),
            ValueError,
            r"shape of ids \(3, 12\), not \(3, 11\)",
        ),
        (torch.full((3, 12), -2), ValueError, r"targets must lie in \[-1, 19\), and holds -2"),
        (torch.full((3, 12), 19), ValueError, r"targets must lie in \[-1, 19\), and holds 19"),
    ],
)
def test_wrong_targets(targets, error, message):
    with pytest.raises(error, match=message):
        GPT(CONFIG)(random_ids(), targets)


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_compiles_into_one_graph(dropout):
    model = GPT(GPTConfig(19, 12, 2, 2, 16, dropout=dropout), seed=0)
    ids, targets = random_ids(), random_ids(seed=1)
    compiled = torch.compile(model, fullgraph=True)
    _, loss = compiled(ids, targets)
    loss.backward()
    grads = [parameter.grad.clone() for parameter in model.parameters()]
    assert all(grad.isfinite().all() for grad in grads)
    if dropout == 0:
        model.zero_grad()
        _, eager_loss = model(ids, targets)
        eager_loss.backward()
        torch.testing.assert_close(loss, eager_loss)
        for grad, parameter in zip(grads, model.parameters(), strict=True):
            torch.testing.assert_close(grad, parameter.grad, rtol=1e-4, atol=1e-6)
