"""Where a tuned prompt can run: the table that task files, the search, the gate and the documentation go by. Imports no model."""

from __future__ import annotations

from typing import Literal

from prompt_core.errors import PromptmillError

Stack = Literal["llama.cpp", "ollama", "vllm", "sglang", "transformers", "peft", "tgis", "promptmill"]
Kind = Literal["soft", "deep", "text"]
Form = Literal[
    "soft in front", "soft amid the root", "soft behind a field", "deep", "deep and soft behind a field", "text", "no causal base"
]

_COLUMNS: dict[tuple[str, ...], Stack] = {
    ("llama.cpp", "Ollama"): "ollama",
    ("vLLM", "SGLang"): "sglang",
    ("transformers",): "transformers",
    ("PEFT",): "peft",
    ("TGIS",): "tgis",
    ("promptmill",): "promptmill",
}
_DESCRIBED: dict[Form, str] = {
    "soft in front": "soft, in place of the root or in front of it (P-tuning too: its network is folded)",
    "soft amid the root": "soft tokens amid the root",
    "soft behind a field": "soft tokens behind a field",
    "deep": "deep prefix",
    "deep and soft behind a field": "deep prefix and soft tokens behind a field",
    "text": "text",
    "no causal base": "any, on an encoder or an encoder-decoder",
}

_SOFT: dict[Stack, tuple[str, ...]] = {
    "llama.cpp": ("tokens --gguf",),
    "ollama": ("tokens --gguf",),
    "vllm": ("tokens", "vllm"),
    "sglang": ("tokens", "vllm"),
    "transformers": ("tokens", "kv"),
    "peft": ("peft",),
    "tgis": ("tgis",),
}
_WORDS: dict[Stack, tuple[str, ...]] = {
    "llama.cpp": ("text",),
    "ollama": ("text",),
    "vllm": ("text",),
    "sglang": ("text",),
    "transformers": ("text", "kv"),
}
_EVERYWHERE: dict[Stack, tuple[str, ...]] = {"promptmill": ("folder",)}
# Which formats take a form of prompt to a stack, the usual one first; a stack that is not named cannot run it.
RUNS: dict[Form, dict[Stack, tuple[str, ...]]] = {
    "soft in front": _SOFT | _EVERYWHERE,
    "soft amid the root": _SOFT | {"peft": ("peft --peft-type prefix_tuning",), "tgis": ()} | _EVERYWHERE,
    "soft behind a field": _SOFT | {"transformers": ("tokens",), "peft": (), "tgis": ()} | _EVERYWHERE,
    "deep": {"transformers": ("kv",), "peft": ("peft",), **_EVERYWHERE},
    "deep and soft behind a field": _EVERYWHERE,
    "text": {**_WORDS, **_EVERYWHERE},
    "no causal base": _EVERYWHERE,
}
# Where `num_beams` gives the texts that our beam search writes.
_BEAMS: tuple[Stack, ...] = ("transformers", "peft", "promptmill")
_FORMS: dict[Kind, tuple[Form, ...]] = {
    "soft": ("soft in front", "soft amid the root", "soft behind a field"),
    "deep": ("deep", "deep and soft behind a field"),
    "text": ("text",),
}


def kinds_for(stacks: tuple[Stack, ...]) -> tuple[Kind, ...]:
    """The kinds of which some form runs in every one of the stacks."""
    return tuple(kind for kind, forms in _FORMS.items() if any(all(RUNS[form].get(stack) for stack in stacks) for form in forms))


def formats_for(form: Form, stack: Stack) -> tuple[str, ...]:
    """The formats that take a prompt to a stack, the usual one first; none where it cannot run."""
    return RUNS[form].get(stack, ())


def check_kind(kind: Kind, stacks: tuple[Stack, ...], where: str) -> None:
    """Refuse a kind of prompt that cannot run where it has to.

    Raises:
        PromptmillError: names the stack and the kinds that run in all of them.
    """
    for stack in stacks:
        if not any(RUNS[form].get(stack) for form in _FORMS[kind]):
            fitting = kinds_for(stacks)
            fix = f"Write prompt: {{kind: {' or '.join(fitting)}}}." if fitting else "No kind runs in all of them; take one out."
            raise PromptmillError(where, f"kind {kind} cannot run in {stack}, which deploy names", fix)


def check_beams(stacks: tuple[Stack, ...], where: str) -> None:
    """Refuse beam search where a stack writes other texts than those that were measured.

    Raises:
        PromptmillError: names the stack.
    """
    for stack in stacks:
        if stack not in _BEAMS:
            what = f"more than one, but {stack}, which deploy names, is asked for the likeliest token after token"
            raise PromptmillError(where, what, "Write beams: 1, so that what is measured is what runs there.")


def check_base(causal: bool, stacks: tuple[Stack, ...], where: str, base: str) -> None:
    """Refuse a base whose prompts no other stack runs.

    Raises:
        PromptmillError: names the stack.
    """
    for stack in stacks:
        if not causal and not RUNS["no causal base"].get(stack):
            what = f"{base} is no causal model, and its prompts cannot run in {stack}, which deploy names"
            raise PromptmillError(where, what, "Use a causal model, or deploy: [promptmill].")


def table() -> str:
    """The whole table in Markdown, as it stands in docs/exports.md."""
    header = ["prompt", *(", ".join(column) for column in _COLUMNS)]
    rows = [[_DESCRIBED[form], *(_cell(formats_for(form, stack)) for stack in _COLUMNS.values())] for form in RUNS]
    lines = ["| " + " | ".join(line) + " |" for line in [header, *rows]]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def _cell(formats: tuple[str, ...]) -> str:
    return ", ".join(f"`{each}`" for each in formats) or "-"
