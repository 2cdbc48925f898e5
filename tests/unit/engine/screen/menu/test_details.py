"""engine/screen/menu/details.py: a preset in all its figures; where the report is."""

import json
import webbrowser
from pathlib import Path

import pytest
from rich.console import Console

from engine.config import CONFIGS, TOKENS_PER_RUN, load_preset, preset_files
from engine.config.deepspeed import engine_config
from engine.screen.menu.details import details, details_screen, open_report
from engine.screen.menu.entries import Menu
from engine.screen.menu.table import View
from model import TransformerLM
from sources.loading.shape import BatchShape


@pytest.fixture
def menu(tmp_path: Path) -> Menu:
    return Menu.read(preset_files(CONFIGS), tmp_path, TOKENS_PER_RUN)


def text_of(menu: Menu, index: int) -> str:
    console = Console(width=150, record=True)
    console.print(details(menu, index))
    return console.export_text()


def test_details_are_those_of_the_run(menu: Menu):
    text = text_of(menu, 3)
    preset = load_preset(CONFIGS / "03_reference.json")
    assert f"{TransformerLM(preset.model, 50_257).num_parameters():,}" in text
    assert "131,072: 4 micro-batches of 128 rows of 256 tokens per process" in text
    assert f"{-(-TOKENS_PER_RUN // 131_072):,} for 100,000,000 tokens" in text
    assert "2.00e-03 after 15 steps" in text and "down to 2.00e-04" in text
    config = engine_config(preset.train, BatchShape(128, 4, 256), bf16=True)
    assert json.loads(text.split("DeepSpeed's configuration:")[1]) == config


def test_details_of_options(menu: Menu):
    """Steps that grow, and a stage that follows from the memory."""
    entry = menu.entries[3]
    options = {"batch_doublings": (0.5,), "zero_stage": "auto", "seq_length_schedule": ((0.0, 64), (0.9, 256))}
    entry.preset = entry.preset.model_copy(update={"train": entry.preset.train.model_copy(update=options)})
    text = text_of(menu, 3)
    assert "; doubled at 50% of a run" in " ".join(text.split())
    assert "; rows grow: 64 from 0% on, 256 from 90% on" in " ".join(text.split())
    assert "573 for 100,000,000 tokens" in text  # 382 of 131,072, 191 of twice as many
    assert json.loads(text.split("DeepSpeed's configuration:")[1])["zero_optimization"]["stage"] == 0


def test_details_scroll_within_a_small_terminal(menu: Menu):
    view = View(3, detail_line=0)
    first = details_screen(menu, view, 80, 24)
    view.detail_line = 10**6
    last = details_screen(menu, view, 80, 24)
    assert len(first) <= 24 and len(last) <= 24 and first[0] != last[0]
    assert 0 < view.detail_line < 100 and "}" in "".join(last)


def test_a_broken_preset_says_why(menu: Menu, tmp_path: Path):
    (tmp_path / "x.json").write_text("{")
    menu.add(tmp_path / "x.json")
    assert "not valid JSON" in text_of(menu, menu.files.index(tmp_path / "x.json"))


def test_the_report_is_named_and_opened_only_where_there_is_a_display(tmp_path: Path, monkeypatch):
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or True)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert "does not exist yet" in open_report(tmp_path)
    (tmp_path / "report.html").write_bytes(b"x" * 12_000)
    sentence = open_report(tmp_path)
    assert f"{tmp_path}/report.html: 12 kB, written 20" in sentence and sentence.endswith("open it in a browser.")
    assert not opened
    monkeypatch.setenv("DISPLAY", ":0")
    assert open_report(tmp_path).endswith("opened in the browser.")
    assert opened == [(tmp_path / "report.html").as_uri()]
