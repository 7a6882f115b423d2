"""A hub on a loopback port that has the pooling settings of one revision of an encoder, and nothing else."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "d" * 40
_FILE = f"/org/encoder/resolve/{COMMIT}/1_Pooling/config.json"
_SETTINGS = json.dumps({"pooling_mode_cls_token": True}).encode()


class _Hub(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        found = self.path == _FILE
        content = _SETTINGS if found else b""
        self.send_response(200 if found else 404)
        for name, value in {"X-Repo-Commit": COMMIT, "ETag": '"1"', "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        if not found:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def pooling_hub() -> Iterator[str]:
    """Its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
