"""A whole search through a real endpoint: llama.cpp's server on loopback proposes, the frozen model scores."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import xllamacpp
from helpers import a_task, examples

from prompt_core.backbone import Backbone
from prompt_core.backbone.locate import locate
from prompt_core.task import BackboneSpec
from prompt_core.tuning import tune

ROWS = examples(
    *[
        (f"The {thing} was {how}", label)
        for how, label in (("lovely", "good"), ("awful", "bad"))
        for thing in ("film", "meal", "room", "play")
    ]
)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Its address, with SmolLM2 in it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = xllamacpp.CommonParams()
    settings.model.path = str(locate(BackboneSpec(name="smollm2"), Path()).weights)
    settings.n_ctx, settings.n_parallel, settings.warmup = 4096, 2, False
    settings.hostnames, settings.port, settings.cpuparams.n_threads = ["127.0.0.1"], port, 1
    running = xllamacpp.Server(settings)
    yield f"http://127.0.0.1:{port}/v1"
    del running


@pytest.mark.slow
def test_the_whole_search_runs_through_it_and_is_paid_for_once(smollm2: Backbone, server: str, tmp_path: Path) -> None:
    endpoint = {
        "url": server,
        "model": "smollm2",
        "max_tokens": 40,
        "concurrency": 2,
        "dollars": 1.0,
        "dollars_per_million_read": 0.0,
        "dollars_per_million_written": 1000.0,
    }
    text = {"rounds": 1, "together": 4, "demonstrations": 0, "block": 4, "endpoint": endpoint}
    template = [{"system": "Answer."}, {"user": "{{ text }}"}]
    task = a_task("smollm2", template=template, prompt={"kind": "text"}, text=text, description="whether somebody liked it")
    prompt = tune(task, ROWS, None, smollm2, checkpoints=tmp_path)
    search = prompt.manifest.text_search
    assert search is not None and 0 < search.dollars <= 1.0
    journal = next(tmp_path.glob("*.jsonl")).read_text()
    wordings = {tried.wording for tried in search.tried} - {"Answer."}
    assert wordings and any(json_text(wording) in journal for wording in wordings)  # proposals arrived and were scored
    assert tune(task, ROWS, None, smollm2, checkpoints=tmp_path).digest == prompt.digest
    assert next(tmp_path.glob("*.jsonl")).read_text() == journal and server not in prompt.manifest.canonical().decode()


def json_text(wording: str) -> str:
    return wording[:20].replace('"', '\\"')
