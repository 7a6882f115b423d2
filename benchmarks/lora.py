"""LoRA, the rival that changes weights: PEFT's adapters on the same frozen model, trained on the same examples.

The adapters (Hu et al. 2021, arXiv:2106.09685) are PEFT's, rank 8 on all linear layers. The rows run packed behind the
instruction, as ours do, which gives the same loss and gradients as padded rows in a fraction of the time.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import peft
import polars as pl
import torch

from prompt_core.backbone import Backbone, load_backbone
from prompt_core.backbone.load import _load
from prompt_core.encoding import TaskEncoding
from prompt_core.generation import generate_texts
from prompt_core.prediction import classify
from prompt_core.prompts import PromptState, Tree, hidden_states
from prompt_core.task import TaskSpec
from prompt_core.tuning.build import answer, build_classifier
from prompt_core.tuning.objective import Generation, Objective
from prompt_core.tuning.prepared import encode_frame
from prompt_core.tuning.schedule import rate_factor

_RATE = 1e-3


def lora(task: TaskSpec, train: pl.DataFrame, rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], int]:
    """Train on the task's examples for the task's steps; outputs for the test rows, and how many numbers were trained.

    Steps, batch, warm-up, decay and clipping are the task's; the rate is 1e-3. The loss is cross-entropy over the
    vocabulary on the target's tokens; where the task describes its labels, that over the label set, as ours is.
    """
    backbone = _adapted(task)
    parameters = [p for p in backbone._base.parameters() if p.requires_grad]
    encoding = TaskEncoding(task, backbone)
    target = task.data.target
    labels = sorted(train[target].unique()) if task.objective == "classify" else []
    objective: Objective
    if task.labels:
        objective, examples = build_classifier(task, encoding, backbone, labels), encode_frame(task, encoding, train, labels)
    else:
        objective = Generation(backbone)
        examples = [encoding.encode(row, answer(task, row[target])) for row in train.iter_rows(named=True)]
    root, spec = PromptState.of(backbone, root=encoding.root), task.tune
    optimizer = torch.optim.AdamW(parameters, lr=_RATE, weight_decay=0.0)
    generator, waiting, steps = torch.Generator().manual_seed(spec.seed), [], spec.steps_for(len(examples))
    for step in range(steps):
        while len(waiting) < min(spec.batch_examples, len(examples)):
            waiting += torch.randperm(len(examples), generator=generator).tolist()
        taken, waiting = waiting[: spec.batch_examples], waiting[spec.batch_examples :]
        batch = [examples[i] for i in taken]
        (states,) = hidden_states(backbone, [Tree(root, *objective.segments(batch))])
        loss = objective.loss(states, batch) / sum(map(objective.weight, batch))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, spec.clip)
        optimizer.param_groups[0]["lr"] = _RATE * rate_factor(step, steps, spec.warmup, spec.decay)
        optimizer.step()
    inputs = [encoding.encode(row) for row in rows]
    if task.objective == "generate":
        longest = task.evaluate.max_new_tokens or -(-5 * max(len(e.target) for e in examples) // 4)
        outputs = generate_texts(backbone, encoding, root, inputs, longest, beams=task.evaluate.beams)
    else:
        outputs = classify(backbone, build_classifier(task, encoding, backbone, labels), root, inputs, labels, spec.batch_tokens)
    return outputs, sum(p.numel() for p in parameters)


def _adapted(task: TaskSpec) -> Backbone:
    """A backbone of its own with fresh adapters: its layers are the model's own again, for ours skip the adapters."""
    _load.cache_clear()
    backbone = load_backbone(task.backbone)
    _load.cache_clear()
    for module in backbone._base.modules():
        if hasattr(module, "fusion"):
            module.__class__ = type(module).__mro__[2]
    torch.manual_seed(task.tune.seed)
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    peft.inject_adapter_in_model(peft.LoraConfig(r=8, lora_alpha=16, target_modules=linear), backbone._base)
    for name, parameter in backbone._base.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    return backbone
