"""The prompt as a folder of its own: safetensors, JSON and a README that shows how to use it."""

from __future__ import annotations

import shutil
from pathlib import Path

from prompt_core.artifact import TunedPrompt, folder_beside


def export_folder(prompt: TunedPrompt, version: int, folder: Path) -> None:
    """Write a prompt where another machine can take it from; all of it or nothing.

    Raises:
        PromptmillError: the folder exists already, or its parent cannot be written to.
    """
    beside = folder_beside(folder)
    try:
        prompt.save(beside / "prompt")
        (beside / "prompt" / "README.md").write_text(_readme(prompt, version), encoding="utf-8")
        (beside / "prompt").rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _readme(prompt: TunedPrompt, version: int) -> str:
    manifest = prompt.manifest
    shape = ", ".join(f"`{name}` {list(tensor.shape)}" for name, tensor in sorted(prompt.tensors.items()))
    return f"""# {prompt.name}@{version}

{prompt.task.description}

A tuned prompt of kind `{manifest.kind}` ({manifest.tokens} tokens, {manifest.parameters:,} numbers) for the frozen model
`{manifest.backbone.name}` ({manifest.backbone.architecture}). Digest `{prompt.digest}`.

```python
from prompt_core import TunedPrompt
prompt = TunedPrompt.load(".")          # checks the digest
prompt.predict(["..."])                 # texts, or mappings with the template's fields
```

`prompt.safetensors` holds {shape}; `manifest.json` says what it was tuned on and how.
"""
