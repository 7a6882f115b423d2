"""Failures on their way to Dagster: a user's mistake is one line and final, a fault of the machine is tried again a few times."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import dagster as dg

from prompt_core import PromptmillError
from prompt_core.errors import Unreachable

P = ParamSpec("P")
R = TypeVar("R")

RETRIES = 2  # of a step that met a fault of disk or network
_PAUSE = 5  # seconds before one


def plain_failures(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, with a PromptmillError turned into a Failure of the same words, which is not retried: it would meet the same
    mistake. A fault of the machine is: disks fill up and networks break, and both pass."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except Unreachable as error:  # its words are what is left when the last retry has met it too
            raise dg.RetryRequested(max_retries=RETRIES, seconds_to_wait=_PAUSE) from dg.Failure(str(error))
        except PromptmillError as error:
            raise dg.Failure(description=str(error), allow_retries=False) from None
        except OSError as error:
            raise dg.RetryRequested(max_retries=RETRIES, seconds_to_wait=_PAUSE) from error

    return call


def is_retried(error: object, context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext) -> bool:
    """Whether it is a fault that a step which raises it is tried again for, and not the last of its attempts."""
    return isinstance(error, (Unreachable, OSError)) and context.retry_number < RETRIES
