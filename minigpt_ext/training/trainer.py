"""The training loop, and the state it stops and goes on with."""

from __future__ import annotations

import math
import signal
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from minigpt_ext.data.batches import EvaluationWindows, random_windows
from minigpt_ext.model import GPT
from minigpt_ext.profiling.ranges import part
from minigpt_ext.training.checkpoint import CheckpointError, load_checkpoint, load_facts, save_checkpoint
from minigpt_ext.training.dataset import Dataset
from minigpt_ext.training.evaluation import evaluate
from minigpt_ext.training.interruption import StopSignals
from minigpt_ext.training.memory import keep_freed_memory
from minigpt_ext.training.metrics import MetricsLog, Row
from minigpt_ext.training.progress import Progress
from minigpt_ext.training.recipe import Recipe
from minigpt_ext.training.run_directory import RunDirectory

ADAMW_KEYS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps of each parameter
_SAMPLE_TOKENS = 160


class TrainingDiverged(Exception):
    """The loss or the gradient is no finite number any more; what was saved before is untouched."""


class TrainingInterrupted(Exception):
    """A signal asked to stop; the state of `step` is saved."""

    def __init__(self, received: signal.Signals, step: int):
        super().__init__(f"stopped by {received.name} after step {step}; the run is saved")
        self.received = received
        self.step = step


@dataclass
class Counters:
    """How far a run is. `best_step` -1: not evaluated yet. Seconds exclude the time between a stop and a resume."""

    step: int = 0
    best_step: int = -1
    best_val_loss: float = math.inf
    evaluations_since_best: int = 0
    training_s: float = 0.0  # in steps alone, for tokens/s
    elapsed_s: float = 0.0  # with evaluations and saving


