"""OpenAI's routes, so that existing clients work with `model: "support_reply@production"`.

A tuned prompt is the instruction and takes one input: the last message. System messages stay aside, and the header
`x-promptmill-ignored` says so; earlier turns and tools are refused rather than left out in silence.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from prompt_core.encoded import Encoded
from prompt_core.errors import PromptmillError
from prompt_core.sampling import Sampling
from prompt_core.serving.disconnect import while_connected
from prompt_core.serving.engine import Job
from prompt_core.serving.limits import error_body
from prompt_core.serving.models import ChatRequest
from prompt_core.serving.service import Service, a_job
from prompt_core.serving.stream import TextStream
from prompt_core.shelf import Shelved

_INSTRUCTIONS = ("system", "developer")
_UNSUPPORTED = ("tools", "functions", "logprobs", "top_logprobs", "logit_bias", "presence_penalty", "frequency_penalty")
_COLDEST = 1e-5  # a temperature below it draws nothing but the most likely token, and logits divided by it are no numbers any more


def openai_routes(service: Service) -> APIRouter:
    """`/v1/chat/completions` and `/v1/models`."""
    router = APIRouter(prefix="/v1", tags=["openai"])

    @router.get("/models")
    async def models() -> dict[str, Any]:
        """All names that `model` may have; a version's number works too, `name@3`."""
        return {"object": "list", "data": [_model(name) for name in service.catalogue.addresses]}

    @router.get("/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        """One of them."""
        await service.find(name)
        return _model(name)

    @router.post("/chat/completions", response_model=None)
    async def chat(request: ChatRequest, http: Request) -> Response:
        """The answer to the last message; with `stream` as server-sent events."""
        _check(request)
        shelved = await service.find(request.model)
        given = _input(request, shelved)
        example = await service.read(http, shelved.ready, lambda: shelved.ready.encode(given))
        job = _job(request, shelved, example)
        stream = TextStream(job, [request.stop] if isinstance(request.stop, str) else request.stop or [])
        service.engine.submit([job])
        service.count(shelved)
        used = len(shelved.ready.state.root) + shelved.ready.state.keys.shape[1] + len(example.input)
        ignored = any(message.role in _INSTRUCTIONS for message in request.messages)
        headers = {**service.headers(shelved), **({"x-promptmill-ignored": "system"} if ignored else {})}
        head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": request.model}
        head["system_fingerprint"] = shelved.digest[:12]
        if request.stream:
            with_usage = request.stream_options is not None and bool(request.stream_options.include_usage)
            return StreamingResponse(_events(stream, head, used, with_usage), media_type="text/event-stream", headers=headers)
        text = await while_connected(http, stream.whole())
        choice = {"index": 0, "message": {"role": "assistant", "content": text, "refusal": None}, "logprobs": None}
        choice["finish_reason"] = stream.finish_reason
        usage = _usage(used, stream.tokens)
        return JSONResponse({**head, "object": "chat.completion", "choices": [choice], "usage": usage}, headers=headers)

    return router


def _check(request: ChatRequest) -> None:
    """Refuse what a tuned prompt cannot do. Raises PromptmillError."""
    last, *before = reversed(request.messages)
    if last.role != "user" or any(message.role not in _INSTRUCTIONS for message in before):
        raise PromptmillError("messages", "has other turns than one of the user", "A tuned prompt takes one input: send it alone.")
    if request.n not in (None, 1):
        raise PromptmillError("n", f"is {request.n}", "Send several requests; they are answered together.")
    for name in _UNSUPPORTED:
        if getattr(request, name):
            raise PromptmillError(name, "is not supported", "Leave it out.")
    if request.response_format and request.response_format.get("type") != "text":
        raise PromptmillError("response_format", "is not supported", "Leave it out: the prompt was tuned for its form.")


def _input(request: ChatRequest, shelved: Shelved) -> str | dict[str, Any]:
    """The text, or for a template with several fields a JSON object in it."""
    if request.fields is not None:
        return request.fields
    try:
        text = request.messages[-1].plain
    except ValueError as error:
        raise PromptmillError("messages", str(error), "Send text.") from None
    names = shelved.ready.encoding.fields
    if len(names) == 1:
        return text
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        fix = 'Send them as a JSON object in the message, or as "fields" in the body.'
        raise PromptmillError("messages", f"{shelved.name} takes the fields {', '.join(names)}", fix)
    return fields


def _job(request: ChatRequest, shelved: Shelved, example: Encoded) -> Job:
    ready = shelved.ready
    if ready.scorer:
        return a_job(ready, example)
    sampling = None
    if request.temperature and request.temperature >= _COLDEST and request.top_p != 0:
        seed = secrets.randbits(63) if request.seed is None else request.seed % 2**63
        sampling = Sampling([seed], request.temperature, 1.0 if request.top_p is None else request.top_p)
    room = ready.backbone.max_positions - len(ready.state.root) - ready.state.keys.shape[1] - len(example.input)
    longest = request.max_completion_tokens or request.max_tokens or ready.max_new_tokens
    return Job(ready, example, ready.text(example, max(1, min(longest, room)), sampling))


async def _events(stream: TextStream, head: dict[str, Any], used: int, with_usage: bool) -> AsyncIterator[str]:
    def event(choices: list[dict[str, Any]], **more: Any) -> str:
        return f"data: {json.dumps({**head, 'object': 'chat.completion.chunk', 'choices': choices, **more}, ensure_ascii=False)}\n\n"

    def choice(delta: dict[str, str], finish_reason: str | None = None) -> list[dict[str, Any]]:
        return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]

    yield event(choice({"role": "assistant", "content": ""}))
    try:
        async for part in stream.parts():
            yield event(choice({"content": part}))
    except asyncio.CancelledError:
        raise
    except Exception as error:  # the answer has begun: what went wrong is said in it
        yield f"data: {json.dumps(error_body(str(error), 'server_error'))}\n\n"
        return
    yield event(choice({}, stream.finish_reason))
    if with_usage:
        yield event([], usage=_usage(used, stream.tokens))
    yield "data: [DONE]\n\n"


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "promptmill"}
