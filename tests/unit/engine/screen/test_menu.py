import json
from pathlib import Path

import pytest

from engine.config import CONFIGS, load_preset, preset_files
from engine.errors import PresetError
from engine.events import EventLog
from engine.screen import menu
from engine.screen.console import Console
from engine.train import TOKENS_PER_RUN

FILES = preset_files(CONFIGS)


@pytest.mark.parametrize(
    ("answer", "stem"),
    [
        ("02", "02_offline_python"),
        ("2", "02_offline_python"),
        ("0", "00_best_general"),
        ("offline_python", "02_offline_python"),
        ("03_reference", "03_reference"),
        ("01_best_qa.json", "01_best_qa"),
    ],
)
def test_an_answer_is_a_number_or_a_name(answer: str, stem: str):
    assert menu._match(answer, FILES).stem == stem


def test_an_answer_that_is_neither_names_the_choices():
    for answer in ("9", "²"):
        with pytest.raises(PresetError, match=f"'{answer}' is no preset; there are 00_best_general, 01_best_qa"):
            menu._match(answer, FILES)


def test_a_preset_without_a_number_is_chosen_by_name_and_a_broken_one_is_no_hindrance(tmp_path: Path):
    (tmp_path / "00_broken.json").write_text("{")
    (tmp_path / "my model.json").write_text("{}")
    files = preset_files(tmp_path)
    assert menu._match("my model", files).name == "my model.json"
    assert menu._match("00", files).name == "00_broken.json"


def test_an_answer_that_fits_several_presets_is_refused(tmp_path: Path):
    (tmp_path / "00_mine.json").write_text('{"name": "general"}')
    (tmp_path / "00_theirs.json").write_text('{"name": "general"}')
    files = preset_files(tmp_path)
    for answer in ("00", "0", "general"):
        with pytest.raises(PresetError, match=f"'{answer}' may be each of 00_mine, 00_theirs; give the file name"):
            menu._match(answer, files)
    assert menu._match("00_theirs", files).stem == "00_theirs"


def test_the_estimate_is_this_presets_own_speed_once_it_was_measured(tmp_path: Path):
    preset = load_preset(CONFIGS / "03_reference.json")
    model = menu._on_paper(preset)
    rate = 1e12
    guessed = menu._seconds_per_run(preset, model, rate, tmp_path)
    assert guessed == pytest.approx(TOKENS_PER_RUN * model.flops_per_token() / rate, rel=2)
    journal = EventLog(tmp_path, Console(enabled=False))
    for name, speed in (("reference", 5000.0), ("another", 9.0)):
        journal.write("run", preset={"name": name})
        journal.write("step", tokens_per_second=speed)
    journal.close()
    assert menu._seconds_per_run(preset, model, rate, tmp_path) == pytest.approx(TOKENS_PER_RUN / 5000.0)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_model_on_paper_takes_no_memory(path: Path):
    model = menu._on_paper(load_preset(path))
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert model.flops_per_token() > 6 * model.num_parameters() * 0.9


def test_the_reference_has_as_many_parameters_as_it_says():
    assert menu._on_paper(load_preset(CONFIGS / "03_reference.json")).num_parameters() == pytest.approx(
        15.3e6, rel=0.01
    )


def test_unreachable_data_is_told_by_source(tmp_path: Path):
    values = {"data": {"sources": [{"type": "files", "path": str(tmp_path / "gone")}], "tokenizer": {"train_bpe": 300}}}
    (tmp_path / "00_x.json").write_text(json.dumps(values))
    (entry,) = menu._entries([tmp_path / "00_x.json"])
    assert entry.preset is not None and "gone" in entry.unreachable
    values["data"]["sources"].append({"type": "python_packages"})
    (tmp_path / "00_x.json").write_text(json.dumps(values))
    assert menu._entries([tmp_path / "00_x.json"])[0].unreachable is None
