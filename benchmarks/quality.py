"""Quality of tuned prompts on real data, beside what a user would otherwise do. Needs ../shared/data.

python benchmarks/quality.py e2e --examples 200 --seeds 0-2
python benchmarks/quality.py banking77 --shots 10 --seeds 0-4
"""

import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import polars as pl
from record import SHARED_DATA, parse_seeds, write_result

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone, load_backbone
from prompt_core.evaluation import compare, corpus_bleu, summary
from prompt_core.evaluation.baselines import baselines
from prompt_core.evaluation.metrics import facts_kept
from prompt_core.progress import Progress
from prompt_core.task import TaskSpec, parse_task
from prompt_core.tuning import tune


@click.group()
def main() -> None:
    """Quality on the real data sets, a subcommand each."""


@main.command()
@click.option("--examples", default=200, help="Training sources, one reference each.")
@click.option("--test", "test_rows", default=120, help="Test sources, with all their references.")
@click.option("--seeds", default="0-2", help="Seeds of draw and tuning.")
@click.option("--kind", default="deep", type=click.Choice(["deep", "soft"]))
@click.option("--set", "settings", multiple=True, help="A tuning setting, such as steps=80.")
def e2e(examples: int, test_rows: int, seeds: str, kind: str, settings: tuple[str, ...]) -> None:
    """E2E restaurants on the frozen SmolLM2: slots to a sentence. BLEU against all references, share of the slot values kept."""
    rows = e2e_references(test_rows)
    spec = {
        "name": "e2e",
        "backbone": "smollm2",
        "data": {"path": "-", "target": "target"},
        "objective": "generate",
        "template": [{"system": "Describe the restaurant in one sentence with all facts"}, {"user": "{{ source }}"}],
        "prompt": {"kind": kind},
        "evaluate": {"metrics": ["chrf", "facts_kept"], "must_contain": "facts", "few_shot": 4, "max_new_tokens": 72},
    }

    def measure(outputs: list[str]) -> dict[str, float]:
        bleu = corpus_bleu(outputs, [row["references"] for row in rows])
        return {"bleu": bleu, "facts_kept": float(facts_kept(outputs, [row["facts"] for row in rows]).mean()) / 100}

    _run("e2e", spec, settings, parse_seeds(seeds), lambda seed: e2e_sources("train", seed, examples), rows, measure, None)


@main.command()
@click.option("--shots", default=10, help="Training examples per class.")
@click.option("--seeds", default="0-4", help="Seeds of draw and tuning.")
@click.option("--set", "settings", multiple=True, help="A tuning setting, such as steps=80.")
def banking77(shots: int, seeds: str, settings: tuple[str, ...]) -> None:
    """Banking77 on the frozen all-MiniLM-L6-v2: 77 intents of bank customers, test accuracy on the published test file."""
    train, test = (pl.read_parquet(SHARED_DATA / f"banking77_{side}.parquet").with_row_index("_id") for side in ("train", "test"))
    train, test = (frame.with_columns(pl.col("_id").cast(pl.String)) for frame in (train, test))
    known = test["text"].str.to_lowercase().str.strip_chars()
    train = train.filter(~pl.col("text").str.to_lowercase().str.strip_chars().is_in(known.implode()))
    targets = test["label"].to_list()
    spec = {
        "name": "banking77",
        "backbone": "minilm",
        "data": {"path": "-", "target": "label"},
        "objective": "classify",
        "template": "{{ text }}",
        "prompt": {"kind": "deep"},
        "tune": {"steps": 240, "batch_examples": 32},
    }

    def measure(outputs: list[str]) -> dict[str, float]:
        return {metric: summary(metric, outputs, targets, None) for metric in ("accuracy", "macro_f1")}

    def draw(seed: int) -> pl.DataFrame:
        shuffled = train.sample(fraction=1.0, seed=seed, shuffle=True)
        return shuffled.group_by("label", maintain_order=True).head(shots).select(train.columns)

    _run("banking77", spec, settings, parse_seeds(seeds), draw, list(test.iter_rows(named=True)), measure, targets)


def e2e_sources(side: str, seed: int, count: int) -> pl.DataFrame:
    """Different sources with one reference each: the one that states most facts, for what leaves facts out teaches to leave facts out."""
    frame = _e2e_frame(side)
    stated = pl.Series(facts_kept(frame["target"].to_list(), frame["facts"].to_list()))
    fullest = frame.with_columns(stated.alias("stated")).sort("stated", descending=True, maintain_order=True)
    return fullest.unique("source", keep="first", maintain_order=True).drop("stated").sort("_id").sample(count, seed=seed, shuffle=True)


