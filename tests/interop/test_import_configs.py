"""config.json: what it describes, beside transformers; and what is refused, by the names of field and value."""

import json

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="the oracle of this test: pip install -e '.[test]'")

from hf_models import KINDS, assert_same_logits, change_config, random_config, random_ids, saved  # noqa: E402

from minigpt_ext.interop.families import FAMILIES, family_of, read_config  # noqa: E402
from minigpt_ext.model import GPT, GPTConfig, RopeScaling  # noqa: E402
from minigpt_ext.model.positions import PositionTables  # noqa: E402

LLAMA = dict(
    model_type="llama", vocab_size=99, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=64,
)  # fmt: skip
GPT2 = dict(model_type="gpt2", vocab_size=99, n_embd=48, n_head=4, n_layer=2, n_positions=64)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)


def config_of(values):
    return family_of(values).config_of(values)


def test_llama_by_its_defaults():
    assert config_of(LLAMA) == GPTConfig(
        vocab_size=99, block_size=64, n_layer=2, n_head=4, n_embd=48, head_dim=12, bias=False, norm="rms_norm",
        norm_epsilon=1e-6, activation="swiglu", mlp_width=80, n_kv_head=4, positions="rope", rope_theta=10000.0,
        tied_head=False,
    )  # fmt: skip


def test_gpt2_by_its_defaults():
    assert config_of(GPT2) == GPTConfig(vocab_size=99, block_size=64, n_layer=2, n_head=4, n_embd=48)
    assert config_of(dict(model_type="gpt2", vocab_size=50257, n_ctx=1024, n_embd=768, n_head=12, n_layer=12)) == (
        GPTConfig.preset("gpt2")
    )


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_those_of_transformers(kind):
    """A config with the sizes alone, read by us and by transformers and written out by it in full."""
    sizes = (GPT2 if kind == "gpt2" else LLAMA | dict(num_key_value_heads=2)) | dict(model_type=kind)
    full = transformers.AutoConfig.for_model(**sizes).to_dict()
    assert config_of(sizes) == config_of(full)


@pytest.mark.parametrize(
    "scaling",
    [
        dict(rope_type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0),
        dict(rope_type="yarn", factor=16.0),
        dict(rope_type="linear", factor=16.0),
    ],
)
def test_rotations_far_out(scaling):
    """The angles of 131,072 positions, where a frequency wrong by its last bits would be seen."""
    rope = scaling | dict(rope_theta=5e5)
    if scaling["rope_type"] != "linear":
        rope |= dict(original_max_position_embeddings=8192)
    values = LLAMA | dict(head_dim=64, max_position_embeddings=131072, rope_parameters=rope)
    theirs = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(transformers.AutoConfig.for_model(**values))
    expected = theirs(torch.zeros(1), torch.arange(131072)[None])
    place = PositionTables(config_of(values)).place(0, 131072, like=torch.zeros(1))
    for ours, table in zip((place.cos, place.sin), expected, strict=True):
        assert (ours - table[0, :, :32]).abs().max() <= 1e-6


def test_mistral_without_the_field_has_the_window_of_its_first_version():
    assert config_of(LLAMA | dict(model_type="mistral")).window == 4096
    assert config_of(LLAMA | dict(model_type="mistral", sliding_window=None)).window is None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (dict(rope_theta=5e5), (5e5, None)),
        (dict(rope_parameters=dict(rope_type="default", rope_theta=5e5)), (5e5, None)),
        (dict(rope_parameters=dict(rope_theta=5e5, rope_type="default"), rope_theta=5e5), (5e5, None)),
        (dict(rope_scaling=None, rope_theta=3e4), (3e4, None)),
        (dict(rope_scaling=dict(type="linear", factor=2)), (1e4, RopeScaling("linear", 2))),
        (dict(rope_scaling=YARN, rope_theta=1e6), (1e6, RopeScaling("yarn", 4.0, 16))),
        (dict(rope_scaling=YARN | dict(type="yarn", finetuned=True)), (1e4, RopeScaling("yarn", 4.0, 16))),
        (dict(rope_scaling=dict(type="yarn", factor=2.0)), (1e4, RopeScaling("yarn", 2.0, 64))),
        (
            dict(rope_scaling=dict(type="yarn", factor=None, original_max_position_embeddings=16)),
            (1e4, RopeScaling("yarn", 4.0, 16)),
        ),
        (
            dict(rope_scaling=dict(type="yarn", factor=2.0), original_max_position_embeddings=8),
            (1e4, RopeScaling("yarn", 2.0, 8)),
        ),
    ],
)
def test_spellings_of_rope(fields, expected):
    config = config_of(LLAMA | fields)
    assert (config.rope_theta, config.rope_scaling) == expected


