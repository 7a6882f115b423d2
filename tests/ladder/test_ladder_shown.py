"""What people see of a ladder: the line and the table of `promptmill show`, and what stands beside the asset."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from climbed import ROWS, ladder_task

from pipelines.metadata import tuning_metadata
from prompt_core import PromptStore, TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.cli import main
from prompt_core.tuning import tune


@pytest.fixture(scope="module")
def climbed(llama: Backbone) -> TunedPrompt:
    assert llama.origin
    return tune(ladder_task(llama.origin), ROWS[:12], ROWS[12:], llama)


def test_the_rungs_are_shown_with_kind_score_tokens_and_seconds(climbed: TunedPrompt, tmp_path: Path) -> None:
    store = PromptStore(tmp_path / "store")
    store.publish(climbed, {"verdict": {"passed": True}})
    store.promote("t", 1)
    shown = CliRunner().invoke(main, ["show", "t", "--store", str(tmp_path / "store")]).output
    ladder = climbed.manifest.ladder
    assert ladder and ladder.summary() in shown
    lines = [line for line in shown.splitlines() if line.startswith("| ")]
    assert lines[0] == "| rung | log loss | accuracy | tokens | steps | tried | seconds | outcome |" and len(lines) == 6
    for rung, line in zip(ladder.rungs, lines[2:], strict=True):
        assert rung.best
        measured = f"| {rung.name} | {rung.best.score:.4f} | {rung.best.accuracy:.1%} | {rung.tokens} | {rung.best.steps} | {rung.tried} |"
        assert line.startswith(measured) and f" {climbed.seconds[rung.name]:.1f} |" in line


def test_the_metadata_of_the_asset_have_ladder_candidates_and_front(climbed: TunedPrompt) -> None:
    metadata = tuning_metadata(climbed, 1.0)
    ladder = climbed.manifest.ladder
    assert ladder and metadata["rung"] == ladder.best.name
    assert metadata["ladder"].value == ladder.markdown(climbed.seconds)
    assert metadata["candidates"].value.startswith("| trial | `prompt.kind` | `prompt.start` |")
    assert metadata["text candidates"].value.startswith("| candidate | wording | structure |")
    front = metadata["Pareto front"].value
    assert front.startswith("![value by tokens of the prompt](data:image/png;base64,") and len(front) < 50_000
