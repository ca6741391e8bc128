"""A run from its settings to its files: start one, or go on with one."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import minigpt_ext
from minigpt_ext.data.batches import NO_TARGET
from minigpt_ext.data.corpora import Corpus, load_corpus
from minigpt_ext.tokenizer import CharTokenizer, Tokenizer, open_tokenizer
from minigpt_ext.training.checkpoint import CheckpointError
from minigpt_ext.training.dataset import CHAR, Dataset, tokenizer_named
from minigpt_ext.training.metrics import read_metrics
from minigpt_ext.training.progress import Progress
from minigpt_ext.training.recipe import Recipe, checked
from minigpt_ext.training.report import plot_losses
from minigpt_ext.training.run_directory import RunDirectory, recorded_recipe, resumed_recipe
from minigpt_ext.training.trainer import Trainer


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    Attributes:
        directory: the run's folder; `model.safetensors` in it is the model of `best_step`.
        files: the names of what it holds.
        n_parameters: of the model.
        steps: updates made.
        stopped_early: whether patience ended it.
        best_step, best_val_loss: the best evaluation, in nats a token.
        unit: what a token is, in a word: token, character or byte.
        bytes_a_token, characters_a_token: of the tokens that evaluations predict.
        tokens_per_second: over all steps, evaluations left out.
        elapsed_s: all in all.
    """

    directory: Path
    files: tuple[str, ...]
    n_parameters: int
    steps: int
    stopped_early: bool
    best_step: int
    best_val_loss: float
    unit: str
    bytes_a_token: float
    characters_a_token: float
    tokens_per_second: float
    elapsed_s: float

    @property
    def perplexity(self) -> float:
        return math.exp(self.best_val_loss)

    @property
    def bits_a_character(self) -> float:
        return self.best_val_loss / math.log(2) / self.characters_a_token

    @property
    def bits_a_byte(self) -> float:
        return self.best_val_loss / math.log(2) / self.bytes_a_token


def train(recipe: Recipe, out: str | Path, progress: Progress | None = None) -> TrainingResult:
    """Train a model from the beginning: `opened`, then `complete`, which say what is raised.

    Args:
        recipe: all settings; `make_recipe` fills in a preset's.
        out: the run's folder, made where it is missing; it may hold a run only if that never saved anything.
        progress: what to show; nothing by default.
    """
    with opened(recipe, out, progress) as trainer:
        return complete(trainer)


def resume(run: str | Path, asked: Mapping[str, Any] | None = None, progress: Progress | None = None) -> TrainingResult:
    """Go on with a run where its last saved state stands; from the beginning if there is none yet.

    On a CPU with the same number of threads the result is bit for bit that of a run that never stopped. `reopened`,
    then `complete`, which say what is raised.

    Args:
        run: its folder.
        asked: settings that the user repeats: `steps` may grow, `data` may be another path to the same text, and the
            others must be the run's own. `lr_decay_iters` stays as recorded: past it the learning rate is min_lr.
        progress: what to show; nothing by default.
    """
    with reopened(run, asked, progress) as trainer:
        return complete(trainer)


@contextmanager
def opened(recipe: Recipe, out: str | Path, progress: Progress | None = None) -> Iterator[Trainer]:
    """A trainer for a new run in the folder `out`, which is kept from other processes meanwhile.

    Raises ValueError where the corpus cannot be read or is too short, or `out` is taken; nothing was written then.
    """
    directory = RunDirectory(out)
    directory.check_free()
    corpus = load_corpus(recipe.data)
    recipe = replace(recipe, data=corpus.sources)
    if recipe.tokenizer != CHAR and Path(recipe.tokenizer).exists():
        recipe = replace(recipe, tokenizer=str(Path(recipe.tokenizer).resolve()))
    tokenizer = tokenizer_named(recipe.tokenizer, corpus.text)
    dataset = Dataset.from_text(corpus.text, recipe.block_size, tokenizer)
    with directory.claimed():
        directory.check_free()  # another process may have been here while the corpus was read
        directory.write_config(_config(recipe, corpus, dataset))
        dataset.tokenizer.save(directory.tokenizer)
        yield Trainer(recipe, dataset, directory, progress or Progress())


