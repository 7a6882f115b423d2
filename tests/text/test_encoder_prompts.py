"""Text prompts of encoders: what is read, how anchors are made of descriptions and exemplars, and what a search finds."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest
import torch
import torch.nn.functional as F
from encoder_decoders import save_encoder_decoder
from helpers import a_task, backbone_at, examples, plain_model
from torch import Tensor

from prompt_core import PromptmillError, PromptStore, TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.data import Splits
from prompt_core.evaluation.evaluate import evaluate
from prompt_core.evaluation.sidebyside import side_by_side
from prompt_core.export import Published, export
from prompt_core.task import TaskSpec
from prompt_core.text.budget import Budget, Clock
from prompt_core.text.candidate import Candidate
from prompt_core.text.gradient import GradientEdits
from prompt_core.text.journal import Journal
from prompt_core.text.judge_anchors import AnchorJudge
from prompt_core.text.prompt import TextPrompt
from prompt_core.text.score import Question, score_prompts
from prompt_core.text.search import Tried
from prompt_core.tuning import tune

TEXTS = [f"{what} number {i} is {how}" for i, how in enumerate(("late", "wet", "lost")) for what in ("Parcel", "A letter", "The box")]
FEW = {"rounds": 3, "together": 8, "block": 4, "exemplars": 4}
WORDS = {"a": ["dry weather", "sun and wind"], "b": ["a wet day", "rain"]}
PROMPT = TextPrompt(
    template="Which weather is it? {{ text }}\nThe sky",
    labels={"a": ("dry weather", "sun"), "b": "rain"},
    exemplars={"b": ({"text": "It pours"}, {"text": "A shower, all day"})},
)


def text_task(backbone: Backbone, text: dict[str, Any] | None = None, **parts: Any) -> TaskSpec:
    content = {"prompt": {"kind": "text"}, "text": FEW | (text or {}), "tune": {"max_tokens": 64}, **parts}
    return a_task(backbone.origin or backbone.identity.name, **content)


def judge_of(task: TaskSpec, backbone: Backbone, rows: pl.DataFrame) -> AnchorJudge:
    return AnchorJudge(task, backbone, rows.rows(named=True), ["a", "b"], Journal(None, Clock()), Budget())


@cache
def embedded(folder: Path, text: str) -> Tensor:
    """Unit-length mean state of a text, by transformers alone."""
    model, tokenizer = plain_model(folder, causal=False), backbone_at(str(folder)).tokenizer
    states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
    return F.normalize(states.mean(0), dim=-1)


@pytest.fixture(scope="module")
def rows(bert: Backbone) -> pl.DataFrame:
    """Examples whose labels are what the second of each label's words say."""
    judge = judge_of(text_task(bert, {"label_words": WORDS}), bert, examples(*[(text, "a") for text in TEXTS]))
    said = judge.scores(Candidate("", "as_written", (("a", ("sun and wind",)), ("b", ("rain",)))), range(len(TEXTS))).argmax(1)
    texts = [row["text"] for row in judge.rows]
    assert 0 < said.sum() < len(said)
    return examples(*[(text, "ab"[label]) for text, label in zip(texts, said.tolist(), strict=True)])


@pytest.fixture(scope="module")
def found(bert: Backbone, rows: pl.DataFrame) -> TunedPrompt:
    return tune(text_task(bert), rows, None, bert)


def test_an_input_is_read_as_the_rendered_text_and_scored_against_mean_embeddings(bert: Backbone, bert_folder: Path) -> None:
    task = text_task(bert)
    question = Question.of(task, PROMPT, bert, ["a", "b"])
    inputs = [question.encode(task, {"text": text, "label": "a"}) for text in TEXTS]
    assert [list(example.input) for example in inputs] == [
        bert.tokenizer(str(PROMPT.render(task, {"text": text}))).input_ids for text in TEXTS
    ]
    (scores,) = score_prompts(bert, [question], [inputs], 40)
    shown = [str(PROMPT.render(task, fields)) for fields in (PROMPT.exemplars or {})["b"]]
    anchors = [sum(embedded(bert_folder, text) for text in own) for own in (("dry weather", "sun"), ("rain", *shown))]
    queries = torch.stack([embedded(bert_folder, str(PROMPT.render(task, {"text": text}))) for text in TEXTS])
    expected = task.tune.anchor_scale * queries @ F.normalize(torch.stack(anchors), dim=-1).T  # type: ignore[arg-type]
    assert torch.allclose(scores, expected, atol=1e-4)


def test_an_exemplar_does_not_score_itself(bert: Backbone, rows: pl.DataFrame) -> None:
    task = text_task(bert)
    judge, ids = judge_of(task, bert, rows), rows["_id"].to_list()
    whole = judge.scores(Candidate("", "as_written", shown=tuple(ids)), range(len(ids)))
    for number in range(len(ids)):
        others = tuple(row for row in ids if row != ids[number])
        alone = judge.scores(Candidate("", "as_written", shown=others), [number])
        assert whole[number] == pytest.approx(alone[0], abs=1e-5)


