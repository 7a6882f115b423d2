"""The files of deploy/: Dagster takes its settings, containers are the Procfile, and a run's pod is what the values ask for."""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._config import process_config, resolve_to_config_type
from dagster._core.instance.config import PoolGranularity, dagster_instance_config, dagster_instance_config_schema
from dagster._core.workspace.config_schema import process_workspace_config

from pipelines.settings import Settings

DEPLOY = Path(__file__).parents[2] / "deploy"
PRODUCTION = DEPLOY / "production"
VALUES = {"PGPORT": "5432", "PROMPTMILL_SERVER_PORT": "4000", "CONSUMER_SERVER_PORT": "4001", "PROMPTMILL_STORE": "s3://our-bucket/prompts"}


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def procfile() -> dict[str, str]:
    lines = (line.split(": ", 1) for line in (PRODUCTION / "Procfile").read_text(encoding="utf-8").splitlines())
    return dict(lines)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variable that the files name."""
    text = "".join(path.read_text(encoding="utf-8") for path in DEPLOY.rglob("*.yaml"))
    for name in re.findall(r"env: (\w+)", text):
        monkeypatch.setenv(name, VALUES.get(name, "value"))


@pytest.fixture
def without_the_chart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The DAGSTER_HOME of a daemon that launches pods, made by the command in the file, and its environment."""
    text = (DEPLOY / "scale" / "kubernetes.yaml").read_text(encoding="utf-8")
    for name in yaml.safe_load(text)["run_launcher"]["config"].get("env_vars", []):
        monkeypatch.setenv(name.split("=")[0], VALUES.get(name, str(tmp_path)))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (command,) = re.findall(r"^# +(cat .*)$", text, re.MULTILINE)
    subprocess.run(["bash", "-c", command], check=True, cwd=DEPLOY.parent)
    return tmp_path


@pytest.mark.parametrize("scale", [None, "celery", "ray", "kubernetes"])
def test_dagster_takes_the_settings_and_those_of_more_machines_behind_them(scale: str | None) -> None:
    files = [PRODUCTION / "dagster.yaml", *([DEPLOY / "scale" / f"{scale}.yaml"] if scale else [])]
    content = yaml.safe_load("".join(path.read_text(encoding="utf-8") for path in files))
    result = process_config(resolve_to_config_type(dagster_instance_config_schema()), content)
    assert result.success, result.errors
    assert ("run_launcher" in content) == (scale is not None)


def test_dagster_takes_the_settings_of_one_machine_and_the_workspace() -> None:
    assert process_config(resolve_to_config_type(dagster_instance_config_schema()), read(DEPLOY / "dagster.yaml")).success
    assert process_workspace_config(read(PRODUCTION / "workspace.yaml")).success


def test_no_run_stays_started_for_ever_and_only_lost_processes_are_retried() -> None:
    settings = read(PRODUCTION / "dagster.yaml")
    assert settings["run_monitoring"]["enabled"] and settings["run_monitoring"]["max_runtime_seconds"] > 0
    assert settings["run_retries"] == {"enabled": True, "max_retries": 2, "retry_on_asset_or_op_failure": False}


def test_with_these_settings_a_run_waits_for_the_pool_in_the_queue_and_for_code_servers(tmp_path: Path) -> None:
    content = read(PRODUCTION / "dagster.yaml")
    del content["storage"]  # a database
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(content))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        concurrency = instance.get_concurrency_config()
    assert concurrency.pool_config.pool_granularity == PoolGranularity.RUN
    queue = concurrency.run_queue_config
    assert queue and queue.max_concurrent_runs == 8 and queue.max_user_code_failure_retries == 10


@pytest.mark.parametrize("scale", ["celery", "ray", "kubernetes"])
def test_the_run_launchers_of_more_machines_take_their_settings(scale: str) -> None:
    content = read(DEPLOY / "scale" / f"{scale}.yaml")["run_launcher"]
    module = pytest.importorskip(content["module"], reason=f"not here: pip install 'promptmill[{scale}]'")
    result = process_config(resolve_to_config_type(getattr(module, content["class"]).config_type()), content["config"])
    assert result.success, result.errors


