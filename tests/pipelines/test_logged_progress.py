"""Progress in the run log: few lines, the last one always."""

from pipelines.progress import LoggedProgress


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