class Trainer:
    """Trains a GPT by a recipe and keeps its run directory.

    `directory` must be claimed, its config written. Seeds torch's default generators with `recipe.seed` (dropout
    draws from them). On a CPU the process keeps the memory that it frees, as `keep_freed_memory` tells.
    """

    def __init__(self, recipe: Recipe, dataset: Dataset, directory: RunDirectory, progress: Progress):
        self.recipe = recipe
        self.dataset = dataset
        self.directory = directory
        self.progress = progress
        self.device = torch.device(recipe.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.model = GPT(recipe.model_config(dataset.tokenizer.vocab_size), seed=recipe.seed).to(self.device)
        self.optimizer = make_optimizer(self.model, recipe)
        self.windows = EvaluationWindows.over(dataset.validation, recipe.block_size, self.device)
        self.batch_generator = torch.Generator().manual_seed(recipe.seed)
        torch.manual_seed(recipe.seed)
        self.counters = Counters()
        self.metrics_length = 0
        self.saved_step = -1
        self.started = perf_counter()

    def run(self) -> None:
        """Train to the last step, or until patience ends. The best model is then in the run directory.

        Raises TrainingInterrupted, TrainingDiverged, CheckpointError.
        """
        recipe, counters = self.recipe, self.counters
        with StopSignals() as stop, MetricsLog(self.directory.metrics, self.metrics_length) as self.log:
            self.started = perf_counter() - counters.elapsed_s

            if counters.best_step < 0:
                self.record(Row(0, None, self.evaluate(), None, None, None, self.elapsed()))
            while not self.finished():
                row = self.train_step()
                if row.step % recipe.eval_interval == 0:
                    row = replace(row, val_loss=self.evaluate())
                self.record(row)
                if recipe.sample_interval and row.step % recipe.sample_interval == 0:
                    self.progress.sample(row.step, self.sample())
                if stop.received and not self.finished():
                    self.save()
                    raise TrainingInterrupted(stop.received, counters.step)
            self.save()
            if counters.step % recipe.eval_interval:
                self.close_with_evaluation()
            counters.elapsed_s = self.elapsed()

    def finished(self) -> bool:
        counters, patience = self.counters, self.recipe.patience
        return counters.step >= self.recipe.steps or 0 < patience <= counters.evaluations_since_best

    def train_step(self) -> Row:
        """One update: a batch forward and backward, the gradient clipped, AdamW."""
        started = perf_counter()
        recipe = self.recipe
        lr = recipe.learning_rate_at(self.counters.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr

        with part("data"):
            batch = random_windows(self.dataset.train, recipe.batch_size, recipe.block_size, self.batch_generator)
            ids, targets = (tensor.to(self.device) for tensor in batch)
        with part("forward"), self.autocast():
            _, loss = self.model(ids, targets)
        with part("backward"):
            loss.backward()
        with part("optimizer"):
            grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.grad_clip or math.inf)
            train_loss, grad_norm = loss.item(), grad_norm.item()
            step = self.counters.step + 1
            if not (math.isfinite(train_loss) and math.isfinite(grad_norm)):
                raise TrainingDiverged(f"step {step}: the loss is {train_loss}, the norm of its gradient {grad_norm}")
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

        seconds = perf_counter() - started
        self.counters.step = step
        self.counters.training_s += seconds
        return Row(step, train_loss, None, lr, grad_norm, ids.numel() / seconds, self.elapsed())

    def evaluate(self) -> float:
        with self.autocast():
            val_loss = evaluate(self.model, self.windows, self.recipe.batch_size)
        if not math.isfinite(val_loss):
            raise TrainingDiverged(f"step {self.counters.step}: the validation loss is {val_loss}")
        return val_loss

    def record(self, row: Row) -> None:
        """Write the row; count what its evaluation says; save where there is a new best or a checkpoint is due."""
        counters = self.counters
        self.log.write(row)
        self.progress.step(row)
        if row.val_loss is not None:
            if row.val_loss < counters.best_val_loss:
                counters.best_val_loss, counters.best_step = row.val_loss, row.step
                counters.evaluations_since_best = 0
            else:
                counters.evaluations_since_best += 1
        if counters.best_step == row.step or row.step % self.recipe.checkpoint_interval == 0:
            self.save(evaluated=row.val_loss is not None)

    def close_with_evaluation(self) -> None:
        """Evaluate the end of a run whose last step is between two evaluations.

        This is no part of the state, already saved: resumed to more steps, the run makes the same steps as if it had
        never paused here. Only a model that was the best of all here stays the one to beat.
        """
        val_loss = self.evaluate()
        row = Row(self.counters.step, None, val_loss, None, None, None, self.elapsed())
        self.log.write(row)
        self.log.sync()
        self.progress.step(row)
        if val_loss < self.counters.best_val_loss:
            self.counters.best_val_loss, self.counters.best_step = val_loss, self.counters.step
            self.save_model()

    def sample(self) -> str:
        """A little of the model's writing. Its draws come from a generator of their own."""
        tokenizer = self.dataset.tokenizer
        start = tokenizer.start_ids()
        ids = torch.tensor([start], device=self.device)
        new = self.model.generate(ids, _SAMPLE_TOKENS, temperature=0.8, seed=self.counters.step)
        return tokenizer.decode_continuation(start, new[0, len(start) :])

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.dtype == "bfloat16")

    def elapsed(self) -> float:
        return perf_counter() - self.started

    def save(self, evaluated: bool = False) -> None:
        """Save the state, unless that of this step is saved already; and the model where it is the best.

        The state comes first: `restore` can make the model file from it, and not the other way round. Weights that do
        not even give a finite loss are no state to go on with; where they were not `evaluated`, one batch tells.
        """
        counters = self.counters
        if self.saved_step == counters.step:
            return
        if not evaluated:
            self.check_weights()
        counters.elapsed_s = self.elapsed()
        facts = asdict(counters) | {"metrics_length": self.log.sync()}
        save_checkpoint(self.directory.state, self.state_tensors(), facts)
        self.saved_step = counters.step
        if counters.best_step == counters.step:
            self.save_model()

    def save_model(self) -> None:
        facts = {"step": self.counters.best_step, "val_loss": self.counters.best_val_loss}
        save_checkpoint(self.directory.model, self.model.state_dict(), facts)

    @torch.no_grad()
    def check_weights(self) -> None:
        self.model.eval()
        with self.autocast():
            _, loss = self.model(*next(self.windows.batches(1)))
        self.model.train()
        if not math.isfinite(loss.item()):
            raise TrainingDiverged(f"step {self.counters.step}: the loss after the update is {loss.item()}")

    def state_tensors(self) -> dict[str, Tensor]:
        """Weights, what AdamW remembers of each, and the state of every generator."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, tensor in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = tensor
        tensors["random.batches"] = self.batch_generator.get_state()
        tensors["random.cpu"] = torch.get_rng_state()
        if self.device.type != "cpu":
            tensors[f"random.{self.device.type}"] = _device_generators(self.device).get_rng_state()
        return tensors

    def restore(self) -> None:
        """Take up the saved state of the run directory. Raises CheckpointError where its files are damaged."""
        tensors, facts = load_checkpoint(self.directory.state)
        try:
            self.metrics_length = facts.pop("metrics_length")
            self.counters = Counters(**facts)
            self.model.load_tensors(_under("model.", tensors))
            if self.counters.step:  # before the first step AdamW remembers nothing
                for name, parameter in self.model.named_parameters():
                    self.optimizer.state[parameter] = {
                        key: tensors[f"optimizer.{key}.{name}"].to(self.device) for key in ADAMW_KEYS
                    }
            self.batch_generator.set_state(tensors["random.batches"])
            torch.set_rng_state(tensors["random.cpu"])
            if self.device.type != "cpu":
                _device_generators(self.device).set_rng_state(tensors[f"random.{self.device.type}"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{self.directory.state} is not a state of this run: {error}") from error
        self.saved_step = self.counters.step
        self.restore_best()

    def restore_best(self) -> None:
        """Make the model file and the counters agree.

        A kill between saving state and model leaves an older model: the state's weights are the best then. A run that
        closed with a better model than its state knows of hands that on.
        """
        counters = self.counters
        saved = load_facts(self.directory.model) if self.directory.model.exists() else {"step": -1}
        if saved["step"] == counters.best_step:
            return
        if counters.best_step == counters.step:
            self.save_model()
        elif saved["step"] == counters.step:
            counters.best_step, counters.best_val_loss = saved["step"], saved["val_loss"]
        else:
            raise CheckpointError(
                f"{self.directory.model} is missing or not of this run: the best model was that of step "
                f"{counters.best_step}"
            )


def make_optimizer(model: GPT, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; matrices and embeddings decay, biases and LayerNorms do not."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(recipe.beta1, recipe.beta2), fused=True)


def _device_generators(device: torch.device) -> Any:
    return {"cuda": torch.cuda, "mps": torch.mps}[device.type]


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
