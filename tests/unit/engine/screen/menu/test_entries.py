"""engine/screen/menu/entries.py: what Enter takes."""

import json
from pathlib import Path

import pytest

from engine.config import preset_files
from engine.screen.menu.entries import Menu
from engine.screen.menu.lineage import Lineage


@pytest.fixture
def menu(tmp_path: Path) -> Menu:
    (tmp_path / "configs").mkdir()
    for name in ("00_first", "01_second", "02_third"):
        values = {"name": name[3:], "data": {"sources": [{"type": "python_packages"}]}}
        (tmp_path / "configs" / f"{name}.json").write_text(json.dumps(values))
    (tmp_path / "configs" / "03_broken.json").write_text('{"trian": {}}')
    return Menu.read(preset_files(tmp_path / "configs"), tmp_path / "checkpoints", 100)


def reach(menu: Menu, *reachable: int) -> None:
    for number, entry in enumerate(menu.entries):
        reason = "" if number in reachable else "gone"
        entry.reasons |= {None: "", "python_packages": reason}


def test_in_an_empty_folder_it_is_the_first_that_can_be_trained(menu: Menu):
    assert menu.default == 0, "nothing is known yet"
    reach(menu, 1, 2)
    assert menu.default == 1 and menu.entries[0].problem == "python_packages: gone"
    reach(menu)
    assert menu.default == 0, "none can be"


def test_a_run_is_resumed_by_its_preset_even_without_its_data(menu: Menu):
    reach(menu, 0)
    menu.lineage = Lineage("third", 1, 41, False, None)
    assert menu.default == menu.lineage_entry == 2
    menu.lineage = Lineage("deleted", 1, 41, False, None)
    assert menu.default == 0 and menu.lineage_entry is None


def test_a_preset_that_cannot_be_parsed_says_why(menu: Menu):
    broken = menu.entries[3]
    assert broken.preset is None and broken.checked and 'did you mean "train"?' in broken.problem


def test_a_new_preset_takes_its_place(menu: Menu, tmp_path: Path):
    path = tmp_path / "configs" / "00_another.json"
    path.write_text("{}")
    entry = menu.add(path)
    assert menu.entries[0] is entry and menu.files == preset_files(tmp_path / "configs")


def test_before_it_is_measured_a_cpu_has_memory_but_no_speed(menu: Menu, monkeypatch, tmp_path: Path):
    assert menu.is_measured
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("engine.screen.menu.speed.has_gpu", lambda: False)
    fresh = Menu.read(menu.files, menu.folder, 100)
    assert not fresh.is_measured and fresh.machine is not None and fresh.machine.memory > 2**20
    monkeypatch.setattr("engine.screen.menu.speed.has_gpu", lambda: True)
    assert Menu.read(menu.files, menu.folder, 100).machine is None
