"""Wordings by the frozen model itself: it says what instruction leads from inputs to answers, or says the best one in other words.

The first is APE (Zhou et al. 2023, arXiv:2211.01910), the second its resampling around good candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from prompt_core.backbone import Backbone
from prompt_core.encoding import TaskEncoding
from prompt_core.generation import Sampling, generate
from prompt_core.prompts import PromptState
from prompt_core.task import TaskSpec
from prompt_core.text.judge import Judge
from prompt_core.text.reflection import wordings_in
from prompt_core.text.search import Tried
from prompt_core.tuning.build import answer

_PAIRS = 4  # of input and answer in a question
_LONGEST = 48  # tokens of an instruction


class OwnWords:
    """Asks the frozen model for instructions.

    Args:
        task: whose inputs and answers are shown.
        judge: whose rows they are, and whose budget is spent.
        backbone: a causal model.
        together: instructions per call.
    """

    def __init__(self, task: TaskSpec, judge: Judge, backbone: Backbone, together: int = 4) -> None:
        self._task, self._judge, self._backbone, self._together = task, judge, backbone, together
        self._encoding = TaskEncoding(task, backbone, soft=False)

    def __call__(self, ranked: Sequence[Tried], random: Random) -> list[str]:
        """New wordings, given the candidates from best to worst."""
        best = next((tried.candidate.wording for tried in ranked if tried.candidate.wording), "")
        asked = [self._rephrased(best) if best and turn % 2 else self._induced(random) for turn in range(self._together)]
        room = self._backbone.max_positions - _LONGEST
        asked = [ids for ids in asked if len(ids) <= room]
        self._judge.budget.charge(sum(len(ids) + _LONGEST for ids in asked))
        seeds = [random.randrange(2**63) for _ in asked]
        sampling = Sampling(seeds=seeds, temperature=1.0, top_p=0.9)
        found = generate(self._backbone, PromptState.of(self._backbone), asked, _LONGEST, self._encoding.ends, sampling=sampling)
        return [wording for ids in found for wording in wordings_in(self._encoding.decode(ids))]

    def _induced(self, random: Random) -> tuple[int, ...]:
        rows = random.sample(self._judge.rows, min(_PAIRS, len(self._judge.rows)))
        pairs = [
            f"Input: {' '.join(' '.join(str(row[name]) for name in self._encoding.fields).split())}\n"
            f"Output: {answer(self._task, row[self._task.data.target])}"
            for row in rows
        ]
        request = "One instruction leads from each input to its output. What was the instruction? Write that instruction alone."
        return self._encoding.request("\n\n".join(pairs), request, "")

    def _rephrased(self, wording: str) -> tuple[int, ...]:
        return self._encoding.request(wording, "Write this instruction in other words, and nothing else.", "")
