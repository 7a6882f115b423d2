"""The table over sets: corrected p values, and who is better on how many."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def summary() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("quality_summary", BENCHMARKS / "quality_summary.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module


def test_the_table_counts_the_sets(summary: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "RESULTS", tmp_path)
    gains = {"subj": (5.0, 0.001), "mr_polarity": (1.0, 0.03), "pros_cons": (-2.0, 0.9)}
    for name, (gain, p) in gains.items():
        paired = {"text - zero_shot": {"gain": gain, "p_better": p}, "text - few_shot_8": {"gain": gain, "p_better": p}}
        (tmp_path / f"quality_smollm2_{name}_16.json").write_text(json.dumps({"paired": paired}))
    shown = CliRunner().invoke(summary.main, ["smollm2", *gains]).output
    assert "| subj | +5.0 | 0.0030 | +5.0 | 0.0030 |" in shown and "| mr_polarity | +1.0 | 0.0600 |" in shown
    assert "text against instructions: better on 2 of 3 sets, on 1 with p < 0.05 after Holm" in shown
    refused = CliRunner().invoke(summary.main, ["smollm2", "subj", "--theirs", "deep"])
    assert refused.exit_code == 1 and "subj: no run has both text and deep" in refused.output
