"""Labels in pictures: the font that matplotlib brings has no signs for many scripts, so that such a label stands there as its number."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

_LONGEST = 26


def drawn(label: str, number: int) -> str:
    """A label as a picture can show it: itself, or its number and what of it the font has; short enough to stand beside an axis."""
    known = "".join(sign for sign in label if ord(sign) in _signs())
    return short(label if known == label else f"#{number} {known.strip()}".strip())


def numbered(labels: Collection[str]) -> str:
    """What the numbers in a picture of these labels stand for, such as `#2 退款`; empty where all can be drawn."""
    signs = _signs()
    return ", ".join(f"#{number} {label}" for number, label in enumerate(labels, 1) if any(ord(sign) not in signs for sign in label))


def short(name: str) -> str:
    """A name that fits beside an axis."""
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"


@cache
def _signs() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties())).get_charmap())
