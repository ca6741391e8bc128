"""GGUF files: the library `gguf` reads in them what was written, and llama.cpp computes from them what we do."""

import importlib
import json
import os
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
import torch
import typer
from chat_templates import CHATML, LLAMA3
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from typer.testing import CliRunner

from minigpt_ext.cli.errors import UserError
from minigpt_ext.interop.export_gguf import architecture_of, export_gguf
from minigpt_ext.interop.gguf import TENSOR_TYPES, GGUFTensor, write_gguf
from minigpt_ext.interop.source import Source
from minigpt_ext.model import GPT, GPTConfig
from minigpt_ext.model.config import PRESETS
from minigpt_ext.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, load_tokenizer
from minigpt_ext.tokenizer.chat import ChatTemplate

gguf = pytest.importorskip("gguf", reason="reads the files that are tested here: pip install gguf")
pytest.importorskip("tokenizers", reason="makes the tokenizers that are tested here: pip install -e '.[test]'")
import tokenizer_cases  # noqa: E402  needs tokenizers

try:
    import xllamacpp  # noqa: F401
    from llama_server import LlamaCpp
except ImportError:
    LlamaCpp = None
needs_llama_cpp = pytest.mark.skipif(LlamaCpp is None, reason="llama.cpp is the oracle: pip install xllamacpp")

command = importlib.import_module("minigpt_ext.cli.export")
app = typer.Typer()
app.command()(command.export)

V = 95
CHARS = CharTokenizer("".join(map(chr, range(32, 32 + V))))  # each a text, so that llama.cpp tells its probability
GPT2 = dict(vocab_size=V, block_size=64, n_layer=3, n_head=4, n_embd=44)
LLAMA = GPT2 | dict(norm="rms_norm", activation="swiglu", positions="rope", bias=False, n_kv_head=2, head_dim=12)
YARN = dict(kind="yarn", factor=4, original_block_size=16)
EXPORTED = {
    "gpt2": GPT2,
    "gpt2, no biases": GPT2 | dict(bias=False, tied_head=False, mlp_width=50, norm_epsilon=1e-3),
    "gpt2, qkv biases": GPT2 | dict(bias="qkv"),
    "llama": LLAMA,
    "llama, all biases": LLAMA | dict(bias=True, tied_head=False, head_dim=10, mlp_width=33),
    "llama, attention biases": LLAMA | dict(bias="attention", n_kv_head=1),
    "llama, mlp biases": LLAMA | dict(bias="mlp", n_kv_head=4, head_dim=14, norm_epsilon=1e-3),
    "llama, linear": LLAMA | dict(rope_theta=5e5, rope_scaling=dict(kind="linear", factor=2.5)),
    "llama, yarn": LLAMA | dict(rope_scaling=YARN),
    "llama, yarn in full": LLAMA
    | dict(rope_theta=1e6, rope_scaling=YARN | dict(attention_factor=1.3, beta_fast=9.0, beta_slow=2.0)),
    "llama, llama3": LLAMA | dict(rope_scaling=YARN | dict(kind="llama3", low_freq_factor=1.5, high_freq_factor=5.0)),
    "llama, a window as wide as the context": LLAMA | dict(window=64),
    "llama, qkv biases": LLAMA | dict(bias="qkv"),
    "llama, qkv biases and llama3": LLAMA | dict(bias="qkv", rope_scaling=YARN | dict(kind="llama3")),
    "qwen2": LLAMA | dict(bias="qkv", tied_head=False, n_embd=48),
    "qwen2, yarn": LLAMA | dict(bias="qkv", n_embd=48, n_kv_head=1, rope_scaling=YARN),
    "qwen3": LLAMA | dict(qk_norm=True, head_dim=16),
    "qwen3, linear": LLAMA | dict(qk_norm=True, tied_head=False, rope_scaling=dict(kind="linear", factor=3.0)),
}


def random_gpt(config, dtype=torch.float32):
    model = GPT(config, seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model.to(dtype)


def source_of(tmp_path, model, tokenizer=CHARS, chat=None):
    source = Source(tmp_path, model)
    source.tokenizer, source.chat = tokenizer, chat
    return source


def exported(tmp_path, *arguments, **fields):
    source = source_of(tmp_path, *arguments, **fields)
    (file,) = export_gguf(source, tmp_path / "model.gguf")
    return file, source


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.one_of(
    st.booleans(), st.integers(0, 2**32 - 1), st.floats(width=32, allow_nan=False), TEXTS,
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1), st.lists(st.floats(width=32, allow_nan=False), min_size=1),
    st.lists(TEXTS, min_size=1),
)  # fmt: skip
TENSORS = st.dictionaries(
    st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=60),
    st.tuples(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.sampled_from(list(TENSOR_TYPES))),
    max_size=4,
)  # fmt: skip


