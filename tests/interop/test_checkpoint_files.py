"""Checkpoints of one file and of shards: all tensors under one interface, and an index that is held to its shards."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

from minigpt_ext.interop.checkpoint import Checkpoint

INDEX = "model.safetensors.index.json"


def write_index(folder, weight_map, **more):
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map} | more))


@pytest.fixture
def shards(tmp_path):
    save_file({"a": torch.ones(2), "b": torch.zeros(3)}, tmp_path / "model-1.safetensors")
    save_file({"c": torch.full((2, 2), 7.0)}, tmp_path / "model-2.safetensors")
    write_index(tmp_path, {"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"})
    return tmp_path


def test_a_checkpoint_that_transformers_wrote_in_shards(tmp_path):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=99, n_positions=16, n_embd=32, n_layer=3, n_head=2))
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="40KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    with Checkpoint.open(tmp_path / "one") as one, Checkpoint.open(tmp_path / "many") as many:
        assert len(one.files) == 1 and len(many.files) > 2
        assert sorted(one.names) == sorted(many.names)
        weights = model.state_dict()
        for name in one.names:
            assert torch.equal(one.tensor(name), weights[name]) and torch.equal(many.tensor(name), weights[name])
            assert one.info(name).shape == many.info(name).shape == tuple(weights[name].shape)


def test_by_directory_by_file_and_by_index(shards):
    for path in (shards, str(shards), shards / INDEX):
        with Checkpoint.open(path) as checkpoint:
            assert sorted(checkpoint.names) == ["a", "b", "c"]
            assert checkpoint.tensor("c").tolist() == [[7, 7], [7, 7]]
            assert checkpoint.file_of("c").path == shards / "model-2.safetensors"
    with Checkpoint.open(shards / "model-1.safetensors") as checkpoint:
        assert sorted(checkpoint.names) == ["a", "b"]
        with pytest.raises(ValueError, match=r"model-1.safetensors: there is no tensor 'c'"):
            checkpoint.tensor("c")


def test_what_the_index_leaves_out_is_there_too(shards):
    write_index(shards, {"b": "model-1.safetensors"})
    assert sorted(Checkpoint.open(shards).names) == ["a", "b"]


def test_a_single_file_comes_before_an_index(shards):
    save_file({"d": torch.ones(1)}, shards / "model.safetensors")
    assert Checkpoint.open(shards).names == ["d"]


def test_shards_may_lie_in_folders_inside_and_be_links(shards):
    (shards / "inside").mkdir()
    os.rename(shards / "model-2.safetensors", shards / "blob")
    os.symlink("../blob", shards / "inside" / "model-2.safetensors")
    write_index(shards, {"a": "model-1.safetensors", "c": "inside/model-2.safetensors"})
    assert Checkpoint.open(shards).tensor("c").sum() == 28


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "model-1.safetensors", "c": "model-1.safetensors"}, "tensor 'c' is not in model-1.safetensors, where"),
        ({"a": "model-2.safetensors", "c": "model-2.safetensors"}, "tensor 'a' is not in model-2.safetensors, where"),
        ({"a": "model-3.safetensors"}, "shard model-3.safetensors is not there; it is to hold 'a'"),
        (
            {"a": "model-1.safetensors/b.safetensors"},
            "shard 'model-1.safetensors/b.safetensors' cannot be opened: Not a",
        ),
        ({"a": "a" * 300 + ".safetensors"}, "cannot be opened: File name too long"),
        ({"a": "../model-1.safetensors"}, "leads out of the folder"),
        ({"a": "inside/../../model-1.safetensors"}, "leads out of the folder"),
        ({"a": "/etc/model-1.safetensors"}, "leads out of the folder"),
        ({"a": "C:\\model-1.safetensors"}, "leads out of the folder"),
        ({"a": "..\\model-1.safetensors"}, "leads out of the folder"),
        ({"a": "model\0.safetensors"}, r"'model\\x00.safetensors' does not name a safetensors file"),
        ({"a": "\ud800.safetensors"}, "does not name a safetensors file"),
        ({"a": "pytorch_model.bin"}, "'pytorch_model.bin' does not name a safetensors file"),
        ({"a": 1}, "tensor 'a': 1 does not name a safetensors file"),
        ({}, "not an index of shards"),
        ([], "not an index of shards"),
        (None, "not an index of shards"),
    ],
)
def test_an_index_that_disagrees_with_its_shards(shards, weight_map, message):
    write_index(shards, weight_map)
    with pytest.raises(ValueError, match=message) as caught:
        Checkpoint.open(shards)
    assert INDEX in str(caught.value)


def test_a_tensor_in_two_shards(shards):
    save_file({"b": torch.ones(3), "c": torch.ones(1)}, shards / "model-2.safetensors")
    with pytest.raises(ValueError, match="model-2.safetensors: tensor 'b' is also in model-1.safetensors"):
        Checkpoint.open(shards)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("\xff", "is not JSON"),
        ("[" * 100_000, "nests too deep"),
        ("[]", "not an index"),
        ('{"weight_map": {"a": "model-1.safetensors", "a": "model-2.safetensors"}}', "the key 'a' is there twice"),
    ],
)
def test_an_index_that_is_none(shards, text, message):
    (shards / INDEX).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message) as caught:
        Checkpoint.open(shards)
    assert INDEX in str(caught.value)


def test_a_damaged_shard_is_named(shards):
    os.truncate(shards / "model-2.safetensors", 20)
    with pytest.raises(ValueError, match="model-2.safetensors: the first 8 bytes tell of a header of"):
        Checkpoint.open(shards)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.00.pth"])
def test_pickles_are_not_loaded(tmp_path, name):
    torch.save({"a": torch.ones(1)}, tmp_path / name)
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(ValueError, match=f"{name} is a pickle.*never loaded.*save_pretrained"):
            Checkpoint.open(path)


def test_no_weights(tmp_path):
    with pytest.raises(ValueError, match="holds neither model.safetensors nor model.safetensors.index.json$"):
        Checkpoint.open(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "adapter.safetensors")
    with pytest.raises(ValueError, match="it holds adapter.safetensors: name the file that is meant"):
        Checkpoint.open(tmp_path)
    with pytest.raises(FileNotFoundError):
        Checkpoint.open(tmp_path / "nowhere")
    os.mkfifo(tmp_path / INDEX)
    with pytest.raises(ValueError, match="is not a file"):
        Checkpoint.open(tmp_path)
