"""The real `openai` client works with the server as it works with OpenAI's."""

from __future__ import annotations

import asyncio
import runpy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from running import running
from served_prompts import a_prompt, a_served_store, publish

from prompt_core.backbone import Backbone
from prompt_core.ready import ReadyPrompt
from prompt_core.serving.engine import Job
from prompt_core.serving.stream import TextStream
from prompt_core.store import PromptStore

TEXT = "Text number 3, good"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, llama: Backbone) -> PromptStore:
    store = a_served_store(tmp_path_factory.mktemp("openai") / "store", llama)
    publish(store, a_prompt(llama, "pair", template="{{ text }} and {{ more }}\nIt is"))
    publish(store, a_prompt(llama, "long", writes=True, max_new_tokens=40, seed=9))
    publish(store, a_prompt(llama, "searched", writes=True, max_new_tokens=12, seed=9, beams=3))
    return store


@pytest.fixture(scope="module")
def client(store: PromptStore) -> Iterator[openai.OpenAI]:
    with running(store, token="secret") as http, openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="secret", max_retries=0) as client:
        yield client


def chat(client: openai.OpenAI, model: str, text: str = TEXT, **more: object) -> openai.types.chat.ChatCompletion:
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], **more)  # type: ignore[call-overload]


def test_models_are_listed_and_answer(client: openai.OpenAI, store: PromptStore, llama: Backbone) -> None:
    names = [model.id for model in client.models.list()]
    assert "reply" in names and "reply@production" in names and client.models.retrieve("reply@1").id == "reply@1"
    for name in ("reply", "mood", "tone@production", "long@1"):
        prompt = store.get(name.partition("@")[0])
        found = chat(client, name)
        assert [found.choices[0].message.content] == prompt.predict([TEXT], llama)
        assert found.usage is not None and found.usage.prompt_tokens > prompt.manifest.tokens
        assert found.system_fingerprint == prompt.digest[:12]
    assert chat(client, "long").choices[0].finish_reason == "length" and chat(client, "mood").choices[0].finish_reason == "stop"


def test_a_stream_carries_the_same_text_in_parts(client: openai.OpenAI, store: PromptStore, llama: Backbone) -> None:
    for name in ("long", "mood"):
        (whole,) = store.get(name).predict([TEXT], llama)
        events = list(chat(client, name, stream=True, stream_options={"include_usage": True}))
        parts = [event.choices[0].delta.content or "" for event in events if event.choices]
        assert "".join(parts) == whole
        assert events[-1].usage is not None and (len([part for part in parts if part]) > 3) == (name == "long")
        assert [event.choices[0].finish_reason for event in events if event.choices][-1] == ("length" if name == "long" else "stop")


