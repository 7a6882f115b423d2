"""JSON from outside as a pydantic model, or one short reason why it is none."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

Model = TypeVar("Model", bound=BaseModel)


def parse_json(content: bytes, model: type[Model]) -> Model:
    """The model in a JSON document.

    The document is read first and validated then: `model_validate_json` copies all of it for every finding, which takes minutes
    for a wide document that is made to hurt.

    Raises:
        ValueError: it is not JSON, is nested too deeply, or does not fit; with a reason on one line of at most 400 characters.
    """
    try:
        document = from_json(content)
    except ValueError as error:
        raise ValueError(f"Invalid JSON: {error}"[:400]) from None
    if not isinstance(document, dict):
        raise ValueError("Input should be an object")
    try:
        return model.model_validate(document)
    except ValidationError as error:
        finding = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(map(str, finding["loc"]))[:200]
    raise ValueError(" ".join(f"{place + ': ' if place else ''}{finding['msg']}".split())[:400])