@contextmanager
def reopened(
    run: str | Path, asked: Mapping[str, Any] | None = None, progress: Progress | None = None
) -> Iterator[Trainer]:
    """A trainer that stands where the last saved state of `run` stands. See `resume`.

    Raises:
        ValueError: `run` holds no run, or a setting or the text of the corpus differs (each is named).
        CheckpointError: the saved state is damaged.
    """
    directory = RunDirectory(run)
    asked = {key: checked(key, value) for key, value in (asked or {}).items()}
    config = directory.read_config()
    recorded = recorded_recipe(config)
    if directory.model.exists() and not directory.state.exists():
        raise ValueError(
            f"{directory.path} holds a model, but its {directory.state.name} is gone: nothing to resume from"
        )
    recipe = resumed_recipe(recorded, asked)
    corpus = load_corpus(asked.get("data", recorded.data))
    if corpus.sha256 != config["data"]["sha256"]:
        raise ValueError(
            f"data: {', '.join(corpus.sources)} has sha256 {corpus.sha256}, and the run was trained on "
            f"{config['data']['sha256']}"
        )
    tokenizer = _recorded_tokenizer(directory, config, recorded, asked, corpus)
    dataset = Dataset.from_text(corpus.text, recipe.block_size, tokenizer)
    with directory.claimed():
        trainer = Trainer(recipe, dataset, directory, progress or Progress())
        if directory.state.exists():
            trainer.restore()
        if recipe != recorded:
            directory.write_config(config | {"training": recipe.to_dict()})
        dataset.tokenizer.save(directory.tokenizer)
        yield trainer


def _recorded_tokenizer(
    directory: RunDirectory, config: Mapping[str, Any], recorded: Recipe, asked: Mapping[str, Any], corpus: Corpus
) -> Tokenizer:
    """The tokenizer of a run: that of its characters, or the file in its folder.

    Raises ValueError where it is not the one the run began with, or `asked` names another one.
    """
    if recorded.tokenizer == CHAR:
        tokenizer = CharTokenizer.from_text(corpus.text)
    else:
        tokenizer = open_tokenizer(str(directory.tokenizer))
    # Runs did not record it before there was a choice.
    began_with = config["tokenizer"].get("sha256") if isinstance(config.get("tokenizer"), dict) else tokenizer.sha256
    if tokenizer.sha256 != began_with:
        raise ValueError(f"tokenizer: {directory.tokenizer} is not the one that the run was trained with")
    if "tokenizer" in asked and tokenizer_named(asked["tokenizer"], corpus.text).sha256 != began_with:
        raise ValueError(f"tokenizer: the run was trained with another one than {asked['tokenizer']}")
    return tokenizer


def complete(trainer: Trainer) -> TrainingResult:
    """Run `trainer` to its end and draw the curves.

    Raises:
        TrainingInterrupted: SIGINT or SIGTERM; the run is saved, and `resume` goes on with it.
        TrainingDiverged: a loss is no finite number; the last good state is kept.
        CheckpointError: a file of the run cannot be written.
    """
    directory, counters, recipe = trainer.directory, trainer.counters, trainer.recipe
    n_parameters = trainer.model.num_parameters()
    unit = trainer.dataset.tokenizer.UNIT
    trainer.progress.begin(
        f"{recipe.preset}, {n_parameters:,} parameters, {recipe.dtype} on {recipe.device}; data {_names(recipe)}, "
        f"{len(trainer.dataset.train):,} {unit}s to train on and {len(trainer.dataset.validation):,} to validate",
        counters.step,
        recipe.steps,
    )
    try:
        trainer.run()
    finally:
        trainer.progress.end()
    try:
        plot_losses(read_metrics(directory.metrics), directory.plot, f"{recipe.preset} on {_names(recipe)}")
    except OSError as error:
        raise CheckpointError(f"cannot write {directory.plot}: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{directory.metrics} is damaged: {error}") from error
    predicted = trainer.windows.targets[trainer.windows.targets != NO_TARGET].cpu()
    n_bytes, n_characters = trainer.dataset.tokenizer.written(predicted)
    return TrainingResult(
        directory=directory.path,
        files=tuple(file.name for file in directory.files if file.exists()),
        n_parameters=n_parameters,
        steps=counters.step,
        stopped_early=counters.step < recipe.steps,
        best_step=counters.best_step,
        best_val_loss=counters.best_val_loss,
        unit=unit,
        bytes_a_token=n_bytes / len(predicted),
        characters_a_token=n_characters / len(predicted),
        tokens_per_second=counters.step * recipe.batch_size * recipe.block_size / counters.training_s,
        elapsed_s=counters.elapsed_s,
    )


def _names(recipe: Recipe) -> str:
    return ", ".join(Path(source).name for source in recipe.data)


def _config(recipe: Recipe, corpus: Corpus, dataset: Dataset) -> dict[str, Any]:
    unit = dataset.tokenizer.UNIT
    return {
        "model": recipe.model_config(dataset.tokenizer.vocab_size).to_dict(),
        "training": recipe.to_dict(),
        "data": {
            "sources": list(corpus.sources),
            "sha256": corpus.sha256,
            f"training_{unit}s": len(dataset.train),
            f"validation_{unit}s": len(dataset.validation),
        },
        "tokenizer": {"format": dataset.tokenizer.FORMAT, "sha256": dataset.tokenizer.sha256},
        "versions": {
            "minigpt_ext": minigpt_ext.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
