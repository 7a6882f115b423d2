"""The batch job: all columns and rows come out, bad rows with their reason, and a killed run goes on."""

from __future__ import annotations

import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from helpers import memory_fails
from hypothesis import given, settings
from hypothesis import strategies as st
from served_prompts import a_prompt, a_served_store, publish, ready_on

from prompt_core.backbone import Backbone
from prompt_core.batch import Predicted, predict_table
from prompt_core.batch.job import ADDED
from prompt_core.batch.reading import read_chunks
from prompt_core.errors import PromptmillError, Unreachable
from prompt_core.shelf import Shelf
from prompt_core.store import PromptStore

ROWS = [{"id": f"00{i}", "text": f"Text number {i} {'good' if i % 2 else 'bad'}", "more": {"n": [i]}} for i in range(7)]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, llama: Backbone) -> Shelf:
    return Shelf(a_served_store(tmp_path_factory.mktemp("served") / "store", llama), ready_on(llama))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    frame = pl.DataFrame(rows)
    if path.suffix == ".csv":
        frame.with_columns(pl.col("more").struct.json_encode()).write_csv(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        frame.write_parquet(path)
    return path


def read(path: Path) -> pl.DataFrame:
    if path.suffix == ".csv":
        return pl.read_csv(path, infer_schema=False)
    return pl.read_ndjson(path) if path.suffix == ".jsonl" else pl.read_parquet(path)


@pytest.mark.parametrize("target", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("source", ["csv", "jsonl", "parquet"])
def test_every_column_and_row_comes_out_in_order_whatever_the_kinds_of_file(tmp_path: Path, shelf: Shelf, source: str, target: str) -> None:
    given, path = write(tmp_path / f"in.{source}", ROWS), tmp_path / f"out.{target}"
    assert predict_table(shelf, "mood", given, path, part_rows=3) == Predicted(7, 0, 0, None)
    found = read(path)
    prompt = shelf.find("mood")
    assert found.columns == ["id", "text", "more", *ADDED]
    assert found["id"].to_list() == [row["id"] for row in ROWS]
    assert found["prediction"].to_list() == prompt.tuned.predict([row["text"] for row in ROWS], prompt.ready.backbone)
    assert set(found["prompt_digest"]) == {prompt.digest} and set(map(int, found["prompt_version"])) == {1}
    assert all(0.5 <= float(score) <= 1 for score in found["prediction_score"])
    nested = "csv" not in (source, target)
    assert found["more"][2] == ({"n": [2]} if nested else found["more"][2]) and (nested or json.loads(found["more"][2]) == {"n": [2]})
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"in.{source}", f"out.{target}"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_files_may_have_the_signs_of_a_pattern_in_their_names(tmp_path: Path, shelf: Shelf, kind: str) -> None:
    (tmp_path / "week [1]").mkdir()
    given = write(tmp_path / "week [1]" / f"in*.{kind}", ROWS)
    assert predict_table(shelf, "mood", given, tmp_path / "week [1]" / f"out[?].{kind}").rows == 7


def test_a_column_names_the_prompt_of_each_row(tmp_path: Path, shelf: Shelf) -> None:
    names = ["mood", "tone@1", None, "reply@production", "story", "nobody", "reply@9"]
    given = write(tmp_path / "in.jsonl", [{**row, "use": name} for row, name in zip(ROWS, names, strict=True)])
    done = predict_table(shelf, "tone", given, tmp_path / "out.jsonl", "use")
    found = pl.read_ndjson(tmp_path / "out.jsonl")
    assert found["id"].to_list() == [f"00{i}" for i in range(5)] and (done.rows, done.rejected) == (5, 2)
    for row, name in zip(found.iter_rows(named=True), ["mood", "tone", "tone", "reply", "story"], strict=True):
        prompt = shelf.find(name)
        assert [row["prediction"]] == prompt.tuned.predict([row["text"]], prompt.ready.backbone)
        assert row["prompt_digest"] == prompt.digest
    assert done.rejected_path is not None
    rejected = [json.loads(line) for line in done.rejected_path.read_text().splitlines()]
    assert [line["row"] for line in rejected] == [6, 7]
    assert 'there is no prompt "nobody"' in rejected[0]["reason"] and "there is no version 9" in rejected[1]["reason"]
    assert predict_table(shelf, None, given, tmp_path / "out.jsonl", "use").rejected == 3  # the empty cell too


def test_bad_rows_go_to_a_side_file_with_number_and_reason(tmp_path: Path, shelf: Shelf) -> None:
    lines = ['{"text": "good"}', "{", "[1]", "", '{"text": " "}', '{"other": 1}', '{"text": "bad", "n": 1}', '{"text": "x", "n": "y"}']
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    done = predict_table(shelf, "mood", tmp_path / "in.jsonl", tmp_path / "out.csv", part_rows=2)
    assert done == Predicted(3, 4, 0, tmp_path / "out.csv.rejected.jsonl")
    assert done.rejected_path is not None
    reasons = {line["row"]: line["reason"] for line in map(json.loads, done.rejected_path.read_text().splitlines())}
    assert list(reasons) == [2, 3, 4, 5]
    assert reasons[2].startswith("is not JSON (") and reasons[3] == "holds a JSON list, not an object"
    assert 'field "text" is empty' in reasons[4] and 'field "text" is ' in reasons[5]
    assert pl.read_csv(tmp_path / "out.csv")["n"].to_list() == [None, "1", "y"]
    (tmp_path / "in.csv").write_bytes('id,text\n1,good\n2,bad,"x"\n3\n4,\xff\n5,"a\nb"\n'.encode("latin-1"))
    done = predict_table(shelf, "mood", tmp_path / "in.csv", tmp_path / "out.csv")
    reasons = {line["row"]: line["reason"] for line in map(json.loads, (tmp_path / "out.csv.rejected.jsonl").read_text().splitlines())}
    assert reasons == {2: "has 3 fields, the header 2", 3: "has 1 fields, the header 2", 4: "is not UTF-8"}
    assert pl.read_csv(tmp_path / "out.csv")["text"].to_list() == ["good", "a\nb"]
    (tmp_path / "in.csv").write_text('id,text\n1,"good" one\n2,bad\n3,"not closed\n4,swallowed\n')
    assert predict_table(shelf, "mood", tmp_path / "in.csv", tmp_path / "out.csv").rows == 1
    reasons = {line["row"]: line["reason"] for line in map(json.loads, (tmp_path / "out.csv.rejected.jsonl").read_text().splitlines())}
    assert reasons == {1: "is not CSV (',' expected after '\"')", 3: "is not CSV (unexpected end of data)"}
    (tmp_path / "in.csv").write_text("id,text\n1,good\n")
    assert predict_table(shelf, "mood", tmp_path / "in.csv", tmp_path / "out.csv").rejected_path is None
    assert not (tmp_path / "out.csv.rejected.jsonl").exists()  # that of the run before is gone


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_an_empty_table_keeps_its_columns(tmp_path: Path, shelf: Shelf, kind: str) -> None:
    given = write(tmp_path / f"in.{kind}", ROWS)
    if kind == "csv":
        given.write_text("id,text\n")
    else:
        pl.read_parquet(given).head(0).drop("more").write_parquet(given)
    assert predict_table(shelf, "mood", given, tmp_path / f"out.{kind}").rows == 0
    assert read(tmp_path / f"out.{kind}").columns == ["id", "text", *ADDED]


@pytest.mark.parametrize(
    ("content", "name", "column", "finding"),
    [
        ("txet\na\n", "mood", None, r'there is no column "text", a field of the template of mood. Did you mean "txet"\?'),
        ("text;use\na, b;x\n", "mood", None, "Its columns look separated by ';'; Promptmill reads commas"),
        ("text,prediction\na,b\n", "mood", None, "prediction: a column of this name is added. Rename"),
        ("text\na\n", "mood", "use", 'there is no column "use"'),
        ("text\na\n", "moood", None, 'there is no prompt "moood". Did you mean "mood"'),
        ("text,text\na,b\n", "mood", None, "names a column twice"),
        ("", "mood", None, "has no line of column names"),
        ('"text"x,id\na,b\n', "mood", None, r"in\.csv: line 1: is not CSV .* write a double quote inside as"),
    ],
)
def test_what_no_row_can_be_answered_with_is_refused_at_once(
    tmp_path: Path, shelf: Shelf, content: str, name: str, column: str | None, finding: str
) -> None:
    (tmp_path / "in.csv").write_text(content)
    with pytest.raises(PromptmillError, match=finding):
        predict_table(shelf, name, tmp_path / "in.csv", tmp_path / "out.csv", column)
    with pytest.raises(PromptmillError, match="no prompt is named for it"):
        predict_table(shelf, None, tmp_path / "in.csv", tmp_path / "out.csv")
    with pytest.raises(PromptmillError, match="is the input"):
        predict_table(shelf, "mood", tmp_path / "in.csv", tmp_path / "in.csv")
    (tmp_path / "in.parquet").write_bytes(b"PAR1 and no end")
    with pytest.raises(PromptmillError, match="cannot be read"):
        predict_table(shelf, "mood", tmp_path / "in.parquet", tmp_path / "out.csv")


def answered(folder: Path, shelf: Shelf, rows: list[dict[str, Any]], target: str = "jsonl", part_rows: int = 2048) -> list[dict[str, Any]]:
    """The columns of the input as they come out."""
    given, path = folder / "in.jsonl", folder / f"out.{target}"
    given.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    predict_table(shelf, "mood", given, path, part_rows=part_rows)
    found = [json.loads(line) for line in path.read_text().splitlines()] if target == "jsonl" else read(path).rows(named=True)
    return [{name: value for name, value in row.items() if name not in ("text", *ADDED)} for row in found]


@pytest.mark.parametrize("part_rows", [2048, 1])
@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([{"a": 1}, {"b": 2}], [{"a": 1, "b": None}, {"a": None, "b": 2}]),
        ([[1, 2], [2.5]], [[1, 2], [2.5]]),
        ([1, 2.5], [1, 2.5]),
        ([2**63, -1], [2**63, -1]),
        ([True, 3], ["true", "3"]),
        ([[1], ["b"]], ["[1]", '["b"]']),
        ([{"a": 1}, {"a": [1]}], ['{"a": 1}', '{"a": [1]}']),
        ([[1], "x"], ["[1]", "x"]),
        ([{}, {}], ["{}", "{}"]),
        ([{"a": [{}]}, None], ['{"a": [{}]}', None]),
    ],
)
def test_no_value_of_a_column_becomes_another_one(
    tmp_path: Path, shelf: Shelf, values: list[Any], found: list[Any], part_rows: int
) -> None:
    rows = [{"text": "a", "more": value} for value in values]
    for target in ("jsonl", "parquet"):
        assert [row["more"] for row in answered(tmp_path, shelf, rows, target, part_rows)] == found


