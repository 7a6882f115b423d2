"""The prompt as vocabulary: which tokens and rows a base gets so that plain text spells its soft prompts."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AddedToken, PreTrainedTokenizerBase

from prompt_core.errors import PromptmillError
from prompt_core.export.opened import Opened, opened
from prompt_core.export.package import Published, refused


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The soft tokens of prompts on one base.

    Attributes:
        prompts: in order.
        tokens: names of their soft tokens.
        rows: of the model's embedding table, float32 [tokens, H] on the CPU.
        tokenizer: the base's with the tokens added.
        ids: which it gives them, in a row.
    """

    prompts: tuple[Opened, ...]
    tokens: tuple[str, ...]
    rows: Tensor
    tokenizer: PreTrainedTokenizerBase
    ids: list[int]

    def recipes(self, first_id: int) -> list[dict[str, Any]]:
        """A recipe per prompt, for a vocabulary in which the tokens have ids from `first_id` on."""
        new = list(range(first_id, first_id + len(self.tokens)))
        return [each.recipe(each.root) | {"suppress_token_ids": new} for each in self.prompts]

    def texts(self) -> str:
        """The whole text of each prompt in Markdown, {field} where a field's text stands."""
        pages = []
        for each in self.prompts:
            parts = [each.named(text) if kind == "text" else f"{{{text}}}" for kind, text in each.encoding.input_parts]
            pages.append(f"Text of {each.published.title}:\n\n```text\n{each.root}{''.join(parts)}\n```\n")
        return "\n".join(pages)


def vocabulary_of(published: Sequence[Published]) -> Vocabulary:
    """Open soft prompts of one base, and prove that text spells them.

    Raises:
        PromptmillError: one is a deep prefix, two have one name and version or different bases, the tokenizer cuts a text
            otherwise than its parts, or as `opened`.
    """
    prompts = tuple(opened(each, "tokens") for each in published)
    for number, each in enumerate(prompts):
        each.refused_if_deep("tokens", "Use peft, kv or folder; a soft prompt can be vocabulary.")
        identity, first = each.backbone.identity, prompts[0].backbone.identity
        if (identity.weights, identity.tokenizer, identity.dtype) != (first.weights, first.tokenizer, first.dtype):
            why = f"its base {identity.name} ({identity.dtype}) is not that of {published[0].title}, {first.name} ({first.dtype})"
            raise refused(each.published, "tokens", why, "Export prompts of each base into a file of their own.")
        if each.published.title in [other.published.title for other in prompts[:number]]:
            raise PromptmillError("export as tokens", f"{each.published.title} is named twice", "Name it once.")
    tokens = tuple(name for each in prompts for name in each.names())
    tokenizer = copy.deepcopy(prompts[0].backbone.tokenizer)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids(list(tokens))
    first_id = ids[0]
    for each in prompts:
        _check_ids(each, tokenizer, first_id)
        first_id += len(each.names())
    rows = torch.cat([each.state.rows.float().cpu() for each in prompts]) / prompts[0].backbone.embedding_scale
    return Vocabulary(prompts, tokens, rows, tokenizer, ids)


def _check_ids(prompt: Opened, tokenizer: PreTrainedTokenizerBase, first_id: int) -> None:
    """An example's text must give the ids that it was tuned with."""
    fields = {name: f"and what about the {name} of 3 parcels, please?" for name in prompt.encoding.fields}
    parts = [prompt.named(text) if kind == "text" else fields[text] for kind, text in prompt.encoding.input_parts]
    tuned = (*prompt.state.root, *prompt.encoding.encode(fields).input)
    expected = [first_id - 1 - token if token < 0 else token for token in tuned]
    found = tokenizer(prompt.root + "".join(parts), add_special_tokens=False).input_ids
    if found != expected:
        place = next((i for i, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), len(expected))
        why = f"its tokenizer cuts the whole text otherwise than the parts it was tuned on, at token {place}"
        raise refused(prompt.published, "tokens", why, "Put a space or a line break before the template's first field.")


def never_chosen(head: Tensor) -> Tensor:
    """The output row of a token that greedy decoding never chooses: [V, H] -> [H].

    Its logit is the mean of all others, never above the highest of them. A row of zeros would win wherever all logits
    are negative, as GPT-2's are. When sampling, its probability is below one in V (Jensen).
    """
    return head.float().mean(0)
