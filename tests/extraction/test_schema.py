"""JSON records: one canonical form for equal ones, a reason for every other text, and nothing but a ValueError for any text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_core.errors import PromptmillError
from prompt_core.extraction.schema import RecordForm, checked_schema, parse_json, read_schema

ORDER = {
    "type": "object",
    "required": ["order"],
    "additionalProperties": False,
    "properties": {
        "order": {"type": "string", "pattern": "^[A-Z]+-"},
        "items": {"type": "array", "items": {"properties": {"name": {"type": "string"}, "count": {"type": "integer"}}}},
        "city": {"type": ["string", "null"]},
    },
}

text = st.text(st.characters(codec="utf-8"), max_size=8)
leaves = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | text
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3), max_leaves=8)


def shuffled(value: Any, draw: Any) -> Any:
    """The same value with the keys of its objects in another order."""
    if isinstance(value, dict):
        return {key: shuffled(value[key], draw) for key in draw(st.permutations(list(value)))}
    return [shuffled(item, draw) for item in value] if isinstance(value, list) else value


@given(value=values, data=st.data())
def test_equal_records_are_written_alike_and_say_the_same(value: Any, data: st.DataObject) -> None:
    form = RecordForm(data.draw(st.sampled_from([{}, {"properties": {"b": {}, "a": {}}}])))
    spaced = json.dumps(shuffled(value, data.draw), indent=data.draw(st.integers(0, 2)), ensure_ascii=data.draw(st.booleans()))
    written = form.canonical(json.dumps(value))
    assert form.canonical(spaced) == written == form.canonical(written)
    assert json.loads(written) == value


@given(st.text(max_size=30) | values.map(json.dumps) | st.text('{}[]",:0123e.-\\u dtrfalsn', max_size=20))
def test_any_text_is_read_as_pythons_own_reader_does_or_refused(given_text: str) -> None:
    try:
        found = parse_json(given_text)
    except ValueError as error:
        assert str(error).startswith("is not JSON")
    else:
        assert found == json.loads(given_text)


def test_keys_stand_as_the_schema_has_them_and_others_follow_by_name() -> None:
    form = RecordForm({"properties": {"order": {}, "items": {"items": {"properties": {"name": {}, "count": {}}}}}})
    found = form.canonical('{"b": 2.0, "a": 1, "items": [{"count": 1, "name": "é"}], "order": "X"}')
    assert found == '{"order": "X", "items": [{"name": "é", "count": 1}], "a": 1, "b": 2}'


def test_keys_are_in_the_order_of_what_the_schema_refers_to_and_is_put_together_from():
    item = {"properties": {"name": {}, "count": {}, "within": {"anyOf": [{"$ref": "#/$defs/item"}, {"type": "null"}]}}}
    form = RecordForm({"$defs": {"item": item}, "allOf": [{"properties": {"to": {}, "items": {"items": {"$ref": "#/$defs/item"}}}}]})
    written = '{"to": "Lyon", "items": [{"name": "box", "count": 2, "within": {"name": "van", "count": 1}}]}'
    assert form.canonical(written) == written
    assert form.canonical('{"items": [{"within": {"count": 1, "name": "van"}, "count": 2, "name": "box"}], "to": "Lyon"}') == written


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ('{"order": "A-1"', "is not JSON (Expecting ',' delimiter at character 15)"),
        ('The order is {"order": "A-1"}', "is not JSON (Expecting value at character 0)"),
        ('{"order": NaN}', "is not JSON (NaN is no number of JSON)"),
        ('{"order": 1e999}', "is not JSON (the number 1e999 is too large)"),
        ('{"order": "A-1", "order": "A-2"}', "is not JSON (the key 'order' stands twice in one object)"),
        ('{"order": "\\ud83d"}', "is not JSON (half of a surrogate pair)"),
        ("[" * 100_000, "is not JSON that can be read (nested too deeply)"),
        ('{"city": "Lyon"}', "does not fit the schema ('order' is a required property)"),
        ('{"order": "A-1", "items": [{"count": "two"}]}', "does not fit the schema ($.items[0].count: 'two' is not of type 'integer')"),
        ('{"order": "A-1", "town": "Lyon"}', "does not fit the schema (Additional properties are not allowed ('town' was unexpected))"),
        ('["A-1"]', "does not fit the schema (['A-1'] is not of type 'object')"),
    ],
)
def test_a_text_that_is_no_such_record_is_refused_with_the_reason(found: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        RecordForm(ORDER).read(found)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "objekt"}, "is not a JSON schema ($.type: 'objekt' is not valid under any of the given schemas)"),
        ({"properties": {"a": {"$ref": "https://example.org/x.json"}}}, "refers to 'https://example.org/x.json' outside itself"),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}}, "refers to '#/$defs/b', which it does not have"),
        ({"properties": {"a": {"pattern": "("}}}, "is not a JSON schema ($.properties.a.pattern: '(' is not a 'regex')"),
        ({"const": float("nan")}, "holds a value that is not JSON"),
        (json.loads('{"not":' * 400 + "{}" + "}" * 400), "is nested too deeply"),
        (["object"], "holds list, not the fields of a JSON schema"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused_with_the_reason(schema: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        checked_schema(schema)


def test_a_schema_may_refer_to_its_own_parts_and_to_itself() -> None:
    tree = checked_schema({"properties": {"n": {"$ref": "#/$defs/n"}, "in": {"$ref": "#"}}, "$defs": {"n": {"type": "integer"}}})
    assert RecordForm(tree).read('{"in": {"in": {"n": 1}}}') == {"in": {"in": {"n": 1}}}
    with pytest.raises(ValueError, match=r"\$\.in\.in\.n: 'x' is not of type 'integer'"):
        RecordForm(tree).read('{"in": {"in": {"n": "x"}}}')
    with pytest.raises(ValueError, match="cannot be checked against the schema"):
        RecordForm({"$ref": "#"}).read("{}")


def test_a_schema_file_that_cannot_be_used_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    for content, finding in ((None, "there is no file"), ("{", "is not JSON"), ('{"type": 1}', "is not a JSON schema")):
        if content:
            path.write_text(content)
        with pytest.raises(PromptmillError, match=re.escape(finding)) as caught:
            read_schema(path, "t.yaml: extract.schema")
        assert str(caught.value).startswith("t.yaml: extract.schema: ") and f'"{path}"' in str(caught.value)
