"""Documents that were valid until somebody changed them, for the tests of everything that reads files from outside."""

from __future__ import annotations

import copy
import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

FULL = os.environ.get("PROMPTMILL_HARDNESS") == "full"
# 10,000 inputs per parser in the full run. A parser that loads what it read takes a while for each.
many_inputs = settings(
    max_examples=10_000 if FULL else 250, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)

_keys = st.text(max_size=6) | st.sampled_from(["name", "kind", "path", "0", "1", "__class__", "..", "production"])
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**18, max_value=10**40)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["../../etc/passwd", "\x00", "a\nb", "{{ x }}", "{% for i in range(9) %}", "1e999", "\ud800", "0" * 64, "-1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def changed(draw: st.DrawFn, document: dict[str, Any]) -> dict[str, Any]:
    """A copy of a document with one to three places replaced, removed or added."""
    copied: dict[str, Any] = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        place: Any = copied
        while True:
            children = [k for k, v in _items(place) if isinstance(v, dict | list) and v]
            if not children or draw(st.booleans()):
                break
            place = place[draw(st.sampled_from(children))]
        keys = [k for k, _ in _items(place)]
        how = draw(st.sampled_from(["replace", "remove", "add"]))
        if how == "add" and isinstance(place, dict):
            place[draw(_keys)] = draw(json_values)
        elif how == "add":
            place.append(draw(json_values))
        elif keys and how == "remove":
            del place[draw(st.sampled_from(keys))]
        elif keys:
            place[draw(st.sampled_from(keys))] = draw(json_values)
    return copied


def _items(place: Any) -> list[tuple[Any, Any]]:
    return list(place.items() if isinstance(place, dict) else enumerate(place))


@st.composite
def scratched(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with a few of them replaced, removed, repeated or cut off."""
    text = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        stop = min(len(text), start + draw(st.integers(0, 20)))
        text[start:stop] = draw(
            st.binary(max_size=8) | st.sampled_from([b"", b"[" * 9, b"&a ", b"*a", b'"', b"\n  ", b": ", b"- ", b"{", b"!!"])
        )
    return bytes(text)