def test_large_whole_numbers_beside_fractions_keep_their_digits(tmp_path: Path, shelf: Shelf) -> None:
    rows = [{"text": "a", "more": value} for value in (2**60 + 1, 0.5)]
    assert [row["more"] for row in answered(tmp_path, shelf, rows)] == [str(2**60 + 1), "0.5"]


def test_a_row_of_jsonl_is_read_without_what_its_neighbours_have(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": {"a": 1}}\n{"text": {"b": 2.0}, "n": 1}\n')
    (chunk,) = read_chunks(tmp_path / "in.jsonl", 10)
    assert chunk.rows == [{"text": {"a": 1}}, {"text": {"b": 2.0}, "n": 1}]


def test_a_column_of_an_added_name_is_refused_wherever_it_begins(tmp_path: Path, shelf: Shelf) -> None:
    with pytest.raises(PromptmillError, match="prediction: a column of this name is added"):
        answered(tmp_path, shelf, [{"text": "a"}, {"text": "b"}, {"text": "c", "prediction": "mine"}], part_rows=2)


def test_every_type_of_parquet_comes_out_or_is_refused_at_once(tmp_path: Path, shelf: Shelf) -> None:
    frame = pl.DataFrame(
        {
            "text": ["a", "b"],
            "array": pl.Series([[1, 2], [3, 4]], dtype=pl.Array(pl.Int64, 2)),
            "nested": [{"days": [date(2024, 1, 1)], "took": timedelta(seconds=3)}, None],
            "took": [timedelta(seconds=3), None],
        }
    )
    frame.write_parquet(tmp_path / "in.parquet")
    for target in ("csv", "jsonl", "parquet"):
        predict_table(shelf, "mood", tmp_path / "in.parquet", tmp_path / f"out.{target}")
    found = pl.read_csv(tmp_path / "out.csv")
    assert found["array"].to_list() == ["[1, 2]", "[3, 4]"] and found["took"].to_list() == ["PT3S", None]
    assert found["nested"].to_list() == ['{"days": ["2024-01-01"], "took": "PT3S"}', None]
    assert pl.read_ndjson(tmp_path / "out.jsonl")["took"].to_list() == ["PT3S", None]
    assert pl.read_parquet(tmp_path / "out.parquet").drop(ADDED).equals(frame)
    for column in (pl.Series("raw", [b"\xff", b"x"]), pl.Series("raw", [[b"\xff"], []])):
        frame.with_columns(column).write_parquet(tmp_path / "in.parquet")
        for target in ("csv", "jsonl"):
            with pytest.raises(PromptmillError, match='cannot hold the column "raw" of bytes'):
                predict_table(shelf, "mood", tmp_path / "in.parquet", tmp_path / f"out.{target}")
        assert predict_table(shelf, "mood", tmp_path / "in.parquet", tmp_path / "out.parquet").rows == 2


def test_a_key_without_a_name_keeps_it_and_a_number_names_a_prompt_too(tmp_path: Path, shelf: Shelf) -> None:
    assert answered(tmp_path, shelf, [{"text": "a", "": 1}]) == [{"": 1}]
    pl.DataFrame({"text": ["a", "b"], "use": [0, None]}).write_parquet(tmp_path / "in.parquet")
    done = predict_table(shelf, "mood", tmp_path / "in.parquet", tmp_path / "out.parquet", "use")
    assert (done.rows, done.rejected) == (1, 1) and done.rejected_path is not None
    assert 'there is no prompt \\"0\\"' in done.rejected_path.read_text()


@pytest.mark.parametrize("target", ["csv", "parquet"])
@pytest.mark.parametrize("largest", [10_000, 50_000])  # bytes of a file: less than a part has, less than the whole
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(tmp_path: Path, shelf: Shelf, target: str, largest: int) -> None:
    given = write(tmp_path / "in.jsonl", [{**row, "more": {"n": os.urandom(9000).hex()}} for row in ROWS])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, before[1]))
    try:
        with pytest.raises(PromptmillError, match=r"cannot be written \(.*File too large"):
            predict_table(shelf, "mood", given, tmp_path / f"out.{target}", part_rows=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / f"out.{target}").exists()
    assert predict_table(shelf, "mood", given, tmp_path / f"out.{target}", part_rows=2).found == (0 if largest == 10_000 else 7)


