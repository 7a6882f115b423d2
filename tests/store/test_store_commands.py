"""The store from the command line: results, JSON, exit statuses."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from store_builders import FAILED, PASSED, SmallPrompt, a_store

from prompt_core.cli import main
from prompt_core.store import PromptStore


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PromptStore:
    """Three versions, the last one in production."""
    monkeypatch.setenv("PROMPTMILL_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("USER", "ann")
    return a_store(tmp_path / "store", versions=3)


def run(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == status, result.output
    return result


def test_production_takes_a_version_that_did_not_pass_by_force_with_a_reason(store: PromptStore) -> None:
    store.publish(SmallPrompt("reply", "risky"), FAILED, force=True, why="a look")
    assert "version 4 did not pass its evaluation" in run("promote", "reply@4", "--why", "please", status=2).stderr
    assert "is forced without a reason" in run("promote", "reply@4", "--force", status=2).stderr
    assert run("promote", "reply@4", "--force", "--why", "the fair is today").stderr == "production -> reply@4\n"
    move = json.loads(run("history", "reply", "--json").stdout)[-1]
    assert (move["before"], move["version"], move["who"], move["why"], move["forced"]) == (3, 4, "ann", "the fair is today", True)


def test_the_history_is_a_line_for_each_move() -> None:
    run("promote", "reply@1", "--alias", "staging")
    assert run("rollback", "reply", "--why", "worse").stderr == "production -> reply@2\n"
    lines = run("history", "reply", "--alias", "production").stdout.splitlines()
    assert [line.split("  ")[1:3] for line in lines] == [["production", f"{move}"] for move in ("- -> 1", "1 -> 2", "2 -> 3", "3 -> 2")]
    assert lines[-1].endswith("3 -> 2  ann  worse")
    assert len(run("history", "reply").stdout.splitlines()) == 5
    assert 'no alias "stagng". Did you mean "staging"?' in run("history", "reply", "--alias", "stagng", status=2).stderr


def test_an_alias_is_withdrawn_with_a_reason_and_the_history_shows_it(store: PromptStore) -> None:
    assert "alias production: is withdrawn without a reason" in run("withdraw", "reply", status=2).stderr
    assert run("withdraw", "reply", "--why", "names a customer").stderr == "production -> nothing\n"
    assert store.list()[0].aliases == {} and store.list()[0].taken_back == {3: ("production",)}
    assert run("list").stdout == "reply  versions 1, 2, 3 (taken back)\n"
    assert run("history", "reply").stdout.splitlines()[-1].endswith("  production  3 -> -  ann  names a customer")
    move = json.loads(run("history", "reply", "--json").stdout)[-1]
    assert (move["before"], move["version"], move["forced"]) == (3, None, False)
    assert 'there is no alias "production"' in run("withdraw", "reply", "--why", "again", status=2).stderr


def test_verify_names_what_was_changed_and_ends_with_status_1(tmp_path: Path) -> None:
    assert "1 prompts, 3 versions" in run("verify").stderr
    assert json.loads(run("verify", "reply", "--json").stdout)["problems"] == []
    text = next((tmp_path / "store").rglob("text"))
    text.write_text("tampered")
    assert run("verify", status=1).stdout.startswith(f"{text}: has the digest")
    assert len(json.loads(run("verify", "--json", status=1).stdout)["problems"]) == 1


def test_a_folder_that_is_no_store_is_named_and_the_first_publication_makes_it_one(tmp_path: Path) -> None:
    (tmp_path / "wrong").mkdir()
    for command in ("list", "verify", "gc", "show reply", "history reply", "rollback reply", f"export reply {tmp_path / 'out'}"):
        stderr = run(*command.split(), "--store", str(tmp_path / "wrong"), status=2).stderr
        assert f"store {tmp_path / 'wrong'}: there is no prompt store at this address. Name the right one with --store or" in stderr
    a_store(tmp_path / "wrong", versions=1)
    assert run("list", "--store", str(tmp_path / "wrong")).stdout.startswith("reply  versions 1")


def test_gc_shows_and_removes_only_when_told(store: PromptStore) -> None:
    shown = run("gc", "--keep", "0", "--grace", "0")
    assert [line.split("  ")[0] for line in shown.stdout.splitlines()] == ["reply@1", "reply@2"]
    assert "would be removed; --delete removes it" in shown.stderr and store.list()[0].versions == (1, 2, 3)
    assert not run("gc", "--keep", "0").stdout  # all of it is younger than a day
    removed = json.loads(run("gc", "reply", "--keep", "0", "--grace", "0", "--delete", "--json").stdout)
    assert ([version["version"] for version in removed["versions"]], removed["deleted"]) == ([1, 2], True)
    assert store.list()[0].versions == (3,)


def test_an_unknown_name_is_one_line() -> None:
    for command in ("history", "verify", "gc", "rollback", "show"):
        assert run(command, "repyl", status=2).stderr.endswith('there is no prompt "repyl". Did you mean "reply"?\n')
        assert "is not a plain name" in run(command, "../reply", status=2).stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_store_that_may_not_be_read_is_one_line(tmp_path: Path, store: PromptStore) -> None:
    store.publish(SmallPrompt("other", "x"), PASSED)
    (tmp_path / "store" / "prompts").chmod(0)
    assert "cannot be read" in run("list", status=2).stderr
