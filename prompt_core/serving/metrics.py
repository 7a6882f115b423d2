"""What the server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_INPUTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of one server.

    Attributes:
        registry: all of them.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("promptmill_requests", "Requests", ["route", "status"], registry=self.registry)
        self.seconds = Histogram("promptmill_request_seconds", "Time to the last byte", ["route"], buckets=_SECONDS, registry=self.registry)
        self.answers = Counter("promptmill_answers", "Inputs answered", ["prompt", "version"], registry=self.registry)
        self.unfinished = Gauge("promptmill_unfinished_inputs", "Inputs that wait or are being answered", registry=self.registry)
        self.pass_inputs = Histogram(
            "promptmill_pass_inputs", "Inputs that share a pass or a step", ["kind"], buckets=_INPUTS, registry=self.registry
        )
        self.tokens = Counter("promptmill_generated_tokens", "Tokens written", registry=self.registry)
        self.reloads = Counter("promptmill_reloads", "Looks at the store", ["outcome"], registry=self.registry)
        self.unloaded = Gauge("promptmill_unloaded_aliases", "Aliases whose version could not be loaded", registry=self.registry)
