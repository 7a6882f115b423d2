"""Small pictures for reports and Dagster metadata: PNG as `data:` URIs under 40 kB each.

They use matplotlib's object-oriented interface only, so that threads share no current figure.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prompt_core.evaluation.glyphs import drawn, short
from prompt_core.evaluation.wanted import Texts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from prompt_core.evaluation.record import Evaluation

LARGEST_URI = 40_000  # characters
_SHARPEST, _BLUNTEST = 160, 40  # dots per inch
_COLOURS = 40
_MOST_CLASSES = 24
TITLE_SIZE = 11

TUNED, OTHER, FAINT, _PALE, INK = "#0b6e99", "#8a8f98", "#d9dce1", "#f6f7f9", "#22262b"


def loss_curve(
    steps: Sequence[int], train_loss: Sequence[float], validation_steps: Sequence[int], validation_loss: Sequence[float | None]
) -> str:
    """Loss of every training step and of every look at the validation rows, of which there may be none, or some without a finite
    loss. Returns a data URI."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = figure_of(6.4, 3.4)
    marker = "o" if len(steps) == 1 else ""
    axes.plot(steps, train_loss, color=OTHER, linewidth=1.2, marker=marker, label="training", zorder=2)
    title = "Loss while tuning"
    looks = np.array(validation_loss, dtype=np.float64)
    if np.isfinite(looks).any():
        best = int(np.nanargmin(looks))
        axes.plot(validation_steps, looks, color=TUNED, linewidth=2, marker="o", markersize=4, label="validation", zorder=3)
        axes.plot(validation_steps[best], looks[best], color=TUNED, marker="o", markersize=10, fillstyle="none", zorder=4)
        title += f": validation is best at step {validation_steps[best]} ({looks[best]:.3g})"
    axes.set_title(title, fontsize=TITLE_SIZE, color=INK)
    axes.set_xlabel("step", color=INK)
    axes.set_ylabel("loss", color=INK)
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, 1.02 * max(steps))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.legend(frameon=False, loc="upper right")
    return as_data_uri(figure)


def pareto(tried: Sequence[tuple[int, float]], front: Sequence[tuple[int, float]], measure: str) -> str:
    """Prompts by length: all that were tried as (tokens, value), and those that no shorter one equals. Returns a data URI."""
    figure, axes = figure_of(6.4, 3.4)
    axes.scatter([tokens for tokens, _ in tried], [value for _, value in tried], color=OTHER, s=18, label="tried", zorder=2)
    steps, values = [tokens for tokens, _ in front], [value for _, value in front]
    axes.step(
        steps, values, where="post", color=TUNED, linewidth=2, marker="o", markersize=5, label="best of this length or less", zorder=3
    )
    axes.set_title(f"{measure} by length of the prompt", fontsize=TITLE_SIZE, color=INK)
    axes.set_xlabel("tokens", color=INK)
    axes.set_ylabel(measure, color=INK)
    axes.grid(color=FAINT, linewidth=0.8)
    axes.legend(frameon=False, loc="lower right")
    return as_data_uri(figure)


def confusion(targets: Texts, predictions: Texts, labels: Sequence[str]) -> str:
    """True labels by predicted ones, the most confused first and side by side. Returns a data URI.

    Beyond 24 labels, the 24 with the most errors keep a row and a column of their own and the rest share one,
    whose diagonal cell holds their confusions among themselves too. A prediction that is no label counts as one more label. Labels
    that cannot be drawn stand as numbers, see `glyphs.numbered`.
    """
    counts, names = _confusion_counts(targets, predictions, labels)
    counts, names = _most_confused(counts, names)
    side = max(3.6, 2.6 + 0.27 * len(names))
    figure, axes = figure_of(side, side)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    right = np.eye(len(names), dtype=bool)
    axes.set_facecolor(_PALE)
    axes.imshow(np.ma.masked_where(~right | (counts == 0), share), cmap="Blues", vmin=0, vmax=1.4)
    axes.imshow(np.ma.masked_where(right | (counts == 0), share), cmap="Oranges", vmin=-0.15, vmax=0.6)
    for row, column in zip(*np.nonzero(counts), strict=True):
        dark = share[row, column] > (0.8 if row == column else 0.35)
        axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=7, color="white" if dark else INK)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(range(len(names)), names, fontsize=8, parse_math=False)
    axes.set_xlabel("predicted", color=INK)
    axes.set_ylabel("true", color=INK)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    wrong = sum(p != t for p, t in zip(predictions, targets, strict=True))
    axes.set_title(f"{wrong} of {len(targets)} test rows are wrong", fontsize=TITLE_SIZE, color=INK)
    return as_data_uri(figure)


