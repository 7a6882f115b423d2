"""Tasks that are tuned in words: the whole chain runs, and what was searched stands beside the asset."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from deployment import a_deployment, run_retune, write_task

TASK = "sorting"
WORDED = {
    "template": [{"system": "Sort the message, and be brief."}, {"user": "{{ text }}"}],
    "text": {"rounds": 1, "together": 4, "demonstrations": 2},
}
AUTO = {"trials": 4, "together": 4, "space": {"tune.steps": [2], "tune.learning_rate": [0.01, 0.02]}}


@pytest.mark.parametrize("kind", ["text", "auto"])
def test_a_task_in_words_shows_its_candidates_its_front_and_its_ladder(tmp_path: Path, llama_folder: Path, kind: str) -> None:
    settings = a_deployment(tmp_path / "d")
    parts: dict[str, Any] = {**WORDED, "backbone": {"name": str(llama_folder), "dtype": "float32"}, "prompt": {"kind": kind}}
    write_task(settings, TASK, **parts, tune={"max_tokens": 96, **({"search": AUTO} if kind == "auto" else {})})
    with dg.DagsterInstance.ephemeral() as instance:
        result = run_retune(settings, instance, TASK)
        metadata = {name: entry.value for name, entry in result.asset_materializations_for_node("tuned_prompt")[0].metadata.items()}
        prompt = result.output_for_node("tuned_prompt")
        assert result.asset_materializations_for_node("evaluation")
    of_text = "text " if kind == "auto" else ""
    assert str(metadata[f"{of_text}candidates"]).startswith("| candidate | wording | structure |")
    front = str(metadata["Pareto front"])
    assert front.startswith("![value by tokens of the prompt](data:image/png;base64,") and len(front) < 50_000
    assert ("ladder" in metadata) == (kind == "auto") and ("text" in metadata) == (prompt.manifest.kind == "text")
    if kind == "auto":
        assert str(metadata["ladder"]).count("\n") == 5 and prompt.manifest.ladder.held_out == "validation rows"
