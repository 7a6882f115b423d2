"""PostgreSQL, two code servers, webserver and daemon: retunes at once, and each of them killed with `kill -9` while retuning."""

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import dagster as dg
import psutil
import pytest
import requests
from deployment import a_deployment, write_task
from production import Production, production
from servers import PostgreSQL, needs, postgresql, wait_for

from prompt_core import PromptStore

pytestmark = [pytest.mark.production, needs("postgres", "postgresql")]
TASKS = ("a", "b", "c", "d")
PROCESSES = ("promptmill", "consumer", "webserver", "daemon")
LONGEST_RUN = 90  # seconds that a run may stay started where nobody is left to say that it has died
LONG = 900  # seconds for what takes about 90 on two idle cores


@pytest.fixture(scope="module")
def database() -> Iterator[PostgreSQL]:
    with postgresql() as server:
        yield server


@pytest.fixture(scope="module")
def site(database: PostgreSQL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Production]:
    settings = a_deployment(tmp_path_factory.mktemp("production") / "d")
    for task in TASKS:
        write_task(settings, task, schedule=None)
    with production(settings, database.environment) as site:
        site.start_all(*PROCESSES)
        site.register_tasks()
        yield site


def live_digests(site: Production) -> dict[str, str]:
    """What is live, by task. Every version in the store is whole, or this fails."""
    store = PromptStore(site.settings.store_url)
    assert store.verify().problems == ()
    return {summary.name: store.record(summary.name, summary.aliases["production"]).digest for summary in store.list()}


def tuned_digest(site: Production, run: str) -> str:
    """The digest of the prompt that a run has tuned, or one that it was retried from."""
    with site.instance() as instance:
        while True:
            for entry in instance.all_logs(run, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION):
                if entry.dagster_event and entry.step_key == "tuned_prompt":
                    return str(entry.dagster_event.step_materialization_data.materialization.tags["dagster/data_version"])
            found = instance.get_run_by_id(run)
            assert found and found.parent_run_id, f"run {run} has tuned nothing"
            run = found.parent_run_id


def test_four_retunes_at_once_take_turns_in_the_pool_and_all_go_live(site: Production) -> None:
    runs = [site.retune(task) for task in TASKS]
    assert {run.status for run in site.wait_for_runs(LONG)} == {dg.DagsterRunStatus.SUCCESS}
    assert live_digests(site) == {task: tuned_digest(site, run) for task, run in zip(TASKS, runs, strict=True)}
    with site.instance() as instance:
        stats = [instance.get_run_stats(run) for run in runs]
    spans = sorted((run.start_time, run.end_time) for run in stats)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans)), spans


def kill_run_worker(site: Production, _: PostgreSQL, worker: int) -> None:
    psutil.Process(worker).kill()


def kill_code_server(site: Production, _: PostgreSQL, worker: int) -> None:
    """The proxy and the server behind it; the run goes on as an orphan."""
    site.running["promptmill"].kill(spare=lambda process: process.pid == worker)
    site.start("promptmill")


def kill_machine_of_code_server(site: Production, _: PostgreSQL, worker: int) -> None:
    """Everything that the code server has started, at once: nobody is left to say that the run has died."""
    site.running["promptmill"].kill()
    site.start("promptmill")


def kill_daemon(site: Production, _: PostgreSQL, worker: int) -> None:
    site.running["daemon"].kill()
    site.start("daemon")


def kill_database(_: Production, database: PostgreSQL, worker: int) -> None:
    database.kill()
    database.start()


KILLS = [kill_run_worker, kill_code_server, kill_machine_of_code_server, kill_daemon, kill_database]


@pytest.mark.parametrize("kill", KILLS, ids=lambda kill: kill.__name__)
def test_after_a_kill_every_task_ends_published_or_cleanly_failed(
    kill: Callable[[Production, PostgreSQL, int], None], site: Production, database: PostgreSQL
) -> None:
    seed = KILLS.index(kill) + 1
    tune = {
        "steps": 40,
        "batch_examples": 8,
        "learning_rate": 0.05,
        "validate_every": 4,
        "checkpoint_every": 4,
        "patience": 100,
        "seed": seed,
    }
    for task in ("a", "b"):
        write_task(site.settings, task, schedule=None, tune=tune)
    wait_for(site.is_loaded, 60, "the code locations")
    before = live_digests(site) if (site.folder / "store").exists() else {}
    limit = {"dagster/max_runtime": str(LONGEST_RUN)} if kill is kill_machine_of_code_server else {}
    first, second = site.retune("a", **limit), site.retune("b", **limit)
    worker = site.wait_for_step(first, "tuned_prompt")
    kill(site, database, worker)
    runs = site.wait_for_runs(LONG)

    live = live_digests(site)
    for task, run in (("a", first), ("b", second)):
        attempts = [found for found in runs if found.run_id == run or found.root_run_id == run]
        assert all(found.is_finished for found in attempts)
        if attempts[0].is_success:  # the newest
            assert live[task] == tuned_digest(site, attempts[0].run_id)
        else:
            assert live.get(task) == before.get(task)
        for failed in (found for found in attempts if not found.is_success):
            assert re.search(r"terminated|crash|maximum runtime|unexpected|step", reason_of(site, failed.run_id), re.IGNORECASE)


def reason_of(site: Production, run: str) -> str:
    """Every line that Dagster has on the end of a run."""
    with site.instance() as instance:
        ends = instance.all_logs(
            run, of_type={dg.DagsterEventType.RUN_FAILURE, dg.DagsterEventType.RUN_CANCELED, dg.DagsterEventType.ENGINE_EVENT}
        )
    return "\n".join(entry.message for entry in ends)


def test_the_counters_have_counted_all_that(site: Production) -> None:
    site.start("metrics")
    url = f"http://127.0.0.1:{site.ports['METRICS']}/metrics"
    text = wait_for(lambda: requests.get(url, timeout=5).text, 30, "the counters")
    with site.instance() as instance:
        succeeded = len(instance.get_run_records(dg.RunsFilter(job_name="retune", statuses=[dg.DagsterRunStatus.SUCCESS])))
    assert f'promptmill_runs_total{{job="retune",status="success"}} {succeeded}.0' in text
    assert 'promptmill_gate_verdicts_total{task="a",verdict="passed"}' in text
    assert 'promptmill_live_version{task="a"}' in text


def test_the_lines_of_a_run_are_json_with_run_task_and_version(site: Production) -> None:
    lines = [line for line in (site.folder / "promptmill.log").read_text(errors="replace").splitlines() if line.startswith("{")]
    assert any('"task": "a"' in line and '"event": "ASSET_MATERIALIZATION"' in line and '"digest"' in line for line in lines)


def test_nothing_secret_is_in_the_database(site: Production, tmp_path: Path) -> None:
    """The password stands in no event, tag or snapshot; the variables are named, their values are not kept."""
    with site.instance() as instance:
        for record in instance.get_run_records(limit=20):
            assert "unused" not in str(record.dagster_run.tags) + str(record.dagster_run.run_config)
