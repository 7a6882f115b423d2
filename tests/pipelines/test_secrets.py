"""A key in the environment stays there: neither run history, nor values, nor what the launchpad and the UI are given hold it."""

from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from dagster._core.remote_representation.external_data import RepositorySnap
from dagster._serdes import serialize_value
from deployment import a_deployment, failure_of, run_retune, write_task
from web_server import web_server

from pipelines.definitions import build_defs
from pipelines.metadata import examples_metadata
from prompt_core.data import CleaningReport, data_files, fingerprint, read_examples
from prompt_core.errors import PromptmillError
from prompt_core.task_file import load_task

PLANTED = "sk-planted-7Qm2"


def test_a_planted_key_is_in_no_event_no_value_and_no_snapshot(tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = a_deployment(tmp_path / "d")
    for variable in ("PROPOSER_KEY", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(variable, PLANTED)
    # Nobody listens there: what is wrong with a connection is where clients like to print their headers.
    endpoint = {"url": "http://127.0.0.1:9/v1", "model": "m", "key_variable": "PROPOSER_KEY", "attempts": 1, "wait": 0.0, "timeout": 1.0}
    write_task(
        settings,
        "words",
        backbone={"name": str(llama_folder), "dtype": "float32"},
        template="Sort this: {{ text }}\nKind:",
        prompt={"kind": "text"},
        tune={"seed": 0},
        evaluate={"few_shot": 0},
        text={"rounds": 1, "together": 2, "demonstrations": 0, "endpoint": endpoint},
    )
    write_task(settings, "numbers")
    home = tmp_path / "home"
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        assert "127.0.0.1:9" in failure_of(run_retune(settings, instance, "words"))
        assert run_retune(settings, instance, "numbers").success
        repository = build_defs(settings).get_repository_def()
        snapshot = serialize_value(RepositorySnap.from_def(repository))
    assert '"tuned_prompt"' in snapshot and PLANTED not in snapshot
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".db" for path in files)
    assert [path for path in files if PLANTED.encode() in path.read_bytes()] == []


def test_what_gives_access_to_a_signed_address_is_shown_nowhere(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path / "d")
    with web_server(tmp_path / "www") as address:
        for number, (told, path) in enumerate(((f"{address}/rows.csv?...", "rows.csv"), (f"{address}/rows.txt?...", "rows.txt"))):
            named = f"{address}/{path}?signature={PLANTED}"
            task = load_task(write_task(settings, f"t{number}", data={"path": named, "target": "label"}))
            for look in (lambda task=task: read_examples(task), lambda task=task: fingerprint(task, data_files(task))):
                with pytest.raises(PromptmillError) as caught:
                    look()
                assert told in str(caught.value) and PLANTED not in str(caught.value)
    frame = pl.DataFrame({"_id": ["1"], "text": ["a"]})
    for named, told in (
        (f"s3://desk/rows.csv?signature={PLANTED}", "s3://desk/rows.csv?..."),
        (f"https://me:{PLANTED}@desk.example/rows.csv", "https://...@desk.example/rows.csv"),
        ("part?.csv", "part?.csv"),
    ):
        task = load_task(write_task(settings, "t", data={"path": named, "target": "label"}))
        assert examples_metadata(frame, CleaningReport(1, 1), task)["source"] == told