def test_what_is_cut_is_the_text_and_not_the_instruction(bert: Backbone) -> None:
    task = text_task(bert, tune={"max_tokens": 16, "truncate": "start"})
    question = Question.of(task, PROMPT, bert, ["a", "b"])
    (first, *_), long = question.encoding.before, question.encode(task, {"text": "word " * 40, "label": "a"})
    assert long.truncated and len(long.input) == 16 and first == bert.tokenizer.cls_token_id
    assert question.encoding.decode(long.input).startswith("which weather is it?")
    assert question.encoding.decode(long.input).endswith("the sky")


def test_planted_descriptions_are_found(bert: Backbone, rows: pl.DataFrame) -> None:
    text = {"label_words": WORDS, "exemplars": 0, "rounds": 4, "together": 16, "length_penalty": 0.01}
    prompt = tune(text_task(bert, text), rows, None, bert)
    search = prompt.manifest.text_search
    assert search is not None and search.best.value is not None and search.best.value >= 1.0
    assert prompt.predict(rows["text"].to_list(), bert) == rows["label"].to_list()


def test_a_found_prompt_is_words_alone_and_predicts_the_same_when_it_is_loaded(
    bert: Backbone, rows: pl.DataFrame, found: TunedPrompt, tmp_path: Path
) -> None:
    search, text = found.manifest.text_search, found.manifest.text
    assert search is not None and text is not None and search.tried[0].rows == len(rows)
    assert any(tried.exemplars for tried in search.tried) and any(tried.wording for tried in search.tried)
    assert found.tensors.keys() == ({"label_bias"} if search.best.calibrated else set())
    found.save(tmp_path / "p")
    loaded = TunedPrompt.load(tmp_path / "p")
    assert loaded.digest == found.digest and loaded.predict(TEXTS, bert) == found.predict(TEXTS, bert)
    assert loaded.render({"text": "It rains"}) == text.render(found.task, {"text": "It rains"})
    assert json.loads((tmp_path / "p" / "manifest.json").read_text())["text"]["exemplars"] is not None


