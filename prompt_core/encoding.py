"""From a task's examples to token ids: the root that all share, what follows it in each example, and the target."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

from prompt_core.backbone import Backbone, EncoderDecoder
from prompt_core.chat import chat_text
from prompt_core.encoded import Encoded, Located
from prompt_core.errors import PromptmillError
from prompt_core.extraction.targets import check_extraction
from prompt_core.task import TaskSpec
from prompt_core.template import BETWEEN, Template
from prompt_core.tokens import Tokens

# Private-use characters stand for a field's value where the chat template is rendered only to find its parts.
_OPEN, _CLOSE = "\ue000", "\ue001"
_NEUTRAL = dict.fromkeys((0xE000, 0xE001, 0xE002, 0xE003), "\ufffd")  # those characters in a text, without moving what follows


class TaskEncoding:
    """The tokens of a task under one backbone's tokenizer and chat format. Soft tokens are among the ids, see `prompt_core.tokens`.

    Args:
        task: its template, and `tune.max_tokens` as the longest root + input + target.
        backbone: whose tokenizer and chat template are used.
        soft: whether the template's soft tokens are there; without them it is the plain text of an untuned prompt.
        inside: whether an encoder reads what precedes the first field inside of every input, between its special tokens,
            as it reads any text; the root is then empty. A causal model has the same states either way.
        parted: whether solved examples stand in front of which none has a blank line in its answer; a student's teacher reads
            such ones. Those of a plain string are parted by blank lines, and no model ends its answer behind them otherwise.

    Attributes:
        stop: the text that ends an answer; None where a token does.
        root_text: everything before the first field, the same for every example.
        root: its token ids, with the tokenizer's leading special tokens; empty where the template starts with a field.
        soft_tokens: how many the template has; 0 without `soft`.

    Raises:
        PromptmillError: an objective that is not the backbone's, chat messages for a model without a chat format, or a
            root longer than the limit.
    """

    def __init__(self, task: TaskSpec, backbone: Backbone, soft: bool = True, inside: bool = False, parted: bool = False) -> None:
        self._where = f"task {task.name}: template"
        self._template = Template(task, soft)
        self.soft_tokens = self._template.soft_tokens if soft else 0
        self._cut = task.tune.truncate
        self._tokenizer, self._tokens = backbone.tokenizer, Tokens(backbone.tokenizer)
        self._to_decoder = isinstance(backbone, EncoderDecoder)
        _check_objective(task, backbone)
        if self._template.is_chat and (self._to_decoder or not getattr(self._tokenizer, "chat_template", None)):
            what = f"backbone {backbone.identity.name} has no chat format"
            raise PromptmillError(self._where, what, "Write the template as one string.")
        parted = parted or bool(task.distill and task.distill.demonstrations)
        self.stop = BETWEEN if parted and backbone.causal and not self._template.is_chat else None
        self._marked = {name: f"{_OPEN}{name}{_CLOSE}" for name in self._template.fields}
        marked = self._text(self._marked)
        head, _, rest = marked.partition(_OPEN)
        self.root_text = head.rstrip(" ")  # a space belongs to the word after it, in most vocabularies
        self._suffix = rest.rpartition(_CLOSE)[2]
        self._leading, self._trailing = ([], []) if self._template.is_chat else self._tokens.around()  # a chat format writes its own
        # An encoder's special tokens stand around each example; its root, if any, becomes the prefix's starting text.
        self._first, self._before = (self._leading, []) if backbone.generates else ([], self._leading)
        self._behind = [] if backbone.causal else self._trailing
        self.root: tuple[int, ...] = (*self._first, *self._tokens.in_front(self.root_text))
        if inside and not backbone.generates:
            self._before, self.root = [*self._before, *self.root], ()
        self._positions = backbone.max_positions
        self._limit = min(task.tune.max_tokens, self._positions)
        if (taken := max(len(self.root), len(self._before))) >= self._limit:
            raise PromptmillError(self._where, f"what precedes the first field has {taken} tokens", f"The limit is {self._limit}.")

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that the template uses."""
        return self._template.fields

    @property
    def leading(self) -> tuple[int, ...]:
        """The tokenizer's special tokens that the root begins with."""
        return tuple(self._first)

    @property
    def before(self) -> tuple[int, ...]:
        """What every input of an encoder begins with: its leading special tokens, and the root's words where they stand inside."""
        return tuple(self._before)

    @property
    def input_parts(self) -> list[tuple[Literal["text", "field"], str]]:
        """What follows the root, as text and names of fields in turn; `split_soft` finds the soft tokens in a text.

        Raises:
            PromptmillError: the template computes with its fields.
        """
        if not self._template.is_plain:
            what = "has conditions, loops or filters, which no list of texts and fields can say"
            raise PromptmillError(self._where, what, "Compute them in a column of the data.")
        parts = re.split(f"{_OPEN}(.*?){_CLOSE}", self._text(self._marked)[len(self.root_text) :])
        kinds: tuple[Literal["text", "field"], ...] = ("text", "field")
        return [(kinds[number % 2], part) for number, part in enumerate(parts) if part]

    def encode(self, fields: Mapping[str, Any], target: str | None = None, room: int | None = None) -> Encoded:
        """Token ids of one example.

        Args:
            fields: the template's fields.
            target: the text to generate; None for an input alone.
            room: tokens of the input at most, where the model's positions leave fewer than `tune.max_tokens`.

        Raises:
            PromptmillError: a field is absent or empty, the text before the first field depends on a field, or the
                target alone is longer than the limit, or what stands around the fields.
        """
        text = self._text(self._plain(fields))
        if not text.startswith(self.root_text):
            raise PromptmillError(self._where, "the text before the first field differs between examples", "Move the condition behind it.")
        text = text[len(self.root_text) :]
        end = self.encode_target(target) if target is not None else []
        allowed = self._limit - len(self.root) - len(end)
        most = allowed if room is None else min(room, allowed)
        of = self._tokens.behind if self.root_text else self._tokens.of
        ids = of(text)
        around = len(self._before) + len(self._behind)
        truncated = len(ids) + around > most
        if truncated:
            suffix = self._tokens.behind(self._suffix) if self._suffix and text.endswith(self._suffix) else []
            keep = most - around - len(suffix)
            if keep < 1 + self.soft_tokens:
                if most < allowed:
                    what = f"the prompt and what stands behind an input leave it {max(0, most)} of the model's {self._positions} positions"
                    raise PromptmillError(self._where, what, "Shorten the prompt or its labels.")
                what = f"a target has {len(end)} tokens, more than fit" if end else "what stands around the fields leaves them no room"
                raise PromptmillError(self._where, what, f"Raise tune.max_tokens ({self._limit}).")
            front = of(text.removesuffix(self._suffix))
            ids = [front[i] for i in _kept(front, keep, self._cut)] + suffix
        return Encoded((*self._before, *ids, *self._behind), tuple(end), truncated)

    def locate(self, fields: Mapping[str, Any]) -> Located:
        """`encode` of an input, with the place of each token in the one field. Needs a fast tokenizer.

        Raises:
            PromptmillError: as `encode`; or the template does not show its one field once and unchanged.
        """
        (name,) = self.fields
        self._text(fields)  # refuses an absent or empty field
        field = self._tokens.harmless(str(fields[name]).translate(_NEUTRAL))
        before, _, rest = self._text({name: f"{_OPEN}{field}{_CLOSE}"}).partition(_OPEN)
        inside, _, after = rest.partition(_CLOSE)
        if inside != field or _OPEN in after or before + field + after != self._text({name: field}):
            raise PromptmillError(self._where, f'does not show "{name}" once and as it is', f"Write {{{{ {name} }}}}, without filters.")
        start = len(before) - len(self.root_text)
        text = (before + field + after)[len(self.root_text) :]
        tokens, room = self._tokens.placed(text), self._limit - len(self.root) - len(self._before) - len(self._behind)
        if truncated := len(tokens) > room:
            tail = self._suffix if text.endswith(self._suffix) else ""
            front, suffix = self._tokens.placed(text.removesuffix(tail)), [(token, len(text), len(text)) for token in self._tokens.of(tail)]
            keep = room - len(suffix)
            if keep < 1 + self.soft_tokens:
                raise PromptmillError(self._where, "leaves no room for the text", f"Raise tune.max_tokens ({self._limit}).")
            tokens = [front[i] for i in _kept([token for token, _, _ in front], keep, self._cut)] + suffix
        places = [_place(field, at - start, end - start) for _, at, end in tokens]
        known = [place for place in places if place] or [(0, 0)]
        window = (known[0][0], known[-1][1]) if truncated else (0, len(field))
        places = [*(None for _ in self._before), *places, *(None for _ in self._behind)]
        ids = (*self._before, *(token for token, _, _ in tokens), *self._behind)
        return Located(ids, (), truncated, field, tuple(places), window)

    def root_with_demonstrations(self, demonstrations: Sequence[tuple[Mapping[str, Any], str]]) -> tuple[int, ...]:
        """The root with solved examples behind it, for few-shot prompting: earlier turns of a chat, or lines of a text.

        Args:
            demonstrations: fields and answer of each, in order.

        Raises:
            PromptmillError: they leave no room for an input.
        """
        return self._check_room(
            self._long_ids("", demonstrations),
            f"{len(demonstrations)} demonstrations",
            "Lower evaluate.few_shot, prompt.demonstrations or text.demonstrations",
        )

    def _long_ids(self, context: str, demonstrations: Sequence[tuple[Mapping[str, Any], str]]) -> tuple[int, ...]:
        if self._template.is_chat:
            query = self._template.render(self._marked)
            shared = [message for message in query if message[0] == "system"]
            if context:
                shared = [("system", "\n\n".join([context, *(text for _, text in shared[:1])])), *shared[1:]]
            turns = [
                message
                for fields, answer in demonstrations
                for message in [*(m for m in self._template.render(self._plain(fields)) if m[0] != "system"), ("assistant", answer)]
            ]
            text = self._chat([*shared, *turns, *(m for m in query if m[0] != "system")])
        else:
            solved = [(self._plain(fields), answer) for fields, answer in demonstrations]
            text = (context + BETWEEN if context else "") + self._template.render_solved(solved, self._marked)
        ids = (*self._first, *self._tokens.in_front(text.partition(_OPEN)[0].rstrip(" ")))
        return tuple(token for token in ids if token >= 0)  # as text, for which soft tokens say nothing

    def _check_room(self, ids: tuple[int, ...], what: str, fix: str) -> tuple[int, ...]:
        if len(ids) + self._limit > self._positions:
            found = f"{what} take {len(ids)} of the model's {self._positions} tokens, an input up to {self._limit} (tune.max_tokens)"
            raise PromptmillError(self._where, found, f"{fix}, or lower tune.max_tokens.")
        return ids

    def long_root(self, context: str, demonstrations: Sequence[tuple[Mapping[str, Any], str]]) -> tuple[int, ...]:
        """The root as a teacher reads it: a context before the system text (or the template's one string), solved examples behind.

        Raises:
            PromptmillError: it leaves no room for an input.
        """
        return self._check_room(
            self._long_ids(self._tokens.plain(context), demonstrations), "context and demonstrations", "Shorten distill.context, take fewer"
        )

    def request(self, text: str, request: str, begun: str) -> tuple[int, ...]:
        """Token ids of a text and what is asked for about it, in the chat format or as plain lines, and how the answer begins."""
        message = f"{self._tokens.plain(text)}\n{request}"
        asked = self._chat([("user", message)]) if self._template.is_chat else message + "\n"
        return (*self._first, *self._tokens.of(asked + begun))

    def cut_root(self, root: Sequence[int], tokens: int) -> tuple[int, ...]:
        """A long root cut to a number of tokens: its first ones, and at the end what leads over to an input in the plain root too."""
        common = 0
        while common < min(len(root), len(self.root)) and root[-1 - common] == self.root[-1 - common]:
            common += 1
        keep = max(0, tokens - common)
        return (*root[:keep], *root[len(root) - min(common, tokens) :]) if tokens < len(root) else tuple(root)

    def encode_target(self, target: str) -> list[int]:
        """Token ids of a text to generate, with what ends it."""
        if self.stop:
            return self._tokens.in_front(self._template.gap + target + self.stop, behind=True)  # as in front of the next line
        return [*self.encode_answer(target), *self.end_of_turn]

    def encode_answer(self, text: str) -> list[int]:
        """Token ids of a text that is generated, without its end. A decoder's stands alone, as the tokenizer would have it."""
        return [*self._leading, *self._tokens.of(text)] if self._to_decoder else self._tokens.behind(self._template.gap + text)

    def encode_bare(self, text: str) -> list[int]:
        """Token ids of a text without anything around it."""
        return self._tokens.of(self._tokens.plain(text))

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a text that stands alone, with the tokenizer's special tokens around it."""
        return [*self._leading, *self._tokens.of(text), *self._trailing]

    @property
    def tokens_behind(self) -> int:
        """How many tokens the template has behind its last field."""
        return len(self._tokens.of(self._suffix))

    @property
    def special_texts(self) -> list[str]:
        """Texts that the tokenizer reads as special tokens."""
        return list(self._tokens.special.values())

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated ids up to `stop`, without special tokens and surrounding white space."""
        # As the tokens spell it: tidied up (" n't" to "n't"), it could not equal a target, and what is streamed would change behind one.
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return (text.partition(self.stop)[0] if self.stop else text).strip()

    @cached_property
    def ends(self) -> tuple[tuple[int, ...], ...]:
        """The runs of tokens at which a text ends: `end_of_turn`, and `stop` as it stands alone and, last, between lines."""
        stops = (tuple(self._tokens.behind(self.stop)), tuple(self._tokens.in_front(self.stop, behind=True))) if self.stop else ()
        return tuple(dict.fromkeys((self.end_of_turn, *stops)))

    @cached_property
    def closing(self) -> frozenset[int]:
        """Tokens that end a text too and are part of it, since they hold `stop` among other characters: some vocabularies have one
        for a full stop and a blank line."""
        if self.stop is None:
            return frozenset()
        return self._tokens.spelled_with(self._tokens.behind(self.stop)) - {run[0] for run in self.ends if len(run) == 1}

    @cached_property
    def end_of_turn(self) -> tuple[int, ...]:
        """What ends a generated text: the chat format's end of an assistant turn, else the tokenizer's end of text."""
        if self._template.is_chat:
            rendered = chat_text(self._tokenizer, [("user", "-"), ("assistant", _OPEN)], self._where, answering=False)
            ids = self._tokens.of(rendered.rpartition(_OPEN)[2])
            special = [i for i in ids if i in self._tokens.special]
            if special:
                return (special[0],)
        if self._tokenizer.eos_token_id is None:
            raise PromptmillError(self._where, "the tokenizer has no end-of-text token", "Choose a backbone that has one.")
        return (self._tokenizer.eos_token_id,)

    def _plain(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The fields, with those of the template that are texts read as nothing but text."""
        return {**fields, **{name: self._tokens.plain(fields[name]) for name in self.fields if isinstance(fields.get(name), str)}}

    def _text(self, fields: Mapping[str, Any]) -> str:
        messages = self._template.render(fields)
        return self._chat(messages) if self._template.is_chat else messages[0][1]

    def _chat(self, messages: Sequence[tuple[str | None, str]]) -> str:
        return chat_text(self._tokenizer, messages, self._where)


