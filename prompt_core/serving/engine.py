"""The engine: one thread that owns the models. What waits when it is free is answered together, whatever the prompts.

Nobody waits for others to come: while a pass or a step runs, requests gather, and the next one takes all of them. Inputs that
are scored and texts that are written share the time evenly while both wait: a text of 40 tokens would else wait for 40 passes.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Any, TypeVar, cast

from prompt_core.backbone import Backbone
from prompt_core.continuous import TextBatch
from prompt_core.encoded import Encoded
from prompt_core.errors import PromptmillError
from prompt_core.mixed import answer
from prompt_core.ready import Answer, ReadyPrompt
from prompt_core.serving.metrics import Metrics
from prompt_core.writing import Text

_MOST_SCORED = 256  # inputs between two steps of the texts that are being written
Item = TypeVar("Item")
Result = TypeVar("Result")
_log = logging.getLogger(__name__)


class EngineFull(Exception):
    """More inputs wait than the engine takes."""


class EngineClosed(Exception):
    """The engine takes nothing more: the server ends, or the engine failed."""


@dataclass(eq=False)
class Job:
    """An input that is to be answered.

    Attributes:
        prompt, example: what is asked.
        text: for a prompt that writes, the text that is asked for.
        on_tokens: called from the engine's thread with all tokens so far, whenever there are more.
        answer: the result.
    """

    prompt: ReadyPrompt
    example: Encoded
    text: Text | None = None
    on_tokens: Callable[[list[int]], None] | None = None
    answer: Future[Answer] = field(default_factory=Future)

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        if self.text:
            self.text.cancelled = True
        self.answer.cancel()


class _Line:
    """Texts that wait to enter a batch, in their order, and the batch.

    Args:
        backbone: that writes them.
        waiting: default: none yet.
    """

    def __init__(self, backbone: Backbone, waiting: deque[Text] | None = None) -> None:
        self.backbone, self.waiting, self.batch = backbone, waiting or deque(), TextBatch.of(backbone)


class Engine:
    """Answers jobs and runs calls on one thread, from `start` to `close`.

    Args:
        most: jobs that may be unfinished.
        metrics: where passes and tokens are counted.
    """

    def __init__(self, most: int, metrics: Metrics) -> None:
        self._most, self._metrics = most, metrics
        self._changed = Condition()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._scored: deque[Job] = deque()
        self._asked: deque[Job] = deque()
        self._lines: dict[Backbone, _Line] = {}
        self._apart: list[_Line] = []  # of texts that were in a step that failed
        self._writing: dict[Text, Job] = {}
        self._unfinished: set[Job] = set()
        self._scoring_ahead = 0.0  # seconds that scoring has had more than texts that waited meanwhile
        self._closing = False
        self._thread = Thread(target=self._run, name="promptmill-engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs: nothing is answered without it."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Finish what was submitted, then end."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take jobs, all or none.

        Raises:
            EngineFull: more would be unfinished than may be.
            EngineClosed: it takes nothing more.
            PromptmillError: there are more than may ever be.
        """
        if len(jobs) > self._most:
            raise PromptmillError("inputs", f"are {len(jobs)}, the server takes {self._most} at a time", "Send them in several requests.")
        with self._changed:
            if self._closing:
                raise EngineClosed
            if len(self._unfinished) + len(jobs) > self._most:
                raise EngineFull
            self._unfinished.update(jobs)
            self._metrics.unfinished.set(len(self._unfinished))
            for job in jobs:
                (self._asked if job.text else self._scored).append(job)
            self._changed.notify()

    def call(self, work: Callable[[], Result]) -> Result:
        """Run something on the engine's thread, between two steps, and wait for it. Raises `EngineClosed`."""
        future: Future[Any] = Future()
        with self._changed:
            if self._closing:
                raise EngineClosed
            self._calls.append((work, future))
            self._changed.notify()
        return cast(Result, future.result())

    def _run(self) -> None:
        try:
            while self._gather():
                while self._calls:
                    _settle(*self._calls.popleft())
                self._score_some()
                self._write_some()
        except Exception as error:  # a fault of the engine's own: nobody may wait for a thread that has ended
            _log.critical("the engine ended: the server answers nothing until it is started again", exc_info=error)
            with self._changed:
                self._closing = True
                calls, self._calls = self._calls, deque()
            self._finish(list(self._unfinished), [error] * len(self._unfinished))
            for _, future in calls:
                future.set_exception(error)

    def _score_some(self) -> None:
        """Score what waits, unless it is the texts' turn."""
        if not self._scored or (self._writing and self._scoring_ahead > 0):
            return
        start = time.perf_counter()
        self._score([self._scored.popleft() for _ in range(min(_MOST_SCORED, len(self._scored)))])
        self._scoring_ahead = time.perf_counter() - start if self._writing else 0.0

    def _write_some(self) -> None:
        """Write one token of each text."""
        start = time.perf_counter()
        for line in [*self._lines.values(), *self._apart]:
            self._step(line)
        self._apart = [line for line in self._apart if line.waiting or line.batch.texts]
        self._scoring_ahead -= time.perf_counter() - start

    def _gather(self) -> bool:
        """Wait for work and sort in what came; False where there will be no more."""
        with self._changed:
            while not (self._calls or self._scored or self._asked or self._writing):
                if self._closing:
                    return False
                self._changed.wait()
            asked, self._asked = self._asked, deque()
        for job in asked:
            assert job.text is not None  # `submit` sorts by it
            self._writing[job.text] = job
            backbone = job.prompt.backbone
            if backbone not in self._lines:
                self._lines[backbone] = _Line(backbone)
            self._lines[backbone].waiting.append(job.text)
        return True

    def _score(self, jobs: list[Job]) -> None:
        alive = [job for job in jobs if not job.answer.cancelled()]
        self._finish(set(jobs) - set(alive), [])
        if not alive:
            return
        self._metrics.pass_inputs.labels("score").observe(len(alive))
        try:
            found: list[Answer | Exception] = [*answer([(job.prompt, job.example) for job in alive])]
        except Exception as error:
            if len(alive) > 1:  # the others must not pay for one that fails
                for half in _halves(alive):
                    self._score(half)
                return
            _tell(error)
            found = [error]
        self._finish(alive, found)

    def _step(self, line: _Line) -> None:
        batch, waiting = line.batch, line.waiting
        for text in [text for text in waiting if text.cancelled]:
            waiting.remove(text)
            self._finish([self._writing.pop(text)], [])
        asked = [*batch.texts, *waiting]
        try:
            batch.admit(waiting)
            if not batch.texts:
                return
            self._metrics.pass_inputs.labels("write").observe(len(batch.texts))
            self._metrics.tokens.inc(len(batch.texts))
            going = list(batch.texts)
            finished = batch.step()
        except Exception as error:
            still = set(waiting)
            self._retry(line, [text for text in asked if text not in still], error)
            return
        for text in going:
            job = self._writing[text]
            if job.on_tokens and not text.cancelled:
                job.on_tokens(list(text.ids))
        for text in finished:
            job = self._writing.pop(text)
            self._finish([job], [job.prompt.answer_of_text(text)])

    def _retry(self, line: _Line, texts: list[Text], error: Exception) -> None:
        """Write texts of a step that failed anew, in two lines of their own, until the one that fails is alone."""
        line.batch = TextBatch.of(line.backbone)
        if len(texts) == 1:
            _tell(error)
            self._finish([self._writing.pop(texts[0])], [error])
            return
        for text in texts:
            text.start_over()
        self._apart += [_Line(line.backbone, deque(half)) for half in _halves(texts)]

    def _finish(self, jobs: Sequence[Job] | set[Job], found: Sequence[Answer | Exception]) -> None:
        """Hand out what was found; without anything found, the jobs were given up."""
        with self._changed:
            self._unfinished.difference_update(jobs)
            self._metrics.unfinished.set(len(self._unfinished))
        for job, one in zip(jobs, found, strict=False):
            if not job.answer.set_running_or_notify_cancel():
                continue
            if isinstance(one, Exception):
                job.answer.set_exception(one)
            else:
                job.answer.set_result(one)


def _settle(work: Callable[[], Any], future: Future[Any]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)


def _halves(items: list[Item]) -> tuple[list[Item], list[Item]]:
    middle = len(items) // 2
    return items[:middle], items[middle:]


def _tell(error: Exception) -> None:
    """Log what is no fault of the input alone."""
    if not isinstance(error, PromptmillError):
        _log.error("an input failed", exc_info=error)
