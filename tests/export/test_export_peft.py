"""PEFT adapters: `PeftModel.from_pretrained` computes the logits that the prompt gives here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from export_builders import TEXTS, published, run_readme
from helpers import backbone_at, plain_model, save_tiny
from torch import Tensor

from prompt_core.backbone import Backbone
from prompt_core.encoding import TaskEncoding
from prompt_core.errors import PromptmillError
from prompt_core.export import Published, export
from prompt_core.prediction import restore
from prompt_core.prompts import Tree, hidden_states

KINDS = [
    ({"kind": "soft"}, None, "PROMPT_TUNING"),
    ({"kind": "soft", "network": "lstm", "hidden": 16}, None, "PROMPT_TUNING"),
    ({"kind": "deep"}, None, "PREFIX_TUNING"),
    ({"kind": "deep", "sink": True}, "cartridge", "CARTRIDGE"),
    ({"kind": "soft"}, "prefix_tuning", "PREFIX_TUNING"),
    ({"kind": "soft"}, "cartridge", "CARTRIDGE"),
]


def our_logits(backbone: Backbone, each: Published) -> tuple[list[list[int]], list[Tensor]]:
    """Ids of the inputs behind the root, and their logits behind the prompt, each [tokens, V]."""
    encoding = TaskEncoding(each.prompt.task, backbone)
    inputs = [list(encoding.encode({"text": text}).input) for text in TEXTS]
    (states,) = hidden_states(backbone, [Tree(restore(each.prompt, encoding, backbone), inputs)])
    return inputs, list(torch.split(backbone.logits(states), [len(ids) for ids in inputs]))


def padded(inputs: list[list[int]], left: bool = False) -> tuple[Tensor, Tensor]:
    """Ids and mask, [B, longest]."""
    longest = max(map(len, inputs))
    ids, mask = torch.zeros(2, len(inputs), longest, dtype=torch.long)
    for row, given in enumerate(inputs):
        place = slice(longest - len(given), None) if left else slice(len(given))
        ids[row, place], mask[row, place] = torch.tensor(given), 1
    return ids, mask


def loaded(folder: Path, base: str | Path) -> Any:
    return peft.PeftModel.from_pretrained(plain_model(base), folder).eval()


@torch.no_grad()
def their_logits(model: Any, ids: Tensor, mask: Tensor, lengths: list[int], left: bool = False) -> list[Tensor]:
    logits = model(input_ids=ids, attention_mask=mask).logits[:, -ids.shape[1] :]
    return [row[-n:] if left else row[:n] for row, n in zip(logits, lengths, strict=True)]


def worst(found: list[Tensor], expected: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(("kind", "peft_type", "written"), KINDS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_logits_in_right_padded_rows_are_ours(
    family: str, kind: dict[str, Any], peft_type: str | None, written: str, tmp_path: Path
) -> None:
    folder = save_tiny(family, tmp_path / family)
    backbone = backbone_at(str(folder))
    each = published(backbone, prompt=kind)
    export([each], tmp_path / "out", "peft", peft_type=peft_type)
    model = loaded(tmp_path / "out", folder)
    assert model.peft_config["default"].peft_type == written
    inputs, expected = our_logits(backbone, each)
    lengths = [len(ids) for ids in inputs]
    assert worst(their_logits(model, *padded(inputs), lengths), expected) < 1e-4
    alone = [their_logits(model, *padded([ids]), [len(ids)])[0] for ids in inputs]
    assert worst(alone, expected) < 1e-4


@pytest.mark.parametrize("kind", ["soft", "deep"])
def test_left_padding_changes_the_logits_as_the_readme_says(llama: Backbone, llama_folder: Path, tmp_path: Path, kind: str) -> None:
    each = published(llama, prompt={"kind": kind})
    export([each], tmp_path / "out", "peft")
    inputs, expected = our_logits(llama, each)
    ids, mask = padded(inputs, left=True)
    model = loaded(tmp_path / "out", llama_folder)
    longest = max(range(len(inputs)), key=lambda i: len(inputs[i]))
    for row, logits in enumerate(their_logits(model, ids, mask, [len(row) for row in inputs], left=True)):
        assert (worst([logits], [expected[row]]) < 1e-4) == (row == longest)  # the longest row has no padding
    assert "Left padding changes them" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", ["soft", "deep"])
def test_the_readme_writes_what_the_prompt_writes(llama: Backbone, llama_folder: Path, tmp_path: Path, kind: str, beams: int) -> None:
    each = published(llama, prompt={"kind": kind}, evaluate={"max_new_tokens": 12, "beams": beams})
    export([each], tmp_path / "out", "peft")
    names = run_readme(tmp_path / "out", llama_folder, text=TEXTS[0])
    written = names["model"].generate(**names["ids"], **names["settings"], eos_token_id=names["prompt"]["stop_token_ids"])[
        0, names["ids"].input_ids.shape[1] :
    ]
    assert llama.tokenizer.decode(written, skip_special_tokens=True).strip() == each.prompt.predict(TEXTS[:1], llama)[0]


def test_soft_tokens_in_front_of_text_are_a_peft_prompt(llama: Backbone, llama_folder: Path, tmp_path: Path) -> None:
    each = published(llama, "{{ soft(5) }} Question: {{ text }}\n", prompt={"kind": "soft"})
    export([each], tmp_path / "out", "peft")
    names = run_readme(tmp_path / "out", llama_folder, text=TEXTS[0])
    assert names["prompt"]["root"] == " Question:"
    with torch.no_grad():
        found = names["model"](**names["ids"]).logits[0, -1]
    assert worst([found], [our_logits(llama, each)[1][0][-1]]) < 1e-4


@pytest.mark.parametrize(
    ("template", "kind", "peft_type", "finding"),
    [
        (
            "Read {{ soft(2) }}: {{ text }}\n",
            "soft",
            None,
            "its soft tokens do not all stand before the text. Use --peft-type prefix_tuning",
        ),
        ("{{ soft(2) }} {{ text }} {{ soft(2) }}\n", "soft", None, "its soft tokens do not all stand before the text"),
        ("{{ soft(2) }} {{ text }} {{ soft(2) }}\n", "soft", "prefix_tuning", "it has soft tokens behind the first field"),
        ("{{ text }}\n", "deep", "prompt_tuning", "it is a deep prefix"),
    ],
)
def test_what_peft_cannot_express_is_refused(
    llama: Backbone, tmp_path: Path, template: str, kind: str, peft_type: str | None, finding: str
) -> None:
    each = published(llama, template, prompt={"kind": kind})
    with pytest.raises(PromptmillError, match=f"export t@1 as peft {peft_type or 'prompt_tuning'}: {finding}"):
        export([each], tmp_path / "out", "peft", peft_type=peft_type)


def test_soft_tokens_amid_the_root_are_lowered(llama: Backbone, llama_folder: Path, tmp_path: Path) -> None:
    each = published(llama, "Read {{ soft(2) }}: {{ text }}\n", prompt={"kind": "soft"})
    export([each], tmp_path / "out", "peft", peft_type="prefix_tuning")
    inputs, expected = our_logits(llama, each)
    model = loaded(tmp_path / "out", llama_folder)
    assert worst(their_logits(model, *padded(inputs), [len(ids) for ids in inputs]), expected) < 1e-4
