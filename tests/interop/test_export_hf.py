"""Exported directories: transformers computes the same from them, and ours reads them back bit for bit."""

import importlib
import json

import pytest
import torch
import typer
from chat_templates import CHATML
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from tokenizer_cases import family
from typer.testing import CliRunner

from minigpt_ext.cli.errors import UserError
from minigpt_ext.interop import export_hf as export_hf_module
from minigpt_ext.interop.export_hf import hf_config
from minigpt_ext.interop.families import FAMILIES
from minigpt_ext.interop.layouts import layout_of, written_config
from minigpt_ext.model import GPT, GPTConfig
from minigpt_ext.model.config import BIASES, PRESETS
from minigpt_ext.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, load_tokenizer
from minigpt_ext.tokenizer.chat import ChatTemplate

transformers = pytest.importorskip("transformers", reason="the oracle of this test: pip install -e '.[test]'")
from hf_models import assert_close, random_config, random_model  # noqa: E402  needs transformers

command = importlib.import_module("minigpt_ext.cli.export")
app = typer.Typer()
app.command()(command.export)

GPT2 = dict(vocab_size=97, block_size=40, n_layer=3, n_head=4, n_embd=44)
LLAMA = GPT2 | dict(norm="rms_norm", activation="swiglu", positions="rope", bias=False, n_kv_head=2)
YARN = dict(kind="yarn", factor=4, original_block_size=10)
EXPORTED = {
    "gpt2": GPT2,
    "gpt2, no biases": GPT2 | dict(bias=False, tied_head=False, activation="gelu", mlp_width=50, norm_epsilon=1e-3),
    "gpt2, qkv biases": GPT2 | dict(bias="qkv", activation="relu_squared"),
    "gpt2, mlp biases": GPT2 | dict(bias="mlp"),
    "llama": LLAMA,
    "llama, all biases": LLAMA | dict(bias=True, tied_head=False, head_dim=10, mlp_width=33),
    "llama, attention biases": LLAMA | dict(bias="attention", n_kv_head=1),
    "llama, mlp biases": LLAMA | dict(bias="mlp", n_kv_head=4, head_dim=14),
    "llama, linear": LLAMA | dict(rope_theta=5e5, head_dim=10, rope_scaling=dict(kind="linear", factor=2.5)),
    "llama, yarn": LLAMA | dict(head_dim=10, rope_scaling=YARN),
    "llama, yarn in full": LLAMA
    | dict(head_dim=12, rope_scaling=YARN | dict(attention_factor=1.3, beta_fast=9.0, beta_slow=2.0, truncate=False)),
    "llama, llama3": LLAMA
    | dict(head_dim=12, rope_scaling=YARN | dict(kind="llama3", low_freq_factor=1.5, high_freq_factor=5.0)),
    "mistral": LLAMA | dict(window=7, head_dim=10),
    "qwen2": LLAMA | dict(bias="qkv", tied_head=False, head_dim=10),
    "qwen2, windows": LLAMA | dict(bias="qkv", window=[None, 5, 5], head_dim=10),
    "qwen2, windows and no biases": LLAMA | dict(window=[5, None, 5], head_dim=10),
    "qwen2, a window everywhere": LLAMA | dict(bias="qkv", window=9, head_dim=10),
    "qwen3": LLAMA | dict(qk_norm=True, head_dim=16),
    "qwen3, attention biases": LLAMA | dict(qk_norm=True, bias="attention", window=6, head_dim=10),
    "qwen3, qkv biases": LLAMA | dict(qk_norm=True, bias="qkv", window=[None, 6, None], head_dim=10),
}
for case in EXPORTED.values():
    case.setdefault("head_dim", 11 if case.get("positions") != "rope" else 12)


def random_gpt(config, seed=0):
    model = GPT(config, seed=seed).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model


def write_run(directory, model, tokenizer):
    from safetensors.torch import save_file

    directory.mkdir()
    save_file(model.state_dict(), directory / "model.safetensors")
    run = {"format": "minigpt-run", "version": 1, "model": model.config.to_dict()}
    (directory / "config.json").write_text(json.dumps(run))
    tokenizer.save(directory / "tokenizer.json")
    return directory


