"""A run that was stopped goes on as if it had not been."""

import json
import os
import shutil
import signal

import pytest
from training_runs import assert_same_run, measured, run_config, small_recipe, write_text

from minigpt_ext.model import GPT
from minigpt_ext.training import CheckpointError, TrainingInterrupted, resume, train
from minigpt_ext.training.checkpoint import load_checkpoint, load_facts, save_checkpoint
from minigpt_ext.training.progress import Progress

SETTINGS = {"dropout": 0.1, "sample_interval": 7}  # so that every generator has its part


class StopAfter(Progress):
    """Sends this process a signal when a step is done."""

    def __init__(self, step, number=signal.SIGINT):
        self.wanted, self.number = step, number

    def step(self, row):
        if row.step == self.wanted:
            os.kill(os.getpid(), self.number)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, text):
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    train(small_recipe(text, **SETTINGS), run)
    return run


@pytest.fixture
def stopped(tmp_path, text):
    """A run of 20 steps that Ctrl-C stopped after 10."""
    with pytest.raises(TrainingInterrupted):
        train(small_recipe(text, **SETTINGS), tmp_path / "run", StopAfter(10))
    return tmp_path / "run"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 10, 13])
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(tmp_path, text, undisturbed, step, number):
    before = signal.getsignal(number)
    with pytest.raises(TrainingInterrupted) as caught:
        train(small_recipe(text, **SETTINGS), tmp_path / "run", StopAfter(step, number))
    assert caught.value.received == number and caught.value.step == step
    assert signal.getsignal(number) == before
    resume(tmp_path / "run")
    assert_same_run(tmp_path / "run", undisturbed)


def test_ten_steps_and_ten_more_are_twenty(tmp_path, text, undisturbed):
    train(small_recipe(text, steps=10, lr_decay_iters=20, **SETTINGS), tmp_path / "run")
    resume(tmp_path / "run", {"steps": 20})
    assert_same_run(tmp_path / "run", undisturbed)
    assert run_config(tmp_path / "run")["training"] == run_config(undisturbed)["training"]


def test_a_run_of_before_the_model_had_variants_goes_on(tmp_path, text, undisturbed):
    train(small_recipe(text, steps=10, lr_decay_iters=20, **SETTINGS), tmp_path / "run")
    config = run_config(tmp_path / "run")
    del config["training"]["model"]
    plain = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "head_dim", "bias", "dropout", "activation")
    epsilon = {"layer_norm_epsilon": config["model"]["norm_epsilon"]}
    config["model"] = {name: config["model"][name] for name in plain} | epsilon
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    GPT.from_pretrained(tmp_path / "run")
    resume(tmp_path / "run", {"steps": 20})
    assert_same_run(tmp_path / "run", undisturbed)


def test_fields_of_the_model_stay_in_a_resumed_run(tmp_path, text):
    train(small_recipe(text, steps=4, **{"model.positions": "alibi"}), tmp_path / "run")
    resume(tmp_path / "run", {"steps": 5, "model.positions": "alibi"})
    with pytest.raises(ValueError, match="model.positions is 'alibi' in the run and 'rope' was asked for"):
        resume(tmp_path / "run", {"model.positions": "rope"})


def test_a_pause_between_two_evaluations_leaves_no_trace(tmp_path, text, undisturbed):
    train(small_recipe(text, steps=12, lr_decay_iters=20, **SETTINGS), tmp_path / "run")
    assert measured(tmp_path / "run")[-1][:2] == (12, None)  # the closing evaluation
    resume(tmp_path / "run", {"steps": 20})
    assert_same_run(tmp_path / "run", undisturbed)


def test_more_steps_than_the_schedule_go_on_at_the_lowest_rate(tmp_path, text):
    train(small_recipe(text, steps=10), tmp_path / "run")
    resume(tmp_path / "run", {"steps": 15})
    rates = {row[0]: row[3] for row in measured(tmp_path / "run")}
    assert [rates[step] for step in range(11, 16)] == [3e-4] * 5 and rates[10] > 3e-4
    assert run_config(tmp_path / "run")["training"]["lr_decay_iters"] == 10


def test_a_better_model_at_the_close_is_not_forgotten(tmp_path, text):
    train(small_recipe(text, steps=12), tmp_path / "run")
    facts = load_facts(tmp_path / "run" / "model.safetensors")
    assert facts["step"] == 12
    path = tmp_path / "run" / "model.safetensors"
    tensors, _ = load_checkpoint(path)
    save_checkpoint(path, tensors, {"step": 12, "val_loss": 0.0})  # nothing can beat that
    result = resume(tmp_path / "run", {"steps": 20})
    assert (result.best_step, result.best_val_loss) == (12, 0.0) and load_facts(path)["step"] == 12


def test_a_run_at_its_end_is_only_reported_again(undisturbed, tmp_path):
    run = shutil.copytree(undisturbed, tmp_path / "run")
    (run / "loss.png").unlink()
    result = resume(run)
    assert result.steps == 20 and (run / "loss.png").exists()
    assert_same_run(run, undisturbed)


