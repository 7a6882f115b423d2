"""The Dagster UI in a real browser, over a deployment that `promptmill init` made: what a person does on the first day.

The pictures of each step go to docs/images where PROMPTMILL_PICTURES=docs/images says so.
"""

import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from servers import Server, free_port, needs, wait_for

from prompt_core import PromptStore
from prompt_core.deployment import create_deployment

playwright = pytest.importorskip("playwright.sync_api", reason="not here: make test-ui, or pip install 'promptmill[ui]'")
pytestmark = [pytest.mark.ui, needs("chromium", "chromium")]
LONG = 600  # seconds for a run, which takes about 30 on an idle machine
_QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


class Site:
    """A page of the UI, and what is behind it."""

    def __init__(self, page: "playwright.Page", folder: Path, address: str) -> None:
        self.page, self.folder, self.address = page, folder, address

    def open(self, path: str) -> None:
        self.page.goto(self.address + path)

    def see(self, text: str, milliseconds: int = 60_000) -> None:
        """Wait until a text is on the page."""
        self.page.get_by_text(text).first.wait_for(timeout=milliseconds)

    def switch_on(self, path: str) -> None:
        """The switch on the page of a schedule or sensor."""
        self.open(path)
        switch = self.page.locator("input[type=checkbox]").first
        switch.wait_for(state="attached", timeout=60_000)
        assert not switch.is_checked()
        switch.locator("xpath=..").click()
        playwright.expect(switch).to_be_checked(timeout=30_000)

    def picture(self, name: str) -> None:
        """What is on the page now, as a file of the documentation."""
        playwright.expect(self.page.get_by_text("Loading")).to_have_count(0, timeout=60_000)
        self.page.wait_for_timeout(1500)  # lines of a graph are drawn after its boxes
        if pictures := os.environ.get("PROMPTMILL_PICTURES"):
            self.page.screenshot(path=Path(pictures) / f"{name}.png")

    def runs(self, **tags: str) -> dict[str, str]:
        """The states of all runs that have these tags, by id."""
        query = "{ runsOrError { ... on Runs { results { runId status tags { key value } } } } }"
        found = requests.post(f"{self.address}/graphql", json={"query": query}, timeout=20).json()["data"]["runsOrError"]["results"]
        return {run["runId"]: run["status"] for run in found if tags.items() <= {tag["key"]: tag["value"] for tag in run["tags"]}.items()}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("ui") / "desk"
    create_deployment(folder)
    settings = folder / ".env"
    settings.write_text(settings.read_text().replace("AUTOMATION=on", "AUTOMATION=off"))  # a person switches on here
    task = folder / "tasks" / "caretaker.yaml"
    task.write_text(re.sub(r"schedule: .*", 'schedule: "* * * * *"', task.read_text()))
    address = f"http://127.0.0.1:{(port := free_port())}"
    environment = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"}
    # A process that a shell starts in the background ignores interrupts, which is how `dagster dev` is ended.
    heed = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    command = [str(Path(sys.executable).parent / "dagster"), "dev", "-h", "127.0.0.1", "-p", str(port)]
    server = Server(command, folder.parent / "dev.log", environment, folder, **heed)
    try:
        wait_for(lambda: requests.get(f"{address}/server_info", timeout=5).ok, 120, "the UI")
        with playwright.sync_playwright() as started:
            browser = started.chromium.launch_persistent_context(
                str(folder.parent / "browser"),
                executable_path="/usr/bin/chromium",
                headless=True,
                args=_QUIET,
                viewport={"width": 1400, "height": 860},
            )
            yield Site(browser.new_page(), folder, address)
            browser.close()
    finally:
        server.stop()


def test_the_task_file_is_a_partition(site: Site) -> None:
    site.open("/assets/examples?view=partitions")
    site.see("caretaker", 120_000)


