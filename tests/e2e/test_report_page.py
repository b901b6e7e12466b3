"""The report in a real browser: it renders, pictures load, nothing scrolls sideways, hostile text does nothing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvista_ray.reports.html import write_report
from tests.synthetic_run import write_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no headless browser here")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "synthetic"
    write_run(folder, num_tasks=24, num_steps=20)
    return write_report(folder)


def browse(page: Path, folder: Path, *flags: str) -> str:
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={folder / 'profile'}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=True).stdout


def screenshot(page: Path, folder: Path, width: int, *flags: str) -> np.ndarray:
    target = folder / "page.png"
    browse(page, folder, f"--window-size={width},1600", f"--screenshot={target}", *flags)
    return np.asarray(Image.open(target).convert("RGB"))


def test_the_page_is_drawn_in_light_and_dark(report: Path, tmp_path: Path) -> None:
    light = screenshot(report, tmp_path, 1100)
    dark = screenshot(report, tmp_path, 1100, "--blink-settings=preferredColorScheme=0")
    assert np.median(light) > 200
    assert np.median(dark) < 60
    assert min(light.std(), dark.std()) > 10


def test_hostile_text_does_not_run(report: Path, tmp_path: Path) -> None:
    document = browse(report, tmp_path, "--dump-dom")
    assert "<title>medvista_ray: synthetic</title>" in document
    assert "<script" not in document


def test_pictures_load_and_a_phone_does_not_scroll_sideways(report: Path, tmp_path: Path) -> None:
    """A probe script is added to a copy whose content policy is taken out: the report itself runs none."""
    probe = """<script>addEventListener("load", async () => {
      const images = [...document.querySelectorAll("image")];
      const loaded = await Promise.all(images.map(i => new Promise(done => {
        const copy = new Image(); copy.onload = () => done(copy.naturalWidth === 112); copy.onerror = () => done(false);
        copy.src = i.getAttribute("href"); })));
      const wide = document.documentElement.scrollWidth - innerWidth;
      document.title = `probe ${images.length} ${loaded.filter(Boolean).length} ${wide}`; })</script></body>"""
    policy, text = "default-src 'none'; img-src data:; style-src 'unsafe-inline'", report.read_text()
    assert policy in text
    copy = tmp_path / "probe.html"
    copy.write_text(text.replace(policy, "default-src * data: 'unsafe-inline'").replace("</body>", probe))
    document = browse(copy, tmp_path, "--window-size=500,900", "--virtual-time-budget=5000", "--dump-dom")
    title = document.split("<title>")[1].split("</title>")[0]
    name, num_images, num_loaded, sideways = title.split()
    assert name == "probe"
    assert int(num_images) >= 12
    assert num_loaded == num_images
    assert int(sideways) <= 0
