"""A backbone's chat format: the text that its tokenizer's chat template makes of messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jinja2

from prompt_core.errors import PromptmillError

# Some formats tell the model the date (Llama 3, SmolLM3, gpt-oss). With that of the clock a prompt would say something else tomorrow;
# this is the day that Llama 3's own format names where there is no clock.
_DATE = {"%Y": "2024", "%y": "24", "%m": "07", "%-m": "7", "%B": "July", "%b": "Jul", "%d": "26", "%-d": "26", "%A": "Friday", "%a": "Fri"}
_TIME = {"%H": "00", "%I": "12", "%p": "AM", "%M": "00", "%S": "00"}
_REPLACED = "".join(f"|replace('{code}', '{text}')" for code, text in (_DATE | _TIME).items())
_NO_CLOCK = f"{{% macro strftime_now(format) %}}{{{{ format{_REPLACED} }}}}{{% endmacro %}}\n"  # the line break is no text: trim_blocks


def chat_text(tokenizer: Any, messages: Sequence[tuple[str | None, str]], where: str, answering: bool = True) -> str:
    """Messages, as (role, text), in the chat format of a tokenizer of transformers; where it asks for the date, always the same one.

    Args:
        tokenizer: it has a chat template.
        messages: in order.
        where: names their source in errors.
        answering: whether an assistant's turn begins behind them.

    Raises:
        PromptmillError: the format refuses them, as some do a system message.
    """
    turns = [{"role": role, "content": text} for role, text in messages]
    try:
        own = tokenizer.get_chat_template()
        template = _NO_CLOCK + own if "strftime_now" in own else own
        text: str = tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False, add_generation_prompt=answering)
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        what = f"the backbone's chat format refuses these messages ({error})"
        fix = "Use the roles that it knows: some want no system message, most want user and assistant in turn."
        raise PromptmillError(where, what, fix) from None
    return text
