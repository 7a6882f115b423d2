"""Scores of text prompts equal a plain computation over one (prompt, example, label) at a time, however they are packed."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import a_task, plain_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prompt_core.backbone import Backbone
from prompt_core.task import TaskSpec
from prompt_core.text.prompt import Demonstration, TextPrompt
from prompt_core.text.score import Question, score_prompts

LABELS = ["late", "broken_box"]
ROWS = [
    {"text": text, "label": label}
    for text, label in (("Where is it?", "late"), ("It came in pieces, all of it", "broken_box"), ("5", "late"))
]
SHOWN = Demonstration(fields={"text": "The box is wet"}, answer="broken box")
CHAT = ({"system": "Sort the message."}, {"user": "{{ text }}"})
PROMPTS = [
    TextPrompt(template=CHAT),
    TextPrompt(template=({"user": "What is {{ text }} about?\nAnswer briefly."},), labels={"late": "delay of the parcel"}),
    TextPrompt(template=CHAT, demonstrations=(SHOWN, SHOWN)),
]
LINES = [
    TextPrompt(template="Sort this: {{ text }}\nKind:"),
    TextPrompt(template="{{ text }} ->", demonstrations=(SHOWN,)),
    TextPrompt(template="Sort it.\n\nInput: {{ text }}\nOutput:", demonstrations=(SHOWN, SHOWN)),
]


@cache
def plainly(folder: Path, root: tuple[int, ...], asked: tuple[int, ...], said: tuple[int, ...]) -> float:
    """Mean log-likelihood of what is said, by transformers alone."""
    ids = torch.tensor([[*root, *asked, *said]])
    chances = _model(folder)(ids).logits[0].log_softmax(-1)
    behind = len(root) + len(asked) - 1
    return float(chances[torch.arange(behind, behind + len(said)), torch.tensor(said)].mean())


@cache
def _model(folder: Path) -> Any:
    return plain_model(folder)


def task_for(folder: Path, prompts: list[TextPrompt], **parts: Any) -> TaskSpec:
    template = prompts[0].template if isinstance(prompts[0].template, str) else list(prompts[0].template)
    return a_task(folder, template=template, tune={"max_tokens": 96}, **parts)


@pytest.mark.parametrize("prompts", [PROMPTS, LINES], ids=["chat", "lines"])
@given(batch_tokens=st.integers(8, 400), rows=st.lists(st.lists(st.integers(0, 2), max_size=3), min_size=3, max_size=3))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_label_scores_are_those_of_each_triple_by_itself(
    llama: Backbone, llama_folder: Path, prompts: list[TextPrompt], batch_tokens: int, rows: list[list[int]]
) -> None:
    task = task_for(llama_folder, prompts)
    questions = [Question.of(task, prompt, llama, LABELS) for prompt in prompts]
    examples = [[question.encode(task, ROWS[row]) for row in own] for question, own in zip(questions, rows, strict=False)]
    found = score_prompts(llama, questions, examples, batch_tokens)
    for prompt, question, own, scores in zip(prompts, questions, examples, found, strict=True):
        said = {label: prompt.words.get(label, (label.replace("_", " "),))[0] for label in LABELS}
        for example, row in zip(own, scores, strict=False):
            for label, score in zip(LABELS, row.tolist(), strict=True):
                words = tuple(question.encoding.encode_target(said[label]))
                assert score == pytest.approx(plainly(llama_folder, question.root.root, example.input, words), abs=1e-4)


def test_several_ways_to_say_a_label_count_by_the_mean_of_their_likelihoods(llama: Backbone, llama_folder: Path) -> None:
    task, ways = task_for(llama_folder, PROMPTS), {"late": ("late", "delayed by a day"), "broken_box": ("broken box",)}
    question = Question.of(task, TextPrompt(template=CHAT, labels=ways), llama, LABELS)
    examples = [question.encode(task, row) for row in ROWS]
    (scores,) = score_prompts(llama, [question], [examples], 100)
    for example, row in zip(examples, scores.tolist(), strict=True):
        for label, score in zip(LABELS, row, strict=True):
            said = [tuple(question.encoding.encode_target(way)) for way in ways[label]]
            chances = [math.exp(plainly(llama_folder, question.root.root, example.input, words)) for words in said]
            assert score == pytest.approx(math.log(sum(chances) / len(chances)), abs=1e-4)


@given(batch_tokens=st.integers(8, 400))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_texts_are_scored_by_the_likelihood_of_each_pair_by_itself(llama: Backbone, llama_folder: Path, batch_tokens: int) -> None:
    task = task_for(llama_folder, PROMPTS, objective="generate")
    questions = [Question.of(task, prompt, llama, []) for prompt in PROMPTS]
    examples = [[question.encode(task, row) for row in ROWS] for question in questions]
    for question, own, scores in zip(questions, examples, score_prompts(llama, questions, examples, batch_tokens), strict=True):
        for example, score in zip(own, scores[:, 0].tolist(), strict=True):
            assert score == pytest.approx(plainly(llama_folder, question.root.root, example.input, example.target), abs=1e-4)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_what_is_rendered_is_what_the_model_reads(llama: Backbone, llama_folder: Path, prompt: TextPrompt) -> None:
    task = task_for(llama_folder, PROMPTS)
    question = Question.of(task, prompt, llama, LABELS)
    for row in ROWS:
        rendered = prompt.render(task, row)
        ids = llama.tokenizer.apply_chat_template(rendered, add_generation_prompt=True, tokenize=True, return_dict=False)
        assert list(question.root.root + question.encode(task, row).input) == ids


@pytest.mark.parametrize("prompt", LINES)
def test_what_is_rendered_as_one_string_is_what_the_model_reads(llama: Backbone, llama_folder: Path, prompt: TextPrompt) -> None:
    task = task_for(llama_folder, LINES)
    question = Question.of(task, prompt, llama, LABELS)
    for row in ROWS:
        assert list(question.root.root + question.encode(task, row).input) == llama.tokenizer(prompt.render(task, row)).input_ids


@pytest.mark.parametrize(("end", "gap"), [("", " "), ("\n", ""), (" ", "")])
def test_a_solved_example_is_shown_as_an_answer_is_scored(llama: Backbone, llama_folder: Path, end: str, gap: str) -> None:
    prompt = TextPrompt(template="Input: {{ text }}\nKind:" + end, demonstrations=(SHOWN,))
    task = task_for(llama_folder, [prompt], objective="generate")
    question = Question.of(task, prompt, llama, [])
    asked = question.encode(task, {"text": "The box is wet", "label": "broken box"})
    read = llama.tokenizer.decode([*question.root.root, *asked.input, *asked.target])
    assert read == 2 * f"Input: The box is wet\nKind:{end}{gap}broken box\n\n"


def test_behind_solved_lines_an_answer_ends_at_the_blank_line_that_parts_them(llama: Backbone, llama_folder: Path) -> None:
    task = task_for(llama_folder, LINES, objective="generate")
    alone, shown = (Question.of(task, prompt, llama, []) for prompt in LINES[:2])
    written = llama.tokenizer(" late\n\nThe next one ->").input_ids
    assert [question.encoding.decode(written) for question in (alone, shown)] == ["late\n\nThe next one ->", "late"]
    assert llama.tokenizer.decode(shown.encode(task, ROWS[0]).target) == " late\n\n"
    assert alone.encode(task, ROWS[0]).target[-1] == llama.tokenizer.eos_token_id
    assert shown.encoding.ends[:2] == ((llama.tokenizer.eos_token_id,), tuple(llama.tokenizer("\n\n").input_ids))
    lines = Question.of(task, LINES[2], llama, [])
    run, root = lines.encoding.ends[-1], lines.root.root
    assert lines.encode(task, ROWS[0]).target[-len(run) :] == run
    assert sum(root[i : i + len(run)] == run for i in range(len(root))) == 3  # behind the wording and both answers, the same tokens
    long = SHOWN.model_copy(update={"answer": "Dear customer,\n\nit is late."})
    paragraphs = Question.of(task, LINES[1].model_copy(update={"demonstrations": (SHOWN, long)}), llama, [])
    assert paragraphs.encoding.stop is None  # a blank line is not the end of such answers
    chat = Question.of(task_for(llama_folder, PROMPTS, objective="generate"), PROMPTS[2], llama, [])
    assert chat.encoding.stop is None  # turns of a chat end by themselves
