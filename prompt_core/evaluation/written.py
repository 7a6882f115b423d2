"""What texts are worth that were written for rows: the task's gate metric, as the evaluation takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prompt_core.evaluation.extracted import as_judged
from prompt_core.evaluation.metrics import Pooled, pooled
from prompt_core.evaluation.wanted import Texts, wanted_of
from prompt_core.task import TaskSpec


def worth_of(task: TaskSpec, rows: Sequence[Mapping[str, Any]], texts: Texts, alike: Mapping[str, Texts] | None = None) -> Pooled:
    """The gate metric of one text per row.

    Args:
        rows: with the columns of the data.
        alike: by `_id`, all right answers, see `wanted_of`.
    """
    judged = as_judged(task, texts) if task.objective == "extract" else texts
    return pooled(task.gate_metric, judged, [str(row[task.data.target]) for row in rows], wanted_of(task, rows, alike))
