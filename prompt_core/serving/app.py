"""The server as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

import prompt_core
from prompt_core.errors import PromptmillError, Unreachable
from prompt_core.serving.catalogue import Catalogue
from prompt_core.serving.disconnect import ClientGone
from prompt_core.serving.engine import Engine, EngineClosed, EngineFull
from prompt_core.serving.limits import Guard, error_body
from prompt_core.serving.metrics import Metrics
from prompt_core.serving.openai_routes import openai_routes
from prompt_core.serving.predict_routes import predict_routes
from prompt_core.serving.service import NotServed, Service
from prompt_core.store import PromptStore

_PLAYGROUND = Path(__file__).with_name("playground.html")
_CLIENT_GONE = 499  # nginx's number for it


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
        unfinished: inputs that may wait or be answered at a time; more are turned away with 503.
        body_bytes: of a request; more are turned away with 413.
        retry_seconds: what `Retry-After` says.
    """

    unfinished: int = 512
    body_bytes: int = 2**20
    retry_seconds: int = 1


def create_app(
    store: PromptStore, names: Sequence[str] = (), *, token: str | None = None, limits: Limits | None = None, refresh_seconds: float = 2.0
) -> FastAPI:
    """The application; models and prompts are loaded when it starts.

    Args:
        store: where prompts are published.
        names: what is served; default: every prompt of the store.
        token: what clients must send as `Authorization: Bearer`; None for an open server.
        limits: default: `Limits()`.
        refresh_seconds: between looks at the store, in which aliases may have moved.
    """
    limits = limits or Limits()
    metrics = Metrics()
    engine = Engine(limits.unfinished, metrics)
    catalogue = Catalogue(store, names, engine, refresh_seconds, metrics)

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        engine.start()
        try:
            try:
                catalogue.start()
            except PromptmillError as error:
                app.state.refused = error  # for whoever runs the server to say in one line
                raise
            yield
            catalogue.close()
        finally:
            engine.close()

    app = FastAPI(title="Promptmill", version=prompt_core.__version__, lifespan=running, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, token=token, most_bytes=limits.body_bytes, metrics=metrics)
    service = Service(catalogue, engine, metrics)
    app.include_router(predict_routes(service))
    app.include_router(openai_routes(service))
    _add_errors(app, limits)

    @app.get("/", include_in_schema=False)
    async def playground() -> HTMLResponse:
        return HTMLResponse(_PLAYGROUND.read_text(encoding="utf-8"))

    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether the server answers, and how many prompts it serves; 503 where only a new start helps."""
        alive = engine.alive
        return JSONResponse({"status": "ok" if alive else "the engine ended", "prompts": len(catalogue.summaries)}, 200 if alive else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> PlainTextResponse:
        """Metrics for Prometheus."""
        return PlainTextResponse(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def _add_errors(app: FastAPI, limits: Limits) -> None:
    def refused(status: int, message: str, kind: str = "invalid_request_error", code: str | None = None, **headers: str) -> JSONResponse:
        return JSONResponse(error_body(message, kind, code), status, headers)

    def unavailable(message: str, code: str) -> JSONResponse:
        return refused(503, message, "server_error", code, **{"retry-after": str(limits.retry_seconds)})

    @app.exception_handler(PromptmillError)
    async def bad(_: Request, error: PromptmillError) -> JSONResponse:
        if isinstance(error, NotServed):
            return refused(404, str(error), code="model_not_found")
        if isinstance(error, Unreachable):
            return unavailable(str(error), "temporarily_unavailable")
        return refused(400, str(error))

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        found = error.errors()[0]
        place = [] if found["type"] == "json_invalid" else found["loc"][1:]  # a position says little without the body
        return refused(422, f"{'.'.join(map(str, place)) or 'body'}: {found['msg']}")

    @app.exception_handler(HTTPException)
    async def unfit(request: Request, error: HTTPException) -> JSONResponse:
        """No such route or method, or a body that cannot be read."""
        return refused(error.status_code, f"{request.method} {request.url.path}: {error.detail}", **(error.headers or {}))

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return refused(500, "the server failed; its log says why", "server_error")

    @app.exception_handler(ClientGone)
    async def gone(_: Request, error: ClientGone) -> Response:
        return Response(status_code=_CLIENT_GONE)  # nobody reads it, but it is counted

    @app.exception_handler(EngineFull)
    async def full(_: Request, error: EngineFull) -> JSONResponse:
        message = f"{limits.unfinished} inputs are waiting or being answered"
        return unavailable(message, "queue_full")

    @app.exception_handler(EngineClosed)
    async def closed(_: Request, error: EngineClosed) -> JSONResponse:
        return unavailable("the server is ending, or its engine failed: /health says which", "temporarily_unavailable")
