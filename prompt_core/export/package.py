"""What every export carries beside its format's own files, and how it appears: all of it or nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prompt_core.artifact import TunedPrompt, folder_beside
from prompt_core.errors import PromptmillError
from prompt_core.evaluation.record import Evaluation
from prompt_core.export.licence import licence_of

RECIPES = "prompts.json"


@dataclass(frozen=True, eq=False)
class Published:
    """A version of the store.

    Attributes:
        prompt: its content.
        version: its number.
        evaluation: what let it through, as `Evaluation` in JSON types.
    """

    prompt: TunedPrompt
    version: int
    evaluation: Mapping[str, Any]

    @property
    def title(self) -> str:
        """`name@version`."""
        return f"{self.prompt.name}@{self.version}"

    @property
    def measured(self) -> Evaluation | None:
        """The evaluation; None where it was recorded in a form of another version of promptmill."""
        try:
            return Evaluation.model_validate(self.evaluation)
        except ValueError:
            return None

    @property
    def predicted(self) -> dict[str, int]:
        """Test rows by the label that the prompt gave them; empty where that is not known."""
        measured = self.measured
        return measured.classified.predicted if measured and measured.classified else {}

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """value, low and high (95 %) of each metric on the test rows."""
        tuned = [c for c in self.evaluation.get("contenders", ()) if c["kind"] == "tuned"]
        return dict(tuned[0]["metrics"]) if tuned else {}


@contextmanager
def package(folder: Path, published: Sequence[Published], form: str, usage: str) -> Iterator[Path]:
    """A new folder beside `folder`, for the format's own files; at the end it gets what every export has and is renamed.

    That is README.md (with `usage`), and per prompt `promptmill/NAME@VERSION/` with manifest, digest and evaluation.

    Raises:
        PromptmillError: `folder` exists already, or its parent cannot be written to.
    """
    beside = folder_beside(folder)
    try:
        yield beside
        for each in published:
            own = beside / "promptmill" / each.title
            own.mkdir(parents=True)
            (own / "manifest.json").write_bytes(each.prompt.manifest.canonical())
            (own / "digest").write_text(each.prompt.digest + "\n", encoding="ascii")
            write_json(own / "evaluation.json", each.evaluation)
        pages = "\n".join(f"## {each.title}\n\n{facts(each)}" for each in published)
        title = ", ".join(each.title for each in published)
        (beside / "README.md").write_text(f"# {title} for {form}\n\n{usage.strip()}\n\n{pages}", encoding="utf-8")
        beside.chmod(0o755)  # mkdtemp gives 0700; an export is for other users too
        beside.rename(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def facts(published: Published) -> str:
    """What a reader must know of a prompt, in Markdown: what it is, its base with licence, its digest and its measured quality."""
    prompt, manifest = published.prompt, published.prompt.manifest
    measured = [f"{name} {m['value']:g} ({m['low']:g} to {m['high']:g})" for name, m in published.metrics.items()]
    rows = published.evaluation.get("rows")
    lines = [
        f"A tuned prompt of kind `{manifest.kind}` ({manifest.tokens} tokens, {manifest.parameters:,} numbers).",
        f"Base: `{manifest.backbone.name}` ({manifest.backbone.architecture}), licence {licence_of(prompt) or 'not known'}.",
        f"Digest: `{prompt.digest}`.",
        f"Measured on {rows} test rows, with 95 % intervals: {', '.join(measured)}." if measured else "Its evaluation names no metric.",
    ]
    if (beams := prompt.task.evaluate.beams) > 1:
        lines.append(f"Measured with {beams} beams: `num_beams={beams}` in transformers gives the same texts, a stack without them others.")
    described = f"{prompt.task.description}\n\n" if prompt.task.description else ""
    return described + "".join(f"- {line}\n" for line in lines)


def to_json(content: Any) -> str:
    """Sorted, indented JSON."""
    return json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def write_json(path: Path, content: Any) -> None:
    """A file of `to_json`."""
    path.write_text(to_json(content), encoding="utf-8")


def refused(published: Published, form: str, why: str, fix: str) -> PromptmillError:
    """The one line that says why a format cannot express a prompt."""
    return PromptmillError(f"export {published.title} as {form}", why, fix)
