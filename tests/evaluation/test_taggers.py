"""Baselines of a tagger: what was seen before, and a linear tagger on frozen states."""

from __future__ import annotations

import json

from helpers import a_task, examples

from prompt_core.backbone import Backbone
from prompt_core.encoding import TaskEncoding
from prompt_core.evaluation.taggers import entity_baselines, find_seen

SEEN = [
    ("From New York to York", '[{"text": "New York", "label": "city"}, {"text": "York", "label": "city"}]'),
    ("May is in Oslo in May", '[{"start": 0, "end": 3, "label": "person"}, {"start": 18, "end": 21, "label": "month"}]'),
    ("C++ (a language)", '[{"text": "C++", "label": "language"}]'),
]


def found(text: str) -> list[tuple[str, str]]:
    (answer,) = find_seen(SEEN, [text])
    return [(entity["text"], entity["label"]) for entity in json.loads(answer)]


def test_what_was_seen_is_found_again_the_longest_first() -> None:
    assert found("New York, York and C++.") == [("New York", "city"), ("York", "city"), ("C++", "language")]


def test_what_was_seen_with_two_labels_or_stands_inside_a_word_is_not_found() -> None:
    assert found("In May in Oslo") == []
    assert found("Yorkshire, newYork, C+++") == [("C++", "language")]
    assert find_seen([("nothing", "[]")], ["nothing"]) == ["[]"]


def test_what_was_seen_is_found_in_scripts_without_spaces() -> None:
    seen = [("我住在北京。", '[{"text": "北京", "label": "city"}]'), ("ฉันอยู่เชียงใหม่", '[{"text": "เชียงใหม่", "label": "city"}]')]
    answers = find_seen(seen, ["他明天去北京开会", "เขาไปเชียงใหม่พรุ่งนี้"])
    assert [[entity["text"] for entity in json.loads(answer)] for answer in answers] == [["北京"], ["เชียงใหม่"]]


def test_a_linear_tagger_repeats_what_it_was_taught_and_knows_every_label(bert: Backbone) -> None:
    pairs = [
        (f"The {thing} left {city}", f'[{{"text": "{city}", "label": "city"}}]') for thing in ("box", "van") for city in ("Lyon", "Oslo")
    ]
    seen = examples(*pairs, ("Come on 3 May", '[{"text": "3 May", "label": "date"}]'))
    rows = list(seen.iter_rows(named=True))
    task = a_task(bert.identity.name, objective="extract")
    listed, linear = entity_baselines(task, seen, rows, TaskEncoding(task, bert, soft=False), bert)
    assert (listed.name, listed.kind, linear.name, linear.kind) == ("seen_entities", "untuned", "linear_tagger", "rival")
    wanted = [[entity["text"] for entity in json.loads(row["label"])] for row in rows]
    for contender in (listed, linear):
        assert [[entity["text"] for entity in json.loads(answer)] for answer in contender.predictions] == wanted


def test_a_linear_tagger_of_texts_that_are_nothing_but_entities_says_so_of_every_text(bert: Backbone) -> None:
    seen = examples(*[(city, f'[{{"text": "{city}", "label": "city"}}]') for city in ("Lyon", "Oslo")])
    task = a_task(bert.identity.name, objective="extract")
    _, linear = entity_baselines(task, seen, [{"text": "Turin"}], TaskEncoding(task, bert, soft=False), bert)
    assert [entity["label"] for entity in json.loads(linear.predictions[0])][:1] == ["city"]
