"""The prompt as a folder of its own: safetensors, JSON and a README that shows how to use it."""

from __future__ import annotations

import shutil
from pathlib import Path

from prompt_core.artifact import folder_beside
from prompt_core.export.package import Published, facts, write_json


def export_folder(published: Published, folder: Path) -> None:
    """Write a prompt where another machine can take it from; all of it or nothing.

    Raises:
        PromptmillError: the folder exists already, or its parent cannot be written to.
    """
    beside = folder_beside(folder)
    try:
        published.prompt.save(beside / "prompt")
        (beside / "prompt" / "README.md").write_text(_readme(published), encoding="utf-8")
        write_json(beside / "prompt" / "evaluation.json", published.evaluation)
        (beside / "prompt").rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _readme(published: Published) -> str:
    tensors = sorted(published.prompt.tensors.items())
    shape = ", ".join(f"`{name}` {list(tensor.shape)}" for name, tensor in tensors) or "no tensor, the prompt is words"
    return f"""# {published.title}

{facts(published)}
```python
from prompt_core import TunedPrompt
prompt = TunedPrompt.load(".")          # checks the digest
prompt.predict(["..."])                 # texts, or mappings with the template's fields
```

`prompt.safetensors` holds {shape}; `manifest.json` says what it was tuned on and how.
"""
