"""What a store promises, on every kind of file system."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from helpers import memory_fails
from store_builders import FAILED, PASSED, SmallPrompt, a_store, a_tuned_prompt, assert_whole, files, text_of

from prompt_core.errors import PromptmillError, Unreachable
from prompt_core.store import PromptStore
from prompt_core.store.filesystem import open_files


class BrokenPrompt(SmallPrompt):
    """One whose save stops half-way."""

    def save(self, folder: Path) -> None:
        super().save(folder)
        raise KeyboardInterrupt


def test_a_published_version_can_be_found_with_its_record(address: str) -> None:
    store = a_store(address)
    prompt = SmallPrompt("reply", "be kind")
    assert store.publish(prompt, PASSED, who="ann", why="first") == 1
    record = PromptStore(address).record("reply", 1)
    assert (record.name, record.version, record.digest, record.who, record.why) == ("reply", 1, prompt.digest, "ann", "first")
    assert (record.evaluation, record.forced, sorted(record.files)) == (PASSED, False, ["more/again", "text"])
    offset = datetime.fromisoformat(record.published).utcoffset()
    assert offset is not None and not offset
    assert text_of(store, "1") == "be kind"
    assert_whole(store)


def test_publishing_moves_no_alias(address: str) -> None:
    (summary,) = a_store(address, versions=2, live=False).list()
    assert (summary.name, summary.versions, summary.aliases) == ("reply", (1, 2), {})


def test_the_same_content_is_published_once_per_name(tmp_path: Path) -> None:
    store = a_store(tmp_path / "store", versions=2)
    before = files(tmp_path)
    assert store.publish(SmallPrompt("reply", "text 1"), {**PASSED, "scores": {}}, why="again") == 1
    assert files(tmp_path) == before
    assert store.publish(SmallPrompt("other", "text 1"), PASSED) == 1


@pytest.mark.parametrize("evaluation", [{}, {"verdict": None}, {"verdict": {"passed": False}}, {"verdict": {"passed": "yes"}}])
def test_only_a_prompt_that_passed_is_published(tmp_path: Path, evaluation: dict[str, Any]) -> None:
    store = a_store(tmp_path / "store")
    with pytest.raises(PromptmillError, match=r"prompt reply: did not pass its evaluation \(verdict: .*\). Only a prompt that passed"):
        store.publish(SmallPrompt("reply", "x"), evaluation)
    with pytest.raises(PromptmillError, match=r"prompt reply: is forced without a reason. Say why"):
        store.publish(SmallPrompt("reply", "x"), evaluation, force=True, why=" ")
    assert not (tmp_path / "store").exists()


def test_what_did_not_pass_and_now_does_is_published_anew(address: str) -> None:
    store = a_store(address)
    prompt = SmallPrompt("reply", "better than thought")
    assert store.publish(prompt, FAILED, why="a look", force=True) == 1
    assert store.publish(prompt, FAILED, why="a second look", force=True) == 1
    assert store.publish(prompt, PASSED) == 2
    assert store.publish(prompt, FAILED, why="a third look", force=True) == 2
    store.promote("reply", 2)


@pytest.mark.parametrize("name", ["a/b", "..", "../up", "", ".hidden", "a b", "a\n", "x" * 101])
def test_names_that_are_no_plain_names_are_refused(tmp_path: Path, name: str) -> None:
    store = a_store(tmp_path / "store", versions=1)
    before = files(tmp_path)
    for attempt in (
        lambda: store.publish(SmallPrompt(name, "x"), PASSED),
        lambda: store.record(name, 1),
        lambda: store.get(name),
        lambda: store.live(name),
        lambda: store.history(name),
        lambda: store.verify(name),
        lambda: store.gc(name, delete=True),
        lambda: store.promote(name, 1),
        lambda: store.promote("reply", 1, alias=name),
        lambda: store.rollback("reply", alias=name),
        lambda: store.withdraw("reply", alias=name, why="a leak"),
    ):
        with pytest.raises(PromptmillError, match=r"is not a plain name. Use letters, digits"):
            attempt()
    assert files(tmp_path) == before


def test_unknown_names_versions_and_aliases_are_answered_with_the_nearest(address: str) -> None:
    store = a_store(address, versions=2, live=False)
    with pytest.raises(PromptmillError, match=r'there is no prompt "repyl". Did you mean "reply"\?'):
        store.history("repyl")
    for version in (3, "0", "9" * 5000):
        with pytest.raises(PromptmillError, match=r"prompt reply: there is no version \d+\. Known: 1, 2\."):
            store.record("reply", version)
    with pytest.raises(PromptmillError, match=r"prompt reply: None is neither a version nor an alias\. Known: 1, 2\."):
        store.get("reply", None)  # type: ignore[arg-type]
    with pytest.raises(PromptmillError, match=r'there is no alias "production". No alias is set; promote one of the versions 1, 2'):
        store.resolve("reply", "production")
    store.promote("reply", 2)
    for ask in (store.resolve, store.history):
        with pytest.raises(PromptmillError, match=r'there is no alias "prodution". Did you mean "production"\?'):
            ask("reply", "prodution")


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    store = a_store(tmp_path / "a[1]*?", versions=2)
    assert len(store.history("reply")) == 2 and store.verify().problems == ()
    store.publish(SmallPrompt("reply", "never needed"), PASSED)
    assert [found.version for found in store.gc(keep=5, grace=0.0, delete=True).versions] == [3]
    assert store.list()[0].versions == (1, 2)


def test_a_store_that_is_not_there_yet_is_empty(address: str) -> None:
    store = PromptStore(address)
    assert (store.list(), store.verify().problems, store.gc().versions, store.live("reply")) == ([], (), (), None)


def test_a_wrong_address_is_told_from_an_empty_store(address: str) -> None:
    store = PromptStore(address)
    for attempt in (store.check_exists, lambda: store.get("reply"), lambda: store.history("reply"), lambda: store.promote("reply", 1)):
        with pytest.raises(PromptmillError, match=r"there is no prompt store at this address\. Name the right one with --store"):
            attempt()
    open_files(address).create("half", b"")  # as a publisher that died before its first entry
    store.check_exists()
    with pytest.raises(PromptmillError, match=r'there is no prompt "reply"\. The store is empty'):
        store.get("reply")


def test_the_store_is_a_path_or_a_url(tmp_path: Path) -> None:
    folder = tmp_path / "a b%20c"
    PromptStore(folder).publish(SmallPrompt("reply", "x"), PASSED)
    assert [s.name for s in PromptStore(folder.as_uri()).list()] == [s.name for s in PromptStore(str(folder)).list()] == ["reply"]
    with pytest.raises(
        PromptmillError, match=r'store ftps2://host/p: scheme "ftps2" is not supported .* Give a folder, file:///path, s3://'
    ):
        PromptStore("ftps2://host/p")
    with pytest.raises(PromptmillError, match=r'"store" stands where a host name does. Write file:/// and an absolute path'):
        PromptStore("file://store/p")


def test_a_bucket_that_does_not_exist_is_one_line(s3_server: str) -> None:
    with pytest.raises(
        PromptmillError, match=r"store s3://nowhere/p: cannot be written \(The specified bucket does not exist\). Check the"
    ):
        PromptStore("s3://nowhere/p").publish(SmallPrompt("reply", "x"), PASSED)


def test_a_file_system_that_overwrites_is_refused_before_anything_is_published() -> None:
    class Careless(type(fsspec.filesystem("memory"))):  # type: ignore[misc]
        """As object stores are that do not know conditional writes."""

        protocol = "careless"
        store: ClassVar[dict[str, Any]] = {}
        pseudo_dirs: ClassVar[list[str]] = [""]

        def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
            super().pipe_file(path, value, mode="overwrite", **options)

    fsspec.register_implementation("careless", Careless, clobber=True)
    store = PromptStore("careless://team")
    with pytest.raises(PromptmillError, match=r"store careless://team: overwrites a file where it was told to create one"):
        store.publish(SmallPrompt("reply", "x"), PASSED)
    assert store.list() == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(PromptmillError, match=r"store .*: cannot be (read|written) \("):
        a_store(tmp_path / "store").publish(SmallPrompt("reply", "x"), PASSED)


def test_a_folder_that_is_another_programs_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text(json.dumps({"shop": 1}))
    with pytest.raises(PromptmillError, match=r"store.json: is not the mark of a prompt store"):
        a_store(tmp_path).publish(SmallPrompt("reply", "x"), PASSED)
    assert list(files(tmp_path)) == ["store.json"]


def test_a_save_that_stops_half_way_leaves_nothing(tmp_path: Path) -> None:
    store = a_store(tmp_path / "store", versions=1)
    before = files(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        store.publish(BrokenPrompt("reply", "half"), PASSED)
    assert files(tmp_path) == before
    assert store.publish(SmallPrompt("reply", "half"), PASSED) == 2


def test_files_are_readable_for_other_users(tmp_path: Path) -> None:
    a_store(tmp_path / "store", versions=1)
    assert {path.stat().st_mode & 0o444 for path in (tmp_path / "store").rglob("*") if path.is_file()} == {0o444}


def test_a_record_that_no_reader_takes_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    store = a_store(tmp_path / "store", versions=1)
    before = files(tmp_path)
    with pytest.raises(PromptmillError, match=r"prompt reply: its evaluation takes 16,\d+,\d+ bytes as JSON, a store reads 16,777,216"):
        store.publish(SmallPrompt("reply", "long"), {**PASSED, "samples": "x" * 2**24})
    assert files(tmp_path) == before


def test_a_tuned_prompt_comes_back_by_number_and_alias(address: str) -> None:
    store = a_store(address)
    for value in (1.0, 2.0):
        store.promote("reply", store.publish(a_tuned_prompt(value), PASSED))
    assert store.get("reply").digest == store.get("reply", 2).digest == a_tuned_prompt(2.0).digest
    assert store.get("reply", "1").tensors["embeddings"].unique().tolist() == [1.0]
    assert store.verify().problems == ()


def test_what_is_live_is_the_prompt_in_production_or_nothing(address: str) -> None:
    store = a_store(address)
    assert store.live("reply") is None
    store.publish(a_tuned_prompt(1.0), PASSED)
    store.promote("reply", 1, alias="staging")
    assert store.live("reply") is None
    store.promote("reply", 1)
    live = store.live("reply")
    assert live is not None and live.digest == a_tuned_prompt(1.0).digest


def test_pages_for_people_are_kept_beside_a_version_and_are_no_part_of_its_digest(tmp_path: Path) -> None:
    store, prompt = a_store(tmp_path), SmallPrompt("reply", "text 1")
    assert store.publish(prompt, PASSED, pages={"report.html": b"<p>good</p>"}) == 1
    assert store.publish(prompt, PASSED, pages={"report.html": b"<p>another</p>"}) == 1  # the version is there already
    assert store.record("reply", 1).digest == prompt.digest
    with store.checkout("reply", 1) as folder:
        page = folder / "pages" / "report.html"
        assert page.read_bytes() == b"<p>good</p>"
        assert store.verify().problems == ()
        page.write_bytes(b"<p>better</p>")
    assert len(store.verify().problems) == 1


@pytest.mark.parametrize(
    ("fault", "passes"),
    [
        (ConnectionResetError(104, "reset by peer"), True),
        (OSError("slow down"), True),
        (RuntimeError("no answer"), True),
        (PermissionError("forbidden"), False),
    ],
)
def test_a_fault_that_may_pass_is_told_from_one_that_the_user_has_to_correct(fault: Exception, passes: bool) -> None:
    store = a_store("memory://faults", versions=1)
    with memory_fails(fault), pytest.raises(PromptmillError, match=r"store memory://faults: cannot be read \(.*\)\. Check") as found:
        store.get("reply")
    assert isinstance(found.value, Unreachable) == passes
