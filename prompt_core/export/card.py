"""The model card of a version in Markdown: what it does, on what it was tuned, how well it does, and how to use it."""

from __future__ import annotations

from prompt_core.evaluation.record import Evaluation, markdown_table
from prompt_core.export.licence import licence_of
from prompt_core.export.package import Published

_WORST = 5


def model_card(published: Published) -> str:
    """The card; its front matter has the keys that model hubs read. It holds no text of the examples."""
    prompt, manifest = published.prompt, published.prompt.manifest
    task, data, base = prompt.task, manifest.data, manifest.backbone
    licence, evaluation = licence_of(prompt), published.measured
    front = ["---", f"base_model: {base.name}", *([f"license: {licence}"] if licence else []), "library_name: promptmill", "---"]
    about = [
        f"- A prompt of kind `{manifest.kind}`: {manifest.tokens} tokens, {manifest.parameters:,} numbers, {prompt.num_bytes:,} bytes.",
        f"- Base: `{base.name}`{f' at `{base.revision}`' if base.revision else ''} ({base.architecture}, {base.dtype}), "
        f"licence {licence or 'not known'}. It is frozen: the prompt works with these weights alone (`{base.weights[:12]}`).",
        f"- Objective: {task.objective}. Digest: `{prompt.digest}`.",
        *([f"- Answered for by {task.owner}."] if task.owner else []),
    ]
    seen = f"{data.train_rows} examples tuned on, {data.validation_rows} to choose by"
    labels = f"; {len(manifest.labels)} labels: {', '.join(manifest.labels)}" if manifest.labels else ""
    return "\n".join(
        [
            *front,
            "",
            f"# {published.title}",
            "",
            *([task.description, ""] if task.description else []),
            *about,
            "",
            "## Data",
            "",
            f"{seen}{labels}. Test rows were never seen while it was tuned.",
            "",
            "## Results",
            "",
            *_results(evaluation),
            "",
            "## Use",
            "",
            "```python",
            "from prompt_core import PromptStore",
            f'prompt = PromptStore("...").get("{prompt.name}", {published.version})',
            "prompt.predict([...])  # texts, or mappings with the template's fields",
            "```",
            "",
            "## Limits",
            "",
            *_limits(evaluation),
            "",
        ]
    )


def _results(found: Evaluation | None) -> list[str]:
    if found is None:
        return ["Its evaluation was recorded in another form; see `promptmill show`."]
    verdict = "passed" if found.verdict.passed else "did not pass"
    tables = [*markdown_table(found.values), "", *markdown_table(found.gains)]
    return [f"On {found.rows} test rows; the gate {verdict}.", "", *tables, "", *(f"- {reason}" for reason in found.verdict.reasons)]


def _limits(found: Evaluation | None) -> list[str]:
    if found is None:
        return ["- Nothing is recorded."]
    lines = [f"- {found.power}."] if found.power else []
    if found.classified:
        worst = [f"{each.label} (F1 {each.f1:.0f}, {each.rows} rows)" for each in found.classified.worst[:_WORST]]
        lines.append(f"- The weakest classes: {', '.join(worst)}.")
        if tuned := found.classified.certainty.get("tuned"):
            lines.append(f"- Its confidence is off by {tuned.ece:.1f} points on average (ECE).")
    if found.slices:
        own = [(each, each.values["tuned"].value) for each in found.slices]
        slice_, value = min(own, key=lambda pair: pair[1])
        lines.append(f"- The weakest slice: {slice_.column} = {slice_.value}, {found.gate_metric} {value:.1f} on {slice_.rows} rows.")
    return [*lines, "- It was measured on data like that which it was tuned on; `promptmill drift` tells when new inputs are not."]
