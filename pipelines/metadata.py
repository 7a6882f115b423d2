"""What people see beside a materialization: numbers (which Dagster plots over time), tables and small pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import dagster as dg
import polars as pl

from prompt_core import PromptStore, TaskSpec
from prompt_core.data import CleaningReport, Splits
from prompt_core.data.address import hide_access
from prompt_core.evaluation import Contender, Evaluation, confusion, intervals, loss_curve, numbered, pareto, power_sentence
from prompt_core.text.record import length_and_worth

if TYPE_CHECKING:  # torch loads in the steps that need it, not with the code location
    from prompt_core import TunedPrompt
    from prompt_core.tuning import Retuned

Metadata = dict[str, Any]

_SAMPLE_ROWS = 8
_LONGEST_CELL = 600  # characters; metadata lives in the event log


def examples_metadata(frame: pl.DataFrame, report: CleaningReport, task: TaskSpec) -> Metadata:
    """Size, columns and a sample of the cleaned rows, and what cleaning removed and why."""
    removed = {
        "empty": report.empty,
        "contradictory": report.conflicting,
        "duplicate": report.duplicates,
        "near duplicate": report.near_duplicates,
    }
    metadata: Metadata = {
        "dagster/row_count": len(frame),
        "dagster/column_schema": dg.TableSchema([dg.TableColumn(name, str(kind).lower()) for name, kind in frame.schema.items()]),
        "source": hide_access(task.data.path, task.data.path) or "questions that the model asks itself",
        "removed rows": sum(removed.values()),
        "sample": table(frame.drop("_id").head(_SAMPLE_ROWS).rows(named=True)),
    }
    if any(removed.values()):
        examples = {reason.replace("_", " ").removesuffix("s"): shown for reason, shown in report.examples.items()}
        metadata["removed"] = table(
            [
                {"reason": reason, "rows": count, "example": next(iter(examples.get(reason, ())), "")}
                for reason, count in removed.items()
                if count
            ]
        )
    return metadata


def splits_metadata(splits: Splits, task: TaskSpec) -> Metadata:
    """Rows on each side, the smallest gain that the test rows can show, and how many of each label."""
    sides = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    metadata: Metadata = {f"{side} rows": len(frame) for side, frame in sides.items()}
    metadata["power"] = power_sentence(task, splits.test["_id"].n_unique())
    if task.objective == "classify":
        counts = {side: dict(frame[task.data.target].value_counts().rows()) for side, frame in sides.items()}
        labels = sorted(counts["train"])
        metadata["labels"] = table([{"label": label, **{side: counts[side].get(label, 0) for side in sides}} for label in labels])
    return metadata


def tuning_metadata(prompt: "TunedPrompt", seconds: float) -> Metadata:
    """How large, how long and how far; the loss curve of what was trained, the candidates of what was searched, the rungs of a ladder."""
    manifest = prompt.manifest
    metadata: Metadata = {
        "prompt": f"{manifest.kind}, {manifest.tokens} tokens, on {manifest.backbone.name}",
        "digest": prompt.digest,
        "parameters": manifest.parameters,
        "bytes": prompt.num_bytes,
        "seconds": round(seconds, 1),
        "truncated rows": manifest.truncated_rows,
    }
    if record := manifest.tuning:
        looks = [(look.step, look.loss) for look in record.validation]
        curve = loss_curve(range(1, record.steps + 1), record.train_loss, [step for step, _ in looks], [loss for _, loss in looks])
        metadata |= {
            "loss": sketch(record.train_loss, looks),
            "loss curve": picture("loss curve", curve),
            "steps": record.steps,
            "kept step": record.kept_step,
            "training loss": record.train_loss[-1],
        }
        if looks:
            metadata["validation loss"] = min(loss for _, loss in looks)
    if manifest.self_training:
        metadata["self-training"] = manifest.self_training.summary()
    if manifest.entities:
        metadata |= {
            "entities": manifest.entities.found,
            "widened entities": manifest.entities.rounded,
            "lost entities": manifest.entities.lost,
        }
    if search := manifest.search:
        metadata |= {
            "settings chosen": search.summary(),
            "candidates": dg.MetadataValue.md(search.markdown()),
            "search score": search.best.score,
            "search prompt-steps": search.prompt_steps,
            "search tokens": search.tokens,
            "search ended by": search.ended,
        }
    if ladder := manifest.ladder:
        metadata |= {"rung": ladder.best.name, "ladder": dg.MetadataValue.md(ladder.markdown(prompt.seconds))}
    return metadata | text_metadata(prompt)


def retuning_metadata(retuned: "Retuned", together: int) -> Metadata:
    """Which start won and by how much, and how many prompts shared the seconds."""
    losses = {f"validation loss, {start} start": loss for start, loss in retuned.losses.items()}
    started = {"started from": retuned.prompt.manifest.started_from} if retuned.prompt.manifest.started_from else {}
    return {
        "start": retuned.start,
        "choice of start": retuned.why,
        **losses,
        **started,
        "tuned together": together,
        "trained tokens": retuned.tokens,
    }


def text_metadata(prompt: "TunedPrompt") -> Metadata:
    """Of a text prompt what it says; where words were searched, every candidate, and the best ones by length."""
    text, search = prompt.manifest.text, prompt.manifest.text_search
    metadata: Metadata = {"text": dg.MetadataValue.md(f"```\n{text.page(prompt.task)}\n```")} if text else {}
    if not search:
        return metadata
    tried = [length_and_worth(found) for found in search.finalists]
    front = [length_and_worth(search.tried[number]) for number in search.pareto]
    of_text = "text " if prompt.manifest.search else ""  # a ladder has two searches
    return metadata | {
        "text search": search.summary(),
        f"{of_text}candidates": dg.MetadataValue.md(search.markdown()),
        "Pareto front": picture("value by tokens of the prompt", pareto(tried, front, search.judged_by)),
        f"{of_text}search tokens": search.tokens,
        f"{of_text}search dollars": search.dollars,
        f"{of_text}search ended by": search.ended,
    }


def baselines_metadata(contenders: Sequence[Contender], task: TaskSpec, splits: Splits, known: bool) -> Metadata:
    """Who was measured on how many rows, and some of their answers."""
    from prompt_core.evaluation.wanted import asked_once

    samples = asked_once(task, splits.test)[0].head(_SAMPLE_ROWS).rows(named=True)
    answers = [{contender.name: contender.predictions[number] for contender in contenders} for number in range(len(samples))]
    target = task.data.target
    return {
        "contenders": table([{"contender": contender.name, "role": contender.kind} for contender in contenders]),
        "measured": "taken again: splits, model and template are what they were" if known else "now",
        "test rows": len(splits.test),
        "samples": table([{**found, **({"wanted": row[target]} if target else {})} for row, found in zip(samples, answers, strict=True)]),
    }


def evaluation_metadata(evaluation: Evaluation, task: TaskSpec, splits: Splits, prompt: "TunedPrompt") -> Metadata:
    """Every contender with its interval and the tuned prompt's gain, the verdict, and outputs to look at."""
    metadata: Metadata = {
        "verdict": ("passed" if evaluation.verdict.passed else "failed") + f" ({evaluation.gate_metric})",
        "reasons": dg.MetadataValue.md("\n".join(f"- {reason}" for reason in evaluation.verdict.reasons)),
        "contenders": table([_contender(evaluation, number) for number in range(len(evaluation.contenders))]),
        "intervals": picture("values with 95 % intervals", intervals(evaluation)),
        "samples": table([_sample(evaluation, number) for number in range(len(evaluation.samples))]),
        "test rows": evaluation.rows,
        "prompt digest": evaluation.prompt_digest,
        **{f"tuned {metric}": measured.value for metric, measured in evaluation.tuned.metrics.items()},
    }
    if evaluation.distilled:
        metadata |= distilled_metadata(evaluation, task, splits, prompt)
    if found := evaluation.classified:
        metadata["confusion"] = picture("true labels by predicted ones", confusion(*found.pairs, found.labels))
        metadata |= {"labels in the picture": names} if (names := numbered(found.labels)) else {}
    return metadata


