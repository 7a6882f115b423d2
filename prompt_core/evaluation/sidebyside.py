"""One input answered by the frozen model without and with a prompt."""

from __future__ import annotations

from collections.abc import Mapping

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.mixed import answer
from prompt_core.prediction import backbone_of
from prompt_core.ready import ReadyPrompt


def side_by_side(prompt: TunedPrompt, fields: Mapping[str, str], backbone: Backbone | None = None) -> dict[str, str]:
    """The answers `without` (the template's own instruction, untuned) and `with` the tuned prompt, from one pass.

    Raises:
        PromptmillError: as `TunedPrompt.predict`.
    """
    backbone = backbone or backbone_of(prompt)
    both = {"without": ReadyPrompt.untuned(prompt, backbone), "with": ReadyPrompt.of(prompt, backbone)}
    answers = answer([(ready, ready.encode(fields)) for ready in both.values()])
    return {name: found.text for name, found in zip(both, answers, strict=True)}
