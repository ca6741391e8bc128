"""Small models of transformers with random shapes and weights, and how ours are compared with them."""

import json
import random

import torch
import transformers
from safetensors.torch import load_file, save_file

from minigpt_ext.interop.families import FAMILIES
from minigpt_ext.model import GPT

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

KINDS = list(FAMILIES)
NO_SPECIAL = dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)
ROPES = {
    "default": dict(rope_type="default"),
    "linear": dict(rope_type="linear", factor=2.5),
    "yarn": dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=20),
    "yarn, all fields": dict(
        rope_type="yarn", factor=3.0, original_max_position_embeddings=24, beta_fast=8.0, beta_slow=2.0, mscale=0.8,
        mscale_all_dim=0.5, truncate=False,
    ),
    "yarn, attention factor": dict(
        rope_type="yarn", factor=2.0, original_max_position_embeddings=32, attention_factor=1.3
    ),
    "llama3": dict(
        rope_type="llama3", factor=8.0, original_max_position_embeddings=24, low_freq_factor=1.0, high_freq_factor=4.0
    ),
}  # fmt: skip


def random_config(kind, seed, **fields):
    """A config of transformers. Seeds that follow each other run through H_kv = 1, 2, H and all kinds of RoPE."""
    draw = random.Random(f"{kind} {seed}")
    n_head = draw.choice([4, 6])
    if kind == "gpt2":
        return transformers.GPT2Config(
            **dict(
                vocab_size=draw.choice([97, 101, 127]), n_positions=draw.randint(48, 70), n_layer=draw.randint(2, 3),
                n_head=n_head, n_embd=n_head * draw.choice([5, 8, 11]), n_inner=draw.choice([None, 75, 100]),
                activation_function=["gelu_new", "gelu", "relu2", "gelu_pytorch_tanh"][seed % 4],
                layer_norm_epsilon=draw.choice([1e-5, 1e-3]), tie_word_embeddings=seed % 3 != 1,
                reorder_and_upcast_attn=draw.random() < 0.5, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                **NO_SPECIAL,
            )
            | fields
        )  # fmt: skip
    rope = ROPES[list(ROPES)[seed % len(ROPES)]]
    common = dict(
        vocab_size=draw.choice([97, 101, 127]), max_position_embeddings=draw.randint(48, 70),
        num_hidden_layers=draw.randint(2, 3), num_attention_heads=n_head, num_key_value_heads=[1, 2, n_head][seed % 3],
        head_dim=draw.choice([6, 10, 14, 22]), hidden_size=n_head * draw.choice([7, 8, 11]),
        intermediate_size=draw.randint(50, 99), rms_norm_eps=draw.choice([1e-6, 1e-5, 1e-3]),
        rope_parameters=rope | dict(rope_theta=draw.choice([1e4, 5e5])), tie_word_embeddings=draw.random() < 0.5,
        **NO_SPECIAL,
    )  # fmt: skip
    if kind == "llama":
        own = dict(attention_bias=seed % 4 in (1, 3), mlp_bias=seed % 4 in (2, 3))
        return transformers.LlamaConfig(**common | own | fields)
    if kind == "mistral":
        return transformers.MistralConfig(
            **common | dict(sliding_window=[None, 5, 11][(seed + seed // 3) % 3]) | fields
        )
    own = dict(use_sliding_window=seed % 2 == 0, sliding_window=draw.choice([4, 9]), max_window_layers=seed % 3)
    if seed == 4:
        layers = common["num_hidden_layers"]
        own["layer_types"] = [["sliding_attention", "full_attention"][layer % 2] for layer in range(layers)]
    if kind == "qwen2":
        return transformers.Qwen2Config(**common | own | fields)
    return transformers.Qwen3Config(**common | own | dict(attention_bias=seed % 3 == 2) | fields)


def random_model(config, seed=0):
    """A model of transformers whose norms and biases are not those of a start, and whose logits are well apart."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def random_ids(config, b, t, seed=0):
    return torch.randint(config.vocab_size, (b, t), generator=torch.Generator().manual_seed(seed))


def assert_close(actual, expected, message=""):
    """Within 1e-4 of the largest."""
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max(), message


def assert_same_logits(ours: GPT, theirs, ids):
    with torch.no_grad():
        assert_close(ours(ids)[0], theirs(ids).logits)


def saved(tmp_path, kind="llama", seed=0, **fields):
    theirs = random_model(random_config(kind, seed, **fields), seed)
    theirs.save_pretrained(tmp_path)
    return theirs


def change_config(directory, remove=(), **fields):
    path = directory / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in values.items() if name not in remove} | fields))


def change_tensors(directory, change):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    save_file(change(tensors) or tensors, path)
