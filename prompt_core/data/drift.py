"""Drift: how far new inputs are from those that a prompt was tuned on, in length, vocabulary and mix of labels."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from prompt_core.data.columns import nearest_column
from prompt_core.data.read import PREDICTION, as_strings
from prompt_core.errors import PromptmillError
from prompt_core.field_text import normalised
from prompt_core.task import TaskSpec
from prompt_core.template import Template

_BUCKETS = 128
_CHANCE = 0.99
_WORDS = re.compile(r"\w+")
_OTHER = "(no label of the prompt)"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Profile(_Record):
    """What inputs look like, as counts: none of their words can be read from it.

    Attributes:
        rows: how many inputs.
        length_edges: rising lengths in words, between which about a tenth of the inputs lie each.
        lengths: inputs up to each edge, and above the last.
        words: per bucket of hashed words, in how many inputs one of them stands (each distinct word of an input counts).
        labels: rows of each label; empty where targets are no labels.
    """

    rows: int
    length_edges: tuple[int, ...]
    lengths: tuple[int, ...]
    words: tuple[int, ...]
    labels: dict[str, int]


class Shift(_Record):
    """One measure.

    Attributes:
        psi: population stability index; usual reading: below 0.1 stable, above 0.25 another population.
        chance: what equal populations stay below in 99 of 100 draws of so many rows.
        drifted: above the task's threshold, and above chance.
    """

    measure: Literal["length", "vocabulary", "labels"]
    psi: float
    chance: float
    drifted: bool


class Drift(_Record):
    """All measures of `rows` new inputs."""

    rows: int
    threshold: float
    shifts: tuple[Shift, ...]

    @property
    def drifted(self) -> bool:
        """Whether any measure has: the trigger to tune again."""
        return any(shift.drifted for shift in self.shifts)

    def table(self) -> str:
        """Plain aligned text, a line per measure."""
        return "\n".join(f"{shift.measure:<10}  PSI {shift.psi:6.3f}  {self._reading(shift)}" for shift in self.shifts)

    def _reading(self, shift: Shift) -> str:
        if shift.drifted:
            return f"drifted (threshold {self.threshold:g})"
        if shift.psi >= self.threshold:
            return f"no more than chance: so few rows ({self.rows}) reach {shift.chance:.3f} without any drift"
        return "stable"


def profile_of(frame: pl.DataFrame, task: TaskSpec) -> Profile:
    """The profile of the rows that a prompt is tuned and validated on."""
    texts = _texts(frame, task, "the examples")
    lengths = np.array([len(_WORDS.findall(text)) for text in texts])
    edges = np.unique(np.quantile(lengths, np.arange(1, 10) / 10, method="inverted_cdf")) if len(lengths) else np.zeros(0)
    labels = Counter(frame[task.data.target].to_list()) if task.objective == "classify" else Counter[str]()
    return Profile(
        rows=len(frame),
        length_edges=tuple(int(edge) for edge in edges),
        lengths=_binned(lengths, edges),
        words=_buckets(texts),
        labels=dict(sorted(labels.items())),
    )


def drift(
    profile: Profile,
    frame: pl.DataFrame,
    task: TaskSpec,
    where: str = "the new inputs",
    predicted: Mapping[str, int] | None = None,
) -> Drift:
    """Compare new inputs with a profile.

    Args:
        frame: the template's fields; labels are compared where it also has labels in the target, or in the column `prediction`.
        task: names the columns, and the threshold `drift.threshold`.
        where: names the frame in errors.
        predicted: rows of each label that the prompt gave in its evaluation, with which new predictions are compared: its errors
            are no drift. Without it they are compared with the labels of the profile.

    Raises:
        PromptmillError: a field is absent or no text, or there is no row.
    """
    texts = _texts(frame, task, where)
    if not texts:
        raise PromptmillError(where, "has no rows", "Give some.")
    lengths = _binned(np.array([len(_WORDS.findall(text)) for text in texts]), np.array(profile.length_edges))
    pairs: list[tuple[Literal["length", "vocabulary", "labels"], Sequence[int], Sequence[int]]] = [
        ("length", profile.lengths, lengths),
        ("vocabulary", profile.words, _buckets(texts)),
    ]
    column, given = _labels(frame, task, where) if profile.labels else ("", [])
    if given:
        known = predicted if predicted and column == PREDICTION else profile.labels
        found, before = (_counted(labels, profile.labels) for labels in (Counter(given), known))
        names = [*profile.labels, _OTHER]
        pairs.append(("labels", [before[name] for name in names], [found[name] for name in names]))
    threshold = task.drift.threshold
    return Drift(rows=len(texts), threshold=threshold, shifts=tuple(_shift(*pair, threshold) for pair in pairs))


def stability_index(before: Sequence[int], after: Sequence[int]) -> float:
    """Population stability index of two histograms (Siddiqi 2006), half a row added to every bin so that an empty one is finite."""
    p, q = (np.array(counts, dtype=np.float64) + 0.5 for counts in (before, after))
    p, q = p / p.sum(), q / q.sum()
    return float(((q - p) * np.log(q / p)).sum())


def chance_level(before: Sequence[int], after: Sequence[int]) -> float:
    """What the index of two samples of one population stays below in 99 of 100 draws: (1/n + 1/m) chi2 (Yurdakul 2018)."""
    from scipy.stats import chi2

    bins = sum(b + a > 0 for b, a in zip(before, after, strict=True))
    return float(chi2.ppf(_CHANCE, max(1, bins - 1)) * (1 / max(1, sum(before)) + 1 / max(1, sum(after))))


def _shift(measure: Literal["length", "vocabulary", "labels"], before: Sequence[int], after: Sequence[int], threshold: float) -> Shift:
    psi, chance = stability_index(before, after), chance_level(before, after)
    return Shift(measure=measure, psi=round(psi, 6), chance=round(chance, 6), drifted=psi >= threshold and psi > chance)


def _texts(frame: pl.DataFrame, task: TaskSpec, where: str) -> list[str]:
    fields = Template(task).fields
    for name in fields:
        if name not in frame.columns:
            raise PromptmillError(where, f'has no column "{name}", a field of the template', nearest_column(name, frame.columns))
    return ["\n".join(normalised(value or "") for value in row) for row in as_strings(frame.select(fields), where).iter_rows()]


def _labels(frame: pl.DataFrame, task: TaskSpec, where: str) -> tuple[str, list[str]]:
    """The labels of those rows that have one, and their column: targets, or predictions where no row has a target."""
    for name in (task.data.target, PREDICTION):
        if name in frame.columns:
            labels = [normalised(value or "") for value in as_strings(frame.select(name), where)[name]]
            if any(labels):
                return name, list(filter(None, labels))
    return "", []


def _counted(labels: Mapping[str, int], known: Container[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for label, rows in labels.items():
        counts[label if label in known else _OTHER] += rows
    return counts


def _binned(lengths: NDArray[np.int64], edges: NDArray[np.float64]) -> tuple[int, ...]:
    return tuple(np.bincount(np.searchsorted(edges, lengths), minlength=len(edges) + 1).tolist())


def _buckets(texts: Sequence[str]) -> tuple[int, ...]:
    counts = Counter(word for text in texts for word in set(_WORDS.findall(text.casefold())))
    buckets = [0] * _BUCKETS
    for word, count in counts.items():
        buckets[int.from_bytes(hashlib.sha256(word.encode()).digest()[:4]) % _BUCKETS] += count
    return tuple(buckets)
