"""Many tasks in one run: each lands or fails alone, unchanged ones are not tuned again, and retuning starts from what is live."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
from dagster._core.definitions.automation_tick_evaluation_context import build_run_requests_with_backfill_policies
from dagster._core.definitions.events import AssetKeyPartitionKey
from dagster._core.definitions.partitions.context import partition_loading_context
from deployment import THINGS, a_deployment, failure_of, run_fleet, run_retune, write_task

import pipelines.failures
from pipelines.automation import runs_for
from pipelines.definitions import build_defs
from pipelines.ledger import Ledger
from pipelines.partitions import find_task_files, register
from pipelines.settings import Settings
from prompt_core import PromptStore, TunedPrompt

GOOD = ("late_a", "late_b", "zoo")
# The last rejects what it tunes; each of the others breaks at another step.
BROKEN = {
    "broken_field": {"objectiv": "classify"},
    "broken_column": {"data": {"path": "messages.csv", "target": "lable"}},
    "broken_file": {"data": {"path": "nowhere.csv", "target": "label"}},
    "broken_split": {"data": {"path": "messages.csv", "target": "label", "test": 0.9, "validation": 0.5}},
    "broken_start": {"prompt": {"kind": "deep", "start": "root"}},
    "broken_kind": {"prompt": {"kind": "soft", "tokens": 2}},
    "broken_length": {"prompt": {"kind": "deep", "tokens": 2}, "template": "{{ text }} {{ txet }}"},
    "broken_model": {"backbone": "minilmm"},
    "broken_cron": {"schedule": "every monday"},
    "rejected": {"gate": {"min_gain": 101}},
}
REASONS = {
    "broken_field": 'unknown field. Did you mean "objective"?',
    "broken_column": 'column "lable" is not in',
    "broken_file": "nowhere.csv",
    "broken_split": "which leaves nothing to train on",
    "broken_start": "prompt.start: root, but the template starts with a field",
    "broken_kind": "is an encoder, whose soft prompt would be computed anew for every example",
    "broken_length": 'column "txet" is not in',
    "broken_model": 'Did you mean "minilm"?',
    "broken_cron": '"every monday" is not a cron line',
    "rejected": "the gate did not pass: gain over label_names is too small",
}
ASSETS = ("examples", "splits", "baselines", "tuned_prompt", "evaluation", "published_prompt", "report")


@dataclass
class Fleet:
    """A deployment of good and broken tasks after one run over all of them."""

    settings: Settings
    instance: dg.DagsterInstance
    result: dg.ExecuteInProcessResult

    def materialized(self, asset: str) -> set[str]:
        return self.instance.get_materialized_partitions(dg.AssetKey(asset))

    def metadata(self, asset: str, key: str) -> dict[str, Any]:
        wanted = dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[key])
        (record,) = self.instance.fetch_materializations(wanted, limit=1).records
        return {name: entry.value for name, entry in record.asset_materialization.metadata.items()}

    def tags(self, asset: str, key: str) -> dict[str, str]:
        wanted = dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[key])
        (record,) = self.instance.fetch_materializations(wanted, limit=1).records
        return dict(record.asset_materialization.tags)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    settings = a_deployment(tmp_path_factory.mktemp("deployment") / "d")
    for key in GOOD:
        write_task(settings, key, tune={"steps": 8, "batch_examples": 8, "learning_rate": 0.05, "validate_every": 4, "seed": len(key)})
    for key, changes in BROKEN.items():
        write_task(settings, key, **changes)
    with dg.DagsterInstance.ephemeral() as instance:
        yield Fleet(settings, instance, run_fleet(settings, instance))


def test_good_tasks_are_published_in_the_run_in_which_others_break(fleet: Fleet) -> None:
    assert not fleet.result.success
    assert fleet.materialized("published_prompt") == set(GOOD)
    store = PromptStore(fleet.settings.store_url)
    assert [(found.name, found.aliases) for found in store.list()] == [(key, {"production": 1}) for key in sorted(GOOD)]


def test_each_broken_task_fails_at_its_own_step_with_its_own_reason(fleet: Fleet) -> None:
    reason = failure_of(fleet.result)
    assert reason.startswith("10 of 13 tasks failed, the others are done.")
    lines = dict(line.split(": ", 1) for line in reason.splitlines()[1:])
    assert lines.keys() == REASONS.keys()
    for key, expected in REASONS.items():
        assert expected in lines[key], (key, lines[key])
    assert fleet.materialized("examples") == {*GOOD, "broken_split", "broken_start", "broken_kind", "broken_model", "rejected"}
    assert fleet.materialized("tuned_prompt") == fleet.materialized("evaluation") == {*GOOD, "rejected"}


def test_only_the_last_steps_are_red(fleet: Fleet) -> None:
    assert {event.step_key for event in fleet.result.all_events if event.is_step_failure} == {"published_prompt", "report"}
    assert fleet.materialized("report") == {*GOOD, "rejected"}


def test_each_task_has_metadata_data_version_and_provenance_of_its_own(fleet: Fleet) -> None:
    for key in GOOD:
        prompt = PromptStore(fleet.settings.store_url).get(key)
        tags = fleet.tags("tuned_prompt", key)
        assert tags["dagster/data_version"] == prompt.digest == fleet.metadata("tuned_prompt", key)["digest"]
        assert tags["dagster/input_data_version/splits"] == fleet.tags("splits", key)["dagster/data_version"]
        assert tags["dagster/code_version"] == "3"
    assert len({fleet.tags("tuned_prompt", key)["dagster/data_version"] for key in GOOD}) == len(GOOD)


def test_each_task_says_whether_its_gain_is_shown_among_all_of_the_run(fleet: Fleet) -> None:
    said = {key: fleet.metadata("evaluation", key)["among the tasks of this run"] for key in (*GOOD, "rejected")}
    assert all(sentence.startswith("among the 4 tasks of this run: p ") for sentence in said.values()), said


def test_checks_are_evaluated_for_each_task(fleet: Fleet) -> None:
    found = {(check.check_name, check.partition): check.passed for check in fleet.result.get_asset_check_evaluations()}
    assert {key for name, key in found if name == "gate"} == {*GOOD, "rejected"}
    assert all(passed == (key != "rejected") for (name, key), passed in found.items() if name == "gate")
    assert all(found["round_trip", key] for key in GOOD)


def test_a_fleet_tunes_what_a_run_of_its_own_tunes(fleet: Fleet, tmp_path: Path) -> None:
    settings = fleet.settings.model_copy(update={"store_url": str(tmp_path / "store"), "storage_dir": tmp_path / "assets"})
    with dg.DagsterInstance.ephemeral() as instance:
        alone = run_retune(settings, instance, "zoo").output_for_node("tuned_prompt")
    together = PromptStore(fleet.settings.store_url).get("zoo")
    assert alone.manifest.tuning.train_loss == pytest.approx(together.manifest.tuning.train_loss, rel=1e-4)


@pytest.mark.slow
def test_the_same_fleet_from_an_empty_home_gives_the_same_digests(fleet: Fleet, tmp_path: Path) -> None:
    settings = fleet.settings.model_copy(update={"store_url": str(tmp_path / "store"), "storage_dir": tmp_path / "assets"})
    with dg.DagsterInstance.ephemeral() as instance:
        run_fleet(settings, instance)
    first, second = (PromptStore(each.store_url) for each in (fleet.settings, settings))
    assert {key: first.record(key, 1).digest for key in GOOD} == {key: second.record(key, 1).digest for key in GOOD}


def test_a_rerun_of_unchanged_tasks_tunes_nothing_and_gives_the_same_data_versions(fleet: Fleet) -> None:
    versions = {(asset, key): fleet.tags(asset, key)["dagster/data_version"] for asset in ASSETS for key in GOOD}
    again = Fleet(fleet.settings, fleet.instance, run_fleet(fleet.settings, fleet.instance))
    assert {(asset, key): again.tags(asset, key)["dagster/data_version"] for asset in ASSETS for key in GOOD} == versions
    for key in GOOD:
        assert str(again.metadata("tuned_prompt", key)["tuning"]).startswith("taken again")
        assert again.metadata("tuned_prompt", key)["seconds"] == 0
        assert str(again.metadata("baselines", key)["measured"]).startswith("taken again")


def test_without_its_storage_a_deployment_takes_the_live_prompt_of_the_same_inputs(fleet: Fleet, tmp_path: Path) -> None:
    settings = fleet.settings.model_copy(update={"storage_dir": tmp_path / "assets"})
    with dg.DagsterInstance.ephemeral() as instance:
        result = run_retune(settings, instance, "zoo")
    assert result.asset_materializations_for_node("tuned_prompt")[0].metadata["tuning"].value.startswith("taken again")
    assert result.output_for_node("tuned_prompt").digest == PromptStore(settings.store_url).record("zoo", 1).digest


def test_new_data_is_tuned_from_the_live_prompt_too_and_the_better_start_goes_on(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path / "d")
    write_task(settings, "t")
    with dg.DagsterInstance.ephemeral() as instance:
        first: TunedPrompt = run_retune(settings, instance, "t").output_for_node("tuned_prompt")
        more = pl.DataFrame([(f"my {thing} is late", "late") for thing in THINGS], schema=["text", "label"], orient="row")
        data = settings.tasks_dir / "messages.csv"
        pl.concat([pl.read_csv(data), more]).write_csv(data)
        result = run_retune(settings, instance, "t")
    second: TunedPrompt = result.output_for_node("tuned_prompt")
    metadata = {name: entry.value for name, entry in result.asset_materializations_for_node("tuned_prompt")[0].metadata.items()}
    cold, warm = (metadata[f"validation loss, {start} start"] for start in ("cold", "warm"))
    assert warm < cold and metadata["start"] == "warm"  # eight more steps from where eight steps led
    assert second.manifest.started_from == metadata["started from"] == first.digest
    assert second.digest != first.digest


def test_the_ledger_forgets_a_task_that_a_second_attempt_could_make(tmp_path: Path) -> None:
    ledger, run = Ledger(root=str(tmp_path)), dg.DagsterRun(job_name="retune", run_id="r")
    again = dg.DagsterRun(job_name="retune", run_id="s", root_run_id="r", parent_run_id="r")
    ledger.note(run, "splits", {"a/b": "no rows", "..": "no label"})
    assert ledger.failed(again, "splits") == {"a/b": "no rows", "..": "no label"}
    ledger.note(again, "splits", {"..": "no label"})
    assert ledger.failed(run, "splits") == {"..": "no label"}
    assert ledger.failed(run, "examples") == {}


def test_a_broken_file_with_a_long_name_in_another_script_fails_alone(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path / "d")
    write_task(settings, "good")
    (settings.tasks_dir / f"{'я' * 120}.yaml").write_text("objectiv: classify")
    with dg.DagsterInstance.ephemeral() as instance:
        result = examples_and_splits(settings, instance)
        assert failure_of(result).startswith("1 of 2 tasks failed, the others are done.\n")
        assert instance.get_materialized_partitions(dg.AssetKey("splits")) == {"good"}


def test_a_check_that_ends_in_an_error_for_one_task_is_made_for_the_others(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path / "d")
    for key in "abc":
        write_task(settings, key)
    with dg.DagsterInstance.ephemeral() as instance:
        assert examples_and_splits(settings, instance).success
        write_task(settings, "b", data={"path": "messages.csv", "target": "elsewhere"})  # which the splits do not have
        (request,) = runs_for("abc", "abc", "test")
        check = dg.AssetCheckKey(dg.AssetKey("splits"), "class_balance")
        job = build_defs(settings).resolve_implicit_global_asset_job_def().get_subset(asset_check_selection={check})
        assert job.execute_in_process(instance=instance, tags=request.tags, raise_on_error=False).success
        results = [
            record.event.dagster_event.event_specific_data
            for record in instance.event_log_storage.get_asset_check_execution_history(check, limit=3)
        ]
    assert {found.partition: found.passed for found in results} == {"a": True, "b": False, "c": True}


def test_a_run_of_some_assets_is_red_at_the_last_of_them(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path / "d")
    for key, changes in (("a", {}), ("b", {"data": {"path": "nowhere.csv", "target": "label"}}), ("c", {})):
        write_task(settings, key, **changes)
    job = build_defs(settings).resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.ephemeral() as instance:
        keys = register(instance, find_task_files(settings.tasks_dir))
        (request,) = runs_for(keys, keys, "test")
        selection = [dg.AssetKey("examples"), dg.AssetKey("splits")]
        result = job.execute_in_process(instance=instance, tags=request.tags, asset_selection=selection, raise_on_error=False)
        assert instance.get_materialized_partitions(dg.AssetKey("splits")) == {"a", "c"}
    assert {event.step_key for event in result.all_events if event.is_step_failure} == {"splits"}
    assert failure_of(result).startswith("1 of 3 tasks failed, the others are done.\nb: ")


def test_a_backfill_of_all_assets_is_one_run_with_their_checks(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path / "d")
    for key in "abc":
        write_task(settings, key)
    defs = build_defs(settings)
    graph = defs.resolve_asset_graph()
    with dg.DagsterInstance.ephemeral() as instance, partition_loading_context(dynamic_partitions_store=instance):
        keys = register(instance, find_task_files(settings.tasks_dir))
        everything = [AssetKeyPartitionKey(asset, key) for asset in graph.materializable_asset_keys for key in keys]
        (request,) = build_run_requests_with_backfill_policies(everything, graph, instance)
    assert request.tags == runs_for(keys, keys, "")[0].tags
    assert set(request.asset_selection or ()) == graph.materializable_asset_keys
    assert set(request.asset_check_keys or ()) == set(graph.asset_check_keys)


def examples_and_splits(settings: Settings, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    """The first two assets of all tasks in one run, with their checks."""
    keys = register(instance, find_task_files(settings.tasks_dir))
    (request,) = runs_for(keys, keys, "test")
    job, selection = build_defs(settings).resolve_job_def("retune"), [dg.AssetKey("examples"), dg.AssetKey("splits")]
    one = {"partition_key": request.partition_key} if len(keys) == 1 else {}
    return job.execute_in_process(instance=instance, tags=request.tags, asset_selection=selection, raise_on_error=False, **one)


def write_task_on_far_data(settings: Settings, key: str) -> None:
    """A task over other rows, in a file of its own."""
    write_task(settings, key, data={"path": "far.csv", "target": "label"})
    pl.read_csv(settings.tasks_dir / "messages.csv").slice(1).write_csv(settings.tasks_dir / "far.csv")


def break_network(monkeypatch: pytest.MonkeyPatch, read: str, times: int, file: str = "") -> None:
    """Let a function of polars fail so many times for a file, as it does where a bucket cannot be reached; and nobody waits."""
    original, left = getattr(pl, read), iter(range(times))

    def fail(path: Any, **options: Any) -> Any:
        if file in str(path) and next(left, None) is not None:
            raise ConnectionResetError("object-store error: reset by peer")
        return original(path, **options)

    monkeypatch.setattr(pl, read, fail)
    monkeypatch.setattr(pipelines.failures, "_PAUSE", 0)


@pytest.mark.parametrize("read", ["scan_csv", "read_parquet"])  # of the data; of a stored value, which a check loads first
def test_a_fault_of_the_network_is_tried_again_and_costs_no_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: str) -> None:
    settings = a_deployment(tmp_path / "d")
    write_task(settings, "a")
    write_task_on_far_data(settings, "b")
    break_network(monkeypatch, read, times=1)
    with dg.DagsterInstance.ephemeral() as instance:
        result = examples_and_splits(settings, instance)
        assert instance.get_materialized_partitions(dg.AssetKey("splits")) == {"a", "b"}
    assert result.success and all(check.passed for check in result.get_asset_check_evaluations())
    assert sum(event.is_step_up_for_retry for event in result.all_events) == 1


@pytest.mark.parametrize("keys", ["b", "abc"])
def test_a_fault_that_lasts_is_one_line_and_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: str) -> None:
    settings = a_deployment(tmp_path / "d")
    for key in keys:
        write_task(settings, key)
    write_task_on_far_data(settings, "b")
    break_network(monkeypatch, "scan_csv", times=99, file="far")
    with dg.DagsterInstance.ephemeral() as instance:
        result = examples_and_splits(settings, instance)
        assert instance.get_materialized_partitions(dg.AssetKey("splits")) == set(keys) - {"b"}
    assert sum(event.is_step_up_for_retry for event in result.all_events) == 2
    line = f'task b: data.path: "{settings.tasks_dir}/far.csv" cannot be read (object-store error: reset by peer). Check'
    lines = failure_of(result).splitlines()
    assert lines[-1].removeprefix("b: ").startswith(line)
    assert len(lines) == (2 if len(keys) > 1 else 1)
