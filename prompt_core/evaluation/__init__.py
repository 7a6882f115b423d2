"""Evaluation on held-out rows: metrics, paired tests, the gate and its pictures."""

from __future__ import annotations

from prompt_core.evaluation.contender import Contender
from prompt_core.evaluation.family import corrected, gate_p_value
from prompt_core.evaluation.glyphs import numbered
from prompt_core.evaluation.measure import About, Rows, evaluate_contenders
from prompt_core.evaluation.metrics import corpus_bleu, pooled, score, summary
from prompt_core.evaluation.paired import Comparison, Measured, bootstrap_interval, compare, holm, interval
from prompt_core.evaluation.plots import confusion, intervals, loss_curve, pareto
from prompt_core.evaluation.power import power_sentence, smallest_gain
from prompt_core.evaluation.record import Evaluation, Result, Verdict
from prompt_core.evaluation.report import render_report, write_report
from prompt_core.evaluation.wanted import Wanted, facts_kept

__all__ = [
    "About",
    "Comparison",
    "Contender",
    "Evaluation",
    "Measured",
    "Result",
    "Rows",
    "Verdict",
    "Wanted",
    "bootstrap_interval",
    "compare",
    "confusion",
    "corpus_bleu",
    "corrected",
    "evaluate_contenders",
    "facts_kept",
    "gate_p_value",
    "holm",
    "interval",
    "intervals",
    "loss_curve",
    "numbered",
    "pareto",
    "pooled",
    "power_sentence",
    "render_report",
    "score",
    "smallest_gain",
    "summary",
    "write_report",
]
