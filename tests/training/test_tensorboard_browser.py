"""What a person sees: the real TensorBoard server, in a real browser."""

import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import browser
import numpy as np
import pytest
import torch

from mri_ds.training.heat_map import draw_heat_map
from mri_ds.training.probe import draw_slices
from mri_ds.training.tracker import Tracker

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(browser.BINARY is None, reason="no Chromium here: apt-get install chromium"),
]
LOSS, DICE = 0.31415, 0.27182


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as training writes it, with a brain of two regions."""
    folder = tmp_path_factory.mktemp("runs")
    tracker = Tracker(folder / "first", is_writer=True)
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 48)] * 3, indexing="ij"))
    truth = (grid.norm(dim=0) < 0.8).long() + (grid.norm(dim=0) < 0.4)
    loads = np.stack([np.roll(np.arange(8) / 3.5, i) for i in range(3)])
    for step in (10, 20, 30):
        tracker.scalars(step, {"loss": LOSS * 30 / step, "validation/brain/dice": DICE * step / 30, "learning_rate": 1e-3})
    tracker.image(30, "validation/slice", draw_slices(truth + 0.2 * torch.randn(48, 48, 48), truth, truth.roll(2, 0)))
    tracker.image(30, "expert_load", draw_heat_map(loads, rows=["layer0", "layer1", "layer2"], title="expert load, step 30"))
    values = {"training": {"lr": 0.00123, "steps": 30}, "model": {"scale": "tiny"}}
    tracker.hyper_parameters(values, {"loss": LOSS, "validation/brain/dice": DICE})
    tracker.close()
    return folder


@pytest.fixture(scope="module")
def address(run: Path) -> Iterator[str]:
    """Of a TensorBoard that has read the run."""
    log = run / "tensorboard.log"
    command = [str(Path(sys.executable).parent / "tensorboard"), "--load_fast=false", "--host", "127.0.0.1", "--port", "0"]
    with log.open("w") as out:
        process = subprocess.Popen([*command, "--logdir", str(run)], stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 120
        while True:
            told = log.read_text().partition("http://127.0.0.1:")[2]
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            if "/" in told:
                url = f"http://127.0.0.1:{told.partition('/')[0]}"
                if b"first" in urllib.request.urlopen(f"{url}/data/runs", timeout=30).read():
                    break
            time.sleep(0.25)
        yield url
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    with browser.Browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


def test_curves_and_their_last_values(chromium: browser.Browser, address: str) -> None:
    wanted = urllib.parse.quote("^loss$|dice")
    chromium.open(f"{address}/?tagFilter={wanted}#timeseries")
    text = chromium.wait_for(browser.TEXT, lambda text: "0.3142" in text and "0.2718" in text)
    assert "2 cards" in text
    for name in ("first", "loss", "validation/brain\n/dice"):  # a long name in two lines
        assert f"\n{name}\n" in text


def test_pictures_are_drawn(chromium: browser.Browser, address: str, tmp_path: Path) -> None:
    """Brain and heat map in their sizes; and the page as it looks has the colours of the labels."""
    wanted = urllib.parse.quote("slice|expert_load")
    chromium.open(f"{address}/?tagFilter={wanted}#timeseries")
    sizes = chromium.wait_for(browser.PICTURES, lambda sizes: len(sizes) >= 2)
    assert [3 * 48, 48] in sizes and len(sizes) == 2
    chromium.screenshot(tmp_path / "page.png")
    from PIL import Image

    page = np.asarray(Image.open(tmp_path / "page.png").convert("RGB")).astype(int)
    reddish = (page[..., 0] > 1.5 * page[..., 1]) & (page[..., 0] > 1.5 * page[..., 2]) & (page[..., 1] < 120)
    bluish = (page[..., 2] > 1.3 * page[..., 0]) & (page[..., 2] > 120)
    assert reddish.sum() > 200 and bluish.sum() > 200


def test_hyper_parameters_stand_beside_the_final_figures(chromium: browser.Browser, address: str) -> None:
    chromium.open(f"{address}/#hparams")
    text = chromium.wait_for(browser.TEXT, lambda text: str(LOSS)[:5] in text and "0.00123" in text)
    for word in ("training.lr", "model.scale", "tiny", "validation/brain/dice", str(DICE)[:5]):
        assert word in text
