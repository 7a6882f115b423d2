"""Generation behind one prompt: the continuation of each input, the most likely tokens, a beam search's, or tokens drawn by seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prompt_core.backbone import Backbone, EncoderDecoder
from prompt_core.continuous import write
from prompt_core.encoded import Encoded
from prompt_core.encoding import TaskEncoding
from prompt_core.prompts import PromptState, lower
from prompt_core.sampling import Sampling
from prompt_core.writing import Text

__all__ = ["Sampling", "generate", "generate_texts"]

OnProgress = Callable[[int, int], None]


def generate(
    backbone: Backbone,
    prompt: PromptState,
    inputs: Sequence[Sequence[int]],
    max_new_tokens: int,
    ends: Sequence[Sequence[int]],
    on_progress: OnProgress | None = None,
    sampling: Sampling | None = None,
    closing: frozenset[int] = frozenset(),
    beams: int = 1,
) -> list[list[int]]:
    """The most likely continuation of each input behind a prompt, token by token; with an encoder-decoder, what it writes of it.

    Args:
        backbone: a model that generates.
        prompt: a causal model reads its root once and holds its keys and values once for all rows; an encoder-decoder
            reads it with every input.
        inputs: token ids after the root, each at least one.
        max_new_tokens: where a text ends at the latest.
        ends: runs of tokens, each of which ends a text; not part of the result.
        on_progress: called with (finished, all).
        sampling: draw the tokens instead.
        closing: tokens that end a text too and are part of the result.
        beams: more than one, and nothing is drawn: the likeliest text that a beam search finds, see `BeamSearch`.

    Returns:
        Generated ids per input, in the order of `inputs`.
    """
    if not isinstance(backbone, EncoderDecoder):
        prompt = lower(backbone, prompt)
    uniforms = [sampling.uniforms(row, max_new_tokens) if sampling else None for row in range(len(inputs))]
    texts = [Text(prompt, ids, max_new_tokens, ends, closing, sampling, own, beams) for ids, own in zip(inputs, uniforms, strict=True)]
    write(backbone, texts, on_progress)
    return [text.ids for text in texts]


def generate_texts(
    backbone: Backbone,
    encoding: TaskEncoding,
    prompt: PromptState,
    inputs: Sequence[Encoded],
    max_new_tokens: int,
    on_progress: OnProgress | None = None,
    beams: int = 1,
) -> list[str]:
    """Texts behind a prompt, the likeliest token after token or by beam search."""
    asked = [example.input for example in inputs]
    ids = generate(backbone, prompt, asked, max_new_tokens, encoding.ends, on_progress, closing=encoding.closing, beams=beams)
    return [encoding.decode(row) for row in ids]
