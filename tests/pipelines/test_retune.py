"""The whole chain on a real model: a prompt that passes is published, one that does not changes nothing."""

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import dagster as dg
import polars as pl
import pytest
from deployment import a_deployment, failure_of, run_retune, run_steps, write_task

from pipelines.batch import Inputs, Made
from pipelines.definitions import build_defs
from pipelines.settings import REPOSITORY, Settings
from prompt_core import PromptStore

TASK = "support_intent"  # the name that the consumer asks for


@dataclass
class Published:
    """A deployment after its first successful run."""

    settings: Settings
    instance: dg.DagsterInstance
    result: dg.ExecuteInProcessResult

    @property
    def store(self) -> PromptStore:
        return PromptStore(self.settings.store_url)

    def metadata(self, asset: str) -> dict[str, object]:
        event = self.result.asset_materializations_for_node(asset)[0]
        return {name: entry.value for name, entry in event.metadata.items()}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    settings = a_deployment(tmp_path_factory.mktemp("deployment") / "d")
    write_task(settings, TASK)
    with dg.DagsterInstance.ephemeral() as instance:
        yield Published(settings, instance, run_retune(settings, instance, TASK))


def example_module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"consumer_{name}", REPOSITORY / "examples" / "consumer" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_prompt_that_passes_its_gate_is_published_and_live(published: Published) -> None:
    assert published.result.success
    digest = published.result.output_for_node("tuned_prompt").digest
    assert published.store.record(TASK, "production").digest == digest
    assert published.metadata("published_prompt")["version"] == 1
    assert published.metadata("published_prompt")["digest"] == digest


def test_data_versions_are_digests_of_content(published: Published) -> None:
    versions = {
        event.asset_key.to_user_string(): event.step_materialization_data.materialization.tags["dagster/data_version"]
        for event in published.result.get_asset_materialization_events()
    }
    assert versions["splits"] == published.result.output_for_node("splits").digest
    assert versions["tuned_prompt"] == versions["published_prompt"] == published.result.output_for_node("tuned_prompt").digest


def test_what_people_look_at_is_in_the_metadata(published: Published) -> None:
    assert published.metadata("examples")["dagster/row_count"] == 60
    assert str(published.metadata("tuned_prompt")["loss curve"]).startswith("![loss curve](data:image/png;base64,")
    evaluation = published.metadata("evaluation")
    assert [row.data["contender"] for row in evaluation["contenders"].records] == ["label_names", "linear_probe", "tuned"]
    assert [row.data["contender"] for row in published.metadata("baselines")["contenders"].records] == ["label_names", "linear_probe"]
    assert "confusion" in evaluation and "intervals" in evaluation


def test_all_checks_pass(published: Published) -> None:
    outcomes = {check.check_name: check.passed for check in published.result.get_asset_check_evaluations()}
    names = ("schema", "size", "class_balance", "no_leakage", "finite_prompt", "gate", "round_trip")
    assert outcomes == dict.fromkeys(names, True)


def test_a_rerun_finds_the_same_digest_and_publishes_no_new_version(published: Published) -> None:
    again = run_retune(published.settings, published.instance, TASK)
    assert again.success
    metadata = again.asset_materializations_for_node("tuned_prompt")[0].metadata
    assert metadata["tuning"].value.startswith("taken again: task, rows, model and versions are what they were")
    assert again.output_for_node("tuned_prompt").digest == published.result.output_for_node("tuned_prompt").digest
    assert published.store.list()[0].versions == (1,)
    assert published.metadata("published_prompt")["went live"] is True
    assert again.asset_materializations_for_node("published_prompt")[0].metadata["went live"].value is False


def test_a_failed_gate_leaves_the_alias_where_it_was(published: Published) -> None:
    path = published.settings.tasks_dir / f"{TASK}.yaml"
    before = path.read_text(encoding="utf-8")
    write_task(published.settings, TASK, gate={"min_gain": 101})
    try:
        result = run_retune(published.settings, published.instance, TASK, tune={"seed": 1})
    finally:
        path.write_text(before, encoding="utf-8")
    assert not result.success
    (gate,) = [check for check in result.get_asset_check_evaluations() if check.check_name == "gate"]
    assert not gate.passed and "needs 101 points or more" in gate.description
    assert published.store.list()[0].versions == (1,)
    assert published.store.list()[0].aliases == {"production": 1}


