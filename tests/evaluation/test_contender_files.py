"""Contenders that one run measured and another uses: the same to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from prompt_core.evaluation.contender import Contender
from prompt_core.evaluation.contender_files import contenders_json, read_contenders


def test_contenders_come_back_to_the_bit() -> None:
    random = np.random.default_rng(0)
    sure = Contender("probe", "rival", ["a", "b"], probabilities=random.random((2, 2)), labels=["a", "b"], seconds=0.1)
    scored = Contender("zero_shot", "untuned", ["ä", ""], scores={"agreement": random.random(2)})
    found = read_contenders(contenders_json([sure, scored]))
    assert [(each.name, each.kind, each.predictions, each.labels, each.seconds) for each in found] == [
        ("probe", "rival", ["a", "b"], ["a", "b"], 0.1),
        ("zero_shot", "untuned", ["ä", ""], [], None),
    ]
    assert np.array_equal(found[0].probabilities, sure.probabilities)
    assert np.array_equal(found[1].scores["agreement"], scored.scores["agreement"])


def test_the_clock_can_be_left_out() -> None:
    slow, fast = (Contender("a", "untuned", ["x"], seconds=seconds) for seconds in (9.0, 0.1))
    assert contenders_json([slow]) != contenders_json([fast])
    assert contenders_json([slow], with_seconds=False) == contenders_json([fast], with_seconds=False)


@pytest.mark.parametrize("content", [b"", b"{}x", b"[1]", b'[{"name": "a"}]'])
def test_what_is_no_contender_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError):
        read_contenders(content)
