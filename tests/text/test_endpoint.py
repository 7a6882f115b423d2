"""An endpoint that fails in every way: what it costs, what comes back, and what is never written down."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from random import Random
from typing import Any, cast

import numpy as np
import pytest
from helpers import a_task

from prompt_core.errors import PromptmillError, Unreachable
from prompt_core.text.budget import Budget, Clock
from prompt_core.text.candidate import Candidate
from prompt_core.text.endpoint import Endpoint
from prompt_core.text.journal import Journal
from prompt_core.text.reflection import Reflection, wordings_in
from prompt_core.text.search import Tried
from prompt_core.text.spec import EndpointSpec
from tests.text.faulty_server import serving

_ASKED = ([{"role": "user", "content": "Improve it."}], 7)


def _endpoint(url: str, journal: Journal | None = None, budget: Budget | None = None, **changes: Any) -> Endpoint:
    spec = EndpointSpec(url=url, model="m", attempts=4, wait=0.01, timeout=0.5, **{"concurrency": 2, **changes})
    return Endpoint(spec, journal or Journal(None, Clock()), budget or Budget())


@pytest.mark.parametrize("faults", [["429", "500"], ["hang"], ["garbage", "odd"], ["408", "mute"]])
def test_what_passes_is_asked_again(faults: list[str]) -> None:
    with serving(faults) as served:
        (answer,) = _endpoint(served.url).ask([_ASKED])
    assert answer is not None and wordings_in(answer) == ["Say which mood the text has."]
    assert len(served.bodies) == len(faults) + 1


def test_an_answer_is_paid_for_once_even_after_a_restart(tmp_path: Path) -> None:
    price = {"dollars": 1.0, "dollars_per_million_read": 10.0, "dollars_per_million_written": 10.0}
    before, after = Budget(dollars=1.0), Budget(dollars=1.0)
    with serving(["garbage"]) as served:  # which is paid for as well
        first = _endpoint(served.url, Journal(tmp_path / "journal", Clock()), before, **price).ask([_ASKED])
        again = _endpoint(served.url, Journal(tmp_path / "journal", Clock()), after, **price).ask([_ASKED])
    assert first == again and len(served.bodies) == 2
    assert after.spent_dollars == before.spent_dollars > 0


def test_what_a_question_without_an_answer_cost_counts_after_a_restart_in_which_it_is_asked_again(tmp_path: Path) -> None:
    price = {"dollars": 1.0, "dollars_per_million_read": 10.0, "dollars_per_million_written": 10.0}
    before, after, other = Budget(dollars=1.0), Budget(dollars=1.0), (_ASKED[0], 8)
    with serving(["good", *["garbage"] * 4]) as served:
        answers = _endpoint(served.url, Journal(tmp_path / "journal", Clock()), before, **price, concurrency=1).ask([_ASKED, other])
        again = _endpoint(served.url, Journal(tmp_path / "journal", Clock()), after, **price).ask([other, _ASKED])
    assert answers[1] is None and None not in again and len(served.bodies) == 6
    assert after.spent_dollars == pytest.approx(before.spent_dollars + 110 * 10 / 1e6)


def test_what_was_paid_before_a_search_ended_without_an_answer_counts_when_it_goes_on(tmp_path: Path) -> None:
    price = {"dollars": 1.0, "dollars_per_million_read": 10.0, "dollars_per_million_written": 10.0}
    before, after = Budget(dollars=1.0), Budget(dollars=1.0)
    with serving(["garbage"] * 4) as served:
        with pytest.raises(Unreachable, match="gives no answer"):
            _endpoint(served.url, Journal(tmp_path / "journal", Clock()), before, **price).ask([_ASKED])
        assert _endpoint(served.url, Journal(tmp_path / "journal", Clock()), after, **price).ask([_ASKED]) != [None]
    assert before.spent_dollars > 0 and after.spent_dollars == pytest.approx(before.spent_dollars + 110 * 10 / 1e6)


def test_half_of_a_surrogate_pair_in_an_answer_is_kept_and_read_as_text(tmp_path: Path) -> None:
    answer = "<instruction>Say it \ud83d.</instruction>"
    Journal(tmp_path / "journal", Clock()).put({"a": [answer, 0.1]})
    assert Journal(tmp_path / "journal", Clock()).get("a") == [answer, 0.1]
    assert wordings_in(answer) == ["Say it ?."]


def test_the_money_cap_is_never_passed() -> None:
    price = {"dollars": 0.001, "dollars_per_million_read": 10.0, "dollars_per_million_written": 10.0, "max_tokens": 20}
    budget = Budget(dollars=0.005)
    with serving([]) as served:
        answers = _endpoint(served.url, budget=budget, **price).ask([(_ASKED[0], seed) for seed in range(20)])
    # 110 tokens at 10 dollars a million are 0.0011, but never more than what was reserved for a call is booked.
    assert 0 < len(served.bodies) < 20 and answers.count(None) == 20 - len(served.bodies)
    assert 0 < budget.spent_dollars <= 0.005


def test_requests_that_were_refused_cost_nothing() -> None:
    budget = Budget(dollars=1.0)
    price = {"dollars": 1.0, "dollars_per_million_read": 10.0, "dollars_per_million_written": 10.0}
    with serving(["429"] * 4) as served:
        assert _endpoint(served.url, budget=budget, **price).ask([_ASKED]) == [None]
    assert len(served.bodies) == 4 and budget.spent_dollars == 0


def test_an_answer_without_text_costs_what_the_server_says_it_did() -> None:
    budget = Budget(dollars=1.0)
    price = {"dollars": 1.0, "dollars_per_million_read": 0.0, "dollars_per_million_written": 10.0}
    with serving(["mute"]) as served:
        assert _endpoint(served.url, budget=budget, **price).ask([_ASKED]) != [None]
    assert budget.spent_dollars == pytest.approx(2 * 10 * 10 / 1e6)


@pytest.mark.parametrize("status", ["400", "413", "422"])
def test_one_question_that_is_refused_does_not_end_a_search_that_others_answer(status: str, caplog: pytest.LogCaptureFixture) -> None:
    with serving([status]) as served:
        answers = _endpoint(served.url).ask([(_ASKED[0], seed) for seed in range(4)])
    assert answers.count(None) == 1 and len(served.bodies) == 4
    assert f"a question without answer, the server refuses the request ({status}" in caplog.text
    with serving([status] * 4) as served, pytest.raises(PromptmillError, match=rf"refuses the request \({status}"):
        _endpoint(served.url).ask([(_ASKED[0], seed) for seed in range(4)])


@pytest.mark.parametrize("url", ["localhost:8000/v1", "127.0.0.1:8000/v1", "http://[::1", "http://h:99999/v1", "http://a b/v1", "ftp://h"])
def test_what_is_no_address_is_named(url: str) -> None:
    with pytest.raises(PromptmillError) as raised:
        _endpoint(url)
    assert str(raised.value) == f'text.endpoint.url: "{url}" is no address. Write it as http://127.0.0.1:8000/v1.'


def test_an_address_where_nobody_answers_is_one_clear_line() -> None:
    with pytest.raises(PromptmillError, match=r"text\.endpoint\.url http://127\.0\.0\.1:9/v1.*no answer.*Start the server"):
        _endpoint("http://127.0.0.1:9/v1").ask([_ASKED])


def test_the_key_reaches_the_server_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-very-secret")
    caplog.set_level(logging.INFO)
    with serving(["garbage"]) as served:
        _endpoint(served.url, Journal(tmp_path / "journal", Clock()), key_variable="SOME_KEY").ask([_ASKED])
    assert served.keys == ["Bearer sk-very-secret"] * 2
    assert "sk-very-secret" not in (tmp_path / "journal").read_text() + caplog.text


def test_a_refused_key_is_one_clear_line_without_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-very-secret")
    with serving(["401"]) as served, pytest.raises(PromptmillError, match=r"refuses the request \(401") as raised:
        _endpoint(served.url, key_variable="SOME_KEY").ask([_ASKED])
    assert "secret" not in str(raised.value)


def test_a_key_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(PromptmillError, match="SOME_KEY, which is not set"):
        _endpoint("http://127.0.0.1:9/v1", key_variable="SOME_KEY")


def test_a_question_shows_the_best_of_each_wording_the_better_ones_later() -> None:
    values = [("Best.", 0.9), *((f"Middle {i}.", 0.8 - i / 100) for i in range(6)), ("Best.", 0.1)]
    ranked = [Tried(Candidate(wording, "system"), 5, np.array([value]), value) for wording, value in values]
    with serving([]) as served:
        Reflection(a_task(), _endpoint(served.url), lambda _: [], 1)(ranked, Random(0))
    (message,) = cast("list[dict[str, str]]", served.bodies[0]["messages"])
    shown = re.findall(r"^score (\d+): (.*)$", message["content"], re.MULTILINE)
    assert shown[-1] == ("90", "Best.") and [int(score) for score, _ in shown] == [76, 77, 78, 79, 80, 90]


@pytest.mark.parametrize(
    ("answer", "wordings"),
    [
        ("Sure! <instruction>Do  it.</instruction> or <instruction>Do that.</instruction>", ["Do it.", "Do that."]),
        ("Here is one:\n- Classify the text.\n- Another", ["Classify the text."]),
        ('1. "Say it in French."', ["Say it in French."]),
        ("<think>\nBetween <instruction> and </instruction>.\n</think>\n<instruction>Do it.</instruction>", ["Do it."]),
        ("It goes in <instruction> and </instruction>.</think>\n\nDo it.", ["Do it."]),
        ("<think>\nOkay, the user wants", []),
        ("<instruction>Say whether it", ["Say whether it"]),
        ("", []),
    ],
)
def test_instructions_are_read_from_an_answer(answer: str, wordings: list[str]) -> None:
    assert wordings_in(answer) == wordings
