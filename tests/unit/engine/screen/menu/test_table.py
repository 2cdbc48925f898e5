"""engine/screen/menu/table.py: the lines of the menu at every size of a terminal."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from engine.config import CONFIGS, TOKENS_PER_RUN, preset_files
from engine.screen.menu.entries import Menu
from engine.screen.menu.lineage import Lineage
from engine.screen.menu.table import View, picker_screen, plain_screen

COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def menu(tmp_path: Path) -> Menu:
    menu = Menu.read(preset_files(CONFIGS), tmp_path, TOKENS_PER_RUN)
    for entry in menu.entries:
        names = entry.preset.data.weights()
        entry.reasons = {None: "", **dict.fromkeys(names, "" if "python" in str(names) else "no network")}
    return menu


def shown(menu: Menu, columns: int = 80, rows: int = 24, **view: object) -> list[str]:
    lines = picker_screen(menu, View(**{"selected": menu.default, **view}), columns, rows)
    return [COLOURS.sub("", line) for line in lines]


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (120, 40), (200, 60), (40, 10), (20, 5)])
def test_every_screen_holds_the_selected_preset_and_fits(menu: Menu, columns: int, rows: int):
    lines = shown(menu, columns, rows)
    assert len(lines) <= rows and all(len(line) <= columns for line in lines)
    assert any(line.startswith(">") for line in lines)


def test_a_line_says_size_data_memory_and_time(menu: Menu):
    (line,) = (line for line in shown(menu) if "02_offline_python" in line)
    assert re.search(r"^> 02_offline_python +6\.56M +256-1024 +reachable +1\.\d of 24 GiB +~\d+ (min|h)$", line.strip())
    menu.lineage = Lineage("reference", 1, 40_000_000, False, None)
    (line,) = (line for line in shown(menu) if "03_reference" in line)
    assert "not reachable" in line and line.rstrip().endswith(" left"), "there is room for both"
    assert "+python_packages" in "\n".join(shown(menu, 200))


@pytest.mark.parametrize("columns", [80, 120])
def test_active_parameters_stand_beside_those_of_experts(menu: Menu, columns: int):
    entry = menu.entries[0]
    model = entry.preset.model.model_copy(update={"num_experts": 8, "bias": False})
    entry.preset = entry.preset.model_copy(update={"model": model})
    lines = shown(menu, columns)
    (line,) = (line for line in lines if entry.path.stem in line)
    assert re.search(r" \d+(\.\d+)?M, \d+(\.\d+)?M active ", line)
    assert "\n".join(lines).count("active") == 1
    console = Console(width=200, record=True)
    console.print(plain_screen(menu))
    assert console.export_text().count("M active") == 1


def test_of_many_presets_those_around_the_selected_one_are_shown(menu: Menu):
    menu.entries = menu.entries * 10
    lines = shown(menu, selected=33)
    assert len(lines) <= 24 and any(line.startswith("> 03_reference") or line.startswith("> 03") for line in lines)


def test_what_the_folder_holds_is_said(menu: Menu):
    menu.lineage = Lineage("reference", 2, 41_000_000, False, 4.024)
    text = "\n".join(shown(menu))
    assert "run 2, 41%, loss 4.02: Enter resumes" in text and "Enter resumes" in text.splitlines()[-2] + text
    assert re.search(r"03_reference.* left", text)
    menu.lineage = Lineage("reference", 2, 100_000_000, True, 4.024)
    assert "run 2 done, loss 4.02: Enter starts run 3" in "\n".join(shown(menu))
    menu.lineage = Lineage("deleted", 1, 1, False, None)
    console = Console(width=200, record=True)
    console.print(plain_screen(menu))
    assert "holds run 1, 0% of preset deleted, which is not in configs/." in console.export_text()


def test_times_are_rounded(menu: Menu):
    text = "\n".join(shown(menu, 200))
    assert re.search(r"about \d{1,3} (min|h|days)", text) and not re.search(r"\d:\d\d", text)


def test_hostile_text_is_shown_as_text(menu: Menu):
    entry = menu.entries[menu.default]
    entry.path = Path("configs/[red]00\x1b]0;title\x07.json")
    text = "\n".join(picker_screen(menu, View(menu.default), 200, 40))
    assert "\x1b]0" not in text and "[red]00" in COLOURS.sub("", text)


def test_a_broken_preset_stands_in_the_plain_table(menu: Menu, tmp_path: Path):
    (tmp_path / "00_broken.json").write_text('{"trian": {}}')
    menu.add(tmp_path / "00_broken.json")
    console = Console(width=200, record=True)
    console.print(plain_screen(menu))
    text = " ".join(console.export_text().split())
    assert "cannot be used" in text and 'did you mean "train"?' in text
    assert "not reachable: common_crawl: no network; wikipedia: no network" in text


@pytest.mark.parametrize("columns", [80, 200])
def test_a_model_that_cannot_fit_is_said_to(menu: Menu, columns: int):
    why = "one process needs about 23.8 GiB of memory, and has 8.0"
    menu.machine = replace(menu.machine, memory=8 * 2**30)
    large = next(index for index, entry in enumerate(menu.entries) if entry.path.stem == "05_large")
    lines = shown(menu, columns, selected=large)
    assert [line for line in lines if "too large here" in line and "05_large" in line]
    assert f"too large here: {why}" in " ".join(" ".join(lines).split())
    (reference,) = (line for line in lines if "03_reference" in line)
    assert "too large" not in reference and re.search(r"(about |~)\d", reference)
    assert "too large" not in "\n".join(shown(menu, columns, selected=0)).split("sources:")[1]
    console = Console(width=250, record=True)
    console.print(plain_screen(menu))
    assert f"too large here: {why}" in " ".join(console.export_text().split())
