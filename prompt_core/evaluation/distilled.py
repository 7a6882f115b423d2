"""What a distilled prompt kept of its teacher: agreement and divergence beside untuned contenders, and what it saves."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.data import Splits
from prompt_core.data.packing import pack
from prompt_core.encoded import Taught
from prompt_core.encoding import TaskEncoding
from prompt_core.evaluation.contender import Contender, Kind
from prompt_core.evaluation.metrics import Floats
from prompt_core.evaluation.record import Distilled
from prompt_core.generation import generate, generate_texts
from prompt_core.prediction import restore
from prompt_core.prompts import PromptState, Tree, hidden_states, lower
from prompt_core.task import TaskSpec
from prompt_core.teacher import Teacher
from prompt_core.tuning.distillation import Distillation

OnContender = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class _Way:
    """One way to answer: a prompt, and the encoding that goes with it."""

    name: str
    kind: Kind
    prompt: PromptState
    encoding: TaskEncoding


def distilled_contenders(
    task: TaskSpec,
    prompt: TunedPrompt,
    splits: Splits,
    backbone: Backbone,
    production: TunedPrompt | None,
    on_progress: OnContender | None = None,
) -> tuple[list[Contender], list[str], Distilled]:
    """The teacher, two untuned prompts and the tuned ones on the test inputs.

    `first_tokens` is what the teacher reads cut to the prompt's length, `zero_shot` the template alone.

    Returns:
        The contenders with their texts and their agreement with the teacher; the teacher's texts; what was saved.
    """
    plain = TaskEncoding(task, backbone, soft=False)
    teacher = Teacher(task, backbone, splits.train)
    lessons = {lesson.row: lesson for lesson in teacher.lessons(splits.test, plain)}
    rows = list(splits.test.iter_rows(named=True))
    first = plain.cut_root(teacher.root, prompt.manifest.tokens)
    ways = [
        _Way("teacher", "teacher", teacher.state, plain),
        _Way("first_tokens", "untuned", PromptState.of(backbone, root=first), plain),
        _Way("zero_shot", "untuned", PromptState.of(backbone, root=plain.root), plain),
        *([_way("production", production, backbone)] if production else []),
        _way("tuned", prompt, backbone),
    ]
    most = prompt.manifest.max_new_tokens or teacher.answer_tokens
    taught = [teacher.decode(lessons[row["_id"]]) for row in rows]
    contenders, divergences = [], {}
    for way in ways:
        inputs = [way.encoding.encode(row) for row in rows]
        forced = [replace(lessons[row["_id"]], input=given.input) for row, given in zip(rows, inputs, strict=True)]
        agreement, nats = measure(backbone, way.prompt, forced, task.tune.batch_tokens)
        divergences[way.name] = round(nats, 6)
        shown = partial(on_progress, way.name) if on_progress else None
        beams = task.evaluate.beams
        texts = taught if way.kind == "teacher" else generate_texts(backbone, way.encoding, way.prompt, inputs, most, shown, beams)
        contenders.append(Contender(way.name, way.kind, texts, {"agreement": agreement}))
    return contenders, taught, _saved(backbone, teacher.root, ways[-1].prompt, prompt.manifest.tokens, divergences)


@torch.no_grad()
def measure(backbone: Backbone, prompt: PromptState, lessons: Sequence[Taught], batch_tokens: int) -> tuple[Floats, float]:
    """A prompt on its teacher's answers, word for word.

    Returns:
        Per answer the share of tokens that the prompt ranks first, in points, float64 [N]; and the divergence from the
        teacher in nats per token.
    """
    objective = Distillation(backbone).eval()
    prompt = lower(backbone, prompt)
    agreement, total = [], 0.0
    for batch in pack(lessons, objective.tokens, batch_tokens):
        (states,) = hidden_states(backbone, [Tree(prompt, *objective.segments(batch))])
        nats, first = objective.divergences(states, batch)
        wanted = torch.tensor([token for lesson in batch for token in lesson.target], device=first.device)
        shares = torch.split(first == wanted, [len(lesson.target) for lesson in batch])
        agreement += [100 * float(share.double().mean()) for share in shares]
        total += float(nats.double().sum())
    return np.array(agreement), total / sum(len(lesson.target) for lesson in lessons)


def latency(
    task: TaskSpec, prompt: TunedPrompt, splits: Splits, backbone: Backbone, rows: int = 3, new_tokens: int = 32
) -> dict[str, float]:
    """Seconds until one request has its answer, reading included: medians over test inputs. Not part of an evaluation, which has no clock.

    Returns:
        `before` with the context read anew, as a server without a cache does; `before, cached` with its keys and values
        at hand; `after` behind the tuned prompt.
    """
    plain = TaskEncoding(task, backbone, soft=False)
    teacher = Teacher(task, backbone, splits.train)
    tuned = _way("tuned", prompt, backbone)
    cached, after = teacher.state, lower(backbone, tuned.prompt)
    text = PromptState.of(backbone, root=teacher.root)
    seconds: dict[str, list[float]] = {"before": [], "before, cached": [], "after": []}
    for row in splits.test.head(rows + 1).iter_rows(named=True):  # the first one warms up
        for name, state, encoding in (("before", text, plain), ("before, cached", cached, plain), ("after", after, tuned.encoding)):
            began = time.perf_counter()
            generate(backbone, state, [encoding.encode(row).input], new_tokens, ())
            seconds[name].append(time.perf_counter() - began)
    return {name: round(statistics.median(measured[1:] or measured), 4) for name, measured in seconds.items()}


def _way(name: Any, prompt: TunedPrompt, backbone: Backbone) -> _Way:
    prompt.check_base(backbone.identity)
    encoding = TaskEncoding(prompt.task, backbone)
    return _Way(name, name, lower(backbone, restore(prompt, encoding, backbone)), encoding)


def _saved(backbone: Backbone, root: Sequence[int], tuned: PromptState, tokens: int, divergences: Mapping[str, float]) -> Distilled:
    per_token = 2 * backbone.num_layers * backbone.num_kv_heads * backbone.head_dim * backbone.dtype.itemsize
    return Distilled(
        tokens_before=len(root),
        tokens_after=tokens,
        cache_bytes_before=per_token * len(root),
        cache_bytes_after=per_token * tuned.keys.shape[1],
        divergence=dict(divergences),
    )