def test_a_row_that_is_no_text_is_rejected_alone(tmp_path: Path, shelf: Shelf) -> None:
    lines = ['{"text": "a"}', '{"text": "cut \\ud83d"}', '{"text": "a", "other": "\\uD83D"}', '{"text": "a", "n": ' + "1" * 5000 + "}"]
    (tmp_path / "in.jsonl").write_text("\n".join([*lines, '{"text": "\\ud83d\\ude00"}']))
    assert predict_table(shelf, "mood", tmp_path / "in.jsonl", tmp_path / "out.csv").rows == 2
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "out.csv.rejected.jsonl").read_text().splitlines()]
    assert reasons == [*["is not Unicode text (half of a surrogate pair)"] * 2, "is not JSON (a number is too long)"]


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_answered(tmp_path: Path, shelf: Shelf) -> None:
    given = write(tmp_path / "in.jsonl", ROWS)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(PromptmillError, match=r"folder\.csv: is a folder"):
        predict_table(shelf, "mood", given, tmp_path / "folder.csv")
    (tmp_path / ".out.csv.parts").write_text("a file")
    done: list[int] = []
    with pytest.raises(PromptmillError, match=r"\.out\.csv\.parts: cannot be written \(File exists\)"):
        predict_table(shelf, "mood", given, tmp_path / "out.csv", on_progress=lambda finished, _: done.append(finished))
    assert not done


