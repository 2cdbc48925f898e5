"""Pictures of a real report: docs/images/report-*.png.

    python -m benchmarks.report_pictures [--keep FOLDER] [--browser /usr/bin/chromium]

Trains a small model on this machine's Python documentation and sources, two runs of one lineage with the lookahead
core and adaptive source weights (some minutes on two cores), and photographs its report.html in Chromium: wide and as
on a phone, light and dark. `--keep` trains in FOLDER/checkpoints and leaves it there; if a run is there already, its
page alone is made anew. It needs playwright (requirements-dev.txt) and a Chromium.
"""

import argparse
import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from engine import train
from engine.config import parse_preset
from engine.events import FILE_NAME, REPORT_NAME
from engine.screen.report import page as page_of
from engine.screen.report import read_history
from tests.helpers.browser import chromium, open_page
from tests.helpers.text import write_topics

IMAGES = Path(__file__).parent.parent / "docs" / "images"
CHECKPOINTS, TOPICS = "checkpoints", "documentation/topics"  # in the folder of the run
TOKENS = 600_000  # of a run
MAX_BYTES = 200_000  # of a picture
PARTS = {f"enable_{part}": True for part in ("policy", "value", "dynamics", "span_contrastive")}
PRESET: dict[str, Any] = {
    "name": "two_sources",
    "model": {"hidden_size": 128, "num_layers": 3, "num_heads": 4, "seq_length": 128, "positions": "rotary"},
    "train": {
        "learning_rate": 3e-3,
        "per_gpu_batch_size": 16,
        "accumulation_steps": 1,
        "eval_tokens": 20_000,
        "eval_interval_tokens": 100_000,
        "log_interval_seconds": 0.5,
        "compile": False,
    },
    "data": {"tokenizer": {"train_bpe": 2048}, "mix_strategy": "weighted"},
    "auxiliary": {
        **PARTS,
        "auxiliary_warmup_fraction": 0.1,
        "enable_adaptive_sources": True,
        "adaptive_interval_tokens": 50_000,
    },
}


def train_lineage(folder: Path) -> None:
    """Train two runs in `folder`."""
    (folder / TOPICS).mkdir(parents=True)
    write_topics(folder / TOPICS)
    sources = [
        {"type": "files", "path": TOPICS, "glob": "*.txt", "name": "documentation"},
        {"type": "python_packages", "name": "python"},
    ]
    preset = parse_preset({**PRESET, "data": {**PRESET["data"], "sources": sources}})
    with contextlib.chdir(folder):  # the page shows paths as the run was given them
        for _ in range(2):
            train(preset, token_budget=TOKENS, checkpoint_dir=CHECKPOINTS)


def photograph(checkpoints: Path, browser: str) -> None:
    """Make the page of what `checkpoints` holds, and its pictures; each is smaller than MAX_BYTES."""
    IMAGES.mkdir(exist_ok=True)
    path = checkpoints / REPORT_NAME
    path.write_text(page_of(read_history(checkpoints)), encoding="utf-8")
    address = path.resolve().as_uri()
    with sync_playwright() as playwright:
        with open_page(playwright, browser, address, width=1280, height=1000) as page:
            _shoot(page, "report-wide.png")
            page.evaluate("document.querySelector('#samples').scrollIntoView()")
            _shoot(page, "report-wide-texts.png")
            page.evaluate("document.querySelector('#sources').scrollIntoView()")
            _shoot(page, "report-wide-tables.png")
        with open_page(playwright, browser, address, width=1280, height=1000, dark=True) as page:
            _shoot(page, "report-wide-dark.png")
        for name, dark in (("report-phone.png", False), ("report-phone-dark.png", True)):
            with open_page(playwright, browser, address, width=390, height=844, dark=dark) as page:
                page.evaluate("document.querySelector('.charts').scrollIntoView()")
                _shoot(page, name)


def _shoot(page: Page, name: str) -> None:
    path = IMAGES / name
    page.wait_for_timeout(500)
    page.screenshot(path=path)
    size = path.stat().st_size
    print(f"{path.name}: {size:,} bytes")
    if size > MAX_BYTES:
        raise SystemExit(f"{path} has {size:,} bytes, more than {MAX_BYTES:,}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--browser", default=chromium())
    arguments = parser.parse_args()
    if arguments.browser is None:
        raise SystemExit("There is no Chromium here; install one, or name one with --browser.")
    folder = arguments.keep or Path(tempfile.mkdtemp())
    try:
        if not (folder / CHECKPOINTS / FILE_NAME).exists():
            train_lineage(folder)
        photograph(folder / CHECKPOINTS, arguments.browser)
    finally:
        if arguments.keep is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
