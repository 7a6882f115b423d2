"""The code location as Dagster sees it: it loads, quickly, and every asset says what it is."""

import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from deployment import a_deployment, write_task

from pipelines.definitions import build_defs

CHAIN = {"examples", "splits", "tuned_prompt", "evaluation", "published_prompt"}


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
    assert all(spec.partitions_def.get_partition_keys() == ["a_task"] for spec in defs.resolve_all_asset_specs())
    assert all(graph.get(key).partitions_def.get_partition_keys() == ["a_task"] for key in graph.asset_check_keys)


def test_the_gate_blocks_and_the_leakage_check_does_not(defs: dg.Definitions) -> None:
    graph = defs.resolve_asset_graph()
    assert {key.name: graph.get(key).blocking for key in graph.asset_check_keys} == {"gate": True, "no_leakage": False}


def test_a_resource_can_be_replaced(tmp_path: Path) -> None:
    defs = build_defs(a_deployment(tmp_path), {"progress": "another"})
    assert defs.resources["progress"] == "another"


def test_the_code_location_loads_without_torch() -> None:
    code = "import sys, pipelines.definitions; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
