"""A real S3 protocol server on a loopback port: moto in a process of its own.

One request at a time, because S3 decides a conditional write in one step while moto looks first and then writes.
"""

from __future__ import annotations

import sys


def main() -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=False)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
