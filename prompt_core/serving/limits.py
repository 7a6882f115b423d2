"""What stands before every route: the token, the limit of a body, and the count of requests."""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prompt_core.serving.metrics import Metrics

_OPEN = ("/", "/health")
_ROUTES = ("/", "/health", "/metrics", "/openapi.json", "/v1/chat/completions", "/v1/compare", "/v1/models", "/v1/predict", "/v1/prompts")


class Guard:
    """Answers 401 and 413 before a route sees the request.

    Args:
        app: what stands behind.
        token: what `Authorization: Bearer` must say; None for nothing. It is compared in constant time and shown nowhere.
        most_bytes: of a body.
        metrics: where requests are counted.
    """

    def __init__(self, app: ASGIApp, token: str | None, most_bytes: int, metrics: Metrics) -> None:
        self._app, self._token, self._most, self._metrics = app, token, most_bytes, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, _briefly(send))
            return
        if scope["type"] != "http":  # a websocket, over which nothing is served, answered with 403
            await send({"type": "websocket.close"})
            return
        route = next((route for route in _ROUTES if scope["path"] == route), "other")
        start, status = time.perf_counter(), 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._guarded(scope, receive, counted)
        finally:
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - start)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        if self._token is not None and scope["path"] not in _OPEN and not self._is_known(headers.get(b"authorization", b"")):
            await _refuse(send, 401, "a bearer token is needed", {"www-authenticate": "Bearer"})
            return
        body, more = bytearray(), True
        length = headers.get(b"content-length", b"0")
        while more and (not length.isdigit() or int(length) <= self._most):
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._most:
                break
        if more or len(body) > self._most:
            await _refuse(send, 413, f"the body has more than {self._most} bytes", {"connection": "close"})
            return
        given = False

        async def replayed() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self._app(scope, replayed, send)

    def _is_known(self, header: bytes) -> bool:
        kind, _, given = header.partition(b" ")
        return kind.lower() == b"bearer" and hmac.compare_digest(given.strip(), (self._token or "").encode())


def error_body(message: str, kind: str, code: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _briefly(send: Send) -> Send:
    """A failed start in one line, without its traceback."""

    async def brief(message: Message) -> None:
        lines = message.get("message", "").strip().splitlines()
        await send({**message, "message": lines[-1]} if lines else message)

    return brief


async def _refuse(send: Send, status: int, message: str, headers: Mapping[str, str]) -> None:
    content = json.dumps(error_body(message, "invalid_request_error")).encode()
    plain = {"content-type": "application/json", "content-length": str(len(content)), **headers}
    start = [(name.encode(), value.encode()) for name, value in plain.items()]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": content})
