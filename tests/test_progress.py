"""Progress bars: drawn on a terminal or when asked for, silent elsewhere."""

from __future__ import annotations

import pytest

from prompt_core.progress import Progress
from prompt_core.trials import Measured
from prompt_core.tuning import SearchStep, Step


def work(progress: Progress) -> None:
    with progress:
        progress.step(Step(1, 2, 0.5, None, 0.01, 100.0, 1.0))
        progress.step(Step(2, 2, 0.25, 0.75, 0.01, 100.0, 0.0))
        progress.contender("tuned", 3, 3)
        progress.rows(4, 4)


def test_one_bar_follows_another(capsys: pytest.CaptureFixture[str]) -> None:
    work(Progress("desk", always=True))
    shown = capsys.readouterr()
    assert shown.out == ""
    for part in ("desk: tuning: 100%", "2/2", "loss=0.250", "val=0.750", "desk: tuned: 100%", "desk: predicting: 100%"):
        assert part in shown.err


def test_one_bar_adds_up_what_is_tuned_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("2 tasks", always=True) as progress:
        show = progress.fleet(2)
        for number, step in ((0, 1), (1, 1), (0, 2), (1, 2), (1, 3)):
            show(number, Step(step, 2 + number, 0.5, None, 0.01, 100.0, 1.0))
    assert "2 tasks: tuning: 100%" in (shown := capsys.readouterr().err) and "5/5" in shown


def test_a_tuning_that_begins_again_with_more_steps_has_its_own_total(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("desk", always=True) as progress:
        for number, steps in ((1, 2), (2, 2), (1, 4), (4, 4)):
            progress.step(Step(number, steps, 0.5, None, 0.01, 100.0, 1.0))
    assert "desk: tuning: 100%" in (shown := capsys.readouterr().err) and "4/4" in shown


def test_a_search_has_a_bar_with_its_wave_and_the_best_so_far(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("desk", always=True) as progress:
        progress.search(SearchStep("desk", 1, 3, 2, 20, 8, 64, 640, None, 9.0))
        progress.search(SearchStep("desk", 2, 3, 2, 20, 8, 500, 600, Measured(steps=20, score=0.4321, accuracy=0.812), 9.0))
    shown = capsys.readouterr().err
    assert "desk: search:" in shown and "500/600" in shown
    assert "wave=2/3" in shown and "best=0.4321, accuracy 81.2 %" in shown


def test_nothing_is_drawn_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    work(Progress("desk"))
    assert capsys.readouterr() == ("", "")
