"""YAML from people as plain data, and nothing that a file could do beyond that."""

from __future__ import annotations

import re
import reprlib
from typing import Any

import yaml

from prompt_core.errors import PromptmillError

_MOST_MERGED = 1000
_DEEPEST = 100
_MERGE = "tag:yaml.org,2002:merge"
_BEFORE_VALUE = re.compile(r"\s*(- +)*(\S+: +)?")


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxlist, self.maxtuple = 2, 4, 4, 4
        self.maxstring, self.maxother = 80, 80

    def repr_int(self, x: int, level: int) -> str:
        """Python refuses to write a number of many thousand digits."""
        return super().repr_int(x, level) if x.bit_length() < 128 else f"a number of {x.bit_length()} bits"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, in which a key stands once, merged mappings (`<<`) cannot grow without end (each level may double what is
    below), and neither can brackets in brackets (each token looks at all that are open)."""

    def fetch_flow_collection_start(self, token: Any) -> None:
        if self.flow_level >= _DEEPEST:
            raise yaml.scanner.ScannerError(None, None, f"more than {_DEEPEST} brackets in one another", self.get_mark())
        super().fetch_flow_collection_start(token)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            line, known = key.start_mark.line + 1, lines.get((key.tag, key.value))
            if known:
                found = f"in line {line}" if line == known else f"(lines {known} and {line})"
                raise PromptmillError(" ".join(key.value.split())[:100], f"stands twice {found}", "Keep one.")
            lines[key.tag, key.value] = line
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > _MOST_MERGED:
            raise yaml.constructor.ConstructorError(None, None, f"more than {_MOST_MERGED} keys in one mapping", node.start_mark)


def read_yaml(text: str) -> Any:
    """The document in a text.

    Raises:
        PromptmillError: a key stands twice in one mapping, or a value with `{{` has no quotes.
        yaml.YAMLError: it is not YAML, or asks for more than plain data.
        ValueError, RecursionError: a date that is none, a number without end, or mappings nested without end.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        _check_quotes(text, error)
        raise
    finally:
        loader.dispose()


def _check_quotes(text: str, error: yaml.MarkedYAMLError) -> None:
    """Refuse a template without quotes by name: YAML's own words for it are about mappings."""
    if (mark := error.problem_mark) is None:
        return
    line = text[text.rfind("\n", 0, mark.index) + 1 :].split("\n", 1)[0]
    value = _BEFORE_VALUE.sub("", line, count=1)
    if (opened := re.search(r"\{[{%]", value)) and value[0] not in "\"'":
        what = f'"{opened[0]}" stands in a value without quotes'
        raise PromptmillError(f"line {mark.line + 1}", what, "Put the whole value in quotes: YAML takes braces and colons for its own.")


def shown(value: Any) -> str:
    """A value as an error names it: short, on one line, whatever it holds."""
    return _Short().repr(value)
