"""engine/screen/menu/states.py: which data can be reached, asked beside the menu."""

import json
import threading
from pathlib import Path

from engine.config import load_preset, preset_files
from engine.screen.menu.entries import MenuEntry
from engine.screen.menu.states import StateChecks


def checked(folder: Path, presets: dict[str, dict]) -> list[MenuEntry]:
    for name, data in presets.items():
        (folder / f"{name}.json").write_text(json.dumps({"data": data}))
    entries = [MenuEntry(path, load_preset(path)) for path in preset_files(folder)]
    assert not any(entry.checked or entry.problem for entry in entries)
    assert StateChecks(entries).wait(20)
    return entries


def test_unreachable_data_is_named_by_source_and_one_source_is_enough(tmp_path: Path):
    gone = {"type": "files", "path": str(tmp_path / "gone")}
    tokenizer = {"train_bpe": 300}
    alone, with_another = checked(
        tmp_path,
        {
            "00_x": {"sources": [gone], "tokenizer": tokenizer},
            "01_y": {"sources": [gone, {"type": "python_packages"}], "tokenizer": tokenizer},
        },
    )
    assert "gone" in alone.problem
    assert not with_another.problem and "gone" in with_another.reasons[str(tmp_path / "gone")]


def test_no_preset_takes_the_menu_from_the_others(tmp_path: Path, monkeypatch):
    """Neither a name that no hub knows, nor an error that nobody thought of."""
    from sources.rows import tokenizer

    available = tokenizer.tokenizer_available

    def failing(spec, *limit) -> str | None:
        if spec == "./worse":
            raise RuntimeError("nobody\nthought of this")
        return available(spec, *limit)

    monkeypatch.setattr(tokenizer, "tokenizer_available", failing)
    sources = [{"type": "python_packages"}]
    names = {"00_odd": "a/b/c", "01_good": {"train_bpe": 300}, "02_worse": "./worse"}
    odd, good, worse = checked(tmp_path, {name: {"sources": sources, "tokenizer": of} for name, of in names.items()})
    assert 'tokenizer a/b/c: "a/b/c" is not a repository name' in odd.problem
    assert not good.problem and worse.problem == "tokenizer ./worse: it cannot be checked (nobody)"


def test_what_presets_share_is_asked_once_and_said_at_once(tmp_path: Path, monkeypatch):
    from sources import registry

    asked: list[str] = []

    def probe(spec, timeout) -> None:
        asked.append(spec.source_name)

    monkeypatch.setattr(registry, "probe", probe)
    for name in ("00_a", "01_b"):
        data = {"sources": [{"type": "python_packages"}], "tokenizer": {"train_bpe": 300}}
        (tmp_path / f"{name}.json").write_text(json.dumps({"data": data}))
    said = threading.Event()
    entries = [MenuEntry(path, load_preset(path)) for path in preset_files(tmp_path)]
    assert StateChecks(entries, said.set).wait(20)
    assert asked == ["python_packages"] and said.wait(5)
