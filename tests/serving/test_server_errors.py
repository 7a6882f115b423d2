"""Errors of the server: one shape, that of OpenAI's, whoever finds the mistake."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx2
import pytest
from running import running
from served_prompts import a_served_store

from prompt_core.backbone import Backbone
from prompt_core.serving import create_app
from prompt_core.store import PromptStore


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, llama: Backbone) -> PromptStore:
    return a_served_store(tmp_path_factory.mktemp("served") / "store", llama)


@pytest.fixture(scope="module")
def client(store: PromptStore) -> Iterator[httpx2.Client]:
    with running(store) as client:
        yield client


@pytest.mark.parametrize(
    ("method", "route", "body", "status", "message"),
    [
        ("GET", "/v1/predicted", b"", 404, "GET /v1/predicted: Not Found"),
        ("GET", "/v1/chat/completions", b"", 405, "GET /v1/chat/completions: Method Not Allowed"),
        ("POST", "/v1/predict", b"{", 422, "body: JSON decode error"),
        ("POST", "/v1/predict", b'{"prompt": "\xff"}', 400, "POST /v1/predict: There was an error parsing the body"),
    ],
)
def test_errors_of_every_kind_have_one_shape(
    client: httpx2.Client, method: str, route: str, body: bytes, status: int, message: str
) -> None:
    response = client.request(method, route, content=body, headers={"content-type": "application/json"})
    expected = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    assert (response.status_code, response.json()) == (status, {"error": expected})
    assert response.headers.get("allow") == ("POST" if status == 405 else None)


def test_a_fault_of_the_server_itself_has_this_shape_too(store: PromptStore) -> None:
    app = create_app(store)
    app.add_api_route("/faulty", lambda: 1 / 0)

    async def asked() -> httpx2.Response:
        transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.get("/faulty")

    response = asyncio.run(asked())
    assert (response.status_code, response.json()["error"]["type"]) == (500, "server_error")
