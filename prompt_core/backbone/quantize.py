"""A base whose linear layers hold 8 or 4 bits per weight, through bitsandbytes where it is installed."""

from __future__ import annotations

import importlib.util
import logging
from typing import Literal

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from prompt_core.errors import PromptmillError

Quantization = Literal["8bit", "4bit"]


def bitsandbytes_config(quantization: Quantization, dtype: torch.dtype, where: str) -> BitsAndBytesConfig:
    """What transformers needs to quantise at load: LLM.int8 (arXiv:2208.07339) or NF4 (Dettmers et al. 2023, arXiv:2305.14314).

    Raises:
        PromptmillError: bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise PromptmillError(
            f"{where}: quantization", f"{quantization}, but bitsandbytes is not installed", "Run: pip install bitsandbytes"
        )
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of its cast to float16 at every product
    if quantization == "8bit":
        # No outlier columns (threshold 0): they are chosen over the whole packed row, and an example would depend on its neighbours.
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def keep_differentiable(model: PreTrainedModel) -> None:
    """Leave 4-bit layers in training mode, which changes no number of a linear layer.

    In evaluation mode on a CPU, their first forward without gradients repacks them for inference, and what flows back
    through them from then on is zero, without an error.
    """
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.train()
