"""`minigpt tokenizer` as a person types it."""

import json
import re

import pytest
import tokenizers
from tokenizer_cases import corpus

from minigpt_ext.cli import main
from minigpt_ext.tokenizer import BPETokenizer, CharTokenizer, load_tokenizer

SPECIAL = "<|endoftext|>"


@pytest.fixture
def command(monkeypatch, capsysbinary, tmp_path):
    """Runs `minigpt tokenizer ARGS` in a folder of its own; (exit code, stdout, stderr) as text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*args, stdin=None):
        import io
        import sys

        monkeypatch.setattr("sys.argv", ["minigpt", "tokenizer", *map(str, args)])
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsysbinary.readouterr()
        return ended.value.code or 0, captured.out.decode(), captured.err.decode()

    return run


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(corpus()[:20_000], encoding="utf-8")
    return path


@pytest.fixture
def learned(tmp_path):
    BPETokenizer.train(corpus()[:20_000], 400, special_tokens=[SPECIAL]).save_directory(tmp_path / "bpe")
    return tmp_path / "bpe"


def test_train(command, text, tmp_path):
    code, out, err = command(
        "train", "--data", text, "--vocab-size", 400, "--pattern", "llama3", "--special", SPECIAL, "--out", "new"
    )
    assert (code, err) == (0, "")
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert names == ["merges.txt", "tokenizer.json", "tokenizer_config.json", "vocab.json"]
    for wanted in ("learned from", "400: 256 bytes, 143 learned, 1 special (<|endoftext|>)", "bytes a token", *names):
        assert wanted in out
    assert "minigpt tokenizer compare --data" in out and "minigpt train --data" in out
    tokenizer = load_tokenizer(tmp_path / "new")
    assert tokenizer.sha256 == BPETokenizer.train(text.read_text(), 400, "llama3", [SPECIAL]).sha256
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "new" / "tokenizer.json"))
    assert theirs.encode(corpus()).ids == tokenizer.encode(corpus())


def test_less_to_learn_than_asked_for(command, tmp_path):
    (tmp_path / "tiny.txt").write_text("aaaa")
    code, out, _ = command("train", "--data", "tiny.txt", "--out", "new")
    assert code == 0 and "nothing left to merge after 258 tokens" in out


def test_encode_and_decode(command, learned):
    said = "Hello, wörld 😀<|endoftext|>\n"
    code, out, _ = command("encode", "--tokenizer", learned, said)
    assert code == 0 and [int(word) for word in out.split()] == load_tokenizer(learned).encode(said)
    assert command("decode", "--tokenizer", learned, stdin=out.encode()) == (0, said, "")
    assert command("decode", "--tokenizer", learned, *out.split()) == (0, said, "")
    assert command("decode", "--tokenizer", learned, out.strip().replace(" ", ",")) == (0, said, "")
    code, plain, _ = command("encode", "--tokenizer", learned, "--no-special", stdin=said.encode())
    assert str(load_tokenizer(learned).eos_id) in out.split() and len(plain.split()) > len(out.split())
    assert command("decode", "--tokenizer", "byte", "226", "130") == (0, "\ufffd", "")


def test_pieces(command, learned):
    code, out, _ = command("encode", "--tokenizer", learned, "--pieces", "é the")
    assert code == 0
    lines = [line.split(maxsplit=1) for line in out.splitlines()]
    assert [int(id) for id, _ in lines] == load_tokenizer(learned).encode("é the")
    pieces = [piece for _, piece in lines]
    assert pieces[-1] == "' the'" and pieces[0] in (r"b'\xc3'", "'é'")


def test_encode_a_file_with_a_tokenizer_of_characters(command, tmp_path):
    (tmp_path / "abc.txt").write_text("abca")
    CharTokenizer("cab").save(tmp_path / "tokenizer.json")
    assert command("encode", "--tokenizer", ".", "--file", "abc.txt") == (0, "1 2 0 1\n", "")
    assert command("encode", "--tokenizer", "byte", "") == (0, "\n", "")


def test_compare(command, text, learned):
    code, out, err = command("compare", "--data", text, "--tokenizer", learned, "--vocab-size", 300, "--model", "small")
    assert (code, err) == (0, "")
    assert "20,000 characters" in out and "For small (4 layers, width 256, context 256)" in out
    cells = {line[:24].strip(): line[24:].split() for line in out.splitlines() if line[:1].isalnum()}
    n_bytes = len(text.read_bytes())
    tokens = len(load_tokenizer(learned).encode(text.read_text(), special=False))
    row = next(values for name, values in cells.items() if name.startswith("tokens") and "character" not in name)
    assert [int(value.replace(",", "")) for value in row[:3]] == [20_000, n_bytes, tokens]
    assert re.search(r"the text +characters +bytes +bpe +learned here", out) and re.search(r"1 byte +█+", out)
    assert re.search(r"other products( +[\d.]+ GFLOP){4}", out)
    # a key and a value, 4 layers, 4 heads of 64, 2 bytes a number
    cache = [f"{2 * 4 * 4 * 64 * 2 * n / 2**20:.1f} MiB" for n in (20_000, n_bytes, tokens)]
    assert re.search("key/value cache, bfloat16 +" + " +".join(map(re.escape, cache)), out)


def test_compare_reads_configs_of_hugging_face(command, tmp_path):
    sizes = dict(vocab_size=9, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=32)
    config = dict(model_type="llama", max_position_embeddings=77, num_key_value_heads=2) | sizes
    (tmp_path / "config.json").write_text(json.dumps(config))
    code, out, _ = command("compare", "low lower lowest", "--model", tmp_path, "--dtype", "float32")
    assert code == 0 and "(3 layers, width 24, context 77)" in out
    # a key and a value, 3 layers, 2 heads of 6, 4 bytes a number, 16 characters
    assert re.search(rf"key/value cache, float32 +{2 * 3 * 2 * 6 * 4 * 16 / 1024:.1f} KiB", out)


def test_compare_with_a_run_directory_and_standard_input(command, tmp_path):
    model = {"vocab_size": 65, "block_size": 32, "n_layer": 1, "n_head": 2, "n_embd": 8}
    (tmp_path / "config.json").write_text(json.dumps({"format": "minigpt-run", "version": 1, "model": model}))
    code, out, _ = command("compare", "--model", tmp_path, stdin=b"low lower lowest")
    assert code == 0 and "1 layers, width 8, context 32" in out and "16 characters" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--out", "bpe"], "--out: bpe holds tokenizer.json, tokenizer_config.json, vocab.json, merges.txt"),
        (["train", "--out", "file"], "--out: file is a file, not a folder"),
        (["train", "--out", "new", "--data", "file", "--vocab-size", "255"], "vocab_size: expected an integer of 256"),
        (["train", "--out", "new", "--data", "nothing"], "data: 'nothing' is not a file, a folder, or one of"),
        (["train", "--out", "new", "--data", "file", "--special", ""], "one has no content"),
        (["encode", "--tokenizer", "nothing", "x"], "tokenizer: nothing: no tokenizer.json there"),
        (["encode", "--tokenizer", "file", "x"], "file: not valid JSON"),
        (["encode", "--tokenizer", "bpe", "--file", "file", "x"], "--file and a text are both given"),
        (["encode", "--tokenizer", "bpe", "--file", "nothing"], "'nothing' is not a file"),
        (["encode", "--tokenizer", "bpe", "a\udcff"], "text[1] is U+DCFF, a lone surrogate"),
        (["decode", "--tokenizer", "bpe", "1", "400"], "ids: got 400, allowed are 0 to 399"),
        (["decode", "--tokenizer", "bpe", "x"], "ids: expected integers, got 'x'"),
        (
            ["compare", "x", "--model", "nothing"],
            "--model: there is no directory nothing, and 'nothing' is no id of the hub",
        ),
        (["compare", "x", "--model", "wrong"], 'config.json: "model_type" is None; supported are gpt2, llama'),
        (["compare", "x", "--data", "file"], "--data and a text are both given"),
        (["compare", ""], "the text is empty"),
        (["compare", "x", "--vocab-size", "3"], "vocab_size: expected an integer of 256 at least"),
    ],
)
def test_errors_are_one_line(command, learned, tmp_path, arguments, message):
    (tmp_path / "file").write_text("a text")
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "config.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    code, out, err = command(*arguments)
    assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1
    assert message in err
    assert sorted(tmp_path.rglob("*")) == before


def test_standard_input_that_is_no_text(command, learned):
    code, _, err = command("encode", "--tokenizer", learned, stdin=b"ab\xff")
    assert code == 2 and "standard input is not UTF-8: invalid start byte at byte offset 2" in err


@pytest.mark.parametrize("name", ["train", "encode", "decode", "compare"])
def test_help(command, name):
    code, out, _ = command(name, "--help")
    assert code == 0 and len(out.splitlines()) > 10
    if name == "compare":
        assert "T (T + 1) / 2" in out and "2 L H_kv D T" in out
