"""The real data sets of the quality benchmark: the task of each, how a seed draws its examples, and what is measured.

All are in ../shared/data, see the README there. A draw is from the published training side only.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from record import SHARED_DATA

from prompt_core.evaluation import corpus_bleu, score
from prompt_core.evaluation.metrics import facts_kept

INDUCTION = (
    "active_to_passive",
    "cause_and_effect",
    "diff",
    "informal_to_formal",
    "letters_list",
    "num_to_verbal",
    "rhymes",
    "sentence_similarity",
    "singular_to_plural",
    "synonyms",
    "translation_en-de",
    "translation_en-fr",
)
_INSTRUCTIONS = {
    "mr_polarity": "Is this sentence from a movie review negative or positive?",
    "subj": "Is this sentence from a text on movies objective or subjective?",
    "pros_cons": "Is this from the pros or the cons of a product review?",
}
_UNLABELLED = 2000
# What the model may say for a label, where it is not the label's name alone.
_LABEL_WORDS = {
    "mr_polarity": {"negative": ["negative", "bad", "terrible"], "positive": ["positive", "good", "great"]},
    "subj": {"objective": ["objective", "fact", "plot"], "subjective": ["subjective", "opinion", "review"]},
    "pros_cons": {"con": ["con", "bad", "negative"], "pro": ["pro", "good", "positive"]},
}


@dataclass(frozen=True)
class Set:
    """A data set as a task.

    Attributes:
        name: also the task's.
        spec: the task without seed.
        draw: the training examples of a seed.
        rows: the fields of the test inputs.
        scores: of each output, one number, 0 to 100: what paired tests are about.
        measure: the values that people quote, by metric.
        unlabelled: other texts of the training side for a seed, 2,000 at most; of classifiers.
        instructions: wordings that people wrote for it; the first stands in the template.
        label_words: of a classifier that writes, what it may say for each label.
        lines: of a classifier that writes, its template as plain lines without the chat format.
    """

    name: str
    spec: dict[str, Any]
    draw: Callable[[int], pl.DataFrame]
    rows: Sequence[dict[str, Any]]
    scores: Callable[[Sequence[str]], np.ndarray]
    measure: Callable[[Sequence[str]], dict[str, float]]
    unlabelled: Callable[[int], pl.DataFrame] | None = None
    instructions: Sequence[str] = ()
    label_words: Mapping[str, Sequence[str]] = field(default_factory=dict)
    lines: str = ""


def load_set(model: str, name: str, examples: int, test_rows: int | None) -> Set:
    """A data set by its name, as a task for a model that writes (`smollm2`) or an encoder (`minilm`).

    Args:
        examples: per class, or in all where there are no classes.
        test_rows: at most so many, drawn by content hash; None for all.
    """
    if name == "e2e":
        return _e2e(examples, test_rows)
    if name in INDUCTION:
        return _induction(name, examples, test_rows)
    return _classes(model, name, examples, test_rows)


def _classes(model: str, name: str, shots: int, test_rows: int | None) -> Set:
    train, test = (_read(f"{name}_{side}") for side in ("train", "test"))
    both = train.group_by(_plain("text")).agg(pl.col("label").n_unique()).filter(pl.col("label") > 1)["text"]
    seen = pl.concat([_plain_of(test), both]).implode()
    train = train.filter(~_plain("text").is_in(seen)).unique("text", keep="first", maintain_order=True)
    test = test.filter(~_plain("text").is_in(both.implode())).unique("text", keep="first", maintain_order=True)
    test = test.sort(pl.col("text").hash(0)).head(test_rows or len(test))
    targets = test["label"].to_list()
    spec: dict[str, Any] = {"name": name, "data": {"path": "-", "target": "label"}, "objective": "classify"}
    if model == "smollm2":
        spec["template"] = [{"system": _INSTRUCTIONS[name]}, {"user": "{{ text }}"}]
        spec["tune"] = {"steps": 40}
    else:
        spec["template"] = "{{ text }}"

    def shuffled(seed: int) -> pl.DataFrame:
        return train.sort("_id").sample(fraction=1.0, seed=seed, shuffle=True)

    def draw(seed: int) -> pl.DataFrame:
        return shuffled(seed).group_by("label", maintain_order=True).head(shots).select(train.columns)

    def unlabelled(seed: int) -> pl.DataFrame:
        return shuffled(seed).join(draw(seed), on="_id", how="anti", maintain_order="left").select("text").head(_UNLABELLED)

    def scores(outputs: Sequence[str]) -> np.ndarray:
        return score("accuracy", outputs, targets)

    rows, words = list(test.iter_rows(named=True)), _LABEL_WORDS[name] if model == "smollm2" else {}
    measured = {"measure": lambda outputs: {"accuracy": float(scores(outputs).mean())}, "unlabelled": unlabelled}
    lines = f"{_INSTRUCTIONS[name]}\n\nInput: {{{{ text }}}}\nOutput:" if model == "smollm2" else ""
    return Set(name, spec, draw, rows, scores, **measured, label_words=words, lines=lines)


def _e2e(examples: int, test_rows: int | None) -> Set:
    train, test = (_with_facts(_read(f"e2e_nlg_{side}")) for side in ("train", "test"))
    grouped = test.group_by("source", maintain_order=True).agg("_id", "facts", "target").sort(pl.col("source").hash(0))
    rows = [
        {"source": row["source"], "facts": row["facts"][0], "references": row["target"]}
        for row in grouped.head(test_rows or len(grouped)).iter_rows(named=True)
    ]
    spec = {
        "name": "e2e",
        "data": {"path": "-", "target": "target"},
        "objective": "generate",
        "template": [{"system": "Describe the restaurant in one sentence with all facts"}, {"user": "{{ source }}"}],
        "evaluate": {"metrics": ["chrf", "facts_kept"], "must_contain": "facts", "few_shot": 4, "max_new_tokens": 72, "beams": 4},
    }
    # Of a source's references the one that states most of its facts: what leaves facts out teaches to leave facts out.
    stated = pl.Series("stated", facts_kept(train["target"].to_list(), train["facts"].to_list()))
    fullest = train.with_columns(stated).sort("stated", descending=True, maintain_order=True)
    fullest = fullest.unique("source", keep="first", maintain_order=True)

    def draw(seed: int) -> pl.DataFrame:
        return fullest.drop("stated").sort("_id").sample(examples, seed=seed, shuffle=True)

    def scores(outputs: Sequence[str]) -> np.ndarray:
        return facts_kept(outputs, [row["facts"] for row in rows])

    def measure(outputs: Sequence[str]) -> dict[str, float]:
        bleu = corpus_bleu(outputs, [row["references"] for row in rows])
        return {"bleu": bleu, "facts_kept": float(scores(outputs).mean())}

    return Set("e2e", spec, draw, rows, scores, measure)


def _induction(name: str, examples: int, test_rows: int | None) -> Set:
    train, test = (_read(f"instruction_induction_{side}").filter(pl.col("task") == name) for side in ("train", "test"))
    instructions = _read("instruction_induction_gold_prompts").filter(pl.col("task") == name)["instruction"].to_list()
    test = test.sort(pl.col("source").hash(0)).head(test_rows or len(test))
    answers = [json.loads(text) for text in test["answers"]]
    spec = {
        "name": name,
        "data": {"path": "-", "target": "target"},
        "objective": "generate",
        "template": [{"system": instructions[0]}, {"user": "{{ source }}"}],
        "evaluate": {"metrics": ["exact_match", "chrf"], "max_new_tokens": 48},
    }

    def draw(seed: int) -> pl.DataFrame:
        return train.sort("_id").sample(min(examples, len(train)), seed=seed, shuffle=True)

    def scores(outputs: Sequence[str]) -> np.ndarray:
        """100 where the output is one of the accepted answers, as Honovich et al. 2022 (arXiv:2205.10782) compare them."""
        return np.array([100.0 * (_words(o) in [_words(a) for a in accepted]) for o, accepted in zip(outputs, answers, strict=True)])

    rows = list(test.iter_rows(named=True))
    measured = {"measure": lambda outputs: {"exact_match": float(scores(outputs).mean())}, "instructions": instructions}
    return Set(name, spec, draw, rows, scores, **measured)


def _read(name: str) -> pl.DataFrame:
    return pl.read_parquet(SHARED_DATA / f"{name}.parquet").with_row_index("_id").with_columns(pl.col("_id").cast(pl.String))


def _plain(column: str) -> pl.Expr:
    return pl.col(column).str.to_lowercase().str.strip_chars()


def _plain_of(frame: pl.DataFrame) -> pl.Series:
    return frame.select(_plain("text"))["text"]


def _with_facts(frame: pl.DataFrame) -> pl.DataFrame:
    # familyFriendly[yes] is worded freely ("kid friendly"); a literal test of its value would measure nothing.
    facts = [
        "\n".join(f"{slot}: {value}" for slot, value in re.findall(r"(\w[\w ]*)\[([^\]]*)\]", source) if slot != "familyFriendly")
        for source in frame["source"]
    ]
    return frame.with_columns(pl.Series("facts", facts))


def _words(text: str) -> list[str]:
    return re.sub(r"[^\w\s]", "", text.lower()).split()
