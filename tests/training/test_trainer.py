import json
import math

import matplotlib.image
import pytest
import torch
from training_runs import SMALL, run_config, small_recipe, write_text

from minigpt_ext import GPT
from minigpt_ext.data.batches import EvaluationWindows
from minigpt_ext.data.corpora import load_corpus
from minigpt_ext.tokenizer import load_tokenizer
from minigpt_ext.training import CheckpointError, Recipe, TrainingDiverged, make_recipe, train
from minigpt_ext.training.checkpoint import load_facts
from minigpt_ext.training.dataset import Dataset
from minigpt_ext.training.evaluation import evaluate
from minigpt_ext.training.metrics import MetricsLog, read_metrics
from minigpt_ext.training.progress import Progress
from minigpt_ext.training.trainer import make_optimizer


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path / "text.txt")


def markov_chain(n_states, n, seed):
    """A text of n characters from a random Markov chain, its entropy rate and that of its stationary distribution.

    rate = - sum_i p_i sum_j P_ij ln P_ij, where p = p P.
    """
    generator = torch.Generator().manual_seed(seed)
    transitions = torch.softmax(2 * torch.randn(n_states, n_states, generator=generator, dtype=torch.float64), dim=1)
    stationary = torch.linalg.matrix_power(transitions, 200)[0]
    rate = -(stationary[:, None] * transitions * transitions.log()).sum().item()
    marginal = -(stationary * stationary.log()).sum().item()
    thresholds = transitions.cumsum(1).tolist()
    state, characters = 0, []
    for draw in torch.rand(n, generator=generator, dtype=torch.float64).tolist():
        state = next((j for j, threshold in enumerate(thresholds[state]) if draw < threshold), n_states - 1)
        characters.append(chr(ord("a") + state))
    return "".join(characters), rate, marginal


def test_the_loss_falls_to_the_entropy_of_the_source(tmp_path):
    text, rate, marginal = markov_chain(n_states=8, n=100_000, seed=1)
    path = tmp_path / "chain.txt"
    path.write_text(text)
    block_size = 32
    recipe = small_recipe(
        path, steps=200, block_size=block_size, batch_size=16, eval_interval=50, warmup_iters=20, min_lr=1e-5
    )
    result = train(recipe, tmp_path / "run")
    floor = (marginal + (block_size - 1) * rate) / block_size  # the first character of a window has nothing before it
    losses = [row.val_loss for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row.val_loss is not None]
    assert losses[0] > math.log(8) - 0.05
    assert abs(result.best_val_loss - floor) < 0.02, f"{result.best_val_loss} nats, the source has {floor}"


def test_a_run_directory_holds_all_that_is_promised(tmp_path, text):
    result = train(small_recipe(text, steps=12), tmp_path / "run")
    run = tmp_path / "run"
    assert sorted(path.name for path in run.iterdir()) == sorted(result.files)
    assert set(result.files) == {
        "config.json", "tokenizer.json", "metrics.jsonl", "resume.safetensors", "model.safetensors", "loss.png",
    }  # fmt: skip

    config = run_config(run)
    assert config["format"] == "minigpt-run" and config["version"] == 1
    assert config["data"]["sha256"] == load_corpus([str(text)]).sha256
    assert config["training"]["data"] == [str(text)] and config["training"]["steps"] == 12
    assert config["model"]["block_size"] == 16 and config["versions"]["torch"] == torch.__version__

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [*range(13), 12]  # the last row is the closing evaluation
    assert all(
        list(row) == ["step", "train_loss", "val_loss", "lr", "grad_norm", "tokens_per_second", "elapsed_s"]
        for row in rows
    )
    assert [row["step"] for row in rows if row["val_loss"] is not None] == [0, 5, 10, 12]
    assert rows[0]["train_loss"] is None and rows[1]["lr"] == 3e-3 / 6
    assert [row["elapsed_s"] for row in rows] == sorted(row["elapsed_s"] for row in rows)

    image = matplotlib.image.imread(run / "loss.png")
    assert image.shape[0] > 300 and image.std() > 0.05
    assert load_tokenizer(run).characters == "".join(sorted(set(text.read_text())))
    assert result.perplexity == pytest.approx(math.exp(result.best_val_loss))
    assert result.bits_a_character == pytest.approx(math.log2(result.perplexity))


@pytest.fixture
def ruinous_from_step_10(monkeypatch):
    """A learning rate that ruins the model after ten good steps."""
    monkeypatch.setattr(Recipe, "learning_rate_at", lambda self, iteration: 3e-3 if iteration < 10 else 0.5)


def test_the_model_saved_is_the_best_one(tmp_path, text, ruinous_from_step_10):
    recipe = small_recipe(text, steps=30)
    result = train(recipe, tmp_path / "run")
    assert result.steps == 30 and result.best_step == 10

    losses = {r.step: r.val_loss for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r.val_loss is not None}
    assert result.best_val_loss == losses[10] == min(losses.values()) < losses[30]
    assert load_facts(tmp_path / "run" / "model.safetensors") == {"step": 10, "val_loss": losses[10]}
    dataset = Dataset.from_text(text.read_text(), recipe.block_size)
    windows = EvaluationWindows.over(dataset.validation, recipe.block_size)
    assert evaluate(GPT.from_pretrained(tmp_path / "run"), windows, recipe.batch_size) == losses[10]


