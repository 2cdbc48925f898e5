import json
from pathlib import Path

import pytest

from engine.config import CONFIGS, load_preset, parse_preset, preset_files
from engine.formatting import duration
from engine.screen.preset_table import MenuEntry, measured_throughputs, model_without_weights, read_entries, show_table
from model.transformer import TransformerLM

REFERENCE = CONFIGS / "03_reference.json"


def model_of(path: Path) -> TransformerLM:
    preset = load_preset(path)
    return model_without_weights(preset.model, preset.auxiliary, preset.data.tokenizer)


@pytest.mark.parametrize("path", preset_files(CONFIGS), ids=lambda path: path.stem)
def test_a_model_for_counting_takes_no_memory(path: Path):
    model = model_of(path)
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert model.flops_per_token() > 6 * model.num_parameters() * 0.9


def test_the_reference_has_as_many_parameters_as_it_says():
    assert model_of(REFERENCE).num_parameters() == pytest.approx(15.3e6, rel=0.01)


def test_a_run_is_estimated_by_the_presets_own_throughput(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    entry = MenuEntry(REFERENCE, load_preset(REFERENCE))
    show_table([entry], 10**8, tmp_path)
    assert "03_reference" in (guessed := capsys.readouterr().out) and "about" in guessed and "reachable" in guessed
    lines = []
    for name, speeds in (("reference", (1.0, 5000.0, 6000.0)), ("another", (9.0,))):
        lines.append({"event": "run", "preset": {"name": name}})
        lines += [{"event": "step", "tokens_per_second": speed} for speed in speeds]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert measured_throughputs(tmp_path) == {"reference": 5000.0, "another": 9.0}
    show_table([entry], 10**8, tmp_path)
    assert f"about {duration(1e8 / 5000)}" in capsys.readouterr().out


def test_a_broken_preset_stands_in_the_table(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "00_broken.json").write_text('{"trian": {}}')
    (entry,) = entries = read_entries([tmp_path / "00_broken.json"])
    assert entry.preset is None
    show_table(entries, 1, tmp_path)
    assert "cannot be used" in (shown := capsys.readouterr().out) and 'did you mean "train"?' in shown


def test_unreachable_data_is_named_by_source(tmp_path: Path):
    values = {"data": {"sources": [{"type": "files", "path": str(tmp_path / "gone")}], "tokenizer": {"train_bpe": 300}}}
    (tmp_path / "00_x.json").write_text(json.dumps(values))
    (entry,) = read_entries([tmp_path / "00_x.json"])
    assert entry.preset == parse_preset({"name": "00_x", **values}) and "gone" in entry.problem
    values["data"]["sources"].append({"type": "python_packages"})
    (tmp_path / "00_x.json").write_text(json.dumps(values))
    assert not read_entries([tmp_path / "00_x.json"])[0].problem