def _check_objective(task: TaskSpec, backbone: Backbone) -> None:
    where, name = f"task {task.name}: objective", backbone.identity.name
    if task.objective == "distill" and (not backbone.causal or isinstance(backbone, EncoderDecoder)):
        raise PromptmillError(where, f"distill, but {name} is no causal model", "Use a causal model.")
    if task.objective == "generate" and not backbone.generates:
        raise PromptmillError(where, f"generate, but {name} is an encoder", "Use a causal model or an encoder-decoder.")
    if task.objective == "classify" and isinstance(backbone, EncoderDecoder):
        raise PromptmillError(where, f"classify, but {name} is an encoder-decoder", "Use generate: it writes the label.")
    if task.objective == "extract":
        check_extraction(task, backbone)


def _kept(ids: Sequence[int], keep: int, side: str) -> list[int]:
    """Which of the ids are the `keep` that stay: plain tokens go from the `start` or the `end`, soft tokens do not."""
    order = range(len(ids)) if side == "start" else range(len(ids) - 1, -1, -1)
    dropped = set([i for i in order if ids[i] >= 0][: max(0, len(ids) - keep)])
    return [i for i in range(len(ids)) if i not in dropped]


def _place(text: str, start: int, end: int) -> tuple[int, int] | None:
    """The part of characters [start, end) that is in the text, without whitespace at its ends; None where nothing is left."""
    start, end = max(start, 0), min(end, len(text))
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return (start, end) if start < end else None
