"""Every variant of the model: the same numbers in one call, in chunks and token by token; by our kernels and torch."""

import pytest
import torch

from minigpt_ext.backend import backend
from minigpt_ext.model import GPT, GPTConfig

BASE = dict(vocab_size=23, block_size=40, n_layer=3, n_head=4, n_embd=24)
VARIANTS = {
    "rms_norm": dict(norm="rms_norm"),
    "swiglu": dict(activation="swiglu", mlp_width=40),
    "relu_squared": dict(activation="relu_squared"),
    "rope": dict(positions="rope"),
    "rope of a part": dict(positions="rope", rope_dim=2),
    "yarn": dict(positions="rope", rope_scaling=dict(kind="yarn", factor=4, original_block_size=10)),
    "alibi": dict(positions="alibi"),
    "sinusoidal": dict(positions="sinusoidal"),
    "no positions": dict(positions="none"),
    "gqa": dict(n_kv_head=2),
    "mqa": dict(n_kv_head=1, head_dim=10),
    "window": dict(window=5),
    "windows of some layers": dict(window=[3, None, 17]),
    "qk_norm": dict(qk_norm=True),
    "biases of qkv": dict(bias="qkv"),
    "biases of attention": dict(bias="attention"),
    "biases of the mlp": dict(bias="mlp"),
    "untied": dict(tied_head=False),
    "soft-caps": dict(attention_softcap=2.0, logit_softcap=3.0),
    "all modern": dict(
        norm="rms_norm", norm_epsilon=1e-6, activation="swiglu", positions="rope", rope_theta=1e4, n_kv_head=2,
        head_dim=14, window=[7, None, 7], qk_norm=True, bias=False, tied_head=False, logit_softcap=5.0,
    ),
    "alibi, window and soft-cap": dict(positions="alibi", window=6, attention_softcap=1.5, n_kv_head=2),
}  # fmt: skip


def model_of(variant, dtype=torch.float32):
    model = GPT(GPTConfig(**BASE | VARIANTS[variant]), seed=0)
    with torch.no_grad():  # biases and norms with something in them, and scores that differ
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.3)
    return model.to(dtype)


def random_ids(b=2, t=40):
    return torch.randint(23, (b, t), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("variant", VARIANTS)
def test_with_a_cache_the_numbers_are_those_of_one_call(variant):
    model, ids = model_of(variant).eval(), random_ids()
    with torch.no_grad():
        expected, _ = model(ids)
        cache = model.new_cache(2)
        assert cache.k[0].shape[2:] == (model.config.n_kv_head, model.config.head_dim)
        parts = [model(part, cache=cache)[0] for part in ids.split([11, 9, *[1] * 20], dim=1)]
    difference = (torch.cat(parts, dim=1) - expected).abs().max()
    assert difference <= 2e-5 * expected.abs().max()


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_gradients_by_our_kernels_equal_those_by_torchs_ops_in_float64(variant):
    ids = random_ids()
    results = {}
    for name, dtype in (("kernels", torch.float32), ("torch", torch.float64)):
        model = model_of(variant, dtype)
        with backend(name):
            logits, loss = model(ids[:, :-1], ids[:, 1:])
        loss.backward()
        results[name] = logits, {name: parameter.grad for name, parameter in model.named_parameters()}
    (logits, gradients), (expected, expected_gradients) = results["kernels"], results["torch"]
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    for name, expected in expected_gradients.items():
        assert (gradients[name] - expected).abs().max() <= 5e-5 * expected.abs().max() + 1e-9, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_differs_from_the_plain_model_and_sees_nothing_ahead(variant):
    """What is switched on changes the numbers; and a token's logits do not depend on those after it."""
    model, ids = model_of(variant).eval(), random_ids(1)
    with torch.no_grad():
        logits, _ = model(ids)
        changed = ids.clone()
        changed[0, 20:] = (ids[0, 20:] + 1) % 23
        torch.testing.assert_close(model(changed)[0][:, :20], logits[:, :20], rtol=0, atol=1e-5)
    assert model.num_parameters() == sum(tensor.numel() for tensor in model.state_dict().values())
    described = GPTConfig.from_dict(model.config.to_dict())
    assert described == model.config and described != GPTConfig(**BASE)


@pytest.mark.parametrize("variant", ["all modern", "alibi", "sinusoidal"])
def test_a_variant_compiles_into_one_graph(variant):
    torch.compiler.reset()
    model, ids = model_of(variant), random_ids()
    logits, loss = torch.compile(model, fullgraph=True, backend="aot_eager")(ids, ids)
    loss.backward()
    torch.testing.assert_close(logits, model(ids)[0])
    torch.compiler.reset()


def test_a_window_forgets_and_a_layer_without_one_does_not():
    ids = random_ids(1)
    changed = ids.clone()
    changed[0, 0] = (ids[0, 0] + 1) % 23
    for window, forgets in ((2, True), ([2, 2, None], False)):
        model = GPT(GPTConfig(**BASE, window=window, positions="none"), seed=0).eval()
        with torch.no_grad():
            same = torch.equal(model(ids)[0][:, 10:], model(changed)[0][:, 10:])
        assert same == forgets  # three layers of a window of 2 see three tokens back


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(n_kv_head=3), "n_kv_head must divide n_head 4, and 3 does not"),
        (dict(window=-1), "window must be a positive integer, None, or a list of these"),
        (dict(window=[1, 2]), r"window has 2 entries, one a layer, and there are 3 layers \(n_layer\)"),
        (dict(positions="rotary"), "positions must be one of learned, rope, alibi, sinusoidal, none, not 'rotary'"),
        (dict(positions="rope", rope_dim=3), r"rope_dim must be even and head_dim \(6\) at most, not 3"),
        (dict(positions="rope", rope_dim=8), r"rope_dim must be even and head_dim \(6\) at most, not 8"),
        (dict(rope_dim=4), "rope_dim and rope_scaling are for positions='rope', not 'learned'"),
        (dict(positions="rope", head_dim=5), r"rope_dim must be even and head_dim \(5\) at most, not 5"),
        (dict(rope_theta=0), "rope_theta must be a positive number, not 0"),
        (dict(positions="rope", rope_scaling="yarn"), "rope_scaling must be a mapping such as"),
        (dict(positions="rope", rope_scaling=dict(kind="linear")), "rope_scaling lacks factor"),
        (dict(positions="rope", rope_scaling=dict(type="linear")), "rope_scaling: unknown field type; the fields are"),
        (dict(mlp_width=0), "mlp_width must be a positive integer, not 0"),
        (dict(norm="rms"), "norm must be one of layer_norm, rms_norm, not 'rms'"),
        (dict(attention_softcap=0.0), "attention_softcap must be a positive number, not 0.0"),
        (dict(logit_softcap=-1), "logit_softcap must be a positive number, not -1"),
        (dict(qk_norm="yes"), "qk_norm must be one of True, False, not 'yes'"),
        (dict(bias="kv"), "bias must be one of True, False, qkv, attention, mlp, not 'kv'"),
    ],
)
def test_a_wrong_field_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**BASE | fields)
