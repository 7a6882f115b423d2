"""The metrics: one function each and one registry. Every value is in points, 0 to 100.

A metric has two faces: `score`, one number per test row, and `pooled`, statistics per row that add up, from which the
reported value follows for the whole test set and, in a paired test, for any resample of its rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from prompt_core.criteria import Metric
from prompt_core.evaluation.extracted import entity_counts, entity_f1_of_counts
from prompt_core.evaluation.wanted import Texts, Wanted, facts_kept
from prompt_core.extraction.schema import RecordForm

Floats: TypeAlias = NDArray[np.float64]
Value: TypeAlias = Callable[[Floats], Floats]

_BLEU_ORDER = 4
# rouge-score's own tokens are a-z and 0-9, so that two texts in Greek share nothing. These are the same tokens for English.
_IDEOGRAPH = "[\u3040-\u30ff\u3400-\u9fff]"
_WORD = re.compile(rf"{_IDEOGRAPH}|(?:(?!{_IDEOGRAPH})[^\W_])+")


@dataclass(frozen=True)
class Pooled:
    """One contender's metric as a function of sums over rows.

    Attributes:
        metric: which one.
        rows: float64 [N, K], the statistics of each row.
        value: from sums of rows, float64 [..., K], to points, float64 [...].
    """

    metric: Metric
    rows: Floats
    value: Value

    @property
    def reported(self) -> float:
        """The value over all rows, in points."""
        return float(self.value(self.rows.sum(axis=0)))


def score(metric: Metric, predictions: Texts, targets: Texts, wanted: Wanted | None = None) -> Floats:
    """One score per row, float64 [N], in points.

    Args:
        wanted: what is known of the right outputs besides the targets, for `facts_kept`, `valid_json` and several references.

    Raises:
        ValueError: the metric exists for a whole test set only, the lengths differ, or there are no rows, or no facts for `facts_kept`.
    """
    _check_lengths(metric, predictions, targets, wanted)
    scores = METRICS[metric].scores
    if scores is None:
        raise ValueError(f"{metric} is a property of the whole test set; it has no score per row")
    return scores(predictions, targets, wanted)


def summary(metric: Metric, predictions: Texts, targets: Texts, wanted: Wanted | None = None) -> float:
    """The value that people quote, in points: corpus BLEU, macro-F1, else the mean of the scores. Raises as `score`."""
    return pooled(metric, predictions, targets, wanted).reported


def pooled(metric: Metric, predictions: Texts, targets: Texts, wanted: Wanted | None = None) -> Pooled:
    """Measure once what the reported value, its interval and every paired test need. Raises as `score`."""
    _check_lengths(metric, predictions, targets, wanted)
    counts = METRICS[metric].counts
    if counts:
        return Pooled(metric, *counts(predictions, targets, wanted))
    return from_scores(metric, score(metric, predictions, targets, wanted))


def from_scores(metric: Metric, scores: Floats) -> Pooled:
    """A metric that was measured elsewhere, from its points per row, float64 [N]."""
    return Pooled(metric, np.stack([scores, np.ones_like(scores)], axis=1), lambda sums: sums[..., 0] / sums[..., 1])


def accuracy(predictions: Texts, targets: Texts, wanted: Wanted | None = None) -> Floats:
    """100 where the label is the right one."""
    return np.array([100.0 * (p == t) for p, t in zip(predictions, targets, strict=True)])


def exact_match(predictions: Texts, targets: Texts, wanted: Wanted | None = None) -> Floats:
    """100 where the text is a right one, whitespace aside."""
    rows = zip(predictions, _references(targets, wanted), strict=True)
    return np.array([100.0 * (p.split() in [text.split() for text in right]) for p, right in rows])


def valid_json(predictions: Texts, targets: Texts, wanted: Wanted | None = None) -> Floats:
    """100 where the output is what the task can read: JSON of the wanted form, or what `as_judged` has left something of."""
    form = wanted.form if wanted else None
    return np.array([100.0 * (_is_record(p, form) if form else bool(p)) for p in predictions])


def chrf(predictions: Texts, targets: Texts, wanted: Wanted | None = None) -> Floats:
    """Sentence chrF2 of sacrebleu (Popović 2015), to the nearest reference."""
    from sacrebleu.metrics.chrf import CHRF

    scorer = CHRF()
    return np.array([scorer.sentence_score(p, right).score for p, right in zip(predictions, _references(targets, wanted), strict=True)])


def rouge_l(predictions: Texts, targets: Texts, wanted: Wanted | None = None) -> Floats:
    """F-measure of the longest common subsequence of words (Lin 2004), by rouge-score without stemming; to the nearest reference."""
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import Tokenizer

    class Words(Tokenizer):  # type: ignore[misc]
        """Lower-case words of any script."""

        def tokenize(self, text: str) -> list[str]:
            return _WORD.findall(text.lower())

    scorer = RougeScorer(["rougeL"], tokenizer=Words())
    rows = zip(predictions, _references(targets, wanted), strict=True)
    return np.array([100.0 * scorer.score_multi(right, p)["rougeL"].fmeasure for p, right in rows])


def sentence_bleu(predictions: Texts, targets: Texts, wanted: Wanted | None = None) -> Floats:
    """BLEU of each row over the n-gram orders that it has (sacrebleu's effective order)."""
    from sacrebleu.metrics.bleu import BLEU

    scorer = BLEU(effective_order=True)
    return np.array([scorer.sentence_score(p, right).score for p, right in zip(predictions, _references(targets, wanted), strict=True)])


def corpus_bleu(predictions: Texts, references: Sequence[Sequence[str]]) -> float:
    """BLEU of a whole test set (Papineni et al. 2002; sacrebleu, tokens `13a`), in points.

    Args:
        references: one or more per prediction; their number may differ from row to row.

    Raises:
        ValueError: there are no predictions, a prediction has no reference, or the lengths differ.
    """
    from sacrebleu.metrics.bleu import BLEU

    if not predictions or len(references) != len(predictions) or not all(references):
        raise ValueError(f"{len(predictions)} predictions need as many lists of at least one reference, found {len(references)}")
    most = max(map(len, references))
    streams = [[row[i] if i < len(row) else None for row in references] for i in range(most)]
    # force: tokenized-looking input is scored as it is, without a warning per call
    return float(BLEU(force=True).corpus_score(predictions, streams).score)  # type: ignore[arg-type]


def _bleu_counts(predictions: Texts, targets: Texts, wanted: Wanted | None) -> tuple[Floats, Value]:
    """Per row: n-grams found, n-grams written, both for n = 1..4, and the lengths of output and reference (the nearest in length)."""
    from sacrebleu.metrics.bleu import BLEU

    scorer = BLEU(effective_order=True)
    found = [scorer.sentence_score(p, right) for p, right in zip(predictions, _references(targets, wanted), strict=True)]
    return np.array([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in found], dtype=np.float64), _bleu_of_counts


def _bleu_of_counts(sums: Floats) -> Floats:
    """Corpus BLEU with sacrebleu's default: the k-th order without a match counts as 1 / 2^k matches."""
    found, written = sums[..., :_BLEU_ORDER], sums[..., _BLEU_ORDER : 2 * _BLEU_ORDER]
    output, reference = sums[..., -2], sums[..., -1]
    smoothed = np.where(found > 0, found, 0.5 ** np.cumsum(found == 0, axis=-1))
    precision = smoothed / np.maximum(written, 1)
    brevity = np.exp(np.minimum(0.0, 1 - reference / np.maximum(output, 1)))
    score = 100 * brevity * np.exp(np.log(precision).mean(axis=-1))
    return np.where((found > 0).any(axis=-1) & (written > 0).all(axis=-1), score, 0.0)


def _label_counts(predictions: Texts, targets: Texts, wanted: Wanted | None) -> tuple[Floats, Value]:
    """Per row and label of the targets: hit, predicted, true. [N, 3 * labels]: the confusion counts that F1 needs."""
    number = {label: i for i, label in enumerate(sorted(set(targets)))}
    predicted, true = (np.array([number.get(x, -1) for x in texts])[:, None] == np.arange(len(number)) for texts in (predictions, targets))
    return np.concatenate([true & predicted, predicted, true], axis=1).astype(np.float64), _macro_f1_of_counts


def _macro_f1_of_counts(sums: Floats) -> Floats:
    """Mean F1 over the labels that occur in the targets (a resample may lose some); any other prediction is a plain miss."""
    hit, predicted, true = np.split(sums, 3, axis=-1)
    f1 = 2 * hit / np.maximum(predicted + true, 1)
    return np.asarray(100 * (f1 * (true > 0)).sum(axis=-1) / (true > 0).sum(axis=-1))


def _kept(predictions: Texts, targets: Texts, wanted: Wanted | None) -> Floats:
    if wanted is None or (wanted.facts is None and not wanted.contains and not wanted.omits):
        raise ValueError("facts_kept needs the facts of each row, or patterns")
    return facts_kept(predictions, wanted.facts, wanted.contains, wanted.omits)


def _references(targets: Texts, wanted: Wanted | None) -> Sequence[Texts]:
    """All right texts of each row."""
    return wanted.references if wanted and wanted.references else [[target] for target in targets]


def _is_record(text: str, form: RecordForm) -> bool:
    try:
        form.read(text)
    except ValueError:
        return False
    return True


def _check_lengths(metric: Metric, predictions: Texts, targets: Texts, wanted: Wanted | None) -> None:
    facts = wanted.facts if wanted else None
    lengths = {len(predictions), len(targets), len(targets if facts is None else facts)}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(f"{metric}: needs as many predictions as targets (and facts), at least one; found {sorted(lengths)}")


@dataclass(frozen=True)
class Definition:
    """One metric.

    Attributes:
        scores: points per row; None for a metric of the whole test set only.
        counts: statistics per row and the value of their sums, where the reported value is not the mean of the scores.
        binary: a row is right or wrong, so that exact tests apply.
    """

    scores: Callable[[Texts, Texts, Wanted | None], Floats] | None
    counts: Callable[[Texts, Texts, Wanted | None], tuple[Floats, Value]] | None = None
    binary: bool = False


def is_binary(metric: Metric) -> bool:
    """Whether a row is right or wrong."""
    return metric in METRICS and METRICS[metric].binary


# Of texts; `agreement` is of two models' next tokens, and measured where the models are.
METRICS: dict[Metric, Definition] = {
    "accuracy": Definition(accuracy, binary=True),
    "exact_match": Definition(exact_match, binary=True),
    "valid_json": Definition(valid_json, binary=True),
    "macro_f1": Definition(None, _label_counts),
    "entity_f1": Definition(None, lambda predictions, targets, _: (entity_counts(predictions, targets), entity_f1_of_counts)),
    "chrf": Definition(chrf),
    "rouge_l": Definition(rouge_l),
    "bleu": Definition(sentence_bleu, _bleu_counts),
    "facts_kept": Definition(_kept),
}
