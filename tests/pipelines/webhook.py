"""A webhook on a loopback port that keeps what it is told."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PLANTED = "planted-key-5f1c"  # part of its address, which is a secret


class Receiver(ThreadingHTTPServer):
    """A webhook on a loopback port: keeps what it takes, which is what it answers 200 to."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Keep)
        self.told: list[dict[str, Any]] = []
        self.answer: Callable[[dict[str, Any]], int] = lambda message: 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook/{PLANTED}"


class _Keep(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status = self.server.answer(message)
        if status == 200:
            self.server.told.append(message)
        self.send_response(status)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def webhook() -> Iterator[Receiver]:
    """A running one."""
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
