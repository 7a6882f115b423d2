"""The bodies of requests and answers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PredictRequest(_Strict):
    """Inputs for one prompt."""

    prompt: str = Field(description="name (what is in production), name@alias or name@3")
    inputs: list[str | dict[str, Any]] = Field(
        min_length=1, max_length=1024, description="each a text, for a template with one field, or a mapping with the template's fields"
    )


class Prediction(BaseModel):
    """The answer to an input, and which version gave it."""

    prediction: str
    score: float | None
    prompt: str
    version: int
    digest: str


class PredictResponse(BaseModel):
    """One prediction per input, in order."""

    predictions: list[Prediction]


class CompareRequest(_Strict):
    """One input for several versions of a prompt and for its untuned model."""

    prompt: str = Field(description="the prompt's name")
    input: str | dict[str, Any]
    versions: list[int] = Field(default=[], max_length=8, description="default: those that aliases stand for")


class Compared(BaseModel):
    """One answer among several: `version` is None for the untuned model."""

    version: int | None
    aliases: list[str]
    prediction: str
    score: float | None
    seconds: float


class CompareResponse(BaseModel):
    """The untuned model's answer first, then those of the versions, the newest one first."""

    answers: list[Compared]


class ServedPrompt(BaseModel):
    """A prompt as the playground shows it."""

    name: str
    base: str
    kind: str
    fields: list[str]
    labels: list[str]
    versions: list[int]
    aliases: dict[str, int]


class _Client(BaseModel):
    """What other programs send: fields that say nothing here are left aside."""

    model_config = ConfigDict(extra="ignore")


class ContentPart(_Client):
    """A part of a message."""

    type: str
    text: str = ""


class Message(_Client):
    """A chat message."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None

    @property
    def plain(self) -> str:
        """Its text; ValueError where it has parts that are none."""
        if isinstance(self.content, list):
            if other := [part.type for part in self.content if part.type != "text"]:
                raise ValueError(f'messages: a part of type "{other[0]}" is no text')
            return "".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(_Client):
    """What a stream carries besides the text."""

    include_usage: bool | None = None


class ChatRequest(_Client):
    """OpenAI's chat completion request, as far as a tuned prompt can mean it."""

    model: str = Field(description="name (what is in production), name@alias or name@3")
    messages: list[Message] = Field(min_length=1, description="the last one is the input; a tuned prompt takes no earlier turns")
    fields: dict[str, Any] | None = Field(default=None, description="the template's fields, in place of the message's text")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2, description="0, the default, and below 1e-5: the most likely tokens")
    top_p: float | None = Field(default=None, ge=0, le=1, description="0: the most likely tokens")
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = None
    logit_bias: dict[str, Any] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    response_format: dict[str, Any] | None = None
