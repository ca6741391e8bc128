"""Every benchmark runs (small shapes), tells what it should, and finds out a wrong result."""

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from minigpt_ext.cli import app, main
from minigpt_ext.cli.bench import BENCHMARKS, FOLDER

CARD = {"cpu", "cores", "threads", "device", "dtype", "torch", "commit"}


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("report")


@pytest.fixture
def threads():
    """Gives torch's number of threads back."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def run_main(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["minigpt", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, capsys.readouterr().err


def quick_run(name: str, folder: Path) -> tuple[str, dict]:
    """What `minigpt bench NAME --quick` prints, and its JSON."""
    file = folder / "results.json"
    result = CliRunner().invoke(app, ["bench", name, "--quick", "--threads", "1", "--json", str(file)])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout.splitlines()[-1])
    assert told == json.loads(file.read_text())
    assert list(folder.iterdir()) == [file]
    return result.stdout, told


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name not in ("decoding", "tokenizer", "sweep")])
def test_benchmark_runs(name: str, tmp_path: Path, threads: int) -> None:
    printed, told = quick_run(name, tmp_path)
    assert CARD <= told["card"].keys() and told["card"]["threads"] == 1
    assert all(told["ceilings"][name] > 0 for name in ("read", "copy", "gemm"))
    assert told["rows"] and all(row["benchmark"] == name for row in told["rows"])
    for row in told["rows"]:
        assert row["shape"] in printed
        assert {"ours", "torch"} <= row["times"].keys() and row["times"].keys() - {"ours"} == row["ratios"].keys()
        assert all(0 < t["p20_us"] <= t["median_us"] <= t["p80_us"] for t in row["times"].values())
        assert 0 <= row["errors"]["ours"] < (0.02 if "int8" in row["shape"] else 1e-4)
        assert row["rate"] > 0 and row["share"] > 0


def test_decoding_benchmark_runs(tmp_path: Path, threads: int) -> None:
    """Beside the engines that are installed; in fp32 it is an error if one of them chooses other tokens."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    printed, told = quick_run("decoding", tmp_path)
    absent = {
        name
        for name, module in (("llama.cpp", "llama_cpp"), ("ctranslate2", "ctranslate2"))
        if importlib.util.find_spec(module) is None
    }
    rivals = {
        "fp32": {"transformers", "ctranslate2", "llama.cpp"},
        "bf16": {"transformers", "llama.cpp"},
        "int8": {"ctranslate2", "llama.cpp"},
        "int4": {"llama.cpp"},
    }
    assert all(f"{name} is not installed and left out" in printed for name in absent)
    rows = iter(told["rows"])
    for weights, expected in rivals.items():
        for part in ("decode", "decode", "prefill"):
            row = next(rows)
            assert f" {weights} {part} " in row["shape"] and row["shape"] in printed
            assert row["times"].keys() == {"ours"} | expected - absent and row["work_unit"] == "tokens/s"
            assert row["rate"] > 0
    assert printed.count("memory of ours: ") == len(rivals)


def test_tokenizer_benchmark_runs(tmp_path: Path, threads: int) -> None:
    pytest.importorskip("tiktoken", reason="tiktoken is not installed")
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    printed, told = quick_run("tokenizer", tmp_path)
    training, *encoding = told["rows"]
    assert training["times"].keys() == {"ours", "tokenizers"}
    assert len(encoding) == 5 and all(row["times"].keys() == {"ours", "tiktoken", "tokenizers"} for row in encoding)
    assert all(row["shape"] in printed and row["rate"] > 0 and row["work_unit"] == "MB/s" for row in told["rows"])


def test_tokenizer_benchmark_without_its_peers(tmp_path: Path, threads: int, monkeypatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name in ("tiktoken", "tokenizers") else found(name, *rest),
    )
    printed, told = quick_run("tokenizer", tmp_path)
    assert "tiktoken is not installed: left out; tokenizers is not installed: left out" in printed
    assert all(row["times"].keys() == {"ours"} for row in told["rows"])


def test_sweep_runs_and_draws(tmp_path: Path, threads: int) -> None:
    file, picture = tmp_path / "results.json", tmp_path / "sweep.png"
    command = ["bench", "sweep", "--quick", "--threads", "2", "--json", str(file), "--plot", str(picture)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert torch.get_num_threads() == 2
    rows = json.loads(file.read_text())["rows"]
    shapes = {row["shape"] for row in rows}
    assert len(rows) == len(shapes) == 48  # 1 and 2 threads, 2 directions, 3 T, 2 D, 2 B x H
    assert {"1t BxH1 T1 D16 fwd", "2t BxH16 T128 D64 fwd+bwd"} <= shapes
    assert all(row["ratios"]["torch"] > 0 and row["errors"]["ours"] < 1e-4 for row in rows)
    assert "1 thread, fwd: 12 shapes" in result.stdout and "48 shapes" in result.stdout
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["gelu", "--plot", "x.png"], "--plot draws the sweep: minigpt bench sweep --plot FILE.png"),
        (["sweep", "--plot", "x.pdf"], "--plot x.pdf: a .png in a folder that exists is needed"),
        (["sweep", "--plot", "nowhere/x.png"], "--plot nowhere/x.png: a .png in a folder that exists is needed"),
    ],
)
def test_a_picture_that_cannot_be_drawn(arguments, message, monkeypatch, capsys) -> None:
    assert run_main(monkeypatch, capsys, "bench", *arguments) == (2, f"error: {message}\n")


def test_every_benchmark_file_is_known() -> None:
    assert {file.stem for file in FOLDER.glob("bench_*.py")} == {f"bench_{name}" for name in BENCHMARKS}


