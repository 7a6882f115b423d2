"""Scoring many labels of several tokens behind a prompt, beside the plain batched computation over text-label pairs.

    python benchmarks/label_scoring.py    256 texts x 77 labels behind 100 soft tokens, 12-layer Llama, float32

Ours computes the prompt once, each text once and what labels begin with once per text. The plain way runs every text with
every label as a padded row behind a copy of the prompt, in batches, and takes the label's tokens from the logits;
a second plain way sends only the label's rows through the head, which few would write. The plain ways would take an hour:
they are timed on a part of the texts, ours on the same part, taking turns, and ours on all texts once.
"""

import argparse
import statistics
import time

import polars as pl
import torch
from record import SHARED_DATA, write_result
from shapes import llama12, plain_llama12, random_ids
from torch import Tensor

from prompt_core.data.packing import pack
from prompt_core.encoded import Encoded
from prompt_core.prompts import PromptState, lower
from prompt_core.tokens import soft_ids
from prompt_core.tuning.objective import LabelWords

PROMPT = 100


def texts_and_labels(tokenizer: object, texts: int, labels: int) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Banking77's test texts and label names where they are at hand, else random ids of like lengths; labels end in id 0."""
    found = sorted(SHARED_DATA.glob("**/banking77*test*.parquet")) if SHARED_DATA.is_dir() else []
    if not found:
        return random_ids(8, 24, texts), [(*ids, 0) for ids in random_ids(2, 6, labels, seed=1)]
    frame = pl.read_parquet(found[0])
    names = sorted(frame["label"].unique())[:labels]
    encode = lambda text: tuple(tokenizer(text, add_special_tokens=False).input_ids)  # type: ignore[operator] # noqa: E731
    return [encode(text) for text in frame["text"].head(texts)], [(*encode(" " + name.replace("_", " ")), 0) for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--labels", type=int, default=77)
    parser.add_argument("--part", type=int, default=4, help="texts that the plain ways are timed on")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32, help="rows of a plain batch")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    backbone, model = llama12(), plain_llama12()
    texts, words = texts_and_labels(backbone.tokenizer, arguments.texts, arguments.labels)
    rows = torch.randn(PROMPT, backbone.hidden_size) * 0.02
    classifier = LabelWords(backbone, words)

    @torch.inference_mode()
    def ours(some: list[tuple[int, ...]]) -> Tensor:
        prompt = lower(backbone, PromptState.of(backbone, rows=rows, root=soft_ids(PROMPT)))
        examples = [Encoded(ids, (), False) for ids in some]
        return torch.cat([classifier.scores_behind(prompt, batch) for batch in pack(examples, classifier.tokens, 8192)])

    @torch.inference_mode()
    def plain(some: list[tuple[int, ...]], all_logits: bool) -> Tensor:
        pairs = [(text, label) for text in some for label in words]
        scores = []
        for start in range(0, len(pairs), arguments.batch):
            part = pairs[start : start + arguments.batch]
            longest = max(len(text) + len(label) for text, label in part)
            ids = torch.zeros(len(part), longest, dtype=torch.int64)
            mask = torch.zeros(len(part), PROMPT + longest, dtype=torch.int64)
            for row, (text, label) in enumerate(part):
                ids[row, : len(text) + len(label)] = torch.tensor(text + label)
                mask[row, : PROMPT + len(text) + len(label)] = 1
            inputs = torch.cat([rows.expand(len(part), -1, -1), model.get_input_embeddings()(ids)], dim=1)
            states = (model if all_logits else model.model)(inputs_embeds=inputs, attention_mask=mask)[0]
            for row, (text, label) in enumerate(part):
                end = PROMPT + len(text) + len(label) - 1
                own = states[row, end - len(label) : end]
                chances = (own if all_logits else model.lm_head(own)).log_softmax(-1)
                scores.append(chances[torch.arange(len(label)), torch.tensor(label)].mean())
        return torch.stack(scores).view(len(some), len(words))

    part = texts[: arguments.part]
    ways = {"ours": lambda: ours(part), "plain": lambda: plain(part, True), "plain, head on label rows": lambda: plain(part, False)}
    times: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, Tensor] = {}
    ours(part)
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            found[name] = way()
            times[name].append(time.perf_counter() - start)
    errors = {name: float((scores - found["ours"]).abs().max()) for name, scores in found.items() if name != "ours"}
    ratios = {name: statistics.median(a / b for a, b in zip(times[name], times["ours"], strict=True)) for name in errors}
    start = time.perf_counter()
    ours(texts)
    whole = time.perf_counter() - start
    label_tokens = sum(map(len, words)) / len(words)
    print(
        f"{len(texts)} texts of {sum(map(len, texts)) / len(texts):.1f} tokens x {len(words)} labels of {label_tokens:.1f}: {whole:.1f} s"
    )
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.1f}x as long as ours on {len(part)} texts, scores differ by {errors[name]:.1e} at most")
    write_result(
        "label_scoring_cpu",
        {"texts": len(texts), "labels": len(words), "prompt": PROMPT, "part": len(part), "ratio": ratios, "largest_difference": errors}
        | {"seconds": times, "all_texts_seconds": whole},
    )


if __name__ == "__main__":
    main()
