"""An example as token ids, and what some objectives know about it besides."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Encoded:
    """One example as token ids.

    Attributes:
        input: what follows the root, up to where the target begins.
        target: the target with the end of turn; empty for an input without one.
        truncated: whether the input was cut to fit the token limit.
    """

    input: tuple[int, ...]
    target: tuple[int, ...]
    truncated: bool


@dataclass(frozen=True)
class Located(Encoded):
    """An input that knows where its tokens stand in the template's one field.

    Attributes:
        text: the field.
        places: the characters [start, end) in `text` of each input token, without whitespace at their ends; None for a
            token of the template, or of no character.
        window: the characters [start, end) of `text` that were kept.
    """

    text: str
    places: tuple[tuple[int, int] | None, ...]
    window: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Taught(Encoded):
    """An input with a teacher's answer, and what the teacher thought likely at each of its tokens.

    Attributes:
        ids: the k likeliest next tokens at each position of the target, int32 [target, k].
        chances: their log-probabilities, float32 [target, k].
        rest: log-probability of all other tokens together, float32 [target].
        row: `_id` of the input's row, which has a lesson for each answer.
    """

    ids: Tensor = field(repr=False)
    chances: Tensor = field(repr=False)
    rest: Tensor = field(repr=False)
    row: str
