"""What a tuned tagger has to beat: a list of the entities that were seen, and a linear tagger on frozen states."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch

from prompt_core.backbone import Backbone
from prompt_core.data.packing import pack
from prompt_core.encoded import Located
from prompt_core.encoding import TaskEncoding
from prompt_core.evaluation.contender import Contender
from prompt_core.extraction.spans import Entity, entities_json, entity_labels, parse_entities
from prompt_core.extraction.tags import IGNORED, num_tags
from prompt_core.prompts import PromptState, Tree, hidden_states
from prompt_core.task import TaskSpec
from prompt_core.tuning.tags import answer_of, tagged

OnContender = Callable[[str, int, int], None]

# A letter of a script that parts its words; Thai to Khmer, Japanese and Chinese do not, and there an entity may stand anywhere.
_LETTER = r"[^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]"


def entity_baselines(
    task: TaskSpec,
    seen: pl.DataFrame,
    rows: Sequence[Mapping[str, Any]],
    encoding: TaskEncoding,
    backbone: Backbone,
    on_progress: OnContender | None = None,
) -> list[Contender]:
    """Predictions of `seen_entities` (the frozen encoder knows nothing of the labels; this is what needs no model at all) and
    `linear_tagger` (logistic regression on the frozen states of tokens, decoded as the tuned tagger is).

    Args: as of `baselines`.
    """
    labels = sorted(entity_labels(seen[task.data.target]))
    located = [encoding.locate(row) for row in rows]
    listed = find_seen(zip(seen[encoding.fields[0]], seen[task.data.target], strict=True), [example.text for example in located])
    if on_progress:
        on_progress("seen_entities", len(rows), len(rows))
    training = [
        tagged(encoding.locate(row), row[task.data.target], labels, f"task {task.name}: data.target") for row in seen.iter_rows(named=True)
    ]
    linear = _linear_tagger(task, training, located, labels, backbone)
    if on_progress:
        on_progress("linear_tagger", len(rows), len(rows))
    return [
        Contender(name="seen_entities", kind="untuned", predictions=listed),
        Contender(name="linear_tagger", kind="rival", predictions=linear),
    ]


def find_seen(solved: Iterable[tuple[str, str]], texts: Sequence[str]) -> list[str]:
    """The entities of each text that stood in a solved one, always with the same label; the longest first, as whole words where a
    script parts these.

    The baseline of the CoNLL-2003 shared task (Tjong Kim Sang & De Meulder 2003, aclanthology.org/W03-0419).

    Args:
        solved: (text, target) pairs.
    """
    meanings: dict[str, set[str]] = {}
    for text, target in solved:
        for entity in parse_entities(target, text):
            meanings.setdefault(text[entity.start : entity.end], set()).add(entity.label)
    known = {words: next(iter(labels)) for words, labels in meanings.items() if len(labels) == 1}
    longest_first = sorted(known, key=lambda words: (-len(words), words))
    pattern = re.compile("|".join(rf"(?<!{_LETTER}){re.escape(words)}(?!{_LETTER})" for words in longest_first) or "(?!)")
    return [entities_json([Entity(*m.span(), known[m.group()]) for m in pattern.finditer(text)], text) for text in texts]


def _linear_tagger(
    task: TaskSpec, training: Sequence[Located], inputs: Sequence[Located], labels: Sequence[str], backbone: Backbone
) -> list[str]:
    from sklearn.dummy import DummyClassifier
    from sklearn.linear_model import LogisticRegression

    states = np.concatenate(_states(backbone, training, task.tune.batch_tokens))
    tags = np.array([tag for example in training for tag in example.target])
    states, tags = states[tags != IGNORED], tags[tags != IGNORED]
    if len(set(tags.tolist())) == 1:  # nothing to tell apart
        tagger: Any = DummyClassifier(strategy="prior").fit(states, tags)
    else:
        tagger = LogisticRegression(C=10, max_iter=1000, random_state=task.tune.seed).fit(states, tags)
    found = []
    for example, own in zip(inputs, _states(backbone, inputs, task.tune.batch_tokens), strict=True):
        scores = torch.full((len(own), num_tags(labels)), -1e9, dtype=torch.float64)  # of a tag that no token has
        scores[:, tagger.classes_] = torch.from_numpy(tagger.predict_log_proba(own)).double()
        found.append(answer_of(scores, example, labels))
    return found


@torch.inference_mode()
def _states(backbone: Backbone, inputs: Sequence[Located], batch_tokens: int) -> list[np.ndarray[Any, Any]]:
    """The frozen states of each input's tokens, float32 [n, H]."""
    bare = PromptState.of(backbone)
    found: list[np.ndarray[Any, Any]] = []
    for batch in pack(inputs, lambda e: len(e.input), batch_tokens):
        (states,) = hidden_states(backbone, [Tree(bare, [e.input for e in batch])])
        found += [own.numpy() for own in torch.split(states.float().cpu(), [len(e.input) for e in batch])]
    return found
