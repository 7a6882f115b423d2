"""The gradient loop: one prompt or a fleet of them on one frozen backbone, the best of each on validation kept."""

from __future__ import annotations

import logging
import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed import is_initialized

from prompt_core.backbone import Backbone
from prompt_core.data.packing import pack
from prompt_core.encoded import Encoded
from prompt_core.errors import PromptmillError
from prompt_core.manifest import TuningRecord
from prompt_core.prompts import PromptState, Tree, hidden_states
from prompt_core.tuning.checkpoint import load_checkpoint, save_checkpoint
from prompt_core.tuning.joint import Cached, Joint, is_divided, look_ahead
from prompt_core.tuning.member import Member, Part
from prompt_core.tuning.memory import is_lack_of_memory, no_memory, reason_of
from prompt_core.tuning.parallel import add_up, is_writer, share
from prompt_core.tuning.run import Run

_log = logging.getLogger("promptmill")

Work = Sequence[tuple[Part, Sequence[Encoded]]]


def optimise(backbone: Backbone, members: Sequence[Member], checkpoint: Path | None = None) -> list[TuningRecord | PromptmillError]:
    """Tune the prompts of a fleet side by side to the end, see `Fleet`.

    Returns:
        For each member how its tuning went, or the error that took it out of the fleet.

    Raises:
        PromptmillError: as `Fleet.advance`.
    """
    fleet = Fleet(backbone, members, checkpoint)
    fleet.advance()
    return fleet.finish()


class Fleet:
    """Prompts that are tuned side by side, in place; what becomes of one does not depend on the others, but for rounding.

    Every pass through the backbone holds the trees of as many prompts as the largest `batch_tokens` among them admits,
    half of it after every time that the memory did not suffice. A member of which not even one example finds room ends with an
    error, and the others go on with passes as large as before that step. In a torch.distributed group each process takes its
    share of every batch.

    Args:
        backbone: the frozen model.
        members: what is tuned.
        checkpoint: a file that is written every `checkpoint_every` steps, from which an interrupted fleet goes on with
            the same bits, and that `finish` or `close` removes. It must belong to these very members.

    Attributes:
        budget: tokens that a pass may take.
        prompt_steps: steps so far, of all members together.
        tokens: what these steps took through the backbone, without prompts and looks at the validation loss.
    """

    def __init__(self, backbone: Backbone, members: Sequence[Member], checkpoint: Path | None = None) -> None:
        self._runs = {member: Run(member) for member in members}
        recompute = any(member.spec.gradient_checkpointing for member in members)
        self._passes = _Passes(backbone, max(member.spec.batch_tokens for member in members), recompute)
        self._every = min(member.spec.checkpoint_every for member in members)
        self._numbers = {member: number for number, member in enumerate(members)}
        self._checkpoint = checkpoint
        self.prompt_steps = self.tokens = 0
        if found := load_checkpoint(checkpoint) if checkpoint else None:
            snapshots, facts = found
            self.drop([member for member in members if self._numbers[member] not in facts["members"]])
            for run, snapshot in zip(self._runs.values(), snapshots, strict=True):
                run.restore(snapshot)
            self._passes.budget = facts["budget"]
            self.prompt_steps, self.tokens = facts["prompt_steps"], facts["tokens"]

    @property
    def budget(self) -> int:
        return self._passes.budget

    def advance(self, until: int | None = None) -> None:
        """Take every member on to `until` steps, or to its end.

        Raises:
            PromptmillError: in a torch.distributed group the memory does not suffice for one example of a batch that is compared as
                a whole, which the other processes wait for.
        """
        while going := [run for run in self._runs.values() if run.goes_on and (until is None or run.done < until)]:
            self._step(going)

    def drop(self, members: Iterable[Member]) -> None:
        """Let members go as they are; `finish` says nothing about them."""
        for member in members:
            self._runs.pop(member, None)

    def place(self, member: Member) -> None:
        """Put a member's running average in place, to be looked at; its next step goes on from where it was.

        Raises:
            PromptmillError: what ended this member's tuning.
        """
        run = self._runs[member]
        if run.error:
            raise run.error
        run.show_average()

    def finish(self) -> list[TuningRecord | PromptmillError]:
        """Put in place what is kept of each member that was not dropped, and give its history or its error."""
        results = [run.finish() for run in self._runs.values()]
        self.close()
        return results

    def close(self) -> None:
        """Remove the checkpoint: nothing is to go on from it."""
        if self._checkpoint and is_writer():
            self._checkpoint.unlink(missing_ok=True)

    def _step(self, going: Sequence[Run]) -> None:
        work = [pair for run in going for pair in run.begin_step()]
        with_gradients = self._passes.losses(work, backward=True)
        self.prompt_steps += len(going)
        self.tokens += sum(part.objective.tokens(example) for part, batch in work for example in batch)
        for run in self._with_memory(going):
            run.end_step(with_gradients)
        if looking := [run for run in going if run.looks_now]:
            for run in looking:
                run.show_average()
            held_out = self._passes.losses([(part, part.validation) for run in looking for part in run.looks_at], backward=False)
            for run in self._with_memory(looking):
                run.look(held_out)
        for run in going:
            run.report()
        if self._checkpoint and is_writer() and max(run.done for run in going) % self._every == 0:
            facts = {"members": [self._numbers[member] for member in self._runs], "budget": self.budget}
            facts |= {"prompt_steps": self.prompt_steps, "tokens": self.tokens}
            save_checkpoint(self._checkpoint, [run.checkpoint() for run in self._runs.values()], facts)

    def _with_memory(self, runs: Sequence[Run]) -> list[Run]:
        """The runs whose passes came into memory; the others end."""
        for run in runs:
            if reason := next(filter(None, map(self._passes.lacking.get, run.member.parts)), None):
                run.fail(no_memory("one example", reason))
        return [run for run in runs if not run.error]


