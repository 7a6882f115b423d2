"""The code location as Dagster sees it: it loads, quickly, and every asset says what it is."""

import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest
from deployment import a_deployment, write_task

from pipelines.definitions import build_defs
from pipelines.partitions import TASKS

CHAIN = {"examples", "splits", "baselines", "tuned_prompt", "evaluation", "published_prompt", "report"}


@pytest.fixture
def defs(tmp_path: Path) -> dg.Definitions:
    settings = a_deployment(tmp_path)
    write_task(settings, "a_task")
    return build_defs(settings)


def test_the_definitions_load(defs: dg.Definitions) -> None:
    dg.Definitions.validate_loadable(defs)


def test_every_asset_has_description_owner_kind_group_and_code_version(defs: dg.Definitions) -> None:
    specs = list(defs.resolve_all_asset_specs())
    assert {spec.key.to_user_string() for spec in specs} == CHAIN
    for spec in specs:
        assert spec.description and spec.owners and spec.kinds and spec.group_name and spec.code_version, spec.key


def test_every_asset_and_check_has_the_partitions_of_the_tasks(defs: dg.Definitions) -> None:
    graph = defs.resolve_asset_graph()
    assert all(spec.partitions_def == TASKS for spec in defs.resolve_all_asset_specs())
    assert all(graph.get(key).partitions_def == TASKS for key in graph.asset_check_keys)


def test_a_backfill_of_any_asset_is_one_run(defs: dg.Definitions) -> None:
    assert all(asset.backfill_policy == dg.BackfillPolicy.single_run() for asset in defs.assets)


def test_checks_block_where_what_follows_would_be_wrong(defs: dg.Definitions) -> None:
    graph = defs.resolve_asset_graph()
    blocking = {key.name for key in graph.asset_check_keys if graph.get(key).blocking}
    assert blocking == {"schema", "no_leakage", "finite_prompt", "gate", "round_trip"}
    assert {key.name for key in graph.asset_check_keys} - blocking == {"size", "class_balance"}
    assert all(graph.get(key).description for key in graph.asset_check_keys)


def test_two_thousand_task_files_load_in_a_few_seconds(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path)
    text = write_task(settings, "a").read_text(encoding="utf-8")
    for number in range(2000):
        content = text.replace("name: a\n", f"name: t{number}\n").replace("0 3 * * 1", f"{number % 60} 3 * * 1")
        (settings.tasks_dir / f"t{number}.yaml").write_text(content, encoding="utf-8")
    began = time.process_time()
    defs = build_defs(settings)
    assert time.process_time() - began < 5
    assert len(defs.schedules) == 60


def test_a_resource_can_be_replaced(tmp_path: Path) -> None:
    defs = build_defs(a_deployment(tmp_path), {"progress": "another"})
    assert defs.resources["progress"] == "another"


def test_the_code_location_loads_without_torch() -> None:
    code = "import sys, pipelines.definitions; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
