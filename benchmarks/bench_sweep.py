"""Attention over all sizes beside torch's SDPA, to see where it is slow: `minigpt bench sweep [--quick] [--plot FILE]`.

Every T from 1 to 4096, D from 16 to 256 and B x H from 1 to 256 that fits the time, forward and forward + backward,
with one thread and with as many as torch has. A table tells each group's worst and middle ratio and the worst shapes of
all; the picture has a ratio a cell; the JSON has every row.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from statistics import median

import report
import timing
import torch
from bench_attention import make_case

LENGTHS = (1, 2, 5, 16, 64, 128, 256, 512, 1024, 2048, 4096)
HEAD_DIMS = (16, 32, 64, 128, 256)
HEADS = (1, 4, 16, 64, 256)  # B x H; H at most 16
QUICK = ((1, 16, 128), (16, 64), (1, 16))
MOST_WORK = 4.5e9  # B H T^2 D: torch takes half a second for it, forward and backward on one core
MOST_CHECKED = 2**20  # B H T^2 of the shapes that are also checked against float64
HELD = 0.9  # least ratio that a shape is to have
SHOWN = 15


@dataclasses.dataclass(frozen=True)
class Point:
    threads: int
    backward: bool
    D: int
    heads: int
    T: int

    @property
    def mode(self) -> str:
        return "fwd+bwd" if self.backward else "fwd"

    @property
    def work(self) -> float:
        return self.heads * self.D * self.T**2

    def __str__(self) -> str:
        return f"{self.threads}t BxH{self.heads} T{self.T} D{self.D} {self.mode}"


def points(quick: bool, threads: Sequence[int]) -> Iterator[Point]:
    lengths, dims, heads = QUICK if quick else (LENGTHS, HEAD_DIMS, HEADS)
    for n, backward, D, count, T in product(threads, (False, True), dims, heads, lengths):
        point = Point(n, backward, D, count, T)
        if point.work <= MOST_WORK:
            yield point


def run(session: report.Session) -> None:
    options = session.options
    most = torch.get_num_threads()
    threads = [most] if options.device.type == "cuda" else sorted({1, most})
    session.begin("sweep", ["torch"], note="causal attention; q, k, v are views of a packed projection")
    rows: dict[Point, report.Row] = {}
    try:
        for n in threads:
            torch.set_num_threads(n)
            for point in points(options.quick, [n]):
                rows[point] = measure(point, options)
            for backward in (False, True):
                print(group_line(rows, n, backward), flush=True)
    finally:
        torch.set_num_threads(most)
    session.results += [row.as_json("sweep") for row in rows.values()]
    worst = sorted(rows, key=lambda point: rows[point].ratios["torch"])
    print(f"the {min(SHOWN, len(worst))} worst:")
    for point in worst[:SHOWN]:
        print(session.table.line(rows[point]), flush=True)
    below = [point for point in worst if rows[point].ratios["torch"] < HELD]
    print(f"{len(rows)} shapes, {len(below)} below {HELD}x torch")
    session.lost += [f"sweep {point}: {rows[point].ratios['torch']:.2f}x torch" for point in below]
    if options.plot:
        plot(rows, options)


def measure(point: Point, options: report.Options) -> report.Row:
    H = min(point.heads, 16)
    case = make_case(options, point.heads // H, H, point.T, point.D, backward=point.backward)
    torch.manual_seed(0)
    inputs = case.inputs()
    runs = {"ours": report.with_gradients(case.ours), "torch": report.with_gradients(case.torch)}
    # With a key or two the gradients in q and k are what is left (at T = 1 nothing) of terms of about 1 that cancel.
    case = dataclasses.replace(case, least_scale=1.0)
    checked = point.heads * point.T**2 <= MOST_CHECKED
    errors = report.check(f"sweep {point}", case, inputs, runs) if checked else {}
    seconds = 0.03 if options.quick else 0.12
    times = timing.compare(runs, [inputs], options.device, seconds, at_least=3)
    if times["torch"].median < HELD * times["ours"].median:  # perhaps the machine's doing: again, and longer
        times = timing.compare(runs, [inputs], options.device, 5 * seconds, at_least=3)
    return report.Row(shape=str(point), times=times, work=case.work, work_unit="GFLOP/s", errors=errors)


def group_line(rows: dict[Point, report.Row], threads: int, backward: bool) -> str:
    group = {p: row.ratios["torch"] for p, row in rows.items() if (p.threads, p.backward) == (threads, backward)}
    worst = min(group, key=group.get)
    name = f"{threads} thread{'s' * (threads > 1)}, {worst.mode}"
    return (
        f"{name}: {len(group)} shapes, torch/ours {group[worst]:.2f} (B x H {worst.heads}, T {worst.T}, D {worst.D}) "
        f"... {median(group.values()):.2f} (median) ... {max(group.values()):.2f}"
    )


def plot(rows: dict[Point, report.Row], options: report.Options) -> None:
    """A row of panels for threads and direction, a column for each D; a cell is a ratio, T across and B x H up."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and needed here only
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    groups = sorted({(p.threads, p.backward) for p in rows})
    dims, lengths, heads = (sorted({getattr(p, name) for p in rows}) for name in ("D", "T", "heads"))
    panel = (0.42 * len(lengths) + 0.5, 0.34 * len(heads) + 0.7)
    figure = Figure(figsize=(panel[0] * len(dims) + 1.5, panel[1] * len(groups) + 0.8), layout="constrained")
    axes = figure.subplots(len(groups), len(dims), squeeze=False)
    for (threads, backward), line in zip(groups, axes, strict=True):
        for D, axis in zip(dims, line, strict=True):
            grid = [[float("nan")] * len(lengths) for _ in heads]
            for point, row in rows.items():
                if (point.threads, point.backward, point.D) == (threads, backward, D):
                    ratio = row.ratios["torch"]
                    x, y = lengths.index(point.T), heads.index(point.heads)
                    grid[y][x] = ratio
                    axis.text(x, y, f"{ratio:.1f}", ha="center", va="center", fontsize=7)
            image = axis.imshow(grid, norm=LogNorm(1 / 8, 8), cmap="RdYlGn", origin="lower", aspect="auto")
            axis.set_xticks(range(len(lengths)), [str(T) for T in lengths], fontsize=7, rotation=60)
            axis.set_yticks(range(len(heads)), [str(n) for n in heads], fontsize=7)
            axis.set_title(
                f"D {D}, {threads} thread{'s' * (threads > 1)}, {'fwd+bwd' if backward else 'fwd'}", fontsize=8
            )
        line[0].set_ylabel("B x H", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("T", fontsize=8)
    bar = figure.colorbar(image, ax=axes, ticks=[1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8], fraction=0.02)
    bar.minorticks_off()  # their labels would lie on ours
    bar.ax.set_yticklabels(["1/8", "1/4", "1/2", "1", "2", "4", "8"])
    dtype = str(options.dtype).removeprefix("torch.")
    figure.suptitle(f"causal attention, {dtype}: torch's time / ours (green: ours is faster)", fontsize=10)
    FigureCanvasAgg(figure)
    figure.savefig(options.plot, dpi=130)
    print(f"picture: {Path(options.plot)}")


if __name__ == "__main__":
    report.main("sweep")
