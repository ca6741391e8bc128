"""`minigpt inspect`: what it says of files is what is in them, and what it says becomes of tensors is what does."""

import json
import os
import re
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from safetensors_check import entry, write_raw
from typer.testing import CliRunner

from minigpt_ext.cli import app, main
from minigpt_ext.interop.inspect import inspect
from minigpt_ext.model import GPT, GPTConfig


def command(*arguments):
    """What the command prints."""
    result = CliRunner().invoke(app, ["inspect", *map(str, arguments)])
    assert result.exit_code == 0, result.exception
    return result.stdout


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """The 160 tensors of the oldest files: no prefix, and a mask in every layer."""
    config = transformers.GPT2Config(vocab_size=101, n_positions=16, n_embd=24, n_layer=12, n_head=2)
    model = transformers.GPT2LMHeadModel(config)
    folder = tmp_path_factory.mktemp("gpt2")
    config.save_pretrained(folder)
    tensors = {name: tensor.clone() for name, tensor in model.transformer.state_dict().items()}
    mask = torch.ones(16, 16).tril().view(1, 1, 16, 16)
    tensors |= {f"h.{layer}.attn.bias": mask.clone() for layer in range(12)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder, model


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    config = transformers.LlamaConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    model = transformers.LlamaForCausalLM(config)
    folder = tmp_path_factory.mktemp("llama")
    model.save_pretrained(folder, max_shard_size="40KB")
    return folder, model


@pytest.fixture
def run(tmp_path):
    config = GPTConfig(vocab_size=7, block_size=8, n_layer=2, n_head=2, n_embd=8)
    save_file(GPT(config, seed=0).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps({"format": "minigpt-run", "version": 1, "model": config.to_dict()})
    )
    return tmp_path


def test_gpt2_with_its_masks_a_line_for_all_layers(gpt2):
    folder, model = gpt2
    text = command(folder)
    assert f"gpt2, {model.num_parameters():,} parameters; 160 tensors" in text
    assert f"not counted: {12 * 16 * 16:,} numbers of 12 tensors" in text
    assert "n_layer 12, n_head 2, n_kv_head 2, head_dim 12, n_embd 24, mlp_width 96" in text
    rows = {line.split()[0]: line.split() for line in text.splitlines() if " F32 " in line}
    assert len(rows) == 17  # 12 kinds in a layer, a mask, two embeddings, two of the last norm
    assert rows["h.{0-11}.attn.c_attn.weight"] == [
        "h.{0-11}.attn.c_attn.weight", "12", "24", "x", "72", "F32", f"{12 * 24 * 72 * 4:,}",
        "h.{n}.attn.c_attn.weight", "transposed",
    ]  # fmt: skip
    assert "(the causal mask: a constant)" in " ".join(rows["h.{0-11}.attn.bias"])
    assert "Every tensor has its place here" in text


def test_every_tensor_on_request(gpt2):
    text = command(gpt2[0], "--all")
    assert len([line for line in text.splitlines() if " F32 " in line]) == 160
    assert re.search(r"^h\.7\.mlp\.c_fc\.weight .* h\.7\.mlp\.c_fc\.weight transposed$", text, re.MULTILINE)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_is_said_to_become_of_a_tensor_does(family, request):
    folder, model = request.getfixturevalue(family)
    told = json.loads(command(folder, "--json"))
    ours = GPT.from_pretrained(folder).state_dict()
    theirs = {}
    for file in told["files"]:
        theirs |= load_file(folder / file["name"])
        assert file["bytes"] == (folder / file["name"]).stat().st_size
    assert {tensor["name"] for tensor in told["tensors"]} == set(theirs)
    seen = {name: 0 for name in ours}
    for tensor in told["tensors"]:
        expected = theirs[tensor["name"]]
        assert tensor["shape"] == list(expected.shape) and tensor["bytes"] == expected.nbytes
        if tensor["constant"]:
            assert tensor["becomes"] == f"({tensor['constant']})"
            continue
        name, begin, end, transposed = re.fullmatch(
            r"([\w.]+?)(?:\[(\d+):(\d+)\])?( transposed)?", tensor["becomes"]
        ).groups()
        place = ours[name][int(begin) : int(end)] if begin else ours[name]
        assert torch.equal(place, expected.t() if transposed else expected)
        seen[name] += place.numel()
    assert seen == {name: tensor.numel() for name, tensor in ours.items()}
    assert told["parameters"] == model.num_parameters() and told["problems"] == []
    assert told["config"]["n_layer"] == model.config.num_hidden_layers


def test_shards_are_listed_and_rows_say_where_they_lie(llama):
    text = command(llama[0], "--all")
    files = re.findall(r"^(model-\d+-of-\d+\.safetensors) ", text, re.MULTILINE)
    assert len(files) > 2 and files == sorted(file.name for file in llama[0].glob("*.safetensors"))
    assert re.search(
        r"q_proj\.weight .* model-\d+-of-\d+\.safetensors +h\.2\.attn\.c_attn\.weight\[0:32\]$", text, re.M
    )


def test_a_run_and_its_file(run):
    text = command(run)
    assert ": minigpt, " in text and re.search(r"^h\.\{0-1\}\.ln_1\.weight .* h\.\{n\}\.ln_1\.weight$", text, re.M)
    assert inspect(run / "model.safetensors").family == "minigpt"


def test_a_file_alone(gpt2, tmp_path):
    os.link(gpt2[0] / "model.safetensors", tmp_path / "other.safetensors")
    found = inspect(tmp_path / "other.safetensors")
    assert found.num_parameters == gpt2[1].num_parameters() and len(found.constants) == 12
    text = command(tmp_path / "other.safetensors")
    assert "what becomes of these tensors cannot be told" in text and "(the causal mask: a constant)" in text


def test_what_stands_against_loading_is_told(gpt2, llama, tmp_path):
    tensors = load_file(gpt2[0] / "model.safetensors")
    tensors["extra"] = tensors.pop("ln_f.bias")
    tensors["wpe.weight"] = torch.zeros(9, 24)
    save_file(tensors, tmp_path / "model.safetensors")
    text = command(tmp_path)
    assert "This cannot be loaded here:" in text and "it holds no config.json" in text
    (tmp_path / "config.json").write_text((gpt2[0] / "config.json").read_text())
    text = command(tmp_path)
    for phrase in ("ln_f.bias is missing", "'extra' is unknown", "wpe.weight has shape (9, 24) instead of (16, 24)"):
        assert phrase in text
    assert re.search(r"^extra .* \?$", text, re.MULTILINE)
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    found = inspect(tmp_path)
    assert found.family is None and "mamba" in found.problems[0] and str(tmp_path / "config.json") in found.problems[0]


def test_odd_names_neither_break_the_page_nor_reach_the_terminal(tmp_path):
    names = [
        "a\x1b[2Jb",
        "h.3.x",
        "h.1.x",
        "h.2.x",
        "h.7.x",
        "h.{n}.x",
        "h.{1-3}.x",
        "9" * 5000 + ".y",
        "{n}.0.z",
        "long" * 100,
        "h.3.lone",
    ]
    header = {name: entry("I8", [], [i, i + 1]) for i, name in enumerate(names)}
    write_raw(tmp_path / "odd.safetensors", json.dumps(header | {"__metadata__": {"a\n": "b\x1b"}}), bytes(len(names)))
    text = command(tmp_path / "odd.safetensors")
    assert "\x1b" not in text and "h.{1-3,7}.x" in text and "h.3.lone" in text
    assert max(map(len, text.splitlines())) < 200
    assert "one number" in text and f"{len(names)} tensors, {len(names)} bytes" in text


def test_errors_are_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle" / "pytorch_model.bin").write_bytes(b"\x80")
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 64)
    for path, message in [
        (tmp_path / "nowhere", "there is no directory"),
        (tmp_path / "empty", "holds neither model.safetensors nor"),
        (tmp_path / "pickle", "is a pickle"),
        (tmp_path / "broken.safetensors", "broken.safetensors: the first 8 bytes tell of a header of"),
    ]:
        monkeypatch.setattr(sys, "argv", ["minigpt", "inspect", str(path)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert ended.value.code == 2 and printed.out == ""
        assert printed.err.startswith("error: ") and message in printed.err and printed.err.count("\n") == 1
