"""Progress in the run log: few lines, the last one always."""

from pipelines.progress import LoggedProgress
from prompt_core.trials import Measured
from prompt_core.tuning import SearchStep, Step


def test_a_contender_is_logged_when_it_is_done_and_at_most_every_few_seconds_before() -> None:
    lines: list[str] = []
    progress = LoggedProgress(lines.append, every_seconds=1000)
    for done in range(1, 11):
        progress.contender("zero_shot", done, 10)
    assert lines == ["zero_shot: 10 of 10 rows, ETA 0 s"]


def test_each_line_has_an_eta() -> None:
    lines: list[str] = []
    progress = LoggedProgress(lines.append, every_seconds=0)
    progress.contender("few_shot", 1, 3)
    assert lines[0].startswith("few_shot: 1 of 3 rows, ETA ")


def test_a_search_is_logged_at_every_rung_with_the_best_so_far() -> None:
    lines: list[str] = []
    progress = LoggedProgress(lines.append, every_seconds=1000)
    best = Measured(steps=20, score=0.4321, accuracy=0.812)
    for step in range(1, 41):
        found = best if step > 20 else None
        progress.search(SearchStep("desk", 1, 3, step, 20 if step <= 20 else 40, 8 if step <= 20 else 4, 32 * step, 4000, found, 90.0))
    assert lines == [
        "search: wave 1 of 3, 8 trials until step 20, 32 of 4000 prompt-steps, ETA 90 s",
        "search: wave 1 of 3, 4 trials until step 40, 672 of 4000 prompt-steps, best 0.4321, accuracy 81.2 %, ETA 90 s",
    ]


def test_a_fleet_is_one_line_with_the_steps_of_all_its_prompts() -> None:
    lines: list[str] = []
    show = LoggedProgress(lines.append, every_seconds=1000).fleet(2)
    for number in range(1, 3):
        for member in range(2):
            show(member, Step(number, 2, 0.5, None, 0.01, 100.0, 1.0))
    assert lines == ["2 prompts: 4 of 4 steps at most, ETA 0 s at most"]


def test_a_fleet_is_not_through_before_all_its_prompts_have_begun() -> None:
    lines: list[str] = []
    show = LoggedProgress(lines.append, every_seconds=1000).fleet(2)
    show(0, Step(1, 1, 0.5, None, 0.01, 100.0, 1.0))
    assert lines == []
    show(1, Step(1, 1, 0.5, None, 0.01, 100.0, 1.0))
    assert lines == ["2 prompts: 2 of 2 steps at most, ETA 0 s at most"]


def test_a_run_of_many_tasks_counts_them_and_one_of_a_single_task_does_not() -> None:
    lines: list[str] = []
    for total in (1, 3):
        progress = LoggedProgress(lines.append, every_seconds=1000)
        for done in range(total + 1):
            progress.task(done, total)
    assert lines == ["3 of 3 tasks, ETA 0 s"]
