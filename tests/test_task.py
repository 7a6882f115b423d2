"""Task files: what a good one means, and one line that names file, field, value and way out for every bad one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_core.errors import PromptmillError
from prompt_core.task import TaskSpec
from prompt_core.task_file import load_task, parse_task

GOOD: dict[str, Any] = {
    "name": "returns",
    "backbone": "minilm",
    "data": {"path": "returns.csv", "target": "label"},
    "objective": "classify",
    "template": "{{ text }}",
}


def write(folder: Path, **changed: Any) -> Path:
    """A task file with the fields of GOOD, some of them changed."""
    path = folder / "returns.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **changed}), encoding="utf-8")
    return path


def refused(path: Path) -> str:
    with pytest.raises(PromptmillError) as caught:
        load_task(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "finding"),
    [
        ("gate: {min_gain: 5}\nname: t\ngate: {alpha: 0.05}\n", "gate: stands twice (lines 1 and 3). Keep one."),
        ("name: t\nlabels: {billing: a, 'billing': b}\n", "billing: stands twice in line 2. Keep one."),
        ("template:\n- user: a\n  user: b\n", "user: stands twice (lines 2 and 3). Keep one."),
    ],
)
def test_a_key_that_stands_twice_is_refused_at_any_depth(tmp_path: Path, content: str, finding: str) -> None:
    path = tmp_path / "returns.yaml"
    path.write_text(content)
    assert refused(path) == f"{path}: {finding}"


def test_several_merged_mappings_are_no_repetition(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_text(path.read_text() + "gate: {<<: &a {alpha: 0.1}, <<: {min_gain: 5, alpha: 0.2}, min_gain: 6}\n")
    assert (load_task(path).gate.min_gain) == 6


def test_the_least_file_means_the_usual_settings(tmp_path: Path) -> None:
    task = load_task(write(tmp_path))
    assert (task.backbone.name, task.prompt.kind, task.tune.seed) == ("minilm", "deep", 0)
    assert (task.metrics, task.gate_metric) == (("accuracy", "macro_f1"), "accuracy")
    assert task.locate(task.data.path) == str(tmp_path / "returns.csv")
    assert task.locate("https://example.com/x.csv") == "https://example.com/x.csv"
    assert task.locate("/data/x.csv") == "/data/x.csv"


def test_a_generation_task_has_its_own_metrics(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, objective="generate", gate={"metric": "rouge_l"}))
    assert (task.metrics, task.gate_metric) == (("chrf", "rouge_l"), "rouge_l")


def test_the_task_files_of_this_deployment_are_good() -> None:
    paths = sorted((Path(__file__).parents[1] / "tasks").glob("*.yaml"))
    assert [load_task(path).name for path in paths] == [path.stem for path in paths] != []


def test_where_and_when_are_no_part_of_the_task_as_content(tmp_path: Path) -> None:
    here = load_task(write(tmp_path, schedule="0 3 * * 1"))
    there = load_task(write(tmp_path, data={"path": "/elsewhere.csv", "target": "label"}, backbone="/models/minilm"))
    assert here.without_places("minilm") == there.without_places("minilm")
    assert TaskSpec.model_validate(here.without_places("minilm")).name == "returns"


def test_a_missing_file_is_answered_with_the_nearest(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "retruns.yaml"
    assert refused(path) == f'{path}: there is no such task file. Did you mean "returns.yaml"?'
    assert refused(tmp_path / "none" / "x.yaml") == f"{tmp_path / 'none' / 'x.yaml'}: there is no such task file."


@pytest.mark.parametrize(
    ("content", "finding"),
    [
        (b"name: [", "is not YAML (while parsing"),
        (b"name: a\n\tb: c", "is not YAML (while scanning"),
        (b"name: 2026-13-45", "is not YAML (month must be in 1..12)"),
        (b"a: " + b"[" * 5000, "is not YAML (more than 100 brackets in one another"),
        (b"- " * 5000, "is not YAML (maximum recursion"),
        (b"!!python/object/apply:os.system [id]", "is not YAML (could not determine a constructor"),
        (b"name: a\ntemplate: {{ text }}", 'line 2: "{{" stands in a value without quotes. Put the whole value in quotes'),
        (b"template:\n- user: Is {{ text }}: it", 'line 2: "{{" stands in a value without quotes'),
        (b"template: {% if a %}", 'line 1: "{%" stands in a value without quotes'),
        (b"name: caf\xe9", "cannot be read ('utf-8' codec"),
        (b"", "holds NoneType, not fields. Start with `name: ...`."),
        (b"- name", "holds list, not fields"),
    ],
)
def test_a_file_that_holds_no_fields_is_refused(tmp_path: Path, content: bytes, finding: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    assert refused(path).startswith(f"{path}: {finding}")


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path) == f"{tmp_path}: is a folder, not a task file. Name a task file, such as tasks/my_task.yaml."


@pytest.mark.parametrize(
    ("changed", "finding"),
    [
        ({"objectve": "classify"}, 'objectve: unknown field. Did you mean "objective"?'),
        ({"tune": {"learning_rat": 0.1}}, 'tune.learning_rat: unknown field. Did you mean "learning_rate"?'),
        ({"gate": {"zzz": 1}}, "gate.zzz: unknown field. Known: alpha, max_class_loss, max_ms_per_row, max_tokens, metric, min_gain."),
        ({"backbone": {"name": "minilm", "revison": "main"}}, 'backbone.revison: unknown field. Did you mean "revision"?'),
    ],
)
def test_an_unknown_field_is_answered_with_the_nearest_of_its_section(tmp_path: Path, changed: dict[str, Any], finding: str) -> None:
    path = write(tmp_path, **changed)
    assert refused(path) == f"{path}: {finding}"


@pytest.mark.parametrize("field", sorted(GOOD))
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    path = tmp_path / "short.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in GOOD.items() if key != field}))
    assert refused(path) == f"{path}: {field}: is missing. Add it; `promptmill schema` describes every field."


def test_a_missing_field_of_a_section_is_named(tmp_path: Path) -> None:
    assert "returns.yaml: data.target: is missing. Add it" in refused(write(tmp_path, data={"path": "x.csv"}))


@pytest.mark.parametrize(
    ("changed", "finding"),
    [
        ({"tune": {"steps": "many"}}, "tune.steps: Input should be a valid integer, .* (found 'many')"),
        ({"tune": {"seed": -1}}, "tune.seed: Input should be greater than or equal to 0 (found -1)"),
        ({"tune": {"learning_rate": float("nan")}}, "tune.learning_rate: Input should be "),
        ({"gate": {"min_gain": float("inf")}}, "gate.min_gain: Input should be a finite number (found inf)"),
        ({"data": "returns.csv"}, "data: Input should be a valid dictionary or instance of DataSpec (found 'returns.csv')"),
        ({"prompt": {"kind": "hard"}}, "prompt.kind: Input should be 'soft', 'deep', 'text' or 'auto' (found 'hard')"),
        ({"objective": "clasify"}, "objective: Input should be 'classify', 'generate', 'extract' or 'distill' (found 'clasify')"),
        ({"data": {"path": "", "target": "label"}}, "data.path: is missing"),
        ({"template": 5}, "template"),
        ({"template": ""}, "template: the template is empty or a message has not exactly one role; write `- user: ...`"),
        ({"template": []}, "template: the template is empty"),
        ({"template": [{"system": "a", "user": "{{ b }}"}]}, "template: the template is empty or a message has not exactly one role"),
        ({"template": [{"human": "{{ text }}"}]}, "template.0.human: Input should be 'system', 'user' or 'assistant' (found 'human')"),
        ({"template": [{"user": None}]}, "template.0.user: is empty. Fill it in, or leave it out."),
        (
            {"data": {"path": "a.csv", "target": "label", "test": 0.2, "test_path": "b.csv"}},
            "data.test: is a share of the rows to test on, beside data.test_path, a file of them. Keep one of the two.",
        ),
        (
            {"data": {"path": "a.csv", "target": "label", "unlabelled": "b.csv"}, "prompt": {"kind": "text"}},
            "data.unlabelled: nothing reads these inputs. Say what they are for, tune.calibrate or tune.self_training, or leave them out.",
        ),
        (
            {"objective": "generate", "labels": {"a": "good"}},
            "labels: says words for labels, but objective: generate writes texts. Leave it out, or use objective: classify.",
        ),
        (
            {"objective": "generate", "prompt": {"kind": "text"}, "text": {"label_words": {"a": ["good"]}}},
            "text.label_words: says words for labels, but objective: generate writes texts",
        ),
        (
            {"prompt": {"kind": "text"}, "tune": {"steps": 50, "seed": 1}},
            "tune.steps: says how a prompt is trained, but prompt.kind: text is searched. Leave it out; see the part text.",
        ),
        (
            {"prompt": {"demonstrations": 8}},
            "prompt.demonstrations: says how many examples a start from demonstrations shows, and no prompt starts so. Write start: ",
        ),
        ({"prompt": {"demonstrations": 8}, "tune": {"search": {"space": {"prompt.start": [None, "text"]}}}}, "prompt.demonstrations: says"),
        ({"prompt": {"kind": "auto", "demonstrations": 8}, "text": {}}, "prompt.demonstrations: says how many"),
        ({"prompt": {"hidden": 64}}, "prompt.hidden: is the width of a network, and there is none. Name it in prompt.network"),
        ({"tune": {"search": {"space": {"prompt.hidden": [64, 128]}}}}, "prompt.hidden: is the width of a network, and there is none."),
        ({"tune": {"head_c": 1.0}}, "tune.head_c: is for head: logistic. Write head: logistic, or leave it out."),
        ({"objective": "generate", "tune": {"contrast": 1}}, "tune.contrast: is for objective: classify; this one is generate. Leave"),
        ({"objective": "generate", "tune": {"head": "logistic"}}, "tune.head: is for objective: classify; this one is generate."),
        (
            {"objective": "distill", "distill": {"context": "a.md"}, "tune": {"label_smoothing": 0.1}},
            "tune.label_smoothing: is for targets, and a distilled prompt learns a teacher's distributions. Leave it out.",
        ),
        (
            {"objective": "distill", "distill": {"context": "a.md", "chunk_tokens": 64}},
            "distill.chunk_tokens: is for questions that the model asks itself, and it asks none. Leave it out, or give questions.",
        ),
        ({"text": {}}, "text: says how words are searched, but prompt.kind is deep. Leave it out, or use kind: text or auto."),
        ({"labels": {True: "fine"}}, "labels: has the key True, which YAML reads as no text. Put it in quotes."),
        ({"tune": None}, "tune: is empty. Fill it in, or leave it out."),
        ({"labels": {"a": 1}}, "labels.a: Input should be a valid string (found 1)"),
        ({"labels": {"a": []}}, "labels.a: Tuple should have at least 1 item"),
        ({"labels": {"a": ["good", " "]}}, "labels: a has an empty description; write what stands for it, or leave it out"),
        ({"labels": {"a": ["good", "bad"], "b": "bad"}}, 'labels: "bad" stands for a and for b; give each text once'),
        ({"evaluate": {"metrics": ["acuracy"]}}, "evaluate.metrics.0: Input should be 'accuracy', "),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_field(tmp_path: Path, changed: dict[str, Any], finding: str) -> None:
    path = write(tmp_path, **changed)
    assert re.match(re.escape(f"{path}: {finding}").replace(r"\.\*", ".*"), refused(path))


@pytest.mark.parametrize(
    "changed",
    [
        {"prompt": {"start": "demonstrations", "demonstrations": 8}},
        {"prompt": {"kind": "auto", "demonstrations": 8}},
        {"prompt": {"demonstrations": 8}, "tune": {"search": {"space": {"prompt.start": ["root", "demonstrations"]}}}},
        {"prompt": {"hidden": 64}, "tune": {"search": {"space": {"prompt.network": ["none", "mlp"]}}}},
        {"prompt": {"hidden": 64, "network": "mlp"}, "tune": {"head": "logistic", "head_c": 1.0}},
        {"tune": {"search": {"space": {"tune.head": [None, "logistic"], "tune.head_c": [1, 10]}}}},
    ],
)
def test_a_setting_that_the_task_or_a_trial_of_its_search_reads_is_taken(tmp_path: Path, changed: dict[str, Any]) -> None:
    assert load_task(write(tmp_path, **changed)).prompt.kind


@pytest.mark.parametrize("tune", [{"calibrate": True}, {"search": {"space": {"tune.calibrate": [False, True]}}}])
def test_inputs_without_labels_are_taken_where_the_tuning_or_a_trial_of_its_search_reads_them(tmp_path: Path, tune: dict[str, Any]) -> None:
    task = load_task(write(tmp_path, data={"path": "a.csv", "target": "label", "unlabelled": "b.csv"}, tune=tune))
    assert task.reads_unlabelled


@pytest.mark.parametrize("name", ["a/b", "..", "../up", ".hidden", "a b", "", "a\nb", "x" * 101])
def test_a_name_that_could_be_a_path_is_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name=name)
    assert refused(path).startswith(f"{path}: name: {name!r} is not a plain name; use letters, digits, _ and -")


@pytest.mark.parametrize(
    ("changed", "finding"),
    [
        ({"evaluate": {"metrics": ["chrf"]}}, "metric 'chrf' does not fit objective 'classify'; it has accuracy, macro_f1"),
        ({"gate": {"metric": "bleu"}}, "metric 'bleu' does not fit objective 'classify'"),
        (
            {"objective": "generate", "evaluate": {"metrics": ["accuracy"]}},
            "metric 'accuracy' does not fit objective 'generate'; it has chrf",
        ),
        ({"objective": "generate", "evaluate": {"metrics": ["facts_kept"]}}, "metric 'facts_kept' needs evaluate.must_contain"),
        (
            {"objective": "generate", "evaluate": {"metrics": ["chrf"]}, "gate": {"metric": "bleu"}},
            "gate.metric 'bleu' is not among evaluate.metrics ['chrf']",
        ),
        ({"objective": "generate", "gate": {"metric": "bleu"}}, "gate.metric 'bleu' is not among evaluate.metrics ['chrf', 'rouge_l']"),
        ({"evaluate": {"beams": 4}}, "evaluate.beams is for prompts that write texts; this one chooses among labels or finds entities"),
        ({"evaluate": {"beams": 0}}, "evaluate.beams: Input should be greater than or equal to 1 (found 0)"),
        (
            {"objective": "generate", "evaluate": {"beams": 4}, "prompt": {"kind": "soft"}, "deploy": ["transformers", "llama.cpp"]},
            "evaluate.beams: more than one, but llama.cpp, which deploy names, is asked for the likeliest token after token. Write beams",
        ),
    ],
)
def test_metrics_that_do_not_fit_are_refused(tmp_path: Path, changed: dict[str, Any], finding: str) -> None:
    assert finding in refused(write(tmp_path, **changed))


@pytest.mark.parametrize(
    ("changed", "finding"),
    [
        ({"tune": {"head": "means"}}, "head: means follows loss: pairs or supervised_contrastive; with label_set there is none"),
        ({"tune": {"loss": "pairs", "label_smoothing": 0.1}}, "label_smoothing does not apply to loss: pairs; drop one"),
        ({"tune": {"loss": "supervised_contrastive", "batch_examples": 3}}, "batch_examples 3 leaves loss: supervised_contrastive too few"),
        ({"objective": "generate", "tune": {"loss": "vocabulary"}}, "tune.loss: vocabulary is for objective 'classify'"),
        ({"objective": "generate", "tune": {"calibrate": True}}, "tune.calibrate is for objective 'classify', this task's is 'generate'"),
        ({"tune": {"loss": "triplets"}}, "Input should be 'label_set', 'vocabulary', 'pairs' or 'supervised_contrastive'"),
    ],
)
def test_a_loss_that_does_not_fit_is_refused(tmp_path: Path, changed: dict[str, Any], finding: str) -> None:
    assert finding in refused(write(tmp_path, **changed))


def test_the_schema_is_json_and_describes_every_section() -> None:
    schema = json.loads(json.dumps(TaskSpec.model_json_schema()))
    assert schema["type"] == "object" and schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(TaskSpec.model_fields)
    references = re.findall(r'"#/\$defs/(\w+)"', json.dumps(schema))
    assert set(references) == set(schema["$defs"])
    for section in schema["$defs"].values():
        assert section["type"] == "object" and section["additionalProperties"] is False


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=6,
)
known = st.sampled_from(sorted(TaskSpec.model_fields))


@given(st.dictionaries(known, values, max_size=6), st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_fields_give_a_task_or_one_line(changed: dict[str, Any], complete: bool) -> None:
    try:
        task = parse_task({**GOOD, **changed} if complete else changed, "any.yaml", Path())
        json.dumps(task.without_places("minilm"), allow_nan=False)
    except PromptmillError as error:
        assert str(error).startswith("any.yaml: ")


@given(st.binary(max_size=60) | st.text("aA0-:!&*{}[]|>'\"%@`#? \n\t,.=~<", max_size=60).map(str.encode))
@settings(max_examples=300, deadline=None)
def test_any_bytes_give_a_task_or_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(content)
    with pytest.raises(PromptmillError, match=re.escape(str(path))):
        load_task(path)


def test_an_extraction_task_has_its_own_metrics_and_reads_its_schema_from_beside_it(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, objective="extract"))
    assert (task.metrics, task.writes, task.tags, task.record_schema) == (("entity_f1", "exact_match"), False, True, None)
    schema = {"type": "object", "properties": {"z": {}, "a": {"type": "integer"}}}
    (tmp_path / "order.json").write_text(json.dumps(schema))
    named, inline = (load_task(write(tmp_path, objective="extract", extract={"schema": given})) for given in ("order.json", schema))
    assert named.record_schema == inline.record_schema == schema and list(named.record_schema["properties"]) == ["z", "a"]
    assert (named.metrics, named.writes, named.tags) == (("entity_f1", "exact_match", "valid_json"), True, False)
    assert named.folder == tmp_path
    content = named.without_places("m")
    assert content["extract"] == {"schema": schema}
    assert parse_task(content, "again", tmp_path).record_schema == schema


@pytest.mark.parametrize(
    ("changed", "finding"),
    [
        ({"extract": {"schema": {"type": "objekt"}}}, "extract.schema: is not a JSON schema ($.type: 'objekt' is not valid"),
        ({"extract": {"schema": 3}}, "extract.schema: holds int, not the fields of a JSON schema"),
        ({"extract": {"schma": {}}}, 'extract.schma: unknown field. Did you mean "schema"?'),
        ({"extract": {"schema": "no.json"}}, 'extract.schema: there is no file "{folder}/no.json"'),
        ({"extract": {"schema": {}}, "objective": "classify"}, "extract.schema is for objective: extract; this one is classify"),
        (
            {"evaluate": {"metrics": ["accuracy"]}},
            "metric 'accuracy' does not fit objective 'extract'; it has entity_f1, exact_match, valid_json",
        ),
    ],
)
def test_a_mistake_in_an_extraction_task_is_one_clear_line(tmp_path: Path, changed: dict[str, Any], finding: str) -> None:
    assert finding.replace("{folder}", str(tmp_path)) in refused(write(tmp_path, **{"objective": "extract", **changed}))


DISTILL = {"objective": "distill", "distill": {"context": "policy.md"}}


@pytest.mark.parametrize(
    ("changed", "finding"),
    [
        ({"objective": "distill"}, "distill: is missing"),
        ({"objective": "distill", "distill": {}}, "distill: there is nothing to distil; give context, a text file, or demonstrations"),
        ({**DISTILL, "data": {}}, "the inputs come from data.path or are asked by the model itself, distill.questions; neither is given"),
        ({**DISTILL, "distill": {"context": "p.md", "questions": 9}}, "distill.questions; both are given"),
        ({**DISTILL, "distill": {"demonstrations": 4}, "data": {"path": "x.csv"}}, "data.target: is missing"),
        ({**DISTILL, "distill": {"demonstrations": 4, "questions": 9}}, "distill: questions are asked about a context"),
        ({**DISTILL, "distill": {"context": "p.md", "answers": 3}}, "distill: 3 answers at temperature 0 are one answer"),
        ({"distill": {"context": "p.md"}}, "the part distill is for objective: distill, which this is not (classify)"),
        ({"prompt": {"start": "context"}}, "start: context is for objective: distill"),
        ({"prompt": {"start": "compaction"}}, "start: compaction is for objective: distill"),
        ({**DISTILL, "prompt": {"kind": "soft", "start": "compaction"}}, "start: compaction is for kind: deep"),
        ({"evaluate": {"metrics": ["agreement"]}}, "metric 'agreement' does not fit objective 'classify'"),
        ({"data": {}}, "data: is missing"),
    ],
)
def test_a_distillation_task_that_does_not_fit_together_is_refused(tmp_path: Path, changed: dict[str, Any], finding: str) -> None:
    assert finding in refused(write(tmp_path, **changed))


def test_a_distillation_task_needs_no_labels(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, **DISTILL, data={"path": "x.csv"}))
    assert task.metrics == ("agreement",)
    assert load_task(write(tmp_path, **DISTILL, data={"path": "x.csv", "target": "y"})).metrics == ("agreement", "chrf", "rouge_l")
    asked = load_task(write(tmp_path, objective="distill", data={}, distill={"context": "policy.md", "questions": 50}))
    assert parse_task(asked.without_places("minilm"), "again", tmp_path) is not None
    assert parse_task(asked.model_dump(mode="json"), "again", tmp_path) == asked
    assert asked.without_places("minilm")["distill"]["context"] == "-"
