"""A trial of a search made ready for the fleet: the task with its settings, and a prompt for each fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl
import torch
from torch import nn

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.encoded import Encoded
from prompt_core.encoding import TaskEncoding
from prompt_core.errors import PromptmillError
from prompt_core.manifest import TuningRecord
from prompt_core.prompts import Compactions
from prompt_core.space import Setting
from prompt_core.task import TaskSpec
from prompt_core.task_file import parse_task
from prompt_core.tuning.folds import not_held_out
from prompt_core.tuning.member import Member, Part, twin
from prompt_core.tuning.prepared import Prepared
from prompt_core.tuning.score import Fold


def with_settings(task: TaskSpec, settings: Mapping[str, Setting], steps: int, first_rung: int) -> TaskSpec:
    """The task with these settings and without a search, to be tuned for `steps` steps.

    The rate rises over a share `tune.warmup` of the first rung and then stays: a prompt after n steps is then the same
    whatever number of steps was planned, so that one run is measured at every rung, and the final tuning repeats
    exactly what was measured. The running average does what a falling rate would.

    Raises:
        PromptmillError: the settings do not fit each other.
    """
    content = task.model_dump(mode="json", exclude_unset=True, exclude={"text"})  # which says how words are searched
    for part in ("prompt", "tune"):
        content[part] = {name: value for name, value in content.get(part, {}).items() if name != "search"}
    for path, value in settings.items():
        part, _, name = path.partition(".")
        content[part][name] = value
    rising = max(1, round(content["tune"].get("warmup", task.tune.warmup) * first_rung))
    content["tune"] |= {"steps": steps, "decay": "constant", "warmup": min(1.0, rising / steps)}
    return parse_task(content, f"task {task.name}", task.folder)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A trial's prompts, all with the same start, but for one that reads what it is tuned on.

    Attributes:
        members: one per fold, tuned on the other folds' examples.
        held_out: the examples of each fold.
        encodings: how the prompt of each fold reads its inputs.
    """

    backbone: Backbone
    members: list[Member]
    held_out: list[list[Encoded]]
    encodings: list[TaskEncoding]

    @classmethod
    def of(
        cls,
        task: TaskSpec,
        rows: pl.DataFrame,
        folds: Sequence[Sequence[int]],
        backbone: Backbone,
        sources: Sequence[TunedPrompt] | None = None,
        compactions: Compactions | None = None,
    ) -> Candidate:
        """Prompts for each fold of a task without a search; `sources` are what the prompt of each fold starts from, `compactions` what
        other trials started from.

        Raises:
            PromptmillError: as `Prepared`.
        """
        if sources:
            all_ready = [Prepared(task, (rows, None), backbone, source=source) for source in sources]
        else:
            all_ready = [Prepared(task, (rows, None), backbone, compactions=compactions)] * len(folds)
        members, out = [], []
        for ready, held_out in zip(all_ready, folds, strict=True):
            numbers = not_held_out(held_out, len(rows))
            train = ready.learned_from(numbers)
            out.append(ready.examples(held_out))
            if not train or not out[-1]:
                what = f"{len(folds)}, but not every fold has an input that the teacher is asked"
                raise PromptmillError(f"task {task.name}: tune.search.folds", what, "Add inputs or lower it.")
            prompt, generator = ready.start(numbers)
            part = Part(prompt, twin(ready.part.objective, backbone), train, ())
            members.append(Member([part], task.tune, generator))
        return cls(backbone, members, out, [ready.encoding for ready in all_ready])

    @torch.no_grad()
    def settled_folds(self) -> list[Fold]:
        """Each fold's prompt as it stands, its objective settled on what it was tuned on, and what it holds out."""
        folds: list[Fold] = []
        for member, held_out in zip(self.members, self.held_out, strict=True):
            (part,) = member.parts
            state, objective = part.prompt.state(), twin(part.objective, self.backbone)  # the tuning goes on with the other
            objective.eval()
            objective.settle(state, part.train)
            folds.append((state, objective, held_out))
        return folds

    def held_out_tokens(self) -> int:
        """Tokens that a look at all held-out examples takes through the backbone."""
        pairs = zip(self.members, self.held_out, strict=True)
        return sum(member.parts[0].objective.tokens(example) for member, held_out in pairs for example in held_out)

    @torch.no_grad()
    def average_into(self, ready: Prepared, records: Sequence[TuningRecord]) -> TuningRecord:
        """Set the parameters of a prompt and its objective to the mean of the folds', and give the mean of their histories."""
        whole, parts = ready.part, [member.parts[0] for member in self.members]
        _set_to_mean(whole.prompt, [part.prompt for part in parts])
        _set_to_mean(whole.objective, [part.objective for part in parts])
        whole.objective.eval()
        whole.objective.settle(whole.prompt.state(), whole.train)
        losses = [sum(step) / len(records) for step in zip(*(record.train_loss for record in records), strict=True)]
        rollbacks = tuple(step for record in records for step in record.rollbacks)
        rounded = tuple(round(loss, 6) for loss in losses)
        return TuningRecord(steps=len(losses), kept_step=len(losses), train_loss=rounded, validation=(), rollbacks=rollbacks)


def _set_to_mean(module: nn.Module, others: Sequence[nn.Module]) -> None:
    """What is fitted at the end of each fold, and not there yet in the module, stays out of it."""
    found = [dict(other.named_parameters()) for other in others]
    for name, parameter in module.named_parameters():
        parameter.copy_(torch.stack([parameters[name] for parameters in found]).mean(0))