@given(values=st.dictionaries(st.from_regex(r"[a-z_]{1,20}\.[a-z_]{1,20}", fullmatch=True), VALUES), tensors=TENSORS)
def test_the_library_reads_what_was_written(values, tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    data = {name: torch.randn(shape).to(dtype) for name, (shape, dtype) in tensors.items()}
    written = [GGUFTensor(name, tuple(t.shape), t.dtype, lambda t=t: t) for name, t in data.items()]
    write_gguf(path, {"general.architecture": "none", **values}, written)
    reader = gguf.GGUFReader(path)
    assert {key: reader.fields[key].contents() for key in values} == values
    assert reader.fields["GGUF.version"].contents() == 3
    assert [tensor.name for tensor in reader.tensors] == list(data)
    for tensor in reader.tensors:
        expected = data[tensor.name]
        assert tensor.shape.tolist() == list(expected.shape[::-1]) and tensor.data_offset % 32 == 0
        read = torch.from_numpy(np.array(tensor.data).view(np.uint8))
        assert torch.equal(read.flatten(), expected.view(torch.uint8).flatten())


@pytest.mark.parametrize(
    ("value", "says"),
    [(-1, "x.y: -1 cannot be written"), (2**32, "cannot be written"), ([1, 2.0], "of one type"), (1e39, "cannot")],
)
def test_values_that_do_not_fit(value, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        write_gguf(tmp_path / "x.gguf", {"x.y": value}, [])
    assert not list(tmp_path.iterdir())


def test_a_tensor_of_another_shape(tmp_path):
    with pytest.raises(ValueError, match=r"x: expected the shape \(2, 3\), got \(3, 2\)"):
        write_gguf(tmp_path / "x.gguf", {}, [GGUFTensor("x", (2, 3), torch.float32, lambda: torch.zeros(3, 2))])
    assert not list(tmp_path.iterdir())


@needs_llama_cpp
@pytest.mark.parametrize("name", EXPORTED)
def test_llama_cpp_computes_the_same(name, tmp_path):
    config = GPTConfig(**EXPORTED[name])
    ours = random_gpt(config)
    file, source = exported(tmp_path, ours)
    assert architecture_of(config) == name.split(",")[0] and not source.notes
    # its GELU is a table in half precision; all else it does in float32
    check_against_llama_cpp(file, ours, tolerance=1e-3 if "gpt2" in name else 1e-5)


@needs_llama_cpp
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_llama_cpp_in_half_precision(name, dtype, tmp_path):
    """The file has the rounded weights; ours computes with them in float32, llama.cpp rounds what they meet as well."""
    ours = random_gpt(GPTConfig(**EXPORTED[name]), dtype)
    file, _ = exported(tmp_path, ours)
    check_against_llama_cpp(file, ours.float(), tolerance=0.02 if dtype is torch.bfloat16 else 2e-3, exactly=False)


def check_against_llama_cpp(file, ours, tolerance, exactly=True):
    prompt = torch.randint(V, (1, 30))
    continued, logprobs = LlamaCpp(file, n_ctx=64).greedy(prompt[0].tolist(), 20, V)
    if exactly:
        assert continued == ours.generate(prompt, 20, temperature=0)[0, 30:].tolist()
    with torch.no_grad():
        logits = ours(torch.cat([prompt, torch.tensor([continued])], 1))[0][0, 29:-1]
    expected = logits.log_softmax(-1)
    assert (logprobs - expected).abs().max() <= tolerance * expected.abs().max()


OTHER = {
    "window is 4, and in llama.cpp a token sees all before it": LLAMA | dict(window=4),
    "activation is 'gelu', and in llama.cpp it is 'gelu_tanh'": GPT2 | dict(activation="gelu"),
    "bias is 'attention', and in llama.cpp it is False": LLAMA | dict(qk_norm=True, bias="attention"),
    "rope_scaling is of the kind 'llama3'": LLAMA | dict(qk_norm=True, rope_scaling=YARN | dict(kind="llama3")),
    "rope_scaling has truncate False": LLAMA | dict(rope_scaling=YARN | dict(truncate=False)),
    "positions is 'alibi'": GPT2 | dict(positions="alibi"),
}


@pytest.mark.parametrize("says", OTHER)
def test_what_llama_cpp_has_not_is_named(says, tmp_path):
    with pytest.raises(ValueError, match=says):
        exported(tmp_path, random_gpt(GPTConfig(**OTHER[says])))
    assert not list(tmp_path.iterdir())


def test_presets_have_an_architecture():
    architectures = {name: architecture_of(GPTConfig.preset(name)) for name in PRESETS}
    assert architectures == {name: "qwen3" if name.startswith("modern") else "gpt2" for name in PRESETS}


TEXT = "a b\n\n\té漢😀\r\n\\x41 c\u2028d"


@needs_llama_cpp
@pytest.mark.parametrize("tokenizer", [CharTokenizer("".join(sorted(set(TEXT)))), ByteTokenizer()])
def test_character_and_byte_tokenizers(tokenizer, tmp_path):
    config = GPTConfig(**EXPORTED["qwen3"] | dict(vocab_size=tokenizer.vocab_size + 2))  # and two rows for nothing
    file, _ = exported(tmp_path, random_gpt(config), tokenizer)
    theirs = LlamaCpp(file, n_ctx=64)
    assert theirs.encode(TEXT, add_special=True) == tokenizer.encode(TEXT)
    assert theirs.decode(tokenizer.encode(TEXT)) == TEXT
    if isinstance(tokenizer, CharTokenizer):
        with pytest.raises(ValueError, match="invalid tokens"):
            theirs.greedy("an unknown one", 1, tokenizer.vocab_size)


def small_gpt(tokenizer, extra=0):
    return GPT(GPTConfig(**EXPORTED["qwen3"] | dict(vocab_size=tokenizer.vocab_size + extra, n_layer=1)), seed=0)


def with_all_merges(tokenizer):
    """SentencePiece joins any two tokens whose text together is one: the files of Llama have a merge for each way."""
    spec = tokenizer.spec
    ids = {token: id for id, token in enumerate(spec.tokens) if token is not None}
    merges: dict[tuple[int, int], None] = {}
    for left, right in spec.merges:
        text = (spec.tokens[left] + spec.tokens[right]).decode()
        ways = [(text[:cut].encode(), text[cut:].encode()) for cut in range(1, len(text))]
        merges.update(dict.fromkeys(sorted((ids[a], ids[b]) for a, b in ways if a in ids and b in ids)))
    return BPETokenizer(replace(spec, merges=tuple(merges)))


@pytest.fixture(scope="module", params=["gpt2", "smollm", "llama3", "smaug", "qwen2", "llama2", "replace", "never"])
def pair(request, tmp_path_factory):
    """A byte-pair tokenizer, and llama.cpp with it."""
    if LlamaCpp is None:
        pytest.skip("llama.cpp is the oracle: pip install xllamacpp")
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "smaug":
        ours = BPETokenizer.train(tokenizer_cases.corpus(), 900, "llama3", ["<|endoftext|>"])
    else:
        ours = tokenizer_of(request.param, directory)
    file, source = exported(directory, small_gpt(ours, extra=3), ours)
    assert bool(source.notes) == ours.spec.nfc
    return ours, LlamaCpp(file, n_ctx=64)


@settings(max_examples=100)
@given(data=st.data())
def test_ids_and_text(pair, data):
    ours, theirs = pair
    text = data.draw(tokenizer_cases.TEXTS.filter(lambda text: "\0" not in text))
    text = unicodedata.normalize("NFC", text) if ours.spec.nfc else text
    assert theirs.encode(text) == ours.encode(text)
    assert theirs.encode(text, add_special=True) == ours.encode_prompt(text)
    assert theirs.encode(text, parse_special=False) == ours.encode(text, special=False)


def test_a_corpus(pair):
    ours, theirs = pair
    text = unicodedata.normalize("NFC", tokenizer_cases.corpus()[:20_000])
    ids = theirs.encode(text)
    assert ids == ours.encode(text)
    assert theirs.decode(ids).lstrip(" ") == text.lstrip(" ")


def tokenizer_of(name, directory):
    tokenizer_cases.family(name).save(str(directory / "tokenizer.json"))
    tokenizer = load_tokenizer(directory)
    return with_all_merges(tokenizer) if tokenizer.spec.alphabet != "bytes" else tokenizer


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("llama2", "llama.cpp would join '.*' and '.*' into a token"),
        ("gpt2_with_prefix_space", "add_prefix_space True"),
    ],
)
def test_tokenizers_that_llama_cpp_has_not(name, says, tmp_path):
    tokenizer_cases.family(name).save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=says):
        exported(tmp_path, small_gpt(tokenizer), tokenizer)
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("qwen2", "does not compose characters"),
        ("mistral", "a space in front of a text also behind special tokens"),
        ("always", "a space in front of a text also where one is already"),
        ("llama2_normalized", "finds special tokens inside a word too"),
    ],
)
def test_differences_are_told(name, says, tmp_path):
    tokenizer = tokenizer_of(name, tmp_path)
    _, source = exported(tmp_path, small_gpt(tokenizer), tokenizer)
    assert len(source.notes) == 1 and says in source.notes[0]


