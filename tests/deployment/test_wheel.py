"""The wheel, installed alone in a clean environment: a consumer's job runs, and a new deployment can be made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from helpers import a_task, examples

from prompt_core import PromptStore, tune

ROOT = Path(__file__).parents[2]
PAIRS = [(f"where is my {thing}", "late") for thing in ("box", "lamp")] + [
    (f"the {thing} is broken", "damaged") for thing in ("box", "lamp")
]


def command(*arguments: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # the checkout is not to be found
    run = subprocess.run([*map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert run.returncode == 0, run.stderr
    return run.stdout


def publish_one(store: Path, backbone: Path) -> list[str]:
    """A prompt on a tiny model in a folder; gives what it answers to the messages."""
    task = a_task(backbone, prompt={"kind": "deep", "tokens": 2}, tune={"steps": 2, "batch_examples": 2})
    prompt = tune(task, examples(*PAIRS), examples(*PAIRS))
    prompts = PromptStore(str(store))
    version = prompts.publish(prompt, {"verdict": {"passed": True, "reasons": []}})
    prompts.promote("t", version)
    return prompt.predict([text for text, _ in PAIRS])


@pytest.mark.slow
def test_a_job_runs_with_nothing_but_the_wheel_and_what_it_requires(tmp_path: Path, bert_folder: Path) -> None:
    expected = publish_one(tmp_path / "store", bert_folder)
    (tmp_path / "messages.csv").write_text("\n".join(["text", *(text for text, _ in PAIRS)]))
    command(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT, cwd=tmp_path)
    command(sys.executable, "-m", "venv", tmp_path / "clean", cwd=tmp_path)
    python, (wheel,) = tmp_path / "clean" / "bin" / "python", tmp_path.glob("promptmill-*.whl")
    command(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel, cwd=tmp_path)

    job = (ROOT / "examples" / "consumer" / "batch_job.py").read_text()
    (tmp_path / "job.py").write_text(job)
    said = command(python, "job.py", "--store", "store", "--name", "t", "messages.csv", "out.csv", cwd=tmp_path)
    assert said == "4 rows -> out.csv\n"
    answered = pl.read_csv(tmp_path / "out.csv")
    assert answered["prediction"].to_list() == expected and set(answered["prompt_version"]) == {1}

    found = command(python, "-c", "from importlib.util import find_spec as f; print(f('dagster'), f('pipelines'))", cwd=tmp_path)
    assert found == "None None\n"
    command(tmp_path / "clean" / "bin" / "promptmill", "init", "new", cwd=tmp_path)
    copied = sorted(path.relative_to(tmp_path / "new") for path in (tmp_path / "new" / "pipelines").rglob("*.py"))
    kept = sorted(path.relative_to(ROOT) for path in (ROOT / "pipelines").rglob("*.py") if path.name != "demo.py")
    assert copied == kept and (tmp_path / "new" / "dagster.yaml").read_text() == (ROOT / "deploy" / "dagster.yaml").read_text()