def test_the_chain_is_materialized_from_the_ui(site: Site) -> None:
    site.open("/locations/promptmill/jobs/retune")
    site.page.get_by_text("Materialize all").first.click()
    site.page.get_by_role("button", name="All", exact=True).click()
    site.see("1 partition")
    site.picture("ui_materialize")
    site.page.get_by_role("button", name=re.compile("^Launch 1 run")).click()
    of_task = {"dagster/partition": "caretaker"}
    wait_for(lambda: list(site.runs(**of_task).values()) == ["SUCCESS"], LONG, f"the run ({site.folder})")
    (run,) = site.runs(**of_task)
    site.open(f"/runs/{run}")
    site.see("Success")


def test_the_gate_has_passed(site: Site) -> None:
    site.open("/assets/evaluation?view=checks")
    site.see("gate")
    site.see("Passed")
    site.see("better than label_names")
    site.picture("ui_gate")


def test_the_plot_of_the_loss_is_shown(site: Site) -> None:
    site.open("/assets/tuned_prompt?view=partitions&partition=caretaker")
    image = site.page.locator("img[alt=loss]").first
    image.wait_for(timeout=60_000)
    assert image.evaluate("it => it.complete && it.naturalWidth") > 100  # drawn, not only asked for
    site.picture("tuned_prompt")
    site.page.get_by_text("[Show Markdown]").first.click()
    curve = site.page.locator("img[alt='loss curve']").first
    curve.wait_for(timeout=30_000)
    assert curve.evaluate("it => it.complete && it.naturalWidth") > 100
    site.picture("ui_loss_curve")


def test_the_published_version_is_shown_and_is_the_one_in_the_store(site: Site) -> None:
    digest = PromptStore(str(site.folder / ".promptmill" / "store")).record("caretaker", "production").digest
    site.open("/assets/published_prompt?view=partitions&partition=caretaker")
    site.see(digest)
    site.see("production")


def test_the_schedule_is_switched_on_and_its_run_is_seen(site: Site) -> None:
    site.switch_on("/locations/promptmill/schedules/retune_at_any_any_any_any_any")
    wait_for(lambda: site.runs(**{"dagster/schedule_name": "retune_at_any_any_any_any_any"}), 150, f"the tick ({site.folder})")
    site.open("/locations/promptmill/schedules/retune_at_any_any_any_any_any")
    site.page.get_by_role("link", name=re.compile("^[0-9a-f]{8}$")).first.wait_for(timeout=90_000)
    site.picture("ui_schedule")
    site.page.locator("input[type=checkbox]").first.locator("xpath=..").click()  # no run every minute from here on


def test_a_task_file_that_is_dropped_into_the_folder_is_a_partition_soon(site: Site) -> None:
    tasks = site.folder / "tasks"
    text = (tasks / "caretaker.yaml").read_text().replace("name: caretaker", "name: night_shift")
    (tasks / "night_shift.yaml").write_text(text)
    site.open("/assets/examples?view=partitions")
    site.see("night_shift", 120_000)
    site.picture("ui_new_task")


def test_the_graph_shows_every_asset(site: Site) -> None:
    site.open("/locations/promptmill/asset-groups/prompts")
    for asset in ("splits", "baselines", "tuned_prompt", "evaluation", "published_prompt"):
        site.see(asset)
    site.picture("asset_graph")


def test_two_thousand_partitions_are_found_by_typing(site: Site) -> None:
    tasks = site.folder / "tasks"
    text = (tasks / "caretaker.yaml").read_text()
    for number in range(2000):
        (tasks / f"bulk_{number:04d}.yaml").write_text(text.replace("name: caretaker", f"name: bulk_{number:04d}"))
    site.open("/assets/examples?view=partitions")
    site.page.get_by_placeholder("Filter by name").fill("bulk_1999")
    site.see("bulk_1999", 300_000)
    site.open("/assets/examples?view=partitions&partition=bulk_1999")
    began = time.monotonic()
    site.see("bulk_1999")
    assert time.monotonic() - began < 20
