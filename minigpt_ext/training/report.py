"""What is left of a run: its curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from minigpt_ext.data.files import replacing
from minigpt_ext.training.metrics import Row


def plot_losses(rows: Sequence[Row], path: Path, title: str) -> None:
    """Draw the training and validation losses over the steps into a PNG, atomically. Raises OSError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and needed here only
    from matplotlib.figure import Figure

    train = [(row.step, row.train_loss) for row in rows if row.train_loss is not None]
    validation = [(row.step, row.val_loss) for row in rows if row.val_loss is not None]

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if train:
        axes.plot(*zip(*train, strict=True), color="tab:blue", linewidth=0.7, alpha=0.6, label="training batch")
    if validation:
        step, loss = min(validation, key=lambda point: point[1])
        label = f"validation set, best {loss:.3f} at step {step:,}"
        axes.plot(*zip(*validation, strict=True), color="tab:orange", marker="o", markersize=3, label=label)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats a token)")
    # A file's name may hold dollars, which are no formula here, or bytes that are no UTF-8.
    axes.set_title(title.encode(errors="replace").decode(), parse_math=False)
    axes.grid(alpha=0.3)
    if train or validation:
        axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
