"""Training on bytes and on byte pairs: what a run keeps, says, and goes on with."""

import json
import math

import pytest
import tokenizers
import torch
from tokenizer_cases import family
from training_runs import SMALL, assert_same_run, assignments, run_config, small_recipe, write_text

from minigpt_ext import GPT
from minigpt_ext.cli import main
from minigpt_ext.data.batches import NO_TARGET, EvaluationWindows
from minigpt_ext.model import GPTConfig
from minigpt_ext.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, load_tokenizer
from minigpt_ext.training import resume, train
from minigpt_ext.training.dataset import Dataset
from minigpt_ext.training.evaluation import evaluate


@pytest.fixture
def text(tmp_path):
    path = write_text(tmp_path / "text.txt", 4000)
    path.write_text(path.read_text().replace("cat", "kätzchen").replace("mat.", "mat 😀."))
    return path


@pytest.fixture
def bpe(tmp_path, text):
    tokenizer = BPETokenizer.train(text.read_text(), 270, special_tokens=["<|endoftext|>"])
    tokenizer.save_directory(tmp_path / "bpe")
    return tmp_path / "bpe"


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_a_run_keeps_its_tokenizer_and_tells_bits(tmp_path, text, bpe, kind):
    name = str(bpe) if kind == "bpe" else kind
    result = train(small_recipe(text, tokenizer=name), tmp_path / "run")
    tokenizer = load_tokenizer(tmp_path / "run")
    whole = text.read_text()
    expected = {"char": CharTokenizer.from_text(whole), "byte": ByteTokenizer(), "bpe": load_tokenizer(bpe)}[kind]
    assert tokenizer.sha256 == expected.sha256 == run_config(tmp_path / "run")["tokenizer"]["sha256"]
    assert tokenizer.eos_id == expected.eos_id
    model = GPT.from_pretrained(tmp_path / "run")
    assert model.config.vocab_size == tokenizer.vocab_size

    # The bits by hand: every prediction's text, counted one by one.
    validation = tokenizer.encode_to_tensor(whole[int(0.9 * len(whole)) :])
    windows = EvaluationWindows.over(validation, 16)
    nats = evaluate(model, windows, 4) * windows.n_predictions
    written = tokenizer.decode_bytes(windows.targets[windows.targets != NO_TARGET])
    assert result.unit == {"char": "character", "byte": "byte", "bpe": "token"}[kind]
    assert result.bits_a_byte == pytest.approx(nats / math.log(2) / len(written), rel=1e-4)
    n_characters = sum(byte & 0xC0 != 0x80 for byte in written)
    assert result.bits_a_character == pytest.approx(nats / math.log(2) / n_characters, rel=1e-4)


def test_byte_pairs_are_kept_as_hugging_face_has_them(tmp_path, text, bpe):
    train(small_recipe(text, tokenizer=str(bpe), steps=1), tmp_path / "run")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "run" / "tokenizer.json"))
    assert theirs.encode(text.read_text()).ids == load_tokenizer(bpe).encode(text.read_text())
    assert json.loads((tmp_path / "run" / "tokenizer_config.json").read_text())["eos_token"] == "<|endoftext|>"


@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_resumed_runs_are_the_same(tmp_path, text, bpe, kind):
    name = str(bpe) if kind == "bpe" else kind
    whole = small_recipe(text, tokenizer=name, lr_decay_iters=20)
    train(whole, tmp_path / "whole")
    train(small_recipe(text, tokenizer=name, lr_decay_iters=20, steps=10), tmp_path / "halved")
    bpe.rename(tmp_path / "elsewhere")  # the run has its own copy
    resume(tmp_path / "halved", {"steps": 20})
    assert_same_run(tmp_path / "whole", tmp_path / "halved")
    again = "byte" if kind == "byte" else str(tmp_path / "elsewhere")
    resume(tmp_path / "halved", {"steps": 21, "tokenizer": again})


