"""A job made ready: tensors and models in place, and one call that does it once."""

import importlib
import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from minigpt_ext.generation import stream
from minigpt_ext.model import GPT, GPTConfig
from minigpt_ext.profiling.cases import case_of
from minigpt_ext.profiling.job import Job
from minigpt_ext.profiling.ranges import part
from minigpt_ext.profiling.work import Work, pass_of, room_of, work_of_call, work_of_case
from minigpt_ext.tokenizer import CharTokenizer
from minigpt_ext.training.dataset import Dataset
from minigpt_ext.training.progress import Progress
from minigpt_ext.training.recipe import make_recipe
from minigpt_ext.training.run_directory import RunDirectory
from minigpt_ext.training.trainer import Trainer

WARM_UP = 2  # calls before the profiler looks on


@dataclass(frozen=True)
class Workload:
    """Attributes:
    title: what it is, with the shape.
    run: does it once.
    work_of_call: the work of a call of an op, by its name and its arguments' shapes; None where it is not known.
    work_of_range: the work within one range of that name.
    """

    title: str
    run: Callable[[], None]
    work_of_call: Callable[[str, Sequence[Sequence[int]]], Work | None]
    work_of_range: Mapping[str, Work] = field(default_factory=dict)


def prepare(job: Job) -> Workload:
    """Raises ValueError, naming the option, where the job asks for what cannot be made."""
    torch.manual_seed(0)
    if job.what == "train":
        return _training(job)
    return _generation(job) if job.what == "generate" else _op(job)


def _op(job: Job) -> Workload:
    """A case of the op's benchmark. Inputs rotate as they do there, so that they are cold where memory bounds it."""
    report = importlib.import_module("report")
    case = case_of(job)
    function = report.with_gradients(case.ours)
    try:
        inputs = case.inputs()
        function(*inputs)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"--shape {job.shape or case.shape}: {error}") from error
    options = report.Options(quick=job.quick, device=job.torch_device, dtype=job.torch_dtype)
    turn = itertools.cycle(report.input_sets(case, inputs, options))
    works = work_of_case(case)
    return Workload(
        title=f"{job.what} {case.shape}",
        run=lambda: function(*next(turn)),
        work_of_call=lambda name, shapes: works[pass_of(name)] if room_of(name) == job.what else None,
    )


def _training(job: Job) -> Workload:
    """Steps of `minigpt train`'s own trainer, over random text; nothing is written."""
    asked = {"preset": job.preset, "device": job.device, "dtype": job.dtype, "data": ("random",)}
    recipe = make_recipe(asked | ({"batch_size": job.batch_size} if job.batch_size else {}))
    characters = "".join(map(chr, range(32, 32 + GPTConfig.preset(job.preset).vocab_size)))
    tokens = torch.randint(len(characters), (20 * recipe.block_size,), dtype=torch.int32)
    dataset = Dataset(CharTokenizer(characters), tokens, tokens)
    trainer = Trainer(recipe, dataset, RunDirectory(tempfile.gettempdir()), Progress())

    def run() -> None:
        with part("step"):
            trainer.train_step()

    flops = importlib.import_module("bench_training").step_flops(trainer.model, recipe.batch_size * recipe.block_size)
    return Workload(
        title=f"training of {job.preset}, {recipe.batch_size} windows of {recipe.block_size} tokens",
        run=run,
        work_of_call=lambda name, shapes: work_of_call(name, shapes, job),
        work_of_range={"step": Work("gemm", flops)},
    )


def _generation(job: Job) -> Workload:
    """A model with random weights continues a random prompt, greedily, by the loop of `minigpt generate`."""
    bench = importlib.import_module("bench_generation")
    config = GPTConfig.preset(job.preset)
    if job.prompt + job.tokens - 1 > config.block_size:
        raise ValueError(
            f"--prompt {job.prompt} and --tokens {job.tokens} do not fit the {config.block_size} tokens of {job.preset}"
        )
    model = GPT(config, seed=0).to(job.torch_device, job.torch_dtype).eval()
    ids = torch.randint(config.vocab_size, (1, job.prompt)).to(job.torch_device)

    def run() -> None:
        for new in stream(model, ids, job.tokens, temperature=0, weights="model"):
            int(new)  # waits for a GPU, as whoever shows the text must

    return Workload(
        title=f"generation by {job.preset}, {job.prompt} tokens read and {job.tokens} made",
        run=run,
        work_of_call=lambda name, shapes: work_of_call(name, shapes, job),
        work_of_range={
            "prefill": Work("gemm", bench.prefill_flops(model, job.prompt)),
            "token": Work("read", bench.decode_bytes(model, job.prompt + job.tokens / 2)),
        },
    )
