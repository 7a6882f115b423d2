"""Mixed prediction: rows of many prompts, answered together on the frozen models that they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.continuous import write
from prompt_core.encoded import Encoded
from prompt_core.inputs import Inputs
from prompt_core.packed_scores import packed_scores
from prompt_core.prediction import backbone_of
from prompt_core.ready import Answer, ReadyPrompt

OnProgress = Callable[[int, int], None]


def answer(rows: Sequence[tuple[ReadyPrompt, Encoded]], on_progress: OnProgress | None = None) -> list[Answer]:
    """The answer to each row, in their order, as if its prompt had answered it alone.

    Rows on one frozen model share packed passes, whatever their prompts: one forest for all that are scored, one batch
    that rows enter and leave for all texts that are written.

    Args:
        rows: a prompt and an input of it, see `ReadyPrompt.encode`.
        on_progress: called with (finished, all).
    """
    found: dict[int, Answer] = {}
    by_work: dict[tuple[Backbone, bool], list[int]] = {}
    for number, (prompt, _) in enumerate(rows):
        by_work.setdefault((prompt.backbone, prompt.scorer is None), []).append(number)
    for (backbone, writes), numbers in by_work.items():
        before = len(found)
        report = None if on_progress is None else _after(before, len(rows), on_progress)
        own = [rows[number] for number in numbers]
        answers = _written(backbone, own, report) if writes else _scored(backbone, own, report)
        found.update(zip(numbers, answers, strict=True))
    return [found[number] for number in range(len(rows))]


def predict(prompt: TunedPrompt, inputs: Inputs, backbone: Backbone | None = None, on_progress: OnProgress | None = None) -> list[Answer]:
    """Labels, generated texts or entities of one tuned prompt, see `TunedPrompt.predict`."""
    ready = ReadyPrompt.of(prompt, backbone or backbone_of(prompt))
    return answer([(ready, example) for example in ready.encode_all(inputs)], on_progress)


def _scored(backbone: Backbone, rows: Sequence[tuple[ReadyPrompt, Encoded]], on_progress: OnProgress | None) -> list[Answer]:
    asked = [(prompt.state, prompt.scorer, example) for prompt, example in rows if prompt.scorer is not None]
    scores = packed_scores(backbone, asked, min(prompt.batch_tokens for prompt, _ in rows), on_progress)
    return [prompt.answer_of_scores(own, example) for (prompt, example), own in zip(rows, scores, strict=True)]


def _written(backbone: Backbone, rows: Sequence[tuple[ReadyPrompt, Encoded]], on_progress: OnProgress | None) -> list[Answer]:
    texts = [prompt.text(example) for prompt, example in rows]
    write(backbone, texts, on_progress)
    return [prompt.answer_of_text(text) for (prompt, _), text in zip(rows, texts, strict=True)]


def _after(before: int, total: int, on_progress: OnProgress) -> OnProgress:
    """Progress of a part as progress of all."""
    return lambda done, _: on_progress(before + done, total)
