"""The finals of a search for a prompt that writes texts: likelihood chose who comes here, what they write decides."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from prompt_core.backbone import Backbone
from prompt_core.continuous import write
from prompt_core.evaluation.written import worth_of
from prompt_core.prompts import PromptState, lower
from prompt_core.task import TaskSpec
from prompt_core.text.budget import OutOfBudget
from prompt_core.text.candidate import Candidate
from prompt_core.text.journal import Journal
from prompt_core.text.judge_likelihood import LikelihoodJudge
from prompt_core.writing import Text


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
        """The metric of each candidate in points, over all rows. A row that the candidate shows is answered from the others; of a
        text with several targets each is a right one, as in the evaluation.

        None where the budget does not admit it, or where none gets anything right: the likeliest is then to be taken, while
        the metric could only tell the shortest.
        """
        numbers, alike = self._asked()
        try:
            written = [self._written(candidate, numbers) for candidate in candidates]
        except OutOfBudget:
            return None
        rows = [self._judge.rows[number] for number in numbers]
        metrics = [worth_of(self._task, rows, texts, alike).reported for texts in written]
        return metrics if any(metrics) else None

    def _asked(self) -> tuple[Sequence[int], dict[str, list[str]] | None]:
        """Numbers of the rows, of a generator each text once; and by `_id` all the answers that the data has to it."""
        judge = self._judge
        if self._task.objective != "generate":
            return range(len(judge.rows)), None
        alike: dict[str, list[str]] = {}
        for row in judge.rows:
            alike.setdefault(row["_id"], []).append(str(row[self._task.data.target]))
        return list(judge.numbers.values()), alike

    def _written(self, candidate: Candidate, numbers: Sequence[int]) -> list[str]:
        question, judge = self._judge.question(candidate), self._judge
        ids = [str(judge.rows[number]["_id"]) for number in numbers]
        plain, shown = judge.each_without_itself(candidate)
        asked = zip(numbers, ids, strict=True)
        read = [(plain, shown[row]) if row in shown else (question.root.root, judge.read(candidate, n)) for n, row in asked]
        roots = {root for root, _ in read}
        beams = self._task.evaluate.beams
        judge.budget.charge(sum(map(len, roots)) + sum(len(example.input) + beams * self._longest for _, example in read))
        about = ["shown rows too", judge.about(candidate), f"{self._longest} tokens, {beams} beams", *ids]
        key = hashlib.sha256("\n".join(about).encode()).hexdigest()[:32]
        known = self._journal.get(key)
        if known is None:
            states = {root: lower(self._backbone, PromptState.of(self._backbone, root=root)) for root in roots}
            ends, closing = question.encoding.ends, question.encoding.closing
            texts = [Text(states[root], example.input, self._longest, ends, closing, beams=beams) for root, example in read]
            write(self._backbone, texts)
            known = [question.encoding.decode(text.ids) for text in texts]
            self._journal.put({key: known})
        return [str(text) for text in known]
