"""Heads that are fitted on the embeddings of a tuned encoder prompt when its tuning is through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prompt_core.backbone import Backbone
from prompt_core.encoded import Encoded
from prompt_core.tuning.objective import LabelAnchors, PooledClassification

Head = Literal["means", "logistic"]


class LinearHead(PooledClassification):
    """Classification with an encoder: a linear function of the input's embedding for each label.

    Args:
        weights: [labels, H], on embeddings of unit length.
        bias: [labels].
    """

    def __init__(self, backbone: Backbone, weights: Tensor, bias: Tensor) -> None:
        super().__init__(backbone, smoothing=0.0)
        parts = (part.detach().float().contiguous() for part in (weights, bias))
        self.head_weights, self.head_bias = (nn.Parameter(part, requires_grad=False) for part in parts)

    def scores(self, states: Tensor, examples: Sequence[Encoded]) -> Tensor:
        return self.outputs(states, examples) @ self.head_weights.T + self.head_bias


def fit_means(backbone: Backbone, embeddings: Tensor, targets: Tensor, labels: int, scale: float) -> LabelAnchors:
    """The mean embedding of each label as its anchor: the nearest one by the cosine is the prediction.

    Args:
        embeddings: of unit length, float32 [n, H].
        targets: label of each, int64 [n].
        labels: how many there are; each has an embedding.
        scale: factor on the cosine.
    """
    members = F.one_hot(targets, labels).to(embeddings.dtype)
    return LabelAnchors(backbone, members.T @ embeddings / members.sum(0)[:, None], scale)


def fit_logistic(backbone: Backbone, embeddings: Tensor, targets: Tensor, labels: int, c: float) -> LinearHead:
    """Multinomial logistic regression (scikit-learn, lbfgs) on the embeddings.

    Args:
        embeddings, targets, labels: as for `fit_means`; at least two labels.
        c: scikit-learn's C, the inverse strength of the L2 penalty.
    """
    from sklearn.linear_model import LogisticRegression  # slow to load

    fitted = LogisticRegression(C=c, max_iter=1000).fit(embeddings.double().cpu().numpy(), targets.cpu().numpy())
    weights, bias = torch.from_numpy(fitted.coef_), torch.from_numpy(fitted.intercept_)
    if labels == 2:  # scikit-learn has one row for two labels, the logit of the second one
        weights, bias = (torch.cat([-part / 2, part / 2]) for part in (weights, bias))
    return LinearHead(backbone, weights.to(embeddings.device), bias.to(embeddings.device))
