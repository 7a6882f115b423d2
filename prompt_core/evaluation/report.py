"""The report of a version: one HTML page with all that was measured, for people, without anything from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from prompt_core.artifact import TunedPrompt
from prompt_core.evaluation.curves import abstention_curve, calibration_curve
from prompt_core.evaluation.glyphs import numbered
from prompt_core.evaluation.plots import confusion, loss_curve
from prompt_core.evaluation.record import Evaluation
from prompt_core.evaluation.wording import wording_changes
from prompt_core.text.record import TextSearchRecord

REPORT = "report.html"
_MOST_CLASSES = 15
_LONGEST_CELL = 300


def render_report(evaluation: Evaluation, prompt: TunedPrompt, live: TunedPrompt | None = None) -> str:
    """The page. Same arguments, same page.

    Args:
        evaluation: of `prompt`.
        live: the version in production when it was evaluated; of two prompts in words the change is shown.
    """
    manifest, found = prompt.manifest, evaluation.classified
    search = manifest.search or manifest.text_search
    return _template().render(
        evaluation=evaluation,
        task=prompt.task,
        manifest=manifest,
        live=live,
        intervals=[(metric, _bars(evaluation, metric)) for metric in evaluation.tuned.metrics],
        slices=_slice_grid(evaluation),
        classes=_class_grid(evaluation),
        confusion=confusion(*found.pairs, found.labels) if found else None,
        numbered=numbered(found.labels) if found else "",
        trust=_trust_grid(evaluation),
        calibration=calibration_curve(found.certainty) if found and found.certainty else None,
        abstention=abstention_curve(found.certainty) if found and found.certainty else None,
        cases_title="Most confident mistakes" if found else "Outputs that changed most",
        loss=_loss(prompt),
        search=_search_grid(prompt),
        search_summary=search.summary() if search else "",
        wording=wording_changes(prompt, live),
        cost=_cost(evaluation, prompt),
        lineage=_lineage(evaluation, prompt, live),
    )


def write_report(path: str | Path, evaluation: Evaluation, prompt: TunedPrompt, live: TunedPrompt | None = None) -> None:
    """Write the page so that whoever looks sees the old file or the whole new one."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(render_report(evaluation, prompt, live), encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@cache
def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("prompt_core.evaluation")
    spaces: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, **spaces)
    return environment.get_template("report.html.j2")


def _bars(evaluation: Evaluation, metric: Any) -> list[dict[str, Any]]:
    """Every contender's interval of one metric, on the common range from 0 to 100."""
    measured = [(result, result.metrics[metric]) for result in evaluation.contenders]
    low, high = min(m.low for _, m in measured), max(m.high for _, m in measured)
    edge = 0.05 * (high - low) or 1.0

    def place(value: float) -> str:
        return f"{100 * (value - low + edge) / (high - low + 2 * edge):.2f}"

    return [
        {
            "name": result.name,
            "style": "tuned" if result.kind == "tuned" else "plain",
            "text": f"{m.value:.1f} [{m.low:.1f}, {m.high:.1f}]",
            **{name: place(value) for name, value in m.model_dump().items()},
        }
        for result, m in measured
    ]


def _slice_grid(evaluation: Evaluation) -> list[list[str]]:
    if not evaluation.slices:
        return []
    names = sorted(evaluation.slices[0].values, key=lambda name: name != evaluation.tuned.name)  # its own first
    rows = []
    for each in evaluation.slices:
        measured = [each.values[name] for name in names]
        cells = [f"{m.value:.1f} [{m.low:.1f}, {m.high:.1f}]" for m in measured]
        rows.append([f"{each.column} = {each.value}", str(each.rows), *cells])
    return [["slice", "rows", *names], *rows]


def _class_grid(evaluation: Evaluation) -> list[list[str]]:
    if not evaluation.classified:
        return []
    worst = evaluation.classified.worst[:_MOST_CLASSES]
    before = ["recall in production"] if any(each.recall_before is not None for each in worst) else []
    rows = [
        [
            each.label,
            str(each.rows),
            *(f"{value:.1f}" for value in (each.f1, each.precision, each.recall)),
            *([] if not before else ["" if each.recall_before is None else f"{each.recall_before:.1f}"]),
        ]
        for each in worst
    ]
    return [["class", "rows", "F1", "precision", "recall", *before], *rows]


