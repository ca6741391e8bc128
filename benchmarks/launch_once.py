"""Runs each case of an op's benchmark once, for a profiler: `ncu ... python benchmarks/launch_once.py gelu`."""

import argparse
import importlib
from collections.abc import Sequence

import report
import torch

from minigpt_ext.backend import OPS


class Launches:
    """What a benchmark takes for its session; it neither checks nor times."""

    def __init__(self, options: report.Options) -> None:
        self.options = options

    def compare(self, benchmark: str, cases: Sequence[report.Case], note: str = "") -> None:
        for case in cases:
            print(benchmark, case.shape, flush=True)
            report.with_gradients(case.ours)(*case.inputs())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("op", choices=OPS)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small shapes")
    arguments = parser.parse_args()
    place = torch.device("cuda", 0) if arguments.device == "cuda" else torch.device("cpu")
    options = report.Options(quick=arguments.quick, device=place, dtype=getattr(torch, arguments.dtype))
    importlib.import_module(f"bench_{arguments.op}").run(Launches(options))
    if place.type == "cuda":
        torch.cuda.synchronize(place)


if __name__ == "__main__":
    main()