def test_a_benchmark_runs_by_itself() -> None:
    command = [sys.executable, str(FOLDER / "bench_gelu.py"), "--help"]
    environment = {"PYTHONPATH": str(FOLDER.parent), "PATH": "/usr/bin:/bin", "COLUMNS": "200"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0 and "--quick" in result.stdout, result.stderr


def test_unknown_op_lists_what_there_is(monkeypatch, capsys) -> None:
    code, said = run_main(monkeypatch, capsys, "bench", "gelu", "softmax")
    assert code == 2
    assert said == f"error: there is no benchmark softmax; there are {', '.join(BENCHMARKS)}\n"


def test_outside_a_checkout_says_what_to_do(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setattr(sys.modules["minigpt_ext.cli.bench"], "FOLDER", tmp_path)
    code, said = run_main(monkeypatch, capsys, "bench")
    assert code == 2 and "run from a checkout" in said and "pip install -e ." in said


def test_json_into_a_missing_folder(monkeypatch, capsys, tmp_path: Path) -> None:
    code, said = run_main(monkeypatch, capsys, "bench", "gelu", "--json", str(tmp_path / "no" / "x.json"))
    assert code == 2 and f"there is no folder {tmp_path / 'no'}" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(monkeypatch, capsys) -> None:
    code, said = run_main(monkeypatch, capsys, "bench", "gelu", "--device", "cuda")
    assert code == 2 and "--device cuda" in said


def test_a_wrong_result_stops_the_command(report, monkeypatch, tmp_path: Path) -> None:
    from minigpt_ext import ops

    monkeypatch.setattr(ops, "gelu", lambda x, approximate: torch.nn.functional.gelu(x) * 1.001)
    result = CliRunner().invoke(app, ["bench", "gelu", "--quick", "--json", str(tmp_path / "x.json")])
    assert result.exit_code == 1
    assert "error: gelu erf 512x1536 forward: result 0 is wrong" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrong",
    [torch.tensor([1.0, 2.1]), torch.tensor([1.0, float("nan")]), torch.tensor([[1.0, 2.0]]), torch.tensor(2.0)],
)
def test_worst_errors_finds_wrong_results(report, wrong: torch.Tensor) -> None:
    truth = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert report.worst_errors("x", {"ours": [truth.float()], "torch": [truth.float()]}, [truth]) == {
        "ours": 0,
        "torch": 0,
    }
    with pytest.raises(report.WrongResult, match="x: result 0 is wrong"):
        report.worst_errors("x", {"ours": [wrong], "torch": [truth.float()]}, [truth])


def test_with_gradients_is_forward_and_backward(report) -> None:
    x, w = torch.randn(3, requires_grad=True), torch.randn(3)
    y, dx = report.with_gradients(lambda x, w: x.square() * w)(x, w, torch.full((3,), 2.0))
    torch.testing.assert_close(y, x.square() * w)
    torch.testing.assert_close(dx, 4 * x * w)
    assert x.grad is None


def test_copies_keep_the_strides_of_views(report) -> None:
    q = torch.randn(2, 5, 3, 2, 4).unbind(2)[0].requires_grad_()
    copied = report.copy_of(q)
    assert copied.stride() == q.stride() and copied.requires_grad and copied.is_leaf
    assert copied.data_ptr() != q.data_ptr()
    torch.testing.assert_close(copied, q)


def test_rows_tell_losses_and_goals(report) -> None:
    def row(ours: float, **more) -> object:
        times = {"ours": report.Times(ours, ours, ours), "torch": report.Times(1.0, 1.0, 1.0)}
        return report.Row("x", times, work=1e9, work_unit="GB/s", **more)

    assert row(0.5).verdict == "" and row(0.5).ratios == {"torch": 2.0}
    assert row(1.25).verdict == "slower than torch"
    assert row(0.5, goals={"torch": 3.0}).verdict == "short of the goal"
    assert row(0.5, share=0.8, share_goal=0.85).verdict == "short of the goal"
    assert "1.0 GB/s" in report.Table("x", ["torch"], "us").line(row(1.0))


def test_samples_alternate_and_inputs_rotate(report) -> None:
    import timing

    seen = []
    functions = {name: lambda which, name=name: seen.append((name, which)) for name in ("a", "b")}
    times = timing.compare(functions, [[0], [1], [2]], torch.device("cpu"), seconds=0, at_least=4, at_most=4)
    assert times.keys() == {"a", "b"}
    assert [which for _, which in seen] == [i % 3 for i in range(len(seen))]

    runs = {"a": lambda: seen.append("a") or 1.0, "b": lambda: seen.append("b") or 2.0}
    seen.clear()
    times = timing.interleave(runs, seconds=0, at_least=3, at_most=3)
    assert "".join(seen) == "abbaab"
    assert times == {"a": timing.Times(1.0, 1.0, 1.0), "b": timing.Times(2.0, 2.0, 2.0)}


def test_percentiles(report) -> None:
    import timing

    assert timing.Times.of([float(i) for i in range(11)]) == timing.Times(median=5.0, p20=2.0, p80=8.0)
    assert timing.Times.of([3.0]) == timing.Times(3.0, 3.0, 3.0)


def test_the_plain_gpt_takes_ours_weights(report) -> None:
    import minigpt_ext as mg

    config = mg.GPTConfig.preset("tiny", block_size=16)
    model, plain = mg.GPT(config, seed=1), importlib.import_module("bench_training").PlainGPT(config)
    plain.load_state_dict(model.state_dict())
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in model.named_parameters()]
