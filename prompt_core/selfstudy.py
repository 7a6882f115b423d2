"""Self-study: the frozen model asks itself questions about chunks of a context (Eyuboglu et al. 2025, arXiv:2506.06266)."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import platformdirs
import polars as pl

from prompt_core.backbone import Backbone, load_backbone
from prompt_core.encoding import TaskEncoding
from prompt_core.errors import PromptmillError
from prompt_core.generation import Sampling, generate
from prompt_core.prompts import PromptState, lower
from prompt_core.task import TaskSpec
from prompt_core.teacher import read_context
from prompt_core.template import Template

_log = logging.getLogger("promptmill")
_LONGEST = 40  # tokens of what is asked
_TOP_P = 0.95
_ROUNDS = 6  # of asking again for what came out twice
# What the model is told about a chunk, how its answer begins, and the question that is made of it. Small models ask
# well when the first words are theirs already, and ask for more than facts when they only have to name the subject.
_STYLES = (
    ("Ask a question that this text answers.", "What", "What {}"),
    ("Ask a question that this text answers.", "How", "How {}"),
    ("Ask a question of a customer that this text answers.", "Can I", "Can I {}"),
    ("Ask a question of a customer that this text answers.", "What happens if", "What happens if {}"),
    ("Ask a question with a number or a time limit as its answer, which this text gives.", "How many", "How many {}"),
    ("Ask a question about money that this text answers.", "How much", "How much {}"),
    ("Name one subject of this text in a few words.", "The subject is", "Summarise what the text says about {}."),
    ("Name one subject of this text in a few words.", "The subject is", "List the facts about {}."),
    ("Name one subject of this text in a few words.", "The subject is", "Explain {} in your own words."),
)


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
    settings = [1, backbone.identity.weights, backbone.identity.dtype, backbone.device.type, chunks, spec.questions]
    settings += [spec.question_temperature, task.tune.seed, _LONGEST, _TOP_P, _STYLES]
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    file = platformdirs.user_cache_path("promptmill") / "questions" / f"{key[:32]}.json"
    questions = _load(file)
    if questions is None:
        questions = _Asker(task, backbone, encoding, chunks).ask(spec.questions)
        _save(file, questions)
    return pl.DataFrame({fields[0]: questions}, schema={fields[0]: pl.String})


def split_text(text: str, encoding: TaskEncoding, tokens: int) -> list[str]:
    """A text in chunks of at most so many tokens, cut between paragraphs where they fit, else between words."""
    chunks: list[str] = []
    taken: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        for piece in _pieces(paragraph, encoding, tokens):
            if taken and len(encoding.encode_bare("\n\n".join([*taken, piece]))) > tokens:
                chunks.append("\n\n".join(taken))
                taken = []
            taken.append(piece)
    return [*chunks, "\n\n".join(taken)] if taken else chunks


def _pieces(paragraph: str, encoding: TaskEncoding, tokens: int) -> list[str]:
    if len(encoding.encode_bare(paragraph)) <= tokens:
        return [paragraph]
    words = paragraph.split(" ")
    half = len(words) // 2
    if not half:
        return [paragraph]
    return [piece for part in (words[:half], words[half:]) for piece in _pieces(" ".join(part), encoding, tokens)]


class _Asker:
    def __init__(self, task: TaskSpec, backbone: Backbone, encoding: TaskEncoding, chunks: Sequence[str]) -> None:
        self._task, self._backbone, self._encoding, self._chunks = task, backbone, encoding, chunks
        self._found: dict[str, tuple[int, str]] = {}  # number and question, by what makes two questions the same

    def ask(self, count: int) -> list[str]:
        """So many different questions, the chunks in turn."""
        spec, number = self._task.distill, 0
        assert spec is not None
        for _ in range(_ROUNDS):
            # Each chunk gets its share of what is missing, with a style and a seed for every question.
            missing = count - len(self._found)
            if missing <= 0:
                break
            missing += missing // 4 + len(self._chunks)  # some come out twice or as no question at all
            asked = [(number + i) % len(self._chunks) for i in range(missing)]
            for chunk in sorted(set(asked)):
                numbers = [number + i for i, own in enumerate(asked) if own == chunk]
                self._ask_about(self._chunks[chunk], numbers, spec.question_temperature)
            number += missing
            _log.info("self-study: %d of %d questions", min(len(self._found), count), count)
        if len(self._found) < count:
            what = f"{count}, but the model found {len(self._found)} different ones"
            raise PromptmillError(f"task {self._task.name}: distill.questions", what, "Ask for fewer, or raise question_temperature.")
        return [question for _, question in sorted(self._found.values())[:count]]

    def _ask_about(self, chunk: str, numbers: Sequence[int], temperature: float) -> None:
        styles = [_STYLES[(number // len(self._chunks)) % len(_STYLES)] for number in numbers]
        opening, asked = self._encoding.dialogue(chunk, [(told, begun) for told, begun, _ in styles])
        seeds = [int(hashlib.sha256(f"{self._task.tune.seed} {number} {chunk}".encode()).hexdigest()[:15], 16) for number in numbers]
        state = lower(self._backbone, PromptState.of(self._backbone, root=opening))
        sampling = Sampling(seeds, temperature, _TOP_P)
        texts = generate(self._backbone, state, asked, _LONGEST, self._encoding.end_of_turn, sampling=sampling)
        for number, text, (_, begun, made) in zip(numbers, texts, styles, strict=True):
            if question := _question(self._encoding.decode(text), begun, made):
                self._found.setdefault(" ".join(re.findall(r"\w+", question.casefold())), (number, question))


def _question(text: str, begun: str, made: str) -> str | None:
    """What the model said as one clean question; None where it said nothing that can be one."""
    text = " ".join(text.split("\n")[0].split()).strip("\"'*: ")
    if made.startswith(begun):  # it went on with a question
        text, mark, _ = text.partition("?")
        return made.format(text.strip()) + "?" if mark and len(text.split()) >= 2 else None
    text = re.split(r"[.;:!?]", text)[0].strip("\"' ")
    return made.format(text) if 1 <= len(text.split()) <= 12 else None


def _save(file: Path, questions: Sequence[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, beside = tempfile.mkstemp(dir=file.parent, prefix=".new-")
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        json.dump({"sha256": _digest(questions), "questions": list(questions)}, stream, ensure_ascii=False, indent=1)
    os.replace(beside, file)


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
