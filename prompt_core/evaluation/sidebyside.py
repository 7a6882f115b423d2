"""One input answered by the frozen model without and with a prompt."""

from __future__ import annotations

from collections.abc import Mapping

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.encoding import TaskEncoding
from prompt_core.prediction import backbone_of, classify, find_entities, generate_texts, restore_tagger
from prompt_core.prompts import PromptState
from prompt_core.tuning.build import build_classifier


def side_by_side(prompt: TunedPrompt, fields: Mapping[str, str], backbone: Backbone | None = None) -> dict[str, str]:
    """The answers `without` (the template's own instruction, untuned) and `with` the tuned prompt.

    Raises:
        PromptmillError: as `TunedPrompt.predict`.
    """
    backbone = backbone or backbone_of(prompt)
    task, encoding = prompt.task, TaskEncoding(prompt.task, backbone, soft=False)
    untuned = PromptState.of(backbone, root=encoding.root if backbone.generates else ())
    if task.tags:  # the tagger alone, in front of which the tuned prompt stands
        without = find_entities(restore_tagger(prompt, backbone), untuned, [encoding.locate(fields)], task.tune.batch_tokens)
    elif task.writes:
        assert prompt.manifest.max_new_tokens is not None  # recorded by the tuning of every task that writes
        without = generate_texts(backbone, encoding, untuned, [encoding.encode(fields)], prompt.manifest.max_new_tokens)
    else:
        labels, encoded = prompt.manifest.labels, [encoding.encode(fields)]
        without = classify(backbone, build_classifier(task, encoding, backbone, labels), untuned, encoded, labels, task.tune.batch_tokens)
    return {"without": without[0], "with": prompt.predict([fields], backbone)[0]}