def test_the_same_seed_gives_the_same_digest_and_goes_on_from_what_was_scored(
    bert: Backbone, rows: pl.DataFrame, found: TunedPrompt, tmp_path: Path
) -> None:
    assert tune(text_task(bert), rows, None, bert, checkpoints=tmp_path).digest == found.digest
    (journal,) = tmp_path.glob("*.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[: len(lines) // 2]))  # as if it had been killed there
    assert tune(text_task(bert), rows, None, bert, checkpoints=tmp_path).digest == found.digest
    answers = dict(json.loads(line)[:2] for line in lines)  # the seconds at which they came are others
    again = [json.loads(line)[:2] for line in journal.read_bytes().splitlines()]
    assert len(again) == len(lines) and dict(again) == answers


def test_gradients_exchange_whole_words_of_a_wording_and_begin_one(bert: Backbone, rows: pl.DataFrame) -> None:
    task = text_task(bert, labels={"a": "fine and sunny", "b": "foul"})
    judge = judge_of(task, bert, rows)
    edits = GradientEdits(task, judge, bert)
    for wording in ("", "Name the weather"):
        candidate = Candidate(wording, "before" if wording else "as_written")
        (values,) = judge.values([candidate], range(len(rows)))
        made = edits([Tried(candidate, 1, values, 0.5)], Random(3))
        assert len(made) == 4 and all(all(word.strip("?").isalpha() for word in each.split()) for each in made)
        known = {"fine", "and", "sunny", "foul"} if not wording else {"name", "the", "weather"}
        assert all(len(set(each.split()) - known) <= 2 for each in made)


def test_the_loss_that_is_differentiated_is_the_loss_of_the_scores(bert: Backbone, rows: pl.DataFrame) -> None:
    judge = judge_of(text_task(bert), bert, rows)
    candidate, numbers = Candidate("", "as_written", shown=tuple(rows["_id"][:4])), list(range(len(rows)))
    front = judge.front(candidate)
    with torch.no_grad():
        loss = judge.loss(candidate, 0, bert.embed(torch.tensor(front)), numbers)
    scores, right = torch.from_numpy(judge.scores(candidate, numbers)), [ord(row["label"]) - ord("a") for row in judge.rows]
    assert float(loss) == pytest.approx(float(F.cross_entropy(scores, torch.tensor(right))), abs=1e-4)


def test_an_instruction_at_the_head_of_a_string_is_what_is_searched(bert: Backbone, rows: pl.DataFrame) -> None:
    prompt = tune(text_task(bert, {"rounds": 1}, template="Say which weather it is: {{ text }}"), rows, None, bert)
    search = prompt.manifest.text_search
    assert search is not None and search.tried[0].wording == "Say which weather it is:"
    assert Candidate("Guess.", "before").template(prompt.task) == "Guess.\n{{ text }}"
    assert Candidate("Guess.", "before").template(text_task(bert, template="Text: {{ text }}")) == "Guess.\nText: {{ text }}"


def test_it_is_evaluated_beside_label_names_and_stored(bert: Backbone, rows: pl.DataFrame, found: TunedPrompt, tmp_path: Path) -> None:
    evaluation = evaluate(found.task, found, Splits(train=rows[:6], validation=rows[6:], test=rows), bert)
    assert [each.name for each in evaluation.contenders] == ["label_names", "linear_probe", "tuned"]
    answers = side_by_side(found, {"text": "It rains"}, bert)
    assert answers["with"] == found.predict(["It rains"], bert)[0]
    store = PromptStore(f"file://{tmp_path}/store")
    store.publish(found, {"verdict": {"passed": True}})
    assert store.get("t", 1).predict(TEXTS, bert) == found.predict(TEXTS, bert)


def test_it_is_judged_by_what_it_answers(bert: Backbone, found: TunedPrompt) -> None:
    prompt = TunedPrompt(found.manifest.model_copy(update={"text": PROMPT}), {}, found.origin)
    frame = examples(*[(text, "ab"[i % 2]) for i, text in enumerate(TEXTS)])[:8]
    evaluation = evaluate(prompt.task, prompt, Splits(train=frame, validation=frame, test=frame), bert)
    answers = dict(zip(frame["text"], prompt.answer(frame["text"].to_list(), bert), strict=True))
    assert evaluation.cases
    for case in evaluation.cases:
        answer = answers[case.input["text"]]
        assert (case.after, case.confidence) == (answer.text, pytest.approx(100 * (answer.score or 0), abs=0.01))


def test_mistakes_are_told_and_the_budget_counts_each_wording_once(bert: Backbone, rows: pl.DataFrame) -> None:
    judge = judge_of(text_task(bert), bert, rows)
    own, every = Candidate("", "as_written"), list(range(len(rows)))
    assert judge.mistakes(own) == []
    before = judge.budget.spent_tokens
    (values,) = judge.values([own], every)
    paid = judge.budget.spent_tokens - before
    judge.values([Candidate("", "as_written", shown=tuple(rows["_id"][:3])), own], every)
    assert paid > 0 and judge.budget.spent_tokens == before + paid
    assert len(judge.mistakes(own)) == min(int((values < 1).sum()), len(rows) // 2)
    assert all(right != given for _, right, given in judge.mistakes(own))
    with pytest.raises(PromptmillError, match="task t: text: the budget of 20 tokens does not suffice for the task's own prompt"):
        tune(text_task(bert, {"max_tokens": 20}), rows, None, bert)


def test_an_export_as_text_names_encoder_and_exemplars(found: TunedPrompt, tmp_path: Path) -> None:
    text = found.manifest.text
    assert text is not None
    shown = text.model_copy(update={"exemplars": {"a": ({"text": "Sun"},)}, "labels": {"a": ("dry", "sun")}})
    prompt = TunedPrompt(found.manifest.model_copy(update={"text": shown}), found.tensors)
    export([Published(prompt, 1, {})], tmp_path / "out", "text")
    (recipe,) = json.loads((tmp_path / "out" / "prompts.json").read_text())
    assert recipe["encoder"] == found.manifest.backbone.name and recipe["exemplars"] == {"a": [{"text": "Sun"}]}
    assert recipe["labels"] == {"a": ["dry", "sun"], "b": "b"} and "label_score" not in recipe


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"text": {"choices": ["retrieved"]}}, "task t: text.choices: retrieved, but tiny-bert is an encoder, which reads no"),
        ({"text": {"demonstrations": 4}}, "task t: text.demonstrations: is for causal models, which tiny-bert is not. Leave it out."),
        ({"text": {"retriever": "minilm"}}, "task t: text.retriever: is for causal models, which tiny-bert is not. Leave it out."),
        ({"template": [{"user": "{{ text }}"}]}, "task t: template: backbone tiny-bert has no chat format"),
        ({"template": "word " * 80 + "{{ text }}"}, "task t: template: what precedes the first field has 80 tokens"),
    ],
)
def test_what_does_not_fit_an_encoder_is_one_line(bert: Backbone, rows: pl.DataFrame, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptmillError) as raised:
        tune(text_task(bert, **parts), rows, None, bert)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_an_encoder_decoder_is_refused_by_name(rows: pl.DataFrame, tmp_path: Path) -> None:
    backbone = backbone_at(str(save_encoder_decoder("t5", tmp_path / "tiny-t5")))
    task = text_task(backbone, objective="generate")
    with pytest.raises(PromptmillError, match=r"task t: prompt\.kind: text, but tiny-t5 is an encoder-decoder. Use a causal model"):
        tune(task, rows, None, backbone)
