"""`tune.search` in a task file: what it may say, and one line for what it may not."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import a_task

from prompt_core.errors import PromptmillError
from prompt_core.space import SearchSpec
from prompt_core.task import TaskSpec


def test_a_search_is_off_unless_it_is_asked_for() -> None:
    assert a_task().search is None


@pytest.mark.parametrize("parts", [{"tune": {"search": "auto"}}, {"prompt": {"kind": "auto"}}, {"tune": {"search": {}}}])
def test_the_shortest_spellings_mean_all_defaults(parts: dict[str, Any]) -> None:
    assert a_task(**parts).search == SearchSpec()


def test_a_kind_of_auto_keeps_what_the_search_says() -> None:
    found = a_task(prompt={"kind": "auto"}, tune={"search": {"trials": 3}}).search
    assert found == SearchSpec(trials=3)


@pytest.mark.parametrize(
    ("search", "line"),
    [
        ({"trails": 3}, 'tune.search.trails: unknown field. Did you mean "trials"?'),
        ("yes", "tune.search: Input should be a valid dictionary"),
        ({"folds": 1}, "tune.search.folds: Input should be greater than or equal to 2 (found 1)"),
        (
            {"space": {"tune.learning_rat": [1]}},
            'tune.learning_rat: is no setting that a search can choose. Did you mean "tune.learning_rate"?',
        ),
        ({"space": {"tune.seed": [1, 2]}}, "tune.seed: is no setting that a search can choose"),
        ({"space": {"tune.self_training": [0, 2]}}, "tune.self_training: is no setting that a search can choose"),
        ({"space": {"learning_rate": [1]}}, 'learning_rate: is no setting that a search can choose. Did you mean "tune.learning_rate"?'),
        ({"space": {"tune.learning_rate": [-1]}}, "tune.learning_rate: Input should be greater than 0 (found -1)"),
        ({"space": {"tune.learning_rate": []}}, "should have at least 1 item"),
        ({"space": {"tune.learning_rate": {"low": 1, "hihg": 2}}}, "tune.learning_rate.range.high: is missing"),
        ({"space": {"tune.learning_rate": {"low": 1, "high": 2, "logs": True}}}, 'logs: unknown field. Did you mean "log"?'),
        ({"space": {"tune.steps": {"low": 8, "high": 4}}}, "from 8 to 4 is no range"),
        ({"space": {"tune.learning_rate": {"low": 0, "high": 4, "log": True}}}, "from 0 to 4 is no range of factors"),
        ({"space": {"prompt.kind": {"low": 1, "high": 2}}}, "prompt.kind: takes no numbers. Give a list of choices."),
        ({"space": {"prompt.kind": ["depp"]}}, "prompt.kind: Input should be 'soft', 'deep', 'text' or 'auto' (found 'depp')"),
        ({"space": {"prompt.kind": ["auto", "deep"]}}, "prompt.kind: auto is what the search replaces"),
    ],
)
def test_a_bad_search_is_one_line(search: Any, line: str) -> None:
    with pytest.raises(PromptmillError) as caught:
        a_task(tune={"search": search})
    assert str(caught.value).startswith("t.yaml: ") and line in str(caught.value) and "\n" not in str(caught.value)


def test_a_schedule_that_depends_on_the_number_of_steps_is_refused_beside_a_search() -> None:
    with pytest.raises(PromptmillError, match=r"tune.decay: cosine depends on the number of steps, which a search chooses. Leave it out."):
        a_task(tune={"search": "auto", "decay": "cosine"})
    assert a_task(tune={"search": "auto", "decay": "constant"}).search


def test_the_schema_knows_the_short_spelling() -> None:
    found = TaskSpec.model_json_schema()["$defs"]["TuneSpec"]["properties"]["search"]["anyOf"]
    assert {"const": "auto", "type": "string"} in found and {"$ref": "#/$defs/SearchSpec"} in found
