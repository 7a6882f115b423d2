"""The picture of a classifier's confidence: calibration, and accuracy by the share of rows that are answered."""

from __future__ import annotations

from collections.abc import Mapping

from prompt_core.evaluation.certainty import Certainty
from prompt_core.evaluation.plots import FAINT, INK, OTHER, TITLE_SIZE, TUNED, as_data_uri, figure_of, short

_LINES = ("--", ":", "-.")


def trust_curves(found: Mapping[str, Certainty]) -> str:
    """Accuracy by confidence (the diagonal is perfect) and by coverage, of every contender. Returns a data URI."""
    figure, calibration = figure_of(8.0, 3.6, panels=2, share_rows=False)
    coverage = figure.axes[1]
    calibration.plot([0, 100], [0, 100], color=FAINT, linewidth=1.2, zorder=1)
    for number, (name, each) in enumerate(found.items()):
        colour, width, order = (TUNED, 2.0, 3) if name == "tuned" else (OTHER, 1.2, 2)
        line = "-" if name == "tuned" else _LINES[number % len(_LINES)]
        confidence, accuracy = [b.confidence for b in each.bins], [b.accuracy for b in each.bins]
        calibration.plot(confidence, accuracy, marker="o", markersize=3, linestyle=line, color=colour, linewidth=width, zorder=order)
        covered, reached = [a.coverage for a in each.answered], [a.accuracy for a in each.answered]
        coverage.plot(covered, reached, linestyle=line, label=short(name), color=colour, linewidth=width, zorder=order)
    panels = ((calibration, "calibration", "confidence, %"), (coverage, "abstention", "rows answered, %, the surest first"))
    for axes, title, below in panels:
        axes.set_title(title, fontsize=TITLE_SIZE, color=INK)
        axes.set_xlabel(below, color=INK)
        axes.grid(color=FAINT, linewidth=0.8)
        axes.set_xlim(0, 102)
        axes.set_ylim(top=102)
    calibration.set_ylabel("accuracy, %", color=INK)
    coverage.legend(frameon=False, fontsize=8, loc="lower left")
    return as_data_uri(figure)
