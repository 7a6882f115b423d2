"""Past one machine by settings alone: one retune each through Celery with Redis, a Ray cluster, and Pipes with torchrun."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import requests
import torch
from deployment import a_deployment, failure_of, run_retune, write_task
from production import Production, production
from servers import Server, free_port, needs, redis, wait_for

from pipelines.settings import REPOSITORY, Settings
from prompt_core import PromptStore

pytestmark = pytest.mark.production
SCALE = REPOSITORY / "deploy" / "scale"
TASK = "scaled"


@pytest.fixture(scope="module")
def digest_here(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the same task, tuned in this process."""
    settings = a_deployment(tmp_path_factory.mktemp("here") / "d")
    write_task(settings, TASK)
    with dg.DagsterInstance.ephemeral() as instance:
        result = run_retune(settings, instance, TASK)
        assert result.success
    return PromptStore(settings.store_url).record(TASK, "production").digest


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = a_deployment(tmp_path / "d")
    write_task(settings, TASK)
    return settings


def retuned_digest(site: Production) -> str:
    """One retune by way of the queue and the launcher; gives the digest that went live."""
    site.start_all("promptmill", "consumer", "webserver", "daemon")
    site.register_tasks()
    site.retune(TASK)
    (run,) = site.wait_for_runs(400)
    assert run.is_success, site.folder
    return PromptStore(site.settings.store_url).record(TASK, "production").digest


@needs("redis-server", "redis-server")
def test_a_retune_in_a_celery_worker_gives_the_same_digest(settings: Settings, digest_here: str, tmp_path: Path) -> None:
    pytest.importorskip("dagster_celery", reason="not here: pip install 'promptmill[celery]'")
    with redis(tmp_path) as broker, production(settings, {}, SCALE / "celery.yaml", PROMPTMILL_BROKER=broker) as site:
        worker = (SCALE / "celery.yaml").read_text().split("#   dagster-celery", 1)[1].splitlines()[0]  # as the file says
        site.add("worker", f"dagster-celery{worker}")
        assert retuned_digest(site) == digest_here
        assert "succeeded" in (site.folder / "worker.log").read_text()


@pytest.fixture
def ray_cluster(tmp_path: Path) -> Iterator[str]:
    """A cluster of one node on this machine; gives the address of its dashboard."""
    pytest.importorskip("dagster_ray", reason="not here: pip install 'promptmill[ray]'")
    ray, port = str(Path(sys.executable).parent / "ray"), free_port()
    path = f"{Path(ray).parent}{os.pathsep}{os.environ['PATH']}"  # where a job finds `dagster`
    threads = str(torch.get_num_threads())  # Ray would give a job one, and sums over other parts of a product round otherwise
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": threads}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_DOCKER_CPU_WARNING": "1"}
    options = ["--head", f"--port={free_port()}", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}", "--num-cpus=2", "--block"]
    folder = Path("/tmp") / f"ray-{port}"  # the paths of its sockets have to be short
    server = Server([ray, "start", *options, "--include-dashboard=true", f"--temp-dir={folder}"], tmp_path / "ray.log", environment)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_retune_as_a_job_of_a_ray_cluster_gives_the_same_digest(settings: Settings, digest_here: str, ray_cluster: str) -> None:
    wait_for(lambda: requests.get(f"{ray_cluster}/api/version", timeout=5).ok, 90, "Ray's dashboard")
    storage = dict.fromkeys(("PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE"), "unused")
    with production(settings, {}, SCALE / "ray.yaml", PROMPTMILL_RAY=ray_cluster, PROMPTMILL_TORCHRUN="", **storage) as site:
        assert retuned_digest(site) == digest_here


def test_one_prompt_tuned_by_two_processes_is_equal_to_rounding_and_its_progress_is_in_the_log(settings: Settings, tmp_path: Path) -> None:
    alone = a_deployment(tmp_path / "alone")
    write_task(alone, TASK)
    tuned = {}
    for name, place in (("together", settings.model_copy(update={"torchrun": "--standalone --nproc-per-node=2"})), ("alone", alone)):
        with dg.DagsterInstance.ephemeral() as instance:
            result = run_retune(place, instance, TASK)
            assert result.success
            tuned[name] = PromptStore(place.store_url).get(TASK)
            lines = [entry.message for entry in instance.all_logs(result.run_id) if entry.step_key == "tuned_prompt"]
            assert any("step 8 of 8: loss" in line for line in lines)
    assert tuned["together"].manifest.tuning.steps == tuned["alone"].manifest.tuning.steps
    for name, tensor in tuned["alone"].tensors.items():
        torch.testing.assert_close(tuned["together"].tensors[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_mistake_that_only_tuning_finds_is_the_same_line_from_several_processes(settings: Settings) -> None:
    write_task(settings, TASK, prompt={"kind": "soft"})  # not on an encoder
    lines = []
    for torchrun in ("", "--standalone --nproc-per-node=2"):
        with dg.DagsterInstance.ephemeral() as instance:
            lines.append(failure_of(run_retune(settings.model_copy(update={"torchrun": torchrun}), instance, TASK)))
    assert lines[0] == lines[1] and "is an encoder" in lines[0]
