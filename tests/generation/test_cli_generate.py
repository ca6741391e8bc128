"""`minigpt generate`: the text and nothing else on stdout, timings on stderr, clear refusals."""

import importlib
import json
import signal
import subprocess
import sys

import pytest
import torch
import typer
from safetensors.torch import save_file
from typer.testing import CliRunner

from minigpt_ext.backend import backend
from minigpt_ext.cli.errors import UserError
from minigpt_ext.decoder import CACHE_DTYPES, Decoder, perplexity
from minigpt_ext.model import GPT, GPTConfig
from minigpt_ext.tokenizer import CharTokenizer, load_tokenizer

# the module: in the package the name `generate` may stand for the function
command = importlib.import_module("minigpt_ext.cli.generate")
app = typer.Typer()
app.command()(command.generate)


def write_run(directory, characters="\n abcdefgé"):
    config = GPTConfig(vocab_size=len(characters), block_size=16, n_layer=1, n_head=2, n_embd=16)
    model = GPT(config, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    save_file(model.state_dict(), directory / "model.safetensors")
    run = {"format": "minigpt-run", "version": 1, "model": config.to_dict()}
    (directory / "config.json").write_text(json.dumps(run))
    CharTokenizer(characters).save(directory / "tokenizer.json")
    return directory


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path)


def invoke(run, *arguments):
    return CliRunner().invoke(app, ["--model", str(run), "--device", "cpu", *arguments])


def expected_text(run, prompt, n, **options):
    """What model.generate says, as text; prompt and continuation."""
    tokenizer = load_tokenizer(run)
    ids = GPT.from_pretrained(run).generate(torch.tensor([tokenizer.encode(prompt)]), n, **options)
    return tokenizer.decode(ids[0])


def test_stdout_is_the_text_and_stderr_the_timings(run):
    result = invoke(run, "--prompt", "a bé", "--max-new-tokens", "40", "--seed", "3")
    assert result.exit_code == 0
    assert result.stdout == expected_text(run, "a bé", 40, temperature=0.8, seed=3) + "\n"
    speed, memory = result.stderr.splitlines()
    assert speed.startswith("4 prompt tokens, 40 new; first token after ") and speed.endswith(" tokens/s")
    assert memory == "weights 0.0 MiB, buffers 0.3 MiB, cache 0.0 MiB in fp32, fp32 on cpu; seed 3"


def test_seeds(run):
    texts = [invoke(run, "--prompt", "a", "--max-new-tokens", "60", "--seed", seed).stdout for seed in "112"]
    assert texts[0] == texts[1] != texts[2]


def test_without_a_seed_runs_differ_and_the_seed_is_told(run):
    first, second = (invoke(run, "--prompt", "a", "--max-new-tokens", "60") for _ in range(2))
    assert first.stdout != second.stdout
    seed = first.stderr.split("seed ")[1].strip()
    assert invoke(run, "--prompt", "a", "--max-new-tokens", "60", "--seed", seed).stdout == first.stdout


def test_greedy_temperature_and_top_k(run):
    greedy = expected_text(run, "abc", 30, temperature=0) + "\n"
    for arguments in (["--greedy"], ["--temperature", "0"], ["--top-k", "1"]):
        assert invoke(run, "--prompt", "abc", "--max-new-tokens", "30", *arguments).stdout == greedy
    warm = invoke(run, "--prompt", "abc", "--temperature", "2", "--top-k", "4", "--seed", "1", "--max-new-tokens", "30")
    assert warm.stdout == expected_text(run, "abc", 30, temperature=2.0, top_k=4, seed=1) + "\n"


def test_without_a_prompt_it_starts_as_after_a_newline(run):
    expected = expected_text(run, "\n", 30, temperature=0)[1:] + "\n"
    assert invoke(run, "--max-new-tokens", "30", "--greedy").stdout == expected
    assert invoke(run, "--prompt", "", "--max-new-tokens", "30", "--greedy").stdout == expected


