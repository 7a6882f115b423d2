"""Reading a task file: one page of YAML. What is wrong with it is said in one line that names the field and the way out."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from prompt_core.criteria import EvaluateSpec
from prompt_core.errors import PromptmillError, kind_of_fault, nearest
from prompt_core.extraction.schema import read_schema
from prompt_core.methods import UNTUNED_SETTINGS, ExtractSpec
from prompt_core.plain_yaml import read_yaml, shown
from prompt_core.task import TaskSpec

_OF_QUESTIONS = {"chunk_tokens", "question_temperature"}
_OF_LABELS = {"tune.contrast", "tune.head", "tune.head_c", "tune.anchor_scale", "tune.label_score"}


def load_task(path: str | Path) -> TaskSpec:
    """Read a task file.

    Raises:
        PromptmillError: the file is missing, is not YAML, or has a repeated, unknown, missing, empty or unfit field; the message names
            file, field, value and the way out.
    """
    path = Path(path)
    try:
        content = read_yaml(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        beside = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise PromptmillError(str(path), "there is no such task file", nearest(path.name, beside)) from None
    except IsADirectoryError:
        raise PromptmillError(str(path), "is a folder, not a task file", "Name a task file, such as tasks/my_task.yaml.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise kind_of_fault(error)(str(path), f"cannot be read ({error})", "A task file is UTF-8 text.") from None
    except PromptmillError as error:
        raise PromptmillError(f"{path}: {error.where}", error.what, error.fix) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date like 2026-13-45 is a ValueError of its own
        raise PromptmillError(str(path), f"is not YAML ({' '.join(str(error).split())[:500]})", "See the example in README.md.") from None
    if not isinstance(content, dict):
        raise PromptmillError(str(path), f"holds {type(content).__name__}, not fields", "Start with `name: ...`.")
    task = parse_task(content, str(path), path.parent)
    # Only here: the record of a published prompt has every field, those too that its file left out.
    if found := _without_effect(task):
        field, what, fix = found
        raise PromptmillError(f"{path}: {field}", what, fix)
    return task


def parse_task(content: dict[str, Any], where: str, folder: Path) -> TaskSpec:
    """A task from the fields of a file; `where` names it in errors, `folder` is what relative paths start from.

    Raises:
        PromptmillError: as `load_task`.
    """
    try:
        task = TaskSpec.model_validate(content, context={"folder": folder})
    except ValidationError as error:
        raise _explained(error, where) from None
    for name in ("extract", "evaluate"):
        part: ExtractSpec | EvaluateSpec = getattr(task, name)
        if isinstance(path := part.json_schema, str):
            schema = read_schema(Path(task.locate(path)), f"{where}: {name}.schema")
            task = task.model_copy(update={name: part.model_copy(update={"json_schema": schema})})
    return task


def field_on_its_line(text: str, field: str) -> Any:
    """The value of a field of a task file, of which only the field's own line is read where that says it, else all; None where none is."""
    line = re.search(rf"^{field}[ \t]*:.*$", text, re.MULTILINE)
    for part in (line.group() if line else "", text if field in text else ""):
        with suppress(yaml.YAMLError, ValueError, RecursionError, TypeError, KeyError):
            if found := read_yaml(part)[field]:
                return found
    return None


def _without_effect(task: TaskSpec) -> tuple[str, str, str] | None:
    """The first field that is given and would change nothing, why, and the way out."""
    data, words = task.data, {"labels": task.labels, "text.label_words": task.text.label_words}
    if data.test_path and "test" in data.model_fields_set:
        return "data.test", "is a share of the rows to test on, beside data.test_path, a file of them", "Keep one of the two."
    if data.unlabelled and not task.reads_unlabelled:
        fix = "Say what they are for, tune.calibrate or tune.self_training, or leave them out."
        return "data.unlabelled", "nothing reads these inputs", fix
    if "text" in task.model_fields_set and task.prompt.kind not in ("text", "auto"):
        return "text", f"says how words are searched, but prompt.kind is {task.prompt.kind}", "Leave it out, or use kind: text or auto."
    if task.writes and (field := next((field for field, given in words.items() if given), None)):
        return field, f"says words for labels, but objective: {task.objective} writes texts", "Leave it out, or use objective: classify."
    if task.prompt.kind == "text" and (trained := sorted(task.tune.model_fields_set - set(UNTUNED_SETTINGS))):
        return f"tune.{trained[0]}", "says how a prompt is trained, but prompt.kind: text is searched", "Leave it out; see the part text."
    if task.distill and not task.distill.questions and (asking := sorted(task.distill.model_fields_set & _OF_QUESTIONS)):
        return f"distill.{asking[0]}", "is for questions that the model asks itself, and it asks none", "Leave it out, or give questions."
    return _setting_without_effect(task)


