"""What changed between two versions of a text prompt, line by line."""

from __future__ import annotations

from difflib import unified_diff

from prompt_core.artifact import TunedPrompt
from prompt_core.errors import PromptmillError
from prompt_core.parts import all_texts


def difference(before: TunedPrompt, after: TunedPrompt, names: tuple[str, str] = ("before", "after")) -> str:
    """A unified diff of what two text prompts say: template, label words, exemplars and demonstrations; empty where they say the same.

    Args:
        before, after: of kind text.
        names: what stands for them in the head of the diff, such as `reply@3`.

    Raises:
        PromptmillError: one of them is no text prompt.
    """
    return "\n".join(unified_diff(_lines(before), _lines(after), *names, lineterm="", n=2))


def _lines(prompt: TunedPrompt) -> list[str]:
    """One statement per line, whole where it is what a model reads, so that a changed word is one changed line."""
    text = prompt.manifest.text
    if text is None:
        raise PromptmillError(f"prompt {prompt.name}", f"is of kind {prompt.manifest.kind}, which has no words", "Compare text prompts.")
    messages = [("template", text.template)] if isinstance(text.template, str) else [pair for m in text.template for pair in m.items()]
    lines = [line for role, said in messages for line in [f"[{role}]", *said.splitlines()]]
    if prompt.manifest.labels:
        described = {label: prompt.worded.labels.get(label, label) for label in prompt.manifest.labels}
        lines += ["[labels]", *(f"{label}: {' | '.join(all_texts(said))}" for label, said in described.items())]
    for label, own in sorted((text.exemplars or {}).items()):
        lines += [f"[exemplars of {label}]", *(f"{name}: {value}" for fields in own for name, value in fields.items())]
    if text.retrieval:
        lines += ["[retrieval]", *(f"{name}: {value}" for name, value in text.retrieval.model_dump(exclude={"model"}).items())]
        lines.append(f"model: {text.retrieval.model.name}")
    for shown in text.demonstrations:
        lines += ["[demonstration]", *(f"{name}: {value}" for name, value in shown.fields.items()), f"answer: {shown.answer}"]
    return lines