def test_another_tokenizer_is_refused(tmp_path, text, bpe):
    train(small_recipe(text, tokenizer=str(bpe), steps=2), tmp_path / "run")
    with pytest.raises(ValueError, match="tokenizer: the run was trained with another one than byte"):
        resume(tmp_path / "run", {"tokenizer": "byte"})
    BPETokenizer.train(text.read_text(), 271).save(tmp_path / "run" / "tokenizer.json")
    with pytest.raises(ValueError, match="tokenizer.json is not the one that the run was trained with"):
        resume(tmp_path / "run", {"steps": 4})
    (tmp_path / "run" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="tokenizer: .* no tokenizer.json"):
        resume(tmp_path / "run", {"steps": 4})


def test_runs_from_before_there_was_a_choice_go_on(tmp_path, text):
    train(small_recipe(text, steps=2), tmp_path / "run")
    config = run_config(tmp_path / "run")
    del config["tokenizer"], config["training"]["tokenizer"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert resume(tmp_path / "run", {"steps": 3}).steps == 3
    with pytest.raises(ValueError, match="another one than byte"):
        resume(tmp_path / "run", {"tokenizer": "byte"})


def test_a_corpus_with_too_few_tokens(tmp_path, text, bpe):
    with pytest.raises(ValueError, match="validation split has .* tokens; .* tokens\\)"):
        Dataset.from_text(text.read_text()[:300], 60, load_tokenizer(bpe))
    with pytest.raises(ValueError, match="validation split has .* characters\\)"):
        Dataset.from_text(text.read_text()[:300], 60)


def test_special_tokens_in_the_text_are_taken_as_such(bpe):
    dataset = Dataset.from_text("the cat<|endoftext|>" * 200, 8, load_tokenizer(bpe))
    assert (dataset.train == load_tokenizer(bpe).eos_id).sum() == 180


def test_a_model_trained_here_never_saw_bos(tmp_path, text):
    family("mistral").save(str(tmp_path / "tokenizer.json"))
    train(small_recipe(text, tokenizer=str(tmp_path / "tokenizer.json"), steps=1), tmp_path / "run")
    before, after = load_tokenizer(tmp_path), load_tokenizer(tmp_path / "run")
    assert before.encode_prompt("the") == [1, *after.encode_prompt("the")] and after.bos_id == 1


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*args):
        monkeypatch.setattr("sys.argv", ["minigpt", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return run


def test_the_commands(command, text, bpe):
    settings = assignments(SMALL | {"sample_interval": 10})
    code, out, err = command("train", "--data", text, "--tokenizer", "bpe", *settings, "--out", "run")
    assert code == 0
    assert (
        "nats a token" in out and "bits a byte" in out and "bits a character" in out and "tokenizer_config.json" in out
    )
    assert "tokens to train on" in err and "characters" not in err
    code, out, err = command("generate", "--model", "run", "--prompt", "the k", "--max-new-tokens", 20, "--seed", 1)
    assert code == 0 and out.startswith("the k") and "20 new" in err
    code, _, err = command("train", "--data", text, "--tokenizer", "nothing")
    assert (code, err.count("\n")) == (2, 1) and "error: tokenizer: nothing: no tokenizer.json there" in err


def test_a_text_ends_at_eos_and_characters_come_whole(command, tmp_path, bpe, monkeypatch):
    """A model whose head always says the same: bytes of a smiley, then the end."""
    tokenizer = load_tokenizer(bpe)
    config = GPTConfig(vocab_size=tokenizer.vocab_size + 7, block_size=16, n_layer=1, n_head=1, n_embd=8)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"format": "minigpt-run", "version": 1, "model": config.to_dict()}))
    from safetensors.torch import save_file

    save_file(GPT(config, seed=0).state_dict(), run / "model.safetensors")
    tokenizer.save(run / "tokenizer.json")
    drawn = [*"😀".encode(), 0xC3, tokenizer.vocab_size + 3, tokenizer.eos_id, 65]

    def stream(*_, **__):
        return iter([torch.tensor([id]) for id in drawn])

    import importlib

    monkeypatch.setattr(importlib.import_module("minigpt_ext.cli.generate"), "stream", stream)
    code, out, err = command("generate", "--model", run, "--prompt", "the")
    assert (code, out) == (0, "the😀\ufffd\ufffd\n") and "7 new" in err
