"""Distillation: the divergence is the dense one in float64, and a tuned prompt comes closer to its teacher than the cut text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from helpers import a_task, assert_equal_to_rounding, backbone_at, examples, melting_tokenizer, save_tiny
from torch import Tensor

from prompt_core.backbone import Backbone
from prompt_core.encoding import TaskEncoding
from prompt_core.errors import PromptmillError
from prompt_core.evaluation.distilled import measure
from prompt_core.generation import generate
from prompt_core.prediction import restore
from prompt_core.prompts import PromptState, compaction
from prompt_core.task import TaskSpec
from prompt_core.teacher import Teacher, likeliest
from prompt_core.tuning import SearchStep, distillation, tune
from prompt_core.tuning.candidate import Candidate
from prompt_core.tuning.distillation import teacher_divergences
from prompt_core.tuning.prepared import Prepared

CHAT = [{"system": "Answer briefly."}, {"user": "{{ text }}"}]
POLICY = "Parcels up to 2 kg cost 49 kroner. Parcels up to 10 kg cost 89 kroner. Drivers wait three minutes and ring once at the door."
TEXTS = examples(*[(f"What does a parcel of {i} kg cost?", "") for i in range(12)])


@pytest.fixture(autouse=True)
def own_cache_and_fewer_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(compaction, "_STEPS", 20)  # enough for two layers


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return backbone_at(str(save_tiny("gemma2", tmp_path_factory.mktemp("models") / "gemma2")))


def a_distill_task(
    backbone: Backbone, folder: Path, *, policy: str = POLICY, distill: dict[str, Any] | None = None, **parts: Any
) -> TaskSpec:
    (folder / "policy.md").write_text(policy, encoding="utf-8")
    return a_task(
        backbone.identity.name,
        folder=folder,
        **{
            "objective": "distill",
            "template": CHAT,
            "data": {"path": "questions.csv"},
            "distill": {"context": "policy.md", "answer_tokens": 6, "top_k": 8, **(distill or {})},
            "prompt": {"tokens": 16},
            "tune": {"max_tokens": 64, "steps": 40, "batch_examples": 6},
            **parts,
        },
    )


@contextmanager
def counted(backbone: Backbone) -> Iterator[list[int]]:
    """Tokens of each pass through the real model."""
    passes: list[int] = []
    hook = backbone._base.register_forward_pre_hook(lambda _, __, given: passes.append(given["inputs_embeds"].shape[1]), with_kwargs=True)
    try:
        yield passes
    finally:
        hook.remove()


def dense(states: Tensor, backbone: Backbone, ids: Tensor, chances: Tensor, rest: Tensor) -> Tensor:
    """The definition: float64, every logit, the k tokens and the sum of the others as k + 1 outcomes."""
    logits = states @ backbone.head_weight.double().T
    logits = logits if backbone.logit_cap is None else backbone.logit_cap * torch.tanh(logits / backbone.logit_cap)
    ours = logits.softmax(-1)
    others = ours.scatter(1, ids, 0.0).sum(-1, keepdim=True)
    ours = torch.cat([ours.gather(1, ids), others], -1)
    theirs = torch.cat([chances, rest[:, None]], -1).double().exp()
    return torch.where(theirs > 0, theirs * (theirs.log() - ours.log()), 0.0).sum(-1)


@pytest.mark.parametrize("capped", [False, True])
def test_divergence_and_gradient_are_those_of_the_dense_definition(
    llama: Backbone, gemma: Backbone, monkeypatch: pytest.MonkeyPatch, capped: bool
) -> None:
    monkeypatch.setattr(distillation, "_ROWS", 8)
    monkeypatch.setattr(distillation, "_CACHED", 4)
    backbone, generator = gemma if capped else llama, torch.Generator().manual_seed(0)
    theirs, ours = (torch.randn(11, backbone.hidden_size, generator=generator) for _ in range(2))
    ids, chances, rest = likeliest(backbone, theirs, 5)
    rest[3] = -torch.inf  # a teacher that leaves nothing over
    chances[3] = chances[3].log_softmax(-1)
    weights = torch.rand(11, generator=generator)
    found, first = teacher_divergences(backbone, ours.requires_grad_(), ids.long(), chances, rest)
    exact = ours.detach().double().requires_grad_()
    expected = dense(exact, backbone, ids.long(), chances, rest)
    assert_equal_to_rounding(found.double(), expected)
    assert torch.equal(first, backbone.logits(ours).argmax(-1))
    (gradient,) = torch.autograd.grad((found * weights).sum(), ours)
    (plain,) = torch.autograd.grad((expected * weights).sum(), exact)
    assert_equal_to_rounding(gradient.double(), plain)


def test_the_likeliest_tokens_and_the_rest_hold_all_the_probability(llama: Backbone) -> None:
    states = torch.randn(70, llama.hidden_size, generator=torch.Generator().manual_seed(1))
    ids, chances, rest = likeliest(llama, states, 6)
    expected = (states.double() @ llama.head_weight.double().T).log_softmax(-1)
    assert torch.equal(ids.long(), expected.topk(6).indices)
    assert_equal_to_rounding(chances.double(), expected.topk(6).values)
    assert_equal_to_rounding(chances.exp().sum(-1) + rest.exp(), torch.ones(70))


def test_a_model_diverges_from_itself_by_nothing(llama: Backbone) -> None:
    states = torch.randn(9, llama.hidden_size, generator=torch.Generator().manual_seed(2))
    ids, chances, rest = likeliest(llama, states, 6)
    losses, first = teacher_divergences(llama, states, ids.long(), chances, rest)
    assert losses.abs().max() < 1e-5
    assert torch.equal(first, ids[:, 0].long())


def test_a_rerun_pays_no_pass_of_the_model(llama: Backbone, tmp_path: Path) -> None:
    task = a_distill_task(llama, tmp_path)
    encoding = TaskEncoding(task, llama)
    with counted(llama) as passes:
        first = Teacher(task, llama, TEXTS).lessons(TEXTS, encoding)
        reads = [size for size in passes if size >= len(Teacher(task, llama, TEXTS).root)]
        assert len([size for size in reads if size == len(Teacher(task, llama, TEXTS).root)]) == 1  # the context is read once
        paid = len(passes)
        again = Teacher(task, llama, TEXTS).lessons(TEXTS, encoding)
        assert len(passes) == paid > 0
    for one, other in zip(first, again, strict=True):
        assert one.target == other.target
        assert torch.equal(one.chances, other.chances)


@pytest.mark.parametrize("damage", ["cut", "changed", "text"])
def test_a_damaged_file_of_the_cache_is_computed_again(llama: Backbone, tmp_path: Path, damage: str) -> None:
    task = a_distill_task(llama, tmp_path)
    encoding = TaskEncoding(task, llama)
    first = Teacher(task, llama, TEXTS).lessons(TEXTS, encoding)
    file = sorted((tmp_path / "cache").rglob("*.safetensors"))[0]
    intact = file.read_bytes()
    broken = {"cut": intact[:-9], "changed": intact[:-9] + bytes(255 - b for b in intact[-9:]), "text": b"not at all"}
    file.write_bytes(broken[damage])
    again = Teacher(task, llama, TEXTS).lessons(TEXTS, encoding)
    assert [lesson.target for lesson in again] == [lesson.target for lesson in first]
    for one, other in zip(first, again, strict=True):
        assert_equal_to_rounding(one.chances, other.chances)
    with counted(llama) as passes:
        Teacher(task, llama, TEXTS).lessons(TEXTS, encoding)
    assert passes == []


def test_a_cache_that_cannot_be_written_costs_a_warning_and_no_lesson(
    llama: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    task = a_distill_task(llama, tmp_path)
    encoding = TaskEncoding(task, llama)
    kept = Teacher(task, llama, TEXTS).lessons(TEXTS, encoding)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "policy.md"))  # a file, in which no folder can be made
    found = Teacher(task, llama, TEXTS).lessons(TEXTS, encoding)
    assert [lesson.target for lesson in found] == [lesson.target for lesson in kept]
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("cache ") and "cannot be written (Not a directory). What belongs there will be computed again" in warning


def test_what_is_taught_depends_on_the_context_and_the_settings(llama: Backbone, tmp_path: Path) -> None:
    tasks = [
        a_distill_task(llama, tmp_path),
        a_distill_task(llama, tmp_path, distill={"top_k": 9}),
        a_distill_task(llama, tmp_path, distill={"answer_tokens": 5}),
    ]
    digests = [Teacher(task, llama, TEXTS).digest for task in tasks]
    digests.append(Teacher(a_distill_task(llama, tmp_path, policy=POLICY + " Sundays are free."), llama, TEXTS).digest)
    assert len(set(digests)) == 4


def test_a_teacher_writes_with_as_many_beams_as_its_student(llama: Backbone, tmp_path: Path) -> None:
    task = a_distill_task(llama, tmp_path, evaluate={"beams": 3})
    teacher, encoding = Teacher(task, llama, TEXTS), TaskEncoding(task, llama)
    inputs = [encoding.encode(row).input for row in TEXTS.iter_rows(named=True)]
    written = generate(llama, teacher.state, inputs, 6, encoding.ends, beams=3)
    lessons = teacher.lessons(TEXTS, encoding)
    assert [list(lesson.target[: len(ids)]) for lesson, ids in zip(lessons, written, strict=True)] == written
    greedy = Teacher(a_distill_task(llama, tmp_path), llama, TEXTS)
    assert greedy.digest != teacher.digest and [one.target for one in greedy.lessons(TEXTS, encoding)] != [one.target for one in lessons]


def test_answers_at_a_temperature_differ_and_are_the_same_for_a_seed(llama: Backbone, tmp_path: Path) -> None:
    task = a_distill_task(llama, tmp_path, distill={"answers": 2, "temperature": 1.0})
    encoding = TaskEncoding(task, llama)
    lessons = Teacher(task, llama, TEXTS).lessons(TEXTS, encoding, training=True)
    assert len(lessons) == 2 * len(TEXTS)
    assert lessons[0].input == lessons[1].input
    assert lessons[0].target != lessons[1].target
    alone = Teacher(a_distill_task(llama, tmp_path, distill={"answers": 2, "temperature": 1.0, "top_k": 9}), llama, TEXTS)
    assert [e.target for e in alone.lessons(TEXTS[:3], encoding, training=True)] == [e.target for e in lessons[:6]]


@pytest.mark.parametrize("kind", ["deep", "soft"])
def test_a_distilled_prompt_is_closer_to_its_teacher_than_the_cut_context(llama: Backbone, tmp_path: Path, kind: str) -> None:
    task = a_distill_task(llama, tmp_path, prompt={"kind": kind, "tokens": 16, "sink": kind == "deep"})
    prompt = tune(task, TEXTS[:9], TEXTS[9:], llama)
    encoding = TaskEncoding(task, llama)
    teacher = Teacher(task, llama, TEXTS)
    assert prompt.manifest.tokens == 16
    assert prompt.manifest.distilled is not None
    assert prompt.manifest.distilled.tokens == len(teacher.root) > 32
    lessons = teacher.lessons(TEXTS[9:], encoding)
    cut = PromptState.of(llama, root=encoding.cut_root(teacher.root, 16))
    (_, before), (agreed, after) = (measure(llama, state, lessons, 512) for state in (cut, restore(prompt, encoding, llama)))
    assert after < 0.9 * before
    assert 0 <= agreed.mean() <= 100
    assert measure(llama, teacher.state, lessons, 512)[1] < 1e-4
    assert tune(task, TEXTS[:9], TEXTS[9:], llama).digest == prompt.digest


def test_a_deep_prompt_starts_closer_to_its_teacher_than_the_cut_context(llama: Backbone, tmp_path: Path) -> None:
    parts = {"tune": {"max_tokens": 64, "steps": 1, "learning_rate": 1e-9}}
    found = {}
    for start in (None, "context"):
        prompt = tune(a_distill_task(llama, tmp_path, prompt={"tokens": 16, "start": start}, **parts), TEXTS[:9], TEXTS[9:], llama)
        assert prompt.manifest.tuning is not None
        found[start] = prompt.manifest.tuning.validation[0].loss
    assert found[None] < 0.7 * found["context"]


def test_the_cut_context_has_its_first_tokens_and_what_leads_over_to_the_input(llama: Backbone, tmp_path: Path) -> None:
    task = a_distill_task(llama, tmp_path)
    encoding, teacher = TaskEncoding(task, llama), Teacher(task, llama, TEXTS)
    start = encoding.cut_root(teacher.root, 24)
    written = llama.tokenizer.decode(start)
    assert len(start) == 24
    assert written.startswith("<|im_start|>system\nParcels up to 2 kg")
    assert written.endswith("<|im_end|>\n<|im_start|>user\n")
    assert encoding.cut_root(teacher.root, len(teacher.root)) == teacher.root
    assert encoding.cut_root(teacher.root, 3) == teacher.root[-3:]


def test_demonstrations_are_read_and_not_asked(llama: Backbone, tmp_path: Path) -> None:
    solved = examples(*[(f"Name {word}", word) for word in ("red", "blue", "green")])
    task = a_distill_task(llama, tmp_path, distill={"context": None, "demonstrations": 2}, data={"path": "x.csv", "target": "label"})
    train = pl.concat([solved, TEXTS])
    teacher = Teacher(task, llama, train)
    shown = solved.sort("_id").head(2)
    read = llama.tokenizer.decode(teacher.root)
    assert all(f"{text}<|im_end|>\n<|im_start|>assistant\n{label}<|im_end|>" in read for _, text, label in shown.iter_rows())
    assert len(teacher.lessons(train, TaskEncoding(task, llama), training=True)) == len(train) - 2


def test_behind_solved_lines_teacher_and_student_end_an_answer_at_the_blank_line(smollm2: Backbone, tmp_path: Path) -> None:
    solved = examples(("Paris", "France"), ("Tokyo", "Japan"), ("Cairo", "Egypt"))
    parts = {"template": "City: {{ text }}\nCountry:", "data": {"path": "x.csv", "target": "label"}}
    tuning = {"prompt": {"tokens": 24}, "tune": {"max_tokens": 64, "steps": 2, "learning_rate": 1e-4}}
    distill = {"context": None, "demonstrations": 3, "answer_tokens": 12}
    task = a_distill_task(smollm2, tmp_path, distill=distill, **parts, **tuning)
    train = pl.concat([solved, examples(("Berlin", ""), ("Madrid", ""), ("Rome", ""))])
    teacher, encoding = Teacher(task, smollm2, train), TaskEncoding(task, smollm2)
    lessons = teacher.lessons(train, encoding, training=True)
    assert [teacher.decode(lesson) for lesson in lessons] == ["Germany", "Spain", "Italy"]
    assert all(lesson.target[-len(encoding.ends[-1]) :] == encoding.ends[-1] and len(lesson.chances) < 12 for lesson in lessons)
    assert tune(task, train, None, smollm2).predict(["Oslo"], smollm2) == ["Norway"]
    long = pl.concat([solved[:2], examples(("Cairo", "Egypt.\n\nIt is hot."))])
    with pytest.raises(PromptmillError, match=r"distill\.demonstrations: an answer of the first training rows has a blank line"):
        Teacher(task, smollm2, long)


def test_a_lesson_ends_with_the_token_that_holds_the_blank_line(tmp_path: Path) -> None:
    backbone = backbone_at(str(save_tiny("llama", tmp_path / "tiny", melting_tokenizer())))
    parts = {"template": "Text: {{ text }}\nAnswer:", "data": {"path": "x.csv", "target": "label"}}
    distill = {"context": None, "demonstrations": 1, "answer_tokens": 24, "answers": 8, "temperature": 2.0}
    task = a_distill_task(backbone, tmp_path, distill=distill, **parts)
    train = examples(("good", "It is good."), *[(f"good {'so ' * i}", "") for i in range(12)])
    teacher, encoding = Teacher(task, backbone, train), TaskEncoding(task, backbone)
    lessons = teacher.lessons(train, encoding, training=True)
    closed = [lesson for lesson in lessons if encoding.closing & set(lesson.target)]
    assert closed and all(lesson.target[-1] in encoding.closing and len(lesson.chances) == len(lesson.target) for lesson in closed)
    assert all(len(encoding.closing & set(lesson.target)) == 1 for lesson in closed)
    assert all(lesson.target[-1] == encoding.ends[-1][-1] for lesson in lessons if len(lesson.target) < 24 and lesson not in closed)


def test_a_search_holds_out_all_lessons_of_a_row_and_none_of_what_the_teacher_reads(llama: Backbone, tmp_path: Path) -> None:
    distill = {"context": None, "demonstrations": 2, "answers": 2, "temperature": 1.0}
    search = {"trials": 2, "together": 2, "folds": 2, "space": {"tune.learning_rate": [0.01, 0.001]}}
    solved = examples(*[(text, "89 kroner") for text in TEXTS["text"]])
    data, tune_parts = {"path": "x.csv", "target": "label"}, {"max_tokens": 64, "steps": 4, "search": search}
    task = a_distill_task(llama, tmp_path, distill=distill, data=data, tune=tune_parts)
    ready = Prepared(task, (solved, None), llama)
    assert len(ready.examples(range(12))) == 2 * (12 - 2)
    per_row = [ready.examples([row]) for row in range(12)]
    assert sorted(map(len, per_row)) == [0, 0, *[2] * 10]
    for row, own in enumerate(per_row):
        assert {lesson.input for lesson in own} <= {TaskEncoding(task, llama).encode(solved.row(row, named=True)).input}
        others = ready.learned_from([number for number in range(12) if number != row])
        assert len(others) + len(own) == 20 and not set(map(id, own)) & set(map(id, others))
    prompt = tune(task, solved, None, llama)
    assert prompt.manifest.search is not None and prompt.manifest.search.rows == 12
    with pytest.raises(PromptmillError, match="not every fold has an input that the teacher is asked"):
        tune(task, solved[:3], None, llama)


def test_a_fold_starts_from_its_own_lessons_and_trials_share_its_start(
    llama: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = a_distill_task(llama, tmp_path, tune={"max_tokens": 64, "steps": 2})
    others = examples(*[(f"Who rings at door {i}?", "") for i in range(6)])
    one, other = (Candidate.of(task, rows, [range(6), range(6, 12)], llama) for rows in (TEXTS, pl.concat([others, TEXTS[6:]])))
    starts = [[member.parts[0].prompt.state().keys for member in candidate.members] for candidate in (one, other)]
    assert torch.equal(starts[0][0], starts[1][0]) and not torch.equal(starts[0][1], starts[1][1])  # what fold 0 holds out is another text

    caplog.clear()
    caplog.set_level("INFO", "promptmill")
    search = {"trials": 4, "together": 2, "folds": 2, "space": {"tune.learning_rate": [0.01, 0.003, 0.002, 0.001]}}
    prompt = tune(a_distill_task(llama, tmp_path, tune={"max_tokens": 64, "steps": 2, "search": search}), TEXTS, None, llama)
    assert prompt.manifest.search is not None and len(prompt.manifest.search.trials) == 4
    assert sum("compaction" in line for line in caplog.messages) == 2 + 1  # the folds' and that of the final tuning


def test_folds_that_start_from_different_lessons_are_not_averaged(llama: Backbone, tmp_path: Path) -> None:
    with pytest.raises(PromptmillError, match=r"tune\.search\.final: average beside prompt\.start: compaction"):
        a_distill_task(llama, tmp_path, tune={"search": {"final": "average"}})
    for parts in ({"kind": "soft"}, {"start": "context"}):
        a_distill_task(llama, tmp_path, prompt=parts, tune={"search": {"final": "average"}})


def test_an_interrupted_search_does_not_go_on_with_what_it_found_for_another_context(llama: Backbone, tmp_path: Path) -> None:
    search = {"trials": 2, "together": 1, "folds": 2, "space": {"tune.steps": [2], "tune.learning_rate": [0.01, 0.1]}}

    def of(policy: str) -> TaskSpec:
        prompt, settings = {"kind": "soft", "tokens": 4}, {"max_tokens": 64, "search": search}
        return a_distill_task(llama, tmp_path, policy=policy, prompt=prompt, tune=settings)

    def stop(step: SearchStep) -> None:
        if step.wave == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        tune(of(POLICY), TEXTS, None, llama, on_search=stop, checkpoints=tmp_path / "checkpoints")
    other = of(POLICY.replace("49", "59"))
    assert tune(other, TEXTS, None, llama, checkpoints=tmp_path / "checkpoints").digest == tune(other, TEXTS, None, llama).digest


def test_what_cannot_be_distilled_is_refused_in_one_line(llama: Backbone, tmp_path: Path) -> None:
    def refused(task: TaskSpec) -> str:
        with pytest.raises(PromptmillError) as caught:
            tune(task, TEXTS, None, llama)
        return str(caught.value)

    assert "take 1" in refused(a_distill_task(llama, tmp_path, policy="parcel " * 1000))
    assert "Shorten distill.context" in refused(a_distill_task(llama, tmp_path, policy="parcel " * 1000))
    assert "distill.answer_tokens: answers of 180 tokens" in refused(a_distill_task(llama, tmp_path, distill={"answer_tokens": 180}))
    assert 'policy.md" is empty' in refused(a_distill_task(llama, tmp_path, policy=" \n"))
    assert "cannot be read (No such file" in refused(a_distill_task(llama, tmp_path, distill={"context": "none.md"}))
    assert "prompt.tokens: 200, but what is distilled has" in refused(a_distill_task(llama, tmp_path, prompt={"tokens": 200}))
    few = a_distill_task(llama, tmp_path, distill={"context": None, "demonstrations": 2}, data={"path": "x.csv", "target": "label"})
    assert "distill.demonstrations: 2, but 0 training rows have a label" in refused(few)
    solved = examples(*[(text, "89 kroner") for text in TEXTS["text"][:2]])
    with pytest.raises(PromptmillError, match="all 2 training rows are shown to the teacher, and none is left to learn from"):
        tune(few, solved, None, llama)
