"""A real daemon, nobody watching: tick -> run -> gate -> publication -> the consumer's asset; then worse data, and nothing moves."""

import random
from collections.abc import Callable, Iterator

import dagster as dg
import polars as pl
import pytest
from deployment import a_deployment, write_task
from production import Production, production
from servers import wait_for
from webhook import PLANTED, Receiver, webhook

from prompt_core import PromptStore

pytestmark = pytest.mark.production
TASK = "support_intent"  # the one that the consumer uses
LONG = 420  # seconds for what takes about 60 on an idle machine


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with webhook() as server:
        yield server


@pytest.fixture(scope="module")
def site(receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Production]:
    settings = a_deployment(tmp_path_factory.mktemp("daemon") / "d")
    with production(settings, {}, PROMPTMILL_AUTOMATION="on", PROMPTMILL_ALERT_URL=receiver.url) as site:
        write_task(settings, TASK, schedule="* * * * *")
        site.start_all("promptmill", "consumer", "webserver", "daemon")
        yield site


def runs_of(site: Production, job: str, found: Callable[[dg.DagsterRun], bool]) -> list[dg.DagsterRun]:
    with site.instance() as instance:
        return [run for run in instance.get_runs(dg.RunsFilter(job_name=job)) if found(run)]


def test_a_tick_of_the_schedule_ends_in_a_published_prompt_and_the_consumer_uses_it(site: Production) -> None:
    by_schedule = wait_for(
        lambda: runs_of(site, "retune", lambda run: run.is_success and "dagster/schedule_name" in run.tags),
        LONG,
        f"a tick's run ({site.folder})",
    )
    assert {run.tags["dagster/partition"] for run in by_schedule} == {TASK}
    assert PromptStore(site.settings.store_url).list()[0].aliases == {"production": 1}
    routed = site.folder / "consumer" / "routed_messages.parquet"
    wait_for(routed.exists, LONG, f"the consumer's asset ({site.folder})")
    assert set(pl.read_parquet(routed)["prediction"]) <= {"late", "damaged"}


def test_worse_data_fail_the_gate_nothing_is_published_the_alias_stays_and_somebody_is_told(site: Production, receiver: Receiver) -> None:
    wait_for(PromptStore(site.settings.store_url).list, LONG, f"something in production ({site.folder})")
    data = site.settings.tasks_dir / "messages.csv"
    rows = pl.read_csv(data)
    labels = rows["label"].to_list()
    random.Random(0).shuffle(labels)
    rows.with_columns(pl.Series("label", labels)).write_csv(data)

    message = wait_for(lambda: [told for told in receiver.told if told["kind"] == "gate_failed"], LONG, f"the alert ({site.folder})")[0]
    assert message["task"] == TASK and "production stays as it is" in message["text"]
    with site.instance() as instance:
        run = instance.get_run_by_id(message["run"])
        assert run
        wait_for(lambda: instance.get_run_by_id(run.run_id).is_finished, 60, "the end of the run")  # type: ignore[union-attr]
        assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.FAILURE  # type: ignore[union-attr]
    (published,) = PromptStore(site.settings.store_url).list()
    assert published.versions == (1,) and published.aliases == {"production": 1}


def test_the_planted_key_is_in_no_event_snapshot_or_file_of_dagster(site: Production) -> None:
    contents = [path.read_bytes() for path in site.home.rglob("*") if path.is_file()]
    assert any(TASK.encode() in content for content in contents)  # the search finds what is there
    assert not any(PLANTED.encode() in content for content in contents)