def test_a_rejected_prompt_is_refused_even_where_the_check_was_passed_over(published: Published) -> None:
    evaluation = published.result.output_for_node("evaluation")
    verdict = evaluation.verdict.model_copy(update={"passed": False, "reasons": ("gain over label_names is too small",)})
    defs = build_defs(published.settings)
    published_prompt = defs.resolve_assets_def("published_prompt")
    with pytest.raises(dg.Failure, match="the gate did not pass: gain over label_names is too small"):
        published_prompt(
            dg.build_asset_context(partition_key=TASK, instance=published.instance),
            store=defs.resources["store"],
            tuned_prompt=Inputs.of("tuned_prompt", {TASK: Made(published.result.output_for_node("tuned_prompt"), "")}),
            evaluation=Inputs.of("evaluation", {TASK: Made(evaluation.model_copy(update={"verdict": verdict}), "")}),
        )


def test_a_knob_that_no_task_file_could_have_is_one_line(published: Published) -> None:
    result = run_retune(published.settings, published.instance, TASK, tune={"steps": 0})
    line = f"run config of tuned_prompt[{TASK}]: tune.steps: Input should be greater than or equal to 1 (found 0)"
    assert failure_of(result).startswith(line)


def test_a_consumer_in_another_code_location_uses_the_published_prompt(published: Published, tmp_path: Path) -> None:
    consumer = example_module("definitions")
    dg.Definitions.validate_loadable(consumer.defs)
    desk = consumer.SupportDesk(store=published.settings.store_url, output=str(tmp_path))
    assert dg.materialize([consumer.routed_messages], resources={"desk": desk}).success
    routed = pl.read_parquet(tmp_path / "routed_messages.parquet")
    assert len(routed) == 12 and set(routed["prediction"]) <= {"late", "damaged"}


