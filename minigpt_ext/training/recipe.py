"""The settings of a run: what they are, what each preset sets, and how what a user asks for becomes a recipe."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from minigpt_ext.model.config import PRESETS, GPTConfig
from minigpt_ext.training.schedule import learning_rate_at

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

Setting = int | float | str | tuple[str, ...] | dict[str, Any] | list[Any] | None

_MODEL = "model."  # model.norm names a field of the model's config


def _key(help: str, *, low: float | None = None, above: float | None = None, below: float | None = None, one_of=()):
    return field(metadata={"help": help, "low": low, "above": above, "below": below, "one_of": one_of})


@dataclass(frozen=True)
class Recipe:
    """Every setting of a run, none left open. Names are nanoGPT's where it has one.

    Raises TypeError or ValueError, naming the key, for a value of the wrong type or out of range.
    """

    data: tuple[str, ...] = _key("python, shakespeare, or a path")
    tokenizer: str = _key("char, byte, or the path of a tokenizer")
    preset: str = _key("shape of the model, and its recipe", one_of=tuple(PRESETS))
    steps: int = _key("updates to make", low=1)
    seed: int = _key("of weights, batches and dropout", low=0, below=2**63)
    batch_size: int = _key("windows in a batch", low=1)
    block_size: int = _key("tokens in a window, the longest context", low=1)
    learning_rate: float = _key("the highest learning rate", above=0)
    min_lr: float = _key("the learning rate the cosine ends at", low=0)
    warmup_iters: int = _key("steps of linear warmup", low=0)
    lr_decay_iters: int = _key("where the cosine ends; by default steps", low=1)
    weight_decay: float = _key("AdamW's, on matrices only", low=0)
    beta1: float = _key("AdamW's decay of the mean gradient", low=0, below=1)
    beta2: float = _key("AdamW's decay of the mean squared gradient", low=0, below=1)
    grad_clip: float = _key("largest norm of the gradient; 0 = any", low=0)
    dropout: float = _key("probability of dropping an activation", low=0, below=1)
    eval_interval: int = _key("steps between evaluations", low=1)
    checkpoint_interval: int = _key("steps between saves; a new best is saved too", low=1)
    sample_interval: int = _key("steps between samples of its writing; 0 = none", low=0)
    patience: int = _key("stop after so many evaluations without a new best; 0 = never", low=0)
    device: str = _key("auto, cpu, cuda or mps", one_of=("auto", "cpu", "cuda", "mps"))
    dtype: str = _key("float32, or bfloat16 (autocast)", one_of=("float32", "bfloat16"))
    model: Mapping[str, Any] = _key(
        "the model's fields in place of the preset's, as JSON or a word: model.norm=rms_norm, "
        '\'model.window=[64, null]\', \'model.rope_scaling={"kind": "linear", "factor": 2}\''
    )

    def __post_init__(self) -> None:
        for f in fields(self):
            object.__setattr__(self, f.name, checked(f.name, getattr(self, f.name)))
        self.model_config(vocab_size=1)  # names a field of `model` that is wrong
        if self.min_lr > self.learning_rate:
            raise ValueError(f"min_lr: {self.min_lr:g} is above learning_rate {self.learning_rate:g}")

    def learning_rate_at(self, iteration: int) -> float:
        """Of the update made after `iteration` others."""
        return learning_rate_at(
            iteration,
            learning_rate=self.learning_rate,
            min_lr=self.min_lr,
            warmup_iters=self.warmup_iters,
            lr_decay_iters=self.lr_decay_iters,
        )

    def model_config(self, vocab_size: int) -> GPTConfig:
        """The preset's model with this recipe's block size, dropout and other fields of its own."""
        own = dict(vocab_size=vocab_size, block_size=self.block_size, dropout=self.dropout)
        return GPTConfig.preset(self.preset, **own | dict(self.model))

    def setting(self, key: str) -> Setting:
        """The value of a key, `model.norm` and the like included."""
        if not key.startswith(_MODEL):
            return getattr(self, key)
        value = getattr(self.model_config(vocab_size=1), key.removeprefix(_MODEL))
        return list(value) if isinstance(value, tuple) else value

    def to_dict(self) -> dict[str, Any]:
        """Every key, ready for JSON."""
        return asdict(self) | {"data": list(self.data)}


KEYS = {f.name: f for f in fields(Recipe)}

_COMMON: dict[str, Setting] = {
    "data": ("python",), "tokenizer": "char", "seed": 1337, "batch_size": 32, "block_size": 256,
    "learning_rate": 1e-3, "min_lr": 1e-4, "warmup_iters": 100, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.99,
    "grad_clip": 1.0, "dropout": 0.0, "eval_interval": 100, "sample_interval": 250, "patience": 0,
    "device": "auto", "dtype": "float32", "model": {},
}  # fmt: skip
PRESET_RECIPES: dict[str, dict[str, Setting]] = {
    "tiny": _COMMON | {"steps": 1000},
    "small": _COMMON | {"steps": 2000},
    "medium": _COMMON | {"steps": 5000, "batch_size": 64, "dropout": 0.2, "eval_interval": 250, "sample_interval": 500},
    "gpt2": _COMMON | {
        "steps": 10_000, "batch_size": 12, "block_size": 1024, "learning_rate": 6e-4, "min_lr": 6e-5,
        "warmup_iters": 500, "beta2": 0.95, "eval_interval": 500, "sample_interval": 500,
    },
}  # fmt: skip
PRESET_RECIPES |= {f"modern-{size}": PRESET_RECIPES[size] for size in ("tiny", "small", "medium")}
# Larger models want smaller steps (Radford et al., 2019, and GPT-3's table 2.1).
PRESET_RECIPES |= {
    f"gpt2-{size}": PRESET_RECIPES["gpt2"] | {"learning_rate": rate, "min_lr": rate / 10}
    for size, rate in {"medium": 3e-4, "large": 2.5e-4, "xl": 2e-4}.items()
}
# What `minigpt train` does when neither data nor preset is asked for: about two minutes on two cores.
DEMONSTRATION = PRESET_RECIPES["tiny"] | {
    "preset": "tiny", "steps": 1200, "batch_size": 32, "block_size": 128, "learning_rate": 5e-3, "min_lr": 1e-4,
    "warmup_iters": 50, "sample_interval": 300,
}  # fmt: skip


def make_recipe(asked: Mapping[str, Any]) -> Recipe:
    """The recipe for what a user asks for; the rest comes from the preset, `tiny` if none is named.

    Where neither `data` nor `preset` is asked for, the rest is the demonstration's. `lr_decay_iters` is `steps` and
    `checkpoint_interval` is `eval_interval` unless asked for; `device` auto becomes the device there is.

    Raises TypeError or ValueError naming the key that is unknown, of the wrong type or out of range.
    """
    asked = {key: checked(key, value) for key, value in asked.items()}
    preset = asked.get("preset", "tiny")
    base = DEMONSTRATION if is_demonstration(asked) else PRESET_RECIPES[preset] | {"preset": preset}
    own = {key.removeprefix(_MODEL): asked.pop(key) for key in list(asked) if key.startswith(_MODEL)}
    values = base | asked
    values["model"] = {**values["model"], **own}
    values.setdefault("lr_decay_iters", values["steps"])
    values.setdefault("checkpoint_interval", values["eval_interval"])
    values["device"] = resolve_device(values["device"])
    return Recipe(**values)


def is_demonstration(asked: Mapping[str, Any]) -> bool:
    """Whether nothing asked for says what to train on or which model."""
    return "preset" not in asked and "data" not in asked


def resolve_device(device: str) -> str:
    """`device`, or for auto the best there is. Raises ValueError for one that is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, available in there.items() if available)
    if not there[device]:
        raise ValueError(f"device: {device} is not available here; {', '.join(n for n, a in there.items() if a)} is")
    return device