def intervals(evaluation: Evaluation) -> str:
    """Every contender's value and 95 % interval, a panel per metric. Returns a data URI."""
    results = evaluation.contenders
    metrics = list(evaluation.tuned.metrics)
    figure, first = figure_of(max(5.8, 1.6 + 2.6 * len(metrics)), 1.3 + 0.36 * len(results), panels=len(metrics))
    for axes, metric in zip(figure.axes, metrics, strict=True):
        for row, result in enumerate(results):
            found = result.metrics[metric]
            colour = TUNED if result.kind == "tuned" else OTHER
            axes.plot([found.low, found.high], [row, row], color=colour, linewidth=2.4, solid_capstyle="round")
            axes.plot(found.value, row, marker="o", markersize=7, color=colour)
            axes.text(found.value, row - 0.22, f"{found.value:.1f}", ha="center", va="bottom", fontsize=8, color=INK)
        axes.set_title(metric, fontsize=10, color=INK)
        axes.grid(axis="x", color=FAINT, linewidth=0.8)
        axes.margins(x=0.12)
        axes.tick_params(axis="y", length=0)
    first.set_yticks(range(len(results)), [short(result.name) for result in results], parse_math=False)
    first.set_ylim(len(results) - 0.5, -0.75)
    title = f"{short(evaluation.task)}: {evaluation.rows} test rows, 95 % intervals"
    figure.suptitle(title, fontsize=TITLE_SIZE, color=INK, parse_math=False)
    return as_data_uri(figure)


def figure_of(width: float, height: float, panels: int = 1) -> tuple[Figure, Axes]:
    """A white figure in inches with panels side by side that share their rows, and the first of them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    all_axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    for axes in all_axes:
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.tick_params(colors=INK, labelsize=9)
    return figure, all_axes[0]


def as_data_uri(figure: Figure) -> str:
    """PNG in 40 colours, as sharp as the limit allows."""
    from PIL import Image

    dots = float(_SHARPEST)
    while True:
        drawn, small = io.BytesIO(), io.BytesIO()
        figure.savefig(drawn, format="png", dpi=dots)
        Image.open(drawn).convert("RGB").quantize(_COLOURS).save(small, "PNG", optimize=True)
        uri = "data:image/png;base64," + base64.b64encode(small.getvalue()).decode("ascii")
        if len(uri) < LARGEST_URI or dots < _BLUNTEST:
            return uri
        dots *= 0.98 * (LARGEST_URI / len(uri)) ** 0.8  # bytes grow a little faster than dots along one side


def _confusion_counts(targets: Texts, predictions: Texts, labels: Sequence[str]) -> tuple[NDArray[np.int64], list[str]]:
    """Counts [true, predicted] and the name of each row."""
    known = {label: i for i, label in enumerate(labels)}
    outside = len(known)
    names = [drawn(label, number) for number, label in enumerate(known, 1)]
    if any(text not in known for text in (*targets, *predictions)):
        names.append("(no label)")
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(counts, ([known.get(t, outside) for t in targets], [known.get(p, outside) for p in predictions]), 1)
    return counts, names


def _most_confused(counts: NDArray[np.int64], names: Sequence[str]) -> tuple[NDArray[np.int64], list[str]]:
    """Start with the label that has most errors; each next one is the most confused with the last, so that errors stand together."""
    confused = counts + counts.T
    np.fill_diagonal(confused, 0)
    errors = confused.sum(axis=1)
    kept = set(np.argsort(-errors, kind="stable")[: len(names) if len(names) <= _MOST_CLASSES + 1 else _MOST_CLASSES].tolist())
    order: list[int] = []
    while kept:
        order.append(max(sorted(kept), key=lambda i: (confused[order[-1], i] if order else 0, errors[i])))
        kept.remove(order[-1])
    rest = [i for i in range(len(names)) if i not in order]
    if not rest:
        return counts[np.ix_(order, order)], [names[i] for i in order]
    member = np.zeros((len(order) + 1, len(names)), dtype=np.int64)  # [shown, labels]: which labels a shown row stands for
    member[range(len(order)), order] = 1
    member[-1, rest] = 1
    return member @ counts @ member.T, [*(names[i] for i in order), f"{len(rest)} others"]