def test_a_run_that_was_killed_before_it_saved_begins_again(undisturbed, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(undisturbed / "config.json", run)
    (run / "metrics.jsonl").write_text('{"step": 0, "tr')
    resume(run)
    assert_same_run(run, undisturbed)


def test_rows_written_after_the_state_are_cut_off(stopped, undisturbed):
    with open(stopped / "metrics.jsonl", "a") as file:
        file.write('{"step": 11, "train_loss": 9.0}\n{"step": 12, "tra')
    resume(stopped)
    assert_same_run(stopped, undisturbed)


def test_a_kill_between_state_and_model_is_made_good(stopped, undisturbed):
    """At step 10 there was a new best: its state is saved, and an older model still stands there."""
    assert load_facts(stopped / "model.safetensors")["step"] == 10
    path = stopped / "model.safetensors"
    tensors, _ = load_checkpoint(path)
    save_checkpoint(path, {name: tensor * 0 for name, tensor in tensors.items()}, {"step": 5, "val_loss": 9.0})
    resume(stopped)
    assert_same_run(stopped, undisturbed)


def test_left_over_temporary_files_do_no_harm(stopped, undisturbed):
    (stopped / ".resume.safetensors.partial").write_bytes(b"half a state")
    resume(stopped)
    assert_same_run(stopped, undisturbed)
    assert not list(stopped.glob(".*"))


def test_the_same_settings_may_be_repeated(stopped, undisturbed, text):
    resume(stopped, {"data": str(text), "preset": "tiny", "seed": 1337, "steps": 20, "batch_size": 4, "device": "cpu"})
    assert_same_run(stopped, undisturbed)


def test_the_text_may_have_moved(stopped, undisturbed, text, tmp_path):
    moved = shutil.copy(text, tmp_path / "moved.txt")
    resume(stopped, {"data": str(moved)})
    assert_same_run(stopped, undisturbed)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"batch_size": 8}, "batch_size is 4 in the run and 8 was asked for"),
        ({"seed": 2}, "seed is 1337 in the run and 2"),
        ({"preset": "small"}, "preset is 'tiny' in the run"),
        ({"learning_rate": 1e-2, "beta1": 0.8}, "learning_rate is 0.003 .*; beta1 is 0.9"),
        ({"lr_decay_iters": 40}, "lr_decay_iters is 20 in the run"),
        ({"steps": 15}, "steps: the run has 20, and 15 were asked for"),
    ],
)
def test_other_settings_are_refused_by_name(stopped, asked, message):
    before = {path.name: path.read_bytes() for path in stopped.iterdir()}
    with pytest.raises(ValueError, match=message):
        resume(stopped, asked)
    assert {path.name: path.read_bytes() for path in stopped.iterdir()} == before


def test_another_text_is_refused(stopped, text, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(text.read_text() + "x")
    with pytest.raises(ValueError, match=r"data: .*other\.txt has sha256 .*, and the run was trained on"):
        resume(stopped, {"data": str(other)})


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no run: there is no config.json"):
        resume(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="config.json is not of a run"):
        resume(tmp_path)
    (tmp_path / "config.json").write_text('{"form')
    with pytest.raises(ValueError, match="cannot read .*config.json"):
        resume(tmp_path)


def damage_cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def damage_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_all(path):
    path.write_bytes(b"not a checkpoint at all")


@pytest.mark.parametrize("damage", [damage_cut, damage_byte, damage_all])
def test_a_damaged_state_is_a_clear_error(stopped, damage):
    damage(stopped / "resume.safetensors")
    with pytest.raises(CheckpointError, match=r"resume\.safetensors is damaged"):
        resume(stopped)


def test_a_state_of_another_run_is_a_clear_error(stopped):
    state = stopped / "resume.safetensors"
    tensors, facts = load_checkpoint(state)
    save_checkpoint(state, {name: t for name, t in tensors.items() if "exp_avg_sq.wte" not in name}, facts)
    with pytest.raises(CheckpointError, match="not a state of this run: 'optimizer.exp_avg_sq.wte"):
        resume(stopped)
    save_checkpoint(state, tensors, {"step": 10})
    with pytest.raises(CheckpointError, match="not a state of this run"):
        resume(stopped)


def test_missing_metrics_are_a_clear_error(stopped):
    (stopped / "metrics.jsonl").write_text("")
    with pytest.raises(CheckpointError, match="metrics.jsonl has 0 bytes, but .* rows are missing"):
        resume(stopped)


def test_a_missing_best_model_is_a_clear_error(tmp_path, text):
    with pytest.raises(TrainingInterrupted):
        train(small_recipe(text), tmp_path / "run", StopAfter(7))
    (tmp_path / "run" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing .* step 5"):
        resume(tmp_path / "run")


def test_a_run_is_trained_by_one_process_at_a_time(stopped):
    class ResumeMeanwhile(Progress):
        def step(self, row):
            if row.step == 11:
                with pytest.raises(ValueError, match="another process is training"):
                    resume(stopped)

    assert resume(stopped, progress=ResumeMeanwhile()).steps == 20


def test_a_run_whose_state_is_gone_is_not_begun_anew(tmp_path):
    run = tmp_path / "run"
    train(small_recipe(write_text(tmp_path / "text.txt"), steps=5), run)
    metrics = (run / "metrics.jsonl").read_bytes()
    (run / "resume.safetensors").unlink()
    with pytest.raises(ValueError, match="resume.safetensors is gone"):
        resume(run)
    assert (run / "metrics.jsonl").read_bytes() == metrics
