"""Pictures of a classifier's confidence: calibration, and accuracy by the share of rows that are answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prompt_core.evaluation.certainty import Certainty
from prompt_core.evaluation.glyphs import short
from prompt_core.evaluation.plots import FAINT, INK, OTHER, TITLE_SIZE, TUNED, as_data_uri, figure_of

_LINES = ("--", ":", "-.")

Points = Sequence[tuple[float, float]]


def calibration_curve(found: Mapping[str, Certainty]) -> str:
    """Accuracy by confidence of every contender; on the diagonal, confidence is accuracy. Returns a data URI."""
    points = {name: [(b.confidence, b.accuracy) for b in each.bins] for name, each in found.items()}
    return _lines("calibration", "confidence, %", points, marker="o", diagonal=True)


def abstention_curve(found: Mapping[str, Certainty]) -> str:
    """Accuracy by coverage of every contender, when the surest rows alone are answered. Returns a data URI."""
    points = {name: [(a.coverage, a.accuracy) for a in each.answered] for name, each in found.items()}
    return _lines("abstention", "rows answered, %, the surest first", points)


def _lines(title: str, below: str, found: Mapping[str, Points], marker: str = "", diagonal: bool = False) -> str:
    figure, axes = figure_of(4.4, 3.6)
    if diagonal:
        axes.plot([0, 100], [0, 100], color=FAINT, linewidth=1.2, zorder=1)
    for number, (name, points) in enumerate(found.items()):
        colour, width, order = (TUNED, 2.0, 3) if name == "tuned" else (OTHER, 1.2, 2)
        line = "-" if name == "tuned" else _LINES[number % len(_LINES)]
        x, y = [x for x, _ in points], [y for _, y in points]
        axes.plot(x, y, linestyle=line, marker=marker, markersize=3, label=short(name), color=colour, linewidth=width, zorder=order)
    axes.set_title(title, fontsize=TITLE_SIZE, color=INK)
    axes.set_xlabel(below, color=INK)
    axes.set_ylabel("accuracy, %", color=INK)
    axes.grid(color=FAINT, linewidth=0.8)
    axes.set_xlim(0, 102)
    axes.set_ylim(0, 102)
    axes.legend(frameon=False, fontsize=8, loc="best")
    return as_data_uri(figure)
