"""The processes of deploy/production/Procfile around a deployment in a folder; its files as they are, but for waiting times."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import requests
import yaml
from dagster_graphql import DagsterGraphQLClient
from servers import Server, free_port, wait_for

from pipelines.partitions import find_task_files, register
from pipelines.settings import REPOSITORY, Settings

FILES = REPOSITORY / "deploy" / "production"


class Production:
    """Processes by their names in the Procfile. Whoever ends by itself is started again by `wait_for_runs`, as a supervisor does."""

    def __init__(self, settings: Settings, storage: dict[str, str], *more_settings: Path, **variables: str) -> None:
        self.settings, self.folder = settings, settings.tasks_dir.parent
        self.home = self.folder / "home"
        self.home.mkdir()
        content = yaml.safe_load("".join(path.read_text() for path in (FILES / "dagster.yaml", *more_settings)))
        content["run_monitoring"] |= {"poll_interval_seconds": 3}
        content["run_coordinator"]["config"]["user_code_failure_retry_delay"] = 5
        if not storage:
            del content["storage"]
        (self.home / "dagster.yaml").write_text(yaml.safe_dump(content))
        self.ports = {name: free_port() for name in ("PROMPTMILL_SERVER", "CONSUMER_SERVER", "WEBSERVER", "METRICS")}
        places = {f"{name}_PORT": str(port) for name, port in self.ports.items()} | {f"{name}_HOST": "127.0.0.1" for name in self.ports}
        self.environment = {
            **os.environ,
            **storage,
            **places,
            **variables,
            "DAGSTER_HOME": str(self.home),
            "PROMPTMILL_TASKS": str(settings.tasks_dir),
            "PROMPTMILL_STORE": settings.store_url,
            "PROMPTMILL_STORAGE": str(settings.storage_dir),
            "CONSUMER_OUTPUT": str(self.folder / "consumer"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONUNBUFFERED": "1",
        }
        lines = (line.split(": ", 1) for line in (FILES / "Procfile").read_text().splitlines())
        self._commands = dict(lines)
        self.running: dict[str, Server] = {}

    def start(self, name: str) -> Server:
        """A process of the Procfile, or one given by `add`."""
        command = ["bash", "-c", f"exec {self._commands[name]}"]
        self.running[name] = Server(command, self.folder / f"{name}.log", self.environment, REPOSITORY)
        return self.running[name]

    def add(self, name: str, command: str) -> Server:
        """Another process, in the same environment."""
        self._commands[name] = command
        return self.start(name)

    def start_all(self, *names: str) -> None:
        """Start processes and wait until the webserver has loaded every location."""
        migration = subprocess.run(["dagster", "instance", "migrate"], env=self.environment, check=False, capture_output=True, text=True)
        assert migration.returncode == 0, migration.stderr
        for name in names:
            self.start(name)
        wait_for(self.is_loaded, 120, f"the code locations ({self.folder})")

    def is_loaded(self) -> bool:
        """Whether the webserver knows the definitions of every location."""
        query = "{ workspaceOrError { ... on Workspace { locationEntries { loadStatus locationOrLoadError { __typename } } } } }"
        entries = self.ask(query)["workspaceOrError"]["locationEntries"]
        return all(
            entry["loadStatus"] == "LOADED" and entry["locationOrLoadError"]["__typename"] == "RepositoryLocation" for entry in entries
        )

    def ask(self, query: str, **variables: Any) -> Any:
        """The webserver's answer to a GraphQL query."""
        url = f"http://127.0.0.1:{self.ports['WEBSERVER']}/graphql"
        answer = requests.post(url, json={"query": query, "variables": variables}, timeout=20).json()
        assert "errors" not in answer, answer["errors"]
        return answer["data"]

    def register_tasks(self) -> None:
        """What the sensor `task_files` does where automation is on."""
        with self.instance() as instance:
            register(instance, find_task_files(self.settings.tasks_dir))

    def retune(self, task: str, **tags: str) -> str:
        """Ask the webserver for a run of the whole chain, which the daemon then takes from the queue; gives its id."""
        client = DagsterGraphQLClient("127.0.0.1", port_number=self.ports["WEBSERVER"])
        tags = {"dagster/partition": task, **tags}
        return str(client.submit_job_execution("retune", repository_location_name="promptmill", tags=tags))

    @contextmanager
    def instance(self) -> Iterator[dg.DagsterInstance]:
        """Dagster's storage, read beside the servers."""
        with dg.DagsterInstance.from_config(str(self.home)) as instance:
            yield instance

    def wait_for_step(self, run: str, step: str, seconds: float = 300) -> int:
        """Wait until a step of a run has begun; gives the process that does it."""

        def began() -> int | None:
            with self.instance() as instance:
                starts = instance.all_logs(run, of_type=dg.DagsterEventType.STEP_START)
                return next((event.dagster_event.pid for event in starts if event.dagster_event and event.step_key == step), None)

        return wait_for(began, seconds, f"step {step} of run {run} ({self.folder})")

    def wait_for_runs(self, seconds: float) -> list[dg.DagsterRun]:
        """Wait until nothing runs or waits any more, starting again what has ended by itself; gives the retunes, newest first."""

        def ended() -> list[dg.DagsterRun] | None:
            for name in [name for name, server in self.running.items() if server.has_ended()]:
                self.start(name)
            with self.instance() as instance:
                runs = [record.dagster_run for record in instance.get_run_records()]
            waiting = [run for run in runs if not run.is_finished or _will_be_retried(run)]
            return [run for run in runs if run.job_name == "retune"] if runs and not waiting else None

        return wait_for(ended, seconds, f"the end of all runs ({self.folder})")

    def stop(self) -> None:
        for server in reversed(self.running.values()):
            server.stop()


def _will_be_retried(run: dg.DagsterRun) -> bool:
    """A failed run that the daemon has yet to look at, or whose retry it has yet to launch."""
    return (
        run.status == dg.DagsterRunStatus.FAILURE
        and run.tags.get("dagster/will_retry") == "true"
        and "dagster/auto_retry_run_id" not in run.tags
    )


@contextmanager
def production(settings: Settings, storage: dict[str, str], *more_settings: Path, **variables: str) -> Iterator[Production]:
    """A deployment whose processes are stopped in the end."""
    processes = Production(settings, storage, *more_settings, **variables)
    with pytest.MonkeyPatch.context() as environment:
        for name in {**storage, **variables}:  # its dagster.yaml is read here too
            environment.setenv(name, processes.environment[name])
        try:
            yield processes
        finally:
            processes.stop()
