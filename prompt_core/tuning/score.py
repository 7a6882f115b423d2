"""How good settings are: one number over the held-out examples of all folds that objectives and losses do not change."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from prompt_core.backbone import Backbone
from prompt_core.data.packing import pack
from prompt_core.encoded import Encoded
from prompt_core.prompts import PromptState, Tree, hidden_states
from prompt_core.tuning.objective import Classification, Objective

Fold = tuple[PromptState, Objective, Sequence[Encoded]]


@torch.no_grad()
def held_out_score(backbone: Backbone, folds: Sequence[Fold], batch_tokens: int) -> tuple[float, float | None]:
    """Score and accuracy over all folds; less is better.

    A classifier: log loss at the one temperature that fits best, since a loss that ends with large scores would else
    look worse than one that ends with small ones, whatever their order. Any other objective: its own loss without
    smoothing, per unit of its weight, which is per target token where it generates.

    Args:
        folds: of each fold the prompt, the objective, settled, and the examples held out.
        batch_tokens: of a pass.

    Returns:
        The score, NaN or infinite where the model's numbers are; the share of right labels, None where there are none.
    """
    classifiers = [objective for _, objective, _ in folds if isinstance(objective, Classification)]
    if len(classifiers) < len(folds):
        return _loss_per_weight(backbone, folds, batch_tokens), None
    scores, targets = [], []
    for (prompt, _, examples), classifier in zip(folds, classifiers, strict=True):
        classifier.eval()
        for batch in pack(examples, classifier.scoring_tokens, batch_tokens):
            scores.append(classifier.scores_behind(prompt, batch).double().cpu())
            targets += [example.target[0] for example in batch]
    pooled, wanted = torch.cat(scores), torch.tensor(targets)
    accuracy = float((pooled.argmax(-1) == wanted).double().mean())
    return log_loss(pooled, wanted), accuracy


def log_loss(scores: Tensor, targets: Tensor) -> float:
    """Mean negative log-likelihood of the targets at the best temperature (Guo et al. 2017, arXiv:1706.04599).

    The temperature is fitted as if one example more had every label equally: where all labels are right no temperature
    would be low enough, and settings that differ in how clearly they are right would all come to 0.

    Args:
        scores: float64 [examples, labels].
        targets: int64 [examples].
    """
    spread = float(scores.std())
    if not spread > 0:  # all equal, or not finite
        return float(F.cross_entropy(scores, targets))
    scores = scores / spread
    blur = 1 / (len(scores) + 1)

    def fitted(log_sharpness: float, smoothing: float = blur) -> float:
        return float(F.cross_entropy(scores * 10**log_sharpness, targets, label_smoothing=smoothing))

    best = minimize_scalar(fitted, bounds=(-3, 4), method="bounded", options={"xatol": 1e-6})
    return fitted(float(best.x), smoothing=0.0)


def _loss_per_weight(backbone: Backbone, folds: Sequence[Fold], batch_tokens: int) -> float:
    total = weight = 0.0
    for prompt, objective, examples in folds:
        objective.eval()
        for batch in pack(examples, objective.tokens, batch_tokens):
            (states,) = hidden_states(backbone, [Tree(prompt, *objective.segments(batch))])
            total += float(objective.loss(states, batch))
            weight += sum(map(objective.weight, batch))
    return total / weight
