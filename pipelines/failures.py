"""User mistakes on their way to Dagster: the library's one line, no traceback to read, no retry."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import dagster as dg

from prompt_core import PromptmillError

P = ParamSpec("P")
R = TypeVar("R")


def plain_failures(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, with a PromptmillError turned into a Failure of the same words. A retry would meet the same mistake."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except PromptmillError as error:
            raise dg.Failure(description=str(error), allow_retries=False) from None

    return call
