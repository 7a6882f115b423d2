"""`vllm`: a soft prompt's rows as safetensors, and a client that makes `prompt_embeds` requests of them."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch

from prompt_core.export import vllm_client
from prompt_core.export.base import Base
from prompt_core.export.opened import opened
from prompt_core.export.package import RECIPES, Published, package, refused, write_json

_USAGE = """
```python
from vllm_client import Prompt
BASE
prompt = Prompt(base)
request = prompt.request(FIELDS)  # POST it with "model" to /v1/completions of the server
```

The server is `vllm serve FOLDER --enable-prompt-embeds`, where FOLDER is what `base` says.NOTE

In process: `LLM(..., enable_prompt_embeds=True).generate({"prompt_embeds": prompt.embeds(FIELDS)})`. A server with the
tokens of the prompt in its vocabulary (`--format tokens`) needs no client and shares the prompt's cache between requests.
"""


def export_vllm(published: Published, folder: Path) -> None:
    """Write a soft prompt for requests with `prompt_embeds`.

    Raises:
        PromptmillError: as `opened`; the prompt is a deep prefix; the base scales its embeddings; or the folder cannot be written.
    """
    prompt = opened(published, "vllm")
    prompt.refused_if_deep("vllm", "Use peft, kv or folder; a soft prompt can be prompt_embeds.")
    if prompt.backbone.embedding_scale != 1:
        why = "its base scales its embeddings, and servers differ in whether given ones are scaled again"
        raise refused(published, "vllm", why, "Use tokens.")
    base = Base.of(published.prompt)
    fields = ", ".join(f'{name}="..."' for name in prompt.encoding.fields)
    usage = _USAGE.replace("BASE", base.folder).replace("NOTE", base.folder_note).replace("FIELDS", fields)
    with package(folder, [published], "vLLM", usage) as beside:
        safetensors.torch.save_file({"rows": prompt.state.rows.float().cpu().contiguous()}, beside / "prompt_embeds.safetensors")
        (beside / "vllm_client.py").write_bytes(Path(vllm_client.__file__).read_bytes())
        write_json(beside / RECIPES, [prompt.recipe(prompt.root) | {"embedding_tensor": prompt.backbone.embedding_name}])
