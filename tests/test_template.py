"""Templates: the fields they name, what they render, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_core.errors import PromptmillError
from prompt_core.task_file import parse_task
from prompt_core.template import Template, plain, split_soft

CHAT = [{"system": "Answer as {{ tone }}."}, {"user": "{{ message }}\n{{ facts }}"}]


def template(source: Any) -> Template:
    content = {"name": "t", "backbone": "b", "objective": "generate", "template": source, "data": {"path": "x.csv", "target": "y"}}
    return Template(parse_task(content, "t.yaml", Path()))


def test_fields_stand_in_the_order_of_the_template() -> None:
    assert template(CHAT).fields == ("tone", "message", "facts")
    assert template("{% if hint %}{{ hint }} {% endif %}{{ text }}").fields == ("hint", "text")


def test_a_variable_of_the_template_itself_is_no_field() -> None:
    assert template("{% set n = 2 %}{% for line in lines %}{{ line }}{{ n }}{% endfor %}").fields == ("lines",)


def test_messages_keep_their_roles_and_a_string_has_none() -> None:
    fields = {"tone": "friend", "message": "Hi", "facts": "a: b", "other": "ignored"}
    assert template(CHAT).render(fields) == [("system", "Answer as friend."), ("user", "Hi\na: b")]
    assert template("Text: {{ text }}\n").render({"text": "{{ x }}"}) == [(None, "Text: {{ x }}\n")]
    assert template(CHAT).is_chat and not template("{{ text }}").is_chat


@given(st.text("ab {}\n", max_size=12), st.lists(st.tuples(st.text("ab {}\n\ue000", min_size=1), st.text("ab")), max_size=3))
def test_what_ends_with_a_blank_line_stands_once_in_front_of_solved_examples(head: str, solved: list[tuple[str, str]]) -> None:
    said = head.replace("{", "").replace("}", "")
    parted = said[: said.rfind("\n\n") + 2] if "\n\n" in said else ""
    shown = [({"text": text + "."}, answer) for text, answer in solved]
    expected = [f"{said[len(parted) :]}In: {own['text']} -> {answer}\n\n" for own, answer in shown]
    found = template(said + "In: {{ text }} ->").render_solved(shown, {"text": "x"})
    assert found == parted + "".join(expected) + said[len(parted) :] + "In: x ->"


@pytest.mark.parametrize(("source", "gap"), [("{{ text }} ->", " "), ("{{ text }}", " "), ("{{ text }}:\n", ""), ("A {{ text }} ", "")])
def test_an_answer_is_the_next_word_or_stands_on_a_line_of_its_own(source: str, gap: str) -> None:
    assert template(source).gap == gap
    asked = source.replace("{{ text }}", "x")
    assert template(source).render_solved([({"text": "x"}, "yes")], {"text": "x"}) == f"{asked}{gap}yes\n\n{asked}"


def test_what_depends_on_a_field_stands_with_every_example() -> None:
    found = template("{{ kind }}:\n\n{{ text }} ->").render_solved([({"kind": "a", "text": "x"}, "1")], {"kind": "b", "text": "y"})
    assert found == "a:\n\nx -> 1\n\nb:\n\ny ->"
    computed = template("{{ text | length }} characters\n\nin {{ text }}:").render_solved([({"text": "x"}, "1")], {"text": "yy"})
    assert computed == "1 characters\n\nin x: 1\n\n2 characters\n\nin yy:"


@pytest.mark.parametrize(
    ("source", "finding"),
    [
        ("{{ text", "task t: template: is not valid Jinja (unexpected end of template"),
        ("{{ text | shout }}", "task t: template: is not valid Jinja (No filter named 'shout'.)"),
        ("no field", "task t: template: names no field. Put a column of the data in, like {{ text }}."),
    ],
)
def test_a_template_that_cannot_work_is_refused(source: str, finding: str) -> None:
    with pytest.raises(PromptmillError) as caught:
        template(source)
    assert str(caught.value).startswith(finding)


@pytest.mark.parametrize("empty", [None, "", "  \n"])
def test_an_empty_field_is_refused(empty: str | None) -> None:
    with pytest.raises(PromptmillError, match=r'task t: template: field "text" is empty. Give it a text'):
        template("{{ text }}").render({"text": empty})


def test_an_absent_field_is_answered_with_the_nearest() -> None:
    with pytest.raises(PromptmillError, match=r'field "text" is not in the input. Did you mean "txt"\?'):
        template("{{ text }}").render({"txt": "a"})


@pytest.mark.parametrize(
    "source", ["{{ text.__class__.__mro__ }}", "{{ text / 2 }}", "{{ text.nothing.more }}", "{{ 1 // (text | length - 1) }}"]
)
def test_code_that_the_sandbox_forbids_or_that_fails_is_refused(source: str) -> None:
    with pytest.raises(PromptmillError, match="task t: template: cannot be rendered"):
        template(source).render({"text": "a"})


def test_soft_tokens_are_numbered_as_they_are_written_whatever_is_rendered() -> None:
    source = [{"system": "{{ soft(3) }} {{ a }}"}, {"user": "{% if b == 'x' %}{{ soft(2) }}{% endif %}{{ b }}{{ soft(1) }}"}]
    made = template(source)
    assert (made.fields, made.soft_tokens) == (("a", "b"), 6)
    system, user = (split_soft(text) for _, text in made.render({"a": "1", "b": "x"}))
    assert system == [(0, 3), " 1"] and user == [(3, 2), "x", (5, 1)]
    assert split_soft(made.render({"a": "1", "b": "y"})[1][1]) == ["y", (5, 1)]


def test_one_soft_token_in_a_loop_is_the_same_one_again() -> None:
    made = template("{% for line in lines %}{{ soft(1) }}{{ line }}{% endfor %}")
    assert split_soft(made.render({"lines": "ab"})[0][1]) == [(0, 1), "a", (0, 1), "b"]


def test_a_template_without_its_soft_tokens_is_plain_text() -> None:
    content = {
        "name": "t",
        "backbone": "b",
        "objective": "generate",
        "template": "A{{ soft(4) }} {{ x }}",
        "data": {"path": "x", "target": "y"},
    }
    made = Template(parse_task(content, "t.yaml", Path()), soft=False)
    assert (made.render({"x": "b"}), made.soft_tokens) == ([(None, "A b")], 4)


@given(st.text())
def test_no_value_can_pass_for_a_soft_token(value: str) -> None:
    assert all(isinstance(part, str) for part in split_soft(plain(value)))
    assert plain("".join(c for c in value if c not in "\ue002\ue003")) == "".join(c for c in value if c not in "\ue002\ue003")


@pytest.mark.parametrize(
    "source", ["{{ soft() }}{{ x }}", "{{ soft(0) }}{{ x }}", "{{ soft('a') }}{{ x }}", "{{ soft(n) }}{{ x }}", "{{ soft(true) }}{{ x }}"]
)
def test_soft_without_a_number_is_refused(source: str) -> None:
    with pytest.raises(PromptmillError, match=r"soft\(...\) needs a number of tokens from 1 to 4096. Write"):
        template(source)


def test_a_field_cannot_be_called_soft() -> None:
    with pytest.raises(PromptmillError, match="soft stands alone; it is not a field"):
        template("{{ soft }} {{ x }}")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("A {{ x }} b {{ y }}{{ soft(2) }}", True),
        ("{{ x | upper }}", False),
        ("{{ x[0] }}", False),
        ("{% if x %}{{ x }}{% endif %}", False),
        ("{% for c in x %}{{ c }}{% endfor %}", False),
        ("{% set z = x %}{{ z }}", False),
    ],
)
def test_a_plain_template_computes_nothing(source: str, expected: bool) -> None:
    assert template(source).is_plain == expected