def export(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def chars(n):
    return CharTokenizer("".join(map(chr, range(32, 32 + n))))


@pytest.mark.parametrize("name", EXPORTED)
def test_logits_and_reload(name, tmp_path):
    config = GPTConfig(**EXPORTED[name])
    ours = random_gpt(config)
    export(write_run(tmp_path / "run", ours, chars(97)), tmp_path / "out")
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.config.model_type == name.split(",")[0] and theirs.dtype == torch.float32
    again = GPT.from_pretrained(tmp_path / "out")
    assert again.config == written_config(config)
    ids = torch.randint(97, (2, 40))
    with torch.no_grad():
        logits = ours(ids)[0]
        assert_close(logits, theirs.eval()(ids).logits)
        assert torch.equal(logits, again(ids)[0])
    for key, parameter in ours.state_dict().items():
        assert torch.equal(parameter, again.state_dict()[key])
    greedy = theirs.generate(ids[:1, :7], max_new_tokens=20, do_sample=False)
    assert ours.generate(ids[:1, :7], 20, temperature=0).tolist() == greedy.tolist()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", FAMILIES)
def test_in_and_out_again(kind, seed, tmp_path):
    """A model of transformers through ours and back: the same tensors, and a config that says the same."""
    theirs = random_model(random_config(kind, seed), seed)
    theirs.save_pretrained(tmp_path / "in")
    export(tmp_path / "in", tmp_path / "out")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    for key, parameter in theirs.state_dict().items():
        assert torch.equal(parameter, back.state_dict()[key]), key
    ids = torch.randint(theirs.config.vocab_size, (2, 40))
    with torch.no_grad():
        assert_close(back(ids).logits, theirs(ids).logits)


@pytest.mark.parametrize(("name", "dtype"), [("f32", torch.float32), ("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_dtypes(name, dtype, tmp_path):
    ours = random_gpt(GPTConfig(**EXPORTED["qwen3"]))
    run = write_run(tmp_path / "run", ours, chars(97))
    export(run, tmp_path / "out", "--dtype", name)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert theirs.dtype == dtype
    assert torch.equal(theirs.model.embed_tokens.weight, ours.wte.weight.to(dtype))
    export(tmp_path / "out", tmp_path / "again")  # in the dtype of its files
    bytes_of = [(tmp_path / where / "model.safetensors").read_bytes() for where in ("out", "again")]
    assert bytes_of[0] == bytes_of[1]


def test_values_beyond_f16_are_refused(tmp_path):
    ours = random_gpt(GPTConfig(**EXPORTED["gpt2"]))
    with torch.no_grad():
        ours.h[1].mlp.c_fc.weight[3, 4] = 1e5
    run = write_run(tmp_path / "run", ours, chars(97))
    with pytest.raises(UserError, match=r"h\.1\.mlp\.c_fc\.weight has values beyond the range of f16"):
        export(run, tmp_path / "out", "--dtype", "f16")
    assert not (tmp_path / "out").exists()


OTHER = {
    "positions is 'alibi', and in that layout it is 'learned'": GPT2 | dict(positions="alibi"),
    "norm is 'layer_norm', and in that layout it is 'rms_norm'": LLAMA | dict(norm="layer_norm"),
    "activation is 'relu_squared', and in that layout it is 'swiglu'": LLAMA | dict(activation="relu_squared"),
    "logit_softcap is 30.0, and in that layout it is None": LLAMA | dict(logit_softcap=30.0),
    "attention_softcap is 20.0, and in that layout it is None": GPT2 | dict(attention_softcap=20.0),
    "rope_dim is 6, and in that layout it is head_dim, 12": LLAMA | dict(rope_dim=6),
    "window has the sizes 4, 8, and in that layout it has one": LLAMA | dict(window=[4, 8, None]),
    "bias is True, and with qk_norm it is": LLAMA | dict(qk_norm=True, bias=True),
    "bias is 'attention', and with a window it is": LLAMA | dict(window=4, bias="attention"),
    "qk_norm is True, and in that layout it is False": GPT2 | dict(qk_norm=True),
    "n_kv_head is 2, and in that layout it is 4": GPT2 | dict(n_kv_head=2),
    "head_dim is 5, and in that layout it is n_embd / n_head": GPT2 | dict(head_dim=5),
    "window is 4, and in that layout it is None": GPT2 | dict(window=4),
}


@pytest.mark.parametrize("says", OTHER)
def test_what_no_layout_holds_is_named(says, tmp_path):
    fields = dict(head_dim=12 if OTHER[says].get("positions") == "rope" else 11) | OTHER[says]
    run = write_run(tmp_path / "run", random_gpt(GPTConfig(**fields)), chars(97))
    with pytest.raises(UserError, match=f"no known layout holds this model.*{says}"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@given(
    norm=st.sampled_from(["layer_norm", "rms_norm"]), activation=st.sampled_from(["gelu_tanh", "swiglu"]),
    positions=st.sampled_from(["learned", "rope", "none"]), bias=st.sampled_from(BIASES), qk_norm=st.booleans(),
    window=st.sampled_from([None, 5, [5, None], [5, 6]]), n_kv_head=st.sampled_from([1, 4]),
)  # fmt: skip
def test_every_config_is_exported_or_refused(**fields):
    """hf_config and what import makes of it agree, whatever the combination."""
    config = GPTConfig(vocab_size=50, block_size=32, n_layer=2, n_head=4, n_embd=32, **fields)
    try:
        kind = layout_of(config)
    except ValueError as error:
        assert " is " in str(error) or " has " in str(error)
    else:
        values = json.loads(json.dumps(hf_config(config, torch.float32)))
        assert FAMILIES[kind].config_of(values) == written_config(config)
        assert {part.ours for part in FAMILIES[kind].parts(written_config(config))} >= set(GPT(config).state_dict())


def test_presets_have_a_layout():
    layouts = {name: layout_of(GPTConfig.preset(name)) for name in PRESETS}
    assert layouts == {name: "qwen3" if name.startswith("modern") else "gpt2" for name in PRESETS}


TEXT = "a b\n\n\té漢😀\r\n  c\u2028d"


def auto_tokenizer(directory):
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    return tokenizer, lambda text: tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("tokenizer", [CharTokenizer("".join(sorted(set(TEXT)))), ByteTokenizer()])
def test_character_and_byte_tokenizers(tokenizer, tmp_path):
    config = GPTConfig(**EXPORTED["qwen3"] | dict(vocab_size=tokenizer.vocab_size))
    export(write_run(tmp_path / "run", random_gpt(config), tokenizer), tmp_path / "out")
    theirs, encode = auto_tokenizer(tmp_path / "out")
    assert encode(TEXT) == tokenizer.encode(TEXT) == load_tokenizer(tmp_path / "out").encode(TEXT)
    assert theirs.decode(encode(TEXT)) == TEXT and len(theirs) == tokenizer.vocab_size
    if isinstance(tokenizer, CharTokenizer):
        assert load_tokenizer(tmp_path / "out").characters == tokenizer.characters
        with pytest.raises(Exception, match=r"Missing \[UNK\]"):
            encode("x")
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert values["eos_token_id"] is None and not (tmp_path / "out" / "generation_config.json").exists()


def test_a_file_of_words_is_no_character_tokenizer(tmp_path):
    run = write_run(tmp_path / "run", random_gpt(GPTConfig(**EXPORTED["gpt2"])), chars(97))
    export(run, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    content["model"]["vocab"] = {"ab": 0, "c": 1}
    (tmp_path / "out" / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="tokenizer.json: model: of .WordLevel. this program can do"):
        load_tokenizer(tmp_path / "out")


def test_bpe_of_a_run_and_its_end_of_text(tmp_path):
    tokenizer = BPETokenizer.train(TEXT * 9, 280, special_tokens=["<|endoftext|>"])
    config = GPTConfig(**EXPORTED["llama"] | dict(vocab_size=tokenizer.vocab_size))
    export(write_run(tmp_path / "run", random_gpt(config), tokenizer), tmp_path / "out")
    theirs, encode = auto_tokenizer(tmp_path / "out")
    assert encode(TEXT + "<|endoftext|>") == tokenizer.encode(TEXT + "<|endoftext|>")
    assert theirs.eos_token_id == tokenizer.eos_id
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert generation.eos_token_id == tokenizer.eos_id


def test_tokenizer_and_chat_template_of_a_directory_go_along(tmp_path):
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=family("qwen2"), eos_token="<|im_end|>", chat_template={"default": CHATML, "tool_use": "x"}
    )
    theirs = random_model(random_config("qwen2", 0, vocab_size=len(tokenizer) + 5, eos_token_id=7, bos_token_id=3))
    theirs.generation_config = transformers.GenerationConfig(eos_token_id=[7, 9], temperature=0.5, do_sample=True)
    theirs.save_pretrained(tmp_path / "in")
    tokenizer.save_pretrained(tmp_path / "in")
    output = export(tmp_path / "in", tmp_path / "out")
    again, encode = auto_tokenizer(tmp_path / "out")
    ask = [{"role": "user", "content": TEXT}]
    assert encode(TEXT) == tokenizer(TEXT).input_ids
    for tools in (None, [{}]):
        expected = tokenizer.apply_chat_template(ask, tools=tools, tokenize=False)
        assert again.apply_chat_template(ask, tools=tools, tokenize=False) == expected
        assert ChatTemplate.load(tmp_path / "out").render(ask, tools=tools) == expected
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [7, 9]
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.eos_token_id, config.bos_token_id) == (7, 3)
    written = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert {line.split()[0] for line in output.splitlines() if line.startswith("  ")} >= written


def test_what_is_there_is_not_written_over(tmp_path):
    run = write_run(tmp_path / "run", random_gpt(GPTConfig(**EXPORTED["gpt2"])), chars(97))
    out = tmp_path / "out"
    out.mkdir()
    export(run, out)  # an empty directory is none of anybody's
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(UserError, match="out is not empty; --force writes over"):
        export(run, out)
    (out / "notes.txt").write_text("mine")
    export(run, out, "--force", "--dtype", "bf16")
    assert (out / "notes.txt").read_text() == "mine"
    assert len((out / "model.safetensors").read_bytes()) < len(before["model.safetensors"])
    with pytest.raises(UserError, match="is MODEL itself"):
        export(run, run, "--force")
    with pytest.raises(UserError, match="is a file, and --format hf writes a directory"):
        export(run, out / "notes.txt", "--force")
    with pytest.raises(UserError, match="nowhere"):
        export(tmp_path / "nowhere", tmp_path / "new")
    assert sorted(file.name for file in out.iterdir()) == sorted([*before, "notes.txt"])  # nothing partial stays


def test_files_of_another_model_do_not_stay_beside_the_new_ones(tmp_path):
    run = write_run(tmp_path / "run", random_gpt(GPTConfig(**EXPORTED["gpt2"])), chars(97))
    out = tmp_path / "out"
    export(run, out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    for stale in ("merges.txt", "chat_template.jinja", "model-00001-of-00002.safetensors"):
        (out / stale).write_text("another model's")
        with pytest.raises(UserError, match=f"holds {stale} of another model"):
            export(run, out, "--force", "--dtype", "bf16")
        (out / stale).unlink()
        assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(tensors, path, metadata):
        raise SafetensorError("I/O error: No space left on device")

    run = write_run(tmp_path / "run", random_gpt(GPTConfig(**EXPORTED["gpt2"])), chars(97))
    monkeypatch.setattr(export_hf_module, "save_file", full)
    with pytest.raises(UserError, match="cannot write model.safetensors: I/O error: No space left on device"):
        export(run, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_tokenizer_of_another_kind_goes_along_unread(tmp_path):
    """What this program cannot encode with, it can still copy."""
    theirs = random_model(random_config("llama", 0))
    theirs.save_pretrained(tmp_path / "in")
    (tmp_path / "in" / "tokenizer.json").write_text('{"model": {"type": "Unigram"}}')
    (tmp_path / "in" / "tokenizer.model").write_bytes(b"\x00\x01")
    export(tmp_path / "in", tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer.model"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "in" / name).read_bytes()


def test_a_tokenizer_with_more_tokens_than_the_model(tmp_path):
    run = write_run(tmp_path / "run", random_gpt(GPTConfig(**EXPORTED["gpt2"])), chars(98))
    with pytest.raises(UserError, match="the tokenizer has 98 tokens and the model 97"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_without_a_tokenizer(tmp_path):
    run = write_run(tmp_path / "run", random_gpt(GPTConfig(**EXPORTED["gpt2"])), chars(97))
    (run / "tokenizer.json").unlink()
    assert "note: the run holds no tokenizer.json" in export(run, tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