def test_without_a_newline_it_starts_as_after_id_0(tmp_path):
    run = write_run(tmp_path, "xyz")
    expected = expected_text(run, "x", 30, temperature=0)[1:] + "\n"
    assert invoke(run, "--max-new-tokens", "30", "--greedy").stdout == expected


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8", "int4"])
def test_weights_and_what_they_cost_on_a_text(run, tmp_path, weights):
    file = tmp_path / "text"
    file.write_text("a bad cab é fed a bag\n" * 9)
    arguments = ("--prompt", "a bé", "--max-new-tokens", "20", "--greedy", "--weights", weights)
    result = invoke(run, *arguments, "--perplexity", str(file))
    assert result.exit_code == 0
    model, tokenizer = GPT.from_pretrained(run), load_tokenizer(run)
    ids = torch.tensor([tokenizer.encode("a bé")])
    assert result.stdout == tokenizer.decode(model.generate(ids, 20, temperature=0, weights=weights)[0]) + "\n"
    text = torch.tensor(tokenizer.encode(file.read_text()))
    own, exact = (perplexity(Decoder(model, each), text) for each in (weights, "fp32"))
    cost = "" if weights == "fp32" else f"; {exact:.3f} with fp32, {own / exact - 1:+.2%}".replace("-0.00%", "+0.00%")
    told, _, memory = result.stderr.splitlines()
    assert told == f"perplexity {own:.3f} on {len(text) - 1} tokens of {file}, {weights}{cost}"
    assert memory.endswith(f"MiB in {'fp32' if weights == 'fp32' else 'bf16'}, {weights} on cpu")
    assert len(invoke(run, *arguments).stderr.splitlines()) == 2


@pytest.mark.parametrize("cache", CACHE_DTYPES)
def test_the_cache_and_what_it_costs_on_a_text(tmp_path, cache):
    run = write_run(tmp_path, "abcdefg\n")
    file = tmp_path / "text"
    file.write_text("a bad cab fed a bag\n".replace(" ", "") * 9)
    arguments = ("--prompt", "ab", "--max-new-tokens", "3", "--greedy", "--cache", cache)
    result = invoke(run, *arguments, "--perplexity", str(file))
    assert result.exit_code == 0
    decoder, tokenizer = Decoder(GPT.from_pretrained(run)), load_tokenizer(run)
    ids = torch.tensor([tokenizer.encode("ab")])
    new = decoder.generate(ids, 3, temperature=0, cache=decoder.new_cache(1, dtype=CACHE_DTYPES[cache]))
    assert result.stdout == tokenizer.decode(new[0]) + "\n"
    text = torch.tensor(tokenizer.encode(file.read_text()))
    own, exact = (perplexity(decoder, text, cache_dtype=CACHE_DTYPES[each]) for each in (cache, "fp32"))
    cost = "" if cache == "fp32" else f"; {exact:.3f} with fp32, {own / exact - 1:+.2%}".replace("-0.00%", "+0.00%")
    told, _, memory = result.stderr.splitlines()
    assert told == f"perplexity {own:.3f} on {len(text) - 1} tokens of {file}, fp32 and a cache in {cache}{cost}"
    assert memory.endswith(f"MiB in {cache}, fp32 on cpu")


def test_one_token(run):
    result = invoke(run, "--prompt", "a", "--max-new-tokens", "1", "--seed", "1")
    assert len(result.stdout) == 3 and "tokens/s" not in result.stderr


def test_text_appears_as_it_is_made(run, monkeypatch):
    class Recorder:
        seen = []

        def write(self, text):
            self.seen.append(text)

        def flush(self):
            self.seen.append("<flush>")

    monkeypatch.setattr(sys, "stdout", Recorder())
    command.generate(run, prompt="ab", max_new_tokens=5, seed=1, device=command.DeviceName.cpu)
    assert Recorder.seen[0] == "ab" and Recorder.seen[1::2] == ["<flush>"] * 7
    assert [len(text) for text in Recorder.seen[2::2]] == [1] * 6


def test_a_terminal_that_lacks_a_letter(run):
    arguments = ["--model", str(run), "--prompt", "aéb", "--max-new-tokens", "3", "--seed", "1"]
    result = CliRunner(charset="ascii").invoke(app, arguments)
    assert result.exit_code == 0 and result.stdout.startswith("a?b")


def test_ctrl_c_ends_the_line_and_tells_the_timings(run, monkeypatch):
    def interrupted(*_, **__):
        yield from [torch.tensor([2])] * 3
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "stream", interrupted)
    result = invoke(run, "--prompt", "b")
    assert (result.exit_code, result.stdout) == (130, "baaa\n")
    assert result.stderr.startswith("1 prompt tokens, 3 new; first token after ")


