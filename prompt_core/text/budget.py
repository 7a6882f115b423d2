"""`Budget`: what a search may spend in tokens, seconds and money, asked before it spends."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


class OutOfBudget(Exception):
    """What the budget does not admit; the message says which limit."""


class Clock:
    """The seconds that a search has taken, those of an interrupted one that it goes on from included."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """So far."""
        return time.monotonic() - self._began

    def at_least(self, seconds: float) -> None:
        """Count so many as past: what is known after them has been reached."""
        self._began = min(self._began, time.monotonic() - seconds)


@dataclass
class Budget:
    """A hard limit on each of three; None for no limit.

    Attributes:
        tokens: through the frozen model.
        seconds: of its clock.
        dollars: for an endpoint.
        spent_tokens, spent_dollars: so far.
        clock: of the search.
    """

    tokens: int | None = None
    seconds: float | None = None
    dollars: float | None = None
    spent_tokens: int = 0
    spent_dollars: float = 0.0
    clock: Clock = field(default_factory=Clock)

    def admits(self, tokens: int = 0, dollars: float = 0.0) -> bool:
        """Whether so much more may be spent, and there is time."""
        return self.reason(tokens, dollars) is None

    def reason(self, tokens: int = 0, dollars: float = 0.0) -> str | None:
        """Which limit would be passed by so much more; None if none would."""
        if self.tokens is not None and self.spent_tokens + tokens > self.tokens:
            return f"{self.tokens} tokens"
        if self.seconds is not None and self.clock.seconds > self.seconds:
            return f"{self.seconds:.0f} seconds"
        if self.dollars is not None and self.spent_dollars + dollars > self.dollars:
            return f"{self.dollars} dollars"
        return None

    def charge(self, tokens: int) -> None:
        """Book tokens, before they are spent.

        Raises:
            OutOfBudget: they would pass a limit.
        """
        if reason := self.reason(tokens=tokens):
            raise OutOfBudget(reason)
        self.spent_tokens += tokens
