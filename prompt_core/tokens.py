"""A tokenizer that reads soft tokens too: among ids, -1 - j is soft token j."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from prompt_core.template import plain, soft_mark, split_soft


def soft_ids(count: int, first: int = 0) -> range:
    """Ids of the soft tokens `first` to `first + count - 1`."""
    return range(-1 - first, -1 - first - count, -1)


class Tokens:
    """Texts as token ids, in which the marks of soft tokens stand for their ids.

    Args:
        tokenizer: of transformers; `placed` needs a fast one.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def special(self) -> dict[int, str]:
        """The special tokens: those that have a role, and those that the vocabulary marks, as the end of a turn in Phi 3 and Gemma 3."""
        named = dict(zip(self._tokenizer.all_special_ids, self._tokenizer.all_special_tokens, strict=True))
        return named | {number: token.content for number, token in self._tokenizer.added_tokens_decoder.items() if token.special}

    def plain(self, text: str) -> str:
        """`harmless`, and without the characters that mark soft tokens."""
        return self.harmless(plain(text))

    def harmless(self, text: str) -> str:
        """A text, as long as it was, in which nothing is read as a special token: each begins with the full-width sign, `＜|im_end|>`,
        so that what a customer writes ends no turn and begins none."""
        return self._marks.sub(lambda mark: _wide(mark[0][0]) + mark[0][1:], text)

    @cached_property
    def _marks(self) -> re.Pattern[str]:
        marks = sorted(filter(None, self.special.values()), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, marks)) or "(?!)")

    def of(self, text: str) -> list[int]:
        """Token ids of a text without anything around it."""
        ids: list[int] = []
        for part in split_soft(text):
            ids += self._tokenizer(part, add_special_tokens=False).input_ids if isinstance(part, str) else soft_ids(part[1], part[0])
        return ids

    def behind(self, text: str) -> list[int]:
        """Token ids of a text that stands behind another: without the space that Llama 2, Mistral and Phi 3 see in front of every text."""
        if not self._adds_space:
            return self.of(text)
        line = self.of("\n")
        ids = self.of("\n" + text)
        return ids[len(line) :] if ids[: len(line)] == line else self.of(text)

    @cached_property
    def _adds_space(self) -> bool:
        first = self._tokenizer.convert_ids_to_tokens(self.of("a")[:1])
        return first != [] and first[0].startswith("\u2581") and self.of(" a") != self.of("a")

    def in_front(self, text: str, behind: bool = False) -> list[int]:
        """Token ids of a text that goes on, and stands `behind` another or not. Line breaks at its end are other tokens where a letter
        follows, in many vocabularies."""
        of = self.behind if behind else self.of
        letter = self.behind("a")
        ids = of(text + "a") if text.endswith("\n") else []
        return ids[: -len(letter)] if ids and ids[-len(letter) :] == letter else of(text)

    def placed(self, text: str) -> list[tuple[int, int, int]]:
        """Token ids as by `of`, each with the characters [start, end) of the text that it stands for."""
        tokens: list[tuple[int, int, int]] = []
        at = 0
        for part in split_soft(text):
            if isinstance(part, str):
                found = self._tokenizer(part, add_special_tokens=False, return_offsets_mapping=True)
                pairs = zip(found.input_ids, found.offset_mapping, strict=True)
                tokens += [(token, at + start, at + end) for token, (start, end) in pairs]
                at += len(part)
            else:
                tokens += [(token, at, at) for token in soft_ids(part[1], part[0])]
                at += len(soft_mark(part[1], part[0]))
        return tokens

    def around(self) -> tuple[list[int], list[int]]:
        """The special tokens that the tokenizer puts in front of and behind a text."""
        alone: list[int] = self.of("a")
        wrapped: list[int] = self._tokenizer("a").input_ids
        start = next(i for i in range(len(wrapped)) if wrapped[i : i + len(alone)] == alone)
        return wrapped[:start], wrapped[start + len(alone) :]

    def spelled_with(self, ids: Sequence[int]) -> frozenset[int]:
        """The tokens of the vocabulary in whose spelling that of some ids stands."""
        spelled = "".join(self._tokenizer.convert_ids_to_tokens(list(ids)))
        found = _spelled_with.setdefault(self._tokenizer, {})
        if spelled not in found:
            found[spelled] = frozenset(number for token, number in self._tokenizer.get_vocab().items() if spelled in token)
        return found[spelled]


def _wide(sign: str) -> str:
    return chr(ord(sign) + 0xFEE0) if "!" <= sign <= "~" else "\ufffd"


_spelled_with: WeakKeyDictionary[Any, dict[str, frozenset[int]]] = WeakKeyDictionary()  # by tokenizer: a look through a vocabulary is slow
