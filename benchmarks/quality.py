"""Quality of tuned prompts on real data, beside what a user would otherwise do. Needs ../shared/data.

    python benchmarks/quality.py smollm2 e2e --examples 200 --test 120 --seeds 0-4
    python benchmarks/quality.py smollm2 mr_polarity subj pros_cons --examples 16 --test 300 --seeds 0-4
    python benchmarks/quality.py smollm2 induction --examples 32 --seeds 0
    python benchmarks/quality.py smollm2 mr_polarity --examples 16 --test 300 --seeds 0-2 --contenders untuned,few_shot_8,deep,text,ladder
    python benchmarks/quality.py minilm banking77 clinc150 subj mr_polarity --examples 10 --seeds 0-9
    python benchmarks/quality.py minilm subj mr_polarity --examples 10 --seeds 0-4 --contenders untuned,deep,self_trained --variant self

Every contender of a seed sees the same examples, and no setting is chosen by looking at test rows. What is done is kept
under .promptmill/quality, so that an interrupted run goes on; the result holds every run that fits the command. Outputs
that took long are in benchmarks/outputs and taken from there: remove that folder to measure anew.
"""

import hashlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import polars as pl
from lora import lora
from quality_sets import INDUCTION, Set, load_set
from record import parse_seeds, result_name, write_result
from setfit_peer import setfit

from prompt_core.backbone import load_backbone
from prompt_core.evaluation.baselines import baselines
from prompt_core.methods import TuneSpec
from prompt_core.progress import Progress
from prompt_core.task import TaskSpec
from prompt_core.task_file import parse_task
from prompt_core.text.prompt import TextPrompt
from prompt_core.tuning import tune

_KEPT = Path(".promptmill/quality")
_COMMITTED = Path(__file__).parent / "outputs"
_RESAMPLES = 10_000
_TEXT = {"rounds": 4, "demonstrations": 16}
# For what is tuned afterwards: an example that stands in the prompt teaches the gradient to copy it.
_WORDS = {"rounds": 1, "demonstrations": 0}
# The rungs of a ladder with the settings of the contenders `soft` and `deep`, so that it is measured what climbing adds.
# Two folds would leave half of 32 examples to learn from: too few, every rung then guesses on MR polarity.
_RUNGS = {"trials": 3, "together": 3, "folds": 4, "eta": 2}
# What tunes something, by name: what it changes in the parts of the task. `labels` become all that the set may say for a label,
# `template` the same instruction in front of plain lines.
_TUNED: dict[str, dict[str, Any]] = {
    "soft": {"prompt": {"kind": "soft"}},
    "deep": {"prompt": {"kind": "deep"}},
    "deep_words": {"prompt": {"kind": "deep"}, "labels": {}},
    "deep_lines": {"prompt": {"kind": "deep"}, "template": {}},
    # No text of the training side is a test text: nothing has to be held back as one.
    "self_trained": {"prompt": {"kind": "deep"}, "data": {"unlabelled": "texts.parquet", "test": 0.05}, "tune": {"self_training": 3}},
    "auto": {"prompt": {"kind": "auto"}},
    "text": {"prompt": {"kind": "text"}, "text": _TEXT},
    "deep_from_text": {"prompt": {"kind": "text"}, "text": _WORDS},
    "ladder": {"prompt": {"kind": "auto"}, "text": _TEXT, "tune": {"search": _RUNGS}},
}
_FEW_SHOT = "few_shot_8"
Peer = Callable[[TaskSpec, pl.DataFrame, Sequence[dict[str, Any]]], tuple[list[str], int]]
_PEERS: dict[str, Peer] = {"lora": lora, "lora_words": lora, "setfit": setfit}
_CHANGES = {**_TUNED, _FEW_SHOT: {"evaluate": {"few_shot": 8}}, "lora_words": {"labels": {}}}


@dataclass(frozen=True)
class Outcome:
    """What a contender wrote for the test rows of one seed, and what it took."""

    outputs: list[str]
    facts: dict[str, Any]


