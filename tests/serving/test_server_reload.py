"""The server while its store changes or is away: aliases that move, versions taken back, prompts that cannot be loaded."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from helpers import backbone_at, memory_fails, save_tiny
from running import ask, running
from served_prompts import PASSED, TEXTS, a_prompt, a_served_store, publish

from prompt_core.backbone import Backbone
from prompt_core.store import PromptStore


def test_aliases_move_under_load_without_a_lost_or_mixed_answer(tmp_path: Path, llama: Backbone) -> None:
    store = PromptStore(tmp_path / "store")
    versions = [a_prompt(llama, "reply", writes=True, seed=seed, max_new_tokens=6) for seed in range(3)]
    by_digest = {prompt.digest: dict(zip(TEXTS, prompt.predict(TEXTS, llama), strict=True)) for prompt in versions}
    for prompt in versions:
        publish(store, prompt)
    stopping, seen = threading.Event(), set()

    def keep_asking(text: str) -> list[httpx2.Response]:
        found = []
        while not stopping.is_set():
            found.append(ask(client, "reply", text))
        return found

    with running(store, refresh_seconds=0.05) as client, ThreadPoolExecutor(6) as pool:
        asking = [pool.submit(keep_asking, text) for text in TEXTS]
        for move in range(8):
            store.promote("reply", 1 + move % 3, force=True, why="a test")
            while ask(client, "reply", TEXTS[0]).json()["predictions"][0]["version"] != 1 + move % 3:
                pass
        stopping.set()
        for text, answers in zip(TEXTS, asking, strict=True):
            for response in answers.result():
                assert response.status_code == 200
                (prediction,) = response.json()["predictions"]
                assert prediction["prediction"] == by_digest[prediction["digest"]][text]
                seen.add(prediction["version"])
    assert seen == {1, 2, 3}


def test_a_withdrawn_prompt_is_served_no_more_and_a_request_that_has_begun_is_answered(
    tmp_path: Path, llama: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    store = PromptStore(tmp_path / "store")
    for seed in (1, 2):
        publish(store, a_prompt(llama, "reply", writes=True, seed=seed, max_new_tokens=120))
    store.promote("reply", 1, "candidate")
    publish(store, a_prompt(llama, "mood"))
    chat = {"model": "reply", "messages": [{"role": "user", "content": "a"}], "stream": True}
    with running(store, refresh_seconds=0.05) as client:
        with client.stream("POST", "/v1/chat/completions", json=chat) as begun:
            lines = begun.iter_lines()
            assert next(lines).startswith("data: ")
            store.withdraw("reply", why="names a customer")
            while client.get("/v1/models/reply").status_code == 200:
                pass
            assert begun.headers["x-promptmill-version"] == "reply@2" and [line for line in lines if line][-1] == "data: [DONE]"
        refused = ask(client, "reply", "a")
        assert refused.status_code == 404
        assert 'prompt reply: there is no alias \\"production\\". Known: candidate.' in refused.text
        assert ask(client, "reply@candidate", "a").json()["predictions"][0]["version"] == 1
        by_number = ask(client, "reply@2", "a"), client.post("/v1/chat/completions", json={**chat, "model": "reply@2", "stream": False})
        assert [answer.headers["x-promptmill-taken-back"] for answer in by_number] == ["production"] * 2
        assert "reply@2 was taken back: who asks for it by its number still gets it" in caplog.text
        assert "x-promptmill-taken-back" not in ask(client, "reply@1", "a").headers
        assert {model["id"] for model in client.get("/v1/models").json()["data"]} == {"mood", "mood@production", "reply@candidate"}
        store.withdraw("reply", "candidate", why="the task is retired")
        while ask(client, "reply@candidate", "a").status_code == 200:
            pass
        for path, body in (("predict", {"prompt": "reply", "inputs": ["a"]}), ("compare", {"prompt": "reply", "input": "a"})):
            assert "No alias is set; promote one of the versions 1, 2" in client.post(f"/v1/{path}", json=body).text
        assert [prompt["name"] for prompt in client.get("/v1/prompts").json()] == ["mood"] and ask(client, "mood", "a").status_code == 200


@pytest.mark.parametrize("left", ["nothing", "a file"])
def test_what_is_served_stays_when_the_store_cannot_be_read(tmp_path: Path, llama: Backbone, left: str) -> None:
    store = a_served_store(tmp_path / "store", llama)
    with running(store, refresh_seconds=0.05) as client:
        (tmp_path / "store").rename(tmp_path / "away")
        if left == "a file":
            (tmp_path / "store").write_text("no store")
        while 'promptmill_reloads_total{outcome="failed"}' not in client.get("/metrics").text:
            pass
        assert ask(client, "mood", "a").status_code == 200


def test_what_cannot_be_loaded_while_the_store_is_away_is_answered_with_503(llama: Backbone, tmp_path: Path) -> None:
    store = PromptStore("memory://" + tmp_path.name)
    for seed in (1, 2):
        publish(store, a_prompt(llama, "mood", seed=seed))
    chat = {"model": "mood@1", "messages": [{"role": "user", "content": "a"}]}
    with running(store, refresh_seconds=0.05) as client:
        with memory_fails(ConnectionResetError("reset by peer")):
            refused = [ask(client, "mood@1", "a"), client.post("/v1/chat/completions", json=chat), client.get("/v1/models/mood@1")]
            assert ask(client, "mood@2", "a").status_code == ask(client, "mood", "a").status_code == 200
        assert [(response.status_code, response.headers["retry-after"]) for response in refused] == [(503, "1")] * 3
        assert "reset by peer" in refused[0].json()["error"]["message"]
        while (found := ask(client, "mood@1", "a")).status_code == 503:
            pass
        assert found.json()["predictions"][0]["version"] == 1


def test_a_prompt_that_cannot_be_loaded_holds_up_no_other(tmp_path: Path, llama: Backbone) -> None:
    store = PromptStore(tmp_path / "store")
    for seed in (1, 2):
        publish(store, a_prompt(llama, "mood", seed=seed))
    with running(store, refresh_seconds=0.05) as client:
        elsewhere = backbone_at(str(save_tiny("gpt2", tmp_path / "elsewhere")))
        (tmp_path / "elsewhere").rename(tmp_path / "gone")
        publish(store, a_prompt(elsewhere, "other"))
        store.promote("mood", store.publish(a_prompt(elsewhere, "mood"), PASSED), "candidate")
        store.rollback("mood")
        publish(store, a_prompt(llama, "fresh"))
        while ask(client, "fresh", "a").status_code == 404 or ask(client, "mood", "a").json()["predictions"][0]["version"] != 1:
            pass
        assert {one["name"]: one["aliases"] for one in client.get("/v1/prompts").json()}["mood"]["production"] == 1
        assert "is not served" in ask(client, "other", "a").text
        while "could not be loaded a moment ago" not in ask(client, "mood@candidate", "a").text:  # no load for every request
            pass
    with running(store, refresh_seconds=0.05) as client:  # a new server starts without them
        assert ask(client, "mood", "a").json()["predictions"][0]["version"] == 1 and client.get("/health").json()["prompts"] == 2
        assert "promptmill_unloaded_aliases 0.0" not in client.get("/metrics").text
        (tmp_path / "gone").rename(tmp_path / "elsewhere")
        while ask(client, "other", "a").status_code == 404:
            pass
        while "promptmill_unloaded_aliases 0.0" not in client.get("/metrics").text:
            pass
