"""Evaluation on held-out rows: metrics, paired tests, the gate and its pictures."""

from __future__ import annotations

from prompt_core.evaluation.gate import Contender, Evaluation, Measured, Result, Sample, Verdict, evaluate_contenders
from prompt_core.evaluation.metrics import corpus_bleu, facts_kept, pooled, score, summary
from prompt_core.evaluation.paired import Comparison, bootstrap_interval, compare, interval, smallest_gain
from prompt_core.evaluation.plots import confusion, intervals, loss_curve, pareto

__all__ = [
    "Comparison",
    "Contender",
    "Evaluation",
    "Measured",
    "Result",
    "Sample",
    "Verdict",
    "bootstrap_interval",
    "compare",
    "confusion",
    "corpus_bleu",
    "evaluate_contenders",
    "facts_kept",
    "interval",
    "intervals",
    "loss_curve",
    "pareto",
    "pooled",
    "score",
    "smallest_gain",
    "summary",
]
