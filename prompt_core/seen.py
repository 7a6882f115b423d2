"""Whether a prompt may have been tuned on rows that its task holds out by now."""

from __future__ import annotations

import polars as pl

from prompt_core.artifact import TunedPrompt
from prompt_core.data import unlabelled_inputs
from prompt_core.data.digest import frame_digest
from prompt_core.task import TaskSpec
from prompt_core.template import Template

_ROUNDING = 1e-9


def why_seen(prompt: TunedPrompt, task: TaskSpec, train: pl.DataFrame, validation: pl.DataFrame, *, validation_too: bool = False) -> str:
    """Why test rows of the task may be among the rows that the prompt was tuned on; nothing where they cannot be.

    A row's side is decided by the hash of its text, so that data may grow. It changes with the shares and with the fields that are
    hashed, and where test rows are a file nothing but the rows themselves tells.

    Args:
        task: the task as it is now.
        train, validation: its frames.
        validation_too: whether its validation rows must be unseen too, since they are to choose between this prompt and another.

    Raises:
        PromptmillError: this version of promptmill does not know the task that the prompt was tuned by, or `data.unlabelled` or
            the test file cannot be read.
    """
    data, before, now = prompt.manifest.data, prompt.task.data, task.data
    test_is_file = bool(before.test_path or now.test_path)
    if test_is_file and data.unlabelled and data.unlabelled != frame_digest(unlabelled_inputs(task)):
        return "test rows are a file, and it was tuned on other inputs without labels than are left beside it now"
    if (data.train, data.validation) == (frame_digest(train), frame_digest(validation)):
        return ""
    if not validation_too and data.train == frame_digest(pl.concat([train, validation])):
        return ""
    if test_is_file:
        return "test rows are a file, and it was tuned on other rows than the task has now, which may be among them"
    read, reads = Template(prompt.task).fields, Template(task).fields
    if read != reads:
        return f"rows were divided by {', '.join(read)} then, and are by {', '.join(reads)} now"
    unseen = before.test + (before.validation if validation_too and data.validation_rows else 0.0)
    held_out = now.test + (now.validation if validation_too else 0.0)
    if held_out > unseen + _ROUNDING:
        which = "data.test and data.validation take" if validation_too else "data.test takes"
        return f"{which} {held_out:g} of the rows now, {unseen:g} were held out then"
    return ""