def distilled_metadata(evaluation: Evaluation, task: TaskSpec, splits: Splits, prompt: "TunedPrompt") -> Metadata:
    """What the prompt saves against the context that it stands for. The seconds are measured here: an evaluation has no clock."""
    from prompt_core.backbone import load_backbone
    from prompt_core.evaluation.distilled import latency

    found = evaluation.distilled
    assert found is not None  # the caller has looked
    seconds = latency(task, prompt, splits, load_backbone(task.backbone, task.folder))
    return {
        "tokens before": found.tokens_before,
        "tokens after": found.tokens_after,
        "keys and values before, bytes": found.cache_bytes_before,
        "keys and values after, bytes": found.cache_bytes_after,
        **{f"divergence of {name}, nats per token": value for name, value in found.divergence.items()},
        **{f"seconds per request {name}": value for name, value in seconds.items()},
    }


def publication_metadata(store: PromptStore, prompt: "TunedPrompt", version: int, went_live: bool) -> Metadata:
    """What a consumer asks for, and what it gets; whether that is by this run, or was so before."""
    code = f'from prompt_core import PromptStore\nprompt = PromptStore("{store.url}").get("{prompt.name}")\nprompt.predict([...])'
    return {
        "version": version,
        "alias": "production",
        "went live": went_live,
        "digest": prompt.digest,
        "published": store.record(prompt.name, version).published,
        "store": dg.MetadataValue.path(store.url),
        "use": dg.MetadataValue.md(f"```python\n{code}\n```"),
    }


