"""Token tags: the objective by which an encoder finds entities, its examples, and its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prompt_core.backbone import Backbone
from prompt_core.encoded import Encoded, Located
from prompt_core.errors import PromptmillError
from prompt_core.extraction.spans import entities_json, parse_entities
from prompt_core.extraction.tags import IGNORED, best_tags, entities_of, num_tags, tag_entities
from prompt_core.tuning.objective import Objective


@dataclass(frozen=True)
class Tagged(Located):
    """A solved example: its target is a tag for each input token.

    Attributes:
        entities, rounded, lost: how many it has, and what became of them, see `Tagging`.
    """

    entities: int
    rounded: int
    lost: int


def tagged(example: Located, target: str, labels: Sequence[str], where: str) -> Tagged:
    """An input with its tags. `target` is a list that `parse_entities` reads; `where` names its column in errors.

    Raises:
        PromptmillError: the target is no such list, or has a label that is not among `labels`.
    """
    try:
        entities = parse_entities(target, example.text)
    except ValueError as error:
        raise PromptmillError(where, f"{target[:80]!r} {error}", "Correct the row.") from None
    if unknown := sorted({entity.label for entity in entities} - set(labels)):
        raise PromptmillError(where, f'label "{unknown[0]}" has no training example', "Add some.")
    found = tag_entities(entities, example.places, example.window, labels)
    content = {field.name: getattr(example, field.name) for field in fields(example)} | {"target": found.tags}
    return Tagged(**content, entities=len(entities), rounded=found.rounded, lost=found.lost)


class TokenTags(Objective):
    """Cross-entropy of each text token's BIO tag, by a linear layer on the encoder's last states.

    The layer starts at zero: nothing is known of a tag before the first step.

    Args:
        labels: of the entities, in the order of their tags.
        smoothing: label smoothing while training.
    """

    def __init__(self, backbone: Backbone, labels: Sequence[str], smoothing: float = 0.0) -> None:
        super().__init__()
        self.backbone, self._smoothing, self.labels = backbone, smoothing, tuple(labels)
        self.tag_weights = nn.Parameter(torch.zeros(num_tags(labels), backbone.hidden_size, device=backbone.device))
        self.tag_bias = nn.Parameter(torch.zeros(num_tags(labels), device=backbone.device))

    def weight(self, example: Encoded) -> int:
        return max(1, sum(tag != IGNORED for tag in example.target))

    def tokens(self, example: Encoded) -> int:
        return len(example.input)

    def segments(self, examples: Sequence[Encoded]) -> tuple[list[Sequence[int]], None]:
        return [e.input for e in examples], None

    def loss(self, states: Tensor, examples: Sequence[Encoded]) -> Tensor:
        targets = torch.tensor([tag for e in examples for tag in e.target], device=states.device)
        smoothing = self._smoothing if self.training else 0.0
        return F.cross_entropy(self.scores(states), targets, reduction="sum", ignore_index=IGNORED, label_smoothing=smoothing)

    def scores(self, states: Tensor) -> Tensor:
        """A score for each token and tag. states [n, H] -> float32 [n, tags]."""
        return states.float() @ self.tag_weights.T + self.tag_bias

    def final_scores(self, states: Tensor, examples: Sequence[Encoded]) -> list[Tensor]:
        """`scores` of the tokens of each example."""
        return list(torch.split(self.scores(states), [len(e.input) for e in examples]))


def answer_of(scores: Tensor, example: Located, labels: Sequence[str]) -> str:
    """The entities of the best valid tag sequence as a JSON list, see `entities_json`.

    Where a long text was cut, an entity that touches the cut is left out: nobody knows whether it ends there.

    Args:
        scores: of each input token and tag, [n, tags].
    """
    known = [(i, place) for i, place in enumerate(example.places) if place]
    tags = best_tags(scores[[i for i, _ in known]].double().cpu().numpy())
    entities = entities_of(tags, [place for _, place in known], labels)
    first, last = example.window
    cut_before, cut_behind = example.truncated and first > 0, example.truncated and last < len(example.text)
    whole = [e for e in entities if not (cut_before and e.start == first) and not (cut_behind and e.end == last)]
    return entities_json(whole, example.text)