def test_help_states_the_policy():
    text = " ".join(CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "TERM": "dumb"}).stdout.split())
    assert "its last block_size // 2 tokens are read anew" in text
    assert "it starts as after a newline" in text


def broken(run, file, text):
    (run / file).write_text(text)
    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--greedy", "--temperature", "0.5"], "--greedy .* --temperature .* not both"),
        (["--greedy", "--top-k", "5"], "--greedy .* --top-k .* not both"),
        (["--prompt", "abzc"], r"--prompt: character 'z' \(U\+007A\) at position 2"),
        (["--temperature", "inf"], "temperature must be a finite number"),
        (["--seed", str(2**64)], "seed must be an integer"),
    ],
)
def test_wrong_arguments(run, arguments, message):
    result = invoke(run, *arguments)
    assert isinstance(result.exception, UserError) and result.stdout == ""
    with pytest.raises(UserError, match=message):
        raise result.exception


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda run: run / "nowhere", "there is no directory .*nowhere"),
        (lambda run: broken(run, "config.json", "{}"), 'config.json: "model_type" is None; supported are gpt2, llama'),
        (lambda run: broken(run, "model.safetensors", ""), "model.safetensors: a file of 0 bytes"),
        (lambda run: broken(run, "tokenizer.json", "{}"), "tokenizer"),
        (
            lambda run: broken(
                run, "tokenizer.json", '{"format": "minigpt-char", "version": 1, "characters": "abcdefghijk"}'
            ),
            "the tokenizer has 11 tokens and the model 10",
        ),
    ],
)
def test_wrong_runs(run, make, message):
    result = invoke(make(run))
    assert isinstance(result.exception, UserError) and result.stdout == ""
    with pytest.raises(UserError, match=message):
        raise result.exception


@pytest.mark.parametrize(
    "arguments",
    [["--top-k", "0"], ["--max-new-tokens", "0"], ["--temperature", "-1"], ["--device", "tpu"], ["--cache", "int3"]],
)
def test_options_out_of_range_are_wrong_usage(run, arguments):
    result = invoke(run, *arguments)
    assert result.exit_code == 2 and arguments[0] in result.stderr and result.stdout == ""


def raise_from(run, *arguments):
    raise invoke(run, *arguments).exception


def test_what_the_decode_engine_cannot_do_is_said(run, tmp_path):
    file = tmp_path / "text"
    file.write_text("a")
    (tmp_path / "latin").write_bytes(b"a\xe9")
    for arguments, message in [
        (("--perplexity", str(file)), "two tokens are the least, and it has 1"),
        (("--perplexity", str(tmp_path / "nothing")), "--perplexity: .*nothing: No such file"),
        (("--perplexity", str(tmp_path / "latin")), "latin is not UTF-8"),
    ]:
        with pytest.raises(UserError, match=message):
            raise_from(run, *arguments)
    with backend("torch"), pytest.raises(UserError, match="another backend than the kernels"):
        raise_from(run, "--weights", "int8")
    with backend("torch"), pytest.raises(UserError, match="--perplexity is for the decode engine"):
        raise_from(run, "--perplexity", str(file))
    with backend("torch"), pytest.raises(UserError, match="--cache is for the decode engine"):
        raise_from(run, "--cache", "bf16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device that is asked for")
def test_a_device_that_is_not_there(run):
    result = invoke(run, "--device", "cuda")
    assert isinstance(result.exception, UserError) and "cuda is not available here" in str(result.exception)


def start(run, *arguments):
    program = [sys.executable, "-c", "from minigpt_ext.cli import main; main()", "generate", "--model", str(run)]
    # A test run in the background ignores Ctrl-C, and its children would too.
    return subprocess.Popen(
        [*program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_a_reader_that_has_seen_enough(run):
    process = start(run, "--prompt", "ab", "--max-new-tokens", "100000000")
    assert process.stdout.read(20).startswith(b"ab")
    process.stdout.close()
    assert (process.wait(60), process.stderr.read()) == (0, b"")


def test_a_real_ctrl_c(run):
    process = start(run, "--prompt", "ab", "--max-new-tokens", "100000000")
    process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and stdout.endswith(b"\n")
    assert stderr.startswith(b"2 prompt tokens, ") and b"Traceback" not in stderr


def test_an_error_is_one_line(run):
    process = start(run, "--prompt", "Z")
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (2, b"")
    assert stderr.startswith(b"error: ") and stderr.count(b"\n") == 1
