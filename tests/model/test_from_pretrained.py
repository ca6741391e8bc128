"""GPT.from_pretrained: a run directory back into a model, and a clear word about everything that is none."""

import json

import pytest
import torch
from safetensors.torch import save_file

from minigpt_ext.model import GPT, GPTConfig

CONFIG = GPTConfig(vocab_size=7, block_size=8, n_layer=1, n_head=2, n_embd=8, dropout=0.1)


@pytest.fixture
def run(tmp_path):
    model = GPT(CONFIG, seed=0)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {"format": "minigpt-run", "version": 1, "model": CONFIG.to_dict(), "training": {"seed": 0}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_round_trip(run):
    before = torch.get_rng_state()
    model = GPT.from_pretrained(run)
    assert torch.equal(torch.get_rng_state(), before), "loading must not draw random numbers"
    assert model.config == CONFIG and not model.training
    for name, weight in GPT(CONFIG, seed=0).state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_device_and_path_as_text(run):
    assert GPT.from_pretrained(str(run), device="cpu").wte.weight.device.type == "cpu"


def test_no_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no directory .*nowhere"):
        GPT.from_pretrained(tmp_path / "nowhere")


def test_not_a_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no model: it holds no config.json.*tokenizer.json"):
        GPT.from_pretrained(tmp_path)


def test_no_model_yet(run):
    (run / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has not saved a model yet"):
        GPT.from_pretrained(run)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a config: it must hold an object"),
        ('{"format": "minigpt"}', '"model_type" is None; supported are gpt2, llama, .*the runs of `minigpt train`'),
        ('{"format": "minigpt-run", "version": 2}', '"version" is 2; this program reads runs of version 1'),
        ('{"format": "minigpt-run", "version": 1}', "must be a mapping of fields, not NoneType"),
        ('{"format": "minigpt-run", "version": 1, "model": {"n_layer": 2}}', "lacks vocab_size"),
    ],
)
def test_wrong_config(run, text, message):
    (run / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        GPT.from_pretrained(run)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (dict(n_layer=10**9), "model.safetensors: there are 16 tensors, too few for 1000000000 layers"),
        (dict(vocab_size=10**18), "config.json: a model of these sizes is more than torch can count"),
        (dict(n_embd=10**18), "config.json: a model of these sizes is more than torch can count"),
        (dict(vocab_size=10**9), r"wte.weight has shape \(7, 8\) instead of \(1000000000, 8\).* vocab_size 1000000000"),
    ],
)
def test_sizes_that_are_not_the_weights_take_no_memory(run, field, message):
    config = json.loads((run / "config.json").read_text())
    config["model"] |= field
    config["model"] |= dict(head_dim=None, mlp_width=None) if "n_embd" in field else {}
    if "n_embd" in field:
        config["model"]["n_head"] = config["model"]["n_kv_head"] = 10**16
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        GPT.from_pretrained(run)


def test_wrong_tensors(run):
    tensors = GPT(CONFIG, seed=0).state_dict()
    tensors["extra"] = tensors.pop("ln_f.bias")
    tensors["wpe.weight"] = torch.zeros(9, 8)
    save_file(tensors, run / "model.safetensors")
    with pytest.raises(
        ValueError, match="model.safetensors: .*ln_f.bias is missing; 'extra' is unknown; wpe.weight has"
    ):
        GPT.from_pretrained(run)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a file of 0 bytes"),
        (b"not a model", "the first 8 bytes tell of a header of .* bytes"),
        (b"\xff" * 64, "the first 8 bytes tell of a header of .* bytes"),
    ],
)
def test_broken_weights(run, content, message):
    (run / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=f"model.safetensors: {message}"):
        GPT.from_pretrained(run)
