"""SIGKILL at random moments: a run always loads, and ends as one that was never killed."""

import multiprocessing
import random
import time

import pytest
from training_runs import assert_same_run, small_recipe, write_text

from minigpt_ext.training import resume, train
from minigpt_ext.training.checkpoint import load_checkpoint

# Processes are forked from a server that has imported everything and computed nothing: they start in milliseconds.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    ["minigpt_ext.training.run", "torch._dynamo", "matplotlib.figure", "matplotlib.backends.backend_agg"]
)


def run_to_its_end(target, *args):
    process = processes.Process(target=target, args=args)
    process.start()
    process.join(timeout=120)
    assert process.exitcode == 0


def run_and_kill(seconds, target, *args):
    """Returns whether the process was still at work."""
    process = processes.Process(target=target, args=args)
    process.start()
    time.sleep(seconds)
    process.kill()
    process.join(timeout=30)
    assert process.exitcode in (0, -9)
    return process.exitcode == -9


@pytest.mark.parametrize(
    ("kills", "steps"), [(5, 60), pytest.param(50, 400, marks=pytest.mark.slow)], ids=["5 kills", "50 kills"]
)
def test_killed_at_random_moments_a_run_ends_as_one_that_was_not(tmp_path, kills, steps):
    text = write_text(tmp_path / "text.txt")
    recipe = small_recipe(text, steps=steps, dropout=0.1, checkpoint_interval=3, eval_interval=5, sample_interval=40)
    run, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    run_to_its_end(int)  # starts the server
    started = time.perf_counter()
    run_to_its_end(train, recipe, undisturbed)
    seconds = time.perf_counter() - started

    moments = random.Random(7)
    killed = 0
    while not (run / "config.json").exists():  # killed earlier it is no run, and is started again
        killed += run_and_kill(moments.uniform(0, 0.3 * seconds), train, recipe, run)
    while killed < kills:
        if not run_and_kill(moments.uniform(0, 3 * seconds / kills), resume, run):
            break  # it came to its end
        killed += 1
        for saved in (run / "resume.safetensors", run / "model.safetensors"):
            if saved.exists():
                load_checkpoint(saved)
    run_to_its_end(resume, run)
    assert killed > kills // 2
    assert_same_run(run, undisturbed)
