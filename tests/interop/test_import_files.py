"""The files of models: shards, dtypes, prefixes, masks, old spellings; and the memory that loading takes."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

transformers = pytest.importorskip("transformers", reason="the oracle of this test: pip install -e '.[test]'")

from hf_models import (  # noqa: E402
    KINDS,
    assert_same_logits,
    change_config,
    change_tensors,
    random_config,
    random_ids,
    random_model,
    saved,
)

from minigpt_ext.interop import pretrained  # noqa: E402
from minigpt_ext.interop.checkpoint import Checkpoint  # noqa: E402
from minigpt_ext.interop.families import family_of, read_config  # noqa: E402
from minigpt_ext.interop.plan import make_plan  # noqa: E402
from minigpt_ext.model import GPT  # noqa: E402


@pytest.mark.parametrize("kind", KINDS)
def test_shards(kind, tmp_path):
    theirs = random_model(random_config(kind, 1))
    theirs.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same_logits(GPT.from_pretrained(tmp_path), theirs, random_ids(theirs.config, 2, 30))


@pytest.mark.parametrize("kind", KINDS)
def test_old_spellings(kind, tmp_path):
    """config.json as transformers 4 wrote it, and shorter ones."""
    yarn = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16, rope_theta=3e4)
    if kind == "gpt2":
        theirs = saved(tmp_path, kind, n_inner=None, tie_word_embeddings=True)
        n = theirs.config.n_positions
        change_config(tmp_path, remove=["dtype", "tie_word_embeddings", "n_inner"], torch_dtype="float32", n_ctx=n)
    else:
        theirs = saved(tmp_path, kind, rope_parameters=yarn, num_key_value_heads=2)
        old = dict(type="yarn", factor=4.0, original_max_position_embeddings=16)
        change_config(
            tmp_path, remove=["rope_parameters", "dtype"], rope_theta=3e4, rope_scaling=old, torch_dtype="float32"
        )
    assert_same_logits(GPT.from_pretrained(tmp_path), theirs, random_ids(theirs.config, 2, 40))
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert_same_logits(GPT.from_pretrained(tmp_path), again, random_ids(theirs.config, 2, 40))


def test_key_value_heads_and_head_dim_may_be_left_out(tmp_path):
    theirs = saved(tmp_path, "llama", head_dim=None, num_key_value_heads=None)
    change_config(tmp_path, remove=["head_dim", "num_key_value_heads", "attention_bias", "mlp_bias"])
    assert_same_logits(GPT.from_pretrained(tmp_path), theirs, random_ids(theirs.config, 2, 30))


@pytest.mark.parametrize(
    ("kind", "config", "window"),
    [
        ("mistral", dict(sliding_window=None), None),
        ("mistral", dict(sliding_window=7), 7),
        ("qwen2", dict(use_sliding_window=False, sliding_window=7, max_window_layers=0, layer_types=None), None),
        ("qwen2", dict(use_sliding_window=True, sliding_window=7, max_window_layers=0, layer_types=None), 7),
        ("qwen3", dict(use_sliding_window=True, sliding_window=7, max_window_layers=1, layer_types=None), (None, 7)),
        ("qwen3", dict(use_sliding_window=True, sliding_window=7, max_window_layers=28, layer_types=None), None),
    ],
)
def test_windows_as_older_configs_tell_them(kind, config, window, tmp_path):
    """Without layer_types, and with a sliding_window that is not in use."""
    theirs = saved(tmp_path, kind, num_hidden_layers=2, **config)
    change_config(tmp_path, remove=["layer_types"], **{k: v for k, v in config.items() if k != "layer_types"})
    ours = GPT.from_pretrained(tmp_path)
    assert ours.config.window == window
    assert_same_logits(ours, theirs, random_ids(theirs.config, 2, 40))


@pytest.mark.parametrize("kind", KINDS)
def test_dtypes(kind, tmp_path):
    """bfloat16 files: float32 by default, themselves with "auto", and what is asked for."""
    random_model(random_config(kind, 2)).bfloat16().save_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    )
    ours = GPT.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    assert_same_logits(ours, theirs, random_ids(theirs.config, 2, 30))
    for dtype, expected in (("auto", torch.bfloat16), (torch.float64, torch.float64), (torch.float16, torch.float16)):
        model = GPT.from_pretrained(tmp_path, dtype=dtype)
        for name, parameter in model.named_parameters():
            assert parameter.dtype == expected
            assert torch.equal(parameter, ours.get_parameter(name).to(expected))
        if dtype == "auto":
            ids = random_ids(theirs.config, 2, 30)
            with torch.no_grad():
                rounded, exact = model(ids)[0].float(), ours(ids)[0]
            assert (rounded - exact).abs().max() <= 0.1 * exact.abs().max()
    with torch.random.fork_rng():
        torch.set_default_dtype(torch.float64)
        try:
            assert GPT.from_pretrained(tmp_path).wte.weight.dtype == torch.float64
        finally:
            torch.set_default_dtype(torch.float32)


def test_auto_takes_the_widest_of_mixed_dtypes(tmp_path):
    saved(tmp_path, "qwen3")
    halves = {False: torch.float16, True: torch.bfloat16}
    change_tensors(
        tmp_path, lambda tensors: {name: tensor.to(halves["norm" in name]) for name, tensor in tensors.items()}
    )
    assert GPT.from_pretrained(tmp_path, dtype="auto").wte.weight.dtype == torch.float32


@pytest.mark.parametrize("dtype", ["bfloat16", torch.int8, torch.float8_e4m3fn])
def test_dtypes_that_are_none(dtype, tmp_path):
    with pytest.raises(ValueError, match='dtype must be one of torch.float64, .*"auto" or None, not '):
        GPT.from_pretrained(tmp_path, dtype=dtype)


def gpt2_of_160_tensors(directory, prefix):
    """12 layers: 148 parameters and 12 masks, as OpenAI's GPT-2 is kept."""
    theirs = saved(directory, "gpt2", n_layer=12, n_embd=24, n_inner=None, tie_word_embeddings=True)
    n = theirs.config.n_positions

    def old_layout(tensors):
        tensors = {prefix + name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        return tensors | {f"{prefix}h.{i}.attn.bias": torch.ones(n, n).tril().reshape(1, 1, n, n) for i in range(12)}

    change_tensors(directory, old_layout)
    return theirs


@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("with_masked_bias", [False, True])
def test_gpt2s_160_tensors(prefix, with_masked_bias, tmp_path):
    theirs = gpt2_of_160_tensors(tmp_path, prefix)
    assert len(load_file(tmp_path / "model.safetensors")) == 160
    if with_masked_bias:
        extra = {f"{prefix}h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(12)}
        change_tensors(tmp_path, lambda tensors: tensors | extra)
    assert_same_logits(GPT.from_pretrained(tmp_path), theirs, random_ids(theirs.config, 2, 40))
    config = read_config(tmp_path)
    with Checkpoint.open(tmp_path) as checkpoint:
        plan = make_plan(checkpoint, family_of(config), family_of(config).config_of(config))
    assert len(plan.copies) == 148 and len(plan.skipped) == (24 if with_masked_bias else 12) and not plan.wrong
    becomes = plan.becomes()
    assert becomes[f"{prefix}h.3.attn.c_attn.weight"] == "h.3.attn.c_attn.weight transposed"
    assert becomes[f"{prefix}h.3.attn.bias"] == "(the causal mask: a constant)"
    assert list(becomes)[0] in checkpoint.names and set(becomes) == set(checkpoint.names)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_llamas_without_the_prefix_and_with_frequencies(kind, tmp_path):
    theirs = saved(tmp_path, kind, tie_word_embeddings=True)
    frequencies = {f"layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(2)}

    def old_layout(tensors):
        return {name.removeprefix("model."): tensor for name, tensor in tensors.items()} | frequencies

    change_tensors(tmp_path, old_layout)
    assert_same_logits(GPT.from_pretrained(tmp_path), theirs, random_ids(theirs.config, 2, 30))


def test_a_name_on_the_hub(tmp_path, monkeypatch):
    theirs = saved(tmp_path, "gpt2")
    asked = []
    monkeypatch.setattr(pretrained, "resolve_model", lambda name: asked.append(name) or tmp_path)
    assert_same_logits(GPT.from_pretrained("someone/some-model"), theirs, random_ids(theirs.config, 1, 9))
    assert asked == ["someone/some-model"]


PEAK = """
import sys
from minigpt_ext.interop.pretrained import load
from minigpt_ext.model import GPT
def kib(key): return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))
for directory in sys.argv[1:]:
    open("/proc/self/clear_refs", "w").write("5")  # the peak counts from now on
    before = kib("VmRSS")
    model = GPT.from_pretrained(directory)
    sizes = [parameter.nbytes for parameter in model.parameters()]
    print((kib("VmHWM") - before) * 1024, sum(sizes), max(sizes))
    del model
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
def test_the_peak_is_the_model_and_one_tensor(tmp_path):
    """Of bfloat16 files of 50 MB and float32 models of 100 MB; the mapped file would count if it were kept."""
    same = dict(vocab_size=9001, tie_word_embeddings=True)
    configs = [
        random_config("gpt2", 0, n_layer=7, n_embd=512, n_head=8, n_inner=2816, **same),
        random_config(
            "llama", 0, num_hidden_layers=6, hidden_size=512, num_attention_heads=8, num_key_value_heads=8, head_dim=64,
            intermediate_size=1408, **same,
        ),
    ]  # fmt: skip
    for config in configs:
        with torch.random.fork_rng():
            transformers.AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(
                tmp_path / config.model_type
            )
    command = [sys.executable, "-c", PEAK, *(str(tmp_path / config.model_type) for config in configs)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    for line in result.stdout.splitlines():
        peak, model, largest = map(int, line.split())
        assert model > 90e6
        assert peak < model + largest + 4e6, f"{peak / 1e6:.0f} MB for {model / 1e6:.0f} MB of weights"