class _Passes:
    """Losses and gradients of many prompts' batches, in as few passes through the backbone as the memory admits.

    Attributes:
        budget: tokens that a pass may take.
        lacking: parts of which not even one example came into memory, with the reason; their losses are NaN.
    """

    def __init__(self, backbone: Backbone, budget: int, recompute: bool) -> None:
        self._backbone, self.budget, self._recompute = backbone, budget, recompute
        self.lacking: dict[Part, str] = {}
        self._inside: Sequence[tuple[Part, int]] = []  # (part, example number) of what is computed

    def losses(self, work: Work, backward: bool) -> dict[Part, float]:
        """The mean loss of each part over its examples, and with `backward` its gradients in its parameters."""
        totals, parameters = self._within_memory(work, backward)
        found = [list(totals.values()), [part in self.lacking for part in totals]]
        summed = torch.tensor(found, dtype=torch.float64, device=self._backbone.device)
        add_up([summed])
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            add_up([parameter.grad])
        losses, lacking = summed.tolist()
        self.lacking = {part: "in another process" for part, lacks in zip(totals, lacking, strict=True) if lacks} | self.lacking
        return dict(zip(totals, losses, strict=True))

    def _within_memory(self, work: Work, backward: bool) -> tuple[dict[Part, float], list[torch.nn.Parameter]]:
        """Sums over this process's share of the examples, with a smaller budget each time that the memory does not suffice."""
        cached: dict[Part, Cached] = {}  # outlives a retry: what processes exchange is exchanged once
        modules = [module for part, _ in work for module in (part.prompt, part.objective)]
        everything = dict.fromkeys(parameter for module in modules for parameter in module.parameters())
        parameters = [parameter for parameter in everything if parameter.requires_grad] if backward else []
        budget = self.budget
        while True:
            try:
                with torch.set_grad_enabled(backward), self._backbone.recomputing() if self._recompute and backward else nullcontext():
                    return self._sums(work, backward, cached), parameters
            except (MemoryError, RuntimeError) as error:
                if not is_lack_of_memory(error):
                    raise
                reason = reason_of(error)
            if len(self._inside) > 1 and self.budget > 1:
                self.budget //= 2
                _log.warning("out of memory: passes take %d tokens from here on", self.budget)
            elif is_initialized() and any(isinstance(part.objective, Joint) and part not in cached for part, _ in self._inside):
                raise no_memory("one example", reason)
            else:
                self.lacking |= {part: reason for part, _ in self._inside}
                self.budget = budget  # it was not for the size of the passes
            for parameter in parameters:
                parameter.grad = None
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _sums(self, work: Work, backward: bool, cached: dict[Part, Cached]) -> dict[Part, float]:
        """A part whose loss is not finite stays out of the passes that follow, and out of the gradients of the one it spoils."""
        totals = {part: math.nan if part in self.lacking else 0.0 for part, _ in work}
        work = [(part, examples) for part, examples in work if part not in self.lacking]
        weights = {part: sum(map(part.objective.weight, examples)) for part, examples in work}
        states: dict[Part, _Leaves] = {}
        for part, _ in work:
            self._inside = [(part, 0)]
            states[part] = _Leaves(part.prompt.state(), backward)
        self._look_ahead(work, states, weights, totals, backward, cached)
        items = [(part, number) for part, examples in work if backward or part not in cached for number in range(len(examples))]
        examples_of = dict(work)
        for packed in self._pack(share(items), examples_of, cached):
            self._inside = packed
            numbers = {part: [number for _, number in group] for part, group in groupby(packed, key=lambda item: item[0])}
            batches = {part: [examples_of[part][number] for number in own] for part, own in numbers.items()}
            while batches := {part: batch for part, batch in batches.items() if math.isfinite(totals[part])}:
                trees = [Tree(states[part].state, *part.objective.segments(batch)) for part, batch in batches.items()]
                hidden = hidden_states(self._backbone, trees)
                losses = torch.stack(
                    [
                        _loss(part, own, batch, numbers[part], cached) / weights[part]
                        for (part, batch), own in zip(batches.items(), hidden, strict=True)
                    ]
                )
                spoiled = not torch.isfinite(losses).all()
                for part, value in zip(batches, losses.tolist(), strict=True):
                    if not math.isfinite(value) or not (spoiled or part in cached):  # a cached one's loss is known
                        totals[part] += value
                if not spoiled:
                    if backward:
                        losses.sum().backward()  # type: ignore[no-untyped-call]
                    break
        for part, leaves in states.items():
            self._inside = [(part, 0)]
            leaves.pass_on()
        return totals

    def _look_ahead(
        self,
        work: Work,
        states: Mapping[Part, _Leaves],
        weights: Mapping[Part, int],
        totals: dict[Part, float],
        backward: bool,
        cached: dict[Part, Cached],
    ) -> None:
        """The losses of the batches that have to be seen as a whole and take several passes or processes."""
        for part, examples in work:
            if isinstance(objective := part.objective, Joint) and (part in cached or is_divided(objective, examples, self.budget)):
                if part not in cached:
                    self._inside = [(part, number) for number in range(len(examples))]
                    cached[part] = look_ahead(self._backbone, objective, states[part].state, examples, self.budget, backward)
                loss = cached[part].loss / weights[part]
                totals[part] = loss if is_writer() or not math.isfinite(loss) else 0.0

    def _pack(
        self, items: Sequence[tuple[Part, int]], examples: Mapping[Part, Sequence[Encoded]], cached: Container[Part]
    ) -> Iterator[list[tuple[Part, int]]]:
        """Passes of (part, example number); what has to be seen as a whole and is not `cached` stays together."""

        def tokens(bundle: Sequence[tuple[Part, int]]) -> int:
            return sum(part.objective.tokens(examples[part][number]) for part, number in bundle)

        bundles: list[list[tuple[Part, int]]] = []
        for part, group in groupby(items, key=lambda item: item[0]):
            own, whole = list(group), isinstance(part.objective, Joint) and part not in cached
            bundles += [own] if whole else [[item] for item in own]
        for packed in pack(bundles, tokens, self.budget):
            yield [item for bundle in packed for item in bundle]


def _loss(part: Part, states: Tensor, examples: Sequence[Encoded], numbers: Sequence[int], cached: Mapping[Part, Cached]) -> Tensor:
    if isinstance(part.objective, Joint) and part in cached:
        return cached[part].stand_in(part.objective.outputs(states, examples), numbers)
    return part.objective.loss(states, examples)


class _Leaves:
    """A prompt's state, cut off from how it is made: that is evaluated once, however many passes a step takes."""

    def __init__(self, made: PromptState, backward: bool) -> None:
        self._made = [made.rows, made.keys, made.values]
        self._cut = [tensor.detach().requires_grad_(backward and tensor.requires_grad) for tensor in self._made]
        rows, keys, values = self._cut
        self.state = replace(made, rows=rows, keys=keys, values=values)

    def pass_on(self) -> None:
        """Hand the gradients that the passes left on to what made the state."""
        pairs = [(made, cut.grad) for made, cut in zip(self._made, self._cut, strict=True) if cut.grad is not None]
        if pairs:
            torch.autograd.backward([made for made, _ in pairs], [grad for _, grad in pairs])
