"""Which settings a search tries next: the space it chooses from, and Optuna's sampler over it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from prompt_core.backbone import Backbone, EncoderDecoder
from prompt_core.deploy import kinds_for
from prompt_core.encoding import TaskEncoding
from prompt_core.errors import PromptmillError
from prompt_core.space import Range, SearchSpec, Setting, Values, is_whole
from prompt_core.task import TaskSpec
from prompt_core.trials import Trial
from prompt_core.tuning.build import descriptions

_STEPS = "tune.steps"
_RUNGS = (("deep", "prompt"), ("soft", "prompt"), ("deep", None))  # of a ladder: kind and start
_ATTEMPTS = 20  # at settings that were not tried yet, for each that is wanted


def space_of(task: TaskSpec, spec: SearchSpec, backbone: Backbone, rows: int, from_text: bool = False) -> dict[str, Values]:
    """The space of a search: the one given, or what the task file leaves open of what usually matters.

    `tune.steps` in it says where the rungs are. With `from_text` a prompt may start from a text prompt or from the root.

    Args:
        rows: examples that there are to tune on.
    """
    kinds: dict[str, Values] = {"prompt.kind": ("deep", "soft") if backbone.generates else ("deep",)}
    starts: dict[str, Values] = {"prompt.start": ("prompt", None)}
    wanted = (kinds if task.prompt.kind == "auto" else {}) | (starts if from_text else {})
    if spec.space:
        return _deployable(task, wanted | spec.space)
    given = {f"{part}.{name}" for part in ("prompt", "tune") for name in getattr(task, part).model_fields_set}
    if from_text:
        given |= {"prompt.start", "prompt.tokens"}  # a text is as long as it is
        if any(len(words) > 1 for words in task.text.label_words.values()):
            given.add("tune.loss")  # the text may say a label in several ways, the loss over the vocabulary learns one
    return _deployable(task, wanted | {path: values for path, values in _usual_space(task, backbone, rows).items() if path not in given})


def _deployable(task: TaskSpec, space: dict[str, Values]) -> dict[str, Values]:
    """The space without kinds of prompts that cannot run where the task says that they must.

    Raises:
        PromptmillError: no kind is left.
    """
    kinds = space.get("prompt.kind")
    if not task.deploy or kinds is None or isinstance(kinds, Range):
        return space
    left = tuple(kind for kind in kinds if kind in kinds_for(task.deploy))
    if not left:
        what = f"leaves no kind that runs in {', '.join(task.deploy)} (deploy)"
        raise PromptmillError(f"task {task.name}: tune.search.space", what, f"Let it choose from {', '.join(kinds_for(task.deploy))}.")
    return space | {"prompt.kind": left}


def first_trials(task: TaskSpec, space: Mapping[str, Values]) -> list[dict[str, Any]]:
    """Settings that are tried before the sampler has a say: what the task file says; in a ladder that for soft and deep from the
    text prompt, and for deep from the root."""
    own = task.model_dump(mode="json")
    own["prompt"]["kind"] = "soft" if task.prompt.kind == "soft" else "deep"
    said = {path: own[path.partition(".")[0]][path.partition(".")[2]] for path in space if path != _STEPS}
    kinds, starts = (space.get(f"prompt.{name}", ()) for name in ("kind", "start"))
    if isinstance(kinds, Range) or isinstance(starts, Range) or "prompt" not in starts:
        return [said]
    rungs = [(kind, start) for kind, start in _RUNGS if kind in kinds and start in starts]
    return [said | {"prompt.kind": kind, "prompt.start": start} for kind, start in rungs] or [said]


def shown_rows(task: TaskSpec, space: Mapping[str, Values]) -> int:
    """How many of the first texts some prompt may start from as its demonstrations: no fold holds them out."""
    starts, counts = (space.get(f"prompt.{name}", (getattr(task.prompt, name),)) for name in ("start", "demonstrations"))
    assert not isinstance(starts, Range)  # a range of words is refused with the task file
    if "demonstrations" not in starts:
        return 0
    values: Sequence[object] = (counts.high,) if isinstance(counts, Range) else counts
    return int(max(value for value in values if isinstance(value, (int, float))))


def _usual_space(task: TaskSpec, backbone: Backbone, rows: int) -> dict[str, Values]:
    steps = task.tune.steps_for(rows)
    space: dict[str, Values] = {
        "tune.learning_rate": Range(low=1e-3, high=5e-2, log=True),
        "tune.average": (0.9, 0.97),
        _STEPS: Range(low=steps // 4, high=2 * steps),
    }
    soft = TaskEncoding(task, backbone).soft_tokens  # a template with soft(n) says length and start itself
    if not backbone.generates:
        space["prompt.tokens"] = (8, 16, 32)
        if task.objective == "classify":
            return space | {"tune.loss": ("label_set", "pairs"), "tune.anchor_scale": Range(low=5, high=40, log=True)}
        return space | {"tune.label_smoothing": (0.0, 0.1)}
    lengths: dict[str, Values] = {} if soft else {"prompt.tokens": (None, 32)}
    if task.objective == "distill":  # it starts from what is distilled, and learns distributions rather than targets
        return space | lengths
    space |= {"tune.label_smoothing": (0.0, 0.1), **lengths}
    if not soft:
        space["prompt.start"] = (None, "demonstrations")
    if isinstance(backbone, EncoderDecoder):
        space.pop("prompt.start", None)
    one_way = all(len(descriptions(task, label)) == 1 for label in task.labels)
    losses: dict[str, Values] = {"tune.loss": ("label_set", "vocabulary")} if one_way else {}
    classes: dict[str, Values] = {"tune.label_score": ("mean", "sum"), **losses}
    return space | (classes if task.objective == "classify" else {})


def rungs_of(task: TaskSpec, space: Mapping[str, Values], eta: int, rows: int) -> list[int]:
    """After how many steps trials are measured, rising; the last one is the most that a tuning takes.

    Args:
        rows: examples that there are to tune on.
    """
    values = space.get(_STEPS)
    if values is None:
        return sorted({max(1, task.tune.steps_for(rows) // eta**power) for power in range(3)})
    if not isinstance(values, Range):
        return sorted({task.tune.steps_for(rows) if value is None else int(value) for value in values})
    rungs, step = [], values.low
    while step < values.high:
        rungs.append(int(step))
        step *= eta
    return [*rungs, int(values.high)]


def propose(task: TaskSpec, space: Mapping[str, Values], finished: Sequence[Trial], count: int, startup: int) -> list[dict[str, Setting]]:
    """Settings to try together, none of them tried before; fewer than `count` where the space has no more.

    They depend on the task's seed and on what is finished alone, so that a search goes on as if nothing had interrupted
    it: every wave has a study of its own, told all that is known. The first are those that `first_trials` gives.

    Args:
        space: values by path; `tune.steps` is no part of what is proposed.
        finished: all trials so far, with their outcomes.
        startup: trials before the sampler makes something of the results.
    """
    logging.getLogger("optuna").setLevel(logging.WARNING)
    distributions = {path: _distribution(task, path, values) for path, values in space.items() if path != _STEPS}
    seed = int(hashlib.sha256(f"{task.tune.seed}/{len(finished)}".encode()).hexdigest()[:8], 16)
    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=startup)
    study = optuna.create_study(direction="minimize", sampler=sampler)
    study.add_trials([_told(trial, distributions) for trial in finished])
    for settings in first_trials(task, space)[len(finished) :]:
        study.enqueue_trial({path: value for path, value in settings.items() if _contains(distributions[path], value)})
    known = {_key(trial.settings) for trial in finished}
    found: list[dict[str, Setting]] = []
    for _ in range(_ATTEMPTS * count):
        asked = study.ask(distributions).params  # one that is known stays open, which drives the sampler away from it
        settings = {path: _rounded(asked[path], distributions[path]) for path in distributions}
        if _key(settings) not in known:
            known.add(_key(settings))
            found.append(settings)
        if len(found) == count:
            break
    return found


def _distribution(task: TaskSpec, path: str, values: Values) -> BaseDistribution:
    if not isinstance(values, Range):
        return CategoricalDistribution(values)
    part, _, name = path.partition(".")
    if is_whole(type(getattr(task, part)).model_fields[name].annotation):
        return IntDistribution(int(values.low), int(values.high), log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)


def _told(trial: Trial, distributions: dict[str, BaseDistribution]) -> FrozenTrial:
    """A finished trial as Optuna knows it. What failed is pruned before anything was measured: the worst that there is,
    where a failed trial would teach nothing and settings that do not fit each other would be tried again and again."""
    complete = trial.outcome == "complete"
    return create_trial(
        state=TrialState.COMPLETE if complete else TrialState.PRUNED,
        value=trial.best.score if trial.best and complete else None,
        params=dict(trial.settings),
        distributions=distributions,
        intermediate_values={} if trial.outcome == "failed" else {rung.steps: rung.score for rung in trial.rungs},
    )


def _contains(distribution: BaseDistribution, value: Setting) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    return isinstance(value, (int, float)) and distribution.low <= value <= distribution.high


def _rounded(value: Setting, distribution: BaseDistribution) -> Setting:
    """Three digits of a number say all there is to say about a rate."""
    if not isinstance(distribution, FloatDistribution):
        return value
    return min(max(float(f"{value:.3g}"), distribution.low), distribution.high)


def _key(settings: Mapping[str, Setting]) -> str:
    return json.dumps(settings, sort_keys=True)
