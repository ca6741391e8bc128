"""Models by name, against a server of our own on this machine in place of the hub."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hub_server import COMMIT, HubServer
from safetensors.torch import save
from typer.testing import CliRunner

from minigpt_ext.cli import app
from minigpt_ext.interop.checkpoint import Checkpoint
from minigpt_ext.interop.hub import resolve_model

constants = pytest.importorskip("huggingface_hub.constants", reason="the extra `hub` is not installed")

ROOT = Path(__file__).resolve().parents[2]
CONFIG = b'{"model_type": "gpt2"}'
WEIGHTS = save({"a": torch.arange(5.0), "b": torch.ones(300)})
INDEX = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()


@pytest.fixture
def server():
    server = HubServer()
    server.models["owner/small"] = {
        "config.json": CONFIG,
        "model.safetensors": WEIGHTS,
        "tokenizer.json": b"{}",
        "merges.txt": b"a b",
        "README.md": b"about",
        "modeling.py": b"print('run')",
        "pytorch_model.bin": b"pickle",
        "onnx/model.onnx": b"another",
        "consolidated.safetensors": WEIGHTS,
    }
    server.models["owner/shards"] = {
        "config.json": CONFIG,
        "model.safetensors.index.json": INDEX,
        "model-1.safetensors": save({"a": torch.arange(5.0)}),
        "model-2.safetensors": save({"b": torch.ones(300)}),
        "consolidated.safetensors": WEIGHTS,
    }
    yield server
    server.close()


def ask(monkeypatch, address):
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture(autouse=True)
def hub_here(server, tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.lower().endswith("_proxy") or name.startswith("HF_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ask(monkeypatch, server.address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.chdir(tmp_path)


def test_what_is_there_is_not_looked_up(tmp_path, server):
    (tmp_path / "owner" / "small").mkdir(parents=True)
    assert resolve_model("owner/small") == Path("owner/small")
    assert resolve_model(tmp_path / "owner") == tmp_path / "owner"
    assert server.fetched == []


def test_one_file_and_its_companions_are_fetched_once(server):
    folder = resolve_model("owner/small")
    wanted = ["config.json", "merges.txt", "model.safetensors", "tokenizer.json"]
    assert sorted(server.fetched) == wanted == sorted(file.name for file in folder.iterdir())
    with Checkpoint.open(folder) as checkpoint:
        assert checkpoint.tensor("a").tolist() == [0, 1, 2, 3, 4]
    assert resolve_model("owner/small@main") == resolve_model(f"owner/small@{COMMIT}") == folder
    assert len(server.fetched) == len(wanted)


def test_inspect_takes_an_id(server):
    result = CliRunner().invoke(app, ["inspect", "owner/shards"])
    assert result.exit_code == 0 and "305 numbers; 2 tensors" in result.stdout
    assert "config.json: n_layer is missing" in result.stdout


def test_the_shards_of_the_index_and_no_others_are_fetched(server):
    folder = resolve_model("owner/shards")
    assert sorted(server.fetched) == [
        "config.json",
        "model-1.safetensors",
        "model-2.safetensors",
        "model.safetensors.index.json",
    ]
    with Checkpoint.open(folder) as checkpoint:
        assert len(checkpoint.files) == 2 and checkpoint.tensor("b").sum() == 300


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_other_content_than_the_hub_tells_of_is_refused_and_removed(server, tmp_path, file):
    right = server.models["owner/small"][file]
    server.instead[file] = right[:-3] + b"xyz"
    with pytest.raises(ValueError, match=rf"owner/small .*: {file} has (git sha1|sha256) \w+, and the hub tells of"):
        resolve_model("owner/small")
    assert not [path for path in (tmp_path / "hub").rglob("*") if path.is_file() and b"xyz" in path.read_bytes()]
    server.instead.clear()
    assert (resolve_model("owner/small") / file).read_bytes() == right


def test_a_damaged_file_of_the_cache_is_noticed(server):
    stored = (resolve_model("owner/small") / "model.safetensors").resolve()
    stored.write_bytes(stored.read_bytes()[:-3] + b"xyz")
    with pytest.raises(ValueError, match="model.safetensors has sha256"):
        resolve_model("owner/small")
    assert (resolve_model("owner/small") / "model.safetensors").read_bytes() == WEIGHTS


def test_an_answer_that_is_cut_short_is_not_kept(server):
    server.cut.add("model.safetensors")
    with pytest.raises(ValueError, match=r"^owner/small is no directory here, and .* By hand: .*$"):
        resolve_model("owner/small")
    server.cut.clear()
    assert (resolve_model("owner/small") / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("owner/none", "owner/none is no directory here, and .*: the hub has no model of that name, or only for those"),
        ("owner/gated", "its owners ask for consent first: .* `hf auth login`"),
        ("owner/small@v9", "the model has no revision v9"),
        ("owner/empty", "the model has no config.json"),
        (
            "owner/pickle",
            "neither model.safetensors nor model.safetensors.index.json; it has pytorch_model.bin, a pickle",
        ),
        ("owner/torn", "its model.safetensors.index.json names model-3.safetensors, which it lacks"),
        ("owner/out", "'../model.safetensors' leads out of the folder"),
        ("owner/a--b", "Cannot have -- or .."),
    ],
)
def test_what_cannot_be_fetched_is_told_in_one_line(server, name, message):
    server.models |= {
        "owner/gated": server.models["owner/small"],
        "owner/empty": {"README.md": b""},
        "owner/pickle": {"config.json": CONFIG, "pytorch_model.bin": b""},
        "owner/torn": {
            "config.json": CONFIG,
            "model.safetensors.index.json": INDEX.replace(b"-1", b"-3"),
            "model-2.safetensors": b"",
        },
        "owner/out": {"config.json": CONFIG, "model.safetensors.index.json": INDEX.replace(b"model-1", b"../model")},
    }
    server.gated.add("owner/gated")
    with pytest.raises(ValueError, match=message) as caught:
        resolve_model(name)
    text = str(caught.value)
    assert "\n" not in text
    if "owner/out" not in name:
        assert name in text
    if "By hand" in text:
        assert (
            f"{server.address}/{name.partition('@')[0]}/tree/{name.partition('@')[2] or 'main'} into a folder" in text
        )


def test_without_a_network_the_cache_is_taken_as_it_is(server, monkeypatch):
    folder, many = resolve_model("owner/small"), resolve_model("owner/shards")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        ask(monkeypatch, f"http://127.0.0.1:{unused.getsockname()[1]}")
        assert resolve_model("owner/small") == folder and resolve_model("owner/shards@main") == many
        with pytest.raises(ValueError, match="owner/other .*: it is not in the cache, and the hub cannot be reached"):
            resolve_model("owner/other")
        (many / "model-2.safetensors").unlink()
        with pytest.raises(ValueError, match="owner/shards .* refused.*By hand"):
            resolve_model("owner/shards")


def test_told_to_stay_offline(server, monkeypatch):
    folder = resolve_model("owner/small")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve_model("owner/small") == folder
    with pytest.raises(ValueError, match="it is not in the cache, and the hub cannot be reached"):
        resolve_model("owner/other")


def test_a_hub_that_is_down(server):
    server.down = True
    with pytest.raises(ValueError, match="owner/small .*By hand"):
        resolve_model("owner/small")


@pytest.mark.parametrize(
    "name", ["gpt2", "runs/a/b", "../small", "./small", "owner/", "/owner/small", "owner/small@", ""]
)
def test_neither_a_path_nor_an_id(name, server):
    if name == "":
        name = "no such model"
    with pytest.raises(FileNotFoundError, match="there is no directory .*is no id of the hub either: .* owner/name"):
        resolve_model(name)
    assert server.fetched == []


def test_without_the_library_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        ValueError, match=r"no directory owner/small; .* install its library: pip install 'minigpt-ext\[hub\]'"
    ):
        resolve_model("owner/small")


def test_by_the_environment_as_a_user_sets_it(server, tmp_path):
    """The settings that the other tests patch, from the variables that the library documents."""
    environment = os.environ | {"HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path / "home")}
    code = "from minigpt_ext.interop.hub import resolve_model; print(resolve_model('owner/small'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "home/hub/models--owner--small/snapshots" / COMMIT)
