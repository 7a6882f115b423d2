"""Demonstrations retrieved for each query: which they are, what is read, and that nothing is shown its own answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import torch.nn.functional as F
from helpers import a_task, examples, plain_model
from hypothesis import given
from hypothesis import strategies as st

from prompt_core import PromptmillError, TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.data import Splits
from prompt_core.data.demonstrations import fair_draw
from prompt_core.evaluation.evaluate import evaluate
from prompt_core.export import Published, export
from prompt_core.ready import ReadyPrompt
from prompt_core.task import TaskSpec
from prompt_core.text.budget import Budget, Clock
from prompt_core.text.candidate import Candidate
from prompt_core.text.demonstrations import nearest
from prompt_core.text.index import Embedder, embedding_model
from prompt_core.text.journal import Journal
from prompt_core.text.judge_likelihood import LikelihoodJudge
from prompt_core.text.prompt import Retrieval
from prompt_core.text.score import score_prompts
from prompt_core.tuning import tune
from prompt_core.tuning.folds import join_sides

CHAT = [{"system": "Sort the message."}, {"user": "{{ text }}"}]
ROWS = [
    (f"{what} number {i} is {how}", "ab"[(i + place) % 2])
    for i, how in enumerate(("late", "wet", "lost"))
    for place, what in enumerate(("Parcel", "A letter", "The box", "My bag"))
]
FEW = {"rounds": 3, "together": 6, "demonstrations": 2, "block": 6, "choices": ["retrieved"], "length_penalty": 0}


def text_task(backbone: Backbone, text: dict[str, Any] | None = None, **parts: Any) -> TaskSpec:
    content = {"template": CHAT, "prompt": {"kind": "text"}, "text": FEW | (text or {}), "tune": {"max_tokens": 96}, **parts}
    return a_task(backbone.origin or backbone.identity.name, **content)


def judge_of(task: TaskSpec, backbone: Backbone, rows: pl.DataFrame) -> LikelihoodJudge:
    listed = rows.rows(named=True)
    labels = ["a", "b"] if task.objective == "classify" else []
    return LikelihoodJudge(task, backbone, listed, labels, Journal(None, Clock()), Budget(), Embedder(task, backbone)(listed))


def retrieving(backbone: Backbone, count: int, balanced: bool = False, wording: str = "Sort it.") -> Candidate:
    return Candidate(wording, "system", retrieval=Retrieval(count=count, balanced=balanced, model=embedding_model(backbone)))


def picked(prompt: TunedPrompt, backbone: Backbone, rows: pl.DataFrame, count: int = 2) -> TunedPrompt:
    """The prompt with retrieval, whatever its search has chosen."""
    by_id = {row["_id"]: row for row in rows.rows(named=True)}
    text = retrieving(backbone, count).prompt(prompt.task, by_id)
    return TunedPrompt(prompt.manifest.model_copy(update={"text": text}), {}, prompt.origin)


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    return examples(*ROWS)


@pytest.fixture(scope="module")
def found(llama: Backbone, rows: pl.DataFrame) -> TunedPrompt:
    return tune(text_task(llama), rows, None, llama)


def test_of_several_targets_a_text_prompt_shows_the_one_that_the_baseline_shows(llama: Backbone) -> None:
    rows = join_sides((examples(*[(text, f"{n}. {text}") for text in "ABC" for n in (2, 1)]), None))
    judge = judge_of(text_task(llama, objective="generate"), llama, rows)
    fixed = Candidate("", "system", shown=tuple(judge.by_id))
    drawn = {row["text"]: row["label"] for row in fair_draw(rows, 3).rows(named=True)}
    assert drawn == {text: f"1. {text}" for text in "ABC"}
    for candidate in (fixed, retrieving(llama, 3)):
        shown = candidate.prompt(text_task(llama, objective="generate"), judge.by_id).demonstrations
        assert {each.fields["text"]: each.answer for each in shown} == drawn
    assert {row["label"] for row in (judge.rows[number] for number in judge._pool)} == set(drawn.values())


@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=12),
    st.integers(1, 8),
    st.booleans(),
    st.integers(0, 99),
    st.sets(st.integers(0, 11)),
)
def test_the_nearest_stand_last_and_balanced_ones_take_turns(
    labels: list[str], count: int, balanced: bool, seed: int, without: set[int]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    pool, query = F.normalize(torch.randn(len(labels), 4, generator=generator), dim=-1), torch.randn(4, generator=generator)
    shown = nearest(pool, labels, query, count, balanced, without)
    free = [number for number in range(len(labels)) if number not in without]
    assert len(shown) == len(set(shown)) == min(count, len(free)) and set(shown) <= set(free)
    worth = (pool @ query).tolist()
    if not balanced:
        assert shown == sorted(free, key=lambda number: worth[number])[-count:]
        return
    counts = [sum(labels[number] == label for number in shown) for label in {labels[number] for number in free}]
    room = [sum(labels[number] == label for number in free) for label in {labels[number] for number in free}]
    assert all(one >= min(most, max(counts) - 1) for one, most in zip(counts, room, strict=True))
    for number in shown:  # of each label the nearest ones
        assert not any(labels[o] == labels[number] and worth[o] > worth[number] and o not in shown for o in free)


def test_every_input_is_read_with_its_own_demonstrations_as_it_is_rendered(llama: Backbone, llama_folder: Path, rows: pl.DataFrame) -> None:
    task, model = text_task(llama), plain_model(llama_folder)
    judge, candidate = judge_of(task, llama, rows), retrieving(llama, 3)
    question, prompt = judge.question(candidate), candidate.prompt(task, judge.by_id)
    inputs = [judge.read(candidate, number) for number in range(len(rows))]
    (scores,) = score_prompts(llama, [question], [inputs], 300)
    assert torch.from_numpy(judge.scores(candidate, range(len(rows)))).allclose(scores.double(), atol=1e-4)
    embedded = Embedder(task, llama)(judge.rows)
    for number, (example, row) in enumerate(zip(inputs, judge.rows, strict=True)):
        order = [n for n in (embedded @ embedded[number]).argsort().tolist() if n != number][-3:]
        shown = [each for n in order for each in prompt.demonstrations if each.fields["text"] == judge.rows[n]["text"]]
        rendered = prompt.render(task, row, shown)
        ids = llama.tokenizer.apply_chat_template(rendered, add_generation_prompt=True, tokenize=True, return_dict=False)
        assert list(question.root.root + example.input) == ids
        assert question.root.root == question.encoding.root  # what all have in common, once
        for label, score in zip("ab", scores[number].tolist(), strict=True):
            said = question.encoding.encode_target(label)
            chances = model(torch.tensor([[*ids, *said]])).logits[0].log_softmax(-1)[len(ids) - 1 : -1]
            assert score == pytest.approx(float(chances[torch.arange(len(said)), torch.tensor(said)].mean()), abs=1e-4)


def test_examples_of_an_input_stand_behind_what_all_lines_have_in_front(llama: Backbone, rows: pl.DataFrame) -> None:
    task = text_task(llama)
    judge, candidate = judge_of(task, llama, rows), replace(retrieving(llama, 2), structure="lines")
    question, prompt = judge.question(candidate), candidate.prompt(task, judge.by_id)
    assert prompt.template == "Sort it.\n\nInput: {{ text }}\nOutput:"
    own = {each.fields["text"]: each for each in prompt.demonstrations}
    embedded = Embedder(task, llama)(judge.rows)
    for number, row in enumerate(judge.rows):
        order = [n for n in (embedded @ embedded[number]).argsort().tolist() if n != number][-2:]
        shown = [own[judge.rows[n]["text"]] for n in order]
        rendered = prompt.render(task, row, shown)
        assert isinstance(rendered, str) and rendered.startswith("Sort it.\n\nInput: ") and rendered.count("Sort it.") == 1
        assert list(question.root.root + judge.read(candidate, number).input) == llama.tokenizer(rendered).input_ids
        assert llama.tokenizer.decode(question.root.root).startswith("Sort it.\n\nInput:")


def test_a_training_row_is_never_shown_to_itself(llama: Backbone, rows: pl.DataFrame) -> None:
    judge, candidate = judge_of(text_task(llama), llama, rows), retrieving(llama, 4, balanced=True)
    question = judge.question(candidate)
    for number, row in enumerate(judge.rows):
        read = llama.tokenizer.decode(judge.read(candidate, number).input)
        assert read.count(row["text"]) == 1 and read.rstrip().endswith("assistant")
        assert not judge.read(candidate, number, answered=True).target  # of a classifier
    (values,) = judge.values([candidate], range(len(rows)))
    assert not torch.from_numpy(values).isnan().any()  # so that every row judges
    assert judge.tokens(candidate) > len(question.root.root) + 4 * 5


def test_a_search_tries_retrieval_and_a_found_prompt_predicts_when_it_is_loaded(
    llama: Backbone, rows: pl.DataFrame, found: TunedPrompt, tmp_path: Path
) -> None:
    search = found.manifest.text_search
    assert search is not None and any(tried.retrieved for tried in search.tried) and not any(tried.shown for tried in search.tried)
    assert "2 retrieved" in search.markdown() or "1 retrieved" in search.markdown()
    assert tune(text_task(llama), rows, None, llama).digest == found.digest
    prompt = picked(found, llama, rows)
    prompt.save(tmp_path / "p")
    loaded, texts = TunedPrompt.load(tmp_path / "p"), ["A letter is wet", "Where is my bag?"]
    assert loaded.digest == prompt.digest and loaded.manifest.text == prompt.manifest.text
    assert loaded.predict(texts, llama) == [loaded.predict([text], llama)[0] for text in texts]
    for text, shown in zip(texts, loaded.retrieve(texts, llama), strict=True):
        fixed = prompt.manifest.text.model_copy(update={"demonstrations": tuple(shown), "retrieval": None})  # type: ignore[union-attr]
        alone = TunedPrompt(prompt.manifest.model_copy(update={"text": fixed}), {})
        assert alone.predict([text], llama) == loaded.predict([text], llama)
        assert alone.render({"text": text}) == loaded.render({"text": text}, shown) == alone.render(f" {text}\n")
    with pytest.raises(PromptmillError, match=r"inputs: are of type str alone\. Put it in a list\."):
        loaded.retrieve("A letter is wet", llama)
    with pytest.raises(PromptmillError, match="input: is None, not a text"):
        loaded.render(None)  # type: ignore[arg-type]


def test_it_is_judged_with_the_demonstrations_that_users_get(llama: Backbone, rows: pl.DataFrame, found: TunedPrompt) -> None:
    prompt = picked(found, llama, rows)
    test = examples(*[(f"{text} here", label) for text, label in ROWS])
    evaluation = evaluate(prompt.task, prompt, Splits(train=rows[:6], validation=rows[6:], test=test), llama)
    answers = dict(zip(test["text"], prompt.answer(test["text"].to_list(), llama), strict=True))
    assert evaluation.cases
    for case in evaluation.cases:
        answer = answers[case.input["text"]]
        assert (case.after, case.confidence) == (answer.text, pytest.approx(100 * (answer.score or 0), abs=0.01))
    ready = ReadyPrompt.of(prompt, llama)
    read = [len(example.input) for example in ready.encode_all(test["text"].to_list())]
    assert evaluation.cost is not None and evaluation.cost.input_tokens == pytest.approx(sum(read) / len(read), abs=0.01)


def test_a_task_that_writes_retrieves_too(llama: Backbone, rows: pl.DataFrame) -> None:
    task = text_task(llama, objective="generate", evaluate={"metrics": ["chrf"], "max_new_tokens": 4})
    prompt = picked(tune(task, rows, None, llama), llama, rows)
    assert len(prompt.predict(["Parcel number 0 is late", "It is wet"], llama)) == 2


def test_what_a_rendering_lacks_is_one_line_and_other_forms_are_refused(
    found: TunedPrompt, llama: Backbone, rows: pl.DataFrame, tmp_path: Path
) -> None:
    prompt = picked(found, llama, rows)
    with pytest.raises(PromptmillError, match=r"prompt t: shows each input the 2 nearest of 12 examples.* Give them as retrieved="):
        prompt.render({"text": "x"})
    with pytest.raises(PromptmillError, match=r"prompt t: does not retrieve demonstrations. Use render alone."):
        fixed = prompt.manifest.text.model_copy(update={"retrieval": None})  # type: ignore[union-attr]
        TunedPrompt(prompt.manifest.model_copy(update={"text": fixed}), {}).retrieve(["x"], llama)
    for form in ("text", "kv"):
        with pytest.raises(PromptmillError, match=f"export t@1 as {form}: it (shows|retrieves)"):
            export([Published(prompt, 1, {})], tmp_path / form, form)
    assert "demonstrations: the 2 nearest of 12 by tiny-llama" in prompt.manifest.text.page(prompt.task)  # type: ignore[union-attr]


def test_an_index_of_another_model_is_refused(found: TunedPrompt, llama: Backbone, rows: pl.DataFrame) -> None:
    prompt = picked(found, llama, rows)
    text = prompt.manifest.text
    assert text is not None and text.retrieval is not None
    other = text.retrieval.model_copy(update={"model": text.retrieval.model.model_copy(update={"weights": "0" * 64})})
    changed = TunedPrompt(prompt.manifest.model_copy(update={"text": text.model_copy(update={"retrieval": other})}), {})
    with pytest.raises(PromptmillError, match=r"prompt t: retrieves by tiny-llama with weights 000000000000, those here are"):
        changed.predict(["x"], llama)


def test_demonstrations_that_do_not_fit_together_are_named_in_the_record(llama: Backbone) -> None:
    long = [(f"{word} " * 40, label) for word, label in (("late", "a"), ("wet", "b"), ("lost", "a"), ("dry", "b"), ("open", "a"))]
    task = text_task(llama, {"rounds": 1, "together": 8, "demonstrations": 2}, tune={"max_tokens": 160})
    search = tune(task, examples(*long), None, llama).manifest.text_search
    assert search is not None and any("demonstrations take" in why for why in search.rejected.values())


def test_a_trained_encoder_may_be_the_index(llama: Backbone, minilm: Backbone, rows: pl.DataFrame) -> None:
    task = text_task(llama, {"retriever": "minilm"})
    prompt = tune(task, rows, None, llama)
    chosen = retrieving(minilm, 1).prompt(task, {row["_id"]: row for row in rows.rows(named=True)})
    prompt = TunedPrompt(prompt.manifest.model_copy(update={"text": chosen}), {}, prompt.origin)
    ((nearest_one,),) = prompt.retrieve(["The box, it is number 1, and wet"], llama)
    assert nearest_one.fields["text"] == "The box number 1 is wet"
    with pytest.raises(PromptmillError, match=r'task t: text.retriever: "minilmm" is no embedded model. Did you mean "minilm"'):
        tune(text_task(llama, {"retriever": "minilmm"}), rows, None, llama)