def test_the_example_of_a_job_fails_where_nothing_was_answered(
    tmp_path: Path, shelf: Shelf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(__file__).resolve().parents[2] / "examples" / "consumer" / "batch_job.py"
    given, target = tmp_path / "in.csv", tmp_path / "out.csv"
    given.write_text('text\n""\n')
    monkeypatch.setattr("sys.argv", [path.name, "--store", shelf.store.url, "--name", "mood", str(given), str(target)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 2 and capsys.readouterr().out == f"0 rows -> {target}, 1 -> {target}.rejected.jsonl\n"


@settings(deadline=None, max_examples=60)
@given(
    content=st.binary(max_size=80) | st.text(alphabet='ab,"\n\r{}:[]1\\', max_size=60).map(str.encode),
    suffix=st.sampled_from(["csv", "jsonl"]),
)
def test_any_bytes_are_rows_reasons_or_one_clear_error(tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str) -> None:
    path = tmp_path_factory.getbasetemp() / f"any.{suffix}"
    path.write_bytes(content)
    try:
        chunks = list(read_chunks(path, 2))
    except PromptmillError:
        return
    numbers = [number for chunk in chunks for number in sorted([*chunk.numbers, *chunk.bad])]
    assert numbers == list(range(1, len(numbers) + 1))
    assert all(len(chunk.frame) == len(chunk.numbers) or not chunk.frame.columns for chunk in chunks)


@pytest.mark.slow
def test_a_killed_run_goes_on_behind_its_finished_parts(tmp_path: Path, llama: Backbone) -> None:
    store = PromptStore(tmp_path / "store")
    publish(store, a_prompt(llama, "reply", writes=True, max_new_tokens=60))
    given = write(tmp_path / "in.parquet", [{"id": i, "text": f"Text {i}", "more": {"n": [i]}} for i in range(160)])
    arguments = ["predict", "reply", "in.parquet", "out.parquet", "--part-rows", "4", "--store", str(tmp_path / "store")]
    command = [sys.executable, "-c", "from prompt_core.cli import main; main()", *arguments]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    folder = tmp_path / ".out.parquet.parts"
    while len(list(folder.glob("*.parquet"))) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}
    assert 3 <= len(finished) < 40 and not (tmp_path / "out.parquet").exists()
    shelf = Shelf(store, ready_on(llama))
    done = predict_table(shelf, "reply", given, tmp_path / "out.parquet", part_rows=4)
    assert (done.rows, done.found) == (160, 4 * len(finished)) and not folder.exists()
    predict_table(shelf, "reply", given, tmp_path / "whole.parquet")
    together, whole = (pl.read_parquet(tmp_path / f"{name}.parquet") for name in ("out", "whole"))
    assert together.drop("prediction_score").equals(whole.drop("prediction_score"))


def test_parts_of_another_prompt_or_input_are_not_taken(tmp_path: Path, llama: Backbone) -> None:
    store = PromptStore(tmp_path / "store")
    for seed in (1, 2):
        publish(store, a_prompt(llama, "mood", seed=seed))
    given, shelf = write(tmp_path / "in.jsonl", ROWS), Shelf(store, ready_on(llama))

    def run(name: str, interrupted: bool = False) -> int:
        def stop(done: int, total: int) -> None:
            if interrupted:
                raise KeyboardInterrupt

        return predict_table(shelf, name, given, tmp_path / "out.csv", part_rows=3, on_progress=stop).found

    def interrupt(name: str) -> None:
        with pytest.raises(KeyboardInterrupt):
            run(name, interrupted=True)
        assert len(list((tmp_path / ".out.csv.parts").glob("*.parquet"))) == 1

    interrupt("mood@1")
    assert run("mood@2") == 0
    interrupt("mood@1")
    assert run("mood@1") == 3
    interrupt("mood@1")
    write(given, [*ROWS, ROWS[0]])
    assert run("mood@1") == 0


def test_a_job_stops_where_the_store_cannot_be_reached_and_goes_on_behind_its_parts(llama: Backbone, tmp_path: Path) -> None:
    store = PromptStore("memory://" + tmp_path.name)
    for name in ("mood", "tone"):
        publish(store, a_prompt(llama, name))
    given = write(tmp_path / "in.jsonl", [row | {"by": "mood" if number < 4 else "tone"} for number, row in enumerate(ROWS)])

    def run(on_progress: Any = None) -> Predicted:
        target = tmp_path / "out.csv"
        return predict_table(Shelf(store, ready_on(llama)), None, given, target, prompt_column="by", part_rows=4, on_progress=on_progress)

    with ExitStack() as outage:
        with pytest.raises(Unreachable, match="reset by peer"):
            run(lambda done, total: outage.enter_context(memory_fails(ConnectionResetError("reset by peer"))))
        assert not (tmp_path / "out.csv").exists()
    assert run() == Predicted(7, 0, 4, None)


@pytest.mark.parametrize("emptied", [".parquet", ".rejected.jsonl"])
def test_a_finished_part_that_a_power_cut_left_empty_is_made_again(tmp_path: Path, shelf: Shelf, emptied: str) -> None:
    given, target = write(tmp_path / "in.jsonl", [*ROWS, {"id": "bad", "text": "", "more": {"n": []}}]), tmp_path / "out.csv"

    def stop(done: int, total: int) -> None:
        if done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_table(shelf, "mood", given, target, part_rows=4, on_progress=stop)
    last = max((tmp_path / ".out.csv.parts").glob(f"000001-*{emptied}"))
    last.write_bytes(b"")
    found = predict_table(shelf, "mood", given, target, part_rows=4)
    assert (found.rows, found.rejected, found.found) == (7, 1, 4)
