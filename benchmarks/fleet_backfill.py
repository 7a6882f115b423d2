"""What a backfill of many tasks costs as one run that tunes them as a fleet, beside a run for each task.

    python benchmarks/fleet_backfill.py             200 tasks on all-MiniLM-L6-v2, 10 of them broken in different ways
    python benchmarks/fleet_backfill.py --tasks 20  the same in small
    python benchmarks/fleet_backfill.py --writing   the 12 tasks of instruction induction on SmolLM2

Each task is 6 classes drawn from Banking77 or CLINC150, 20 examples each; with --writing 60 pairs, or all that there are. A run is
a process of its own, as Dagster's run launcher starts it, with SQLite storage: Python, Dagster and the frozen model are loaded
anew. It goes from the data file to the published prompt: examples, splits, baselines, tuning, evaluation, gate, publication, report
and all checks. Single runs are measured on a sample of the good tasks, in a deployment of their own.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from quality_sets import INDUCTION
from record import SHARED_DATA, write_result

from pipelines.settings import REPOSITORY

CLASSES, EXAMPLES, PAIRS = 6, 20, 60
_TASK = {
    "backbone": "minilm",
    "objective": "classify",
    "template": "{{ text }}",
    "prompt": {"kind": "deep", "tokens": 8},
    "tune": {"steps": 60, "batch_examples": 16, "validate_every": 10, "learning_rate": 0.02},
}
_WRITING = {
    "backbone": "smollm2",
    "objective": "generate",
    "data": {"target": "target", "test": 0.4, "validation": 0.1},
    "prompt": {"kind": "deep"},
    "tune": {"steps": 40, "batch_examples": 8},
    "evaluate": {"metrics": ["exact_match", "chrf"], "few_shot": 4, "max_new_tokens": 24},
}
# Ten ways in which people break a task.
BROKEN: tuple[dict[str, Any], ...] = (
    {"objectiv": "classify"},
    {"objective": "translate"},
    {"data": {"path": "nowhere.csv", "target": "label"}},
    {"data": {"path": "{data}", "target": "lable"}},
    {"data": {"path": "{data}", "target": "label", "test": 0.9, "validation": 0.5}},
    {"template": "{{ txet }}"},
    {"template": "{{ text"},
    {"backbone": "minilmm"},
    {"prompt": {"kind": "soft"}},
    {"schedule": "every monday"},
)


def write_tasks(folder: Path, count: int, broken: int) -> list[str]:
    """Task files with their data; gives the names, the broken ones spread among the good."""
    folder.mkdir(parents=True)
    sources = [pl.read_parquet(SHARED_DATA / f"{name}_train.parquet").select("text", "label") for name in ("banking77", "clinc150")]
    ways = dict(zip((number * count // max(broken, 1) for number in range(broken)), BROKEN * (broken // len(BROKEN) + 1), strict=False))
    names = []
    for number in range(count):
        draw, source = np.random.default_rng(number), sources[number % 2]
        labels = draw.choice(sorted(source["label"].unique()), CLASSES, replace=False).tolist()
        rows = [source.filter(label=label).sample(EXAMPLES, seed=number) for label in labels]
        name = f"task_{number:04d}" + ("_broken" if number in ways else "")
        pl.concat(rows).write_csv(folder / f"{name}.csv")
        changes = json.loads(json.dumps(ways.get(number, {})).replace("{data}", f"{name}.csv"))
        task = {"name": name, **_TASK, "data": {"path": f"{name}.csv", "target": "label"}, **changes}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
        names.append(name)
    return names


def write_writing_tasks(folder: Path) -> list[str]:
    """The task files of instruction induction (Honovich et al. 2022, arXiv:2205.10782), with the first instruction people wrote."""
    folder.mkdir(parents=True)
    pairs, instructions = (pl.read_parquet(SHARED_DATA / f"instruction_induction_{part}.parquet") for part in ("train", "gold_prompts"))
    for name in INDUCTION:
        own = pairs.filter(task=name).select("source", "target").unique("source", maintain_order=True).head(PAIRS)
        own.write_csv(folder / f"{name}.csv")
        instruction = instructions.filter(task=name)["instruction"][0]
        template = [{"system": instruction}, {"user": "{{ source }}"}]
        task = {**_WRITING, "name": name.replace("-", "_"), "template": template, "data": {**_WRITING["data"], "path": f"{name}.csv"}}
        (folder / f"{task['name']}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    return [name.replace("-", "_") for name in INDUCTION]


def run(deployment: Path, tasks: Path, only: str | None = None) -> dict[str, Any]:
    """A run in a process of its own: seconds from its start to its end, its peak memory, and what it says."""
    places = {
        "PROMPTMILL_TASKS": str(tasks),
        "PROMPTMILL_STORE": str(deployment / "store"),
        "DAGSTER_HOME": str(deployment / "home"),
        "DAGSTER_DISABLE_TELEMETRY": "yes",
    }
    (deployment / "home").mkdir(parents=True, exist_ok=True)
    shutil.copy(REPOSITORY / "deploy" / "dagster.yaml", deployment / "home")
    began = time.perf_counter()
    command = [sys.executable, __file__, "--worker", *([only] if only else ["*"])]
    done = subprocess.run(command, env={**os.environ, **places}, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])
    return {"seconds": round(seconds, 2), **json.loads(done.stdout.splitlines()[-1])}


def worker(only: str | None) -> None:
    """The run itself, all tasks or one, as the last line of its output."""
    import dagster as dg

    from pipelines.automation import runs_for
    from pipelines.definitions import defs
    from pipelines.partitions import find_task_files, register
    from pipelines.settings import Settings

    job = defs.resolve_job_def("retune")
    with dg.DagsterInstance.get() as instance:
        keys = register(instance, find_task_files(Settings.from_environment().tasks_dir))
        (request,) = runs_for([only] if only else keys, keys, "benchmark")
        config = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
        result = job.execute_in_process(
            instance=instance, partition_key=request.partition_key, tags=request.tags, run_config=config, raise_on_error=False
        )
        events = [event for event in result.all_events if event.is_step_materialization]
        made = {
            asset: sum(event.asset_key.path == [asset] for event in events) for asset in ("examples", "tuned_prompt", "published_prompt")
        }
        steps = {event.step_key: event.step_success_data.duration_ms / 1000 for event in result.all_events if event.is_step_success}
        failures = [event.step_failure_data.user_failure_data for event in result.all_events if event.is_step_failure]
    reasons = [line for failure in failures if failure for line in str(failure.description).splitlines()[1:]]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"mib": round(peak), "made": made, "step_seconds": steps, "failed": sorted(set(reasons))}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--broken", type=int, default=10)
    parser.add_argument("--writing", action="store_true", help="tasks that write texts in their place")
    parser.add_argument("--sample", type=int, default=5, help="single runs that are measured")
    parser.add_argument("--worker", help="run one task, or * for all, in this process")
    arguments = parser.parse_args()
    if arguments.worker:
        worker(None if arguments.worker == "*" else arguments.worker)
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tasks = root / "tasks"
        names = write_writing_tasks(tasks) if arguments.writing else write_tasks(tasks, arguments.tasks, arguments.broken)
        good = [name for name in names if not name.endswith("_broken")]
        sample = good[:: max(1, len(good) // arguments.sample)][: arguments.sample]
        singles = [run(root / "single", tasks, name) for name in sample]
        fleet = run(root / "fleet", tasks)
        fleet["failed"] = [line.replace(f"{root}/", "") for line in fleet["failed"]]
    alone = statistics.median(single["seconds"] for single in singles)
    together = fleet["seconds"] / len(good)  # a broken one is no gain
    broken = [line for line in fleet["failed"] if "_broken: " in line]
    rejected = len(fleet["failed"]) - len(broken)
    print(
        f"{len(names)} tasks in one run: {fleet['seconds']:.0f} s, {together:.2f} s per good task; a run of its own {alone:.1f} s: "
        f"{alone / together:.1f}x; peak {fleet['mib']} MiB beside {max(single['mib'] for single in singles)} MiB"
    )
    print(f"published {fleet['made']['published_prompt']}, rejected by the gate {rejected}, broken {len(broken)}:")
    print("\n".join(f"  {line}" for line in broken))
    write_result(
        f"fleet_backfill_{'writing' if arguments.writing else len(names)}",
        {
            "tasks": len(names),
            "task": {"pairs": PAIRS, **_WRITING} if arguments.writing else {"classes": CLASSES, "examples per class": EXAMPLES, **_TASK},
            "fleet": {**fleet, "seconds per good task": round(together, 3), "rejected": rejected, "broken": broken},
            "single runs": {"median seconds": alone, "sample": dict(zip(sample, singles, strict=True))},
            "ratio": round(alone / together, 2),
        },
    )


if __name__ == "__main__":
    main()
