from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path

import polars as pl
import pytest
from data_builders import SHARED, a_task, needs_shared, rows
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_core.batch.parts import Parts
from prompt_core.batch.reading import check_source, check_target, count_rows, read_chunks
from prompt_core.data import read_examples
from prompt_core.errors import PromptmillError

# polars cannot tell an empty CSV field from an absent one, and JSON has no lone surrogates.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1)


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def error_of(folder: Path, name: str, content: str | bytes, **task: object) -> str:
    written(folder, name, content)
    with pytest.raises(PromptmillError) as caught:
        read_examples(a_task(folder, path=name, **task))  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".ndjson", ".parquet", ".CSV"])
def test_every_format_gives_the_same_frame(tmp_path: Path, suffix: str) -> None:
    frame = rows(("late, again", "1"), ('a "quoted"\nline', "2")).with_columns(other=pl.lit("unused"))
    path = tmp_path / f"examples{suffix}"
    write = {".parquet": frame.write_parquet, ".csv": frame.write_csv}.get(suffix.lower(), frame.write_ndjson)
    write(path)
    assert read_examples(a_task(tmp_path, path=path.name)).equals(frame.drop("other"))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5))
def test_any_text_survives_csv_jsonl_and_parquet(pairs: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with (Path(folder) / "a.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([("text", "label"), *pairs])
        lines = [json.dumps({"label": label, "text": text}) + "\n" for text, label in pairs]
        (Path(folder) / "a.jsonl").write_text("".join(lines), encoding="utf-8")
        rows(*pairs).write_parquet(Path(folder) / "a.parquet")
        for name in ("a.csv", "a.jsonl", "a.parquet"):
            assert read_examples(a_task(Path(folder), path=name)).rows() == pairs


@pytest.mark.parametrize("labels", [[0, 1], [True, False]])
def test_labels_that_are_not_text_become_text(tmp_path: Path, labels: list[object]) -> None:
    pl.DataFrame({"text": ["a", "b"], "label": labels}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"text": ["a", "b"], "label": labels}).write_ndjson(tmp_path / "a.jsonl")
    expected = [str(label).lower() for label in labels]
    assert read_examples(a_task(tmp_path, path="a.parquet"))["label"].to_list() == expected
    assert read_examples(a_task(tmp_path, path="a.jsonl"))["label"].to_list() == expected


def test_json_values_of_mixed_types_are_read_as_text(tmp_path: Path) -> None:
    written(tmp_path, "a.jsonl", '{"text": "a", "label": true}\n{"text": 7, "label": 1.5, "more": [1]}\n{"label": "z", "more": 2}\n')
    assert read_examples(a_task(tmp_path, path="a.jsonl")).rows() == [("a", "true"), ("7", "1.5"), (None, "z")]


def test_the_must_contain_column_is_kept_between_fields_and_target(tmp_path: Path) -> None:
    written(tmp_path, "examples.csv", "label,facts,text,extra\nreply,k: v,hello,x\n")
    task = a_task(tmp_path, objective="generate", evaluate={"must_contain": "facts"})
    assert read_examples(task).columns == ["text", "facts", "label"]


def test_a_file_url_a_pattern_and_a_name_with_brackets_are_read(tmp_path: Path) -> None:
    path = written(tmp_path, "part [1].csv", "text,label\na,x\n")
    written(tmp_path, "part [1].jsonl", '{"text": "a", "label": "x"}\n')
    for source in (path.as_uri(), "part*.csv", path.name, "part [1].jsonl"):
        task = a_task(tmp_path, path=source)
        assert read_examples(task).rows() == [("a", "x")], source


def test_a_missing_file_names_the_nearest_beside_it(tmp_path: Path) -> None:
    written(tmp_path, "replies.csv", "text,label\na,x\n")
    with pytest.raises(PromptmillError, match=r'task t: data.path: there is no file ".*replys.csv". Did you mean "replies.csv"\?'):
        read_examples(a_task(tmp_path, path="replys.csv"))
    with pytest.raises(PromptmillError, match=r"task t: data.test_path: there is no file"):
        read_examples(a_task(tmp_path, test_path="t.csv"), str(tmp_path / "t.csv"))
    with pytest.raises(PromptmillError, match="nor the folder"):
        read_examples(a_task(tmp_path, path="nowhere/a.csv"))
    with pytest.raises(PromptmillError, match=r"is a folder. Name a file in it"):
        read_examples(a_task(tmp_path, path="."))
    (tmp_path / "empty").mkdir()
    with pytest.raises(PromptmillError, match="No data file is in"):
        read_examples(a_task(tmp_path, path="empty/a.csv"))


def test_an_address_that_nothing_answers_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(PromptmillError, match=r'task t: data.path: "s3x://bucket/a.csv" cannot be read'):
        read_examples(a_task(tmp_path, path="s3x://bucket/a.csv"))


def test_an_unknown_suffix_lists_what_is_read(tmp_path: Path) -> None:
    assert 'ends in ".xlsx". Promptmill reads .csv, .jsonl, .ndjson, .parquet' in error_of(tmp_path, "a.xlsx", "x")


@pytest.mark.parametrize(("name", "content"), [("a.csv", "txt,label\na,x\n"), ("a.jsonl", '{"txt": "a", "label": "x"}\n')])
def test_an_unknown_column_names_its_field_the_columns_and_the_nearest(tmp_path: Path, name: str, content: str) -> None:
    message = error_of(tmp_path, name, content)
    assert message.startswith('task t: template: column "text" is not in ')
    assert message.endswith(f'{name} (columns: txt, label). Did you mean "txt"?')


def test_an_unknown_target_or_must_contain_names_its_field(tmp_path: Path) -> None:
    pl.DataFrame({"text": ["a"], "label": ["x"]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(PromptmillError, match=r'data.target: column "lable" .* Did you mean "label"'):
        read_examples(a_task(tmp_path, path="a.parquet", target="lable"))
    with pytest.raises(PromptmillError, match=r'evaluate.must_contain: column "facts" is not in'):
        read_examples(a_task(tmp_path, path="a.parquet", objective="generate", evaluate={"must_contain": "facts"}))


@pytest.mark.parametrize("text", ["a", "a, b", 'a, "b" and c', '"a, b"'])
def test_a_file_with_another_separator_says_so(tmp_path: Path, text: str) -> None:
    assert "look separated by ';'; Promptmill reads commas" in error_of(tmp_path, "a.csv", f"text;label\n{text};x\n")


def test_a_target_in_the_template_is_refused(tmp_path: Path) -> None:
    assert "the model would read the answer" in error_of(tmp_path, "a.csv", "text,label\na,x\n", template="{{ text }} {{ label }}")


def test_a_column_named_id_is_refused(tmp_path: Path) -> None:
    assert 'template: the column name "_id" is reserved' in error_of(tmp_path, "a.csv", "_id,label\na,x\n", template="{{ _id }}")


@pytest.mark.parametrize(("name", "line"), [("a.csv", b"\xfcbung,x\n"), ("a.jsonl", b'{"text": "\xfc"}\n')])
def test_bytes_that_are_not_utf8_are_named_by_line_and_offset(tmp_path: Path, name: str, line: bytes) -> None:
    message = error_of(tmp_path, name, b"text,label\n" + line)
    offset = 11 + line.index(b"\xfc")
    assert f"{name}: line 2: byte {offset} (0xfc) is not UTF-8. Save the file as UTF-8" in message


def test_an_empty_file_and_one_without_rows_are_refused(tmp_path: Path) -> None:
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        assert f"{name}: the file is empty" in error_of(tmp_path, name, "")
    assert "has no rows" in error_of(tmp_path, "a.csv", "text,label\n")


def test_a_malformed_csv_line_is_named(tmp_path: Path) -> None:
    assert "a.csv: line 3: has 3 fields, the header 2. Put a text with commas" in error_of(tmp_path, "a.csv", "text,label\nb,x\na,b,x\n")
    assert "a.csv: line 4: has 4 fields" in error_of(tmp_path, "a.csv", 'text,label,extra\n"b\nc",x,y\na,b,x,y\n')
    assert "a.csv: line 3: is not CSV" in error_of(tmp_path, "a.csv", 'text,label\na,x\n"open,x\nb,y\n')


def test_a_malformed_json_line_is_named(tmp_path: Path) -> None:
    good = '{"text": "a", "label": "x"}\n'
    assert "a.jsonl: line 2: is not JSON (Expecting value at character 9)" in error_of(tmp_path, "a.jsonl", good + '{"text":\n')
    deep = '{"text": "a", "label": ' + "[" * 2000 + "]" * 2000 + "}\n"
    assert "a.jsonl: line 3: is nested too deeply" in error_of(tmp_path, "a.jsonl", good + good + deep)
    assert "a.jsonl: line 3: holds a JSON list, not an object" in error_of(tmp_path, "a.jsonl", good + good + "[1]\n")


def test_a_file_that_is_not_parquet_is_one_line(tmp_path: Path) -> None:
    assert "cannot be read (parquet: File out of specification" in error_of(tmp_path, "a.parquet", "not parquet at all")


def test_a_column_of_lists_is_refused(tmp_path: Path) -> None:
    pl.DataFrame({"text": [["a"]], "label": ["x"]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(PromptmillError, match=r"a.parquet: text: the column holds List\(String\), not text"):
        read_examples(a_task(tmp_path, path="a.parquet"))


@pytest.mark.shared_data
@needs_shared
def test_real_sets_are_read_whole() -> None:
    banking = read_examples(a_task(SHARED, path="banking77_train.parquet"))
    assert (len(banking), banking["label"].n_unique()) == (10_003, 77)
    assert "reverted_card_payment?" in banking["label"]
    assert banking["text"].str.contains("\n").sum() == 10


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path) -> None:
    for name, content in (("a.csv", "text,label\na,x\n"), ("a.jsonl", '{"text": "a", "label": "x"}\n')):
        path = written(tmp_path, name, content.encode("utf-8-sig"))
        assert read_examples(a_task(tmp_path, path=name)).rows() == [("a", "x")]
        assert next(read_chunks(path, 10)).rows == [{"text": "a", "label": "x"}]
    assert "a.jsonl: line 2: is not JSON (Expecting value" in error_of(tmp_path, "a.jsonl", '{"text": "a"}\n{"text":\n'.encode("utf-8-sig"))
    assert "(columns: txt, label)" in error_of(tmp_path, "a.jsonl", '{"txt": "a", "label": "x"}\n'.encode("utf-8-sig"))


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_lines_of_a_csv_file_may_end_in_carriage_returns(tmp_path: Path, mark: str) -> None:
    path = written(tmp_path, "a.csv", mark + 'text,label\r"a\nb, c",x\rd,y\r')
    assert read_examples(a_task(tmp_path, path="a.csv")).rows() == [("a\nb, c", "x"), ("d", "y")]
    assert [row["text"] for row in next(read_chunks(path, 10)).rows] == ["a\nb, c", "d"]
    assert "a.csv: line 3: has 3 fields" in error_of(tmp_path, "a.csv", "text,label\ra,x\ra,b,x\r")


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_files_that_polars_opens_are_read_like_local_ones(tmp_path: Path, mark: str) -> None:
    for number in "12":  # a pattern, as an address in a bucket, names no local file
        written(tmp_path, f"a{number}.jsonl", f'{mark}{{"text": "a", "label": "x"}}\n')
        written(tmp_path, f"a{number}.csv", f'{mark}text,label\r"a\nb, c",x\rd,y\r')
    assert read_examples(a_task(tmp_path, path="a*.jsonl")).rows() == [("a", "x")] * 2
    assert read_examples(a_task(tmp_path, path="a*.csv")).rows() == [("a\nb, c", "x"), ("d", "y")] * 2
    written(tmp_path, "b.csv", "text,label\na,x\n".encode("utf-16"))
    with pytest.raises(PromptmillError, match=r'b\*.csv" is not UTF-8. Save'):
        read_examples(a_task(tmp_path, path="b*.csv"))


def test_a_column_that_is_there_twice_is_refused_where_it_is_used(tmp_path: Path) -> None:
    message = error_of(tmp_path, "a.csv", "text,label,label\na,x,y\n")
    assert 'a.csv" names the column "label" twice. Give every column a name of its own.' in message
    for header in ("text,label,,", "text,label,more,more", "text,label,label_duplicated_0,z"):
        written(tmp_path, "a.csv", f"{header}\na,x,y,z\n")
        assert read_examples(a_task(tmp_path, path="a.csv")).rows() == [("a", "x")]


@pytest.mark.parametrize("ending", [".CSV", ".Jsonl", ".PARQUET"])
def test_endings_may_be_in_capitals_for_predictions_too(tmp_path: Path, ending: str) -> None:
    frame, path = rows(("a", "x")), tmp_path / f"a{ending}"
    {".csv": frame.write_csv, ".parquet": frame.write_parquet}.get(ending.lower(), frame.write_ndjson)(path)
    check_source(path)
    check_target(path)
    assert count_rows(path) and next(read_chunks(path, 10)).frame.equals(frame)
    parts = Parts(tmp_path / f"b{ending}")
    parts.begin(frame.schema)
    parts.put("0", frame, {})
    parts.join()
    assert read_examples(a_task(tmp_path, path=f"b{ending}")).equals(frame)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_a_file_in_utf16_is_told_how_to_become_utf8(tmp_path: Path, encoding: str) -> None:
    for name, text in (("a.csv", "text,label\na,x\n"), ("a.jsonl", '{"text": "a", "label": "x"}\n')):
        content = ("\ufeff" * (encoding != "utf-16") + text).encode(encoding)
        assert "from UTF-16: `iconv -f UTF-16 -t UTF-8 old > new`" in error_of(tmp_path, name, content)
        with pytest.raises(PromptmillError, match="iconv -f UTF-16"):
            list(read_chunks(tmp_path / name, 10))


def test_a_message_lists_no_more_columns_than_anybody_reads(tmp_path: Path) -> None:
    message = error_of(tmp_path, "a.csv", ",".join([*(f"column{i}" for i in range(500)), "y" * 10_000]) + "\n")
    assert "column29 and 471 more" in message and len(message) < 1500
    assert len(error_of(tmp_path, "a.csv", "z" * 10_000 + "\na\n")) < 500


@pytest.mark.parametrize("label", [["billing", "urgent"], [], {"queue": "billing"}])
def test_labels_that_are_lists_or_objects_are_refused_alike(tmp_path: Path, label: object) -> None:
    expected = "holds lists or objects, but classification has one label per row. Write one text in each row."
    for first in ("billing", label):
        lines = [json.dumps({"text": "a", "label": value}) + "\n" for value in (first, label)]
        message = error_of(tmp_path, "a.jsonl", "".join(lines))
        assert message.startswith('task t: data.target: column "label" of ') and message.endswith(f"a.jsonl {expected}")
    pl.DataFrame({"text": ["a"], "label": [label]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(PromptmillError, match=f"a.parquet {expected}"):
        read_examples(a_task(tmp_path, path="a.parquet"))


def test_a_label_may_be_a_text_that_looks_like_a_list(tmp_path: Path) -> None:
    labels = [("a", "[18, 25]"), ("b", "{x}")]
    written(tmp_path, "a.jsonl", "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in labels))
    assert read_examples(a_task(tmp_path, path="a.jsonl")).rows() == labels
