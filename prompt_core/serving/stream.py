"""A text as it grows: the engine's tokens become parts of text on the event loop, up to a stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Literal

from prompt_core.serving.engine import Job

_HALF = "\ufffd"  # what the tokenizer gives for a character whose bytes are not all there


class TextStream:
    """The parts of a job's answer; made before the job is submitted, on the event loop.

    Args:
        stops: texts that end the answer; they are not part of it.

    Attributes:
        finish_reason: of OpenAI's; meaningful when all parts have come.
        tokens: how many were written.
    """

    def __init__(self, job: Job, stops: Sequence[str]) -> None:
        self._job, self._stops = job, [stop for stop in stops if stop]
        self._arrived: asyncio.Queue[list[int] | None] = asyncio.Queue()
        self.finish_reason: Literal["stop", "length"] = "stop"
        self.tokens = 0
        loop = asyncio.get_running_loop()
        if job.text:
            job.on_tokens = lambda ids: _soon(loop, self._arrived, ids)
        job.answer.add_done_callback(lambda _: _soon(loop, self._arrived, None))

    async def parts(self) -> AsyncIterator[str]:
        """Parts of the text in order. When nobody listens any more, the text is given up.

        Raises:
            PromptmillError: the model refuses the input.
        """
        shown = ""
        try:
            while (ids := await self._arrived.get()) is not None:
                self.tokens = len(ids)
                text = self._job.prompt.encoding.decode(ids)
                if (end := self._stop_in(text)) is not None:
                    self._job.cancel()
                    if len(text[:end]) > len(shown):
                        yield text[len(shown) : end]
                    return
                text = text[: len(text) - self._held(text)]
                if text.startswith(shown) and len(text) > len(shown):
                    part, shown = text[len(shown) :], text
                    yield part
            answer = await asyncio.wrap_future(self._job.answer)
            if self._job.text and not self._job.text.ended:
                self.finish_reason = "length"
            if answer.text.startswith(shown) and len(answer.text) > len(shown):
                yield answer.text[len(shown) :]
        finally:
            if not self._job.answer.done():
                self._job.cancel()

    async def whole(self) -> str:
        """The text, as `parts`."""
        return "".join([part async for part in self.parts()])

    def _stop_in(self, text: str) -> int | None:
        """Where the first stop begins."""
        places = [place for place in map(text.find, self._stops) if place >= 0]
        return min(places, default=None)

    def _held(self, text: str) -> int:
        """Characters at the end that may become something else: half a character, or the beginning of a stop."""
        whole = text.rstrip(_HALF)
        half, held = len(text) - len(whole), 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(whole)), held, -1):
                if whole.endswith(stop[:size]):
                    held = size
                    break
        return half + held


def _soon(loop: asyncio.AbstractEventLoop, queue: asyncio.Queue[list[int] | None], item: list[int] | None) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(queue.put_nowait, item)
