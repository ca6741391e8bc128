"""Training: from a recipe to a run directory."""

from minigpt_ext.training.checkpoint import CheckpointError
from minigpt_ext.training.memory import keep_freed_memory
from minigpt_ext.training.recipe import Recipe, make_recipe
from minigpt_ext.training.run import TrainingResult, resume, train
from minigpt_ext.training.trainer import Trainer, TrainingDiverged, TrainingInterrupted

__all__ = [
    "CheckpointError",
    "Recipe",
    "Trainer",
    "TrainingDiverged",
    "TrainingInterrupted",
    "TrainingResult",
    "keep_freed_memory",
    "make_recipe",
    "resume",
    "train",
]