def test_the_helm_chart_gives_dagster_a_pool_in_the_queue_and_time_to_wait_for_a_gpu(tmp_path: Path) -> None:
    values = read(PRODUCTION / "kubernetes-values.yaml")
    concurrency, monitoring = values["concurrency"], values["dagsterDaemon"]["runMonitoring"]
    assert concurrency["enabled"]
    coordinator = values["dagsterDaemon"]["runCoordinator"]
    queued = coordinator.get("config", {}).get("queuedRunCoordinator", {})
    content = {  # as the chart's templates write it
        "run_coordinator": {
            "module": "dagster.core.run_coordinator",
            "class": coordinator["type"],
            "config": {_snake(key): value for key, value in queued.items()},
        },
        "run_monitoring": {_snake(key): value for key, value in monitoring.items()},
        "concurrency": {part: {_snake(key): value for key, value in concurrency[part].items()} for part in ("runs", "pools")},
    }
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(content))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        settings = instance.get_concurrency_config()
        assert (settings.pool_config.pool_granularity, settings.pool_config.default_pool_limit) == (PoolGranularity.RUN, 1)
        assert settings.run_queue_config and settings.run_queue_config.max_concurrent_runs == 8
        assert instance.run_monitoring_start_timeout_seconds >= instance.run_monitoring_max_runtime_seconds > 0


def test_the_chart_is_that_of_the_dagster_in_the_image() -> None:
    told = [PRODUCTION / "kubernetes-values.yaml", DEPLOY.parent / "docs" / "operations.md"]
    named = [version for path in told for version in re.findall(r"helm upgrade .* --version (\S+)", path.read_text(encoding="utf-8"))]
    assert len(named) == 2
    (installed,) = re.findall(r"^dagster==(\S+)", (DEPLOY.parent / "constraints.txt").read_text(), re.MULTILINE)
    assert set(named) == {installed}


def test_every_line_of_the_procfile_is_a_container_and_every_container_a_line() -> None:
    services = read(PRODUCTION / "compose.yaml")["services"]
    assert set(services) - {"postgres"} == set(procfile())
    for name, command in procfile().items():
        program = command.split(" --host ")[0].removeprefix("exec ")
        assert services[name]["command"].replace("$$", "$").startswith(program), name
    named = set(re.findall(r"\$\{?(\w+)", " ".join(procfile().values()))) | set(re.findall(r"env: (\w+)", _production_text()))
    told = {line.split("=")[0] for line in (PRODUCTION / "example.env").read_text().splitlines() if re.match(r"\w+=", line)}
    assert named <= told
    ports = {"WEBSERVER_HOST", "WEBSERVER_PORT", "METRICS_HOST", "METRICS_PORT"}  # stand in the commands of containers
    assert told - ports - {"DAGSTER_HOME"} <= set(services["daemon"]["environment"])


def test_the_image_holds_what_its_processes_run_and_copies_only_what_is_there() -> None:
    text = (PRODUCTION / "Dockerfile").read_text()
    copied = [name for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for name in line.split()]
    assert {"pipelines", "prompt_core", "kernels", "tasks", "examples", "deploy", "constraints.txt"} <= set(copied)
    assert all((DEPLOY.parent / name).exists() for name in copied)
    built_from = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    before_the_build = text.split("RUN pip install")[0]
    for source in (*built_from["packages"], *built_from["force-include"]):
        assert f"COPY {source.split('/')[0]} " in before_the_build


def test_no_secret_stands_in_any_file() -> None:
    text = _production_text() + (PRODUCTION / "example.env").read_text()
    assert not re.search(r"(?i)(password|secret_access_key|token)\s*[:=]\s*['\"]?\w+$", text, re.MULTILINE)