def _setting_without_effect(task: TaskSpec) -> tuple[str, str, str] | None:
    """The same of the settings of `prompt` and `tune`, which a search may change."""
    prompt, tune = task.prompt, task.tune
    space = task.search.space if task.search else {}
    given = {f"{part}.{name}" for part, spec in (("prompt", prompt), ("tune", tune)) for name in spec.model_fields_set} | space.keys()
    tries_usual_starts = task.search and not space and prompt.start is None and not task.climbs
    starts, networks = space.get("prompt.start", (prompt.start,)), space.get("prompt.network", (prompt.network,))
    if "prompt.demonstrations" in given and "demonstrations" not in starts and not tries_usual_starts:
        fix = "Write start: demonstrations, or leave it out."
        return "prompt.demonstrations", "says how many examples a start from demonstrations shows, and no prompt starts so", fix
    if "prompt.hidden" in given and networks == ("none",):
        return "prompt.hidden", "is the width of a network, and there is none", "Name it in prompt.network, or leave it out."
    if task.objective != "classify" and (idle := sorted(_OF_LABELS & given)):
        return idle[0], f"is for objective: classify; this one is {task.objective}", "Leave it out."
    if task.objective == "distill" and "tune.label_smoothing" in given:
        return "tune.label_smoothing", "is for targets, and a distilled prompt learns a teacher's distributions", "Leave it out."
    if "tune.head_c" in given and tune.head != "logistic" and "tune.head" not in space:
        return "tune.head_c", "is for head: logistic", "Write head: logistic, or leave it out."
    return None


def _explained(error: ValidationError, where: str) -> PromptmillError:
    """The first finding of a validation as one line that names the field and the way out."""
    finding, place = _first_finding(error)
    location = [" ".join(str(part).split())[:100] for part in place]
    field = ".".join(location) or "the file"
    if finding["type"] == "extra_forbidden":
        model: type[BaseModel] = TaskSpec
        for part in location[:-1]:
            model = (_model_in(model.model_fields[part].annotation) if part in model.model_fields else None) or model
        known = [field.alias or name for name, field in model.model_fields.items()]
        return PromptmillError(f"{where}: {field}", "unknown field", nearest(location[-1], known))
    if location[-1:] == ["[key]"]:
        what = f"has the key {shown(finding['input'])}, which YAML reads as no text"
        return PromptmillError(f"{where}: {'.'.join(location[:-2])}", what, "Put it in quotes.")
    if finding["type"] == "missing":
        return PromptmillError(f"{where}: {field}", "is missing", "Add it; `promptmill schema` describes every field.")
    if finding["input"] is None:
        return PromptmillError(f"{where}: {field}", "is empty", "Fill it in, or leave it out.")
    if isinstance(own := finding.get("ctx", {}).get("error"), PromptmillError):
        return PromptmillError(f"{where}: {own.where}", own.what, own.fix)
    message = " ".join(finding["msg"].removeprefix("Value error, ").split())[:500]
    found = "" if finding["type"] == "value_error" else f" (found {shown(finding['input'])})"
    return PromptmillError(f"{where}: {field}", message + found, "`promptmill schema` describes every field.")


def _first_finding(error: ValidationError) -> tuple[ErrorDetails, tuple[int | str, ...]]:
    """The first finding and its place in the file. Of a list where a text may stand as well: what is wrong inside of the list."""
    first, *others = error.errors()
    if first["type"] != "string_type" or first["loc"][-1] != "str":
        return first, first["loc"]
    place = first["loc"][:-1]  # where a text is one of several types, pydantic adds which one it tried
    inside = [other for other in others if isinstance(first["input"], list) and other["loc"][: len(place)] == place]
    if not inside:
        return first, place
    return inside[0], (*place, *(part for part in inside[0]["loc"][len(place) + 1 :] if part != "[key]"))


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The first part of a task file that a type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)
