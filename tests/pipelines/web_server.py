"""A folder at a web address on a loopback port."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class _Serve(SimpleHTTPRequestHandler):
    def __init__(self, *args: Any, seconds: float, withheld: tuple[str, ...], **how: Any) -> None:
        self.seconds, self.withheld = seconds, withheld
        super().__init__(*args, **how)

    def send_head(self) -> Any:
        time.sleep(self.seconds)
        return super().send_head()

    def send_header(self, keyword: str, value: str) -> None:
        if keyword not in self.withheld:
            super().send_header(keyword, value)

    def log_message(self, *_: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    request_queue_size = 64  # with the usual 5, one of several clients at once waits a second to be let in


@contextmanager
def web_server(folder: Path, seconds: float = 0.0, withheld: tuple[str, ...] = ()) -> Iterator[str]:
    """The address of a folder, served after so many seconds for each request, without the headers that are withheld."""
    folder.mkdir(exist_ok=True)
    handler = partial(_Serve, seconds=seconds, withheld=withheld, directory=str(folder))
    with _Server(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