def _trust_grid(evaluation: Evaluation) -> list[list[str]]:
    found = evaluation.classified.certainty if evaluation.classified else {}
    if not found:
        return []
    scoped = ["in scope or not, AUROC"] if any(each.in_scope_auroc is not None for each in found.values()) else []
    rows = []
    for name, each in found.items():
        half = min(each.answered, key=lambda answered: abs(answered.coverage - 50))
        most = min(each.answered, key=lambda answered: abs(answered.coverage - 80))
        scope = [] if not scoped else ["" if each.in_scope_auroc is None else f"{each.in_scope_auroc:.1f}"]
        rows.append([name, f"{each.ece:.1f}", f"{most.accuracy:.1f}", f"{half.accuracy:.1f}", *scope])
    return [["contender", "ECE", "accuracy, surest 80 %", "accuracy, surest 50 %", *scoped], *rows]


def _loss(prompt: TunedPrompt) -> str | None:
    record = prompt.manifest.tuning
    if record is None or not record.train_loss:
        return None
    looks = record.validation
    return loss_curve(range(1, record.steps + 1), record.train_loss, [look.step for look in looks], [look.loss for look in looks])


def _search_grid(prompt: TunedPrompt) -> list[list[str]]:
    """Every candidate of a search for settings or for words, the best first."""
    if prompt.manifest.search:
        return prompt.manifest.search.grid()
    return _tried_words(prompt.manifest.text_search) if prompt.manifest.text_search else []


def _tried_words(search: TextSearchRecord) -> list[list[str]]:
    rows = []
    order = sorted(enumerate(search.tried), key=lambda pair: (pair[0] != search.chosen, -pair[1].rows, -(pair[1].value or 0.0), pair[0]))
    for number, tried in order:
        outcome = "chosen" if number == search.chosen else "the task's own" if number == 0 else ""
        value = "" if tried.value is None else f"{tried.value:.4f}"
        metric = "" if tried.metric is None else f"{tried.metric:.1f}"
        rows.append([str(number), _cut(tried.wording), str(tried.tokens), value, str(tried.rows), metric, outcome])
    return [["candidate", "wording", "tokens", "value", "rows", search.judged_by, "outcome"], *rows]


def _cost(evaluation: Evaluation, prompt: TunedPrompt) -> list[tuple[str, str]]:
    manifest = prompt.manifest
    items = [
        ("prompt", f"{manifest.tokens} tokens, {manifest.parameters:,} numbers, {prompt.num_bytes:,} bytes"),
        *([("input", f"{evaluation.cost.input_tokens:g} tokens on average, without the prompt")] if evaluation.cost else []),
        *(
            (f"answers of {name}", f"{seconds:.1f} s for {evaluation.rows} rows, {1000 * seconds / evaluation.rows:.1f} ms each")
            for name, seconds in evaluation.seconds.items()
        ),
    ]
    if record := manifest.tuning:
        items.append(("tuning", f"{record.steps} steps, that of step {record.kept_step} kept"))
    if manifest.self_training:
        items.append(("self-training", manifest.self_training.summary()))
    if search := manifest.search:
        items.append(("search", f"{len(search.trials)} trials, {search.prompt_steps:,} prompt-steps, {search.tokens:,} tokens"))
    if words := manifest.text_search:
        items.append(("search", f"{len(words.tried)} candidates, {words.tokens:,} tokens, {words.dollars:g} dollars"))
    return items


def _lineage(evaluation: Evaluation, prompt: TunedPrompt, live: TunedPrompt | None) -> list[tuple[str, str]]:
    manifest, data = prompt.manifest, prompt.manifest.data
    base = manifest.backbone
    leaked = evaluation.leaked
    return [
        ("prompt", evaluation.prompt_digest),
        ("base", f"{base.name}{f' at {base.revision}' if base.revision else ''}, {base.architecture}, {base.dtype}"),
        ("base weights", base.weights),
        ("train", f"{data.train_rows} rows, {data.train}"),
        ("validation", f"{data.validation_rows} rows, {data.validation}"),
        *([("unlabelled", f"{data.unlabelled_rows} rows, {data.unlabelled}")] if data.unlabelled else []),
        ("test", f"{evaluation.rows} rows"),
        *([("leakage", _leakage_line(leaked.exact, leaked.near, leaked.copied))] if leaked else []),
        *([("started from", manifest.started_from)] if manifest.started_from else []),
        *([("distilled from", f"{manifest.distilled.tokens} tokens, {manifest.distilled.teacher}")] if manifest.distilled else []),
        *([("live version", live.digest)] if live else []),
        *([("truncated rows", str(manifest.truncated_rows))] if manifest.truncated_rows else []),
        ("versions", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())),
        ("tuned on", manifest.device),
    ]


def _leakage_line(exact: int, near: int, copied: Sequence[str]) -> str:
    rows = f"{exact} equal and {near} similar texts stand on two sides" if exact or near else "no text stands on two sides"
    return rows + (f"; the wording repeats of the data: {'; '.join(copied)}" if copied else "")


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_CELL else text[: _LONGEST_CELL - 1] + "…"
