"""A directory of weights, ours or Hugging Face's, as a GPT: all is checked first, then copied tensor by tensor."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from minigpt_ext.model import GPT

from .checkpoint import WEIGHTS, Checkpoint
from .families import RUN, family_of, read_config
from .hub import resolve_model
from .plan import Plan, make_plan
from .rules import EMBEDDING, HEAD, Family
from .safetensors_header import DTYPES, shown

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Fields of configs that the shapes of tensors follow from.
_SIZES = (
    "vocab_size", "hidden_size", "n_embd", "num_hidden_layers", "n_layer", "num_attention_heads", "n_head",
    "num_key_value_heads", "n_kv_head", "head_dim", "intermediate_size", "n_inner", "mlp_width", "n_positions",
    "block_size", "attention_bias", "mlp_bias", "bias", "tie_word_embeddings", "tied_head",
)  # fmt: skip


def locate(path: str | os.PathLike[str]) -> Path:
    """The directory of a model: `path` itself; or, where a str names none, that of the hub's model of that name.

    Raises:
        FileNotFoundError: there is no such directory, and it is no name on the hub.
        NotADirectoryError: it is a file.
        ValueError: the model cannot be had from the hub.
    """
    directory = Path(path).expanduser()
    if not directory.exists():
        if not isinstance(path, str):
            raise FileNotFoundError(f"there is no directory {directory}")
        directory = resolve_model(path)
    if not directory.is_dir():
        raise NotADirectoryError(f"{directory} is a file; a model is a directory, with config.json and weights in it")
    return directory


def load(
    path: str | os.PathLike[str],
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
) -> GPT:
    """The model of a directory; see `GPT.from_pretrained`, which is this."""
    if dtype != "auto" and dtype is not None and dtype not in FLOATS:
        raise ValueError(f'dtype must be one of {", ".join(map(str, FLOATS))}, "auto" or None, not {dtype!r}')
    directory = locate(path)
    values = read_config(directory)
    with _about_config(directory):
        family = family_of(values)
        config = family.config_of(values)
    with _open_weights(directory, family) as checkpoint:
        with _about_config(directory):
            plan = make_plan(checkpoint, family, config)
        _check(plan, checkpoint, values)
        if dtype == "auto":
            dtype = _widest(checkpoint, plan)
        with torch.device("meta"):
            model = GPT(config).to(dtype or torch.get_default_dtype())
        model.to_empty(device=device if device is not None else torch.get_default_device())
        own = model.state_dict()
        for name, part in plan.copies:
            part.fill(own[part.ours], checkpoint.tensor(name))
            checkpoint.release(name)  # else the pages of the file that were read would count as this process's memory
    return model.eval()


@contextmanager
def _about_config(directory: Path) -> Iterator[None]:
    """Errors that name the file of the fields they are about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{directory / 'config.json'}: {error}") from error


def _open_weights(directory: Path, family: Family) -> Checkpoint:
    if family is not RUN:
        return Checkpoint.open(directory)
    if not (directory / WEIGHTS).is_file():
        raise FileNotFoundError(f"{directory} holds no {WEIGHTS}: the run has not saved a model yet")
    return Checkpoint.open(directory / WEIGHTS)


def _check(plan: Plan, checkpoint: Checkpoint, values: Mapping[str, Any]) -> None:
    """Raise ValueError where the weights are not those of the config's model."""
    wrong = plan.wrong or _untied(plan, checkpoint)
    if wrong:
        where = checkpoint.files[0].path if len(checkpoint.files) == 1 else checkpoint.files[0].path.parent
        more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        sizes = {**values, **(values["model"] if isinstance(values.get("model"), dict) else {})}
        said = ", ".join(f"{name} {shown(sizes[name])}" for name in _SIZES if sizes.get(name) is not None)
        raise ValueError(f"{where}: {'; '.join(wrong[:8])}{more}. By config.json: {said}")


def _untied(plan: Plan, checkpoint: Checkpoint) -> list[str]:
    """A head that is to be tied may be in a file all the same, but not with values of its own."""
    if HEAD not in plan.skipped:
        return []
    embedding = next(copy.name for copy in plan.copies if copy.part.ours == EMBEDDING)
    bits = [checkpoint.tensor(name).view(torch.uint8) for name in (HEAD, embedding)]
    equal = torch.equal(*bits)
    for name in (HEAD, embedding):
        checkpoint.release(name)
    return [] if equal else [f"{HEAD} differs from {embedding}, and the config says they are tied"]


def _widest(checkpoint: Checkpoint, plan: Plan) -> torch.dtype:
    """The dtype that holds the values of all tensors."""
    dtypes = {DTYPES[checkpoint.info(copy.name).dtype][1] for copy in plan.copies}
    widest = dtypes.pop()
    for dtype in dtypes:
        widest = torch.promote_types(widest, dtype)
    return widest
