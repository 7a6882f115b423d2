"""The command line: one path from a task file to a prompt in use, and one line with status 2 for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from click.testing import CliRunner, Result

from prompt_core.cli import main

ROOT = Path(__file__).parents[1]
USES = ["predict", "try", "serve"]
COMMANDS = [
    "tune",
    "evaluate",
    *USES,
    "list",
    "show",
    "export",
    "promote",
    "rollback",
    "withdraw",
    "history",
    "verify",
    "gc",
    "schema",
    "init",
]
COMMANDS += ["report", "card", "drift"]


def messages_of_two_intents() -> list[tuple[str, str]]:
    messages = pl.read_csv(ROOT / "examples" / "support_desk" / "intents.csv")
    kinds = {name: f"kind_{number}" for number, name in enumerate(messages["label"].unique().sort()[:2], 1)}
    return [(text, kinds[label]) for text, label in messages.select("text", "label").rows() if label in kinds]


MESSAGES = messages_of_two_intents()


def in_a_process(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from prompt_core.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def passed(*arguments: str | Path) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refused(folder: Path, *arguments: str | Path) -> str:
    """The one line of a mistake: status 2, nothing on standard output, and no file that was not there before."""
    before = tree(folder)
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.endswith("\n") and result.stderr.count("\n") == 1, result.stderr
    assert tree(folder) == before
    return result.stderr.strip()


def a_task_file(folder: Path, rows: list[tuple[str, str]] | None = None, **parts: Any) -> Path:
    """A task `desk` beside its data: real messages of two intents whose labels say nothing."""
    pl.DataFrame(MESSAGES if rows is None else rows, schema=["text", "label"], orient="row").write_csv(folder / "desk.csv")
    content = {
        "name": "desk",
        "backbone": {"name": "minilm", "dtype": "float32"},
        "data": {"path": "desk.csv", "target": "label", "test": 0.5},
        "objective": "classify",
        "template": "{{ text }}",
        "prompt": {"tokens": 4},
        "tune": {"steps": 16, "learning_rate": 0.03, "batch_examples": 8, "max_tokens": 32},
        "gate": {"alpha": 0.1},
        **parts,
    }
    path = folder / "desk.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_help_answers_in_half_a_second_without_torch(tmp_path: Path) -> None:
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        result = in_a_process("--help", cwd=tmp_path)
        seconds.append(time.monotonic() - began)
        assert result.returncode == 0 and "Tune the prompt of a frozen language model" in result.stdout
    print(f"promptmill --help: {min(seconds):.2f} s")  # noqa: T201
    assert min(seconds) < 1.0  # 0.5 s on a machine with nothing else to do
    probe = "import sys, prompt_core.cli; print(*[m for m in ('torch', 'transformers', 'polars', 'pydantic') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout == "\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    assert "Usage: " in passed(command, "--help").stdout
    assert command in passed("--help").stdout


def test_the_schema_is_printed_as_json() -> None:
    assert json.loads(passed("schema").stdout)["title"] == "TaskSpec"


def test_a_typing_mistake_is_one_line_in_a_real_process(tmp_path: Path) -> None:
    a_task_file(tmp_path)
    began = time.monotonic()
    result = in_a_process("tune", "desk.yml", cwd=tmp_path)
    assert time.monotonic() - began < 3  # no model library is imported for it
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == 'Error: desk.yml: there is no such task file. Did you mean "desk.yaml"?\n'
    assert tree(tmp_path) == ["desk.csv", "desk.yaml"]


def test_a_refused_architecture_is_one_line_in_a_real_process(tmp_path: Path) -> None:
    from helpers import save_tiny

    save_tiny("bloom", tmp_path / "tiny-bloom")
    a_task_file(tmp_path, backbone="tiny-bloom", template="{{ text }} is")
    before = tree(tmp_path)
    result = in_a_process("tune", "desk.yaml", "--out", "p", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "Error: backbone: architecture BloomModel: called the attention step 0 times in 2 layers. "
        "It cannot be tuned exactly; choose another model.\n"
    )
    assert tree(tmp_path) == before


def test_from_a_task_file_to_a_prompt_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROMPTMILL_STORE", str(tmp_path / "store"))
    task, folder = a_task_file(tmp_path), tmp_path / "p"

    said = passed("tune", task, "--out", folder, "--json")
    assert said.stderr == "desk: 33 test rows can show a gain of 12.2 points or more in accuracy (p below 0.1)\n"
    tuned = json.loads(said.stdout)
    assert tuned["folder"] == str(folder) and len(tuned["digest"]) == 64 and tuned["kind"] == "deep, 4 tokens"
    assert "exists already" in refused(tmp_path, "tune", task, "--out", folder)

    wrong = passed("evaluate", task, folder, "--store", tmp_path / "wrong")
    assert wrong.stderr.startswith(
        f"desk: nothing live to compare with, store {tmp_path / 'wrong'}: there is no prompt store at this address."
    )
    evaluated = passed("evaluate", task, folder, "--publish", "--json")
    assert json.loads(evaluated.stdout)["verdict"]["passed"] is True
    assert "published desk@1 as production" in evaluated.stderr
    listed = {"name": "desk", "versions": [1], "aliases": {"production": 1}, "taken_back": {}}
    assert json.loads(passed("list", "--json").stdout) == [listed]
    assert passed("list").stdout == "desk  versions 1  production -> 1\n"

    shown = json.loads(passed("show", "desk@production", "--json").stdout)
    assert (shown["version"], shown["digest"]) == (1, tuned["digest"])
    assert shown["record"]["evaluation"]["verdict"]["passed"] is True
    assert tuned["digest"] in passed("show", "desk").stdout

    pl.DataFrame({"id": [7, 8], "text": ["Where is it?", "It is broken"]}).write_csv("new.csv")
    passed("predict", "desk", "new.csv", "answered.jsonl")
    answered = pl.read_ndjson("answered.jsonl")
    assert answered.columns == ["id", "text", "prediction", "prediction_score", "prompt_version", "prompt_digest"]
    assert set(answered["prediction"]) <= {"kind_1", "kind_2"} and answered["prompt_digest"].unique().to_list() == [tuned["digest"]]

    tried = json.loads(passed("try", "desk", "It is broken", "--json").stdout)
    assert (tried["prompt"], tried["with"]) == ("desk@1", answered["prediction"][1])
    assert "with desk@1" in passed("try", "desk@1", "It is broken").stdout
    assert passed("evaluate", task, folder).stderr == ""

    page = passed("report", "desk").stdout
    assert page.startswith("<!doctype html>") and tuned["digest"] in page
    (kept,) = (tmp_path / "store").rglob("report.html")
    assert kept.read_text(encoding="utf-8") == page and passed("verify").exit_code == 0
    passed("report", "desk@1", "--output", "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page
    assert passed("card", "desk").stdout.startswith("---\nbase_model: minilm\n")

    assert passed("drift", "desk", "new.csv").exit_code == 0  # two rows show nothing
    assert "labels " in passed("drift", "desk", "answered.jsonl").stdout  # predictions, beside those of the evaluation
    pl.DataFrame({"text": ["Lorem ipsum dolor sit amet, consectetur adipiscing elit " * 4] * 60}).write_parquet("other.parquet")
    drifted = run("drift", "desk", "other.parquet", "--json")
    assert drifted.exit_code == 1 and [shift["drifted"] for shift in json.loads(drifted.stdout)["shifts"]] == [True, True]
    pl.DataFrame({"txt": ["a"]}).write_csv("wrong.csv")
    assert 'column "text" is not in wrong.csv (columns: txt). Did you mean "txt"?' in refused(tmp_path, "drift", "desk", "wrong.csv")
    assert 'FILE: there is no file "none.csv"' in refused(tmp_path, "drift", "desk", "none.csv")

    passed("export", "desk", tmp_path / "out")
    assert tree(tmp_path / "out") == ["README.md", "digest", "evaluation.json", "manifest.json", "prompt.safetensors"]
    assert "exists already" in refused(tmp_path, "export", "desk", tmp_path / "out")
    assert "export desk@1 as kv: its base is an encoder" in refused(tmp_path, "export", "desk", tmp_path / "o", "--format", "kv")
    assert '"pef" is no format. Did you mean "peft"?' in refused(tmp_path, "export", "desk", tmp_path / "o", "--format", "pef")
    assert "2 prompts are named" in refused(tmp_path, "export", "desk", "desk@1", tmp_path / "o")

    other = json.loads(passed("tune", a_task_file(tmp_path, tune={"steps": 1, "seed": 1}), "--json").stdout)
    assert Path(other["folder"]) == Path(f".promptmill/prompts/desk-{other['digest'][:12]}")
    from prompt_core import PromptStore, TunedPrompt

    store = PromptStore(tmp_path / "store")
    assert store.publish(TunedPrompt.load(other["folder"]), {"verdict": {"passed": True}}) == 2
    assert passed("promote", "desk@2", "--why", "tried").stderr == "production -> desk@2\n"
    assert store.resolve("desk", "production") == 2
    assert passed("rollback", "desk").stderr == "production -> desk@1\n"
    assert "there is no version before 1" in refused(tmp_path, "rollback", "desk")
    assert 'no alias "staging"' in refused(tmp_path, "show", "desk@staging")
    assert '"desk" names no version. Write desk@VERSION' in refused(tmp_path, "promote", "desk")

    pl.DataFrame({"id": [7, 8], "text": ["Where is it?", " "]}).write_csv("empty.csv")
    assert passed("predict", "desk", "empty.csv", "a.csv").stderr.splitlines() == [
        "1 rows -> a.csv",
        "1 rows rejected -> a.csv.rejected.jsonl",
    ]
    rejected = json.loads(Path("a.csv.rejected.jsonl").read_text())
    assert rejected == {"row": 2, "reason": 'task desk: template: field "text" is empty. Give it a text.'}
    pl.DataFrame({"text": [" ", ""]}).write_csv("blank.csv")
    none = 'b.csv.rejected.jsonl: has all 2 rows of blank.csv, none was answered; row 1: task desk: template: field "text" is empty.'
    assert (nothing := run("predict", "desk", "blank.csv", "b.csv")).exit_code == 2 and none in nothing.stderr
    pl.DataFrame({"txt": ["a"]}).write_csv("other.csv")
    missing = refused(tmp_path, "predict", "desk", "other.csv", "a.csv")
    assert 'there is no column "text", a field of the template of desk. Did you mean "txt"?' in missing
    assert "there is no such file" in refused(tmp_path, "predict", "desk", "none.csv", "a.csv")
    assert 'the ending ".doc" is not known' in refused(tmp_path, "predict", "desk", "new.csv", "a.doc")
    assert 'field "text" is empty' in refused(tmp_path, "try", "desk", " ")
    assert 'field "text": is not Unicode text' in refused(tmp_path, "try", "desk", "\udcff")
    assert '"txet=a" sets no field of the template. Did you mean "text"?' in refused(tmp_path, "try", "desk", "a", "--field", "txet=a")
    assert 'there is no prompt "dsk". Did you mean "desk"?' in refused(tmp_path, "show", "dsk")


def test_several_tasks_are_tuned_side_by_side_and_one_that_fails_keeps_none_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = []
    for name, parts in (("a", {}), ("b", {"tune": {"steps": 2, "seed": 3}}), ("c", {"prompt": {"kind": "soft"}})):
        files.append(a_task_file(tmp_path, name=name, **parts).rename(tmp_path / f"{name}.yaml"))
    done = run("tune", *files, "--json")
    assert done.exit_code == 2 and "task c: prompt.kind: soft, but minilm is an encoder" in done.stderr
    written = json.loads(done.stdout)
    assert [summary["name"] for summary in written] == ["a", "b"] and all(Path(summary["folder"]).is_dir() for summary in written)
    assert "names one folder for 2 tasks" in run("tune", *files[:2], "--out", tmp_path / "p").stderr
    table = passed("tune", *files[:2]).stdout
    assert table.count("digest") == 2 and written[0]["digest"] in table


def test_a_prompt_that_is_no_better_is_reported_with_status_1_and_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    task = a_task_file(tmp_path, gate={"min_gain": 99.0}, tune={"steps": 1})
    passed("tune", task, "--out", "p")
    result = run("evaluate", task, "p", "--publish", "--store", "store")
    assert result.exit_code == 1 and "label_names" in result.stdout
    assert not (tmp_path / "store").exists()
    for lacking in (["--force", "--why", "a look"], ["--publish", "--force"], ["--publish", "--force", "--why", " "]):
        assert "--force: stands without --publish or without a reason" in refused(tmp_path, "evaluate", task, "p", *lacking)
    result = run("evaluate", task, "p", "--publish", "--force", "--why", "a look", "--store", "store")
    assert result.exit_code == 1 and "published desk@1 as candidate" in result.stderr
    assert json.loads(passed("list", "--json", "--store", "store").stdout)[0]["aliases"] == {"candidate": 1}
    assert "published by force: a look" in passed("show", "desk@candidate", "--store", "store").stdout


@pytest.mark.parametrize(
    ("rows", "parts", "finding"),
    [
        (MESSAGES, {"data": {"path": "dsk.csv", "target": "label"}}, "dsk.csv"),
        (MESSAGES, {"data": {"path": "desk.csv", "target": "lable"}}, 'data.target: column "lable" is not in'),
        (MESSAGES, {"template": "{{ txt }}"}, 'template: column "txt" is not in'),
        (MESSAGES, {"template": "{{ label }}"}, 'data.target: column "label" is also a field of the template'),
        (MESSAGES, {"template": "{{ text"}, "template: is not valid Jinja (unexpected end of template"),
        ([(" ", "a"), ("", "b")], {}, 'template: column "text" is empty in all 2 rows'),
        ([("one text", "a"), ("another text", "a")], {}, 'data.target: column "label" has only one label, "a", in all 2 usable rows'),
        ([*MESSAGES, ("a single one", "rare")], {}, 'data.target: column "label" has labels with a single usable example: "rare"'),
        (MESSAGES, {"name": "a/b"}, "desk.yaml: name: 'a/b' is not a plain name"),
        (MESSAGES, {"name": ".."}, "desk.yaml: name: '..' is not a plain name"),
        (MESSAGES, {"tempate": "x"}, 'desk.yaml: tempate: unknown field. Did you mean "template"?'),
        (MESSAGES, {"backbone": "smolm2"}, '"smolm2" is no embedded name, folder, .gguf file or hub id. Did you mean "smollm2"?'),
        (MESSAGES, {"backbone": "damaged.gguf"}, "damaged.gguf: cannot be read as GGUF ("),
        (MESSAGES, {"backbone": "empty"}, "has no config.json. Give a folder written by save_pretrained."),
        (MESSAGES, {"backbone": "weightless"}, "has no weights in safetensors. Save the model with save_pretrained"),
        (MESSAGES, {"backbone": "broken"}, "broken: cannot be loaded ("),
        (
            MESSAGES,
            {"template": [{"user": "{{ text }}"}]},
            "template: backbone minilm has no chat format. Write the template as one string.",
        ),
        (MESSAGES, {"objective": "generate"}, "task desk: objective: generate, but minilm is an encoder. Use a causal model or an"),
        (MESSAGES, {"prompt": {"kind": "soft"}}, "task desk: prompt.kind: soft, but minilm is an encoder"),
    ],
)
def test_a_task_that_cannot_be_tuned_is_one_line(tmp_path: Path, rows: list[tuple[str, str]], parts: dict[str, Any], finding: str) -> None:
    (tmp_path / "damaged.gguf").write_bytes(b"GGUF\x03\x00\x00\x00garbage")
    for name in ("empty", "weightless", "broken"):
        (tmp_path / name).mkdir()
    (tmp_path / "weightless" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"x")
    task = a_task_file(tmp_path, rows, **parts)
    assert finding in refused(tmp_path, "tune", task, "--out", tmp_path / "p")


def test_bytes_that_are_not_utf_8_are_named_by_line(tmp_path: Path) -> None:
    task = a_task_file(tmp_path, MESSAGES)
    (tmp_path / "desk.csv").write_bytes(b"text,label\ngut,a\nsch\xf6n,b\n")
    assert "desk.csv: line 3: byte 20 (0xf6) is not UTF-8. Save the file as UTF-8" in refused(tmp_path, "tune", task)
    task.write_bytes(b"name: caf\xe9")
    assert "A task file is UTF-8 text." in refused(tmp_path, "tune", task)


def test_a_place_that_cannot_be_written_is_known_before_the_tuning(tmp_path: Path) -> None:
    task = a_task_file(tmp_path, MESSAGES)
    assert "cannot be written" in refused(tmp_path, "tune", task, "--out", task / "p")


def test_a_folder_that_is_no_prompt_is_one_line(tmp_path: Path) -> None:
    task = a_task_file(tmp_path, MESSAGES)
    assert "manifest.json: cannot be read (No such file or directory)" in refused(tmp_path, "evaluate", task, tmp_path / "none")
    assert 'scheme "s4" is not supported' in refused(tmp_path, "list", "--store", "s4://bucket")


def test_the_name_of_a_task_in_tasks_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tasks").mkdir()
    a_task_file(tmp_path / "tasks", [("a text", "a"), ("b text", "a")])
    assert "has only one label" in refused(tmp_path, "tune", "desk")


def test_a_name_is_looked_up_where_the_pipeline_looks_and_the_nearest_is_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mill").mkdir()
    a_task_file(tmp_path / "mill", [("a text", "a"), ("b text", "a")]).rename("mill/desk.yml")
    assert refused(tmp_path, "tune", "dsk") == 'Error: tasks: there is no task "dsk". Name a task file.'
    monkeypatch.setenv("PROMPTMILL_TASKS", str(tmp_path / "mill"))
    assert "has only one label" in refused(tmp_path, "tune", "desk")
    Path("mill/desk.yml").rename("mill/by_hand.yaml")
    Path("mill/desk.yml").write_text("name: other")  # the name in a file goes before the name of one, as in the pipeline
    assert "has only one label" in refused(tmp_path, "tune", "desk")
    assert "other" in refused(tmp_path, "tune", "othe") and "desk.yml: backbone: is missing" in refused(tmp_path, "tune", "other")
    assert refused(tmp_path, "tune", "dsk") == f'Error: {tmp_path / "mill"}: there is no task "dsk". Did you mean "desk"?'


def test_rows_that_cleaning_removes_are_told_and_a_broken_file_keeps_no_other_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.yaml").write_text("name: [")
    rows = [*MESSAGES, ("one text", "kind_1"), ("one text", "kind_2"), MESSAGES[0], MESSAGES[1]]
    task = a_task_file(tmp_path, rows, tune={"steps": 1})
    done = run("tune", "broken.yaml", task, "nothing.yaml", "--json")
    (tuned,) = json.loads(done.stdout)
    removed = tuned["cleaning"]
    assert (removed["rows_read"], removed["conflicting"], removed["duplicates"]) == (len(rows), 2, 2)
    told = f"desk: {len(rows)} rows, 2 contradictory and 2 duplicates removed, {len(MESSAGES)} kept"
    first, *_, broken, absent = done.stderr.splitlines()
    assert done.exit_code == 2 and first == told
    assert broken.startswith("Error: broken.yaml: is not YAML") and absent.startswith("Error: nothing.yaml: there is no such task file")
    judged = run("evaluate", task, tuned["folder"], "--json", "--store", "store")
    assert json.loads(judged.stdout)["cleaning"] == removed and judged.stderr.splitlines()[0] == told
    both = run("tune", "broken.yaml", "nothing.yaml")
    assert both.exit_code == 2 and both.stderr.count("Error: ") == 2
