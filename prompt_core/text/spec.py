"""How a text prompt is searched: the part `text` of a task file."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from prompt_core.parts import Part

TEMPLATE_CODE = re.compile(r"\{\{|\{%|\{#")

Choice = Literal["random", "diverse", "typical", "retrieved"]


class EndpointSpec(Part):
    """A language model behind an OpenAI-compatible address, which proposes wordings."""

    url: str = Field(min_length=1, description="its base, such as http://127.0.0.1:8000/v1")
    model: str = Field(min_length=1, description="as the server names it")
    key_variable: str | None = Field(default=None, description="environment variable with the key; left out: the server asks for none")
    temperature: float = Field(default=1.0, ge=0.0, le=2.0)
    max_tokens: int = Field(default=256, ge=1, le=16384, description="of an answer")
    concurrency: int = Field(default=4, ge=1, le=256, description="requests at a time")
    timeout: float = Field(default=60.0, gt=0.0, description="seconds for one request")
    attempts: int = Field(default=5, ge=1, le=100, description="of one question, with growing pauses between them")
    wait: float = Field(default=1.0, ge=0.0, description="seconds of the first pause")
    dollars: float | None = Field(default=None, ge=0.0, description="money at most, asked for before each request")
    dollars_per_million_read: float = Field(default=0.0, ge=0.0, description="price of a million tokens of questions")
    dollars_per_million_written: float = Field(default=0.0, ge=0.0, description="price of a million tokens of answers")

    @model_validator(mode="after")
    def _cap_needs_prices(self) -> EndpointSpec:
        prices = {name: getattr(self, name) for name in ("dollars_per_million_read", "dollars_per_million_written")}
        if self.dollars is not None and not (prices.keys() <= self.model_fields_set and any(prices.values())):
            raise ValueError(f"dollars needs {' and '.join(prices)}, else what is not named costs nothing; write 0 where that is so")
        return self


class TextSpec(Part):
    """How a text prompt is searched, for prompt.kind: text, and auto that begins with text."""

    wordings: tuple[str, ...] = Field(default=(), description="instructions to begin with, beside the template's own")
    label_words: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="per label, what may stand for it: words, for an encoder descriptions; one is chosen, or all averaged",
    )
    demonstrations: int = Field(default=16, ge=0, le=32, description="solved examples in front of an input, at most (causal models)")
    exemplars: int = Field(
        default=16, ge=0, le=1024, description="examples of each label whose embeddings join its description's, at most (encoders)"
    )
    choices: tuple[Choice, ...] = Field(
        default=("random", "diverse", "typical"),
        min_length=1,
        description="ways to choose them: random; diverse: far from each other; typical: near their label's mean; retrieved: the "
        "nearest to each input, which is read anew with its own (causal models)",
    )
    retriever: str | None = Field(
        default=None,
        description="embedded name of the frozen encoder by which examples are near, such as minilm; left out: the backbone's own states",
    )
    rounds: int = Field(default=8, ge=1, le=1000, description="rounds of candidates at most")
    together: int = Field(default=16, ge=2, le=1024, description="candidates per round")
    patience: int = Field(default=3, ge=1, description="rounds without a better prompt before the search ends")
    block: int = Field(default=16, ge=2, description="examples between two looks at who leaves the race")
    keep: int = Field(default=4, ge=1, description="candidates of a round that meet every example, whatever the tests say")
    length_penalty: float = Field(default=1e-4, ge=0.0, description="what a token of the prompt costs, in shares of right answers")
    endpoint: EndpointSpec | None = Field(default=None, description="a language model that proposes wordings")
    max_tokens: int | None = Field(
        default=None, ge=1, description="tokens through the frozen model at most; with auto for all text searches together"
    )
    minutes: float | None = Field(
        default=None,
        gt=0.0,
        description="time at most, with all starts of a search that was interrupted; one that it ends is not reproducible; with auto for "
        "all text searches together, by default half of tune.search.minutes",
    )

    @model_validator(mode="after")
    def _words_are_words(self) -> TextSpec:
        for wording in self.wordings:
            if TEMPLATE_CODE.search(wording) or not wording.strip():
                raise ValueError(f'wordings: "{wording[:60]}" holds template code or nothing; write plain words')
        for label, words in self.label_words.items():
            if not words or not all(word.strip() for word in words):
                raise ValueError(f"label_words: {label} has none, or an empty one; name what the model may say for it")
        return self
