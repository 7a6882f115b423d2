"""Contenders as JSON, so that what one run measured another can use."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from prompt_core.evaluation.contender import Contender


def contenders_json(contenders: Sequence[Contender], with_seconds: bool = True) -> bytes:
    """All that is known of them, to the bit.

    Args:
        with_seconds: whether the time that their answers took is part of it: the rest is the same for the same inputs.
    """
    plain = [
        {
            "name": each.name,
            "kind": each.kind,
            "predictions": list(each.predictions),
            "scores": {metric: scores.tolist() for metric, scores in each.scores.items()},
            "probabilities": None if each.probabilities is None else each.probabilities.tolist(),
            "labels": list(each.labels),
            "seconds": each.seconds if with_seconds else None,
        }
        for each in contenders
    ]
    return json.dumps(plain, ensure_ascii=False, indent=1).encode()


def read_contenders(content: bytes) -> list[Contender]:
    """What `contenders_json` gave.

    Raises:
        ValueError: it is something else.
    """
    try:
        return [_contender(**found) for found in json.loads(content)]
    except (TypeError, AttributeError) as error:
        raise ValueError(f"no contenders: {error!r}") from None


def _contender(scores: dict[Any, Any], probabilities: list[list[float]] | None, **rest: Any) -> Contender:
    return Contender(
        scores={metric: np.array(points) for metric, points in scores.items()},
        probabilities=None if probabilities is None else np.array(probabilities),
        **rest,
    )
