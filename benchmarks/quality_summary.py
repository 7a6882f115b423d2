"""On how many sets one contender beats another, with p values corrected over the sets. Reads what `quality.py` wrote.

    python benchmarks/quality_summary.py smollm2 mr_polarity subj pros_cons induction
    python benchmarks/quality_summary.py smollm2 mr_polarity subj --ours ladder --theirs text,deep

`instructions` stands for what people wrote: the mean over their instructions where a set has several, else zero-shot.
"""

import json
import sys
from collections.abc import Sequence

import click
from quality_sets import INDUCTION
from record import RESULTS, result_name

from prompt_core.evaluation import holm


@click.command()
@click.argument("model", type=click.Choice(["smollm2", "minilm"]))
@click.argument("sets", nargs=-1, required=True)
@click.option("--ours", default="text", show_default=True, help="Whose gain is tested.")
@click.option("--theirs", default="instructions,few_shot_8", show_default=True, help="Against whom.")
@click.option("--examples", default=16, show_default=True, help="Training examples per class that the runs had.")
@click.option("--pairs", default=32, show_default=True, help="Training pairs that those of instruction induction had.")
@click.option("--variant", default="", help="Of the results, as quality.py was told.")
@click.option("--alpha", default=0.05, show_default=True, help="Level after the correction.")
def main(model: str, sets: Sequence[str], ours: str, theirs: str, examples: int, pairs: int, variant: str, alpha: float) -> None:
    """Gains of one contender per set, with p values that are corrected over the sets (Holm)."""
    names = [name for given in sets for name in (INDUCTION if given == "induction" else (given,))]
    paths = {name: RESULTS / f"{result_name(model, name, pairs if name in INDUCTION else examples, variant)}.json" for name in names}
    tested = {name: json.loads(path.read_text(encoding="utf-8"))["paired"] for name, path in paths.items()}
    lines = [f"| set | {' | '.join(f'{ours} - {them} | p, Holm' for them in theirs.split(','))} |"]
    lines.append("|---" * (1 + 2 * len(theirs.split(","))) + "|")
    columns = {them: _column(tested, ours, them) for them in theirs.split(",")}
    for place, name in enumerate(names):
        cells = [cell for column in columns.values() for cell in (f"{column[place][0]:+.1f}", f"{column[place][1]:.4f}")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for them, column in columns.items():
        better, sure = sum(gain > 0 for gain, _ in column), sum(gain > 0 and p < alpha for gain, p in column)
        lines.append(f"\n{ours} against {them}: better on {better} of {len(names)} sets, on {sure} with p < {alpha:g} after Holm")
    click.echo("\n".join(lines))


def _column(tested: dict[str, dict[str, dict[str, float]]], ours: str, theirs: str) -> list[tuple[float, float]]:
    """Gain and corrected p of every set."""
    found = []
    for name, paired in tested.items():
        them = "zero_shot" if theirs == "instructions" and f"{ours} - instructions" not in paired else theirs
        if f"{ours} - {them}" not in paired:
            raise click.ClickException(f"{name}: no run has both {ours} and {them}; run quality.py with --contenders untuned,{ours},{them}")
        found.append(paired[f"{ours} - {them}"])
    return list(zip([pair["gain"] for pair in found], holm([pair["p_better"] for pair in found]), strict=True))


if __name__ == "__main__":
    sys.exit(main())
