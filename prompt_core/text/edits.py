"""New wordings from good ones without a model: phrases deleted, swapped, reordered, merged (Prasad et al. 2023, arXiv:2203.07281)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random

# A phrase ends at punctuation, or stands before a word that begins a new one.
_BREAK = re.compile(r"(?<=[,;:.!?\n])\s+|\s+(?=(?:and|or|but|if|in|with|using|so|that|which|by|from|for)\b)", re.IGNORECASE)


def edited(wordings: Sequence[str], random: Random) -> str:
    """A wording made from one or two of `wordings`, the best of which stand first; it may be one of them again.

    Args:
        wordings: at least one.
        random: the stream that chooses.
    """
    first = wordings[_ranked(len(wordings), random)]
    second = wordings[_ranked(len(wordings), random)]
    edits: list[Callable[[], list[str]]] = [
        lambda: _deleted(phrases(first), random),
        lambda: _swapped(phrases(first), random),
        lambda: _crossed(phrases(first), phrases(second), random),
        lambda: [*phrases(first), random.choice(phrases(second))],
    ]
    return sentence(random.choice(edits)())


def phrases(wording: str) -> list[str]:
    """The phrases of a wording, at least one."""
    return [part.strip() for part in _BREAK.split(wording) if part.strip()] or [wording.strip()]


def sentence(parts: Sequence[str]) -> str:
    """Phrases as one text, none twice, its first letter upper case."""
    text = " ".join(dict.fromkeys(parts)).strip(" ,;:")
    return text[:1].upper() + text[1:]


def _ranked(count: int, random: Random) -> int:
    """An index that is the more likely the nearer to 0."""
    return min(random.randrange(count), random.randrange(count))


def _deleted(parts: list[str], random: Random) -> list[str]:
    if len(parts) == 1:
        words = parts[0].split()
        if len(words) < 3:
            return parts
        start = random.randrange(len(words))
        return [" ".join(words[:start] + words[start + 1 + random.randrange(2) :]) or parts[0]]
    gone = random.randrange(len(parts))
    return parts[:gone] + parts[gone + 1 :]


def _swapped(parts: list[str], random: Random) -> list[str]:
    if len(parts) == 1:
        return parts
    i, j = random.sample(range(len(parts)), 2)
    swapped = list(parts)
    swapped[i], swapped[j] = swapped[j], swapped[i]
    return swapped


def _crossed(first: list[str], second: list[str], random: Random) -> list[str]:
    return first[: random.randint(1, len(first))] + second[random.randrange(len(second)) :]