def test_without_a_tokenizer(tmp_path):
    with pytest.raises(ValueError, match="has no tokenizer, and a GGUF file is to hold one"):
        exported(tmp_path, small_gpt(CHARS), None)


def test_chat_templates_are_in_the_file(tmp_path):
    chat = ChatTemplate({"default": CHATML, "tool_use": LLAMA3})
    file, _ = exported(tmp_path, small_gpt(CHARS), chat=chat)
    fields = gguf.GGUFReader(file).fields
    assert fields["tokenizer.chat_template"].contents() == CHATML
    assert fields["tokenizer.chat_template.tool_use"].contents() == LLAMA3
    assert fields["tokenizer.chat_templates"].contents() == ["tool_use"]


@needs_llama_cpp
@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_llama_cpp_ends_where_the_files_say(name, tmp_path):
    tokenizer = BPETokenizer.train("ab", 258, "gpt2", ["<|endoftext|>", "<end>"])
    model = random_gpt(GPTConfig(**EXPORTED["qwen3"] | dict(vocab_size=258)))
    prompt = torch.randint(32, 127, (1, 9))
    ids = model.generate(prompt, 30, temperature=0)[0, 9:].tolist()
    chosen = list(dict.fromkeys(ids))
    assert tokenizer.eos_id not in ids and len(chosen) > 9
    (tmp_path / name).write_text(json.dumps({"eos_token_id": [chosen[9], chosen[6]]}))
    file, _ = exported(tmp_path, model, tokenizer)
    reply = LlamaCpp(file, n_ctx=64).ask("completion", prompt=prompt[0].tolist(), n_predict=30, temperature=0)
    assert reply["stop_type"] == "eos" and reply["tokens_predicted"] == ids.index(chosen[6]) + 1
    (tmp_path / name).write_text(json.dumps({"eos_token_id": [1, 50256, 2, 3]}))
    _, source = exported(tmp_path, model, tokenizer)
    assert source.notes == ["llama.cpp stops at tokens [256, 1, 2], and this model also at [3]"]


