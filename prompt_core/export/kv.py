"""`kv`: the prompt as keys and values for `generate(past_key_values=...)` of transformers: at run time it costs nothing."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch

from prompt_core.export.base import Base
from prompt_core.export.opened import opened
from prompt_core.export.package import RECIPES, Published, package, write_json

CACHE = "kv.safetensors"
_USAGE = f"""
```python
import json
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

kv, prompt = load_file("{CACHE}"), json.load(open("{RECIPES}"))[0]
BASE
model, tokenizer = AutoModelForCausalLM.from_pretrained(**base), AutoTokenizer.from_pretrained(**base)
fields = FIELDS
text = "".join(part["text"] if "text" in part else fields[part["field"]] for part in prompt["input"])
ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids

cache = DynamicCache()
for layer, (keys, values) in enumerate(zip(kv["keys"], kv["values"])):  # each [1, heads, tokens, dim]
    cache.update(keys.to(model.dtype), values.to(model.dtype), layer)
behind = torch.cat([ids.new_zeros(1, TOKENS), ids], 1)  # ids in the prompt's place are never read
cache.batch_repeat_interleave(prompt["num_beams"])
settings = {{"max_new_tokens": prompt["max_new_tokens"], "num_beams": prompt["num_beams"], "do_sample": False}}
settings |= {{"attention_mask": torch.ones_like(behind), "past_key_values": cache, "eos_token_id": prompt["stop_token_ids"]}}
answer = model.generate(behind, **settings)[0, behind.shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True).partition(prompt["stop"])[0])
```NOTE

`generate` appends to the cache it is given: make one per call, or copy it. `keys` and `values` are float32
[layers, 1, heads, tokens, dim], with positions (RoPE) applied: the text behind them starts at position TOKENS.
"""


def export_kv(published: Published, folder: Path) -> None:
    """Write a prompt's keys and values; a soft prompt is lowered.

    Raises:
        PromptmillError: as `opened`; the prompt has soft tokens behind its first field; or the folder cannot be written.
    """
    prompt = opened(published, "kv")
    state = prompt.lowered("kv")
    cache = {
        name: part.transpose(1, 2)[:, None].float().cpu().contiguous() for name, part in (("keys", state.keys), ("values", state.values))
    }
    base = Base.of(published.prompt)
    usage = _USAGE.replace("BASE", base.arguments).replace("NOTE", base.arguments_note).replace("TOKENS", str(state.keys.shape[1]))
    fields = str(dict.fromkeys(prompt.encoding.fields, "..."))
    with package(folder, [published], "transformers' cache", usage.replace("FIELDS", fields)) as beside:
        safetensors.torch.save_file(cache, beside / CACHE)
        write_json(beside / RECIPES, [prompt.recipe("")])
