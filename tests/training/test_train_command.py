"""`minigpt train` as a person types it."""

import os
import re
import signal
import subprocess
import time

import pytest
from training_runs import MINIGPT, SMALL, assert_same_run, assignments, measured, run_config, small_recipe, write_text

from minigpt_ext import GPT
from minigpt_ext.cli import main
from minigpt_ext.training import train
from minigpt_ext.training.metrics import read_metrics

SETTINGS = assignments(SMALL)


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path / "text.txt")


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Runs `minigpt train ARGS` here and returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        monkeypatch.setattr("sys.argv", ["minigpt", "train", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return run


def test_a_run_ends_with_a_text_a_table_and_the_next_command(command, text, tmp_path):
    code, out, err = command("--data", text, *SETTINGS, "--set", "sample_interval=10", "--out", "run")
    assert code == 0
    for wanted in ("parameters", "tokens/s", "best validation loss", "at step", "perplexity", "bits a character"):
        assert wanted in out
    for name in (
        "config.json",
        "tokenizer.json",
        "metrics.jsonl",
        "resume.safetensors",
        "model.safetensors",
        "loss.png",
    ):
        assert name in out and (tmp_path / "run" / name).exists()
    assert re.search(r"Next:\n  minigpt generate --model run --prompt \S+", out)

    lines = err.splitlines()
    assert re.search(r"tiny, [\d,]+ parameters, float32 on cpu; data text.txt, 1,800 characters", lines[0])
    assert sum(line.startswith("step ") for line in lines) == 5  # no terminal: a line an evaluation, no bar
    assert any(line.startswith("  | ") for line in lines) and len(lines) < 40


def test_settings_come_from_flags_then_set_then_config_then_preset(command, text, tmp_path):
    (tmp_path / "my.toml").write_text("steps = 9\nbatch_size = 3\nseed = 3\nlearning_rate = 2e-3\nmin_lr = 0\n")
    code, _, err = command(
        "--data", text, "--preset", "tiny", "--config", "my.toml", "--out", "run", "--steps", 4, "--set", "steps=5",
        "--set", "batch_size=2", "--set", "block_size=8", "--set", "device=cpu",
    )  # fmt: skip
    assert code == 0, err
    training = run_config(tmp_path / "run")["training"]
    assert (training["steps"], training["batch_size"], training["seed"]) == (4, 2, 3)
    assert (training["learning_rate"], training["warmup_iters"], training["block_size"]) == (2e-3, 100, 8)


def test_several_texts_and_a_place_of_its_own(command, text, tmp_path):
    (tmp_path / "more").mkdir()
    write_text(tmp_path / "more" / "b.txt", 500)
    arguments = ("--data", "text.txt", "--data", "more", *SETTINGS, "--steps", 1)
    assert command(*arguments)[0] == 0
    assert command(*arguments)[0] == 0
    assert run_config(tmp_path / "runs" / "text-more-tiny")["data"]["sources"] == [str(text), str(tmp_path / "more")]
    assert (tmp_path / "runs" / "text-more-tiny-2" / "model.safetensors").exists()


def test_resuming_takes_the_settings_of_the_run(command, text, tmp_path):
    arguments = ("--data", text, *SETTINGS, "--set", "lr_decay_iters=20")
    assert command(*arguments, "--out", "whole")[0] == 0
    assert command(*arguments, "--out", "run", "--steps", 10)[0] == 0
    code, _, err = command("--resume", "run", "--steps", 20, "--out", "run", "--data", text, "--preset", "tiny")
    assert code == 0, err
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert len([row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row.train_loss is not None]) == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "batchsize=3"), "error: unknown key 'batchsize': did you mean batch_size"),
        (("--set", "batch_size"), "error: --set: expected key=value"),
        (("--steps", "0"), "error: steps: expected an integer, 1 or more, got 0"),
        (("--preset", "huge"), "error: preset: expected one of tiny, small, medium, modern-tiny"),
        (("--config", "no.toml"), "error: --config: cannot read no.toml: No such file"),
        (("--data", "no.txt"), "error: data: 'no.txt' is not a file, a folder, or one of python, shakespeare"),
        (("--data", "text.txt"), "error: data: the validation split has 200 tokens; block_size 256 needs 257"),
        (("--data", "text.txt", "--out", "text.txt"), "error: out: text.txt is a file"),
        (("--resume", "nowhere"), "error: nowhere holds no run"),
        (("--resume", "here", "--out", "there"), "error: --out there: a resumed run stays in its own directory"),
    ],
)
def test_wrong_usage_is_one_clear_line(command, text, arguments, message):
    code, out, err = command(*arguments)
    assert code == 2 and out == ""
    assert err.startswith(message) and len(err.splitlines()) == 1


def test_a_run_that_is_there_is_not_overwritten_nor_changed(command, text):
    assert command("--data", text, *SETTINGS, "--out", "run", "--steps", 3)[0] == 0
    code, _, err = command("--data", text, *SETTINGS, "--out", "run", "--steps", 3)
    assert code == 2 and "error: out: run holds a run; go on with it by --resume" in err
    code, _, err = command("--resume", "run", "--set", "batch_size=7")
    assert code == 2 and "batch_size is 4 in the run and 7 was asked for" in err


def test_a_loss_that_is_no_number_is_an_error(command, text, tmp_path):
    ruin = ["--set", "learning_rate=1e20", "--set", "grad_clip=0", "--set", "warmup_iters=0"]
    code, _, err = command("--data", text, *SETTINGS, *ruin, "--out", "run")
    assert code == 1
    assert re.search(r"error: step \d+: the loss is nan.*the last good state is kept in run", err.splitlines()[-1])
    assert all(p.isfinite().all() for p in GPT.from_pretrained(tmp_path / "run").parameters())


def test_a_damaged_state_is_an_error(command, text, tmp_path):
    assert command("--data", text, *SETTINGS, "--out", "run", "--steps", 3)[0] == 0
    (tmp_path / "run" / "resume.safetensors").write_bytes(b"\0" * 100)
    code, _, err = command("--resume", "run")
    assert code == 1 and err.startswith("error: run/resume.safetensors is damaged")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_resume(command, text, tmp_path, number, code):
    run = tmp_path / "a run"
    settings = SMALL | {"steps": 300, "eval_interval": 1000, "checkpoint_interval": 1000}
    process = subprocess.Popen(
        [*MINIGPT, "train", "--data", text, *assignments(settings), "--out", run],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # as here: see conftest.py
    )
    metrics = run / "metrics.jsonl"
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        if metrics.exists() and metrics.read_bytes().count(b"\n") > 5:
            break
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    stopped = int(re.search(rf"stopped by {number.name} after step (\d+); the run is saved", err)[1])
    assert f"minigpt train --resume '{run}'" in err and "Traceback" not in err
    assert measured(run)[-1][0] == stopped

    if number == signal.SIGINT:
        assert command("--resume", run)[0] == 0
        train(small_recipe(text, **settings), tmp_path / "whole")
        assert_same_run(run, tmp_path / "whole")
