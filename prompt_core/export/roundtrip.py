"""Round trips: a prompt written for each stack where its task says that it must run, read there, and compared with ours."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jinja2

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.deploy import Form, Stack, formats_for
from prompt_core.encoding import TaskEncoding
from prompt_core.errors import PromptmillError
from prompt_core.evaluation.metrics import score
from prompt_core.evaluation.record import RoundTrip
from prompt_core.export.export import export
from prompt_core.export.licence import base_of
from prompt_core.export.package import RECIPES, Published
from prompt_core.generation import generate_texts
from prompt_core.prediction import encoding_of, restore
from prompt_core.task import TaskSpec
from prompt_core.template import split_soft
from prompt_core.tokens import soft_ids

_ROWS = 4
_TOKENS = 24  # of each text that is compared
_ALIKE = 80.0  # chrF to ours: rounding lets a text part ways late, a lost prompt from its first word on

Fields = Mapping[str, Any]


def round_trips(task: TaskSpec, prompt: TunedPrompt, backbone: Backbone, rows: Sequence[Fields]) -> tuple[RoundTrip, ...]:
    """One result per stack of `task.deploy`: texts of a few test inputs there and here, or for words the messages themselves."""
    return tuple(_round_trip(stack, prompt, backbone, rows[:_ROWS]) for stack in task.deploy)


def form_of(prompt: TunedPrompt, backbone: Backbone) -> Form:
    """The row of the table that a prompt belongs to."""
    if not backbone.causal:
        return "no causal base"
    if prompt.manifest.kind == "text":
        return "text"
    encoding = TaskEncoding(prompt.worded, backbone)
    behind = any(split_soft(text) != [text] for kind, text in encoding.input_parts if kind == "text")
    if prompt.manifest.kind == "deep":
        return "deep and soft behind a field" if behind else "deep"
    in_front = not encoding.soft_tokens or encoding.root[: prompt.manifest.tokens] == tuple(soft_ids(prompt.manifest.tokens))
    return "soft behind a field" if behind else "soft in front" if in_front else "soft amid the root"


def _round_trip(stack: Stack, prompt: TunedPrompt, backbone: Backbone, rows: Sequence[Fields]) -> RoundTrip:
    formats = formats_for(form := form_of(prompt, backbone), stack)
    if not formats:
        return RoundTrip(stack=stack, format="no format", passed=False, detail=f"a prompt of this form ({form}) cannot be expressed")
    name, *options = formats[0].split()
    if name == "tokens" and options and base_of(prompt).weights is None:
        options = []  # llama.cpp's own converter takes the folder of a base that is no GGUF file
    settings: dict[str, Any] = {"gguf": True, "layers": "f32"} if options == ["--gguf"] else {}
    settings |= {"peft_type": options[1]} if name == "peft" and options else {}
    try:
        with tempfile.TemporaryDirectory() as beside:
            folder = Path(beside, "export")
            export([Published(prompt, 1, {})], folder, name, **settings)
            passed, detail = _READERS["gguf" if settings.get("gguf") else name](folder, prompt, backbone, rows)
    except Exception as error:  # of any kind: a consumer that fails in its own way is no reason to lose the evaluation
        said = " ".join(str(error).split())[:500]
        passed, detail = False, said if isinstance(error, PromptmillError) else f"{type(error).__name__}: {said}"
    return RoundTrip(stack=stack, format=" ".join([name, *options]), passed=passed, detail=detail)


def _same_folder(folder: Path, prompt: TunedPrompt, backbone: Backbone, rows: Sequence[Fields]) -> tuple[bool, str]:
    read = TunedPrompt.load(folder)
    same = read.digest == prompt.digest and read.predict(rows, backbone) == prompt.predict(rows, backbone)
    return same, f"digest and {len(rows)} answers are {'ours' if same else 'others'}"


def _same_messages(folder: Path, prompt: TunedPrompt, backbone: Backbone, rows: Sequence[Fields]) -> tuple[bool, str]:
    recipe = _recipe(folder)

    def filled(text: str, fields: Fields) -> str:
        return str(jinja2.Template(text, keep_trailing_newline=True).render(**fields))

    def asked(fields: Fields) -> Any:
        messages = [{**message, "content": filled(message["content"], fields)} for message in recipe.get("messages", [])]
        return messages or filled(recipe["prompt"], fields)

    same = all(asked(fields) == prompt.render(fields) for fields in rows)
    return same, f"what a model is asked is {'ours' if same else 'another text'} for {len(rows)} inputs"


def _in_tokens(folder: Path, prompt: TunedPrompt, backbone: Backbone, rows: Sequence[Fields]) -> tuple[bool, str]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=backbone.dtype)
    texts = _written(model, AutoTokenizer.from_pretrained(folder), _recipe(folder), rows, _limit(prompt))
    return _compared(texts, prompt, backbone, rows)


def _in_peft(folder: Path, prompt: TunedPrompt, backbone: Backbone, rows: Sequence[Fields]) -> tuple[bool, str]:
    if find_spec("peft") is None:
        return False, "the package peft is not installed here, so that it could not be tried"
    from peft import PeftModel

    model = PeftModel.from_pretrained(_base(prompt, backbone), folder).eval()
    return _compared(_written(model, backbone.tokenizer, _recipe(folder), rows, _limit(prompt)), prompt, backbone, rows)


def _in_cache(folder: Path, prompt: TunedPrompt, backbone: Backbone, rows: Sequence[Fields]) -> tuple[bool, str]:
    from safetensors.torch import load_file

    kv = load_file(folder / "kv.safetensors")
    cache = kv["keys"], kv["values"]
    texts = _written(_base(prompt, backbone), backbone.tokenizer, _recipe(folder), rows, _limit(prompt), cache)
    return _compared(texts, prompt, backbone, rows)


def _in_llama_cpp(folder: Path, prompt: TunedPrompt, backbone: Backbone, rows: Sequence[Fields]) -> tuple[bool, str]:
    if find_spec("xllamacpp") is None:
        return False, "the package xllamacpp is not installed here, so that it could not be tried"
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(folder / "model.gguf")
    settings.n_parallel, settings.cpuparams.n_threads = 1, 1
    server, recipe, texts = xllamacpp.Server(settings), _recipe(folder), []
    for fields in rows:
        request = {"prompt": _text(recipe, fields), "n_predict": _limit(prompt), "temperature": 0}
        answer = server.handle_completions(request)
        texts.append(answer["content"] if "content" in answer else answer["choices"][0]["text"])
    return _compared(texts, prompt, backbone, rows)


def _same_rows(folder: Path, prompt: TunedPrompt, backbone: Backbone, rows: Sequence[Fields]) -> tuple[bool, str]:
    import torch
    from safetensors.torch import load_file

    from prompt_core.export.peft import WEIGHTS

    ours = restore(prompt, TaskEncoding(prompt.worded, backbone), backbone).rows.float().cpu()
    same = torch.equal(load_file(folder / WEIGHTS)["prompt_embeddings"], ours)
    return same, f"the {len(ours)} rows in its prefix store are {'ours' if same else 'others'}; no server was run"


def _written(
    model: Any, tokenizer: Any, recipe: Mapping[str, Any], rows: Sequence[Fields], new_tokens: int, cache: Any = None
) -> list[str]:
    """Texts of transformers, one input at a time, behind keys and values where they are given."""
    import torch
    from transformers import DynamicCache

    texts = []
    for fields in rows:
        ids = tokenizer(_text(recipe, fields), add_special_tokens=False, return_tensors="pt").input_ids
        settings: dict[str, Any] = {"max_new_tokens": new_tokens, "do_sample": False}
        settings |= {"eos_token_id": recipe["stop_token_ids"], "num_beams": recipe["num_beams"]}
        if cache:
            settings["past_key_values"] = DynamicCache()
            for layer, (keys, values) in enumerate(zip(*cache, strict=True)):
                settings["past_key_values"].update(keys.to(model.dtype), values.to(model.dtype), layer)
            settings["past_key_values"].batch_repeat_interleave(recipe["num_beams"])
            ids = torch.cat([ids.new_zeros(1, cache[0].shape[3]), ids], 1)
        with torch.inference_mode():
            answer = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)
        texts.append(tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True).partition(recipe["stop"])[0])
    return texts


def _compared(texts: Sequence[str], prompt: TunedPrompt, backbone: Backbone, rows: Sequence[Fields]) -> tuple[bool, str]:
    """Whether texts are those that the frozen model writes behind the prompt here."""
    encoding = encoding_of(prompt, backbone)
    state = restore(prompt, encoding, backbone)
    inputs, beams = [encoding.encode(fields) for fields in rows], prompt.task.evaluate.beams
    ours = generate_texts(backbone, encoding, state, inputs, _limit(prompt), beams=beams)
    pairs = [(theirs.strip(), own.strip()) for theirs, own in zip(texts, ours, strict=True)]
    equal = sum(theirs == own for theirs, own in pairs)
    alike = float(score("chrf", [theirs or "-" for theirs, _ in pairs], [own or "-" for _, own in pairs]).mean())
    return alike >= _ALIKE, f"{equal} of {len(pairs)} texts are ours, chrF {alike:.0f}; needs {_ALIKE:g}"


def _limit(prompt: TunedPrompt) -> int:
    """Tokens of a text that is compared; a classifier's goes on behind the label, which would be short evidence."""
    return min(_TOKENS, prompt.manifest.max_new_tokens or _TOKENS)


def _recipe(folder: Path) -> dict[str, Any]:
    recipe: dict[str, Any] = json.loads((folder / RECIPES).read_text(encoding="utf-8"))[0]
    return recipe


def _text(recipe: Mapping[str, Any], fields: Fields) -> str:
    """An input as the recipe says; what belongs to a chat's template is part of it."""
    parts = [part["text"] if "text" in part else str(fields[part["field"]]).strip() for part in recipe["input"]]
    return "".join([recipe["root"], *parts])


def _base(prompt: TunedPrompt, backbone: Backbone) -> Any:
    """The frozen model as transformers loads it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base_of(prompt).source, dtype=backbone.dtype).eval()


_READERS: dict[str, Callable[[Path, TunedPrompt, Backbone, Sequence[Fields]], tuple[bool, str]]] = {
    "folder": _same_folder,
    "text": _same_messages,
    "tokens": _in_tokens,
    "gguf": _in_llama_cpp,
    "peft": _in_peft,
    "kv": _in_cache,
    "tgis": _same_rows,
}
