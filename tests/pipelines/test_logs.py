"""Structured logs: Dagster's own settings turn every event and line of a run into one JSON object."""

import json
import logging
from pathlib import Path

import dagster as dg
import yaml

from pipelines.logs import JsonLines
from pipelines.settings import REPOSITORY


def lines_of_a_run(tmp_path: Path) -> list[dict[str, object]]:
    """A run under the production settings for logs, written to a file instead of standard error."""

    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(["reply"]))
    def tuned_prompt(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        context.log.info("step 1 of 2: loss 0.5")
        return dg.MaterializeResult(data_version=dg.DataVersion("abc"))

    written = tmp_path / "lines"
    settings = yaml.safe_load((REPOSITORY / "deploy" / "production" / "dagster.yaml").read_text())["python_logs"]
    settings["dagster_handler_config"]["handlers"]["json_lines"] |= {"class": "logging.FileHandler", "filename": str(written)}
    with dg.instance_for_test(overrides={"python_logs": settings}) as instance:
        dg.materialize([tuned_prompt], instance=instance, partition_key="reply")
    return [json.loads(line) for line in written.read_text(encoding="utf-8").splitlines()]


def test_every_line_names_run_task_and_version_and_a_materialization_its_digest(tmp_path: Path) -> None:
    lines = lines_of_a_run(tmp_path)
    assert len({line["run"] for line in lines}) == 1
    assert {line["task"] for line in lines} == {"reply"} and all(line["version"] for line in lines)
    (said,) = [line for line in lines if "loss" in str(line["message"])]
    assert said["step"] == "tuned_prompt" and said["level"] == "INFO" and "event" not in said
    (done,) = [line for line in lines if line.get("event") == "ASSET_MATERIALIZATION"]
    assert done["asset"] == "tuned_prompt" and done["digest"] == "abc"


def test_a_line_of_another_library_is_one_object_too() -> None:
    record = logging.LogRecord("urllib3", logging.WARNING, "x.py", 1, "retry\nin %d s", (3,), None)
    (line,) = JsonLines().format(record).splitlines()
    assert json.loads(line)["message"] == "retry\nin 3 s"
