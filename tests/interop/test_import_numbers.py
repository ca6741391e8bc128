"""Models of transformers, loaded by us: the same logits, the same continuations, the same gradients."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers", reason="the oracle of this test: pip install -e '.[test]'")

from hf_models import KINDS, assert_close, assert_same_logits, random_config, random_ids, random_model  # noqa: E402

from minigpt_ext.interop.families import FAMILIES  # noqa: E402
from minigpt_ext.model import GPT  # noqa: E402

CASES = [(kind, seed) for kind in KINDS for seed in range(6)]


@pytest.fixture(scope="module", params=CASES, ids=[f"{kind} {seed}" for kind, seed in CASES])
def pair(request, tmp_path_factory):
    """A model of transformers, and ours of its files."""
    kind, seed = request.param
    theirs = random_model(random_config(kind, seed), seed)
    directory = tmp_path_factory.mktemp(kind)
    theirs.save_pretrained(directory)
    return theirs, GPT.from_pretrained(directory)


def test_logits(pair):
    theirs, ours = pair
    longest = ours.config.block_size
    assert ours.num_parameters() == theirs.num_parameters()
    for b, t in ((1, 1), (3, 17), (2, longest)):
        assert_same_logits(ours, theirs, random_ids(theirs.config, b, t, seed=t))


def test_decoding_with_the_cache(pair):
    """A prompt, single tokens and chunks, beside all of it in one call of theirs."""
    theirs, ours = pair
    ids = random_ids(theirs.config, 2, ours.config.block_size, seed=1)
    pieces = ids.split([13, 1, 1, 9, 1, 16, 1, ids.shape[1] - 42], dim=1)
    with torch.no_grad():
        cache = ours.new_cache(2)
        actual = torch.cat([ours(piece, cache=cache)[0] for piece in pieces], dim=1)
        assert_close(actual, theirs(ids).logits)


def test_greedy_continuations(pair):
    theirs, ours = pair
    prompt = random_ids(theirs.config, 2, 15, seed=2)
    n_new = ours.config.block_size - 15
    expected = theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=n_new, do_sample=False, pad_token_id=0
    )
    assert expected.shape[1] == ours.config.block_size
    assert ours.generate(prompt, n_new, temperature=0).tolist() == expected.tolist()


def test_gradients(pair):
    theirs, ours = pair
    ids, targets = random_ids(theirs.config, 4, ours.config.block_size, seed=3).chunk(2)
    F.cross_entropy(theirs(ids).logits.flatten(0, 1), targets.flatten()).backward()
    ours(ids, targets)[1].backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    expected = {name: torch.full_like(parameter, torch.nan) for name, parameter in ours.named_parameters()}
    for part in FAMILIES[theirs.config.model_type].parts(ours.config):
        part.fill(expected[part.ours], gradients.pop(part.theirs))
    assert not gradients, "every parameter of theirs is one of ours"
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, expected[name], name)
    theirs.zero_grad()
    ours.zero_grad()


def test_the_cases_are_what_they_are_for():
    """H_kv of 1, 2 and H, tied and untied, all biases, windows in all and in some layers, prompts longer than those."""
    for kind in KINDS:
        configs = [random_config(kind, seed) for seed in range(6)]
        ours = [FAMILIES[kind].config_of(config.to_dict()) for config in configs]
        assert {config.tied_head for config in ours} == {True, False}
        if kind == "gpt2":
            continue
        assert {1, 2} < {config.n_kv_head for config in ours}
        assert any(config.n_kv_head == config.n_head for config in ours)
        assert {config.rope_scaling and config.rope_scaling.kind for config in ours} == {
            None,
            "linear",
            "yarn",
            "llama3",
        }
        biases = {"llama": {True, False, "attention", "mlp"}, "mistral": {False}, "qwen2": {"qkv"}}
        assert {config.bias for config in ours} == biases.get(kind, {"attention", False})
        windows = {"one" if isinstance(config.window, int) else config.window and "some" for config in ours}
        assert windows == {"llama": {None}, "mistral": {None, "one"}}.get(kind, {None, "one", "some"})
        assert any(config.head_dim * config.n_head != config.n_embd for config in ours)
