"""The finals of a search for a prompt that writes texts: likelihood chose who comes here, what they write decides."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from prompt_core.backbone import Backbone
from prompt_core.evaluation.extracted import as_judged
from prompt_core.evaluation.metrics import summary
from prompt_core.evaluation.wanted import wanted_of
from prompt_core.prediction import generate_texts
from prompt_core.task import TaskSpec
from prompt_core.text.budget import OutOfBudget
from prompt_core.text.candidate import Candidate
from prompt_core.text.journal import Journal
from prompt_core.text.judge_likelihood import LikelihoodJudge


class Finals:
    """Generates with candidates and measures the task's gate metric.

    Args:
        task: whose metric decides.
        judge: prepares candidates; its rows are those that they are measured on.
        backbone: the frozen model.
        max_new_tokens: where a text ends at the latest.
        journal: texts that were written before.
    """

    def __init__(self, task: TaskSpec, judge: LikelihoodJudge, backbone: Backbone, max_new_tokens: int, journal: Journal) -> None:
        self._task, self._judge, self._backbone = task, judge, backbone
        self._longest, self._journal = max_new_tokens, journal

    def measure(self, candidates: Sequence[Candidate]) -> list[float] | None:
        """The metric of each candidate in points, on the rows that none of them shows (on all where that leaves none).

        None where the budget does not admit it, or where none gets anything right: the likeliest is then to be taken, while
        the metric could only tell the shortest.
        """
        shown = {row for candidate in candidates for row in candidate.shown}
        numbers = [n for n, row in enumerate(self._judge.rows) if row["_id"] not in shown] or list(range(len(self._judge.rows)))
        try:
            written = [self._written(candidate, numbers) for candidate in candidates]
        except OutOfBudget:
            return None
        rows = [self._judge.rows[n] for n in numbers]
        wanted = wanted_of(self._task, rows)
        targets = [str(row[self._task.data.target]) for row in rows]
        judged = [as_judged(self._task, texts) for texts in written] if self._task.objective == "extract" else written
        metrics = [summary(self._task.gate_metric, texts, targets, wanted) for texts in judged]
        return metrics if any(metrics) else None

    def _written(self, candidate: Candidate, numbers: Sequence[int]) -> list[str]:
        question = self._judge.question(candidate)
        examples = [self._judge.read(candidate, n) for n in numbers]
        self._judge.budget.charge(len(question.root.root) + sum(len(e.input) + self._longest for e in examples))
        about = [self._judge.about(candidate), str(self._longest), *(self._judge.rows[n]["_id"] for n in numbers)]
        key = hashlib.sha256("\n".join(about).encode()).hexdigest()[:32]
        known = self._journal.get(key)
        if known is None:
            known = generate_texts(self._backbone, question.encoding, question.root, examples, self._longest)
            self._journal.put({key: known})
        return [str(text) for text in known]
