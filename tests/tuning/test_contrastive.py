"""Contrastive objectives: the papers' formulas, exact in any division into passes, with heads that the artifact keeps."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from helpers import a_task, assert_equal_to_rounding, encoder_behind_cache, examples, plain_model, random_ids, random_prefix
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.encoded import Encoded
from prompt_core.encoding import TaskEncoding
from prompt_core.errors import PromptmillError
from prompt_core.methods import TuneSpec
from prompt_core.prediction import label_scores, restore, restore_classifier
from prompt_core.prompts import DeepPrefix
from prompt_core.tuning import Step, tune, tune_fleet
from prompt_core.tuning.contrastive import Comparison, ContrastedAnchors, Contrastive, pairs_loss, supervised_contrastive_loss
from prompt_core.tuning.gradient import _Passes, optimise
from prompt_core.tuning.heads import fit_logistic, fit_means
from prompt_core.tuning.member import Member, Part
from prompt_core.tuning.objective import Objective, embed_texts

KHOSLA: Comparison = partial(supervised_contrastive_loss, scale=10.0)
THINGS = ("box", "bag", "van", "lid", "map", "pen")
TRAIN = examples(*[(f"The {t} is {s}", k) for s, k in (("late", "a"), ("broken", "b"), ("wet", "c")) for t in THINGS])
SMALL = {"tokens": 4}


def batch_of(targets: Sequence[int]) -> list[Encoded]:
    lengths = [3 + number % 5 for number in range(len(targets))]
    return [Encoded(tuple(ids.tolist()), (t,), False) for ids, t in zip(random_ids(*lengths), targets, strict=True)]


def an_objective(backbone: Backbone, compare: Comparison = pairs_loss, labels: int = 3, head: str = "means") -> Contrastive:
    return Contrastive(backbone, labels, compare, head=head, scale=10.0, c=10.0, batch_tokens=64)


def some_anchors(backbone: Backbone, weight: float) -> ContrastedAnchors:
    anchors = torch.randn(3, backbone.hidden_size, generator=torch.Generator().manual_seed(1))
    return ContrastedAnchors(backbone, anchors, scale=10.0, weight=weight, smoothing=0.1)


def gradients(
    backbone: Backbone, objective: Objective, batch: list[Encoded], budget: int, backward: bool = True
) -> tuple[float, list[Tensor]]:
    part = Part(DeepPrefix(backbone, *random_prefix(backbone, 4)), objective, batch, [])
    loss = _Passes(backbone, budget, False).losses([(part, batch)], backward=backward)[part]
    return loss, [p.grad for module in (part.prompt, objective) for p in module.parameters() if p.grad is not None]


def dense_pairs(embeddings: Tensor, targets: Sequence[int]) -> Tensor:
    """Pair by pair: half the mean error of those of one label, half that of the others."""
    errors: dict[bool, list[Tensor]] = {True: [], False: []}
    for i in range(len(targets)):
        for j in range(i):
            same = targets[i] == targets[j]
            errors[same].append((F.cosine_similarity(embeddings[i], embeddings[j], dim=0) - float(same)) ** 2)
    return sum((torch.stack(found).mean() / 2 for found in errors.values() if found), torch.zeros((), dtype=embeddings.dtype))


def khosla(embeddings: Tensor, targets: Sequence[int], temperature: float) -> Tensor:
    """Equation 2 of the paper, anchor by anchor, the mean over those with a positive."""
    z, n = F.normalize(embeddings, dim=-1), len(targets)
    losses = []
    for i in range(n):
        others = [a for a in range(n) if a != i]
        total = sum((z[i] @ z[a] / temperature).exp() for a in others)
        positives = [p for p in others if targets[p] == targets[i]]
        if positives:
            losses.append(-sum(((z[i] @ z[p] / temperature).exp() / total).log() for p in positives) / len(positives))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("budget", [8192, 16])
@pytest.mark.parametrize("loss", ["pairs", "supervised_contrastive"])
def test_loss_and_gradients_are_those_of_the_dense_computation(bert: Backbone, bert_folder: Path, loss: str, budget: int) -> None:
    targets = [0, 1, 0, 2, 2, 0, 1]
    batch = batch_of(targets)
    found, grads = gradients(bert, an_objective(bert, pairs_loss if loss == "pairs" else KHOSLA), batch, budget)
    model = plain_model(bert_folder, causal=False).double()
    keys, values = (part.double().requires_grad_() for part in random_prefix(bert, 4))
    pooled = torch.stack([encoder_behind_cache(model, keys, values, torch.tensor(e.input)).mean(0) for e in batch])
    expected = dense_pairs(pooled, targets) if loss == "pairs" else khosla(pooled, targets, 0.1)
    expected.backward()
    assert found == pytest.approx(float(expected.detach()), rel=1e-5)
    for grad, tensor in zip(grads, (keys, values), strict=True):
        assert tensor.grad is not None
        assert_equal_to_rounding(grad / tensor.grad.abs().max(), tensor.grad / tensor.grad.abs().max())


@given(
    targets=st.lists(st.integers(0, 2), min_size=2, max_size=12),
    budget=st.integers(1, 80),
    loss=st.sampled_from(["pairs", "khosla", "both"]),
)
@settings(max_examples=25, deadline=None)
def test_any_division_into_passes_gives_the_loss_and_gradients_of_one(bert: Backbone, targets: list[int], budget: int, loss: str) -> None:
    batch = batch_of(targets)
    make = {"pairs": an_objective, "khosla": partial(an_objective, compare=KHOSLA), "both": partial(some_anchors, weight=2.0)}[loss]
    whole, divided = (gradients(bert, make(bert), batch, size) for size in (8192, budget))
    assert divided[0] == pytest.approx(whole[0], rel=1e-5, abs=1e-6)
    assert gradients(bert, make(bert), batch, budget, backward=False) == (pytest.approx(whole[0], rel=1e-5, abs=1e-6), [])
    assert len(divided[1]) == len(whole[1]) == (3 if loss == "both" else 2)  # keys, values and the anchors
    assert_equal_to_rounding([g.flatten() for g in divided[1]], [g.flatten() for g in whole[1]])


@pytest.mark.parametrize("budget", [8192, 16])
def test_contrast_adds_the_pairs_to_the_cross_entropy_of_training_alone(bert: Backbone, budget: int) -> None:
    batch = batch_of([0, 1, 0, 2, 2, 0, 1])
    (entropy, of_entropy), (pairs, of_pairs) = (gradients(bert, o, batch, budget) for o in (some_anchors(bert, 0.0), an_objective(bert)))
    loss, found = gradients(bert, some_anchors(bert, 3.0), batch, budget)
    assert loss == pytest.approx(entropy + 3 * pairs, rel=1e-5)
    assert_equal_to_rounding(found[:2], [ours + 3 * theirs for ours, theirs in zip(of_entropy, of_pairs, strict=False)])
    assert_equal_to_rounding(found[2], of_entropy[2])  # pairs say nothing of anchors
    looking, plain = some_anchors(bert, 3.0).eval(), some_anchors(bert, 0.0).eval()
    assert gradients(bert, looking, batch, budget, backward=False) == gradients(bert, plain, batch, budget, backward=False)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40))
def test_a_comparison_is_finite_whatever_pairs_there_are(targets: list[int]) -> None:
    embeddings = F.normalize(torch.randn(len(targets), 8, generator=torch.Generator().manual_seed(0)), dim=-1).requires_grad_()
    for compare in (pairs_loss, KHOSLA):
        loss = compare(embeddings, torch.tensor(targets))
        (grad,) = torch.autograd.grad(loss, embeddings)
        assert torch.isfinite(loss) and torch.isfinite(grad).all()
        if max(Counter(targets).values()) > 1 and compare is KHOSLA:
            assert float(loss) == pytest.approx(float(khosla(embeddings, targets, 0.1)), rel=1e-4, abs=1e-5)


@given(counts=st.lists(st.integers(1, 30), min_size=2, max_size=12), size=st.integers(4, 64), seed=st.integers(0, 99))
def test_a_round_draws_several_examples_of_every_label_side_by_side(bert: Backbone, counts: list[int], size: int, seed: int) -> None:
    targets = [label for label, count in enumerate(counts) for _ in range(count)]
    batch = [Encoded((1,), (target,), False) for target in targets]
    drawn = an_objective(bert).order(batch, size, torch.Generator().manual_seed(seed))
    assert len(set(drawn)) == len(drawn)
    labels = [targets[i] for i in drawn]
    share = max(4, math.ceil(min(size, len(targets)) / len(counts)))
    assert Counter(labels) == {label: min(share, count) for label, count in enumerate(counts)}
    runs = 1 + sum(a != b for a, b in pairwise(labels))
    assert runs == len(counts)  # each label in one place
    assert drawn == an_objective(bert).order(batch, size, torch.Generator().manual_seed(seed))


def tuned(backbone: Backbone, validation: pl.DataFrame | None = None, prompt: Any = None, **spec: Any) -> TunedPrompt:
    task = a_task(backbone.identity.name, prompt=prompt or SMALL, tune={"steps": 4, "batch_examples": 8, **spec})
    return tune(task, TRAIN, validation, backbone)


@pytest.mark.parametrize(("loss", "head"), [("pairs", "means"), ("pairs", "logistic"), ("label_set", "logistic")])
@pytest.mark.parametrize("calibrate", [False, True])
def test_a_head_is_saved_with_the_prompt_and_scores_as_it_was_fitted(
    tmp_path: Path, bert: Backbone, loss: str, head: str, calibrate: bool
) -> None:
    prompt = tuned(bert, loss=loss, head=head, calibrate=calibrate)
    prompt.save(tmp_path / "p")
    loaded, texts = TunedPrompt.load(tmp_path / "p"), TRAIN["text"].to_list()
    expected = {"keys", "values"} | ({"anchors"} if head == "means" else {"head_weights", "head_bias"})
    assert set(loaded.tensors) == expected | ({"label_bias"} if calibrate else set())
    assert loaded.digest == prompt.digest and loaded.predict(texts, bert) == prompt.predict(texts, bert)
    encoding = TaskEncoding(prompt.task, bert)
    inputs, state = [encoding.encode({"text": text}) for text in texts], restore(loaded, encoding, bert)
    scores = label_scores(bert, restore_classifier(loaded, encoding, bert), state, inputs, 3, 64)
    if calibrate:
        scores = scores + loaded.tensors["label_bias"]
    with torch.no_grad():  # the descriptions are examples of their labels
        named = embed_texts(bert, state, [encoding.encode_text(label) for label in "abc"])
        rows = torch.cat([embed_texts(bert, state, [e.input for e in inputs]), named])
    targets = torch.tensor([ord(label) - ord("a") for label in [*TRAIN["label"], *"abc"]])
    if head == "means":
        means = torch.stack([rows[targets == label].mean(0) for label in range(3)])
        assert_equal_to_rounding(scores / 10, F.cosine_similarity(rows[:-3, None], means[None], dim=-1))
    else:
        fitted = LogisticRegression(C=10, max_iter=1000).fit(rows.double().numpy(), targets.numpy())
        expected_chances = torch.from_numpy(fitted.predict_proba(rows[:-3].double().numpy())).float()
        assert float((scores.softmax(-1) - expected_chances).abs().max()) < 1e-3


def test_a_head_after_the_anchors_changes_nothing_on_their_way(bert: Backbone) -> None:
    plain, fitted = tuned(bert, TRAIN[::3]), tuned(bert, TRAIN[::3], head="logistic")
    assert plain.manifest.tuning == fitted.manifest.tuning
    assert all(torch.equal(plain.tensors[name], fitted.tensors[name]) for name in ("keys", "values"))


def test_a_head_needs_an_encoder_and_two_labels(bert: Backbone, llama: Backbone) -> None:
    with pytest.raises(
        PromptmillError, match=r"tune\.head: logistic is fitted on an encoder's embeddings, and tiny-llama is a causal model"
    ):
        tuned(llama, head="logistic")
    one = a_task(bert.identity.name, prompt=SMALL, tune={"steps": 1, "head": "logistic"})
    with pytest.raises(PromptmillError, match=r"tune\.head: all training examples are a, which leaves logistic nothing to tell apart"):
        tune(one, TRAIN.filter(pl.col("label") == "a"), None, bert)


def test_a_logistic_head_of_two_labels_has_scikit_learns_probabilities(bert: Backbone) -> None:
    generator = torch.Generator().manual_seed(0)
    rows, targets = F.normalize(torch.randn(20, bert.hidden_size, generator=generator), dim=-1), torch.arange(20) % 2
    head = fit_logistic(bert, rows, targets, 2, c=3.0)
    fitted = LogisticRegression(C=3.0, max_iter=1000).fit(rows.double().numpy(), targets.numpy())
    chances = (rows @ head.head_weights.T + head.head_bias).softmax(-1)
    np.testing.assert_allclose(chances, fitted.predict_proba(rows.double().numpy()), atol=1e-5)


def test_class_means_are_means_of_the_labels_own(bert: Backbone) -> None:
    rows = F.normalize(torch.randn(7, bert.hidden_size, generator=torch.Generator().manual_seed(0)), dim=-1)
    anchors = fit_means(bert, rows, torch.tensor([1, 0, 1, 1, 0, 2, 1]), 3, scale=10.0).anchors
    expected = torch.stack([rows[[1, 4]].mean(0), rows[[0, 2, 3, 6]].mean(0), rows[5]])
    assert_equal_to_rounding(anchors.detach(), F.normalize(expected, dim=-1))


@pytest.mark.parametrize("loss", ["pairs", "supervised_contrastive"])
def test_tuning_brings_a_label_together_and_labels_apart(bert: Backbone, loss: str) -> None:
    prompt = tuned(bert, loss=loss, steps=40, batch_examples=12, learning_rate=0.03)
    losses = prompt.manifest.tuning.train_loss
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert prompt.predict(TRAIN["text"].to_list(), bert) == TRAIN["label"].to_list()


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("loss", ["pairs", "supervised_contrastive"])
def test_an_interrupted_tuning_goes_on_with_the_same_bits(tmp_path: Path, bert: Backbone, loss: str) -> None:
    spec = {"steps": 8, "batch_examples": 8, "checkpoint_every": 2, "validate_every": 2, "loss": loss, "head": "logistic"}
    task = a_task(bert.identity.name, prompt=SMALL, tune=spec)

    def stop(step: Step) -> None:
        if step.number == 6:
            raise Interrupted

    with pytest.raises(Interrupted):
        tune(task, TRAIN, TRAIN[::2], bert, on_step=stop, checkpoints=tmp_path)
    seen: list[int] = []
    resumed = tune(task, TRAIN, TRAIN[::2], bert, on_step=lambda step: seen.append(step.number), checkpoints=tmp_path)
    assert seen == [5, 6, 7, 8]
    assert resumed.digest == tune(task, TRAIN, TRAIN[::2], bert).digest


def test_a_fleet_of_losses_tunes_each_as_alone(bert: Backbone) -> None:
    losses = ["label_set", "pairs", "supervised_contrastive", "pairs"]
    tasks = [
        a_task(
            bert.identity.name,
            prompt=SMALL,
            tune={"steps": 4, "batch_examples": 8, "batch_tokens": 100, "seed": number, "loss": loss, "validate_every": 2},
        )
        for number, loss in enumerate(losses)
    ]
    together = tune_fleet(tasks, [(TRAIN, TRAIN[::2])] * len(tasks), bert)
    for task, found in zip(tasks, together, strict=True):
        assert isinstance(found, TunedPrompt)
        alone, record = tune(task, TRAIN, TRAIN[::2], bert).manifest.tuning, found.manifest.tuning
        assert record.train_loss == pytest.approx(alone.train_loss, rel=1e-3)
        assert [look.loss for look in record.validation] == pytest.approx([look.loss for look in alone.validation], rel=1e-3)


def test_too_little_memory_divides_a_batch_and_changes_nothing(bert: Backbone) -> None:
    class Tight(Contrastive):
        def outputs(self, states: Tensor, examples: Sequence[Encoded]) -> Tensor:
            if len(examples) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return super().outputs(states, examples)

    batch, records = batch_of([0, 1, 0, 2, 2, 0, 1, 1]), []
    for kind in (Contrastive, Tight):
        objective = kind(bert, 3, pairs_loss, head="means", scale=10.0, c=1.0, batch_tokens=64)
        part = Part(DeepPrefix(bert, *random_prefix(bert, 4)), objective, batch, [])
        records += optimise(bert, [Member([part], TuneSpec(steps=3, batch_tokens=128), torch.Generator().manual_seed(0))])
    assert not isinstance(records[0], PromptmillError) and not isinstance(records[1], PromptmillError)
    assert records[1].train_loss == pytest.approx(records[0].train_loss, rel=1e-4)


@pytest.mark.slow
def test_two_processes_compare_the_whole_batch_as_one_does(tmp_path: Path, bert_folder: Path) -> None:
    script = tmp_path / "parallel.py"
    script.write_text(
        textwrap.dedent(
            """
            import json, sys
            import torch
            from helpers import backbone_at
            from test_contrastive import TRAIN, tuned
            from prompt_core.tuning.parallel import process_group

            torch.set_num_threads(1)
            with process_group() as writes:
                prompt = tuned(backbone_at(sys.argv[1]), TRAIN[:9], loss="pairs", validate_every=2)
                record = prompt.manifest.tuning
                if writes:
                    losses = [record.train_loss, [look.loss for look in record.validation]]
                    print(json.dumps([*losses, *(prompt.tensors[name].flatten().tolist() for name in ("keys", "anchors"))]))
            """
        )
    )
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent), *sys.path]), "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.run(
            [sys.executable, *launcher, str(script), str(bert_folder)], capture_output=True, text=True, check=False, env=environment
        )
        for launcher in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"])
    ]
    assert all(run.returncode == 0 for run in runs), "".join(run.stderr for run in runs)
    one, two = (json.loads(run.stdout.splitlines()[-1]) for run in runs)
    assert two[0] == pytest.approx(one[0], rel=1e-4) and two[1] == pytest.approx(one[1], rel=1e-4)
    for alone, shared in zip(one[2:], two[2:], strict=True):
        assert float((torch.tensor(shared) - torch.tensor(alone)).abs().mean()) < 1e-4


def test_a_loss_that_is_not_the_backbones_is_one_line(bert: Backbone, llama: Backbone) -> None:
    with pytest.raises(PromptmillError, match=r"task t: tune.loss: vocabulary is not for tiny-bert, an encoder. It has label_set, pairs"):
        tuned(bert, loss="vocabulary")
    with pytest.raises(PromptmillError, match=r"task t: tune.loss: pairs is not for tiny-llama, a causal model. It has label_set, vocab"):
        tuned(llama, loss="pairs")


def test_examples_that_nothing_can_be_compared_in_are_one_line(bert: Backbone) -> None:
    task = a_task(bert.identity.name, prompt=SMALL, tune={"loss": "pairs"})
    with pytest.raises(PromptmillError, match=r"tune.loss: pairs compares labels, but all training examples have the same"):
        tune(task, TRAIN[:6], None, bert)
    with pytest.raises(PromptmillError, match="pairs compares examples of one label, but no two validation examples have one"):
        tune(task, TRAIN, TRAIN[::6], bert)