# As they stand on the hub, in the spelling of their time.
REAL = {
    "SmolLM2-135M": dict(
        model_type="llama", attention_bias=False, hidden_act="silu", hidden_size=576, intermediate_size=1536,
        is_llama_config=True, max_position_embeddings=8192, mlp_bias=False, num_attention_heads=9, num_hidden_layers=30,
        num_key_value_heads=3, pretraining_tp=1, rms_norm_eps=1e-5, rope_interleaved=False, rope_scaling=None,
        rope_theta=100000, tie_word_embeddings=True, torch_dtype="bfloat16", vocab_size=49152,
    ),
    "Llama-3.2-1B": dict(
        model_type="llama", attention_bias=False, head_dim=64, hidden_act="silu", hidden_size=2048,
        intermediate_size=8192, max_position_embeddings=131072, mlp_bias=False, num_attention_heads=32,
        num_hidden_layers=16, num_key_value_heads=8, rms_norm_eps=1e-5, rope_theta=500000.0, tie_word_embeddings=True,
        rope_scaling=dict(factor=32.0, high_freq_factor=4.0, low_freq_factor=1.0,
                          original_max_position_embeddings=8192, rope_type="llama3"), vocab_size=128256,
    ),
    "Mistral-7B-v0.1": dict(
        model_type="mistral", hidden_act="silu", hidden_size=4096, intermediate_size=14336,
        max_position_embeddings=32768, num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=8,
        rms_norm_eps=1e-5, rope_theta=10000.0, sliding_window=4096, tie_word_embeddings=False, vocab_size=32000,
    ),
    "Qwen2.5-0.5B": dict(
        model_type="qwen2", hidden_act="silu", hidden_size=896, intermediate_size=4864, max_position_embeddings=32768,
        max_window_layers=24, num_attention_heads=14, num_hidden_layers=24, num_key_value_heads=2, rms_norm_eps=1e-6,
        rope_theta=1000000.0, sliding_window=32768, tie_word_embeddings=True, use_mrope=False, use_sliding_window=False,
        vocab_size=151936,
    ),
    "Qwen3-0.6B": dict(
        model_type="qwen3", attention_bias=False, head_dim=128, hidden_act="silu", hidden_size=1024,
        intermediate_size=3072, max_position_embeddings=40960, max_window_layers=28, num_attention_heads=16,
        num_hidden_layers=28, num_key_value_heads=8, rms_norm_eps=1e-6, rope_scaling=None, rope_theta=1000000,
        sliding_window=None, tie_word_embeddings=True, use_sliding_window=False, vocab_size=151936,
    ),
    "gpt2": dict(
        model_type="gpt2", activation_function="gelu_new", attn_pdrop=0.1, layer_norm_epsilon=1e-5, n_ctx=1024,
        n_embd=768, n_head=12, n_layer=12, n_positions=1024, vocab_size=50257,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_models_people_have(name):
    """The same parameters as transformers', by names and shapes, without memory for any."""
    values = REAL[name]
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**values))
    family = family_of(values)
    shapes = {part.theirs: part.shape for part in family.parts(family.config_of(values))}
    assert shapes == {name: tuple(parameter.shape) for name, parameter in theirs.named_parameters()}