def e2e_references(count: int) -> list[dict[str, Any]]:
    """Test sources with their facts and all their references."""
    grouped = _e2e_frame("test").group_by("source", maintain_order=True).agg("facts", "target").sort(pl.col("source").hash(0)).head(count)
    return [{"source": row["source"], "facts": row["facts"][0], "references": row["target"]} for row in grouped.iter_rows(named=True)]


def _e2e_frame(side: str) -> pl.DataFrame:
    frame = pl.read_parquet(SHARED_DATA / f"e2e_nlg_{side}.parquet").with_row_index("_id").with_columns(pl.col("_id").cast(pl.String))
    # familyFriendly[yes] is worded freely ("kid friendly"); a literal test of its value would measure nothing.
    facts = [
        "\n".join(f"{slot}: {value}" for slot, value in re.findall(r"(\w[\w ]*)\[([^\]]*)\]", source) if slot != "familyFriendly")
        for source in frame["source"]
    ]
    return frame.with_columns(pl.Series("facts", facts))


def _run(
    name: str,
    spec: dict[str, Any],
    settings: tuple[str, ...],
    seeds: list[int],
    draw: Callable[[int], pl.DataFrame],
    rows: list[dict[str, Any]],
    measure: Callable[[list[str]], dict[str, float]],
    targets: list[str] | None,
) -> None:
    """Baselines and tuned prompt for each seed, printed and written as a result."""
    changed = {key: float(value) if "." in value or "e" in value else int(value) for key, _, value in (s.partition("=") for s in settings)}
    runs = []
    for seed in seeds:
        task = parse_task({**spec, "tune": {**spec.get("tune", {}), **changed, "seed": seed}}, name, Path())
        backbone = load_backbone(task.backbone)
        train = draw(seed)
        began = time.monotonic()
        with Progress(f"{name} seed {seed}") as progress:
            prompt = tune(task, train, train.clear(), backbone, on_step=progress.step)
            seconds = time.monotonic() - began
            outputs = _outputs(task, prompt, train, rows, backbone, progress)
        measured = {contender: measure(predictions) for contender, predictions in outputs.items()}
        run = {
            "seed": seed,
            "tuning_seconds": round(seconds, 1),
            "parameters": prompt.manifest.parameters,
            "tokens": prompt.manifest.tokens,
        }
        run |= {"steps": prompt.manifest.tuning.steps, "last_train_loss": prompt.manifest.tuning.train_loss[-1], "contenders": measured}
        if targets is not None:
            found = compare("accuracy", outputs["tuned"], outputs["linear_probe"], targets, None)
            run["against_linear_probe"] = {"gain": found.gain, "p_better": found.p_better}
        runs.append(run)
        click.echo(f"seed {seed}  {seconds:.0f} s  " + "  ".join(f"{c} {_shown(values)}" for c, values in measured.items()))
    contenders = runs[0]["contenders"]
    means = {c: {m: statistics.fmean(run["contenders"][c][m] for run in runs) for m in values} for c, values in contenders.items()}
    deviations = {
        c: {m: statistics.stdev(run["contenders"][c][m] for run in runs) if len(runs) > 1 else 0.0 for m in values}
        for c, values in contenders.items()
    }
    for contender, values in means.items():
        click.echo(f"mean {contender:14} {_shown(values)}   sd {_shown(deviations[contender])}")
    content = {"task": spec, "changed": changed, "test_rows": len(rows), "mean": means, "sd": deviations, "runs": runs}
    path = write_result(f"quality_{name}", content)
    click.echo(f"-> {path}", err=True)


def _outputs(
    task: TaskSpec, prompt: TunedPrompt, train: pl.DataFrame, rows: list[dict[str, Any]], backbone: Backbone, progress: Progress
) -> dict[str, list[str]]:
    contenders = baselines(task, train, rows, backbone, prompt.manifest.max_new_tokens, progress.contender)
    outputs = {contender.name: list(contender.predictions) for contender in contenders}
    return outputs | {"tuned": prompt.predict(rows, backbone, progress.rows)}


def _shown(values: dict[str, float]) -> str:
    return " / ".join(f"{value:.3f}" if value <= 1 else f"{value:.1f}" for value in values.values())


if __name__ == "__main__":
    sys.exit(main())