def checked(key: str, value: Any) -> Setting:
    """`value` as the type of `key`. Raises TypeError or ValueError naming the key and what it allows."""
    if key.startswith(_MODEL):
        _check_model_field(key.removeprefix(_MODEL))
        return value
    f = _field(key)
    if key == "model":
        if not isinstance(value, Mapping):
            raise ValueError(f"model: expected fields of the model's config, as in model.norm=rms_norm, got {value!r}")
        for name in value:
            _check_model_field(name)
        return dict(value)
    if key == "data":
        sources = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else ()
        if not sources or not all(isinstance(source, str) and source for source in sources):
            raise ValueError(f"data: expected a name or path, or a list of them, got {value!r}")
        return sources
    if f.type == "float" and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    expected = {"int": int, "float": float, "str": str}[f.type]
    if not isinstance(value, expected) or isinstance(value, bool):
        raise TypeError(f"{key}: expected {_KINDS[f.type]}, got {value!r}")
    rule = f.metadata
    if rule["one_of"] and value not in rule["one_of"]:
        raise ValueError(f"{key}: expected one of {', '.join(rule['one_of'])}, got {value!r}")
    outside = f.type == "float" and not math.isfinite(value)
    outside |= rule["low"] is not None and value < rule["low"]
    outside |= rule["above"] is not None and value <= rule["above"]
    outside |= rule["below"] is not None and value >= rule["below"]
    if outside:
        raise ValueError(f"{key}: expected {_range(f)}, got {value!r}")
    return value


