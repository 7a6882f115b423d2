"""From a task file to a text prompt: what is found, kept, refused, ended, and the same again."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from helpers import a_task, backbone_at, examples, save_tiny, tokenizer_of

from prompt_core import PromptmillError, TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.evaluation.metrics import summary
from prompt_core.evaluation.sidebyside import side_by_side
from prompt_core.evaluation.wanted import wanted_of
from prompt_core.export import Published, export
from prompt_core.generation import generate_texts
from prompt_core.task import TaskSpec
from prompt_core.text.budget import Budget, Clock
from prompt_core.text.candidate import Candidate, Structure
from prompt_core.text.finals import Finals
from prompt_core.text.journal import Journal
from prompt_core.text.judge_likelihood import LikelihoodJudge
from prompt_core.text.score import Question, score_prompts
from prompt_core.text.search import Round
from prompt_core.tuning import tune
from prompt_core.tuning.folds import join_sides
from tests.text.faulty_server import serving

CHAT = [{"system": "Sort the message."}, {"user": "{{ text }}"}]
TEXTS = [
    f"{what} number {i} is {how}"
    for i, how in enumerate(("late", "wet", "lost"))
    for what in ("Parcel", "A letter", "The box", "My invoice")
]
PLANTED = "Say of which kind the weather is."
FEW = {"rounds": 2, "together": 6, "demonstrations": 2, "block": 6}


def text_task(backbone: Backbone, text: dict[str, Any] | None = None, **parts: Any) -> TaskSpec:
    content = {"template": CHAT, "prompt": {"kind": "text"}, "text": FEW | (text or {}), "tune": {"max_tokens": 96}, **parts}
    return a_task(backbone.origin or backbone.identity.name, **content)


def planted(backbone: Backbone) -> pl.DataFrame:
    """Examples whose labels are what the model says under another wording and other words, calibrated."""
    task = text_task(backbone)
    unlabelled = examples(*[(text, "a") for text in TEXTS])
    rows = {row["_id"]: row for row in unlabelled.rows(named=True)}
    candidate = Candidate(PLANTED, "system", (("a", ("sun and wind",)), ("b", ("rain",))))
    question = Question.of(task, candidate.prompt(task, rows), backbone, ["a", "b"])
    (scores,) = score_prompts(backbone, [question], [[question.encode(task, row) for row in rows.values()]], 4096)
    logs = scores.log_softmax(-1)
    said = (logs - logs.mean(0)).argmax(-1).tolist()
    assert 0 < sum(said) < len(said)
    return examples(*[(row["text"], "ab"[label]) for row, label in zip(rows.values(), said, strict=True)])


@pytest.fixture(scope="module")
def rows(llama: Backbone) -> pl.DataFrame:
    return planted(llama)


@pytest.fixture(scope="module")
def found(llama: Backbone, rows: pl.DataFrame) -> TunedPrompt:
    return tune(text_task(llama), rows, None, llama)


@pytest.mark.slow
def test_a_planted_wording_and_its_words_are_found(llama: Backbone, rows: pl.DataFrame) -> None:
    words = {"a": ["dry", "sun and wind"], "b": ["rain", "wet"]}
    text = {"wordings": [PLANTED], "label_words": words, "rounds": 6, "together": 24, "patience": 6, "demonstrations": 0}
    shown: list[Round] = []
    prompt = tune(text_task(llama, text), rows, None, llama, on_round=shown.append)
    search = prompt.manifest.text_search
    assert search is not None and search.best.value is not None and search.best.value >= 1.0
    assert search.tried[0].value is not None and search.tried[0].value < 1.0 and search.tried[0].rows == len(rows)
    assert prompt.predict(rows["text"].to_list(), llama) == rows["label"].to_list()
    assert [round.number for round in shown] == list(range(1, len(shown) + 1)) and shown[-1].tokens == search.tokens


def test_lines_are_tried_with_and_without_examples(llama: Backbone, found: TunedPrompt) -> None:
    search = found.manifest.text_search
    assert search is not None
    lines = [tried for tried in search.tried if tried.structure == "lines"]
    assert {len(tried.shown) for tried in lines} >= {0, 2}
    for source, expected in [
        (CHAT, "Guess.\n\nInput: {{ text }}\nOutput:"),
        ([{"user": "Review: {{ text }}"}, {"user": "Mood:"}], "Guess.\n\nReview: {{ text }}\nOutput:"),
        ([{"user": "{{ text }}\nMood:"}], "Guess.\n\nInput: {{ text }}\nMood:"),
        ("{{ text }} ->", "Guess.\n\n{{ text }} ->"),
    ]:
        assert Candidate("Guess.", "lines").template(text_task(llama, template=source)) == expected
    assert Candidate("", "lines").template(text_task(llama)) == "Input: {{ text }}\nOutput:"


def test_the_same_seed_gives_the_same_digest(llama: Backbone, rows: pl.DataFrame, found: TunedPrompt) -> None:
    assert tune(text_task(llama), rows, None, llama).digest == found.digest
    assert tune(text_task(llama), rows[:8], rows[8:], llama).manifest.text == found.manifest.text  # the sides are searched together


def test_a_loaded_prompt_predicts_what_the_search_saw(llama: Backbone, rows: pl.DataFrame, tmp_path: Path) -> None:
    prompt = tune(text_task(llama, {"length_penalty": 0}), rows, None, llama)
    prompt.save(tmp_path / "p")
    loaded = TunedPrompt.load(tmp_path / "p")
    assert loaded.digest == prompt.digest and loaded.manifest.text is not None
    question = Question.of(loaded.task, loaded.manifest.text, llama, loaded.manifest.labels)
    inputs = [question.encode(loaded.task, row) for row in rows.rows(named=True)]
    (scores,) = score_prompts(llama, [question], [inputs], 4096)
    if "label_bias" in loaded.tensors:
        scores = scores - loaded.tensors["label_bias"]
    assert loaded.predict(rows["text"].to_list(), llama) == [loaded.manifest.labels[i] for i in scores.argmax(-1).tolist()]
    best = loaded.manifest.text_search.best  # type: ignore[union-attr]
    judging = [i for i, row in enumerate(rows["_id"]) if row[:12] not in best.shown]
    right = [loaded.predict([rows["text"][i]], llama)[0] == rows["label"][i] for i in judging]
    assert best.value is not None and sum(right) / len(right) <= best.value <= sum(right) / len(right) + 0.1


def test_a_calibrated_winner_keeps_its_bias(llama: Backbone, rows: pl.DataFrame) -> None:
    text = {"label_words": {"a": ["sun and wind"], "b": ["rain"]}, "wordings": [PLANTED], "rounds": 4, "together": 16, "demonstrations": 0}
    prompt = tune(text_task(llama, text), rows, None, llama)
    assert prompt.manifest.text_search is not None and prompt.manifest.text_search.best.calibrated
    assert prompt.tensors["label_bias"].shape == (2,) and prompt.manifest.parameters == 2


def test_all_of_a_labels_words_together_are_a_choice(llama: Backbone, rows: pl.DataFrame, tmp_path: Path) -> None:
    words = {"a": ["dry", "sun and wind"], "b": ["rain", "wet"]}
    prompt = tune(text_task(llama, {"label_words": words, "rounds": 1, "together": 12, "demonstrations": 0}), rows, None, llama)
    search = prompt.manifest.text_search
    assert search is not None and {"a": ("dry", "sun and wind"), "b": ("rain", "wet")} in [tried.words for tried in search.tried]
    said = Candidate("", "as_written", tuple((label, tuple(own)) for label, own in words.items()))
    averaged = TunedPrompt(prompt.manifest.model_copy(update={"text": said.prompt(prompt.task, {})}), {}, prompt.origin)
    averaged.save(tmp_path / "p")
    loaded, texts = TunedPrompt.load(tmp_path / "p"), rows["text"].to_list()
    assert loaded.digest == averaged.digest and loaded.predict(texts, llama) == averaged.predict(texts, llama)
    export([Published(loaded, 1, {})], tmp_path / "out", "kv")
    (recipe,) = json.loads((tmp_path / "out" / "prompts.json").read_text(encoding="utf-8"))
    assert recipe["labels"] == {"a": ["dry", "sun and wind"], "b": ["rain", "wet"]}


def test_a_wording_that_copies_an_example_is_rejected_and_one_that_does_not_is_tried(llama: Backbone) -> None:
    long = "The parcel was left behind the blue shed near the gate"
    text = {"wordings": [f"Note that {long.lower()}.", PLANTED], "rounds": 1}
    search = tune(text_task(llama, text), examples((long, "a"), ("It rains", "b"), ("5", "a")), None, llama).manifest.text_search
    assert search is not None
    assert 'repeats a training example: "the parcel was left' in search.rejected[f"Note that {long.lower()}."]
    assert PLANTED in {tried.wording for tried in search.tried}
    assert not any("left behind the blue" in tried.wording for tried in search.tried)


def test_a_wording_that_leaves_no_room_for_the_answer_with_the_most_tokens_is_rejected(llama: Backbone) -> None:
    long, birds = "the driver left the parcel at the front door of the house", "🦩🪺🪬🦚🪷🦋🫎"
    tokens = len(llama.tokenizer(birds).input_ids)
    assert len(birds) < len(long) and len(llama.tokenizer(long).input_ids) < tokens
    rows = examples(*[(f"word {i}", f"short {i}") for i in range(4)], ("a", long), ("b", birds))
    text = {"rounds": 1, "together": 2, "demonstrations": 0, "wordings": [PLANTED]}
    parts = {"template": "Say: {{ text }}\nText:", "objective": "generate", "tune": {"max_tokens": tokens + 14}}
    search = tune(text_task(llama, text, evaluate={"max_new_tokens": 4}, **parts), rows, None, llama).manifest.text_search
    assert search is not None and search.rejected[PLANTED].startswith("a target has")


def test_the_budget_in_tokens_ends_the_search_and_is_not_passed(llama: Backbone, rows: pl.DataFrame) -> None:
    spent = tune(text_task(llama, {"rounds": 1}), rows, None, llama).manifest.text_search
    assert spent is not None
    search = tune(text_task(llama, {"max_tokens": spent.tokens + 50}), rows, None, llama).manifest.text_search
    assert search is not None and search.ended == f"{spent.tokens + 50} tokens" and search.tokens <= spent.tokens + 50
    with pytest.raises(PromptmillError, match="task t: text: the budget of 100 tokens does not suffice for the task's own prompt"):
        tune(text_task(llama, {"max_tokens": 100}), rows, None, llama)


def test_for_a_task_that_writes_the_metric_of_the_finalists_decides(llama: Backbone, tmp_path: Path) -> None:
    pairs = examples(*[(f"Where is parcel {i}?", f"In depot {i % 3}") for i in range(8)])
    task = text_task(llama, objective="generate", evaluate={"metrics": ["chrf"], "max_new_tokens": 6})
    prompt = tune(task, pairs, None, llama)
    search = prompt.manifest.text_search
    assert search is not None and search.judged_by == "chrf" and search.tried[0].metric is not None
    assert search.best.metric is not None and search.best.metric >= search.tried[0].metric
    front = [search.tried[number] for number in search.pareto]
    assert [t.tokens for t in front] == sorted(t.tokens for t in front) and [t.metric or 0 for t in front] == sorted(
        t.metric or 0 for t in front
    )
    assert len(prompt.predict(["Where is it?"], llama)) == 1 and prompt.manifest.max_new_tokens == 6


@pytest.mark.parametrize("structure", ["system", "lines"])
def test_finalists_are_measured_over_all_rows_a_shown_one_behind_the_others(llama: Backbone, structure: Structure) -> None:
    pairs = examples(*[(f"Where is parcel {i}?", f"In depot {i % 3}") for i in range(6)])
    task = text_task(llama, objective="generate", evaluate={"metrics": ["chrf"], "max_new_tokens": 6})
    rows, journal = pairs.rows(named=True), Journal(None, Clock())
    judge = LikelihoodJudge(task, llama, rows, [], journal, Budget(), torch.zeros(len(rows), 1))
    candidate = Candidate("Answer.", structure, shown=tuple(pairs["_id"][:3]))
    texts = []
    for row in rows:
        others = replace(candidate, shown=tuple(shown for shown in candidate.shown if shown != row["_id"])).prompt(task, judge.by_id)
        question = Question.of(task, others, llama, [])
        texts += generate_texts(llama, question.encoding, question.root, [question.encoding.encode(row)], 6)
    expected = summary("chrf", texts, pairs["label"].to_list())
    assert Finals(task, judge, llama, 6, journal).measure([candidate]) == [pytest.approx(expected, abs=1e-6)]


def test_finalists_write_each_text_once_and_every_target_of_it_is_right(llama: Backbone) -> None:
    pairs = join_sides(
        (examples(*[(f"Where is parcel {i}?", f"In {place} {i}") for i in range(4) for place in ("depot", "hall", "bin")]), None)
    )
    task = text_task(llama, objective="generate", evaluate={"metrics": ["chrf"], "max_new_tokens": 6})
    rows, budget = pairs.rows(named=True), Budget()
    judge = LikelihoodJudge(task, llama, rows, [], Journal(None, Clock()), budget, torch.zeros(len(rows), 1))
    finals = Finals(task, judge, llama, 6, Journal(None, Clock()))
    candidate = Candidate("Answer.", "system")
    question = judge.question(candidate)
    once = pairs.unique("_id", keep="first", maintain_order=True)
    texts = generate_texts(llama, question.encoding, question.root, [question.encoding.encode(row) for row in once.rows(named=True)], 6)
    alike = dict(pairs.group_by("_id", maintain_order=True).agg("label").rows())
    wanted = wanted_of(task, once.rows(named=True), alike)
    assert finals.measure([candidate]) == [pytest.approx(summary("chrf", texts, once["label"].to_list(), wanted), abs=1e-6)]
    assert budget.spent_tokens == len(question.root.root) + sum(
        len(question.encoding.encode(row).input) + 6 for row in once.rows(named=True)
    )


def test_where_no_finalist_writes_what_is_wanted_the_likeliest_is_taken_not_the_shortest(llama: Backbone) -> None:
    pairs = examples(*[(f"{a}+{b}", f"{a + b} apples") for a in range(4) for b in range(4)])
    task = text_task(llama, objective="generate", evaluate={"metrics": ["exact_match"], "max_new_tokens": 4})
    search = tune(task, pairs, None, llama).manifest.text_search
    assert search is not None and search.judged_by == "log-likelihood" and all(tried.metric is None for tried in search.tried)
    own, likeliest = search.tried[0], max(tried.value or 0.0 for tried in search.finalists)
    assert search.best.value == likeliest and search.best.tokens > own.tokens
    assert search.chosen in search.pareto


def test_the_minutes_of_an_interrupted_search_count(llama: Backbone, rows: pl.DataFrame, tmp_path: Path) -> None:
    whole = tune(text_task(llama), rows, None, llama, checkpoints=tmp_path).manifest.text_search
    (journal,) = tmp_path.glob("*.jsonl")
    answers = [json.loads(line)[:2] for line in journal.read_text().splitlines()]
    hour_late = [[*answer, 1.0 if number < len(answers) // 2 else 3600.0] for number, answer in enumerate(answers)]
    journal.write_text("".join(json.dumps(line) + "\n" for line in hour_late))
    again = tune(text_task(llama, text={"minutes": 10}), rows, None, llama, checkpoints=tmp_path).manifest.text_search
    assert whole is not None and again is not None and whole.ended == "rounds" and again.ended == "600 seconds"
    assert len(again.tried) < len(whole.tried)


def test_a_search_with_more_money_goes_on_from_what_was_paid_for(llama: Backbone, rows: pl.DataFrame, tmp_path: Path) -> None:
    with serving([]) as served:
        spent, asked = [], []
        for dollars, gate in ((0.0003, 1.0), (1.0, 2.0)):
            price = {"dollars": dollars, "dollars_per_million_read": 0.0, "dollars_per_million_written": 10.0}
            endpoint = {"url": served.url, "model": "m", **price, "max_tokens": 10, "attempts": 2, "timeout": 9}
            task = text_task(llama, {"endpoint": endpoint}, gate={"min_gain": gate}, owner=f"team:{gate:g}")
            search = tune(task, rows, None, llama, checkpoints=tmp_path).manifest.text_search
            assert search is not None
            spent.append(search.dollars)
            asked.append(len(served.bodies))
    assert 0 < spent[0] <= 0.0003 < spent[1] and 0 < asked[0] < asked[1]
    assert spent[1] == pytest.approx(asked[1] * 10 * 10 / 1e6)  # each question once
    assert len(list(tmp_path.glob("*.jsonl"))) == 1


def test_rendering_loads_no_torch(found: TunedPrompt, tmp_path: Path) -> None:
    found.save(tmp_path / "p")
    code = (
        "import sys, json; from prompt_core import TunedPrompt; p = TunedPrompt.load(sys.argv[1])\n"
        "print(json.dumps(p.render({'text': 'Is it late?'})), file=sys.stderr); print(p.digest, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "p")], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [found.digest, "False"]
    assert json.loads(done.stderr) == found.render({"text": "Is it late?"}) and "Is it late?" in done.stderr


def test_an_export_as_text_says_what_render_says(found: TunedPrompt, llama: Backbone, tmp_path: Path) -> None:
    export([Published(found, 2, {})], tmp_path / "out", "text")
    page = (tmp_path / "out" / "README.md").read_text()
    code = page.split("```python\n")[1].split("```")[0].replace("{'text': '...'}", "{'text': 'Is {{ it }} late?'}")
    names: dict[str, Any] = {}
    exec(code.replace('open("', f'open("{tmp_path}/out/'), names)
    assert names["asked"] == found.render({"text": "Is {{ it }} late?"})
    assert names["prompt"]["labels"].keys() == {"a", "b"} and names["prompt"]["digest"] == found.digest
    for form in ("tokens", "peft", "vllm"):
        with pytest.raises(PromptmillError, match=f"export t@2 as {form}: it is words.* Use folder, kv, text"):
            export([Published(found, 2, {})], tmp_path / "other", form)


def test_without_the_prompt_the_tasks_own_words_answer(found: TunedPrompt, llama: Backbone) -> None:
    answers = side_by_side(found, {"text": "It rains"}, llama)
    own = TunedPrompt(found.manifest.model_copy(update={"text": Candidate("", "as_written").prompt(found.task, {})}), {})
    assert answers == {"without": own.predict(["It rains"], llama)[0], "with": found.predict(["It rains"], llama)[0]}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"prompt": {"kind": "text", "tokens": 4}}, "prompt: tokens is not for kind: text, which is words"),
        ({"tune": {"search": "auto"}}, "tune.search is not for prompt.kind: text; leave it to text.rounds"),
        ({"tune": {"calibrate": True}}, "tune.calibrate is not for prompt.kind: text"),
        ({"prompt": {"kind": "soft"}}, "the part text is for prompt.kind: text or auto; this one is soft"),
        ({"text": {"wordings": ["Say {{ it }}"]}}, 'text: wordings: "Say {{ it }}" holds template code'),
        (
            {"text": {"endpoint": {"url": "http://h/v1", "model": "m", "dollars": 1, "dollars_per_million_written": 2}}},
            "text.endpoint: dollars needs dollars_per_million_read and dollars_per_million_written, else what is not named costs nothing",
        ),
        ({"text": {"label_words": {"a": []}}}, "text: label_words: a has none, or an empty one"),
    ],
)
def test_a_setting_that_does_not_apply_is_one_line(llama: Backbone, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptmillError) as raised:
        text_task(llama, **{"text": {"rounds": 1}, **parts} if "text" not in parts else parts)
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("parts", "rows", "message"),
    [
        (
            {"template": "{{ txt }}"},
            [("x", "a"), ("y", "b")],
            'task t: template: field "txt" is no column of the data. Did you mean "text"',
        ),
        ({"template": "{{ soft(2) }} {{ text }}"}, [("x", "a"), ("y", "b")], "task t: template: has soft(n), which no text can say"),
        ({"text": {"label_words": {"c": ["x"]}}}, [("x", "a"), ("y", "b")], 'task t: text.label_words: "c" is no label of the data'),
        ({"text": {"exemplars": 4}}, [("x", "a"), ("y", "b")], "task t: text.exemplars: is for encoders, which tiny-llama is not"),
        ({}, [("x", "a")], 'task t: data.target: has only the label "a". A classifier needs examples of at least two.'),
        ({}, [("x", " "), ("y", "b")], 'task t: labels: " " is said as "", which is no token'),
        (
            {"text": {"demonstrations": 2}, "tune": {"max_tokens": 200}},
            [("late " * 60, "a"), ("wet " * 60, "b")],
            "task t: template: 1 demonstrations take ",
        ),
        (
            {"text": {"endpoint": {"url": "http://127.0.0.1:9/v1", "model": "m", "attempts": 1, "timeout": 1}}},
            [("x", "a"), ("y", "b"), ("z", "a")],
            "text.endpoint.url http://127.0.0.1:9/v1: gives no answer",
        ),
    ],
)
def test_what_does_not_fit_the_data_is_one_line(llama: Backbone, parts: dict[str, Any], rows: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(PromptmillError) as raised:
        tune(text_task(llama, **parts), examples(*rows), None, llama)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_label_word_without_a_token_is_one_line(tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(tokenizer_of("minilm"))
    tokenizer.eos_token = "[SEP]"
    backbone = backbone_at(str(save_tiny("llama", tmp_path / "tiny-llama", tokenizer)))
    task = text_task(backbone, {"label_words": {"a": ["dry", "\u200b"]}}, template="Sort: {{ text }}")
    with pytest.raises(PromptmillError) as raised:
        tune(task, examples(("x", "a"), ("y", "b")), None, backbone)
    assert str(raised.value) == (r"task t: text.label_words: '\u200b', for a, is no token of tiny-llama. Name other words for it.")


def test_demonstrations_beyond_the_context_are_named_in_the_record(llama: Backbone) -> None:
    long = [(f"{word} " * 50, label) for word, label in (("late", "a"), ("wet", "b"), ("lost", "a"), ("dry", "b"))]
    task = text_task(llama, {"rounds": 3}, tune={"max_tokens": 120})
    search = tune(task, examples(*long), None, llama).manifest.text_search
    assert search is not None and any("demonstrations take" in why for why in search.rejected.values())
