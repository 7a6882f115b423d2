"""Self-study: different questions about the whole document, the same for a seed, asked once."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import a_task

from prompt_core.backbone import Backbone
from prompt_core.data import prepare
from prompt_core.encoding import TaskEncoding
from prompt_core.errors import PromptmillError
from prompt_core.selfstudy import own_questions, split_text
from prompt_core.task import TaskSpec

CHAT = [{"system": "Answer briefly."}, {"user": "{{ question }}"}]
PARAGRAPHS = [f"Parcels of kind {i} weigh up to {i + 2} kg and cost {i}9 kroner in every country." for i in range(6)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def a_study(backbone: str, folder: Path, questions: int = 8, seed: int = 0, template: object = CHAT) -> TaskSpec:
    (folder / "policy.md").write_text("\n\n".join(PARAGRAPHS), encoding="utf-8")
    return a_task(
        backbone,
        folder=folder,
        objective="distill",
        template=template,
        data={"test": 0.4, "validation": 0.0},
        distill={"context": "policy.md", "questions": questions, "chunk_tokens": 48, "answer_tokens": 8},
        tune={"seed": seed, "max_tokens": 64},
    )


def test_chunks_keep_the_whole_text_and_their_length(llama: Backbone, tmp_path: Path) -> None:
    encoding = TaskEncoding(a_study(llama.identity.name, tmp_path), llama)
    text = "\n\n".join([*PARAGRAPHS, "word " * 100])
    chunks = split_text(text, encoding, 48)
    assert " ".join(" ".join(chunks).split()) == " ".join(text.split())
    assert max(len(encoding.encode_bare(chunk)) for chunk in chunks) <= 48


@pytest.mark.slow
def test_smollm2_asks_different_questions_about_the_document(smollm2: Backbone, tmp_path: Path) -> None:
    task = a_study("smollm2", tmp_path)
    questions = own_questions(task, smollm2)["question"].to_list()
    assert len(set(questions)) == 8
    assert any("parcel" in question.lower() or "kroner" in question.lower() for question in questions)
    assert sum(question.endswith("?") for question in questions) == 6  # a quarter asks for more than facts
    assert all(len(question.split()) > 2 for question in questions)
    file = next((tmp_path / "cache").rglob("questions/*.json"))
    written = file.read_bytes()
    file.write_bytes(written[:40])  # damaged: asked again, with the same seeds
    assert own_questions(task, smollm2)["question"].to_list() == questions
    assert file.read_bytes() == written
    assert own_questions(a_study("smollm2", tmp_path, seed=1), smollm2)["question"].to_list() != questions
    assert own_questions(a_study("smollm2", tmp_path, template="Q: {{ question }}\nA:"), smollm2)["question"].to_list() != questions
    splits, report = prepare(task)
    assert report.rows_read == 8
    assert not {*splits.test["question"]} & {*splits.train["question"]}


def test_a_question_fills_one_field(llama: Backbone, tmp_path: Path) -> None:
    task = a_study(llama.identity.name, tmp_path, template="{{ question }} {{ name }}")
    with pytest.raises(PromptmillError, match="template: has the fields question, name; a question fills one"):
        own_questions(task, llama)
