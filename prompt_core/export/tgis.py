"""`tgis`: the folder that IBM's text-generation-inference server takes a `prefix_id` from.

Its prompt cache (server/text_generation_server/prompt_cache.py of github.com/IBM/text-generation-inference) reads of a folder
in PREFIX_STORE_PATH either a PEFT adapter's `adapter_model.safetensors`, tensor `prompt_embeddings` [tokens, H], or
`decoder.pt`, a pickle. Only the first is written; caikit's own module folder names `.pt` files and is not.
"""

from __future__ import annotations

from pathlib import Path

from prompt_core.export.opened import opened
from prompt_core.export.package import RECIPES, Published, package, refused, write_json
from prompt_core.export.peft import prompt_tuning_config, rows_in_front, write_adapter

_USAGE = f"""
Put this folder into the server's `PREFIX_STORE_PATH`; its name there is the `prefix_id`, letters, digits, `_` and `-`:

```sh
cp -r . "$PREFIX_STORE_PATH/NAME"
grpcurl -plaintext -d '{{"prefix_id": "NAME", "requests": [{{"text": "TEXT"}}]}}' localhost:8033 fmaas.GenerationService/Generate
```

`TEXT` is `root` and `input` of `{RECIPES}`, with each field's text in its place. For caikit, name the folder as `prompt_cache_id`; a
caikit module folder of its own would need a pickle and is not written.
"""


def export_tgis(published: Published, folder: Path) -> None:
    """Write a prompt for the server's prefix store.

    Raises:
        PromptmillError: as `export_peft` for prompt tuning, or the server would put special tokens between prompt and text.
    """
    prompt = opened(published, "tgis")
    rows, root = rows_in_front(prompt, "tgis", "The server puts its prefix before the text; use tokens or vllm.")
    tokenizer = prompt.backbone.tokenizer
    if tokenizer("a").input_ids != tokenizer("a", add_special_tokens=False).input_ids:
        why = "the server lets the tokenizer put its special tokens between prompt and text, where the prompt was tuned without"
        raise refused(published, "tgis", why, "Use tokens, peft or vllm.")
    with package(folder, [published], "TGIS", _USAGE.replace("NAME", published.prompt.name)) as beside:
        write_adapter(beside, prompt_tuning_config(published, rows), rows)
        write_json(beside / RECIPES, [prompt.recipe(root)])
