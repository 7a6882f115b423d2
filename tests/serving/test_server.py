"""The server: right answers to requests for many prompts at once, limits that answer instead of crashing."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import httpx2
import pytest
from click.testing import CliRunner
from helpers import backbone_at, save_tiny
from running import ask, running
from served_prompts import TEXTS, a_prompt, a_retrieving_prompt, a_served_store, publish, ready_on

from prompt_core.backbone import Backbone
from prompt_core.cli import main
from prompt_core.errors import PromptmillError
from prompt_core.serving import Limits
from prompt_core.store import PromptStore

NAMES = ("mood", "tone", "reply", "story")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, llama: Backbone) -> PromptStore:
    return a_served_store(tmp_path_factory.mktemp("served") / "store", llama)


@pytest.fixture(scope="module")
def client(store: PromptStore) -> Iterator[httpx2.Client]:
    with running(store, limits=Limits(unfinished=64, body_bytes=4000)) as client:
        yield client


@pytest.fixture(scope="module")
def expected(store: PromptStore, llama: Backbone) -> dict[tuple[str, str], str]:
    prompts = {name: store.get(name) for name in NAMES}
    return {(name, text): answer for name in NAMES for text, answer in zip(TEXTS, prompts[name].predict(TEXTS, llama), strict=True)}


def test_requests_for_many_prompts_at_once_each_get_their_own_answer(
    client: httpx2.Client, expected: dict[tuple[str, str], str], store: PromptStore
) -> None:
    asked = [(name, text) for name in NAMES for text in TEXTS] * 2
    random.Random(0).shuffle(asked)
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda pair: ask(client, *pair), asked))
    for (name, text), response in zip(asked, found, strict=True):
        (prediction,) = response.json()["predictions"]
        assert prediction["prediction"] == expected[name, text]
        assert (prediction["version"], prediction["digest"]) == (1, store.get(name).digest)
    metrics = client.get("/metrics").text
    assert 'promptmill_answers_total{prompt="mood",version="1"}' in metrics and "promptmill_unfinished_inputs 0.0" in metrics
    shared = [float(line.split()[-1]) for line in metrics.splitlines() if line.startswith("promptmill_pass_inputs_sum")]
    passes = [float(line.split()[-1]) for line in metrics.splitlines() if line.startswith("promptmill_pass_inputs_count")]
    assert sum(shared) > sum(passes)  # some were answered together


def test_each_input_gets_its_own_demonstrations_beside_other_prompts(tmp_path: Path, llama: Backbone) -> None:
    store = PromptStore(tmp_path / "store")
    pool = [(f"Parcel {i} is {how}", label) for i in range(3) for how, label in (("wet", "bad"), ("here", "good"), ("lost", "bad"))]
    prompts = {"near": a_retrieving_prompt(llama, "near", pool), "mood": a_prompt(llama, "mood")}
    for prompt in prompts.values():
        publish(store, prompt)
    shown = {text: prompts["near"].retrieve([{"text": text}], llama)[0] for text in TEXTS}
    assert len({tuple(each.fields["text"] for each in own) for own in shown.values()}) > 1
    expected = {(name, text): prompts[name].answer([text], llama)[0] for name in prompts for text in TEXTS}
    asked = list(expected) * 3
    random.Random(0).shuffle(asked)
    with running(store) as client, ThreadPoolExecutor(12) as threads:
        found = list(threads.map(lambda pair: ask(client, *pair), asked))
    for pair, response in zip(asked, found, strict=True):
        (prediction,) = response.json()["predictions"]
        assert prediction["prediction"] == expected[pair].text
        assert prediction["score"] == pytest.approx(expected[pair].score, abs=1e-4)


def test_several_inputs_are_answered_in_order(client: httpx2.Client, expected: dict[tuple[str, str], str]) -> None:
    for name in NAMES:
        found = ask(client, f"{name}@production", *TEXTS).json()["predictions"]
        assert [one["prediction"] for one in found] == [expected[name, text] for text in TEXTS]


@pytest.mark.parametrize(
    ("body", "status", "finding"),
    [
        ({"prompt": "mod", "inputs": ["a"]}, 404, 'model "mod": is not served. Did you mean "mood"?'),
        ({"prompt": "mood@9", "inputs": ["a"]}, 404, "there is no version 9"),
        ({"prompt": "../mood", "inputs": ["a"]}, 404, "is not served"),
        ({"prompt": "mood", "inputs": ["a", " "]}, 400, 'input 2: task mood: template: field "text" is empty'),
        ({"prompt": "mood", "inputs": [{"txt": "a"}]}, 400, 'Did you mean "txt"?'),
        ({"prompt": "mood", "inputs": []}, 422, "inputs: "),
        ({"prompt": "mood", "inputs": ["a"], "more": 1}, 422, "more: "),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(client: httpx2.Client, body: dict[str, object], status: int, finding: str) -> None:
    response = client.post("/v1/predict", json=body)
    assert response.status_code == status and finding in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/v1/predict", {"prompt": "mood", "inputs": ["cut \ud83d"]}),
        ("/v1/chat/completions", {"model": "mood", "messages": [{"role": "user", "content": "cut \ud83d"}]}),
    ],
)
def test_half_of_a_surrogate_pair_is_refused(client: httpx2.Client, route: str, body: dict[str, object]) -> None:
    response = client.post(route, content=json.dumps(body), headers={"content-type": "application/json"})
    assert response.status_code == 400 and "is not Unicode text" in response.json()["error"]["message"], response.text


def test_a_body_that_is_too_long_is_refused_however_it_comes(client: httpx2.Client) -> None:
    long = b'{"prompt": "mood", "inputs": ["' + b"a" * 5000 + b'"]}'
    assert client.post("/v1/predict", content=long).status_code == 413
    response = client.post("/v1/predict", content=iter([long[:3000], long[3000:]]))  # without a length
    assert response.status_code == 413 and response.json()["error"]["message"] == "the body has more than 4000 bytes"
    assert ask(client, "mood", "a").status_code == 200


def test_a_long_text_holds_up_nobody(store: PromptStore) -> None:
    def seconds(call: Callable[[], httpx2.Response]) -> float:
        start = time.perf_counter()
        assert call().status_code == 200
        return time.perf_counter() - start

    with running(store, names=["mood"]) as client, ThreadPoolExecutor(1) as pool:
        long = pool.submit(seconds, lambda: ask(client, "mood", "word after word " * 50_000))
        waits = [seconds(lambda: client.get("/health")) for _ in iter(long.done, True)]
    assert max(waits) < long.result() / 2


def test_a_token_is_asked_for_where_one_is_set(store: PromptStore) -> None:
    with running(store, names=["mood"], token="secret") as client:
        assert client.get("/health").json() == {"status": "ok", "prompts": 1} and client.get("/").status_code == 200
        for headers in ({}, {"authorization": "Bearer secreT"}, {"authorization": "Basic secret"}):
            response = client.get("/v1/models", headers=headers)
            assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer" and "secret" not in response.text
        assert client.get("/v1/models", headers={"authorization": "Bearer secret"}).status_code == 200
        upgrade = {
            "connection": "upgrade",
            "upgrade": "websocket",
            "sec-websocket-version": "13",
            "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
        }
        assert client.get("/v1/models", headers=upgrade).status_code in (401, 403)  # 401 where uvicorn has no package for websockets


def test_a_full_queue_turns_requests_away_and_serves_on(store: PromptStore) -> None:
    body = {"model": "story", "messages": [{"role": "user", "content": "a"}], "stream": True, "max_tokens": 240}
    with running(store, names=["story"], limits=Limits(unfinished=2)) as client:
        with (
            client.stream("POST", "/v1/chat/completions", json=body) as one,
            client.stream("POST", "/v1/chat/completions", json=body) as other,
        ):
            assert one.status_code == other.status_code == 200
            response = ask(client, "story", "a")
            assert response.status_code == 503 and response.headers["retry-after"] == "1"
            assert response.json()["error"]["code"] == "queue_full"
        while (response := ask(client, "story", "a")).status_code == 503:  # until the two whom nobody listens to are gone
            pass
        assert response.status_code == 200
        assert "the server takes 2 at a time" in ask(client, "story", "a", "b", "c").json()["error"]["message"]


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/v1/predict", {"prompt": "long", "inputs": TEXTS * 8}),
        ("/v1/compare", {"prompt": "long", "input": "a"}),
        ("/v1/chat/completions", {"model": "long", "messages": [{"role": "user", "content": "a"}], "max_tokens": 240}),
    ],
)
def test_a_client_that_leaves_is_given_up(tmp_path: Path, llama: Backbone, route: str, body: dict[str, object]) -> None:
    store = PromptStore(tmp_path / "store")
    publish(store, a_prompt(llama, "long", writes=True, max_new_tokens=200))
    with running(store) as client:
        address = client.base_url.host, client.base_url.port
        with socket.create_connection(address) as connection:
            content = json.dumps(body).encode()
            connection.sendall(b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n" % route.encode())
            connection.sendall(b"content-length: %d\r\n\r\n%b" % (len(content), content))
            while "promptmill_unfinished_inputs 0.0" in client.get("/metrics").text:
                pass
        while "promptmill_unfinished_inputs 0.0" not in (metrics := client.get("/metrics").text):
            pass
        assert f'promptmill_requests_total{{route="{route}",status="499"}} 1.0' in metrics


@pytest.mark.parametrize(("writes", "kind"), [(True, "deep"), (True, "soft"), (False, "soft")])
def test_a_long_input_is_cut_to_the_positions_that_prompt_and_answer_leave(
    tmp_path: Path, writes: bool, kind: Literal["soft", "deep"]
) -> None:
    gpt2 = backbone_at(str(save_tiny("gpt2", tmp_path / "gpt2")))  # whose positions are a table
    prompt = a_prompt(gpt2, "far", kind=kind, writes=writes, tokens=60, labels=("good", "rather bad, I think"))
    store = PromptStore(tmp_path / "store")
    publish(store, prompt)
    ready, long = ready_on(gpt2)(prompt), "word after word " * 300
    behind = 8 if writes else ready.scorer.label_tokens  # type: ignore[union-attr]
    assert ready.encode(long).truncated and len(ready.encode(long).input) == gpt2.max_positions - 60 - behind
    (alone,) = prompt.predict(["short"], gpt2)
    with running(store) as client:
        found = ask(client, "far", "short", long, "short").json()["predictions"]
        assert [found[0]["prediction"], found[2]["prediction"]] == [alone, alone]


def test_an_input_that_is_left_no_position_is_refused(tmp_path: Path) -> None:
    gpt2 = backbone_at(str(save_tiny("gpt2", tmp_path / "gpt2")))
    prompt = a_prompt(gpt2, "far", kind="deep", writes=True, tokens=254)
    with pytest.raises(PromptmillError, match=r"the prompt and what stands behind .* leave it 1 of the model's 256 positions"):
        prompt.predict(["a long input"], gpt2)


def test_a_server_that_cannot_start_says_why_in_one_line_with_status_2(tmp_path: Path, store: PromptStore, llama: Backbone) -> None:
    elsewhere = backbone_at(str(save_tiny("gpt2", tmp_path / "elsewhere")))
    for folder in ("all", "only"):
        publish(PromptStore(tmp_path / folder), a_prompt(elsewhere, "other"))
    publish(PromptStore(tmp_path / "all"), a_prompt(llama, "mood"))
    (tmp_path / "elsewhere").rename(tmp_path / "gone")
    for arguments, finding in (
        (["--store", str(tmp_path / "only")], str(tmp_path / "elsewhere")),
        (["other", "--store", str(tmp_path / "all")], str(tmp_path / "elsewhere")),
        (["mood", "--store", str(tmp_path / "none")], "there is no prompt store at this address"),
        (["mod", "--store", store.url], 'there is no prompt "mod". Did you mean "mood"?'),
    ):
        result = CliRunner().invoke(main, ["serve", "--port", "0", *arguments])
        assert result.exit_code == 2 and finding in result.stderr and "Traceback" not in result.stderr


def test_versions_and_the_untuned_model_stand_side_by_side(client: httpx2.Client, store: PromptStore, llama: Backbone) -> None:
    from prompt_core.evaluation.sidebyside import side_by_side

    assert "<title>Promptmill playground</title>" in client.get("/").text and "http" not in client.get("/").text.replace(
        "http://www.w3", ""
    )
    served = {prompt["name"]: prompt for prompt in client.get("/v1/prompts").json()}
    assert list(served) == sorted(NAMES) and served["mood"]["fields"] == ["text"] and served["mood"]["aliases"] == {"production": 1}
    for name in ("mood", "reply"):
        answers = client.post("/v1/compare", json={"prompt": name, "input": TEXTS[0]}).json()["answers"]
        both = side_by_side(store.get(name), {"text": TEXTS[0]}, llama)
        assert [(one["version"], one["prediction"], one["aliases"]) for one in answers] == [
            (None, both["without"], []),
            (1, both["with"], ["production"]),
        ]
    assert {"/v1/predict", "/v1/chat/completions", "/v1/models"} <= set(client.get("/openapi.json").json()["paths"])
