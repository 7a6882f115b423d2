"""An OpenAI-compatible server of our own that misbehaves as it is told, on a real port."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """What the server was asked, and where it is."""

    url: str
    bodies: list[dict[str, object]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)


@contextmanager
def serving(behaviours: Sequence[str]) -> Iterator[Served]:
    """A server whose n-th request gets the n-th behaviour, all further ones "good".

    good: an answer; 429, 500, 401, ...: that status; hang: silence for 5 s; garbage: no JSON; odd: JSON of another shape; mute: an
    answer without text, which is charged.
    """
    waiting, lock = list(behaviours), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                behaviour = waiting.pop(0) if waiting else "good"
                served.bodies.append(body)
                served.keys.append(self.headers.get("Authorization", ""))
            if behaviour == "hang":
                time.sleep(5)
                return
            status = int(behaviour) if behaviour.isdigit() else 200
            content = _CONTENT.get(behaviour, '{"error": {"message": "no"}}')
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Served(f"http://127.0.0.1:{server.server_port}/v1")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()


_GOOD = {
    "id": "1",
    "object": "chat.completion",
    "created": 0,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "<instruction>Say which mood the text has.</instruction>"},
        }
    ],
    "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
}
_MUTE = _GOOD | {"choices": [{"index": 0, "finish_reason": "content_filter", "message": {"role": "assistant", "content": None}}]}
_CONTENT = {"good": json.dumps(_GOOD), "mute": json.dumps(_MUTE), "odd": '{"choices": 3}', "garbage": "<html>oops"}
