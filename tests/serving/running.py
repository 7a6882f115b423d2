"""The server as it runs: uvicorn on a free port of loopback, in a thread of the tests' process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import uvicorn

from prompt_core.serving import create_app
from prompt_core.store import PromptStore


@contextmanager
def running(store: PromptStore, **settings: Any) -> Iterator[httpx2.Client]:
    """A client of a server over the store; its `base_url` says where it is."""
    server = uvicorn.Server(uvicorn.Config(create_app(store, **settings), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


def ask(client: httpx2.Client, prompt: str, *texts: str) -> httpx2.Response:
    return client.post("/v1/predict", json={"prompt": prompt, "inputs": list(texts)})