def test_a_plain_job_does_the_same(published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages, out = REPOSITORY / "examples" / "consumer" / "messages_to_route.csv", tmp_path / "routed.csv"
    monkeypatch.setattr(sys, "argv", ["batch_job.py", "--store", published.settings.store_url, "--name", TASK, str(messages), str(out)])
    example_module("batch_job").main()
    assert len(pl.read_csv(out)) == 12


def test_a_search_shows_its_candidates_and_what_they_cost(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path / "d")
    search = {"trials": 4, "together": 4, "folds": 2, "eta": 2, "space": {"tune.learning_rate": [0.001, 0.05], "prompt.tokens": [2, 4]}}
    write_task(settings, TASK, prompt={"kind": "auto"}, tune={"steps": 4, "batch_examples": 8, "search": search})
    with dg.DagsterInstance.ephemeral() as instance:
        found = Published(settings, instance, run_retune(settings, instance, TASK, tune={"batch_examples": 4}))
        metadata = found.metadata("tuned_prompt")
    assert str(metadata["candidates"]).startswith("| trial | `prompt.kind` | `prompt.tokens` | `tune.learning_rate` | steps | log loss |")
    assert metadata["search prompt-steps"] == 2 * (4 * 1 + 2 * 1 + 1 * 2) and metadata["search ended by"] == "trials"
    assert str(metadata["settings chosen"]).startswith("kind deep, tokens ")
    prompt = found.result.output_for_node("tuned_prompt")
    assert prompt.manifest.kind == "deep" and prompt.task.tune.batch_examples == 4


def test_worse_data_is_rejected_by_the_gate_and_production_stays(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path / "d")
    write_task(settings, TASK)
    with dg.DagsterInstance.ephemeral() as instance:
        assert run_retune(settings, instance, TASK).success
        live = PromptStore(settings.store_url).record(TASK, "production").digest
        data = settings.tasks_dir / "messages.csv"
        rows = pl.read_csv(data)
        wrong = pl.Series("label", [("late", "damaged")[number % 2] for number in range(len(rows))])  # whatever the text says
        rows.with_columns(wrong).write_csv(data)
        result = run_retune(settings, instance, TASK)
        evaluated = instance.get_materialized_partitions(dg.AssetKey("evaluation"))
    assert not result.success and evaluated == {TASK}
    (gate,) = [check for check in result.get_asset_check_evaluations() if check.check_name == "gate"]
    assert not gate.passed
    assert PromptStore(settings.store_url).record(TASK, "production").digest == live
    assert PromptStore(settings.store_url).list()[0].versions == (1,)


def test_baselines_of_other_rows_are_not_compared_with(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path / "d")
    write_task(settings, TASK)
    with dg.DagsterInstance.ephemeral() as instance:
        assert run_retune(settings, instance, TASK).success
        data = settings.tasks_dir / "messages.csv"
        pl.read_csv(data).with_columns(pl.col("text") + " please").write_csv(data)
        steps = ["examples", "splits", "tuned_prompt", "evaluation", "published_prompt"]
        result = run_steps(settings, instance, TASK, steps)
        what = "baselines are of other rows, settings or versions than splits and task are now. Materialize baselines again."
        assert failure_of(result) == f"evaluation[{TASK}]: {what}"
        assert run_steps(settings, instance, TASK, ["baselines", *steps]).success
    assert PromptStore(settings.store_url).list()[0].aliases == {"production": 2}


def test_what_went_live_since_the_evaluation_is_not_replaced(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path / "d")
    write_task(settings, TASK)
    store = PromptStore(settings.store_url)
    with dg.DagsterInstance.ephemeral() as instance:
        steps = ["examples", "splits", "baselines", "tuned_prompt", "evaluation"]
        result = run_steps(settings, instance, TASK, steps)
        evaluation = result.output_for_node("evaluation").model_dump(mode="json")
        hotfix = result.output_for_node("tuned_prompt")
        hotfix = replace(hotfix, tensors={name: tensor + 1 for name, tensor in hotfix.tensors.items()})
        store.promote(TASK, store.publish(hotfix, evaluation, who="ann"), who="ann", why="hotfix")
        late = run_steps(settings, instance, TASK, ["published_prompt"])
        assert "alias production: stands for version 1 by now, with which version 2 was not compared. Evaluate it" in failure_of(late)
        assert store.resolve(TASK, "production") == 1
        again = run_steps(settings, instance, TASK, ["evaluation", "published_prompt"])
        assert again.success, failure_of(again)
    assert store.resolve(TASK, "production") == 2


def test_data_that_come_back_bring_their_prompt_back_and_a_rollback_stays(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path / "d")
    write_task(settings, TASK)
    store, data = PromptStore(settings.store_url), settings.tasks_dir / "messages.csv"
    with dg.DagsterInstance.ephemeral() as instance:
        rows = pl.read_csv(data)
        live = []
        for frame in (rows, rows[:-2], rows):
            frame.write_csv(data)
            assert run_retune(settings, instance, TASK).success
            live.append(store.resolve(TASK, "production"))
        assert live == [1, 2, 1]
        assert store.rollback(TASK, who="ann", why="rude on Mondays") == 2
        result = run_retune(settings, instance, TASK)
        assert "version 1 was taken back. Publish a better one" in failure_of(result)
    assert store.resolve(TASK, "production") == 2


def test_a_withdrawn_version_stays_away_until_new_data_bring_a_better_one(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path / "d")
    write_task(settings, TASK)
    store, data = PromptStore(settings.store_url), settings.tasks_dir / "messages.csv"
    with dg.DagsterInstance.ephemeral() as instance:
        assert run_retune(settings, instance, TASK).success
        store.withdraw(TASK, who="ann", why="names a customer")
        unchanged = run_retune(settings, instance, TASK)
        assert "alias production: version 1 was taken back. Publish a better one" in failure_of(unchanged)
        assert store.list()[0].aliases == {}
        pl.read_csv(data)[:-2].write_csv(data)
        result = run_retune(settings, instance, TASK)
        assert result.success, failure_of(result)
    assert store.list()[0].aliases == {"production": 2}
    assert [(move.before, move.version) for move in store.history(TASK)] == [(None, 1), (1, None), (None, 2)]


def test_a_report_is_a_page_that_a_browser_opens(published: Published) -> None:
    page = Path(
        str(
            published.metadata("report")["page"].path
            if hasattr(published.metadata("report")["page"], "path")
            else published.metadata("report")["page"]
        )
    )
    assert page.suffix == ".html"
    assert page.read_text(encoding="utf-8").startswith("<!")
    assert published.metadata("report")["open"] == page.as_uri()
