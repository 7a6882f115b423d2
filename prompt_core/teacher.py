"""The teacher: the frozen model behind a long context. Its answers, and what it thought likely at each token, kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from prompt_core.backbone import Backbone
from prompt_core.cache import cache_folder, keep
from prompt_core.data.demonstrations import fair_draw
from prompt_core.data.packing import pack
from prompt_core.encoded import Encoded, Taught
from prompt_core.encoding import TaskEncoding
from prompt_core.errors import PromptmillError, kind_of_fault
from prompt_core.generation import Sampling, generate
from prompt_core.methods import DistillSpec
from prompt_core.prompts import PromptState, Tree, hidden_states, lower
from prompt_core.task import TaskSpec
from prompt_core.template import are_parted

_log = logging.getLogger("promptmill")
_AT_ONCE = 96  # inputs between two writes to the cache
_ROWS = 64  # of logits at a time
_PARTS = ("answer", "ids", "chances", "rest")


class Teacher:
    """The frozen model behind the context of a task.

    Nothing is computed before it is needed: where all answers are in the cache, the model is not called.

    Args:
        task: `distill` says what the teacher reads and what of its answers is kept.
        backbone: a causal model.
        train: training rows; the first `distill.demonstrations` of them with a target are part of what it reads.

    Attributes:
        root: token ids of what it reads in front of every input.
        answer_tokens: where its answers end at the latest.

    Raises:
        PromptmillError: the context is missing, empty or too long for the model, or there are too few solved examples.
    """

    def __init__(self, task: TaskSpec, backbone: Backbone, train: pl.DataFrame) -> None:
        assert task.distill is not None  # the task file has been checked
        self._task, self._backbone, self._spec = task, backbone, task.distill
        self._encoding, self.answer_tokens = TaskEncoding(task, backbone, soft=False), task.distill.answer_tokens
        self._shown = _demonstrations(task, train)
        pairs = [(row, row[task.data.target]) for row in self._shown.iter_rows(named=True)]
        if self._encoding.stop and not are_parted([said for _, said in pairs]):
            what = "an answer of the first training rows has a blank line, which ends an answer in a template of one string"
            raise PromptmillError(f"task {task.name}: distill.demonstrations", what, "Write it without, or show them in distill.context.")
        self.root = self._encoding.long_root(read_context(task), pairs)
        room = backbone.max_positions - len(self.root) - task.tune.max_tokens
        if room < self._spec.answer_tokens:
            what = f"answers of {self._spec.answer_tokens} tokens, but behind {len(self.root)} of context and tune.max_tokens are {room}"
            raise PromptmillError(f"task {task.name}: distill.answer_tokens", what, "Lower one of them or shorten the context.")

    @cached_property
    def state(self) -> PromptState:
        """The context, read once: keys and values."""
        return lower(self._backbone, PromptState.of(self._backbone, root=self.root))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that its answers depend on beside the inputs."""
        return hashlib.sha256(json.dumps(self._settings, sort_keys=True).encode()).hexdigest()

    def lessons(self, frame: pl.DataFrame, encoding: TaskEncoding, training: bool = False) -> list[Taught]:
        """What it answers to each text of a frame.

        Args:
            frame: the fields of the template, with `_id`; a text that is there twice is asked once.
            encoding: the student's, whose inputs the lessons have.
            training: as many answers, at the temperature, as the task says, and none to what the teacher reads itself;
                else the answer that is not drawn, as `evaluate.beams` says.
        """
        frame = frame.unique("_id", keep="first", maintain_order=True)
        if training:
            frame = frame.filter(~pl.col("_id").is_in(self._shown["_id"].implode()))
        rows = list(frame.iter_rows(named=True))
        answers, temperature = (self._spec.answers, self._spec.temperature) if training else (1, 0.0)
        asked = [(self._encoding.encode(row).input, number) for row in rows for number in range(answers)]
        inputs = [(row["_id"], encoding.encode(row)) for row in rows for _ in range(answers)]
        found = self._answers(asked, temperature)
        return [
            Taught(student.input, tuple(parts["answer"].tolist()), student.truncated, parts["ids"], parts["chances"], parts["rest"], row)
            for (row, student), parts in zip(inputs, found, strict=True)
        ]

    def decode(self, lesson: Taught) -> str:
        """The text of an answer."""
        return self._encoding.decode(lesson.target)

    def _answers(self, asked: Sequence[tuple[tuple[int, ...], int]], temperature: float) -> list[dict[str, Tensor]]:
        keys = [
            hashlib.sha256(json.dumps([ids, number, temperature, self._seed(temperature)]).encode()).hexdigest() for ids, number in asked
        ]
        folder = cache_folder("teacher") / self.digest[:32]
        files = [folder / f"{key[:32]}.safetensors" for key in keys]
        found = [_load(file) for file in files]
        missing = sorted((i for i, parts in enumerate(found) if parts is None), key=lambda i: len(asked[i][0]))
        if missing:
            keep(folder / "teacher.json", (json.dumps(self._settings | {"root": len(self.root)}, indent=1) + "\n").encode())
        for start in range(0, len(missing), _AT_ONCE):
            numbers = missing[start : start + _AT_ONCE]
            seeds = [int(keys[i][:15], 16) for i in numbers]
            sampling = Sampling(seeds, temperature) if temperature else None
            for i, parts in zip(numbers, self._teach([asked[i][0] for i in numbers], sampling), strict=True):
                _save(files[i], parts)
                found[i] = parts
            _log.info("teacher: %d of %d answers", min(start + _AT_ONCE, len(missing)), len(missing))
        return [parts for parts in found if parts is not None]

    def _seed(self, temperature: float) -> int:
        return self._task.tune.seed if temperature else 0

    @torch.no_grad()
    def _teach(self, inputs: Sequence[tuple[int, ...]], sampling: Sampling | None) -> list[dict[str, Tensor]]:
        """Answers, and in one pass over them the likeliest tokens at each position."""
        most, ends, closing = self._spec.answer_tokens, self._encoding.ends, self._encoding.closing
        beams = self._task.evaluate.beams
        texts = generate(self._backbone, self.state, inputs, most, ends, sampling=sampling, closing=closing, beams=beams)
        behind = [() if len(text) == most or not closing.isdisjoint(text[-1:]) else ends[-1] for text in texts]
        answered = [Encoded(ids, (*text, *end), False) for ids, text, end in zip(inputs, texts, behind, strict=True)]
        results = []
        for batch in pack(answered, lambda e: len(e.input) + len(e.target), self._task.tune.batch_tokens):
            (states,) = hidden_states(self._backbone, [Tree(self.state, [e.input + e.target[:-1] for e in batch])])
            own = torch.split(states, [len(e.input) + len(e.target) - 1 for e in batch])
            sizes = [len(e.target) for e in batch]
            rows = torch.cat([part[-size:] for part, size in zip(own, sizes, strict=True)])
            kept = [torch.split(part, sizes) for part in likeliest(self._backbone, rows, self._spec.top_k)]
            for e, ids, chances, rest in zip(batch, *kept, strict=True):
                results.append(dict(zip(_PARTS, (torch.tensor(e.target, dtype=torch.int32), ids, chances, rest), strict=True)))
        return results

    @cached_property
    def _settings(self) -> dict[str, Any]:
        identity, closing = self._backbone.identity, self._encoding.closing
        return {
            "format": 1,
            "backbone": {"weights": identity.weights, "tokenizer": identity.tokenizer, "dtype": identity.dtype},
            "device": self._backbone.device.type,
            "root": hashlib.sha256(json.dumps(self.root).encode()).hexdigest(),
            "end": list(self._encoding.ends[-1]),
            **({"closing": sorted(closing)} if closing else {}),
            **({"beams": beams} if (beams := self._task.evaluate.beams) > 1 else {}),
            "answer_tokens": self._spec.answer_tokens,
            "top_k": self._spec.top_k,
        }