def test_a_beam_search_is_streamed_when_it_has_ended_and_a_temperature_takes_its_place(
    client: openai.OpenAI, store: PromptStore, llama: Backbone
) -> None:
    (whole,) = store.get("searched").predict([TEXT], llama)
    with ThreadPoolExecutor() as pool:  # greedy texts are written beside it
        beside = [pool.submit(chat, client, "long") for _ in range(2)]
        events = list(chat(client, "searched", stream=True, stream_options={"include_usage": True}))
    assert [part for event in events if event.choices and (part := event.choices[0].delta.content)] == [whole]
    assert events[-1].usage is not None and events[-1].usage.completion_tokens > 1
    assert {text.result().choices[0].message.content for text in beside} == set(store.get("long").predict([TEXT], llama))
    drawn = [chat(client, "searched", temperature=1.0, seed=seed).choices[0].message.content for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_stop_ends_the_text_and_a_listener_who_leaves_ends_the_work(client: openai.OpenAI, store: PromptStore, llama: Backbone) -> None:
    (whole,) = store.get("long").predict([TEXT], llama)
    stop = whole[len(whole) // 2 :][:4]
    for stream in (False, True):
        found = chat(client, "long", stop=stop, stream=stream)
        text = "".join(event.choices[0].delta.content or "" for event in found) if stream else found.choices[0].message.content
        assert text == whole[: whole.index(stop)]
    assert chat(client, "long", max_tokens=3).usage.completion_tokens == 3  # type: ignore[union-attr]
    for event in (stream := chat(client, "long", stream=True, max_tokens=200)):
        if event.choices and event.choices[0].delta.content:
            stream.close()
            break
    assert chat(client, "mood").choices[0].message.content


def test_a_stop_whose_last_character_comes_byte_by_byte_is_no_part_of_the_text(store: PromptStore, llama: Backbone) -> None:
    ready = ReadyPrompt.of(store.get("long"), llama)
    job = Job(ready, ready.encode(TEXT), ready.text(ready.encode(TEXT)))
    ids = llama.tokenizer("see b\U0001f9a9 c", add_special_tokens=False).input_ids
    assert "\ufffd" in ready.encoding.decode(ids[:-2])  # half a flamingo

    async def streamed() -> str:
        stream = TextStream(job, ["b\U0001f9a9"])
        for count in range(1, len(ids) + 1):
            assert job.on_tokens is not None
            job.on_tokens(ids[:count])
        return await stream.whole()

    assert asyncio.run(streamed()) == "see "


def test_null_stands_for_the_default_and_a_top_p_or_temperature_of_about_0_for_the_likeliest_token(client: openai.OpenAI) -> None:
    usual = chat(client, "long").choices[0].message.content
    assert chat(client, "long", temperature=1e-300, seed=1).choices[0].message.content == usual
    found = chat(client, "long", temperature=1.5, top_p=0, extra_body={"stream": None, "stream_options": {"include_usage": None}})
    assert found.choices[0].message.content == usual


def test_draws_follow_the_seed(client: openai.OpenAI) -> None:
    drawn = [chat(client, "long", temperature=1.5, seed=seed).choices[0].message.content for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_several_fields_come_as_json_or_beside_the_message(client: openai.OpenAI, store: PromptStore, llama: Backbone) -> None:
    fields = {"text": "a", "more": "b"}
    (expected,) = store.get("pair").predict([fields], llama)
    assert chat(client, "pair", '{"text": "a", "more": "b"}').choices[0].message.content == expected
    assert chat(client, "pair", "-", extra_body={"fields": fields}).choices[0].message.content == expected
    with pytest.raises(openai.BadRequestError, match="pair takes the fields text, more"):
        chat(client, "pair", "a")
    with pytest.raises(openai.BadRequestError, match="pair takes the fields text, more"):
        chat(client, "pair", "[" * 100_000)


def test_what_a_tuned_prompt_cannot_do_is_refused_and_what_stays_aside_is_said(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="is not served"):
        chat(client, "gpt-4")
    with pytest.raises(openai.BadRequestError, match="Send several requests"):
        chat(client, "reply", n=2)
    with pytest.raises(openai.BadRequestError, match="tools: is not supported"):
        chat(client, "reply", tools=[{"type": "function", "function": {"name": "f"}}])
    for changed in ({"logit_bias": {"5": 100}}, {"presence_penalty": 1.0}, {"frequency_penalty": -0.5}, {"top_logprobs": 2}):
        with pytest.raises(openai.BadRequestError, match=f"{next(iter(changed))}: is not supported"):
            chat(client, "reply", **changed)
    chat(client, "reply", logit_bias={}, presence_penalty=0, top_logprobs=0)
    turns = [{"role": role, "content": "a"} for role in ("user", "assistant", "user")]
    with pytest.raises(openai.BadRequestError, match="takes one input"):
        client.chat.completions.create(model="reply", messages=turns)  # type: ignore[arg-type]
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": [{"type": "text", "text": TEXT}]}]
    raw = client.chat.completions.with_raw_response.create(model="reply", messages=messages)  # type: ignore[arg-type]
    assert raw.headers["x-promptmill-ignored"] == "system" and raw.headers["x-promptmill-version"] == "reply@1"
    assert raw.parse().choices[0].message.content == chat(client, "reply").choices[0].message.content
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()


def test_the_example_of_a_client_streams_an_answer(
    client: openai.OpenAI, store: PromptStore, llama: Backbone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(__file__).resolve().parents[2] / "examples" / "consumer" / "http_client.py"
    monkeypatch.setattr("sys.argv", [path.name, "--url", str(client.base_url), "long", TEXT])
    monkeypatch.setenv("PROMPTMILL_TOKEN", "secret")
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out == store.get("long").predict([TEXT], llama)[0] + "\n"
