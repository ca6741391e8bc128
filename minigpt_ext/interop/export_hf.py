"""Writes a model as a Hugging Face directory, which `transformers`, vLLM and their like load."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from minigpt_ext.data.files import replacing, write_atomically
from minigpt_ext.model import GPTConfig, RopeScaling
from minigpt_ext.tokenizer import BPETokenizer, CharTokenizer, Tokenizer
from minigpt_ext.tokenizer.hf_simple import bytes_json, characters_json

from .families import FAMILIES
from .layouts import layout_of, window_sizes, written_config, written_tensors
from .source import Source

_CLASSES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu_squared": "relu2"}
_SCALING_FIELDS = {
    "linear": (),
    "yarn": ("beta_fast", "beta_slow", "attention_factor", "truncate"),
    "llama3": ("low_freq_factor", "high_freq_factor"),
}
# What may lie beside the model and goes along as it is.
_COMPANY = ("generation_config.json", "chat_template.jinja", "additional_chat_templates")
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model",
)  # fmt: skip
_IDS = ("bos_token_id", "eos_token_id")


def hf_config(config: GPTConfig, dtype: torch.dtype) -> dict[str, Any]:
    """The content of config.json. Raises ValueError where no layout of Hugging Face holds the model."""
    kind = layout_of(config)
    values = {
        "architectures": [_CLASSES[kind]],
        "model_type": kind,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied_head,
        "attention_dropout" if kind != "gpt2" else "attn_pdrop": config.dropout,
        # null, since their defaults are tokens that this vocabulary may not have; a tokenizer's replace them
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return values | (_gpt2_fields(config) if kind == "gpt2" else _llama_fields(config, kind))


def _gpt2_fields(config: GPTConfig) -> dict[str, Any]:
    return {
        "n_positions": config.block_size,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": config.mlp_width,
        "activation_function": _ACTIVATIONS[config.activation],
        "layer_norm_epsilon": config.norm_epsilon,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
    }


def _llama_fields(config: GPTConfig, kind: str) -> dict[str, Any]:
    values = {
        "max_position_embeddings": config.block_size,
        "hidden_size": config.n_embd,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "rope_scaling": _rope_scaling(config.rope_scaling),
    }
    if kind in ("llama", "qwen3"):
        values["attention_bias"] = written_config(config).bias in (True, "attention")
    if kind == "llama":
        values["mlp_bias"] = config.bias in (True, "mlp")
        return values
    sizes = window_sizes(config)
    values["sliding_window"] = max(sizes, default=None)
    if kind != "mistral":
        slides = [config.window_of(layer) is not None for layer in range(config.n_layer)]
        # Older programs know only where sliding layers begin; layer_types says it in full.
        values["use_sliding_window"] = bool(sizes)
        values["max_window_layers"] = slides.index(True) if sizes else config.n_layer
        values["layer_types"] = ["sliding_attention" if slide else "full_attention" for slide in slides]
    return values


def _rope_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    values = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind != "linear":
        values["original_max_position_embeddings"] = scaling.original_block_size
    fields = asdict(scaling)
    return values | {name: fields[name] for name in _SCALING_FIELDS[scaling.kind] if fields[name] is not None}


def export_hf(source: Source, out: Path) -> list[Path]:
    """Write the model and its company into the directory `out`, which gets its files when all of them are there.

    Returns the files written. Raises ValueError where no layout holds the model, before anything is written, or where
    `out` holds files of another model that would stay beside the new ones; OSError as the file system does.
    """
    config = source.model.config
    values = hf_config(config, source.model.wte.weight.dtype)
    parts = written_tensors(source.model, FAMILIES[values["model_type"]])
    tensors = {part.theirs: tensor.detach().contiguous() for part, tensor in parts}
    tokenizer = None if source.values else source.tokenizer  # read before anything is written
    with _staged(out) as folder:
        written = _write_all(source, tokenizer, values, tensors, folder)
        names = [file.relative_to(folder) for file in written]
    return [out / name for name in names]


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """A folder to write into, whose files move to `out` at the end; if the body raises, `out` stays as it was."""
    there = out.is_dir()
    folder = out / ".export.partial" if there else out.with_name(f".{out.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)  # what a kill left
    try:
        folder.mkdir(parents=True)
        yield folder
        if there:
            _move_into(out, folder)
        else:
            os.replace(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move_into(out: Path, folder: Path) -> None:
    """Move the files of `folder` into `out`, config.json last. Raises ValueError where other model files are there."""
    new = sorted((file.relative_to(folder) for file in folder.rglob("*") if file.is_file()), key=_is_config)
    kinds = ("*.safetensors", "*.safetensors.index.json", *_COMPANY, *_TOKENIZER)
    old = {file.relative_to(out) for kind in kinds for file in out.glob(kind)}
    if stale := sorted(map(str, old - set(new) - {name.parent for name in new})):
        raise ValueError(
            f"{out} holds {', '.join(stale)} of another model, which this export does not write over and would be read "
            "with it: move them away, or name another directory"
        )
    for name in new:
        (out / name).parent.mkdir(exist_ok=True)
        os.replace(folder / name, out / name)


def _is_config(name: Path) -> bool:
    return name.name == "config.json"


def _write_all(
    source: Source, tokenizer: Tokenizer | None, values: dict[str, Any], tensors: dict[str, torch.Tensor], out: Path
) -> list[Path]:
    try:
        with replacing(out / "model.safetensors") as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
    except SafetensorError as error:  # a full disk, for example
        raise OSError(f"cannot write model.safetensors: {error}") from error
    written = [out / "model.safetensors", *_copied(_COMPANY, source.directory, out)]
    if source.values:
        written += _copied(_TOKENIZER, source.directory, out)
        ids = {key: value for key, value in source.values.items() if key.endswith("_token_id")}
    else:
        written += _write_tokenizer(source, out)
        ids = {key: getattr(tokenizer, key.removesuffix("_token_id") + "_id", None) for key in _IDS}
    if (generation := out / "generation_config.json") not in written and any(id is not None for id in ids.values()):
        written.append(_write_json(generation, ids))
    return [*written, _write_json(out / "config.json", values | ids)]


def _copied(names: Sequence[str], directory: Path, out: Path) -> list[Path]:
    """Copy those files and folders that are there; returns the files written."""
    written = []
    for name in names:
        path = directory / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                target = out / file.relative_to(directory)
                target.parent.mkdir(exist_ok=True)
                with replacing(target) as temporary:
                    shutil.copyfile(file, temporary)
                written.append(target)
    return written


def _write_tokenizer(source: Source, out: Path) -> list[Path]:
    """The tokenizer of a run."""
    tokenizer = source.tokenizer
    if tokenizer is None:
        source.notes.append("the run holds no tokenizer.json: the directory is without a tokenizer")
        return []
    if isinstance(tokenizer, BPETokenizer):
        return tokenizer.save_directory(out)
    content = characters_json(tokenizer) if isinstance(tokenizer, CharTokenizer) else bytes_json()
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return [_write_json(out / "tokenizer.json", content), _write_json(out / "tokenizer_config.json", config)]


def _write_json(path: Path, content: dict[str, Any]) -> Path:
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return path
