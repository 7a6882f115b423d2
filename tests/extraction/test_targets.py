"""Target columns of extraction tasks: canonical after cleaning, and a row that cannot be read is named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from helpers import a_task

from prompt_core.data import clean, prepare, read_examples
from prompt_core.errors import PromptmillError
from prompt_core.task import TaskSpec
from prompt_core.task_file import parse_task

ORDER = {"type": "object", "required": ["order"], "properties": {"order": {"type": "string"}, "city": {"type": "string"}}}


def entity_task(**parts: Any) -> TaskSpec:
    return a_task(objective="extract", **parts)


def record_task(**parts: Any) -> TaskSpec:
    return a_task("smollm2", template="{{ text }}\n", objective="extract", extract={"schema": ORDER}, **parts)


def cleaned(task: TaskSpec, *rows: tuple[str | None, str | None]) -> pl.DataFrame:
    return clean(pl.DataFrame(rows, schema={"text": pl.String, "label": pl.String}, orient="row"), task)[0]


def test_offsets_move_with_the_text_that_cleaning_strips_and_composes() -> None:
    frame = cleaned(entity_task(), ("  Cafe\u0301 in Lyon ", '[{"start": 11, "end": 15, "label": "city"}]'))
    assert frame["text"].to_list() == ["Café in Lyon"]
    assert frame["label"].to_list() == ['[{"start": 8, "end": 12, "label": "city", "text": "Lyon"}]']


def test_entities_that_share_one_letter_are_refused_when_the_data_are_read() -> None:
    shared = '[{"start": 0, "end": 1, "label": "city"}, {"start": 1, "end": 2, "label": "city"}]'
    with pytest.raises(PromptmillError, match=r'row 1 of column "label" parts a letter from its accent: .* inside "é"'):
        cleaned(entity_task(), ("e\u0301t", shared))


def test_a_text_without_entities_is_an_example_and_an_empty_target_is_none() -> None:
    frame = cleaned(
        entity_task(), ("Nothing here at all", "[]"), ("Oslo", ""), ("Oslo then", None), ("In Oslo", '[{"text":"Oslo","label":"city"}]')
    )
    assert frame["text"].to_list() == ["Nothing here at all", "In Oslo"]


def test_records_are_written_alike_and_contradictory_ones_go() -> None:
    rows = [
        ("a b c", '{"city":"Lyon","order":"1"}'),
        ("a b c", '{"order": "1", "city": "Lyon"}'),
        ("d e f", '{"order": "2"}'),
        ("d e f", '{"order": "3"}'),
    ]
    frame = cleaned(record_task(), *rows)
    assert frame["label"].to_list() == ['{"order": "1", "city": "Lyon"}']


@pytest.mark.parametrize(
    ("task", "target", "finding"),
    [
        (entity_task(), '[{"text": "Rome", "label": "x"}]', 'row 2 of column "label" entity 1 is "Rome", which is not in the text'),
        (
            entity_task(),
            '[{"start": 0, "end": 99, "label": "x"}]',
            'row 2 of column "label" entity 1 goes from 0 to 99, outside of its text',
        ),
        (record_task(), '{"city": "Lyon"}', "row 2 of column \"label\" does not fit the schema ('order' is a required property)"),
        (record_task(), "order 3", 'row 2 of column "label" is not JSON (Expecting value at character 0)'),
    ],
)
def test_a_row_that_cannot_be_read_is_named_with_its_reason(task: TaskSpec, target: str, finding: str) -> None:
    good = "[]" if task.tags else '{"order": "1"}'
    with pytest.raises(PromptmillError, match=re.escape(f"task t: data.target: {finding}")):
        cleaned(task, ("Nothing here", good), ("Lyon is nice", target))


def test_entities_of_two_fields_are_refused() -> None:
    with pytest.raises(PromptmillError, match="task t: template: has the fields text, more, and entities are spans of one text"):
        cleaned(entity_task(template="{{ text }} {{ more }}"), ("a", "[]"))


def test_lists_and_structs_of_a_file_are_read_as_json(tmp_path: Path) -> None:
    entities = [{"start": 3, "end": 7, "label": 'a "b" é'}]
    rows = [{"text": "In Lyon", "label": entities}, {"text": "Nowhere", "label": []}]
    (tmp_path / "examples.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pl.DataFrame(rows).write_parquet(tmp_path / "examples.parquet")
    for name in ("examples.jsonl", "examples.parquet"):
        frame = read_examples(entity_task(folder=tmp_path, data={"path": name, "target": "label"}))
        assert [json.loads(value) for value in frame["label"]] == [entities, []]


def test_a_label_that_is_only_held_out_is_refused(tmp_path: Path) -> None:
    rows = {"train": [f"Parcel {n} is in Lyon now" for n in range(9)], "test": ["Oslo on 3 May"]}
    for side, texts in rows.items():
        found = [{"text": t, "label": [{"text": t[-3:], "label": "place" if side == "train" else "date"}]} for t in texts]
        (tmp_path / f"{side}.jsonl").write_text("\n".join(map(json.dumps, found)))
    data = {"path": "train.jsonl", "test_path": "test.jsonl", "target": "label", "validation": 0.0, "near_duplicate": 1.0}
    with pytest.raises(PromptmillError, match=r'task t: data.test_path: "test.jsonl" has labels without an example in data.path: "date"'):
        prepare(entity_task(folder=tmp_path, data=data))


def test_the_tasks_of_the_documentation_are_good() -> None:
    page = (Path(__file__).parents[2] / "docs" / "extraction.md").read_text()
    tasks = [parse_task(yaml.safe_load(block), "docs/extraction.md", Path()) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    assert [(task.name, task.tags) for task in tasks] == [("parcels", True), ("orders", False)]
    rows = [json.loads(line) for line in re.findall(r"^    (\{.*\})$", page, re.MULTILINE)]
    frame = pl.DataFrame({"text": [row["text"] for row in rows], "entities": [json.dumps(row["entities"]) for row in rows]})
    found = [[entity["text"] for entity in json.loads(target)] for target in clean(frame, tasks[0])[0]["entities"]]
    assert found == [["KX-123", "Lyon"], ["3 May"], []]
