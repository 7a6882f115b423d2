"""A long context distilled into a short prompt of the frozen SmolLM2, without labels. `e2e` needs ../shared/data.

python benchmarks/distillation.py e2e --sources 400
python benchmarks/distillation.py document --questions 600
"""

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import click
import polars as pl
from quality_sets import load_set
from record import RESULTS, write_result

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone, load_backbone
from prompt_core.data import Splits, prepare
from prompt_core.evaluation import Evaluation, corpus_bleu
from prompt_core.evaluation.distilled import distilled_contenders, latency
from prompt_core.evaluation.evaluate import evaluate
from prompt_core.evaluation.metrics import facts_kept
from prompt_core.task import TaskSpec
from prompt_core.task_file import parse_task
from prompt_core.tuning import Step, tune

POLICY = Path(__file__).parents[1] / "examples" / "distillation"
_SHOWN = 10  # steps between two lines


@click.group()
def main() -> None:
    """Distillation, a subcommand each for demonstrations and a document; both write results/distillation.json."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")


@main.command()
@click.option("--sources", default=400, help="Unlabelled training sources.")
@click.option("--test", "test_rows", default=100, help="Test sources, with all their references.")
@click.option("--tokens", default=32, help="Length of the prompt.")
@click.option("--kind", default="deep", type=click.Choice(["deep", "soft"]))
@click.option("--seed", default=0)
@click.option("--set", "settings", multiple=True, help="A setting, such as tune.steps=160 or distill.answers=2.")
def e2e(sources: int, test_rows: int, tokens: int, kind: str, seed: int, settings: tuple[str, ...]) -> None:
    """16 solved E2E restaurants in front (about 1,250 tokens) into 32 tokens. BLEU against all references, share of facts kept."""
    task = _task(
        {
            "name": "e2e",
            "data": {"path": "-", "target": "target"},
            "template": [{"system": "Describe the restaurant in one sentence with all facts"}, {"user": "{{ source }}"}],
            "distill": {"demonstrations": 16, "answer_tokens": 72},
            "prompt": {"kind": kind, "tokens": tokens, "sink": kind == "deep"},
            "tune": {"steps": 160, "seed": seed, "validate_every": 20},
            "evaluate": {"metrics": ["agreement", "chrf", "facts_kept"], "must_contain": "facts", "max_new_tokens": 72},
        },
        settings,
        Path(),
    )
    data = load_set("smollm2", "e2e", sources + 16 + 32, test_rows)
    drawn = data.draw(seed)
    # The first 16 by id are the demonstrations; no other target is looked at.
    solved = drawn.sort("_id").head(16)
    rest = drawn.filter(~pl.col("_id").is_in(solved["_id"].implode())).with_columns(target=pl.lit(""))
    rows = data.rows
    test = pl.DataFrame(
        [{"_id": row["source"], "source": row["source"], "facts": row["facts"], "target": row["references"][0]} for row in rows]
    )
    splits = Splits(train=pl.concat([solved, rest.head(sources)]), validation=rest.tail(32), test=test.select(drawn.columns))
    backbone = load_backbone(task.backbone)
    prompt, seconds = _tuned(task, splits, backbone)
    contenders, _, saved = distilled_contenders(task, prompt, splits, backbone, None)
    measured = {
        c.name: {
            "bleu": corpus_bleu(c.predictions, [row["references"] for row in rows]),
            "facts_kept": float(facts_kept(c.predictions, [row["facts"] for row in rows]).mean()) / 100,
            "agreement": float(c.scores["agreement"].mean()),
            "divergence": saved.divergence[c.name],
        }
        for c in contenders
    }
    teacher, tuned = measured["teacher"], measured["tuned"]
    bars = {
        "bleu within 1 point": tuned["bleu"] >= teacher["bleu"] - 1,
        "facts within .03": tuned["facts_kept"] >= teacher["facts_kept"] - 0.03,
    }
    content = {"sources": sources, "test_rows": len(rows), "contenders": measured, "bars": bars, "saved": saved.model_dump()}
    _write("e2e", task, content, prompt, seconds, latency(task, prompt, splits, backbone))


@main.command()
@click.option("--questions", default=600, help="Questions that the model asks itself; 30 % are held out as test.")
@click.option("--tokens", default=128, help="Length of the prompt.")
@click.option("--kind", default="deep", type=click.Choice(["deep", "soft"]))
@click.option("--seed", default=0)
@click.option("--set", "settings", multiple=True, help="A setting, such as tune.steps=160 or distill.answers=2.")
def document(questions: int, tokens: int, kind: str, seed: int, settings: tuple[str, ...]) -> None:
    """A policy of a parcel carrier into 128 tokens by self-study. Divergence from the model behind it on held-out questions."""
    task = _task(
        {
            "name": "policy",
            "data": {"test": 0.2, "validation": 0.05},
            "template": [{"system": "Answer the customer's question from the policy above."}, {"user": "{{ question }}"}],
            "distill": {"context": "policy.md", "questions": questions, "answer_tokens": 64},
            "prompt": {"kind": kind, "tokens": tokens, "sink": kind == "deep"},
            "tune": {"steps": 160, "seed": seed, "validate_every": 20, "max_tokens": 256},
        },
        settings,
        POLICY,
    )
    splits, report = prepare(task)
    click.echo(
        f"questions: {report.rows_kept} of {report.rows_read} kept; {[len(s) for s in (splits.train, splits.validation, splits.test)]}"
    )
    backbone = load_backbone(task.backbone)
    prompt, seconds = _tuned(task, splits, backbone)
    evaluation: Evaluation = evaluate(task, prompt, splits, backbone)
    click.echo(evaluation.table())
    assert evaluation.distilled is not None  # of a distillation task
    divergence = evaluation.distilled.divergence
    measured = {r.name: {"agreement": r.metrics["agreement"].value, "divergence": divergence[r.name]} for r in evaluation.contenders}
    content = {
        "questions": report.rows_kept,
        "test_rows": evaluation.rows,
        "contenders": measured,
        "bars": {"divergence at most half of first_tokens'": divergence["tuned"] <= divergence["first_tokens"] / 2},
        "gate": evaluation.verdict.model_dump(),
        "saved": evaluation.distilled.model_dump(),
        "samples": [sample.model_dump() for sample in evaluation.samples],
    }
    _write("document", task, content, prompt, seconds, latency(task, prompt, splits, backbone))


def _task(spec: dict[str, Any], settings: tuple[str, ...], folder: Path) -> TaskSpec:
    spec = {"backbone": "smollm2", "objective": "distill", **spec}
    for setting in settings:
        place, _, value = setting.partition("=")
        section, _, field = place.partition(".")
        spec[section] = {**spec.get(section, {}), field: json.loads(value)}
    return parse_task(spec, "distillation", folder)


def _tuned(task: TaskSpec, splits: Splits, backbone: Backbone) -> tuple[TunedPrompt, float]:
    def shown(step: Step) -> None:
        if step.number % _SHOWN == 0 or step.validation_loss is not None:
            held_out = "" if step.validation_loss is None else f"  validation {step.validation_loss:.4f}"
            logging.info("step %d  loss %.4f%s  %.0f s left", step.number, step.loss, held_out, step.eta_seconds)

    began = time.monotonic()
    prompt = tune(task, splits.train, splits.validation, backbone, on_step=shown)
    return prompt, time.monotonic() - began


def _write(name: str, task: TaskSpec, content: dict[str, Any], prompt: TunedPrompt, seconds: float, measured: dict[str, float]) -> None:
    """The result beside the other subcommand's; a seed and setting that ran before is replaced."""
    record = prompt.manifest.tuning
    run = {
        "task": task.without_places("smollm2"),
        **content,
        "tuning_seconds": round(seconds, 1),
        "steps": record.steps,
        "kept_step": record.kept_step,
        "seconds_per_request": measured,
    }
    for contender, values in content["contenders"].items():
        click.echo(f"{contender:14}" + "  ".join(f"{metric} {value:.3f}" for metric, value in values.items()))
    click.echo(f"{content['bars']}  {measured}")
    file = RESULTS / "distillation.json"
    before = json.loads(file.read_text(encoding="utf-8")).get("runs", []) if file.exists() else []
    kept = [old for old in before if (old["name"], old["task"], old["test_rows"]) != (name, run["task"], content["test_rows"])]
    click.echo(f"-> {write_result('distillation', {'runs': [*kept, {'name': name, **run}]})}", err=True)


if __name__ == "__main__":
    sys.exit(main())
