"""The engine: failures stay with the input that fails, inputs that are scored and texts share its time."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest
from running import ask, running
from served_prompts import TEXTS, a_prompt, a_served_store, ready_on

from prompt_core.backbone import Backbone
from prompt_core.errors import PromptmillError
from prompt_core.ready import Answer
from prompt_core.sampling import Sampling
from prompt_core.serving.engine import Engine, EngineClosed, EngineFull, Job
from prompt_core.serving.metrics import Metrics
from prompt_core.serving.service import a_job
from prompt_core.store import PromptStore


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, llama: Backbone) -> PromptStore:
    return a_served_store(tmp_path_factory.mktemp("served") / "store", llama)


def test_the_engine_takes_all_jobs_of_a_request_or_none_and_goes_on_after_a_failure(store: PromptStore, llama: Backbone) -> None:
    engine = Engine(3, Metrics())
    ready = ready_on(llama)(store.get("reply"))
    jobs = [a_job(ready, ready.encode("a")) for _ in range(8)]
    engine.submit(jobs[:2])
    with pytest.raises(EngineFull):
        engine.submit(jobs[2:4])
    engine.submit(jobs[4:5])
    engine.start()
    assert len({job.answer.result(60).text for job in (*jobs[:2], jobs[4])}) == 1
    broken = Job(ready, ready.encode("a"), ready.text(ready.encode("a")))
    assert broken.text is not None
    broken.text.input = [10**9]  # no such token
    engine.submit([*jobs[5:6], broken])
    with pytest.raises(Exception, match="index"):
        broken.answer.result(60)
    assert jobs[5].answer.result(60).text == jobs[0].answer.result().text  # it was read in the pass that failed
    jobs[6].cancel()
    engine.submit(jobs[6:])
    assert jobs[7].answer.result(60).text == jobs[0].answer.result().text
    with pytest.raises(PromptmillError, match="there is no prompt"):
        engine.call(lambda: store.get("nobody"))
    engine.close()


def test_a_text_that_fails_while_it_is_written_fails_alone(store: PromptStore, llama: Backbone) -> None:
    engine = Engine(64, Metrics())
    ready = ready_on(llama)(store.get("reply"))
    jobs = [a_job(ready, ready.encode(text)) for text in TEXTS]
    engine.submit(jobs)
    broken = Job(ready, ready.encode("a"), ready.text(ready.encode("a"), 4, Sampling([0])))
    assert broken.text is not None and broken.text.uniforms is not None
    broken.text.uniforms = broken.text.uniforms[:2]  # none for the third token
    engine.submit([broken])
    engine.start()
    assert [job.answer.result(60).text for job in jobs] == store.get("reply").predict(TEXTS, llama)
    with pytest.raises(IndexError):
        broken.answer.result(60)
    engine.close()


def test_a_text_is_written_while_more_and_more_inputs_are_to_be_scored(llama: Backbone) -> None:
    metrics = Metrics()
    engine = Engine(1000, metrics)
    mood = ready_on(llama)(a_prompt(llama, "mood"))
    story = ready_on(llama)(a_prompt(llama, "story", writes=True, max_new_tokens=100))
    text = a_job(story, story.encode("a"))

    def one_more(finished: Future[Answer] | None) -> None:
        """For each input that is answered another one comes, as long as the text is written."""
        if not text.answer.done():
            job = a_job(mood, mood.encode("word " * 20))
            job.answer.add_done_callback(one_more)
            engine.submit([job])

    for _ in range(200):
        one_more(None)
    engine.submit([text])
    engine.start()
    written = len(text.answer.result(120).text)
    engine.close()
    count = {kind: metrics.registry.get_sample_value("promptmill_pass_inputs_count", {"kind": kind}) or 0 for kind in ("score", "write")}
    assert written and count["write"] > 20
    assert 2 <= count["score"] < count["write"] / 2  # a pass of 200 inputs takes longer than several steps of one text


def test_an_engine_that_fails_itself_keeps_nobody_waiting(store: PromptStore, llama: Backbone) -> None:
    ready = ready_on(llama)(store.get("reply"))

    def broken(ids: list[int]) -> None:
        raise RuntimeError("nobody listens")

    with running(store) as client:
        assert client.get("/health").status_code == 200
        (thread,) = (thread for thread in threading.enumerate() if thread.name == "promptmill-engine")
        engine: Engine = thread._target.__self__  # type: ignore[attr-defined]  # the server shows it to nobody
        jobs = [a_job(ready, ready.encode(text)) for text in TEXTS]
        jobs[2].on_tokens = broken
        engine.submit(jobs)
        for job in jobs:
            with pytest.raises(RuntimeError, match="nobody listens"):
                job.answer.result(60)
        thread.join(60)
        health = client.get("/health")
        assert health.status_code == 503 and health.json()["status"] == "the engine ended"
        refused = ask(client, "mood", "a")
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "temporarily_unavailable"
        with pytest.raises(EngineClosed):
            engine.call(lambda: None)
