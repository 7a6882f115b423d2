"""What a look at all prompts costs, and that it never says what no longer holds."""

from __future__ import annotations

from typing import Any

import aiobotocore.endpoint
import pytest
from store_builders import PASSED, SmallPrompt, a_store

from prompt_core.store import PromptStore
from prompt_core.store.filesystem import open_files

PROMPTS = 4


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The requests to S3 from now on."""
    made: list[str] = []
    send = aiobotocore.endpoint.AioEndpoint._send_request

    async def noted(self: Any, data: Any, operation: Any) -> Any:
        made.append(operation.name)
        return await send(self, data, operation)

    monkeypatch.setattr(aiobotocore.endpoint.AioEndpoint, "_send_request", noted)
    return made


def aliases(store: PromptStore) -> dict[str, dict[str, int]]:
    return {summary.name: summary.aliases for summary in store.list()}


def test_where_nothing_changed_a_look_is_one_request_however_many_prompts_there_are(s3: str, requests: list[str]) -> None:
    store = a_store(s3)
    for number in range(PROMPTS):
        store.promote(f"p{number}", store.publish(SmallPrompt(f"p{number}", "text"), PASSED))
    assert len(store.list()) == PROMPTS
    requests.clear()
    assert len(store.list()) == PROMPTS
    assert requests == ["ListObjectsV2"]
    PromptStore(s3).promote("p1", 1, "candidate")  # another process
    requests.clear()
    assert aliases(store)["p1"] == {"production": 1, "candidate": 1}
    assert requests.count("ListObjectsV2") == requests.count("GetObject") == 1


def test_every_look_sees_what_others_did_since_the_last_one(address: str) -> None:
    store, other = a_store(address), a_store(address, versions=1)
    assert aliases(store) == {"reply": {"production": 1}}
    other.promote("reply", other.publish(SmallPrompt("reply", "text 2"), PASSED))
    other.publish(SmallPrompt("a-reply", "text"), PASSED)
    assert aliases(store) == {"a-reply": {}, "reply": {"production": 2}}
    other.rollback("reply")
    assert aliases(store)["reply"] == {"production": 1}
    other.withdraw("reply", why="a leak")
    assert aliases(store)["reply"] == {}


def test_a_store_that_was_made_anew_is_read_anew(address: str) -> None:
    store = a_store(address, versions=1)
    assert aliases(store) == {"reply": {"production": 1}}
    open_files(address).remove("prompts")
    other = a_store(address)
    other.promote("reply", other.publish(SmallPrompt("reply", "another text"), PASSED), "candidate")
    assert aliases(store) == {"reply": {"candidate": 1}}
