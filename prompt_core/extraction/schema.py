"""JSON records: read strictly, checked against a schema, and written in one canonical form."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from prompt_core.errors import PromptmillError, kind_of_fault

_LONGEST_REASON = 200
_PUT_TOGETHER = ("allOf", "anyOf", "oneOf")
_LARGEST_PLAIN = 1e21  # from here on JavaScript, too, writes a whole number with an exponent


class RecordForm:
    """The form of a task's records: a JSON schema, of any draft that `jsonschema` knows.

    References stay inside the schema: nothing is fetched.

    Raises:
        ValueError: it is not a schema; the message is the reason.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        from jsonschema import exceptions, validators  # a tenth of a second

        kind = validators.validator_for(schema, default=validators.Draft202012Validator)
        try:
            kind.check_schema(schema)
        except exceptions.SchemaError as error:
            raise ValueError(f"is not a JSON schema ({_reason(error)})") from None
        self._schema, self._kind = schema, kind
        for reference in _references(schema):
            self._check_reference(reference)

    def read(self, text: str) -> Any:
        """The record that a text is.

        Raises:
            ValueError: it is not JSON or does not fit the schema; the message is the reason.
        """
        import referencing.exceptions
        from jsonschema import exceptions

        record = parse_json(text)
        try:
            error = exceptions.best_match(self._validator.iter_errors(record))
        except (RecursionError, referencing.exceptions.Unresolvable) as failed:
            raise ValueError(f"cannot be checked against the schema ({failed})") from None
        if error is not None:
            raise ValueError(f"does not fit the schema ({_reason(error)})")
        return record

    def canonical(self, text: str) -> str:
        """The record as every equal one is written: keys as the schema's `properties` order them, also those of what it refers to or is
        put together from; others by name after them.

        Raises:
            ValueError: as `read`.
        """
        return json.dumps(self._ordered(self.read(text), [self._schema]), ensure_ascii=False)

    @cached_property
    def _validator(self) -> Any:
        from referencing import Registry

        registry: Any = Registry()  # an empty one: the default of jsonschema would fetch references from the network
        return self._kind(self._schema, registry=registry)

    @cached_property
    def _resolver(self) -> Any:
        import referencing
        from referencing.jsonschema import specification_with

        resource = specification_with(self._kind.META_SCHEMA.get("$schema", "")).create_resource(self._schema)
        return referencing.Registry().with_resource("", resource).resolver("")

    def _check_reference(self, reference: str) -> None:
        import referencing.exceptions

        if not reference.startswith("#"):
            raise ValueError(f"refers to {reference!r} outside itself; put that under $defs")
        try:
            self._resolver.lookup(reference)
        except referencing.exceptions.Unresolvable:
            raise ValueError(f"refers to {reference!r}, which it does not have") from None

    def _ordered(self, value: Any, schemas: Sequence[Any]) -> Any:
        """`value` with the keys of its objects in order; `schemas` are the parts of the schema that describe it."""
        parts = self._with_their_parts(schemas)
        if isinstance(value, dict):
            properties: dict[str, list[Any]] = {}
            for part in parts:
                for name, schema in part.get("properties", {}).items():
                    properties.setdefault(name, []).append(schema)
            place = {name: number for number, name in enumerate(properties)}
            names = sorted(value, key=lambda name: (place.get(name, len(place)), name))
            return {name: self._ordered(value[name], properties.get(name, [])) for name in names}
        if isinstance(value, list):
            return [self._ordered(item, [part["items"] for part in parts if "items" in part]) for item in value]
        return value

    def _with_their_parts(self, schemas: Sequence[Any]) -> list[dict[str, Any]]:
        """Schemas, what they refer to and what they are put together from."""
        found: list[dict[str, Any]] = []
        waiting = list(schemas)
        while waiting:
            schema = waiting.pop(0)
            if not isinstance(schema, dict) or any(schema is known for known in found):
                continue
            found.append(schema)
            referred = [self._resolver.lookup(schema["$ref"]).contents] if "$ref" in schema else []
            waiting = [*referred, *(part for name in _PUT_TOGETHER for part in schema.get(name, ())), *waiting]
        return found


def read_schema(path: Path, where: str) -> dict[str, Any]:
    """The JSON schema in a file; `where` names it in errors.

    Raises:
        PromptmillError: the file is missing or is not a schema.
    """
    if not path.is_file():  # a device, say, has no end
        raise PromptmillError(where, f'there is no file "{path}"', "Name a JSON file, relative to the task file.")
    try:
        schema = parse_json(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise kind_of_fault(error)(
            where, f'"{path}" cannot be read ({error.strerror})', "Name a JSON file, relative to the task file."
        ) from None
    except ValueError as error:
        raise PromptmillError(where, f'"{path}" {error}', "Write the schema as JSON.") from None
    try:
        return checked_schema(schema)
    except ValueError as error:
        raise PromptmillError(where, f'"{path}" {error}', "See json-schema.org.") from None


def checked_schema(schema: Any) -> dict[str, Any]:
    """A schema as plain JSON types.

    Raises:
        ValueError: it is not a schema of an object or list; the message is the reason.
    """
    if not isinstance(schema, dict):
        raise ValueError(f"holds {type(schema).__name__}, not the fields of a JSON schema")
    try:
        plain: dict[str, Any] = json.loads(json.dumps(schema, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"holds a value that is not JSON ({error})") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    try:
        RecordForm(plain)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    return plain


def parse_json(text: str) -> Any:
    """JSON as its standard has it (RFC 8259): no NaN, no key twice, no number too large, no half of a surrogate pair.

    A whole number is an int however it is written: 2.0 is 2.

    Raises:
        ValueError: the message is the reason.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_number)
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error.msg} at character {error.pos})") from None
    except UnicodeEncodeError:
        raise ValueError("is not JSON (half of a surrogate pair)") from None
    except RecursionError:
        raise ValueError("is not JSON that can be read (nested too deeply)") from None
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice in one object")
    return found


def _constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _number(literal: str) -> float | int:
    value = float(literal)
    if not math.isfinite(value):
        raise ValueError(f"the number {literal} is too large")
    return int(value) if value.is_integer() and abs(value) < _LARGEST_PLAIN else value


def _references(schema: Any) -> Iterator[str]:
    """All that a schema refers to."""
    if isinstance(schema, dict):
        for name, value in schema.items():
            if name == "$ref" and isinstance(value, str):
                yield value
            else:
                yield from _references(value)
    elif isinstance(schema, list):
        for item in schema:
            yield from _references(item)


def _reason(error: Any) -> str:
    text = f"{error.json_path}: {error.message}" if error.json_path != "$" else str(error.message)
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 1] + "…"
