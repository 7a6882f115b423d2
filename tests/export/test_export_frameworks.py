"""A text prompt in other frameworks: each reads its file and asks what we ask."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from export_builders import EVALUATION
from helpers import a_task
from test_artifact import a_manifest

from prompt_core.artifact import TunedPrompt
from prompt_core.export import Published, export
from prompt_core.text.prompt import Demonstration, TextPrompt

CHAT = ({"system": 'Be {kind}, "please".\nBriefly.'}, {"user": "{{ text }}\n{a}{{ more }}"})
LINE = "Say {it} of {{ text }}, {{ more }}:"
SOLVED = (Demonstration(fields={"text": "One?", "more": "1"}, answer="Two"),)
FIELDS = {"text": "Where {is} it?", "more": "{{ now }}"}


def exported(folder: Path, template: Any, demonstrations: Any = ()) -> TunedPrompt:
    """A prompt of words in the folder `out`."""
    task = a_task("tiny", objective="generate", template=[*template] if isinstance(template, tuple) else template)
    text = TextPrompt(template=template, demonstrations=demonstrations)
    manifest = a_manifest(name="reply", kind="text", tokens=0, parameters=0, text=text, task=task.without_places("tiny"), tuning=None)
    prompt = TunedPrompt(manifest, {})
    export([Published(prompt, 3, EVALUATION)], folder / "out", "text")
    return prompt


def lines(folder: Path, framework: str) -> str:
    """What the README says to run with a framework."""
    page = (folder / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(rf"^{framework}:.*?```python\n(.*?)```", page, re.DOTALL | re.MULTILINE)
    return str(code)


def run(folder: Path, framework: str) -> dict[str, Any]:
    """The names that these lines define."""
    names: dict[str, Any] = {}
    with contextlib.chdir(folder):
        exec(lines(folder, framework), names)
    return names


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an MLflow server."""
    pytest.importorskip("mlflow", reason="not here: make setup-servers")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("mlflow")
    where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command = [sys.executable, "-m", "mlflow", "server", *where, "--artifacts-destination", str(folder / "artifacts")]
    server = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
    try:
        while True:
            with contextlib.suppress(httpx2.TransportError):
                if httpx2.get(f"{address}/health").status_code == 200:
                    break
            assert server.poll() is None and time.monotonic() < deadline, "the MLflow server does not start"
            time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait()


@pytest.mark.slow
@pytest.mark.parametrize(("template", "demonstrations"), [(CHAT, SOLVED), (LINE, ())])
def test_langchain_asks_what_we_ask(tmp_path: Path, template: Any, demonstrations: Any) -> None:
    pytest.importorskip("langchain_core", reason="not here: make setup-servers")
    prompt = exported(tmp_path, template, demonstrations)
    asked = run(tmp_path / "out", "LangChain")["prompt"].invoke(FIELDS)
    roles = {"system": "system", "human": "user", "ai": "assistant"}
    messages = [{"role": roles[message.type], "content": message.content} for message in asked.to_messages()]
    assert prompt.render(FIELDS) == (asked.to_string() if template == LINE else messages)


@pytest.mark.slow
@pytest.mark.parametrize(("template", "demonstrations"), [(CHAT, SOLVED), (LINE, ())])
def test_an_mlflow_server_keeps_and_fills_in_what_we_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracking: str, template: Any, demonstrations: Any
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
    prompt = exported(tmp_path, template, demonstrations)
    registered = run(tmp_path / "out", "MLflow")["registered"]
    loaded = mlflow.genai.load_prompt(f"prompts:/reply/{registered.version}")
    assert loaded.format(**FIELDS) == prompt.render(FIELDS) and loaded.tags["digest"] == prompt.digest


@pytest.fixture(scope="module")
def dspy_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python with DSPy, which needs an older client of OpenAI's than ours."""
    folder = tmp_path_factory.mktemp("dspy") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", "dspy>=3.4,<4"], check=True)
    return folder / "bin" / "python"


_TELL = """
import json
predictor = program.signature
print(json.dumps([predictor.instructions, [dict(demo) for demo in program.demos], list(predictor.fields)]))
"""


@pytest.mark.production
@pytest.mark.parametrize(("template", "demonstrations"), [(CHAT, SOLVED), (LINE, ())])
def test_dspy_reads_instructions_and_solved_examples(tmp_path: Path, dspy_python: Path, template: Any, demonstrations: Any) -> None:
    exported(tmp_path, template, demonstrations)
    code = lines(tmp_path / "out", "DSPy, [^:]*") + _TELL
    environment = {**os.environ, "DSPY_CACHEDIR": str(tmp_path / "cache")}
    ran = subprocess.run([dspy_python, "-c", code], cwd=tmp_path / "out", env=environment, capture_output=True, text=True, check=True)
    instructions, demos, fields = json.loads(ran.stdout.splitlines()[-1])
    chat = 'Be {kind}, "please".\nBriefly.\n\n{text}\n{a}{more}'
    assert instructions == ("Say {it} of {text}, {more}:" if template == LINE else chat)
    assert demos == [{**each.fields, "answer": each.answer} for each in demonstrations]
    assert fields == ["text", "more", "answer"]


def test_ollama_gets_system_message_and_solved_examples(tmp_path: Path) -> None:
    exported(tmp_path, CHAT, SOLVED)
    assert (tmp_path / "out" / "Modelfile").read_text(encoding="utf-8").splitlines() == [
        "FROM /path/to/the/base",
        "PARAMETER temperature 0",
        'SYSTEM """Be {kind}, "please".',
        'Briefly."""',
        'MESSAGE user """One?',
        '{a}1"""',
        'MESSAGE assistant """Two"""',
    ]


def test_what_a_framework_cannot_say_gets_no_file(tmp_path: Path) -> None:
    exported(tmp_path / "code", ({"system": "Write {{ '{{ x }}' }} never."}, {"user": "{{ text }}"}))
    exported(tmp_path / "open", ({"system": "It is about {{ more }}."}, {"user": "{{ text }}"}))
    exported(tmp_path / "line", LINE)
    found = {folder.name: {path.name for path in (folder / "out").iterdir()} for folder in tmp_path.iterdir()}
    always = {"README.md", "promptmill", "prompts.json", "langchain.json", "dspy.json"}
    assert found == {"code": always | {"Modelfile"}, "open": always | {"mlflow.json"}, "line": always | {"mlflow.json"}}
    assert json.loads((tmp_path / "open/out/mlflow.json").read_text())["template"][0]["content"] == "It is about {{ more }}."