def likeliest(backbone: Backbone, states: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k likeliest next tokens of hidden states [n, H], on the CPU.

    Returns:
        Token ids int32 [n, k], their log-probabilities float32 [n, k], and that of all other tokens together float32 [n].
    """
    parts = []
    for block in torch.split(states, _ROWS):
        logits = backbone.logits(block).float()
        top, ids = logits.topk(min(k, logits.shape[-1]), dim=-1)
        total = logits.logsumexp(-1, keepdim=True)
        rest = logits.scatter(1, ids, -torch.inf).logsumexp(-1)  # summed on its own: 1 minus the rest would be rounding
        parts.append((ids.int().cpu(), (top - total).cpu(), (rest - total[:, 0]).cpu()))
    ids, chances, rest = (torch.cat(part) for part in zip(*parts, strict=True))
    return ids, chances, rest


def read_context(task: TaskSpec) -> str:
    """The text of `distill.context`; empty where the task names none.

    Raises:
        PromptmillError: the file is missing, empty or not UTF-8.
    """
    spec: DistillSpec | None = task.distill
    if spec is None or spec.context is None:
        return ""
    where, path = f"task {task.name}: distill.context", Path(task.locate(spec.context))
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except OSError as error:
        raise kind_of_fault(error)(where, f'"{path}" cannot be read ({error.strerror})', "Correct the path.") from None
    except UnicodeDecodeError:
        raise PromptmillError(where, f'"{path}" is not UTF-8 text', "Save it as plain text or Markdown in UTF-8.") from None
    if not text:
        raise PromptmillError(where, f'"{path}" is empty', "Write what the prompt is to stand for.")
    return text


def _demonstrations(task: TaskSpec, train: pl.DataFrame) -> pl.DataFrame:
    """Solved training rows."""
    count = task.distill.demonstrations if task.distill else 0
    solved = fair_draw(train.filter(pl.col(task.data.target) != ""), count) if count else train.clear()
    if len(solved) < count:
        what = f"{count}, but {len(solved)} training rows have a {task.data.target}"
        raise PromptmillError(f"task {task.name}: distill.demonstrations", what, "Add solved examples or lower it.")
    return solved


def _save(file: Path, parts: dict[str, Tensor]) -> None:
    """Kept with a digest of its content."""
    parts = {name: tensor.contiguous() for name, tensor in parts.items()}
    keep(file, safetensors.torch.save(parts, {"sha256": _digest(parts)}))


def _load(file: Path) -> dict[str, Tensor] | None:
    """What `_save` wrote; None where there is no such file or it is damaged."""
    try:
        with safetensors.safe_open(file, "pt") as opened:
            parts = {name: opened.get_tensor(name) for name in _PARTS}
            recorded = (opened.metadata() or {}).get("sha256")
    except (OSError, safetensors.SafetensorError):
        return None
    return parts if recorded == _digest(parts) else None


def _digest(parts: dict[str, Tensor]) -> str:
    content = hashlib.sha256()
    for name in _PARTS:
        tensor = parts[name]
        content.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        content.update(tensor.numpy().tobytes())
    return content.hexdigest()
