"""Addresses of empty stores: a local folder, memory, and a bucket of a real S3 protocol server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of a bucket; the environment names server and key to this process and to those it starts."""
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("s3_server.py"))], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
            patch.setenv("AWS_ACCESS_KEY_ID", "test")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            patch.setenv("NO_PROXY", "127.0.0.1," + os.environ.get("NO_PROXY", ""))
            import s3fs

            s3fs.S3FileSystem().mkdir("prompts")
            yield "s3://prompts"
    finally:
        server.kill()  # it may take long to end by itself, and has nothing to lose
        server.wait()


@pytest.fixture
def s3(s3_server: str) -> str:
    return f"{s3_server}/team/{uuid4().hex}"


@pytest.fixture(params=["local", "memory", "s3"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an empty store can be: what is promised holds on all of them."""
    if request.param == "local":
        return str(tmp_path / "store")
    return f"memory://{uuid4().hex}" if request.param == "memory" else str(request.getfixturevalue("s3"))
