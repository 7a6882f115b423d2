"""Mixed prediction beside PEFT, one prompt after another, and the memory of the batch job.

    python benchmarks/predict.py scores        10,000 texts over 20 prompts of 100 soft tokens, a 12-layer Llama, float32
    python benchmarks/predict.py texts         20 prompts x 20 inputs on SmolLM2, 40 tokens each
    python benchmarks/predict.py memory        `predict_table` over 10,000 and 1,000,000 rows, a tiny encoder
    python benchmarks/predict.py scores --texts 400 --peft-texts 40     the same in less than a minute

PEFT runs as its users run it: a `PromptTuning` adapter per prompt, batches of 32 on transformers' default attention. It gets
what costs it nothing: texts sorted by length, right padding, the head on the last rows alone, one prediction per label's first
token, while ours scores each label with its end. PEFT would take long: it is timed on a part of the texts, spread evenly over the
prompts (of texts that are written: on some of the prompts), and scaled; ours is timed on all. Inputs of texts that are written are
of one length, with which PEFT's batches need no padding and write what each input alone would get.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import peft
import polars as pl
import torch
from record import write_result
from served import random_prompt, random_sentences
from shapes import llama12, plain_llama12
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel

from prompt_core.backbone import Backbone, load_backbone
from prompt_core.backbone.locate import locate
from prompt_core.batch import predict_table
from prompt_core.continuous import write
from prompt_core.encoded import Encoded
from prompt_core.packed_scores import packed_scores
from prompt_core.ready import ReadyPrompt
from prompt_core.shelf import Shelf
from prompt_core.store import PromptStore
from prompt_core.task import BackboneSpec
from prompt_core.tuning.objective import LabelWords
from prompt_core.writing import Text

_BATCH = 32


def scores(texts: int, peft_texts: int, prompts: int, tokens: int, rounds: int) -> dict[str, object]:
    """Label scores of the texts, each behind its prompt."""
    backbone = llama12()
    published = [random_prompt(backbone, f"p{seed}", tokens, seed) for seed in range(prompts)]
    sentences = random_sentences(texts, 6, 28)
    # PEFT's adapters are made here, and read no prompt before the clock starts; nor do ours.
    adapters = _adapters(plain_llama12(), [prompt.tensors["embeddings"] for prompt in published])
    plain = ReadyPrompt.of(published[0], backbone)
    assert isinstance(plain.scorer, LabelWords)
    first_words = [plain.encoding.encode_target(label)[0] for label in plain.labels]
    encoded = [plain.encode(text) for text in sentences]

    def ours() -> list[int]:
        ready = [ReadyPrompt.of(prompt, backbone) for prompt in published]
        rows = [(ready[i % prompts].state, ready[i % prompts].scorer, example) for i, example in enumerate(encoded)]
        return [int(found.argmax()) for found in packed_scores(backbone, rows, 8192)]  # type: ignore[arg-type]

    @torch.inference_mode()
    def theirs() -> dict[int, torch.Tensor]:
        found: dict[int, torch.Tensor] = {}
        for number in range(prompts):
            adapters.set_adapter(f"p{number}")
            own = sorted(range(number, peft_texts, prompts), key=lambda i: len(encoded[i].input))
            for start in range(0, len(own), _BATCH):
                found |= _peft_scores(adapters, own[start : start + _BATCH], encoded, first_words, tokens)
        return found

    theirs_once = theirs()
    agreement = _agreement(published, backbone, encoded, theirs_once, first_words)
    times = {"ours": [], "peft": []}
    for _ in range(rounds):
        for name, way in (("ours", ours), ("peft", theirs)):
            times[name].append(_seconds(way))
    per_text = {"ours": min(times["ours"]) / texts, "peft": min(times["peft"]) / peft_texts}
    ratio = per_text["peft"] / per_text["ours"]
    print(
        f"{texts} texts over {prompts} prompts of {tokens}: ours {min(times['ours']):.1f} s, peft {per_text['peft'] * texts:.1f} s "
        f"(scaled from {peft_texts} texts), {ratio:.1f}x; label scores differ by {agreement:.1e} at most"
    )
    result = {"texts": texts, "peft_texts": peft_texts, "prompts": prompts, "prompt_tokens": tokens, "seconds": times}
    return result | {"seconds_per_text": per_text, "ratio": ratio, "largest_difference": agreement}


def _peft_scores(model: peft.PeftModel, rows: list[int], encoded: list[Encoded], words: list[int], tokens: int) -> dict[int, torch.Tensor]:
    lengths = [len(encoded[i].input) for i in rows]
    ids = torch.zeros(len(rows), max(lengths), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, i in enumerate(rows):
        ids[row, : lengths[row]], mask[row, : lengths[row]] = torch.tensor(encoded[i].input), 1
    kept = sorted({tokens + length - 1 for length in lengths})
    logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=torch.tensor(kept)).logits
    return {i: logits[row, kept.index(tokens + lengths[row] - 1), words] for row, i in enumerate(rows)}


def _agreement(published: list, backbone: Backbone, encoded: list[Encoded], theirs: dict[int, torch.Tensor], words: list[int]) -> float:
    """The largest difference of the labels' first tokens' logits, ours from one mixed pass."""
    from prompt_core.prompts import Tree, hidden_states

    some = sorted(theirs)[:60]
    ready = [ReadyPrompt.of(prompt, backbone) for prompt in published]
    by_prompt = [[i for i in some if i % len(published) == number] for number in range(len(published))]
    trees = []
    for number, own in enumerate(by_prompt):
        ends = torch.tensor([len(encoded[i].input) for i in own]).cumsum(0)
        trees.append(Tree(ready[number].state, [encoded[i].input for i in own], rows=(ends - 1).tolist()))
    with torch.inference_mode():
        states = torch.cat(hidden_states(backbone, trees))
        found = backbone.logits(states)[:, words]
    expected = torch.stack([theirs[i] for own in by_prompt for i in own])
    return float((found - expected).abs().max())


def texts(prompts: int, peft_prompts: int, inputs: int, new_tokens: int, tokens: int, rounds: int) -> dict[str, object]:
    """Greedy texts on SmolLM2."""
    backbone = load_backbone(BackboneSpec(name="smollm2", dtype="float32"))
    folder = locate(BackboneSpec(name="smollm2"), Path()).source
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    published = [random_prompt(backbone, f"p{seed}", tokens, seed, new_tokens) for seed in range(prompts)]
    adapters = _adapters(model, [prompt.tensors["embeddings"] for prompt in published])
    ids = [tokenizer(text).input_ids[:20] for text in random_sentences(prompts * inputs, 24, 30)]

    def ours() -> list[list[int]]:
        ready = [ReadyPrompt.of(prompt, backbone) for prompt in published]
        asked = [Text(ready[i % prompts].state, own, new_tokens, ()) for i, own in enumerate(ids)]
        write(backbone, asked)
        return [text.ids for text in asked]

    @torch.inference_mode()
    def theirs() -> list[list[int]]:
        found: list[list[int]] = [[] for _ in ids]
        for number in range(peft_prompts):
            adapters.set_adapter(f"p{number}")
            own = range(number, len(ids), prompts)
            batch = torch.tensor([ids[i] for i in own])
            settings = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}
            output = adapters.generate(input_ids=batch, attention_mask=torch.ones_like(batch), **settings)
            for i, row in zip(own, output.tolist(), strict=True):
                found[i] = row[-new_tokens:]
        return found

    times: dict[str, list[float]] = {"ours": [], "peft": []}
    results: dict[str, list[list[int]]] = {}
    for _ in range(rounds):
        for name, way in (("ours", ours), ("peft", theirs)):
            times[name].append(_seconds(lambda name=name, way=way: results.update({name: way()})))
    pairs = {i: (results["ours"][i], results["peft"][i]) for i in range(len(ids)) if i % prompts < peft_prompts}
    same = sum(a == b for a, b in pairs.values())
    gaps = [_gap(model, published[i % prompts].tensors["embeddings"], ids[i], *pair) for i, pair in pairs.items() if pair[0] != pair[1]]
    peft_seconds = min(times["peft"]) * prompts / peft_prompts
    ratio = peft_seconds / min(times["ours"])
    print(
        f"{prompts} prompts x {inputs} inputs x {new_tokens} tokens: ours {min(times['ours']):.1f} s, peft {peft_seconds:.1f} s "
        f"(scaled from {peft_prompts} prompts), {ratio:.1f}x; {same} of {len(pairs)} texts are the same"
        + (f", the others part at a token that is ahead by {max(gaps):.1e} in its logit at most" if gaps else "")
    )
    result = {"prompts": prompts, "inputs": inputs, "new_tokens": new_tokens, "prompt_tokens": tokens, "input_tokens": 20}
    result |= {"peft_prompts": peft_prompts, "seconds": times, "ratio": ratio, "same_texts": same, "compared_texts": len(pairs)}
    return result | {"logit_gaps_where_they_part": gaps}


@torch.inference_mode()
def _gap(model: torch.nn.Module, prompt: torch.Tensor, given: list[int], ours: list[int], theirs: list[int]) -> float:
    """How far apart two tokens are in their logits where two texts part: rounding decides where that is next to nothing."""
    place = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    rows = torch.cat([prompt, model.get_input_embeddings()(torch.tensor(given + ours[:place]))])
    logits = model(inputs_embeds=rows[None]).logits[0, -1]
    return float((logits[ours[place]] - logits[theirs[place]]).abs())


def memory(rows: list[int]) -> dict[str, object]:
    """Peak memory of a process of its own for each size, input and output Parquet."""
    found = {}
    for count in rows:
        command = [sys.executable, __file__, "job", "--rows", str(count)]
        found[str(count)] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"{count} rows: {found[str(count)]['peak_mib']:.0f} MiB at most, {found[str(count)]['seconds']:.0f} s")
    growth = found[str(rows[-1])]["peak_mib"] / found[str(rows[0])]["peak_mib"] - 1
    print(f"{growth:+.1%} from {rows[0]} to {rows[-1]} rows")
    return {"rows": found, "growth": growth}


def job(rows: int) -> None:
    """One batch job; prints its peak memory."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = BertConfig(vocab_size=30522, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
        BertModel(config).save_pretrained(folder / "model")
        AutoTokenizer.from_pretrained(locate(BackboneSpec(name="minilm"), Path()).source).save_pretrained(folder / "model")
        backbone = load_backbone(BackboneSpec(name=str(folder / "model"), dtype="float32"))
        store, prompt = PromptStore(folder / "store"), random_prompt(backbone, "p0", 4, 0)
        store.promote("p0", store.publish(prompt, {"verdict": {"passed": True}}))
        _write_rows(rows, folder / "in.parquet")
        start = time.perf_counter()
        done = predict_table(Shelf(store), "p0", folder / "in.parquet", folder / "out.parquet")
        seconds = time.perf_counter() - start
        assert done.rows == rows == pl.scan_parquet(folder / "out.parquet").select(pl.len()).collect().item()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write(json.dumps({"peak_mib": peak, "seconds": seconds}))


