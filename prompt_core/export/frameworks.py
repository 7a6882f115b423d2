"""A text prompt in the files of other frameworks, written as their formats say: none of them is needed for it.

What a framework cannot say as it was proven gets no file: a text with `{{`, where that means a field; a form without chat messages.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from prompt_core.export.package import to_json
from prompt_core.text.spec import TEMPLATE_CODE

OPEN, CLOSE = "\ue000", "\ue001"  # around a field's name while the prompt is written down; no text means them
Shown = str | list[dict[str, str]]  # what a model reads, with marked names in place of the fields

_FIELD = re.compile(f"{OPEN}(.*?){CLOSE}")
_LANGCHAIN_ROLES = {"system": "System", "user": "Human", "assistant": "AI"}
_LANGCHAIN = """
LangChain: `prompt.invoke(fields)` of

```python
from pathlib import Path
from langchain_core.load import loads
prompt = loads(Path("langchain.json").read_text(), allowed_objects="core")
```
"""
_MLFLOW = """
MLflow: registered, it is filled in by `registered.format(**fields)`, or anywhere by `mlflow.genai.load_prompt`:

```python
import json
import mlflow
registered = mlflow.genai.register_prompt(**json.load(open("mlflow.json")))
```
"""
_DSPY = """
DSPy, which writes messages of its own around instructions and solved examples, so that what it asks is to be measured again:

```python
import dspy
program = dspy.Predict("SIGNATURE")
program.load("dspy.json")
```
"""
_OLLAMA = """
Ollama: put the base (a GGUF file, a folder, or the name of a model) behind `FROM`, then `ollama create NAME -f Modelfile`. What is
sent as the user's message is `content` of the last message in `prompts.json`, filled in.
"""


def frameworks(name: str, shown: Shown, solved: Sequence[Mapping[str, str]], tags: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """What each framework that can say the prompt reads of it.

    Args:
        name: of the prompt.
        shown: what a model reads for an input.
        solved: its demonstrations, each with the fields and `answer`.
        tags: what MLflow keeps with it.

    Returns:
        Texts by the name of their file, and how they are used, in Markdown.
    """
    files, usage = {"langchain.json": to_json(_langchain(shown))}, _LANGCHAIN
    texts = [shown] if isinstance(shown, str) else [message["content"] for message in shown]
    if not any(map(TEMPLATE_CODE.search, texts)):
        files["mlflow.json"] = to_json({"name": name, "template": _mlflow(shown), "tags": dict(tags)})
        usage += _MLFLOW
    fields = list(dict.fromkeys(_FIELD.findall("".join(texts))))
    if "answer" not in fields:
        files["dspy.json"] = to_json(_dspy(shown, fields, solved))
        usage += _DSPY.replace("SIGNATURE", f"{', '.join(fields)} -> answer")
    if (modelfile := _modelfile(shown)) is not None:
        files["Modelfile"] = modelfile
        usage += _OLLAMA.replace("NAME", name)
    return files, usage


def _langchain(shown: Shown) -> dict[str, Any]:
    """A `PromptTemplate` or `ChatPromptTemplate` as `langchain_core.load.dumps` writes it, with f-strings."""
    if isinstance(shown, str):
        return _constructed("prompt", "PromptTemplate", **_f_string(shown))
    messages = [
        _constructed("chat", f"{_LANGCHAIN_ROLES[message['role']]}MessagePromptTemplate", prompt=_langchain(message["content"]))
        for message in shown
    ]
    fields = sorted({field for message in shown for field in _FIELD.findall(message["content"])})
    return _constructed("chat", "ChatPromptTemplate", input_variables=fields, messages=messages)


def _f_string(text: str) -> dict[str, Any]:
    template = text.replace("{", "{{").replace("}", "}}").replace(OPEN, "{").replace(CLOSE, "}")
    return {"input_variables": sorted(set(_FIELD.findall(text))), "template": template, "template_format": "f-string"}


def _constructed(module: str, kind: str, **arguments: Any) -> dict[str, Any]:
    return {"lc": 1, "type": "constructor", "id": ["langchain", "prompts", module, kind], "kwargs": arguments}


def _mlflow(shown: Shown) -> Any:
    if isinstance(shown, str):
        return _FIELD.sub(r"{{ \1 }}", shown)
    return [{"role": message["role"], "content": _mlflow(message["content"])} for message in shown]


def _dspy(shown: Shown, fields: Sequence[str], solved: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """The state of a `dspy.Predict`: as instructions the system message and how an input is asked."""
    asked = [shown] if isinstance(shown, str) else [m["content"] for m in shown if m["role"] == "system" or m is shown[-1]]
    described = [{"prefix": f"{name}:", "description": f"${{{name}}}"} for name in (*fields, "answer")]
    signature = {"instructions": _FIELD.sub(r"{\1}", "\n\n".join(asked)), "fields": described}
    return {"traces": [], "train": [], "demos": list(solved), "signature": signature, "lm": None, "metadata": {"dependency_versions": {}}}


def _modelfile(shown: Shown) -> str | None:
    """System message and solved examples; None where there are none, they are no messages, have fields or end a quoted text."""
    before = [] if isinstance(shown, str) else shown[:-1]
    if not before or any(_FIELD.search(message["content"]) or '"""' in message["content"] for message in before):
        return None
    lines = ["FROM /path/to/the/base", "PARAMETER temperature 0"]
    for message in before:
        kind = "SYSTEM" if message["role"] == "system" else f"MESSAGE {message['role']}"
        lines.append(f'{kind} """{message["content"]}"""')
    return "\n".join(lines) + "\n"
