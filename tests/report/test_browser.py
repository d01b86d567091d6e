"""The page as a person sees it, in a headless Chromium with WebGL: silent console, the JSON's tables, a viewer that draws."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest
from commands import call
from PIL import Image
from report_runs import HOSTILE, make_run

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(browser.BINARY is None, reason="no Chromium here: apt-get install chromium"),
]
WITHOUT = ("--disable-gpu", "--disable-webgl")
OPTIONS = [option for option in browser.OPTIONS if option not in WITHOUT]
OPTIONS += ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
TABLES = """[...document.querySelectorAll("table[data-table]")].map(table => ({
  id: table.id,
  columns: [...table.tHead.rows[0].cells].map(cell => cell.textContent),
  rows: [...table.tBodies[0].rows].map(row => [...row.cells].map(cell => ({
    text: cell.textContent, values: [...cell.querySelectorAll("data")].map(one => [one.value, one.textContent])})))}))"""


@pytest.fixture(scope="module")
def made(hostile_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The page of a run whose classes are called like markup, and the JSON that was printed with it."""
    folder = tmp_path_factory.mktemp("page")
    run = make_run(folder / "run", hostile_shards)
    result = call("report", run, "--out", folder / "report.html", "--json")
    assert result.exit_code == 0, result.output
    return folder / "report.html", json.loads(result.stdout)


@pytest.fixture(scope="module")
def opened(made: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    with browser.Browser(tmp_path_factory.mktemp("chromium"), options=OPTIONS) as chromium:
        chromium.watch("Runtime", "Log", "Network")
        chromium.open(made[0].as_uri())
        chromium.wait_for("document.readyState", lambda state: state == "complete")
        yield chromium


def problems(chromium: browser.Browser) -> list[Any]:
    """Errors and warnings of the console, exceptions, and requests for anything outside of the page."""
    found = []
    for event in chromium.events:
        what, told = event.get("method"), event.get("params", {})
        is_bad = what == "Runtime.exceptionThrown"
        is_bad |= what == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert")
        is_bad |= what == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning")
        if what == "Network.requestWillBeSent":
            is_bad = told["request"]["url"].split(":")[0] not in ("file", "data", "blob", "about")
        if is_bad:
            found.append(told)
    return found


def test_tables_hold_the_numbers_of_the_json(opened: browser.Browser, made: tuple[Path, dict[str, Any]]) -> None:
    shown, told = opened.evaluate(TABLES), made[1]["tables"]
    assert [table["id"] for table in shown] == [table["id"] for table in told]
    checked = 0
    for seen, table in zip(shown, told, strict=True):
        assert seen["columns"] == table["columns"]
        assert len(seen["rows"]) == len(table["rows"])
        for cells, row in zip(seen["rows"], table["rows"], strict=True):
            for cell, value in zip(cells, row, strict=True):
                wanted = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int | float)]
                if isinstance(value, list) and None in value:
                    wanted = []
                assert [float(full) for full, _ in cell["values"]] == wanted  # to the last digit
                for full, rounded in cell["values"]:
                    digits = len(rounded.partition(".")[2])
                    assert float(rounded.replace(",", "")) == pytest.approx(float(full), abs=0.5000001 * 10**-digits)
                checked += len(wanted)
                if not wanted:
                    assert cell["text"] == ("–" if value is None or isinstance(value, list) else value)
    assert checked > 100


def test_names_from_data_are_letters(opened: browser.Browser) -> None:
    text = opened.evaluate("document.querySelector('main').innerText")
    assert HOSTILE in text
    assert opened.evaluate("document.title") == "run · mri_ds report"
    assert opened.evaluate("document.querySelectorAll('img[onerror], main script').length") == 0
    assert opened.evaluate("document.querySelectorAll('svg.plot').length") >= 6
    assert opened.evaluate("document.querySelectorAll('.cases img').length") == 2  # of two held-out subjects, best and worst
    assert problems(opened) == []


def test_the_policy_lets_nothing_else_run_or_leave(opened: browser.Browser) -> None:
    """Also what is put into the page afterwards: an inline script does not run, and no address can be asked."""
    opened.evaluate(
        "const s = document.createElement('script'); s.textContent = \"document.title = 'owned'\"; document.body.append(s);"
        "fetch('http://127.0.0.1:9/').catch(() => { window.refused = true })"
    )
    assert opened.wait_for("window.refused", bool)
    assert opened.evaluate("document.title") == "run · mri_ds report"
    told = [event["params"]["entry"]["text"] for event in opened.events if event.get("method") == "Log.entryAdded"]
    assert len([text for text in told if "Content Security Policy" in text]) >= 2
    opened.events.clear()


def test_the_viewer_draws_image_truth_and_prediction(opened: browser.Browser, tmp_path: Path) -> None:
    opened.evaluate("document.getElementById('viewer').scrollIntoView()")
    pictures = {}
    for layer in ("prediction", "truth", "difference", "none"):
        opened.evaluate(
            f"(() => {{ const one = document.getElementById('viewer-layer'); one.value = '{layer}';"
            "one.dispatchEvent(new Event('change')); })()"
        )
        state = "(part => part.dataset.failed ? 'failed: ' + document.getElementById('viewer-status').textContent"
        opened.wait_for(
            f"{state} : part.dataset.shown || '')(document.getElementById('viewer'))",
            lambda shown, layer=layer: shown.startswith("failed") or shown.endswith(f"/{layer}"),
            timeout_s=120,
        )
        assert not opened.evaluate("document.getElementById('viewer').dataset.failed"), opened.evaluate(browser.TEXT)
        opened.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        pictures[layer] = canvas(opened, tmp_path)
    assert opened.evaluate("document.getElementById('viewer-legend').textContent") == ""  # of the image alone
    grey = pictures["none"]
    assert np.ptp(grey, axis=-1).max() <= 30, "nothing has a colour without labels"
    assert grey.max() > 120 and grey.std() > 20, "the image is drawn"
    for layer in ("prediction", "truth", "difference"):
        assert coloured(pictures[layer]) > 500, layer
    assert (np.abs(pictures["truth"] - pictures["prediction"]).max(axis=-1) > 40).sum() > 500
    assert problems(opened) == []


def test_a_case_is_opened_by_its_button(opened: browser.Browser) -> None:
    opened.evaluate("document.querySelector('[data-open-case=\"1\"]').click()")
    opened.wait_for("document.getElementById('viewer').dataset.shown", lambda shown: shown.startswith("1/"), timeout_s=120)
    assert opened.evaluate("document.getElementById('viewer-status').textContent").startswith("worst case, sub-")


def canvas(chromium: browser.Browser, folder: Path) -> np.ndarray:
    """What is seen of the viewer's canvas, (H, W, 3) int, but for its letters and its very edge."""
    chromium.screenshot(folder / "page.png")
    box = chromium.evaluate(
        "(b => [b.left, b.top, b.right, b.bottom])(document.getElementById('viewer-canvas').getBoundingClientRect())"
    )
    page = Image.open(io.BytesIO((folder / "page.png").read_bytes())).convert("RGB")
    left, top, right, bottom = (int(edge) for edge in box)
    return np.asarray(page.crop((left + 8, top + 8, right - 8, bottom - 8))).astype(int)


def coloured(picture: np.ndarray) -> int:
    return int((np.ptp(picture, axis=-1) > 60).sum())
