"""What the routes share: from a name and inputs to jobs of the engine, and their answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request

from prompt_core.encoded import Encoded
from prompt_core.errors import PromptmillError, Unreachable
from prompt_core.ready import Answer, ReadyPrompt
from prompt_core.serving.catalogue import Catalogue
from prompt_core.serving.engine import Engine, Job
from prompt_core.serving.metrics import Metrics
from prompt_core.shelf import Shelved

Result = TypeVar("Result")
_LONG = 20_000  # bytes of a body; one without a length counts as long


@dataclass(frozen=True)
class Service:
    """The parts of a running server."""

    catalogue: Catalogue
    engine: Engine
    metrics: Metrics

    async def find(self, given: str) -> Shelved:
        """What a name stands for. Raises `NotServed`, or `Unreachable` where the store cannot say it now."""
        try:
            return await asyncio.to_thread(self.catalogue.find, given)
        except Unreachable:
            raise
        except PromptmillError as error:
            raise NotServed(error.where, error.what, error.fix) from None

    async def read(self, http: Request, ready: ReadyPrompt, encode: Callable[[], Result]) -> Result:
        """What `encode` of a prompt gives.

        One that retrieves demonstrations runs a model for it, and a long body takes a tokenizer, which lets others run, up to a
        second: neither is for the event loop.
        """
        if ready.retriever is not None:
            return await asyncio.to_thread(self.engine.call, encode)
        return encode() if int(http.headers.get("content-length", _LONG)) < _LONG else await asyncio.to_thread(encode)

    async def answers(self, jobs: Sequence[Job]) -> list[Answer]:
        """Submit jobs and wait for all; cancelled, it gives them up.

        Raises:
            EngineFull, EngineClosed: see `Engine.submit`.
            PromptmillError: the model refuses an input.
        """
        self.engine.submit(jobs)
        try:
            return list(await asyncio.gather(*(asyncio.wrap_future(job.answer) for job in jobs)))
        except BaseException:
            for job in jobs:
                job.cancel()
            raise

    def headers(self, shelved: Shelved) -> dict[str, str]:
        """What an answer says of the version that gave it, and of the aliases that it was taken back from."""
        off = self.catalogue.taken_back(shelved)
        return {"x-promptmill-version": shelved.address, **({"x-promptmill-taken-back": ", ".join(off)} if off else {})}

    def count(self, shelved: Shelved, inputs: int = 1) -> None:
        """Count inputs that a version has answered."""
        self.metrics.answers.labels(shelved.name, str(shelved.version)).inc(inputs)


class NotServed(PromptmillError):
    """A name that stands for nothing here."""


def a_job(prompt: ReadyPrompt, example: Encoded) -> Job:
    """An input as it was proven: the label or tags, or the most likely text."""
    return Job(prompt, example, None if prompt.scorer else prompt.text(example))
