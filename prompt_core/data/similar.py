"""Near-duplicates: which texts share most of their word 3-grams. MinHash proposes pairs, the exact Jaccard share decides."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

if TYPE_CHECKING:
    from datasketch import MinHash

_PERMUTATIONS = 128
_SEED = 1  # of the hash functions; no knob, because sketches from different seeds do not compare
_MISSED = 1e-3  # chance that a pair right at the threshold is not proposed
_GRAM = 3
# Han, Hiragana and Katakana are written without spaces: there each character counts as a word.
_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")
# Only marks of sentences: "4 + 3" and "4 - 3", or two different emoji, are different texts.
_MARKS = '.,;:!?¡¿…"“”„«»()[]{}、。！？'
_APOSTROPHES = str.maketrans("", "", "'‘’")
_JOINTS = re.compile(r"(?<=[^\W\d_])[-‐‑–/](?=[^\W\d_])")  # "top-up" is "top up", but "4-3" is not "4 3"


class Sketch(NamedTuple):
    """A text as the set of its word 3-grams, with the MinHash of that set."""

    grams: frozenset[str]
    minhash: MinHash


def example_texts(frame: pl.DataFrame, fields: tuple[str, ...]) -> list[str]:
    """One text per row: the values of the template's fields, one below the other."""
    return ["\n".join(row) for row in frame.select(fields).rows()]


def word_grams(text: str) -> frozenset[str]:
    """Word 3-grams of `text`, without case and marks of punctuation; a shorter text is one gram of all its words."""
    tokens = _WORDS.findall(_JOINTS.sub(" ", text.casefold().translate(_APOSTROPHES)))
    words = [bare for token in tokens if (bare := token.strip(_MARKS))] or text.split()
    return frozenset(" ".join(words[i : i + _GRAM]) for i in range(max(1, len(words) - _GRAM + 1)))


class SimilarTexts:
    """An index of texts that finds one whose 3-grams overlap a given text's by a Jaccard share of at least `threshold`.

    Whether a pair is found depends on the two texts alone, so that indexes over different sets agree.
    MinHash LSH: Broder 1997; Indyk and Motwani 1998.
    """

    def __init__(self, threshold: float) -> None:
        from datasketch import MinHash, MinHashLSH  # imports scipy: half a second

        bands, rows = _bands(threshold)
        self._threshold = threshold
        self._empty = MinHash(_PERMUTATIONS, seed=_SEED)
        self._proposals = MinHashLSH(num_perm=_PERMUTATIONS, params=(bands, rows))
        self._grams: list[frozenset[str]] = []

    def sketch(self, text: str) -> Sketch:
        """What `match` and `add` work on."""
        grams = word_grams(text)
        minhash = self._empty.copy()
        minhash.update_batch([gram.encode() for gram in sorted(grams)])
        return Sketch(grams, minhash)

    def add(self, sketch: Sketch) -> None:
        """Index a text under the next number, from 0."""
        self._proposals.insert(len(self._grams), sketch.minhash)
        self._grams.append(sketch.grams)

    def match(self, sketch: Sketch) -> int | None:
        """The number of the first indexed text that is a near-duplicate."""
        return min((i for i in self._proposals.query(sketch.minhash) if self._is_near(sketch.grams, self._grams[i])), default=None)

    def _is_near(self, a: frozenset[str], b: frozenset[str]) -> bool:
        return len(a & b) >= self._threshold * len(a | b)


def _bands(threshold: float) -> tuple[int, int]:
    """(bands, rows per band): the most selective that still proposes a pair at the threshold."""
    for rows in range(_PERMUTATIONS, 1, -1):
        bands = _PERMUTATIONS // rows
        if (1 - threshold**rows) ** bands <= _MISSED:
            return bands, rows
    return _PERMUTATIONS, 1