@click.command()
@click.argument("model", type=click.Choice(["smollm2", "minilm"]))
@click.argument("sets", nargs=-1, required=True)
@click.option("--examples", default=16, show_default=True, help="Training examples: per class, or in all for texts.")
@click.option("--test", "test_rows", type=int, help="Test rows at most; default: all.")
@click.option("--seeds", default="0-4", show_default=True, help="Seeds of draw and tuning.")
@click.option(
    "--contenders",
    default="untuned,lora,soft,deep,auto",
    show_default=True,
    help="Which to run; also self_trained, deep_words, deep_lines, lora_words, few_shot_8, text, deep_from_text, ladder, setfit. "
    "untuned: baselines.",
)
@click.option("--variant", default="", help="Added to the result's name: another comparison on the same set and examples.")
@click.option("--set", "settings", multiple=True, help="A setting for all that learns, such as tune.steps=80.")
def main(
    model: str,
    sets: Sequence[str],
    examples: int,
    test_rows: int | None,
    seeds: str,
    contenders: str,
    variant: str,
    settings: Sequence[str],
) -> None:
    """Quality on the real data sets, beside baselines and rivals."""
    names = [name for given in sets for name in (INDUCTION if given == "induction" else (given,))]
    for name in names:
        data = load_set(model, name, examples, test_rows)
        runs: list[dict[str, Any]] = []
        scores: dict[str, list[np.ndarray]] = {}
        for seed in parse_seeds(seeds):
            for contender, outcome in _outcomes(data, model, seed, contenders.split(","), settings).items():
                values = data.measure(outcome.outputs)
                scores.setdefault(contender, []).append(data.scores(outcome.outputs))
                runs.append({"contender": contender, "seed": seed, **values, **outcome.facts})
                click.echo(f"{name} seed {seed}  {contender:22} {_shown(values)}  {outcome.facts.get('seconds', '')}")
        means = _means(runs, data)
        for contender, values in means.items():
            click.echo(f"{name} mean    {contender:22} {_shown(values)}")
        content = {"examples": examples, "test_rows": len(data.rows), "settings": list(settings), "mean": means}
        path = write_result(result_name(model, name, examples, variant), {**content, "paired": _paired(scores), "runs": runs})
        click.echo(f"-> {path}", err=True)


def _outcomes(data: Set, model: str, seed: int, contenders: Sequence[str], settings: Sequence[str]) -> dict[str, Outcome]:
    """What each contender makes of one seed's draw, from what is kept where it is there."""
    train = data.draw(seed)
    found: dict[str, Any] = {}
    for contender in contenders:
        content = _content(data, model, seed, len(train), _CHANGES.get(contender, {}), settings if contender in _TUNED | _PEERS else ())
        make = _OTHERS.get(contender) or (partial(_peer, _PEERS[contender]) if contender in _PEERS else _tuned)
        made = _kept(data, contender, content, train, partial(make, data, parse_task(content, data.name, Path()), train))
        if contender == "untuned":
            found |= {name: {"outputs": outputs, "facts": {}} for name, outputs in (made | _people(data, model)).items()}
        else:
            found[contender] = made
    return {name: Outcome(**made) for name, made in found.items()}


