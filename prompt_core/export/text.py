"""`text`: a text prompt as JSON of chat messages (or one string), for any model behind any interface, and for other frameworks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prompt_core.export.frameworks import CLOSE, OPEN, Shown, frameworks
from prompt_core.export.package import RECIPES, Published, package, refused, write_json
from prompt_core.parts import as_written
from prompt_core.template import BETWEEN, Template
from prompt_core.text.prompt import TextPrompt
from prompt_core.text.spec import TEMPLATE_CODE

_USAGE = f"""
```python
import json
import jinja2

prompt = json.load(open("{RECIPES}"))[0]
fields = FIELDS
fill = lambda text: jinja2.Template(text, keep_trailing_newline=True).render(fields)
asked = [message | {{"content": fill(message["content"])}} for message in prompt.get("messages", [])] or fill(prompt["prompt"])
```

`asked` is what an OpenAI-compatible server takes as `messages`, or as `prompt` where the template is one string; an answer behind
solved examples in such a string ends at `stop`, which the server takes too. `labels` says what a classifier's answers mean; one
that is calibrated names `label_bias`, which is subtracted from the labels' scores (the `label_score` of the log-likelihoods of
their tokens) where a server gives such. Of a label with several answers these count by log-mean-exp. Where `encoder` is named,
that model embeds `asked`: an input belongs to the label whose texts in `labels` and `exemplars` (filled in as inputs are) have
the mean embedding of highest cosine.
"""


def export_text(published: Published, folder: Path) -> None:
    """Write a text prompt down with its fields open; needs no model.

    Raises:
        PromptmillError: the prompt is not of kind text, its template has conditions or loops, or the folder cannot be written.
    """
    manifest = published.prompt.manifest
    if manifest.text is None:
        why = f"it is of kind {manifest.kind}, numbers that no text can say"
        raise refused(published, "text", why, "Use folder; of a soft prompt also tokens or vllm.")
    if manifest.text.retrieval:
        why = "it shows each input demonstrations of its own, which takes their index"
        raise refused(published, "text", why, "Use folder, and TunedPrompt.retrieve and render.")
    template = Template(published.prompt.worded, soft=False)
    if not template.is_plain:
        why = "its template has conditions, loops or filters"
        raise refused(published, "text", why, "Use TunedPrompt.render, which fills them in.")
    shown = published.prompt.render({name: f"{OPEN}{name}{CLOSE}" for name in template.fields})
    usage = _USAGE.replace("FIELDS", str(dict.fromkeys(template.fields, "...")))
    files = dict[str, str]()
    if manifest.text.exemplars is None:  # else the model that reads it embeds it
        solved = [{**each.fields, "answer": each.answer} for each in manifest.text.demonstrations]
        tags = {"promptmill": published.title, "digest": published.prompt.digest}
        files, more = frameworks(published.prompt.name, shown, solved, tags)
        usage += more
    with package(folder, [published], "any model", usage) as beside:
        write_json(beside / RECIPES, [_recipe(published, manifest.text, template, shown)])
        for name, content in files.items():
            (beside / name).write_text(content, encoding="utf-8")


def _recipe(published: Published, text: TextPrompt, template: Template, shown: Shown) -> dict[str, Any]:
    prompt, manifest = published.prompt, published.prompt.manifest
    written: dict[str, Any] = (
        {"prompt": _open(shown)} if isinstance(shown, str) else {"messages": [m | {"content": _open(m["content"])} for m in shown]}
    )
    if isinstance(shown, str) and text.parted:
        written["stop"] = BETWEEN
    recipe = written | {"name": prompt.name, "version": published.version, "digest": prompt.digest, "fields": list(template.fields)}
    if not manifest.labels:
        return recipe | {"max_new_tokens": manifest.max_new_tokens, "num_beams": prompt.task.evaluate.beams}
    from prompt_core.tuning.build import descriptions  # torch loads with it, which texts do without

    bias = {"label_bias": prompt.tensors["label_bias"].tolist()} if "label_bias" in prompt.tensors else {}
    labels = {label: as_written(descriptions(prompt.worded, label)) for label in manifest.labels}
    if text.exemplars is not None:
        return recipe | {"encoder": manifest.backbone.name, "labels": labels, "exemplars": text.exemplars} | bias
    return recipe | {"labels": labels, "label_score": prompt.task.tune.label_score} | bias


def _open(text: str) -> str:
    """A text as a Jinja template: what looks like code in it stays as it is, and fields are open."""
    text = text.replace("{", "{{ '{' }}") if TEMPLATE_CODE.search(text) else text
    return text.replace(OPEN, "{{ ").replace(CLOSE, " }}")