def _write_rows(rows: int, path: Path) -> None:
    """In a process of its own, whose memory does not count."""
    make = "pl.LazyFrame({'id': range(n)}).with_columns(text=pl.col('id').mod(len(s)).replace_strict(list(range(len(s))), s))"
    code = f"import json, sys\nimport polars as pl\ns, n = json.load(sys.stdin), {rows}\n"
    code += f"{make}.sink_parquet(sys.argv[1], row_group_size=20_000)"
    sentences = json.dumps(random_sentences(1000, 4, 9))
    subprocess.run([sys.executable, "-c", code, str(path)], input=sentences, text=True, check=True)


def _adapters(model: object, embeddings: list[torch.Tensor]) -> peft.PeftModel:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=len(embeddings[0]))
    adapted = peft.get_peft_model(model, config, adapter_name="p0")
    for number, rows in enumerate(embeddings):
        if number:
            adapted.add_adapter(f"p{number}", config)
        with torch.no_grad():
            adapted.prompt_encoder[f"p{number}"].embedding.weight.copy_(rows)
    return adapted.eval()


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["scores", "texts", "memory", "job"])
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--prompt-tokens", type=int, default=100)
    parser.add_argument("--texts", type=int, default=10_000)
    parser.add_argument("--peft-texts", type=int, default=400, help="texts that PEFT is timed on")
    parser.add_argument("--peft-prompts", type=int, default=20, help="prompts that PEFT is timed on, of texts that are written")
    parser.add_argument("--inputs", type=int, default=20, help="per prompt, of texts that are written")
    parser.add_argument("--new-tokens", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    given = parser.parse_args()
    torch.manual_seed(0)
    if given.what == "job":
        job(given.rows[0])
    elif given.what == "memory":
        write_result("predict_memory", memory(given.rows))
    elif given.what == "texts":
        result = texts(
            given.prompts, min(given.peft_prompts, given.prompts), given.inputs, given.new_tokens, given.prompt_tokens, given.rounds
        )
        write_result("predict_texts_cpu", result)
    else:
        result = scores(given.texts, given.peft_texts, given.prompts, given.prompt_tokens, given.rounds)
        write_result("predict_scores_cpu", result)


if __name__ == "__main__":
    main()
