"""`Endpoint`: a language model behind an OpenAI-compatible address (vLLM, Ollama, llama.cpp, a vendor), asked within a budget.

Answers are kept by content, so that a question is paid for once. The key comes from the environment and goes into the
request alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

import openai
from tenacity import RetryError, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from prompt_core.errors import PromptmillError, Unreachable
from prompt_core.text.budget import Budget
from prompt_core.text.journal import Journal
from prompt_core.text.spec import EndpointSpec

Messages = Sequence[dict[str, str]]

_log = logging.getLogger("promptmill")
_PER_MESSAGE = 16  # tokens that a chat format may put around a message
_LATER = (408, 409, 429)  # and a server's own errors
_OF_THIS_QUESTION = (400, 413, 422)  # too long for the model, or held back by a filter; else all questions are refused


class _Unusable(Exception):
    """An answer that is worth asking again for: too many requests, a server's error, silence, or no valid JSON."""


class Endpoint:
    """Asks a model for texts.

    Args:
        spec: where it is, what it costs, how patiently to ask.
        journal: answers that were paid for before.
        budget: is asked before each call, for the most that the call can cost.

    Raises:
        PromptmillError: the address is none, or the environment variable that `spec.key_variable` names is not set.
    """

    def __init__(self, spec: EndpointSpec, journal: Journal, budget: Budget) -> None:
        key = os.environ.get(spec.key_variable, "") if spec.key_variable else "none"
        if not key:
            what = f"names {spec.key_variable}, which is not set in the environment"
            raise PromptmillError("text.endpoint.key_variable", what, "Set it, or leave the field out for a server without keys.")
        self._spec, self._journal, self._budget, self._lock = spec, journal, budget, Lock()
        _check_address(spec.url)
        self._client = openai.OpenAI(base_url=spec.url, api_key=key, timeout=spec.timeout, max_retries=0)
        self._answered = False
        self._refusal: PromptmillError | None = None

    def ask(self, questions: Sequence[tuple[Messages, int]]) -> list[str | None]:
        """One answer per question, side by side; None where there is none, for a reason that is logged.

        Args:
            questions: chat messages and a seed; the same pair has the same answer, from the journal.

        Raises:
            PromptmillError: it refuses the key, the model or all questions.
            Unreachable: nobody answers at the address.
        """
        with ThreadPoolExecutor(self._spec.concurrency) as pool:
            answers = list(pool.map(lambda question: self._answer(*question), questions))
        if self._refusal and not self._answered:
            raise self._refusal
        return answers

    def _answer(self, messages: Messages, seed: int) -> str | None:
        about = json.dumps([self._spec.url, self._spec.model, self._spec.temperature, self._spec.max_tokens, list(messages), seed])
        key = hashlib.sha256(about.encode()).hexdigest()[:32]
        known, paid = self._journal.get(key) or (None, 0.0)
        with self._lock:
            self._budget.spent_dollars += paid  # as the first time: the limit is of a search, however often it is interrupted
        if known is not None:
            self._answered = True
            return str(known)
        costs: list[float] = []
        answer = None
        try:
            answer = self._paid(messages, seed, costs)
        finally:  # the search may end here, and go on later
            if answer is not None or any(costs):
                with self._lock:
                    self._journal.put({key: [answer, paid + sum(costs)]})
        return answer

    def _paid(self, messages: Messages, seed: int, costs: list[float]) -> str | None:
        """An answer, asked for as often as need be; each request adds what it cost."""
        patiently = Retrying(
            retry=retry_if_exception_type(_Unusable),
            stop=stop_after_attempt(self._spec.attempts),
            wait=wait_random_exponential(multiplier=self._spec.wait, max=30),
        )
        try:
            return str(patiently(self._call, messages, seed, costs)) if self._budget.admits() else None
        except RetryError as error:
            reason = str(error.last_attempt.exception())
        except _OverBudget as limit:
            _log.warning("endpoint: not asked, the budget of %s would be passed", limit)
            return None
        except _Refused as refused:
            self._refusal = PromptmillError(f"text.endpoint.url {self._spec.url}", str(refused), "Check the model's name and the key.")
            if not refused.this_question:
                raise self._refusal from None
            _log.warning("endpoint: a question without answer, the server %s", refused)
            return None
        if not self._answered:
            fix = "Start the server, correct text.endpoint.url, or leave the endpoint out."
            raise Unreachable(f"text.endpoint.url {self._spec.url}", f"gives no answer ({reason})", fix)
        _log.warning("endpoint: no answer after %d attempts (%s)", self._spec.attempts, reason)
        return None

    def _call(self, messages: Messages, seed: int, costs: list[float]) -> str:
        """One request. What it can cost at most is reserved before, and what it did cost is booked after."""
        reserved = self._reserve(messages)
        cost = reserved  # an answer that is lost may have been paid for
        try:
            response: Any = self._client.chat.completions.create(
                model=self._spec.model,
                messages=list(messages),  # type: ignore[arg-type]
                temperature=self._spec.temperature,
                max_tokens=self._spec.max_tokens,
                seed=seed,
            )
            used = response.usage
            cost = self._dollars(used.prompt_tokens, used.completion_tokens) if used else reserved
            text = response.choices[0].message.content
            if not isinstance(text, str):
                raise _Unusable("the answer has no text")
            self._answered = True
            return text
        except (openai.APIConnectionError, openai.APIResponseValidationError) as error:
            raise _Unusable(type(error).__name__) from None
        except (ValueError, AttributeError, IndexError, TypeError):
            raise _Unusable("the answer is not what the protocol says") from None
        except openai.APIStatusError as error:
            cost = 0.0  # refused, not served
            if error.status_code in _LATER or error.status_code >= 500:
                self._answered = True
                raise _Unusable(type(error).__name__) from None
            what = f"refuses the request ({error.status_code}: {' '.join(str(error.message).split())[:160]})"
            raise _Refused(what, error.status_code in _OF_THIS_QUESTION) from None
        finally:
            costs.append(min(max(cost, 0.0), reserved))
            with self._lock:
                self._budget.spent_dollars += costs[-1] - reserved

    def _reserve(self, messages: Messages) -> float:
        """A byte is a token at most, so that this is what a call can cost."""
        size = sum(len(message["content"].encode()) + _PER_MESSAGE for message in messages)
        most = self._dollars(size, self._spec.max_tokens)
        with self._lock:
            if reason := self._budget.reason(dollars=most):
                raise _OverBudget(reason)
            self._budget.spent_dollars += most
        return most

    def _dollars(self, read: int, written: int) -> float:
        return (read * self._spec.dollars_per_million_read + written * self._spec.dollars_per_million_written) / 1e6


class _OverBudget(Exception):
    """A call that the budget does not admit."""


class _Refused(Exception):
    """A request that would be refused again; `this_question` says whether another one may be answered."""

    def __init__(self, what: str, this_question: bool) -> None:
        super().__init__(what)
        self.this_question = this_question


def _check_address(url: str) -> None:
    try:
        address = urlsplit(url)
        found = address.scheme in ("http", "https") and address.hostname and (address.port is None or address.port > 0)
    except ValueError:
        found = False
    if not found or url.split() != [url]:
        raise PromptmillError("text.endpoint.url", f'"{url}" is no address', "Write it as http://127.0.0.1:8000/v1.")
