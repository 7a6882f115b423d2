"""Accuracy by the number of examples, over all sets: a table and a picture. Reads what `quality.py` wrote.

    python benchmarks/quality_plot.py minilm banking77 clinc150 subj mr_polarity pros_cons --examples 8,16,64 --against setfit

The table is Markdown, on the terminal. P values are of `ours` against the rival, paired over the test rows and corrected
over all rows of the table (Holm); * is significantly better, ! significantly worse.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from record import RESULTS, result_name

from prompt_core.evaluation import holm

_COLOURS = {"label_names": "#c9ccd1", "linear_probe": "#8a8f98", "setfit": "#d0782a", "deep": "#0b6e99", "auto": "#5b3f8c"}
_IMAGES = Path(__file__).parents[1] / "docs" / "images"


@click.command()
@click.argument("model", type=click.Choice(["smollm2", "minilm"]))
@click.argument("sets", nargs=-1, required=True)
@click.option("--examples", default="8,16,64", show_default=True, help="Training examples per class, a column of points each.")
@click.option("--ours", default="deep", show_default=True, help="Whose gain is tested.")
@click.option("--against", default="setfit", show_default=True, help="The rival.")
@click.option("--alpha", default=0.05, show_default=True, help="Level after the correction.")
def main(model: str, sets: Sequence[str], examples: str, ours: str, against: str, alpha: float) -> None:
    """Table and picture of accuracy by examples per class."""
    counts = [int(count) for count in examples.split(",")]
    paths = {(name, count): RESULTS / f"{result_name(model, name, count)}.json" for name in sets for count in counts}
    found = {key: json.loads(path.read_text(encoding="utf-8")) for key, path in paths.items() if path.exists()}
    if not found:
        raise click.ClickException(f"none of these results is there: {', '.join(path.name for path in paths.values())}")
    click.echo(_table(found, ours, against, alpha))
    path = _IMAGES / f"quality_{model}.png"
    _draw(found, sets, counts, path)
    click.echo(f"-> {path}", err=True)


def _table(found: dict[tuple[str, int], dict[str, Any]], ours: str, against: str, alpha: float) -> str:
    contenders = [name for name in _COLOURS if any(name in result["mean"] for result in found.values())]
    pairs = {key: result["paired"][f"{ours} - {against}"] for key, result in found.items() if f"{ours} - {against}" in result["paired"]}
    better = dict(zip(pairs, holm([pair["p_better"] for pair in pairs.values()]), strict=True))
    worse = dict(zip(pairs, holm([1 - pair["p_better"] for pair in pairs.values()]), strict=True))
    lines = [f"| set | per class | draws | {' | '.join(contenders)} | {ours} - {against} |", "|---" * (4 + len(contenders)) + "|"]
    for key, result in found.items():
        cells = [f"{result['mean'][name]['accuracy']:.1f}" if name in result["mean"] else "" for name in contenders]
        mark = ("*" if better[key] < alpha else "!" if worse[key] < alpha else "") if key in pairs else ""
        gain = f"{pairs[key]['gain']:+.1f}{mark}" if key in pairs else ""
        draws = len({run["seed"] for run in result["runs"]})
        lines.append(f"| {key[0]} | {key[1]} | {draws} | {' | '.join(cells)} | {gain} |")
    ahead = sum(better[key] < alpha for key in pairs)
    behind = sum(worse[key] < alpha for key in pairs)
    lines.append(f"\n{ours} against {against}: significantly better on {ahead} of {len(pairs)}, significantly worse on {behind}")
    return "\n".join(lines)


def _draw(found: dict[tuple[str, int], dict[str, Any]], sets: Sequence[str], counts: Sequence[int], path: Path) -> None:
    figure = Figure(figsize=(3.0 * len(sets), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for place, name in enumerate(sets, 1):
        axes = figure.add_subplot(1, len(sets), place, title=name, xlabel="examples per class")
        for contender, colour in _COLOURS.items():
            points = [(count, found[name, count]["mean"].get(contender)) for count in counts if (name, count) in found]
            shown = [(count, values["accuracy"], values["accuracy_sd"]) for count, values in points if values]
            if shown:
                x, mean, sd = zip(*shown, strict=True)
                axes.errorbar(x, mean, sd, color=colour, marker="o", markersize=4, capsize=2, linewidth=1.4, label=contender)
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.grid(axis="y", color="#eceef1")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("accuracy on test, %")
    figure.axes[-1].legend(fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    sys.exit(main())
