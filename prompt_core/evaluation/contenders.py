"""Contenders as JSON, so that what one run measured another can use."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from prompt_core.evaluation.gate import Contender


def contenders_json(contenders: Sequence[Contender]) -> bytes:
    """Names, kinds, answers and scores; the same bytes for the same content."""
    plain = [
        {
            "name": contender.name,
            "kind": contender.kind,
            "predictions": list(contender.predictions),
            "scores": {metric: scores.tolist() for metric, scores in contender.scores.items()},
        }
        for contender in contenders
    ]
    return json.dumps(plain, ensure_ascii=False, indent=1).encode()


def read_contenders(content: bytes) -> list[Contender]:
    """What `contenders_json` gave.

    Raises:
        ValueError: it is something else.
    """
    found: list[dict[str, Any]] = json.loads(content)
    try:
        return [
            Contender(row["name"], row["kind"], row["predictions"], {metric: np.array(scores) for metric, scores in row["scores"].items()})
            for row in found
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no contenders: {error!r}") from None
