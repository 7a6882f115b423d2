"""Wordings proposed by a language model that sees the task, what was tried with what success, and mistakes of the best one.

After OPRO (Yang et al. 2023, arXiv:2309.03409: scored candidates in ascending order) and GEPA (Agrawal et al. 2025,
arXiv:2507.19457: reflection on mistakes).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random

from prompt_core.task import TaskSpec
from prompt_core.text.endpoint import Endpoint
from prompt_core.text.search import Tried

Mistakes = Callable[[Tried], Sequence[tuple[str, str, str]]]

_SHOWN = 6  # candidates in a question
_MISTAKES = 4
_CLIPPED = 300  # characters of a text that is shown
_THOUGHTS = re.compile(r"\A.*</think>|<think>.*", re.DOTALL | re.IGNORECASE)  # of a model that reasons aloud, which quote the tags
_TAGGED = re.compile(r"<instruction>(.*?)(?:</instruction>|\Z)", re.DOTALL | re.IGNORECASE)
_MARKS = re.compile(r"^\s*(?:[-*]|\d+[.)])\s+|^\s*[\"'“]|[\"'”]\s*$")


class Reflection:
    """Asks an endpoint for better instructions.

    Args:
        task: its description says what the instruction is for.
        endpoint: who is asked.
        mistakes: of a candidate, some rows that it gets wrong: input, right answer, given answer.
        together: questions per call, side by side.
    """

    def __init__(self, task: TaskSpec, endpoint: Endpoint, mistakes: Mistakes, together: int) -> None:
        self._task, self._endpoint, self._mistakes, self._together = task, endpoint, mistakes, together

    def __call__(self, ranked: Sequence[Tried], random: Random) -> list[str]:
        """New wordings, given the candidates from best to worst."""
        questions = []
        for _ in range(self._together):
            best = ranked[min(random.randrange(3), len(ranked) - 1)]
            messages = [{"role": "user", "content": self._question(ranked, best, random)}]
            questions.append((messages, random.randrange(2**31)))
        return [wording for answer in self._endpoint.ask(questions) if answer for wording in wordings_in(answer)]

    def _question(self, ranked: Sequence[Tried], best: Tried, random: Random) -> str:
        best_of: dict[str, Tried] = {}
        for tried in ranked:
            best_of.setdefault(tried.candidate.wording, tried)
        distinct = list(best_of.values())[:_SHOWN]
        scored = "\n".join(f"score {100 * tried.value:.0f}: {tried.candidate.wording or '(no instruction)'}" for tried in distinct[::-1])
        wrong = list(self._mistakes(best))
        random.shuffle(wrong)
        shown = "\n".join(
            f"input: {_clipped(text)}\nright answer: {_clipped(right)}\nanswer given: {_clipped(given)}\n"
            for text, right, given in wrong[:_MISTAKES]
        )
        parts = [
            "A language model gets an instruction and an input, and answers. Improve the instruction.",
            f"The task: {self._task.description}" if self._task.description else "",
            f"Instructions tried so far, better ones later:\n{scored}",
            f'With "{best.candidate.wording}" it was wrong here:\n{shown}' if shown else "",
            "Write one new instruction that would score higher. Say what to do in general; do not quote the examples. "
            "Put it between <instruction> and </instruction>.",
        ]
        return "\n\n".join(part for part in parts if part)


def wordings_in(answer: str) -> list[str]:
    """The instructions in an answer behind its thoughts: what stands between the tags, or the first line of a model that forgot them."""
    answer = answer.encode(errors="replace").decode()  # half of a surrogate pair is no text, and no tokenizer takes it
    answer = _THOUGHTS.sub("", answer)
    tagged = [" ".join(found.split()) for found in _TAGGED.findall(answer)]
    if tagged:
        return [wording for wording in tagged if wording]
    lines = [line.strip() for line in answer.splitlines() if line.strip() and not line.rstrip().endswith(":")]
    return [_MARKS.sub("", _MARKS.sub("", lines[0])).strip()] if lines else []


def _clipped(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _CLIPPED else flat[:_CLIPPED] + "..."