def test_patience_stops_a_run_that_gets_no_better(tmp_path, text, ruinous_from_step_10):
    recipe = small_recipe(text, steps=100, eval_interval=2, patience=3)
    result = train(recipe, tmp_path / "run")
    assert result.stopped_early and result.best_step == 10 and result.steps == 16


def test_evaluation_is_the_mean_over_predictions(text):
    """Against the definition: -ln p of every token, each window alone, without padding or batches."""
    dataset = Dataset.from_text(text.read_text(), 16)
    model = GPT(small_recipe(text, dropout=0.3).model_config(dataset.tokenizer.vocab_size), seed=0).train()
    tokens = dataset.validation.long()
    total, count = 0.0, 0
    model.eval()
    with torch.no_grad():
        for start in range(0, len(tokens) - 1, 16):
            window = tokens[start : start + 17]
            log_p = torch.log_softmax(model(window[None, :-1])[0][0].double(), dim=-1)
            total -= log_p[torch.arange(len(window) - 1), window[1:]].sum().item()
            count += len(window) - 1
    model.train()
    assert count == len(tokens) - 1
    windows = EvaluationWindows.over(dataset.validation, 16)
    assert evaluate(model, windows, batch_size=5) == pytest.approx(total / count, rel=1e-6)
    assert model.training


def test_only_matrices_decay(text):
    model = GPT(small_recipe(text).model_config(10))
    decayed, kept = make_optimizer(model, small_recipe(text)).param_groups
    assert decayed["weight_decay"] == 0.1 and kept["weight_decay"] == 0.0
    assert {p.dim() for p in decayed["params"]} == {2} and {p.dim() for p in kept["params"]} == {1}
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))


def test_samples_leave_the_training_as_it_was(tmp_path, text):
    class Listener(Progress):
        def __init__(self):
            self.samples = []

        def sample(self, step, text):
            self.samples.append((step, text))

    listener = Listener()
    quiet = train(small_recipe(text, dropout=0.2, steps=10), tmp_path / "quiet")
    chatty = train(small_recipe(text, dropout=0.2, steps=10, sample_interval=3), tmp_path / "chatty", listener)
    assert [step for step, _ in listener.samples] == [3, 6, 9] and all(text for _, text in listener.samples)
    assert chatty.best_val_loss == quiet.best_val_loss


def test_bfloat16_trains_too(tmp_path, text):
    losses = {
        dtype: train(small_recipe(text, dtype=dtype, steps=10), tmp_path / dtype).best_val_loss
        for dtype in ("float32", "bfloat16")
    }
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], abs=0.03)


def test_the_seed_decides_everything(tmp_path, text):
    losses = [
        train(small_recipe(text, seed=seed, steps=5), tmp_path / name).best_val_loss
        for name, seed in {"a": 1, "b": 1, "c": 2}.items()
    ]
    assert losses[0] == losses[1] != losses[2]


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_state(tmp_path, text):
    recipe = small_recipe(text, learning_rate=1e20, min_lr=1e20, warmup_iters=0, grad_clip=0, checkpoint_interval=1)
    with pytest.raises(TrainingDiverged, match=r"step [12]: "):
        train(recipe, tmp_path / "run")
    assert load_facts(tmp_path / "run" / "resume.safetensors")["step"] == 0
    assert all(p.isfinite().all() for p in GPT.from_pretrained(tmp_path / "run").parameters())


def test_too_short_a_text_is_refused_before_anything_is_written(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("too short " * 10)
    with pytest.raises(ValueError, match="validation split has 10 tokens; block_size 16 needs 17"):
        train(small_recipe(path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_overwritten(tmp_path, text):
    train(small_recipe(text, steps=5), tmp_path / "run")
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="holds a run"):
        train(small_recipe(text, steps=5, seed=2), tmp_path / "run")
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


def test_a_run_that_never_saved_anything_is_overwritten(tmp_path, text):
    train(small_recipe(text, steps=5), tmp_path / "run")
    for name in ("resume.safetensors", "model.safetensors"):
        (tmp_path / "run" / name).unlink()
    result = train(small_recipe(text, steps=3, seed=2), tmp_path / "run")
    assert [row.step for row in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [0, 1, 2, 3, 3]
    assert result.steps == 3


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_files_of_something_else_are_not_overwritten(tmp_path, text, name):
    (tmp_path / name).write_text('{"architectures": ["GPT2LMHeadModel"]}')
    with pytest.raises(ValueError, match=f"holds {name} of something else"):
        train(small_recipe(text), tmp_path)
    assert "GPT2" in (tmp_path / name).read_text()


def test_a_folder_that_cannot_be_made_is_named(tmp_path, text):
    with pytest.raises(ValueError, match="out: cannot write to .*text.txt/run"):
        train(small_recipe(text), text / "run")
    with pytest.raises(ValueError, match="is a file, not a folder"):
        train(small_recipe(text), text)


def test_a_metrics_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(CheckpointError, match="cannot write .*metrics.jsonl: Is a directory"):
        MetricsLog(tmp_path / "metrics.jsonl", 0)


def test_the_same_call_works_without_the_command_line(tmp_path, text):
    result = train(make_recipe(SMALL | {"data": [str(text)], "steps": 2}), str(tmp_path / "run"))
    assert result.steps == 2 and result.tokens_per_second > 0 and not result.stopped_early