def report_metadata(evaluation: Evaluation, place: Path) -> Metadata:
    """Where the page is."""
    return {
        "page": dg.MetadataValue.path(str(place)),
        "open": dg.MetadataValue.url(place.as_uri()),
        "verdict": "passed" if evaluation.verdict.passed else "failed",
        "prompt digest": evaluation.prompt_digest,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> dg.TableMetadataValue:
    """Rows with the same keys as a table; long texts are cut."""
    kinds = {int: "int", float: "float"}
    columns = [dg.TableColumn(name, kinds.get(type(value), "string")) for name, value in (rows[0] if rows else {}).items()]
    records = [dg.TableRecord({name: _cell(value) for name, value in row.items()}) for row in rows]
    return dg.MetadataValue.table(records, dg.TableSchema(columns))


def picture(alternative: str, data_uri: str) -> dg.MarkdownMetadataValue:
    """An image, which the UI shows when it is clicked."""
    return dg.MetadataValue.md(f"![{alternative}]({data_uri})")


def sketch(train_loss: Sequence[float], validation: Sequence[tuple[int, float]]) -> dg.MarkdownMetadataValue:
    """The loss of training (grey) and validation (blue) without a scale. The UI shows Markdown in place only below 1,000 characters."""
    steps, losses = len(train_loss), [*train_loss, *(loss for _, loss in validation)]
    lowest, height = min(losses), (max(losses) - min(losses)) or 1.0

    def line(points: Sequence[tuple[int, float]], colour: str, most: int) -> str:
        kept = points[:: -(-len(points) // most) or 1]
        path = " ".join(f"{400 * step // steps},{88 - 86 * (loss - lowest) / height:.0f}" for step, loss in kept)
        return f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='2'/>"

    lines = line(list(enumerate(train_loss, start=1)), "silver", 40) + line(validation, "teal", 20)
    image = f"<svg xmlns='http://www.w3.org/2000/svg' width='400' height='90'>{lines}</svg>"
    in_link = quote(image, safe="/:=', -")
    return dg.MetadataValue.md(f"![loss](<data:image/svg+xml,{in_link}>)")


def _contender(evaluation: Evaluation, number: int) -> Metadata:
    result = evaluation.contenders[number]
    row: Metadata = {"contender": result.name, "role": result.kind}
    for metric, found in result.metrics.items():
        row[metric] = f"{found.value:.1f} [{found.low:.1f}, {found.high:.1f}]"
    against = evaluation.comparisons.get(result.name, {}).get(evaluation.gate_metric)
    row[f"tuned gains {evaluation.gate_metric}"] = f"{against.gain:+.1f}" if against else ""
    row["p"] = ("< 0.0001" if against.p_better < 0.0001 else f"{against.p_better:.4f}") if against else ""
    return row


def _sample(evaluation: Evaluation, number: int) -> Metadata:
    """Before (the untuned model) and after (the tuned prompt), beside what was wanted."""
    sample = evaluation.samples[number]
    before = next((result.name for result in evaluation.contenders if result.kind == "untuned"), None)
    outputs = {name: sample.outputs[name] for name in (before, evaluation.tuned.name) if name is not None}
    return {"input": "\n".join(sample.input.values()), **outputs, "wanted": sample.target}


def _cell(value: Any) -> Any:
    return value[: _LONGEST_CELL - 1] + "…" if isinstance(value, str) and len(value) > _LONGEST_CELL else value