def parse_assignments(assignments: Iterable[str]) -> dict[str, Setting]:
    """`key=value` strings, as `--set` takes them, to typed settings; of a key given twice the last counts.

    The value of a model's field is JSON (64, true, [64, null], {"kind": "linear", "factor": 2}), or else a word.
    """
    settings = {}
    for assignment in assignments:
        key, equals, text = (part.strip() for part in assignment.partition("="))
        if not equals:
            raise ValueError(f"--set: expected key=value, got {assignment!r}")
        if key.startswith(_MODEL):
            settings[key] = checked(key, _json_or_word(text))
            continue
        f = _field(key)
        try:
            value = {"int": int, "float": float}.get(f.type, str)(text)
        except ValueError:
            raise ValueError(f"{key}: expected {_KINDS[f.type]}, got {text!r}") from None
        settings[key] = checked(key, value)
    return settings


def read_toml(path: str | Path) -> dict[str, Setting]:
    """The settings of a TOML file, keys at its top level, the model's fields in a table `model`.

    Raises ValueError naming file and key.
    """
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        if isinstance(model := content.get("model"), dict):
            del content["model"]
            content |= {_MODEL + name: value for name, value in model.items()}
        return {key: checked(key, value) for key, value in content.items()}
    except OSError as error:
        raise ValueError(f"--config: cannot read {path}: {error.strerror or error}") from error
    except (TypeError, ValueError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise ValueError(f"--config: {path}: {error}") from error


def describe_keys() -> str:
    """A line a key: name and meaning."""
    return "\n".join(f"  {key:<20} {f.metadata['help']}" for key, f in KEYS.items())


_KINDS = {"int": "an integer", "float": "a number", "str": "a word"}


def _json_or_word(text: str) -> Any:
    if text in (constants := {"True": True, "False": False, "None": None}):  # as Python and GPTConfig write them
        return constants[text]
    try:
        return json.loads(text)
    except ValueError:
        return text


def _check_model_field(name: str) -> None:
    allowed = [f.name for f in fields(GPTConfig) if f.name not in ("vocab_size", "block_size", "dropout")]
    if name in ("block_size", "dropout"):
        raise ValueError(f"{_MODEL}{name}: it is a setting of its own, {name}")
    if name == "vocab_size":
        raise ValueError(f"{_MODEL}vocab_size: the tokenizer gives it")
    if name not in allowed:
        raise ValueError(f"unknown key {_MODEL + name!r}: the model's fields are {', '.join(allowed)}")


def _field(key: str):
    if key in {f.name for f in fields(GPTConfig)} - set(KEYS):
        raise ValueError(
            f"{key} is a field of the model: set it by {_MODEL}{key}, or by a preset: {', '.join(PRESETS)}"
        )
    if key not in KEYS:
        aliases = {"max_iters": "steps", "max_steps": "steps", "lr": "learning_rate", "context": "block_size"}
        near = [aliases[key]] if key in aliases else difflib.get_close_matches(key, KEYS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"the keys are {', '.join(KEYS)}"
        raise ValueError(f"unknown key {key!r}: {hint}")
    return KEYS[key]


def _range(f) -> str:
    rule = f.metadata
    if rule["one_of"]:
        return " | ".join(rule["one_of"])
    limits = []
    if rule["low"] is not None:
        limits.append(f"{rule['low']} or more")
    if rule["above"] is not None:
        limits.append(f"above {rule['above']}")
    if rule["below"] is not None:
        limits.append(f"below {rule['below']}")
    return ", ".join([_KINDS.get(f.type, "a name or path"), *limits])
