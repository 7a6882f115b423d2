"""Self-study: the frozen model asks itself questions about chunks of a context (Eyuboglu et al. 2025, arXiv:2506.06266)."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from prompt_core.backbone import Backbone, load_backbone
from prompt_core.cache import cache_folder, keep
from prompt_core.encoding import TaskEncoding
from prompt_core.errors import PromptmillError
from prompt_core.generation import Sampling, generate
from prompt_core.prompts import PromptState
from prompt_core.task import TaskSpec
from prompt_core.teacher import read_context
from prompt_core.template import Template

_log = logging.getLogger("promptmill")
_LONGEST = 32  # tokens of what is asked
_TOP_P = 0.9
_ROUNDS = 6  # of asking again for what came out twice
# What the model is told about a chunk, and how its question begins: small models ask well when the first words are theirs.
_STYLES = (
    ("Write a question about this text.", "What"),
    ("Write a question about this text.", "How many"),
    ("Write a question about this text.", "What happens if"),
    ("Rewrite this text as a question.", "How much"),
    ("Write a question about this text.", "When"),
    ("Rewrite this text as a question.", "What happens if"),
    ("Rewrite this text as a question.", "What"),
)
# Of every chunk, more than questions of fact: named by how it begins.
_REQUESTS = (
    "Summarise what is said about: {}",
    "List the facts about: {}",
    "Explain in your own words what is said about: {}",
)
_NAMED = 7  # words that name a chunk


def own_questions(task: TaskSpec, backbone: Backbone | None = None) -> pl.DataFrame:
    """`distill.questions` different questions about the context, in an order of their own; the same for the same seed.

    Each is drawn with a seed of its own from the chunks and styles in turn, so that questions on different sides of a
    split are held out from each other as any two draws are. They are kept on disk: a rerun does not call the model.

    Args:
        task: whose template has one field, the question.
        backbone: the loaded frozen model; by default the task's own.

    Returns:
        One column, named after the field.

    Raises:
        PromptmillError: the template has several fields, the context cannot be read, or the model asks too few.
    """
    fields, spec = Template(task).fields, task.distill
    assert spec is not None and spec.questions  # the task file has been checked
    if len(fields) != 1:
        what = f"has the fields {', '.join(fields)}; a question fills one"
        raise PromptmillError(f"task {task.name}: template", what, "Leave one field, or name inputs in data.path.")
    backbone = backbone or load_backbone(task.backbone, task.folder)
    encoding = TaskEncoding(task, backbone, soft=False)
    chunks = split_text(read_context(task), encoding, spec.chunk_tokens)
    identity, form = backbone.identity, [encoding.request("", "", ""), encoding.end_of_turn, encoding.stop]
    settings = [3, identity.weights, identity.tokenizer, identity.dtype, backbone.device.type, form, chunks, spec.questions]
    settings += [spec.question_temperature, task.tune.seed, _LONGEST, _TOP_P, _STYLES, _REQUESTS]
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    file = cache_folder("questions") / f"{key[:32]}.json"
    questions = _load(file)
    if questions is None:
        questions = _Asker(task, backbone, encoding, chunks).ask(spec.questions)
        _save(file, questions)
    return pl.DataFrame({fields[0]: questions}, schema={fields[0]: pl.String})


def split_text(text: str, encoding: TaskEncoding, tokens: int) -> list[str]:
    """A text in chunks of whole sentences of one paragraph, of at most so many tokens; a longer sentence is cut between words."""
    chunks: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        taken: list[str] = []
        for sentence in re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split())):
            for piece in _pieces(sentence, encoding, tokens):
                if taken and len(encoding.encode_bare(" ".join([*taken, piece]))) > tokens:
                    chunks.append(" ".join(taken))
                    taken = []
                taken.append(piece)
        chunks += [" ".join(taken)] if any(taken) else []
    return chunks


def _pieces(sentence: str, encoding: TaskEncoding, tokens: int) -> list[str]:
    words = sentence.split(" ")
    half = len(words) // 2
    if not half or len(encoding.encode_bare(sentence)) <= tokens:
        return [sentence]
    return [piece for part in (words[:half], words[half:]) for piece in _pieces(" ".join(part), encoding, tokens)]


class _Asker:
    def __init__(self, task: TaskSpec, backbone: Backbone, encoding: TaskEncoding, chunks: Sequence[str]) -> None:
        self._task, self._backbone, self._encoding, self._chunks = task, backbone, encoding, chunks
        self._found: dict[str, tuple[int, str]] = {}  # number and question, by what makes two questions the same

    def ask(self, count: int) -> list[str]:
        """So many different questions, the chunks in turn."""
        for number, request in enumerate(_requests(self._chunks)[: count // 4]):
            self._keep(number - count, request)
        asked = 0
        for _ in range(_ROUNDS):
            missing = count - len(self._found)
            if missing <= 0:
                break
            missing += missing // 4 + len(_STYLES)  # some come out twice or as no question at all
            self._ask(range(asked, asked + missing))
            asked += missing
            _log.info("self-study: %d of %d questions", min(len(self._found), count), count)
        if len(self._found) < count:
            what = f"{count}, but the model found {len(self._found)} different ones"
            raise PromptmillError(f"task {self._task.name}: distill.questions", what, "Ask for fewer, or raise question_temperature.")
        return [question for _, question in sorted(self._found.values())[:count]]

    def _ask(self, numbers: Sequence[int]) -> None:
        """Each number is a chunk, a style and a seed."""
        assert self._task.distill is not None  # the task file has been checked
        chosen = [(self._chunks[i % len(self._chunks)], *_STYLES[(i // len(self._chunks) + i) % len(_STYLES)]) for i in numbers]
        seeds = [int(hashlib.sha256(f"{self._task.tune.seed} {i}".encode()).hexdigest()[:15], 16) for i in numbers]
        inputs = [self._encoding.request(*parts) for parts in chosen]
        sampling = Sampling(seeds, self._task.distill.question_temperature, _TOP_P)
        texts = generate(self._backbone, PromptState.of(self._backbone), inputs, _LONGEST, (self._encoding.end_of_turn,), sampling=sampling)
        for number, text, (_, _, begun) in zip(numbers, texts, chosen, strict=True):
            words, mark, _ = self._encoding.decode(text).partition("?")
            words = f"{begun} {' '.join(words.split())}"
            if mark and len(words.split()) > len(begun.split()) + 1:
                self._keep(number, words + "?")

    def _keep(self, number: int, question: str) -> None:
        self._found.setdefault(" ".join(re.findall(r"\w+", question.casefold())), (number, question))


def _requests(chunks: Sequence[str]) -> list[str]:
    """What is asked for besides questions of fact."""
    names = [" ".join(chunk.lstrip("# ").split()[:_NAMED]) for chunk in chunks]
    return [_REQUESTS[(i + turn) % len(_REQUESTS)].format(name) for turn in range(len(_REQUESTS)) for i, name in enumerate(names)]


def _save(file: Path, questions: Sequence[str]) -> None:
    content = {"sha256": _digest(questions), "questions": list(questions)}
    keep(file, json.dumps(content, ensure_ascii=False, indent=1).encode())


def _load(file: Path) -> list[str] | None:
    """What `_save` wrote; None where there is no such file or it is damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        questions = [str(question) for question in content["questions"]]
        return questions if content["sha256"] == _digest(questions) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _digest(questions: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(questions)).encode()).hexdigest()