@needs_llama_cpp
def test_llama_cpp_uses_the_chat_template(tmp_path):
    tokenizer = BPETokenizer.train("ab", 259, "qwen2", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    chat = ChatTemplate(CHATML)
    file, _ = exported(tmp_path, small_gpt(tokenizer), tokenizer, chat)
    talk = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "  Who? é\n"}]
    assert LlamaCpp(file, n_ctx=64).chat(talk) == chat.render(talk, add_generation_prompt=True)


def test_the_command(tmp_path):
    model = random_gpt(GPTConfig(**EXPORTED["qwen3"]))
    run = tmp_path / "run"
    run.mkdir()
    save_file(model.state_dict(), run / "model.safetensors")
    (run / "config.json").write_text(
        json.dumps({"format": "minigpt-run", "version": 1, "model": model.config.to_dict()})
    )
    CHARS.save(run / "tokenizer.json")
    out = tmp_path / "out.gguf"

    def invoke(*arguments):
        result = CliRunner().invoke(app, [str(run), *map(str, arguments), "--format", "gguf"])
        if isinstance(result.exception, UserError):
            raise result.exception
        return result.output

    assert f"llama-cli -m {out}" in invoke(out, "--dtype", "f16")
    reader = gguf.GGUFReader(out)
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["token_embd.weight"] == "F16" and types["output_norm.weight"] == "F32"
    assert reader.fields["general.name"].contents() == "run"
    before = out.read_bytes()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UserError, match="fifo is no ordinary file"):
        invoke(tmp_path / "fifo", "--force")
    with pytest.raises(UserError, match="out.gguf is there already; --force writes over it"):
        invoke(out)
    assert out.read_bytes() == before
    invoke(out, "--force")
    assert len(out.read_bytes()) > len(before)
    with pytest.raises(UserError, match="is a directory, and a GGUF is a file"):
        invoke(run)
    with pytest.raises(UserError, match="OUT is MODEL itself or lies in it"):
        invoke(run / "model.safetensors", "--force")
    invoke(tmp_path / "new" / "x.gguf")
    assert (tmp_path / "new" / "x.gguf").is_file()
