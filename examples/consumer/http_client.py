"""A program that knows no Promptmill at all: OpenAI's own client, pointed at `promptmill serve`.

promptmill serve &
python examples/consumer/http_client.py support_intent "my box came soaked and the lamp inside is in two pieces"
python examples/consumer/http_client.py support_reply '{"message": "where is box two?", "facts": "status: at Weir Lane depot"}'
"""

import argparse
import os

import openai


def main() -> None:
    parser = argparse.ArgumentParser(description="Stream a published prompt's answer to one input.")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1", help="where the server is")
    parser.add_argument("model", help="NAME, NAME@ALIAS or NAME@3")
    parser.add_argument("input", help="a text; where the template has several fields, a JSON object of them")
    given = parser.parse_args()
    client = openai.OpenAI(base_url=given.url, api_key=os.environ.get("PROMPTMILL_TOKEN", "none"))
    messages = [{"role": "user", "content": given.input}]
    for event in client.chat.completions.create(model=given.model, messages=messages, stream=True):
        print(event.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