REFUSED = [
    ({}, '"model_type" is None; supported are gpt2, llama, mistral, qwen2, qwen3 '),
    (dict(model_type="mamba"), "\"model_type\" is 'mamba'; supported are gpt2, llama"),
    (dict(model_type=["llama"]), "supported are"),
    (GPT2 | dict(activation_function="relu"), "activation_function is 'relu'; supported are gelu_new, gelu_py"),
    (GPT2 | dict(scale_attn_weights=False), "scale_attn_weights is False; supported is True only"),
    (GPT2 | dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx is True; supported is False"),
    (GPT2 | dict(add_cross_attention=True), "add_cross_attention is True"),
    (GPT2 | dict(reorder_and_upcast_attn="yes"), "reorder_and_upcast_attn must be true or false, not 'yes'"),
    (GPT2 | dict(n_ctx=32), "n_positions and n_ctx are two names of one field, and differ: 64 and 32"),
    (GPT2 | dict(n_embd=50), "n_embd must be a multiple of n_head, and 50 is none of 4"),
    (GPT2 | dict(n_embd=2048), "n_embd / n_head, the width of a head, must be 256 at most, not 2048 / 4"),
    (GPT2 | dict(n_head=None), "n_head is missing"),
    (GPT2 | dict(n_inner=0), "n_inner must be an integer from 1 to 16777216, not 0"),
    (GPT2 | dict(layer_norm_epsilon=-1.0), "layer_norm_epsilon must be a positive number, not -1.0"),
    (LLAMA | dict(hidden_act="gelu"), "hidden_act is 'gelu'; supported are silu, swish"),
    (LLAMA | dict(quantization_config=dict(bits=4)), "quantization_config is there: its weights are packed integers"),
    (LLAMA | dict(per_layer_config={"0": {}}), "per_layer_config is there"),
    (LLAMA | dict(hidden_size="48"), "hidden_size must be an integer from 1 to 16777216, not '48'"),
    (LLAMA | dict(hidden_size=48.0), "hidden_size must be an integer"),
    (LLAMA | dict(hidden_size=True), "hidden_size must be an integer"),
    (LLAMA | dict(hidden_size=50), "hidden_size must be a multiple of num_attention_heads where head_dim|hidden_size"),
    (LLAMA | dict(hidden_size=52), "head_dim must be even, since dims rotate in pairs, not 13"),
    (LLAMA | dict(head_dim=257), "head_dim must be an integer from 1 to 256, not 257"),
    (LLAMA | dict(num_key_value_heads=3), "num_key_value_heads must divide num_attention_heads 4, and 3 does not"),
    (LLAMA | dict(vocab_size=10**30), "vocab_size must be an integer from 1 to 2147483648, not 1000000"),
    (LLAMA | dict(num_hidden_layers=10**9), "num_hidden_layers must be an integer from 1 to 4096, not 1000000000"),
    (LLAMA | dict(rms_norm_eps=10**400), "rms_norm_eps must be a positive number"),
    (LLAMA | dict(tie_word_embeddings=1), "tie_word_embeddings must be true or false, not 1"),
    (LLAMA | dict(sliding_window=8), "sliding_window is there: models of type llama see all"),
    (LLAMA | dict(rope_scaling="linear"), "rope_scaling must be an object, not 'linear'"),
    (LLAMA | dict(rope_scaling=dict(type="dynamic", factor=2.0)), "rope_scaling.type is 'dynamic'; supported are def"),
    (LLAMA | dict(rope_parameters=dict(rope_type="longrope")), "rope_parameters.rope_type is 'longrope'; supported"),
    (LLAMA | dict(rope_scaling=dict(type="linear", rope_type="yarn")), "are two names of one field, and differ"),
    (LLAMA | dict(rope_scaling=YARN, rope_parameters=YARN | dict(factor=2.0)), "rope_scaling are two names of one fi"),
    (LLAMA | dict(rope_scaling=YARN | dict(mrope_section=[1])), "rope_scaling has 'mrope_section'; known are atten"),
    (LLAMA | dict(rope_parameters=dict(full_attention={})), "rope_parameters has 'full_attention'; known are"),
    (LLAMA | dict(rope_scaling=dict(type="linear")), "rope_scaling.factor is missing"),
    (LLAMA | dict(rope_scaling=dict(type="linear", factor=0.5)), "factor must be at least 1, not 0.5"),
    (LLAMA | dict(rope_scaling=dict(type="linear", factor="2")), "rope_scaling.factor must be a positive number, not"),
    (LLAMA | dict(rope_scaling=dict(type="llama3", factor=8.0)), "rope_scaling.low_freq_factor is missing"),
    (LLAMA | dict(rope_scaling=YARN | dict(truncate=1)), "rope_scaling.truncate must be true or false, not 1"),
    (LLAMA | dict(rope_scaling=YARN, rope_theta=1.0), "rope_theta must be above 1 where rope_scaling is yarn"),
    (LLAMA | dict(rope_theta=2.0, rope_parameters=dict(rope_theta=3.0)), "rope_theta and rope_parameters.rope_theta d"),
    (LLAMA | dict(partial_rotary_factor=0.5), "partial_rotary_factor is 0.5; .* supported is 1 only"),
    (LLAMA | dict(layer_types=["full_attention"]), "layer_types must be a list with an entry a layer, 2 of them"),
    (LLAMA | dict(layer_types=["full_attention", "chunked_attention"]), "layer 1 is 'chunked_attention'; supported"),
    (LLAMA | dict(layer_types=["full_attention", "sliding_attention"]), "layer 1 is sliding_attention, and no sliding"),
    (
        LLAMA | dict(model_type="mistral", sliding_window=4, layer_types=["full_attention", "sliding_attention"]),
        "layer 0 is full_attention, and in models of type mistral all have the window",
    ),
    (LLAMA | dict(model_type="mistral", sliding_window=0), "sliding_window must be an integer from 1 to"),
    (
        LLAMA | dict(model_type="qwen2", use_sliding_window=True, max_window_layers=-1),
        "max_window_layers must be an integer from 0",
    ),
]


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_refused(values, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message) as caught:
        GPT.from_pretrained(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_what_makes_no_difference_is_taken(tmp_path):
    """Settings of trainings and of programs, and the second spelling of one value."""
    theirs = saved(tmp_path, "llama")
    change_config(
        tmp_path,
        attention_dropout=0.1,
        pretraining_tp=2,
        use_cache=False,
        hidden_act="swish",
        auto_map={},
        unheard_of=[1],
    )
    assert_same_logits(GPT.from_pretrained(tmp_path), theirs, random_ids(theirs.config, 2, 20))
    theirs = saved(tmp_path, "gpt2", seed=3)
    change_config(tmp_path, activation_function="gelu_fast", resid_pdrop=0.1, attn_pdrop=0.3, hidden_size=None)
    ours = GPT.from_pretrained(tmp_path)
    assert ours.config.dropout == 0
    assert_same_logits(ours, theirs, random_ids(theirs.config, 2, 20))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ('{"model_type": "llama", "model_type": "gpt2"}', "is not JSON: the key 'model_type' is there twice"),
        ("[1]", r"must hold an object, and holds \[1\]"),
        ("[" * 100_000, "nests too deep"),
        ('{"a": ' + "9" * 10_000 + "}", "is not JSON"),
        (" " * 10_000_001, "a config of 10000001 bytes; 10000000 are the limit"),
    ],
)
def test_files_that_are_no_config(text, message, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=f"config.json.*{message}"):
        read_config(tmp_path)


