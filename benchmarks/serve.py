"""The server under load: many clients over many prompts, beside the same requests one at a time, while aliases move.

    python benchmarks/serve.py                                        64 clients, 20 prompts on SmolLM2, 20 moves of an alias
    python benchmarks/serve.py --clients 8 --prompts 4 --requests 2   in less than a minute

Half of the prompts write 24 tokens, half choose among four labels. Every answer is compared with the one that the version
which gave it gives by itself. One at a time: a single client sends the same requests to the same server, each when the last one
is answered. During the load one prompt's alias goes back and forth between two versions.
"""

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import openai
from record import write_result
from served import random_prompt, random_sentences

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import load_backbone
from prompt_core.mixed import answer
from prompt_core.ready import ReadyPrompt
from prompt_core.store import PromptStore
from prompt_core.task import BackboneSpec

_PASSED = {"verdict": {"passed": True}}


def publish(store: PromptStore, count: int, tokens: int, new_tokens: int) -> list[TunedPrompt]:
    """`count` prompts and a second version of the first one; all but that are in production."""
    backbone = load_backbone(BackboneSpec(name="smollm2", dtype="float32"))
    made = [random_prompt(backbone, f"p{i:02d}", tokens, i, None if i % 2 else new_tokens) for i in range(count)]
    for prompt in made:
        store.promote(prompt.name, store.publish(prompt, _PASSED))
    second = random_prompt(backbone, made[0].name, tokens, count, new_tokens)
    store.publish(second, _PASSED)
    return [*made, second]


def expected_answers(prompts: list[TunedPrompt], asked: list[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """By digest and text, from the library in this process."""
    backbone = load_backbone(BackboneSpec(name="smollm2", dtype="float32"))
    needed = sorted({(prompt.digest, text) for prompt in prompts for name, text in asked if name == prompt.name})
    ready = {prompt.digest: ReadyPrompt.of(prompt, backbone) for prompt in prompts}
    found = answer([(ready[digest], ready[digest].encode(text)) for digest, text in needed])
    return {key: one.text for key, one in zip(needed, found, strict=True)}


def send(client: httpx2.Client, prompt: str, text: str) -> tuple[float, int, dict[str, object]]:
    """Seconds, status and prediction of a request."""
    start = time.perf_counter()
    response = client.post("/v1/predict", json={"prompt": prompt, "inputs": [text]})
    seconds = time.perf_counter() - start
    return seconds, response.status_code, response.json().get("predictions", [{}])[0]


def under_load(
    client: httpx2.Client, asked: list[tuple[str, str]], clients: int, store: PromptStore, name: str, moves: int
) -> tuple[float, list[tuple[float, int, dict[str, object]]]]:
    """All requests by many clients, with moves of an alias spread over them."""
    answered = 0
    lock = threading.Lock()

    def one(pair: tuple[str, str]) -> tuple[float, int, dict[str, object]]:
        nonlocal answered
        found = send(client, *pair)
        with lock:
            answered += 1
        return found

    def move() -> None:
        for number in range(moves):
            while answered < (number + 1) * len(asked) // (moves + 2):
                time.sleep(0.02)
            store.promote(name, 1 + (number + 1) % 2, who="benchmark", why="back and forth", force=True)

    moving = threading.Thread(target=move)
    moving.start()
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(one, asked))
    seconds = time.perf_counter() - start
    moving.join()
    return seconds, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--prompt-tokens", type=int, default=100)
    parser.add_argument("--requests", type=int, default=6, help="of each client")
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--moves", type=int, default=20)
    parser.add_argument("--alone", type=int, default=40, help="requests that are also sent one at a time")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = PromptStore(Path(folder) / "store")
        prompts = publish(store, given.prompts, given.prompt_tokens, given.new_tokens)
        texts = random_sentences(40, 6, 28)
        chosen = random.Random(0)
        asked = [(chosen.choice(prompts).name, chosen.choice(texts)) for _ in range(given.clients * given.requests)]
        expected = expected_answers(prompts, asked)
        with httpx2.Client(base_url="http://127.0.0.1:8766", timeout=300, limits=httpx2.Limits(max_connections=given.clients)) as client:
            server = serve(store, client)
            try:
                alone = asked[: given.alone]
                start = time.perf_counter()
                one_by_one = [send(client, *pair) for pair in alone]
                alone_rate = len(alone) / (time.perf_counter() - start)
                seconds, found = under_load(client, asked, given.clients, store, prompts[0].name, given.moves)
                streamed = (
                    stream(prompts[2].name, texts[0])
                    == expected_answers(prompts, [(prompts[2].name, texts[0])])[prompts[2].digest, texts[0]]
                )
            finally:
                server.terminate()
                server.wait()
    dropped = sum(status != 200 for _, status, _ in [*one_by_one, *found])
    wrong = sum(
        status == 200 and one["prediction"] != expected[str(one["digest"]), text]
        for (_, text), (_, status, one) in zip([*alone, *asked], [*one_by_one, *found], strict=True)
    )
    versions = sorted({int(str(one["version"])) for (name, _), (_, _, one) in zip(asked, found, strict=True) if name == prompts[0].name})
    latencies = sorted(took for took, _, _ in found)
    rate = len(asked) / seconds
    p99 = latencies[min(len(latencies) - 1, len(latencies) * 99 // 100)]
    print(
        f"{given.clients} clients, {given.prompts} prompts: {rate:.1f} requests/s, {rate / alone_rate:.1f}x of one at a time "
        f"({alone_rate:.1f}/s); median {statistics.median(latencies):.2f} s, p99 {p99:.2f} s; {wrong} wrong, {dropped} dropped, "
        f"{given.moves} moves, versions seen {versions}; openai streams the same text: {streamed}"
    )
    write_result(
        "serve_cpu",
        {"clients": given.clients, "prompts": given.prompts, "requests": len(asked), "prompt_tokens": given.prompt_tokens}
        | {"new_tokens": given.new_tokens, "moves": given.moves, "rate": rate, "rate_one_at_a_time": alone_rate}
        | {"ratio": rate / alone_rate, "median_seconds": statistics.median(latencies), "p99_seconds": p99}
        | {"wrong": wrong, "dropped": dropped, "versions_seen": versions, "openai_streams_the_same_text": streamed},
    )


def serve(store: PromptStore, client: httpx2.Client) -> subprocess.Popen[bytes]:
    """`promptmill serve` as a process of its own, when it answers."""
    command = [sys.executable, "-c", "from prompt_core.cli import main; main()", "serve", "--port", str(client.base_url.port)]
    server = subprocess.Popen([*command, "--store", store.url, "--refresh", "0.2"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while True:
        try:
            client.get("/health")
            return server
        except httpx2.TransportError:
            if server.poll() is not None:
                raise SystemExit("the server did not start") from None
            time.sleep(0.1)


def stream(model: str, text: str) -> str:
    """What OpenAI's client streams."""
    client = openai.OpenAI(base_url="http://127.0.0.1:8766/v1", api_key="none")
    events = client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], stream=True)
    return "".join(event.choices[0].delta.content or "" for event in events)


if __name__ == "__main__":
    main()
