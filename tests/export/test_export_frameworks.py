"""A text prompt in other frameworks: each reads its file and asks what we ask."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

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


def run(folder: Path, framework: str) -> dict[str, Any]:
    """The names that the README's lines for a framework define."""
    page = (folder / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(rf"^{framework}:.*?```python\n(.*?)```", page, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    with contextlib.chdir(folder):
        exec(code, names)
    return names


@pytest.mark.parametrize(("template", "demonstrations"), [(CHAT, SOLVED), (LINE, ())])
def test_langchain_asks_what_we_ask(tmp_path: Path, template: Any, demonstrations: Any) -> None:
    pytest.importorskip("langchain_core", reason="not here: pip install langchain-core")
    prompt = exported(tmp_path, template, demonstrations)
    asked = run(tmp_path / "out", "LangChain")["prompt"].invoke(FIELDS)
    roles = {"system": "system", "human": "user", "ai": "assistant"}
    messages = [{"role": roles[message.type], "content": message.content} for message in asked.to_messages()]
    assert prompt.render(FIELDS) == (asked.to_string() if template == LINE else messages)


@pytest.mark.parametrize(("template", "demonstrations"), [(CHAT, SOLVED), (LINE, ())])
def test_mlflow_keeps_and_fills_in_what_we_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: Any, demonstrations: Any) -> None:
    mlflow = pytest.importorskip("mlflow", reason="not here: pip install mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    prompt = exported(tmp_path, template, demonstrations)
    registered = run(tmp_path / "out", "MLflow")["registered"]
    loaded = mlflow.genai.load_prompt(f"prompts:/reply/{registered.version}")
    assert loaded.format(**FIELDS) == prompt.render(FIELDS) and loaded.tags["digest"] == prompt.digest


@pytest.mark.parametrize(("template", "demonstrations"), [(CHAT, SOLVED), (LINE, ())])
def test_dspy_reads_instructions_and_solved_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: Any, demonstrations: Any
) -> None:
    monkeypatch.setenv("DSPY_CACHEDIR", str(tmp_path / "cache"))
    pytest.importorskip("dspy", reason="not here: pip install dspy")
    exported(tmp_path, template, demonstrations)
    program = run(tmp_path / "out", "DSPy, [^:]*")["program"]
    chat = 'Be {kind}, "please".\nBriefly.\n\n{text}\n{a}{more}'
    assert program.signature.instructions == ("Say {it} of {text}, {more}:" if template == LINE else chat)
    assert [dict(demo) for demo in program.demos] == [{**each.fields, "answer": each.answer} for each in demonstrations]
    assert list(program.signature.fields) == ["text", "more", "answer"]


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
