"""SetFit, the rival that fine-tunes the encoder: its own library on the same model, trained on the same examples.

Tunstall et al. 2022, arXiv:2209.11055. All weights are trained on pairs of examples for one epoch, then a logistic regression on
the embeddings. Needs `pip install setfit`.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from prompt_core.backbone.locate import locate
from prompt_core.task import TaskSpec

_PAIRS = 20_000  # at most; a round makes two of each example, one with its own class and one with another
_ROUNDS = 20  # as in the paper


def setfit(task: TaskSpec, train: pl.DataFrame, rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], int]:
    """Train for one epoch in batches of 32; labels of the test rows, and how many numbers were trained.

    Pairs are drawn in 20 rounds, of many examples in fewer, so that there are 20,000 at most; all else is the library's default.
    """
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    labels = sorted(train[task.data.target].unique())
    model = SetFitModel.from_pretrained(str(locate(task.backbone, Path()).source), labels=labels, local_files_only=True, device="cpu")
    rounds = max(1, min(_ROUNDS, _PAIRS // (2 * len(train))))
    with tempfile.TemporaryDirectory() as folder:
        settings = {"batch_size": 32, "num_epochs": 1, "num_iterations": rounds, "seed": task.tune.seed}
        arguments = TrainingArguments(output_dir=folder, save_strategy="no", report_to="none", show_progress_bar=False, **settings)
        data = Dataset.from_dict({"text": train["text"].to_list(), "label": train[task.data.target].to_list()})
        Trainer(model=model, args=arguments, train_dataset=data).train()
    found = model.predict([str(row["text"]) for row in rows], show_progress_bar=False)
    return [str(label) for label in found], sum(parameter.numel() for parameter in model.model_body.parameters())
