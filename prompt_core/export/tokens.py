"""`tokens`: soft prompts as vocabulary in a Hugging Face folder, which whatever serves the model runs from plain text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from prompt_core.export.licence import base_of
from prompt_core.export.package import RECIPES, Published, package, refused, write_json
from prompt_core.export.vocabulary import Vocabulary, never_chosen, vocabulary_of

_TEXTS = f"""
The base model with soft prompts as tokens of its vocabulary. A text that begins with a prompt's tokens runs that
prompt; texts of several prompts and of none mix in one batch. `{RECIPES}` says how each prompt's text is written:

```python
import json
prompt = json.load(open("{RECIPES}"))[0]
fields = FIELDS
text = prompt["root"] + "".join(part["text"] if "text" in part else fields[part["field"]] for part in prompt["input"])
```

- Send it as a plain completion (`/v1/completions`), not as chat messages, with `add_special_tokens` off: the text is whole.
- Stop at `stop`. Where `labels` are given, the answer is one of their texts, of which a label may have several.
- The new tokens are never the most likely ones: their logit is the mean of all others. When sampling, give
  `suppress_token_ids` a `logit_bias` of -100; transformers does it by itself, as generation_config.json says.
- Give fields without surrounding white space, and take `<|pm:` out of untrusted ones, as you do with `<|im_start|>`.
"""


def export_tokens(published: Sequence[Published], folder: Path) -> None:
    """Write the base with the prompts as tokens: its weights in the precision that the prompts were tuned in, and an untied head.

    Raises:
        PromptmillError: as `vocabulary_of`, or the folder cannot be written.
    """
    added = vocabulary_of(published)
    model = _base(published[0])
    _extend(model, torch.tensor(added.ids), added, published[0])
    settings = model.generation_config
    settings.suppress_tokens = sorted({*(settings.suppress_tokens or ()), *added.ids})
    settings.eos_token_id = sorted({token for each in added.prompts for token in each.encoding.end_of_turn})
    with package(folder, published, "tokens", _usage(added)) as beside:
        model.save_pretrained(beside)
        added.tokenizer.save_pretrained(beside)
        write_json(beside / RECIPES, added.recipes(added.ids[0]))


def usage_of_texts(added: Vocabulary) -> str:
    """How texts are written and sent, with the first prompt's fields as the example."""
    return _TEXTS.replace("FIELDS", str(dict.fromkeys(added.prompts[0].encoding.fields, "...")))


def _usage(added: Vocabulary) -> str:
    run = """
```python
from transformers import pipeline
generate = pipeline("text-generation", ".")
settings = {"max_new_tokens": prompt["max_new_tokens"], "num_beams": prompt["num_beams"], "do_sample": False}
generate(text, **settings, return_full_text=False, add_special_tokens=False)
```
"""
    serve = "\nvLLM and SGLang: `vllm serve .`; for llama.cpp export with `--gguf`.\n\n"
    return usage_of_texts(added) + run + serve + added.texts()


def _base(published: Published) -> Any:
    """The base as transformers loads it, without what a backbone changes in its layers."""
    prompt, base = published.prompt, base_of(published.prompt)
    where: dict[str, Any] = {"trust_remote_code": False} | ({"revision": prompt.manifest.backbone.revision} if base.is_hub else {})
    dtype = getattr(torch, prompt.manifest.backbone.dtype)
    return AutoModelForCausalLM.from_pretrained(base.source, dtype=dtype, use_safetensors=True, **where)


@torch.no_grad()
def _extend(model: Any, ids: Tensor, added: Vocabulary, published: Published) -> None:
    """Give the model the rows, and its head, untied, ones that are never chosen."""
    known = int(ids[0])
    if len(model.get_input_embeddings().weight) <= int(ids[-1]):
        model.resize_token_embeddings(int(ids[-1]) + 1, mean_resizing=False)
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head.weight.data_ptr() == table.weight.data_ptr():
        head.weight = nn.Parameter(table.weight.detach().clone())
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False
    table.weight[ids] = added.rows.to(table.weight.dtype)
    head.weight[ids] = never_chosen(head.weight[:known]).to(head.weight.dtype)
    rows = torch.cat([each.state.rows.cpu() for each in added.prompts]).to(table.weight.dtype)
    if not torch.allclose(table(ids), rows, rtol=2e-2, atol=1e-5):
        raise refused(published, "tokens", "its base changes the rows of its embedding table in a way that is not known", "Use vllm or kv.")
