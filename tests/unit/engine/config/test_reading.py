import json
import os
import time
from pathlib import Path

import pytest

from engine.config import CONFIGS, load_preset, parse_preset
from engine.errors import PresetError


def test_malformed_files_say_where(tmp_path: Path):
    path = tmp_path / "broken.json"
    path.write_text('{\n "name": "x",\n "train": {"seed": }\n}')
    with pytest.raises(PresetError, match=r"broken.json: not valid JSON: line 3, column 20"):
        load_preset(path)
    path.write_text("[]")
    with pytest.raises(PresetError, match="a preset is a JSON object"):
        load_preset(path)
    path.write_text("[" * 100_000)
    with pytest.raises(PresetError, match="nested too deeply"):
        load_preset(path)
    path.write_text('{"name": "x", "name": "y"}')
    with pytest.raises(PresetError, match="'name' appears twice"):
        load_preset(path)
    with pytest.raises(PresetError, match=r'no such preset \(did you mean "broken.json"\?\)'):
        load_preset(tmp_path / "brokn.json")


def test_a_file_without_a_name_takes_its_own(tmp_path: Path):
    (tmp_path / "mine.json").write_text("{}")
    assert load_preset(tmp_path / "mine.json").name == "mine"


def test_only_a_file_of_a_presets_size_is_read(tmp_path: Path):
    path = tmp_path / "x.json"
    path.write_text("{}" + " " * 2**20)
    with pytest.raises(PresetError, match=r"x\.json: cannot be read \(it has more than 1,048,576 bytes\)\."):
        load_preset(path)
    path.unlink()
    os.mkfifo(path)
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    for special in (path, tmp_path / "zero.json"):
        with pytest.raises(PresetError, match=r"cannot be read \(it is not a regular file\)\."):
            load_preset(special)
    path.unlink()
    path.symlink_to(CONFIGS.resolve() / "03_reference.json")
    assert load_preset(path).name == "reference"


def test_very_many_keys_are_refused_soon(tmp_path: Path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({f"k{number}": 1 for number in range(75_000)}))
    started = time.monotonic()
    with pytest.raises(PresetError, match="k0: unknown key"):
        load_preset(path)
    assert time.monotonic() - started < 15  # linear: less than a second on an idle machine
    path.write_text(json.dumps({"x" * 1_000_000: 1}))
    with pytest.raises(PresetError) as caught:
        load_preset(path)
    assert len(str(caught.value)) < 1200
    sources = [{"type": "python_packages", "name": f"{number}"} for number in range(20_000)]
    path.write_text(json.dumps({"data": {"sources": sources}}, separators=(",", ":")))
    started = time.monotonic()
    assert len(load_preset(path).data.sources) == 20_000 and time.monotonic() - started < 15


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"data": {"cache_dir": "a\0b"}}, "data.cache_dir"),
        ({"data": {"tokenizer": "gpt\0002"}}, "data.tokenizer"),
        ({"data": {"decontaminate": ["a", "b\0"]}}, "data.decontaminate.1"),
        ({"data": {"sources": [{"type": "hf", "dataset": "a/b", "revision": "\0"}]}}, "data.sources.0.revision"),
        ({"data": {"sources": [{"type": "files", "path": "a", "glob": "*\0"}]}}, "data.sources.0.glob"),
        ({"data": {"sources": [{"type": "files", "path": "a", "name": "\0"}]}}, "data.sources.0.name"),
        ({"data": {"source_weights": {"a\0": 1}}}, "data.source_weights.a"),
        ({"name": "x\0"}, "name"),
        ({"deep": json.loads("[" * 60 + '"\\u0000"' + "]" * 60)}, "deep" + ".0" * 60),
    ],
)
def test_no_text_holds_a_nul(values: dict, key: str):
    with pytest.raises(PresetError) as caught:
        parse_preset({"name": "x", **values}, "p.json")
    assert str(caught.value) == f"p.json: {key}: holds a NUL character; take it out."


def test_nesting_has_no_end_but_the_parsers():
    deep: object = "hf_abcdefgh1234"
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(PresetError, match="holds a hub token or a password"):
        parse_preset({"name": "x", "deep": deep})
    while isinstance(deep, list):  # or freeing it recurses
        (deep,) = deep
