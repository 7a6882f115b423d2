"""`peft`: the folder that `PeftModel.from_pretrained` loads, written as its format says; PEFT itself is not needed for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor

from prompt_core.export.base import Base
from prompt_core.export.opened import Opened, opened
from prompt_core.export.package import RECIPES, Published, package, refused, write_json
from prompt_core.prompts import PromptState
from prompt_core.tokens import soft_ids

PeftType = Literal["prompt_tuning", "prefix_tuning", "cartridge"]
WEIGHTS = "adapter_model.safetensors"
_USAGE = f"""
```python
import json
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
BASE
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(**base), ".")
```NOTE

PEFT puts the prompt in front of every text. What follows it is written as `{RECIPES}` says:

```python
tokenizer, prompt = AutoTokenizer.from_pretrained(**base), json.load(open("{RECIPES}"))[0]
fields = FIELDS
text = prompt["root"] + "".join(part["text"] if "text" in part else fields[part["field"]] for part in prompt["input"])
ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
settings = {{"max_new_tokens": prompt["max_new_tokens"], "num_beams": prompt["num_beams"], "do_sample": False}}
model.generate(**ids, **settings, eos_token_id=prompt["stop_token_ids"])
```

**Padding.** Rows that are padded on the right give exactly the logits of each row alone. Left padding changes them: PEFT ignores position
ids, so that the padding takes positions between prompt and text. `generate` wants left padding: give it one text at a time, or
texts of one length.
"""


def export_peft(published: Published, folder: Path, kind: PeftType | None = None) -> None:
    """Write a PEFT adapter.

    Args:
        published: a prompt of a causal model.
        folder: what to write.
        kind: default: prompt tuning for a soft prompt, prefix tuning for a deep one. A soft prompt as prefix tuning or
            cartridge is lowered: its keys and values under the frozen model.

    Raises:
        PromptmillError: as `opened`; the prompt has soft tokens elsewhere than in front; or the folder cannot be written.
    """
    deep = published.prompt.manifest.kind == "deep"
    kind = kind or ("prefix_tuning" if deep else "prompt_tuning")
    prompt = opened(published, f"peft {kind}")
    if kind == "prompt_tuning":
        weights, root = rows_in_front(prompt, "peft prompt_tuning", "Use --peft-type prefix_tuning for soft tokens before the first field.")
        config = prompt_tuning_config(published, weights)
    else:
        state = prompt.lowered(f"peft {kind}")
        weights, root = flattened(state), ""
        config = _prefix_config(published, kind, state)
    base, fields = Base.of(published.prompt), str(dict.fromkeys(prompt.encoding.fields, "..."))
    usage = _USAGE.replace("BASE", base.arguments).replace("NOTE", base.arguments_note).replace("FIELDS", fields)
    with package(folder, [published], "PEFT", usage) as beside:
        write_adapter(beside, config, weights)
        write_json(beside / RECIPES, [prompt.recipe(root)])


def write_adapter(folder: Path, config: dict[str, Any], weights: Tensor) -> None:
    """adapter_config.json and the one tensor of a prompt learning adapter, float32 [tokens, width]."""
    write_json(folder / "adapter_config.json", config)
    safetensors.torch.save_file({"prompt_embeddings": weights.float().cpu().contiguous()}, folder / WEIGHTS, metadata={"format": "pt"})


def rows_in_front(prompt: Opened, form: str, fix: str) -> tuple[Tensor, str]:
    """The rows [P, H] of a soft prompt that stands before all text, and the text of its root behind them.

    Raises:
        PromptmillError: it is a deep prefix, or text stands before or between its soft tokens.
    """
    prompt.refused_if_deep(form, "Use peft with --peft-type prefix_tuning, or kv.")
    rows = prompt.state.rows
    count = len(rows)
    if tuple(prompt.state.root[:count]) != tuple(soft_ids(count)):
        raise refused(prompt.published, form, "its soft tokens do not all stand before the text", fix)
    return rows, prompt.root.removeprefix("".join(prompt.names()))


def flattened(state: PromptState) -> Tensor:
    """Keys and values as PEFT keeps them: [tokens, layers * (key, value) * heads * dim]."""
    tokens = state.keys.shape[1]
    return torch.stack([state.keys, state.values]).permute(2, 1, 0, 3, 4).reshape(tokens, -1)


def prompt_tuning_config(published: Published, rows: Tensor) -> dict[str, Any]:
    """adapter_config.json of a soft prompt; P-tuning's network is folded into its rows."""
    return _config(published, "PROMPT_TUNING", *rows.shape) | {"prompt_tuning_init": "RANDOM", "tokenizer_name_or_path": None}


def _prefix_config(published: Published, kind: PeftType, state: PromptState) -> dict[str, Any]:
    layers, tokens, heads, dim = state.keys.shape
    config = _config(published, kind.upper(), tokens, heads * dim) | {"num_layers": layers, "num_attention_heads": heads}
    if kind == "cartridge":
        return config | {"num_frozen_tokens": int(published.prompt.task.prompt.sink)}
    return config | {"prefix_projection": False, "encoder_hidden_size": heads * dim}


def _config(published: Published, kind: str, tokens: int, width: int) -> dict[str, Any]:
    base = published.prompt.manifest.backbone
    return {
        "peft_type": kind,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "revision": base.revision,
        "inference_mode": True,
        "num_virtual_tokens": tokens,
        "token_dim": width,
        "num_transformer_submodules": 1,
    }
