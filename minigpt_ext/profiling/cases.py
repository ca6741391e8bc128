"""The shapes an op can be profiled at: those of its benchmark, and any other that the benchmark can make."""

import importlib
import inspect
from typing import Any

from minigpt_ext.profiling.job import Job
from minigpt_ext.profiling.work import options_of

_NOT_OF_THE_SHAPE = ("options", "goal")


class _Listing:
    """Stands where a benchmark expects its session, and keeps the cases in place of timing them."""

    def __init__(self, options: Any) -> None:
        self.options = options
        self.cases: list[Any] = []

    def compare(self, benchmark: str, cases: list[Any], note: str = "") -> None:
        self.cases += cases


def case_of(job: Job) -> Any:
    """The benchmark's case (`report.Case`) that a job means; nothing is allocated yet.

    job.shape: a shape as `minigpt bench` prints it, or as much of it as is only one's; or arguments of the benchmark's
    make_case, "B=1,H=12,T=300,D=64,backward=yes". Where it is None, the heaviest shape of the benchmark.

    Raises:
        ValueError: no shape is like that, or several are; the message lists what there is.
    """
    benchmark = importlib.import_module(f"bench_{job.what}")
    if job.shape is not None and "=" in job.shape:
        arguments = _arguments(benchmark.make_case, job.shape)
        try:
            return benchmark.make_case(options_of(job), **arguments)
        except KeyError as error:
            raise ValueError(f"--shape: the benchmark knows no {error}; in its own shapes there are others") from error
    listing = _Listing(options_of(job))
    benchmark.run(listing)
    if job.shape is None:
        return max(listing.cases, key=lambda case: case.work)
    exact = [case for case in listing.cases if case.shape == job.shape]
    like = exact or [case for case in listing.cases if job.shape in case.shape]
    if len(like) != 1:
        told = "; ".join(case.shape for case in like or listing.cases)
        raise ValueError(
            f"--shape {job.shape}: {'several shapes are like that' if like else 'there is no such shape'}: {told}. Or "
            f"give any by its arguments: {_example(benchmark.make_case)}"
        )
    return like[0]


def _parameters(make_case: Any) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(make_case).parameters
    return {name: parameter for name, parameter in parameters.items() if name not in _NOT_OF_THE_SHAPE}


def _example(make_case: Any) -> str:
    return ",".join(f"{name}={parameter.annotation.__name__}" for name, parameter in _parameters(make_case).items())


def _arguments(make_case: Any, text: str) -> dict[str, Any]:
    parameters = _parameters(make_case)
    arguments = {}
    for word in text.split(","):
        name, _, value = (part.strip() for part in word.partition("="))
        if name not in parameters:
            raise ValueError(f"--shape: there is no {name!r}; expected {_example(make_case)}")
        arguments[name] = _value(name, value, parameters[name].annotation)
    required = [name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty]
    if missing := [name for name in required if name not in arguments]:
        raise ValueError(f"--shape: {', '.join(missing)} is missing; expected {_example(make_case)}")
    return arguments


def _value(name: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text not in ("yes", "no"):
            raise ValueError(f"--shape: {name} must be yes or no, not {text!r}")
        return text == "yes"
    try:
        value = kind(text)
    except ValueError:
        raise ValueError(f"--shape: {name} must be {kind.__name__}, not {text!r}") from None
    if kind is int and value < 0:
        raise ValueError(f"--shape: {name} must be 0 or more, not {value}")
    return value
