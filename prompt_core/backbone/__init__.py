"""The frozen model: found, loaded, given the attention step, probed and identified by content."""

from prompt_core.backbone.attention import DecodePass, ForestPass
from prompt_core.backbone.load import load_backbone
from prompt_core.backbone.model import Backbone
from prompt_core.backbone.seq2seq import EncoderDecoder, PaddedPass

__all__ = ["Backbone", "DecodePass", "EncoderDecoder", "ForestPass", "PaddedPass", "load_backbone"]
