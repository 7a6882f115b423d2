"""Real servers for tests: each on a port of its own, its output in a file, stopped with everything it started."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

T = TypeVar("T")


def program(name: str) -> str | None:
    """Where a program is; PostgreSQL's are not on the path in Debian."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return shutil.which(name, path=os.pathsep.join([os.environ["PATH"], *map(str, versions)]))


def needs(name: str, package: str) -> pytest.MarkDecorator:
    """Skips where a program is absent, with the command that installs it."""
    return pytest.mark.skipif(program(name) is None, reason=f"{name} is not here: apt-get install {package}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(found: Callable[[], T | None], seconds: float, what: str) -> T:
    """The first answer that is not empty; what fails meanwhile is tried again."""
    last: Exception | None = None
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if answer := found():
                return answer
        except Exception as error:
            last = error
        time.sleep(0.2)
    raise AssertionError(f"{what} did not come within {seconds} s; last error: {last!r}")


class Server:
    """A process in a session of its own."""

    def __init__(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None, cwd: Path | None = None, **how: object
    ):
        self.command, self.log = command, log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                env=environment,
                cwd=cwd,
                start_new_session=True,
                **how,  # type: ignore[call-overload]
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def family(self) -> list[psutil.Process]:
        """The process and all that it started, youngest last."""
        try:
            parent = psutil.Process(self.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def kill(self, spare: Callable[[psutil.Process], bool] = lambda _: False) -> None:
        """`kill -9` the process and its children, but for those to spare."""
        for process in self.family():
            if not spare(process):
                process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ask it to end; after 15 s it is made to."""
        family = self.family()
        if not self.has_ended():
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for process in family:
            if process.is_running():
                process.kill()


class PostgreSQL:
    """A server of its own with the user and database `promptmill`, which survives being killed."""

    def __init__(self, folder: Path, port: int) -> None:
        # The server refuses to run as root, and its user cannot look into root's folders.
        self._as = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
        self.folder, self.port, self._log = folder, port, folder / "log"
        if self._as:
            shutil.chown(folder, "postgres", "postgres")
        self._run("initdb", "--auth=trust", "--username=promptmill", "--no-sync", "-D", str(folder / "data"))
        self.start()
        self._run("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "promptmill", "promptmill")

    @property
    def environment(self) -> dict[str, str]:
        who = {"PGUSER": "promptmill", "PGPASSWORD": "unused", "PGDATABASE": "promptmill"}
        return {"PGHOST": "127.0.0.1", "PGPORT": str(self.port), **who}

    def start(self) -> None:
        """Start it and wait until it answers; children of a killed one may hold its memory for a moment."""

        def answers() -> bool:
            if self.server is None or self.server.has_ended():
                options = ["-h", "127.0.0.1", "-p", str(self.port), "-k", str(self.folder), "-c", "fsync=off"]
                self.server = Server(
                    [str(program("postgres")), "-D", str(self.folder / "data"), *options], self._log, cwd=self.folder, **self._as
                )
            return self._run("pg_isready", "-h", "127.0.0.1", "-p", str(self.port), check=False) == 0

        self.server: Server | None = None
        wait_for(answers, 30, "PostgreSQL")

    def kill(self) -> None:
        """`kill -9` the server; its children see that and end."""
        assert self.server
        self.server.kill()

    def stop(self) -> None:
        assert self.server
        self.server.stop()

    def _run(self, name: str, *arguments: str, check: bool = True) -> int:
        command = [str(program(name)), *arguments]
        run = subprocess.run(command, cwd=self.folder, capture_output=True, check=False, **self._as)  # type: ignore[call-overload]
        assert run.returncode == 0 or not check, run.stderr
        return int(run.returncode)


@contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """PostgreSQL in a new folder."""
    folder = Path(tempfile.mkdtemp(prefix="promptmill-postgresql-"))
    try:
        server = PostgreSQL(folder, free_port())
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    """Redis without a file of its own; gives its URL."""
    port = free_port()
    command = [str(program("redis-server")), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    server = Server(command, folder / "redis.log")
    try:
        wait_for(lambda: socket.create_connection(("127.0.0.1", port), 1), 20, "Redis").close()
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.stop()