def _content(data: Set, model: str, seed: int, examples: int, changes: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """The task as a file would say it."""
    content = {**data.spec, "backbone": model, "tune": {**data.spec.get("tune", {}), "seed": seed}}
    if "text" in changes and data.label_words:
        changes = {**changes, "text": {**changes["text"], "label_words": data.label_words}}
    if "labels" in changes:
        changes = {**changes, "labels": data.label_words}
    if "search" in changes.get("tune", {}):
        steps = TuneSpec(**content["tune"]).steps_for(examples)
        changes = {**changes, "tune": {"search": {**changes["tune"]["search"], "space": {"tune.steps": [steps // 2, steps]}}}}
    if "template" in changes:
        content["template"], changes = data.lines, {part: values for part, values in changes.items() if part != "template"}
    for part, values in changes.items():
        content[part] = {**content.get(part, {}), **values}
    for setting in settings:
        path, _, value = setting.partition("=")
        part, _, field = path.partition(".")
        content[part] = {**content.get(part, {}), field: json.loads(value) if value[:1] in "0123456789tf[{" else value}
    return content


def _untuned(data: Set, task: TaskSpec, train: pl.DataFrame) -> dict[str, list[str]]:
    """All baselines."""
    with Progress(f"{data.name} untuned") as progress:
        found = baselines(task, train, data.rows, load_backbone(task.backbone), task.evaluate.max_new_tokens, progress.contender)
    return {contender.name: list(contender.predictions) for contender in found}


def _people(data: Set, model: str) -> dict[str, list[str]]:
    """Zero-shot with every other instruction that people wrote, which no draw changes: once for all seeds."""
    if len(data.instructions) < 2:
        return {}
    nothing = data.draw(0).clear()
    content = _content(data, model, 0, 0, {"evaluate": {"few_shot": 0}}, ())
    found: dict[str, list[str]] = _kept(data, "instructions", content, nothing, partial(_by_people, data, content, nothing))
    return found


def _by_people(data: Set, content: dict[str, Any], nothing: pl.DataFrame) -> dict[str, list[str]]:
    """`instruction_1` and so on, in the place of the template's own, which is the first; `nothing`: no training rows are needed."""
    found = {}
    with Progress(f"{data.name} instructions") as progress:
        for number, instruction in enumerate(data.instructions[1:], 1):
            template = [{"system": instruction}, {"user": "{{ source }}"}]
            task = parse_task({**content, "template": template}, data.name, Path())
            backbone, longest = load_backbone(task.backbone), task.evaluate.max_new_tokens
            (zero_shot,) = baselines(task, nothing, data.rows, backbone, longest, progress.contender)
            found[f"instruction_{number}"] = list(zero_shot.predictions)
    return found


def _few_shot(data: Set, task: TaskSpec, train: pl.DataFrame) -> dict[str, Any]:
    """The plain instruction with demonstrations drawn at random."""
    found = baselines(task, train, data.rows, load_backbone(task.backbone), task.evaluate.max_new_tokens)
    (few_shot,) = [contender for contender in found if contender.name == "few_shot"]
    return {"outputs": list(few_shot.predictions), "facts": {}}


def _peer(train_and_predict: Peer, data: Set, task: TaskSpec, train: pl.DataFrame) -> dict[str, Any]:
    began = time.monotonic()
    outputs, numbers = train_and_predict(task, train, data.rows)
    return {"outputs": outputs, "facts": {"parameters": numbers, "seconds": round(time.monotonic() - began, 1)}}


def _tuned(data: Set, task: TaskSpec, train: pl.DataFrame) -> dict[str, Any]:
    backbone = load_backbone(task.backbone)
    began = time.monotonic()
    with Progress(f"{data.name} seed {task.tune.seed}") as progress:
        followed = {"on_step": progress.step, "on_search": progress.search, "on_round": progress.round}
        prompt = tune(task, train, train.clear(), backbone, **followed, checkpoints=_KEPT / "checkpoints")
        seconds = time.monotonic() - began
        outputs = prompt.predict(data.rows, backbone, progress.rows)
    manifest = prompt.manifest
    facts = {
        "parameters": manifest.parameters,
        "seconds": round(seconds, 1),
        "tokens": manifest.tokens,
        "prompt": manifest.task["prompt"],
        "tune": manifest.task["tune"],
    }
    if manifest.tuning:
        facts |= {"steps": manifest.tuning.steps, "last_train_loss": manifest.tuning.train_loss[-1]}
    if manifest.self_training:
        facts["self_training"] = manifest.self_training.model_dump(mode="json")["rounds"]
    if manifest.text:
        facts["text"] = _without_examples(manifest.text)
    if manifest.text_search:
        facts["text_search"] = manifest.text_search.summary()
    if manifest.ladder:
        facts["ladder"] = [rung.model_dump(mode="json") for rung in manifest.ladder.rungs]
        facts |= {"rung": manifest.ladder.best.name, "rung_seconds": dict(prompt.seconds)}
    return {"outputs": outputs, "facts": facts}


def _without_examples(text: TextPrompt) -> dict[str, Any]:
    """A text prompt with the number of its examples in their place: results hold no rows of the data sets."""
    shown = len(text.demonstrations) + sum(map(len, (text.exemplars or {}).values()))
    return text.model_dump(mode="json", exclude={"demonstrations", "exemplars"}) | {"examples": shown}


def _kept(data: Set, contender: str, content: dict[str, Any], train: pl.DataFrame, make: Callable[[], Any]) -> Any:
    """What `make` gives, from a file if it was made before about the very same things."""
    rows = [sorted((field, str(value)) for field, value in row.items()) for row in data.rows]
    about = json.dumps([contender, content, rows, train.drop("_id").rows()], sort_keys=True, default=str)
    key = hashlib.sha256(about.encode()).hexdigest()[:16]
    name = f"{data.name}-{contender}-{content['tune']['seed']}-{key}.json"
    for folder in (_KEPT, _COMMITTED):
        if (folder / name).exists():
            return json.loads((folder / name).read_text(encoding="utf-8"))
    made, path = make(), _KEPT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
    beside.replace(path)
    return made


def _deep_from_text(data: Set, task: TaskSpec, train: pl.DataFrame) -> dict[str, Any]:
    """Words are searched, then a deep prompt is tuned that starts from them, as two task files would do it."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        with Progress(f"{data.name} seed {task.tune.seed}") as progress:
            text = tune(task, train, train.clear(), load_backbone(task.backbone), on_round=progress.round)
        text.save(Path(folder) / "text")
        seconds = time.monotonic() - began
        content = task.model_dump(mode="json", exclude_unset=True, exclude={"text"})
        content["prompt"] = {"kind": "deep", "start": "prompt", "start_from": str(Path(folder) / "text")}
        made = _tuned(data, parse_task(content, data.name, Path()), train)
    assert text.manifest.text  # a text prompt has one
    words = {"text": _without_examples(text.manifest.text), "text_seconds": round(seconds, 1)}
    return {"outputs": made["outputs"], "facts": made["facts"] | words}


def _self_trained(data: Set, task: TaskSpec, train: pl.DataFrame) -> dict[str, Any]:
    """A deep prompt that also learns from texts without labels."""
    assert data.unlabelled  # asked for sets of classes only
    with tempfile.TemporaryDirectory() as folder:
        data.unlabelled(task.tune.seed).write_parquet(Path(folder) / "texts.parquet")
        return _tuned(data, parse_task(task.model_dump(mode="json", exclude_unset=True), data.name, Path(folder)), train)


_OTHERS = {"untuned": _untuned, _FEW_SHOT: _few_shot, "deep_from_text": _deep_from_text, "self_trained": _self_trained}


def _means(runs: Sequence[dict[str, Any]], data: Set) -> dict[str, dict[str, float]]:
    metrics = list(data.measure([""] * len(data.rows)))
    means = {}
    for contender in dict.fromkeys(run["contender"] for run in runs):
        own = [run for run in runs if run["contender"] == contender]
        means[contender] = {metric: statistics.fmean(run[metric] for run in own) for metric in metrics}
        means[contender] |= {f"{metric}_sd": statistics.stdev(run[metric] for run in own) if len(own) > 1 else 0.0 for metric in metrics}
    return means


def _paired(scores: dict[str, list[np.ndarray]]) -> dict[str, dict[str, float]]:
    """Each tuned contender against every other: mean gain over seeds, and a paired bootstrap over the test rows.

    A row's score is its mean over the seeds, so that a p value is about these seeds' mean on other rows.
    """
    mean = {name: np.mean(each, axis=0) for name, each in scores.items()}
    people = [values for name, values in mean.items() if name.startswith("instruction_")]
    if people:  # several instructions that people wrote: a row's score is its mean over them
        mean["instructions"] = np.mean([mean["zero_shot"], *people], axis=0)
        scores = {**scores, "instructions": scores["zero_shot"]}
    generator, found = np.random.default_rng(0), {}
    for ours in [name for name in _TUNED if name in mean]:
        for theirs in mean:
            if theirs != ours and len(scores[theirs]) == len(scores[ours]):
                gains = mean[ours] - mean[theirs]
                draws = generator.integers(len(gains), size=(_RESAMPLES, len(gains)))
                resampled = gains[draws].mean(1)
                found[f"{ours} - {theirs}"] = {
                    "gain": float(gains.mean()),
                    "low": float(np.percentile(resampled, 2.5)),
                    "high": float(np.percentile(resampled, 97.5)),
                    "p_better": float((1 + (resampled <= 0).sum()) / (1 + _RESAMPLES)),
                }
    return found


def _shown(values: dict[str, float]) -> str:
    return "  ".join(f"{metric} {value:.1f}" for metric, value in values.items() if not metric.endswith("_sd"))


if __name__ == "__main__":
    sys.exit(main())
