"""Builds `prompt_embeds` for vLLM from plain fields. Stands in the exported folder and needs only torch, transformers and safetensors.

    python vllm_client.py BASE field=text ...        prints the body of a request to /v1/completions

BASE is the folder of the frozen model, as vLLM serves it with --enable-prompt-embeds.
"""

from __future__ import annotations

import base64
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoTokenizer


class Prompt:
    """A soft prompt.

    Args:
        base: folder of the frozen model.
        folder: the exported folder.
    """

    def __init__(self, base: str | Path, folder: str | Path = Path(__file__).parent) -> None:
        content = json.loads((Path(folder) / "prompts.json").read_text(encoding="utf-8"))[0]
        self.recipe: dict[str, Any] = content
        self._rows = load_file(Path(folder) / "prompt_embeds.safetensors")["rows"]
        self._tokenizer = AutoTokenizer.from_pretrained(base)
        self._table = _embedding_table(Path(base), content["embedding_tensor"])
        self._soft = re.compile(re.escape(f"<|pm:{content['name']}@{content['version']}:") + r"(\d+)\|>")

    def embeds(self, **fields: str) -> torch.Tensor:
        """Input embeddings of one input behind the prompt, [tokens, H], in the base's dtype."""
        parts = [part["text"] if "text" in part else fields[part["field"]] for part in self.recipe["input"]]
        rows = []
        # Root and input are cut apart, as they were in tuning.
        for text in (self.recipe["root"], "".join(parts)):
            for number, piece in enumerate(self._soft.split(text)):
                if number % 2:
                    rows.append(self._rows[int(piece)][None].to(self._table.dtype))
                elif piece:
                    ids = self._tokenizer(piece, add_special_tokens=False).input_ids
                    rows.append(self._table[torch.tensor(ids)])
        return torch.cat(rows)

    def request(self, **fields: str) -> dict[str, Any]:
        """The body of a request to vLLM's /v1/completions; its server wants a tensor as torch.save writes it, in base64."""
        stream = io.BytesIO()
        torch.save(self.embeds(**fields), stream)
        return {
            "prompt_embeds": base64.b64encode(stream.getvalue()).decode("ascii"),
            "temperature": 0,
            "max_tokens": self.recipe["max_new_tokens"],
            "stop_token_ids": self.recipe["stop_token_ids"],
        }


def _embedding_table(base: Path, name: str) -> torch.Tensor:
    """One tensor of the base, without the rest."""
    for file in sorted(base.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118  (no mapping)
                table: torch.Tensor = tensors.get_tensor(name)
                return table
    raise SystemExit(f"{base}: no safetensors file has {name}")


if __name__ == "__main__":
    given = dict(argument.split("=", 1) for argument in sys.argv[2:])
    sys.stdout.write(json.dumps({"model": sys.argv[1], **Prompt(sys.argv[1]).request(**given)}) + "\n")