NASTY = [
    None, True, 0, 1, -1, 3, 2**24, 2**31, 10**30, 10**400, 0.5, 1e308, 1e-308, float("inf"), float("nan"), "x", [],
    [None] * 3, {}, {"rope_type": "yarn"},
]  # fmt: skip
IDLE = (
    "summary", "bos", "eos", "pad", "attn_p", "embd_p", "resid_p", "attention_d", "init", "use_cache", "transformers",
    "arch",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_no_value_of_a_field_does_harm(kind, tmp_path):
    """Whatever stands in a field, the model loads and computes, or a ValueError names the file."""
    theirs = saved(tmp_path, kind, seed=2)
    original = json.loads((tmp_path / "config.json").read_text())
    names = [name for name in original if not name.startswith(IDLE)]
    fields = [(name, None) for name in names]
    if kind != "gpt2":
        fields += [(name, None) for name in ("sliding_window", "rope_scaling", "rope_theta") if name not in names]
        fields += [("rope_parameters", name) for name in {**original["rope_parameters"], "truncate": 0, "factor": 0}]
    ids = random_ids(theirs.config, 1, 1)
    outcomes = {"loaded": 0, "refused": 0}
    for name, inner in fields:
        for value in NASTY:
            values = dict(original)
            values[name] = value if inner is None else original.get(name, {}) | {inner: value}
            (tmp_path / "config.json").write_text(json.dumps(values))
            try:
                model = GPT.from_pretrained(tmp_path)
            except ValueError as error:
                assert str(tmp_path) in str(error) and len(str(error)) < 2000
                outcomes["refused"] += 1
            else:
                outcomes["loaded"] += 1
                with torch.no_grad():
                    assert model(ids)[0].shape == (1, 1, theirs.config.vocab_size)
    assert min(outcomes.values()) > 20, outcomes


def test_every_kind_is_in_the_tests():
    assert set(FAMILIES) == set(KINDS)
    for kind in KINDS:
        assert random_config(kind, 0).model_type == kind
