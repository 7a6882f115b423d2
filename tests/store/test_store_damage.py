"""What somebody or something changed in a store is refused by name with one line, even when the checksums were made to fit."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import changed, many_inputs, scratched
from store_builders import PASSED, SmallPrompt, a_store, a_tuned_prompt

from prompt_core.errors import PromptmillError
from prompt_core.store import PromptStore
from prompt_core.store.filesystem import Files, open_files
from prompt_core.store.records import Publication, as_json, parse, seal, sha256, unseal


def overwrite(files: Files, path: str, content: bytes) -> None:
    files.remove(path)
    assert files.create(path, content)


def forge(files: Files, path: str, change: Callable[[Any], None]) -> None:
    """Change a log entry and make its checksum fit, as whoever tampers with care would."""
    sealed = json.loads(files.read(path))
    change(sealed["entry"])
    text = json.dumps(sealed["entry"], indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    overwrite(files, path, json.dumps({"entry": sealed["entry"], "sha256": sha256(text.encode())}).encode())


def entry(number: int) -> str:
    return f"prompts/reply/log/{number:08d}.json"


def content_paths(files: Files) -> dict[str, str]:
    return {path.rsplit("/", 1)[1]: path for path in files.find("prompts/reply/content")}


def refused(attempt: Callable[[], Any]) -> str:
    with pytest.raises(PromptmillError) as caught:
        attempt()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    return str(caught.value)


@pytest.mark.parametrize("name", ["prompt.safetensors", "manifest.json", "digest", "publication.json"])
@pytest.mark.parametrize("how", ["changed", "removed", "emptied"])
def test_content_that_was_changed_is_named(address: str, name: str, how: str) -> None:
    store, files = a_store(address), open_files(address)
    store.promote("reply", store.publish(a_tuned_prompt(1.0), PASSED))
    path = content_paths(files)[name]
    content = bytearray(files.read(path))
    content[len(content) // 2] ^= 1
    files.remove(path)
    if how != "removed":
        files.create(path, bytes(content) if how == "changed" else b"")
    assert refused(lambda: store.get("reply"))
    (problem,) = store.verify().problems
    assert problem.startswith(f"{files.address(path)}: ") and ("is missing" if how == "removed" else "has the digest") in problem
    assert store.verify("reply").problems == (problem,)


def test_content_of_another_version_is_refused(tmp_path: Path) -> None:
    store, files = a_store(tmp_path), open_files(tmp_path)
    store.publish(a_tuned_prompt(1.0), PASSED)
    one = content_paths(files)
    contents = {name: files.read(path) for name, path in one.items()}
    other = a_store(tmp_path / "other")
    other.publish(a_tuned_prompt(2.0), PASSED)
    for name, path in content_paths(open_files(tmp_path / "other")).items():
        if name != "publication.json":
            overwrite(files, one[name], open_files(tmp_path / "other").read(path))
    assert contents != {name: files.read(path) for name, path in one.items()}
    assert "holds content with digest" in refused(lambda: store.get("reply", 1))


@pytest.mark.parametrize(
    ("content", "finding"),
    [
        (b"", "is not a record of the store (Invalid JSON"),
        (b"{", "is not a record of the store (Invalid JSON"),
        (b"\xff\xfe", "is not a record of the store (Invalid JSON"),
        (b"[" * 1_000_000, "is not a record of the store (Invalid JSON: recursion limit exceeded"),
        (b'{"a":' * 1_000_000, "is not a record of the store (Invalid JSON: recursion limit exceeded"),
        (b"[" + b"0," * 9 * 2**20 + b"0]", "is larger than 16777216 bytes"),
        (b"null", "is not a record of the store (Input should be an object)"),
        (b'{"entry": {}, "sha256": ""}', "is not a record of the store ("),
    ],
    ids=["empty", "half", "no text", "deep lists", "deep objects", "huge", "null", "empty entry"],
)
def test_a_damaged_alias_file_is_named(address: str, content: bytes, finding: str) -> None:
    store, files = a_store(address, versions=1), open_files(address)
    overwrite(files, entry(2), content)
    for attempt in (
        lambda: store.resolve("reply", "production"),
        lambda: store.get("reply"),
        lambda: store.list(),
        lambda: store.promote("reply", 1, alias="staging"),
        lambda: store.publish(SmallPrompt("reply", "new"), PASSED),
        lambda: store.gc(delete=True),
    ):
        assert refused(attempt).startswith(f"{files.address(entry(2))}: {finding}")
    assert store.verify().problems[0].startswith(f"{files.address(entry(2))}: {finding}")


def test_a_changed_alias_does_not_fit_its_checksum(address: str) -> None:
    store, files = a_store(address, versions=2), open_files(address)
    overwrite(files, entry(4), files.read(entry(4)).replace(b'"version": 2', b'"version": 1'))
    assert (
        refused(lambda: store.get("reply"))
        == f"{files.address(entry(4))}: does not fit its checksum. The store is damaged; restore this file."
    )


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (lambda e: e["state"]["aliases"].update(production=[7]), "alias production stands for no version"),
        (lambda e: e["state"]["aliases"].update(production=[]), "alias production stands for no version"),
        (lambda e: e["state"]["aliases"].update({"../up": [1]}), "'../up' is not a plain name"),
        (lambda e: e["state"]["versions"]["1"].update(folder="../../../../etc"), "String should match pattern"),
        (lambda e: e["state"]["versions"]["1"].update(digest="0" * 64), "version 1 does not belong here"),
        (lambda e: e["state"].update(next_version=1), "version 1 does not belong here"),
        (lambda e: e.update(number=9), "is entry 9 of prompt reply"),
        (lambda e: e.update(name="other"), "is entry 2 of prompt other"),
        (lambda e: e.update(name="../other"), "'../other' is not a plain name"),
        (lambda e: e.update(format="promptmill-log/9"), "Input should be 'promptmill-log/1'"),
        (lambda e: e.update(more=1), "Extra inputs are not permitted"),
    ],
)
def test_an_alias_file_that_was_forged_with_its_checksum_is_refused(tmp_path: Path, change: Callable[[Any], None], finding: str) -> None:
    store, files = a_store(tmp_path, versions=1), open_files(tmp_path)
    forge(files, entry(2), change)
    message = refused(lambda: store.get("reply"))
    assert message.startswith(f"{files.address(entry(2))}: ") and finding in message


def test_a_rewritten_history_is_found_by_verify(address: str) -> None:
    store, files = a_store(address, versions=2), open_files(address)
    forge(files, entry(2), lambda e: e.update(who="somebody else"))
    (problem,) = store.verify().problems
    assert problem.startswith(f"{files.address(entry(3))}: does not follow the entry before it")
    assert problem == refused(lambda: store.history("reply"))
    files.remove(entry(2))
    assert f"{files.address(entry(2))}: is missing" in refused(lambda: store.history("reply"))


@pytest.mark.parametrize("path", ["../../../secret", "/etc/passwd", "a/../../b", ".hidden", "a//b", "", "a\nb", "C:\\x"])
def test_a_file_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path, path: str) -> None:
    store, files = a_store(tmp_path), open_files(tmp_path)
    store.publish(a_tuned_prompt(1.0), PASSED)
    record = content_paths(files)["publication.json"]
    publication = json.loads(files.read(record))
    publication["files"][path] = "0" * 64
    forged = json.dumps(publication).encode()
    overwrite(files, record, forged)
    forge(files, entry(1), lambda e: e["state"]["versions"]["1"].update(publication=sha256(forged)))
    assert "is not the path of a file inside a folder" in refused(lambda: store.get("reply", 1))


@dataclass(frozen=True)
class Forged:
    """A prompt folder that is none, published through the front door with all its digests right."""

    files: dict[str, bytes]
    name: str = "reply"
    digest: str = field(default="", init=False)

    def __post_init__(self) -> None:
        parts = [bytes.fromhex(sha256(self.files.get(name, b""))) for name in ("manifest.json", "prompt.safetensors")]
        object.__setattr__(self, "digest", sha256(b"promptmill/1" + b"".join(parts)))

    def save(self, folder: Path) -> None:
        folder.mkdir()
        for name, content in {**self.files, "digest": self.digest.encode()}.items():
            (folder / name).write_bytes(content)


MANIFEST = a_tuned_prompt(1.0).manifest.canonical()


@pytest.mark.parametrize(
    ("files", "named", "finding"),
    [
        (
            {"manifest.json": MANIFEST, "prompt.safetensors": pickle.dumps({"embeddings": [1.0]})},
            "prompt.safetensors",
            "is not safetensors (",
        ),
        ({"manifest.json": MANIFEST}, "prompt.safetensors", "cannot be read (No such file"),
        ({"manifest.json": b"[" * 10**6, "prompt.safetensors": b""}, "manifest.json", "is not a manifest (Invalid JSON: recursion limit"),
        ({"manifest.json": b" " * (17 * 2**20), "prompt.safetensors": b""}, "manifest.json", "is larger than 16777216 bytes"),
        (
            {"manifest.json": b'{"task": [' + b"[]," * 2**17 + b"[]]}", "prompt.safetensors": b""},
            "manifest.json",
            "is not a manifest (",
        ),
        (
            {"manifest.json": MANIFEST, "prompt.safetensors": (2**62).to_bytes(8, "little") + b"{}"},
            "prompt.safetensors",
            "is not safetensors (",
        ),
    ],
    ids=["pickle", "no tensors", "deep manifest", "huge manifest", "wide manifest", "huge header"],
)
def test_a_forged_prompt_is_refused_though_its_digests_are_right(address: str, files: dict[str, bytes], named: str, finding: str) -> None:
    store = a_store(address)
    store.promote("reply", store.publish(Forged(files), PASSED))
    for message in (refused(lambda: store.get("reply")), *store.verify().problems):
        assert f"{named}: {finding}" in message
    assert len(store.verify().problems) == 1


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, bytes], bytes]:
    """Log entries by number, of a move and of a withdrawal, and a publication as a store writes them."""
    folder = tmp_path_factory.mktemp("written")
    a_store(folder, versions=2).withdraw("reply", why="a leak")
    files = open_files(folder)
    return {number: files.read(entry(number)) for number in (4, 5)}, files.read(content_paths(files)["publication.json"])


@given(st.data())
@many_inputs
def test_any_log_entry_is_read_or_refused_in_one_line(written: tuple[dict[int, bytes], bytes], data: st.DataObject) -> None:
    number = data.draw(st.sampled_from(sorted(written[0])))
    sealed = json.loads(written[0][number])
    document = data.draw(changed(sealed["entry"]) | changed(sealed))
    if "entry" not in document:
        text = json.dumps(document, indent=1, sort_keys=True) + "\n"
        document = {"entry": document, "sha256": sha256(text.encode(errors="replace"))}
    content = data.draw(st.sampled_from([json.dumps(document).encode()]) | scratched(written[0][number]) | st.binary(max_size=50))
    try:
        found = unseal(content, "here", "reply", number)
        assert unseal(seal(found), "here", "reply", number) == found
    except PromptmillError as error:
        assert str(error).startswith("here: ") and "\n" not in str(error) and len(str(error)) < 1000


@given(st.data())
@many_inputs
def test_any_publication_is_read_or_refused_in_one_line(written: tuple[dict[int, bytes], bytes], data: st.DataObject) -> None:
    document = json.dumps(data.draw(changed(json.loads(written[1])))).encode()
    content = data.draw(st.sampled_from([document]) | scratched(written[1]) | st.binary(max_size=50))
    try:
        found = parse(content, "here", Publication)
        assert parse(as_json(found), "here", Publication).files == found.files
    except PromptmillError as error:
        assert str(error).startswith("here: ") and "\n" not in str(error) and len(str(error)) < 1000


def test_a_store_with_one_damaged_prompt_names_it_and_checks_the_others(address: str) -> None:
    store, files = a_store(address, versions=1), open_files(address)
    store.publish(SmallPrompt("other", "x"), PASSED)
    overwrite(files, entry(2), b"{}")
    found = PromptStore(address).verify()
    assert (found.prompts, found.versions) == (2, 1) and all("prompts/reply/log/" in problem for problem in found.problems)