def test_a_runs_pod_has_the_gpu_the_volumes_the_secrets_and_no_rights() -> None:
    pytest.importorskip("dagster_k8s", reason="not here: pip install 'promptmill[kubernetes]'")
    from dagster_k8s import DagsterK8sJobConfig, construct_dagster_k8s_job
    from dagster_k8s.job import UserDefinedDagsterK8sConfig

    values = read(PRODUCTION / "kubernetes-values.yaml")
    (server, _) = values["dagster-user-deployments"]["deployments"]
    run = values["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]
    job = construct_dagster_k8s_job(
        DagsterK8sJobConfig(
            job_image=f"{server['image']['repository']}:{server['image']['tag']}",
            dagster_home="/opt/dagster/dagster_home",
            env_secrets=[secret["name"] for secret in server["envSecrets"]],
            volumes=server["volumes"],
            volume_mounts=server["volumeMounts"],
        ),
        ["dagster", "api", "execute_run", "{}"],
        "run-of-caretaker",
        UserDefinedDagsterK8sConfig.from_dict(
            {
                "container_config": run["containerConfig"],
                "pod_spec_config": run["podSpecConfig"],
                "job_spec_config": run["jobSpecConfig"],
            }
        ),
        env_vars=server["env"],
    ).to_dict()
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == "registry.example.com/promptmill:0.1.0"
    assert container["resources"]["limits"] == {"memory": "16Gi", "nvidia.com/gpu": "1"}
    assert container["security_context"]["run_as_non_root"] and not container["security_context"]["allow_privilege_escalation"]
    assert [source["secret_ref"]["name"] for source in container["env_from"]] == ["promptmill-store", "promptmill-alerts"]
    assert {mount["mount_path"] for mount in container["volume_mounts"]} >= {"/var/lib/promptmill", "/srv/promptmill/tasks"}
    assert {"PROMPTMILL_STORE", "PROMPTMILL_STORAGE", "PROMPTMILL_TASKS"} <= {entry["name"] for entry in container["env"]}
    claims = {volume["name"]: volume["persistent_volume_claim"] for volume in pod["volumes"]}
    assert claims["state"]["claim_name"] == "promptmill-state"
    assert pod["tolerations"][0]["key"] == "nvidia.com/gpu" and pod["restart_policy"] == "Never"
    assert job["spec"]["backoff_limit"] == 0 and job["spec"]["ttl_seconds_after_finished"] == 86400


def test_without_the_chart_a_pod_is_told_what_dagster_reads_and_has_time_to_wait_for_a_gpu(without_the_chart: Path) -> None:
    settings, _ = dagster_instance_config(str(without_the_chart))
    assert settings["run_monitoring"]["start_timeout_seconds"] >= settings["run_monitoring"]["max_runtime_seconds"]
    read_by_dagster = set(re.findall(r"env: (\w+)", (without_the_chart / "dagster.yaml").read_text()))
    assert read_by_dagster - set(settings["run_launcher"]["config"]["env_vars"]) == {"PGPASSWORD"}  # a secret


def test_without_the_chart_a_runs_pod_has_the_stores_the_volumes_and_the_secrets(without_the_chart: Path) -> None:
    pytest.importorskip("dagster_k8s", reason="not here: pip install 'promptmill[kubernetes]'")
    from dagster_k8s import K8sRunLauncher, construct_dagster_k8s_job
    from dagster_k8s.container_context import K8sContainerContext

    settings, _ = dagster_instance_config(str(without_the_chart))
    cluster = {
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    }
    (without_the_chart / "cluster").write_text(yaml.safe_dump({**cluster, "users": [{"name": "u", "user": {}}], "current-context": "c"}))
    outside = {"load_incluster_config": False, "kubeconfig_file": str(without_the_chart / "cluster")}
    config = process_config(resolve_to_config_type(K8sRunLauncher.config_type()), {**settings["run_launcher"]["config"], **outside})
    launcher = K8sRunLauncher.from_config_value(None, config.value)
    context = K8sContainerContext.create_for_run(dg.DagsterRun(job_name="retune"), launcher, include_run_tags=True)
    job_config = context.get_k8s_job_config(None, launcher)
    job = construct_dagster_k8s_job(job_config, ["dagster", "api", "execute_run", "{}"], "run", context.run_k8s_config).to_dict()
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    told = {entry["name"]: entry["value"] for entry in container["env"]}
    assert [source["secret_ref"]["name"] for source in container["env_from"]] == ["promptmill-postgres", "promptmill-store"]
    assert Settings.from_environment(told).store_url == "s3://our-bucket/prompts"
    mounts = {mount["mount_path"]: mount["name"] for mount in container["volume_mounts"]}
    assert f"{told['DAGSTER_HOME']}/dagster.yaml" in mounts and "/srv/promptmill/tasks" in mounts
    assert mounts["/var/lib/promptmill"] == "state" and set(mounts.values()) == {volume["name"] for volume in pod["volumes"]}
    assert pod["tolerations"][0]["key"] == "nvidia.com/gpu" and pod["security_context"]["fs_group"] == 10001


def _snake(name: str) -> str:
    return re.sub(r"[A-Z]", lambda letter: f"_{letter[0].lower()}", name)


def _production_text() -> str:
    return "".join(path.read_text(encoding="utf-8") for path in PRODUCTION.glob("*.yaml"))
