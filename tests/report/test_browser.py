"""The report in Chromium: nothing on the console, nothing loaded from elsewhere, and no wider than a phone."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess

import pytest

from verl_care.report.page import main
from verl_care.workers.rollout_log import RolloutLog

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason=f"no browser: none of {', '.join(NAMES)} on PATH, CHROMIUM is not set"),
    pytest.mark.timeout(180),
]

PHONE, DESK = 390, 1280
"""Widths in CSS pixels."""

PROBE = """<!doctype html><title>probe</title><script>
const frame = document.createElement("iframe");
frame.width = %d; frame.height = 800; frame.src = %s;
frame.onload = () => {
  const page = frame.contentDocument, root = page.documentElement;
  const text = [...page.querySelectorAll("p, td, th, li, figcaption")].filter(e => e.textContent.trim());
  document.body.dataset.found = JSON.stringify({
    width: root.scrollWidth,
    images: [...page.images].map(image => [image.naturalWidth, image.getBoundingClientRect().right]),
    smallest: Math.min(...text.map(e => parseFloat(getComputedStyle(e).fontSize))),
    resources: frame.contentWindow.performance.getEntriesByType("resource").map(e => e.name)
      .filter(name => !name.startsWith("data:")),
    title: page.title,
  });
};
document.addEventListener("DOMContentLoaded", () => document.body.append(frame));
</script><body></body>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report that compares two runs, one with a long name and a response that would like to be markup."""
    folder = tmp_path_factory.mktemp("report")
    runs = [folder / "care", folder / "a_run_whose_name_is_longer_than_a_telephone_is_wide_by_far_and_more"]
    for run, scale in zip(runs, (1, 2), strict=True):
        log = RolloutLog(run, max_bytes=10**9)
        for step in range(1, 13):
            length = scale * (100 + 30 * min(step, 12 - step))
            columns = {
                "uid": ["a", "a", "b", "b"],
                "response": ["<script>throw 1</script>"] * 4,
                "acc": [1.0, 0.0, 1.0, 1.0],
                "format": [1.0, 1.0, 1.0, 0.0],
                "unparsed": [0.0, 1.0, 0.0, 0.0],
                "score": [2.0, 1.0, 2.0, 1.0],
                "bonus": [0.1, 0.0, 0.2, 0.15],
                "length": [length, length + 5, length + 9, length + 20],
                "stage": ["explore" if step < 7 else "concise"] * 4,
            }
            log.write(step, 0, columns)
    assert main(runs, out_dir=folder / "out", baseline=runs[1]) == 0
    (found,) = (folder / "out").glob("*.html")
    return found


def look(page, width, tmp_path):
    """What a browser finds on the page at a width, and what it printed on its console."""
    probe = tmp_path / f"probe{width}.html"
    probe.write_text(PROBE % (width, json.dumps(page.as_uri())))
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--allow-file-access-from-files",
        "--enable-logging=stderr",
        "--virtual-time-budget=20000",
        f"--user-data-dir={tmp_path / f'profile{width}'}",
        "--dump-dom",
        probe.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=True)
    found = re.search(r"data-found=\"([^\"]*)\"", done.stdout)
    assert found, f"the page was not loaded:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(found[1].replace("&quot;", '"').replace("&amp;", "&")), console


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_a_browser_shows_the_page_whole_and_in_silence(page, width, tmp_path):
    found, console = look(page, width, tmp_path)
    assert console == []
    assert found["resources"] == []
    assert found["title"]
    assert found["width"] <= width, "the page scrolls sideways"
    assert found["images"] and all(natural > 100 and right <= width for natural, right in found["images"])
    assert found["smallest"] >= 11
