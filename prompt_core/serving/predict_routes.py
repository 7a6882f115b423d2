"""Promptmill's own routes: predictions, what is served, and versions side by side."""

from __future__ import annotations

import asyncio
import time
from functools import partial

from fastapi import APIRouter, Request, Response

from prompt_core.ready import ReadyPrompt
from prompt_core.serving.disconnect import while_connected
from prompt_core.serving.engine import Job
from prompt_core.serving.models import (
    Compared,
    CompareRequest,
    CompareResponse,
    Prediction,
    PredictRequest,
    PredictResponse,
    ServedPrompt,
)
from prompt_core.serving.service import Service, a_job
from prompt_core.shelf import Shelved


def predict_routes(service: Service) -> APIRouter:
    """`/v1/predict`, `/v1/prompts` and `/v1/compare`."""
    router = APIRouter(prefix="/v1", tags=["promptmill"])

    @router.post("/predict")
    async def predict(request: PredictRequest, http: Request, response: Response) -> PredictResponse:
        """Labels, texts or entities of one prompt; requests for any prompts are answered together."""
        shelved = await service.find(request.prompt)
        examples = await service.read(http, shelved.ready, lambda: shelved.ready.encode_all(request.inputs))
        jobs = [a_job(shelved.ready, example) for example in examples]
        answers = await while_connected(http, service.answers(jobs))
        service.count(shelved, len(answers))
        response.headers.update(service.headers(shelved))
        predictions = [
            Prediction(prediction=answer.text, score=answer.score, prompt=shelved.name, version=shelved.version, digest=shelved.digest)
            for answer in answers
        ]
        return PredictResponse(predictions=predictions)

    @router.get("/prompts")
    async def prompts() -> list[ServedPrompt]:
        """What is served, with versions and aliases."""
        return [
            ServedPrompt(
                name=summary.name,
                base=live.tuned.manifest.backbone.name,
                kind=live.tuned.manifest.kind,
                fields=list(live.ready.encoding.fields),
                labels=list(live.ready.labels),
                versions=list(summary.versions),
                aliases=summary.aliases,
            )
            for summary in service.catalogue.summaries
            for live in [shelved for shelved in service.catalogue.addresses.values() if shelved.name == summary.name][:1]
        ]

    @router.post("/compare")
    async def compare(request: CompareRequest, http: Request) -> CompareResponse:
        """Versions of a prompt and the untuned model side by side, answered in one pass."""
        aliases: dict[int, list[str]] = {}
        for summary in service.catalogue.summaries:
            for alias, version in summary.aliases.items() if summary.name == request.prompt else ():
                aliases.setdefault(version, []).append(alias)
        chosen = sorted(set(request.versions or aliases), reverse=True)
        shelved = [await service.find(f"{request.prompt}@{version}") for version in chosen] or [await service.find(request.prompt)]
        untuned = await asyncio.to_thread(service.catalogue.untuned, shelved[0])
        contenders: list[tuple[Shelved | None, ReadyPrompt]] = [(None, untuned), *((one, one.ready) for one in shelved)]
        jobs = [a_job(ready, await service.read(http, ready, partial(ready.encode, request.input))) for _, ready in contenders]
        start, ends = time.perf_counter(), dict[Job, float]()
        for job in jobs:
            job.answer.add_done_callback(partial(_note_end, ends, job))
        found = await while_connected(http, service.answers(jobs))
        answers = [
            Compared(
                version=one.version if one else None,
                aliases=aliases.get(one.version, []) if one else [],
                prediction=answer.text,
                score=answer.score,
                seconds=round(ends[job] - start, 4),
            )
            for (one, _), job, answer in zip(contenders, jobs, found, strict=True)
        ]
        return CompareResponse(answers=answers)

    return router


def _note_end(ends: dict[Job, float], job: Job, _: object) -> None:
    ends[job] = time.perf_counter()
