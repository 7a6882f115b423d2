"""The tensors of a saved prompt, checked and looked at without PyTorch, which loads when one is taken out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import safetensors

if TYPE_CHECKING:  # a text prompt is rendered where no PyTorch need be installed in memory
    import torch

_NAMES = {"F": "float", "I": "int", "U": "uint", "BF": "bfloat", "BOOL": "bool"}


class StoredTensors(Mapping[str, "torch.Tensor"]):
    """What a safetensors file holds, by name.

    Args:
        content: the file's bytes.

    Attributes:
        content: the same.

    Raises:
        safetensors.SafetensorError: they are no such file.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self._parts = dict(safetensors.deserialize(content))  # type: ignore[no-untyped-call]
        self._taken: dict[str, torch.Tensor] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._parts:
            raise KeyError(name)
        if not self._taken:
            from safetensors.torch import load as read_safetensors  # plain numbers: nothing in the file is run

            self._taken = read_safetensors(self.content)
        return self._taken[name]

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def shape(self, name: str) -> list[int]:
        """Of a tensor."""
        return list(self._parts[name]["shape"])

    def dtype(self, name: str) -> str:
        """Of a tensor, as PyTorch calls it: `float32`."""
        kind = str(self._parts[name]["dtype"])
        letters = kind.rstrip("0123456789")
        return _NAMES.get(letters, letters) + kind[len(letters) :]

    def is_finite(self, name: str) -> bool:
        """Whether a float32 tensor has neither infinities nor NaN."""
        return bool(np.isfinite(np.frombuffer(self._parts[name]["data"], dtype="<f4")).all())
