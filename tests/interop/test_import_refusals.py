"""Weights that do not fit their config: every tensor that is missing, unknown or misshapen is named, and why."""

import pytest
import torch

pytest.importorskip("transformers", reason="the oracle of this test: pip install -e '.[test]'")

from hf_models import assert_same_logits, change_config, change_tensors, random_ids, saved  # noqa: E402

from minigpt_ext.model import GPT  # noqa: E402


def test_a_tied_head_in_the_file_must_be_the_embedding(tmp_path):
    theirs = saved(tmp_path, "qwen2", tie_word_embeddings=True)
    change_tensors(tmp_path, lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"].clone()})
    assert_same_logits(GPT.from_pretrained(tmp_path), theirs, random_ids(theirs.config, 2, 30))
    change_tensors(tmp_path, lambda t: t | {"lm_head.weight": t["lm_head.weight"] * 2})
    message = "model.safetensors: lm_head.weight differs from model.embed_tokens.weight, and the config says .* tied"
    with pytest.raises(ValueError, match=message):
        GPT.from_pretrained(tmp_path)
    change_tensors(tmp_path, lambda t: t | {"lm_head.weight": t["lm_head.weight"].bfloat16()})
    with pytest.raises(ValueError, match=message):
        GPT.from_pretrained(tmp_path)
    change_tensors(tmp_path, lambda t: t | {"lm_head.weight": t["lm_head.weight"][1:].contiguous()})
    with pytest.raises(ValueError, match=r"lm_head.weight has shape \(\d+, \d+\) instead of \(\d+, \d+\)"):
        GPT.from_pretrained(tmp_path)


WRONG = {
    "missing": (
        lambda t: {n: t[n] for n in t if n != "model.norm.weight"},
        "model.safetensors: model.norm.weight is missing",
    ),
    "unknown": (
        lambda t: t | {"model.layers.0.extra": torch.ones(1)},
        r"model.safetensors: 'model\.layers\.0\.extra' is unknown",
    ),
    "of another layer": (
        lambda t: t | {"model.layers.9.mlp.up_proj.weight": torch.ones(1)},
        r"'model\.layers\.9\.mlp\.up_proj\.weight' is unknown",
    ),
    "misshapen": (
        lambda t: t | {"model.layers.1.self_attn.k_proj.weight": torch.ones(3, 2)},
        r"model\.layers\.1\.self_attn\.k_proj\.weight has shape \(3, 2\) instead of \(",
    ),
    "transposed": (
        lambda t: (
            t | {"model.layers.1.mlp.down_proj.weight": t["model.layers.1.mlp.down_proj.weight"].t().contiguous()}
        ),
        r"model\.layers\.1\.mlp\.down_proj\.weight has shape",
    ),
    "integers": (
        lambda t: t | {"model.norm.weight": t["model.norm.weight"].to(torch.int8)},
        "model.norm.weight is of dtype I8, and weights are of F64, F32, F16, BF16",
    ),
    "float8": (
        lambda t: t | {"model.norm.weight": t["model.norm.weight"].to(torch.float8_e4m3fn)},
        "model.norm.weight is of dtype F8_E4M3, and weights are of",
    ),
    "several": (
        lambda t: (
            {n: t.get(n, torch.ones(1)) for n in ["x", "y", *t] if n != "lm_head.weight"}
            | {"model.norm.weight": torch.ones(1)}
        ),
        r"lm_head.weight is missing; .*'x' is unknown; 'y' is unknown",
    ),
    "none at all": (lambda t: {"x": torch.ones(1)}, "there are 1 tensors, too few for 2 layers"),
    "many": (
        lambda t: {n: tensor for n, tensor in t.items() if "mlp" not in n},
        r"is missing; .*; and \d+ more\. By config\.json: vocab_size \d+, hidden_size \d+",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_tensors_that_do_not_fit_are_named(case, tmp_path):
    saved(tmp_path, "mistral", num_hidden_layers=3 if case == "many" else 2, tie_word_embeddings=False)
    change, message = WRONG[case]
    change_tensors(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        GPT.from_pretrained(tmp_path)


def test_vocabularies_that_differ(tmp_path):
    saved(tmp_path, "llama", vocab_size=101)
    change_config(tmp_path, vocab_size=103)
    message = r"model.safetensors: model.embed_tokens.weight has shape \(101, .*\) instead of \(103, .*vocab_size 103"
    with pytest.raises(ValueError, match=message):
        GPT.from_pretrained(tmp_path)


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file is a file; a model is a directory"):
        GPT.from_pretrained(tmp_path / "file")


def test_pickles_are_not_loaded(tmp_path):
    saved(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pytorch_model.bin is a pickle"):
        GPT.from_pretrained(tmp_path)
