import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.checkpoint.folder import CheckpointFolder
from engine.config import CONFIGS, load_preset, parse_preset, preset_files
from engine.errors import PresetError
from engine.formatting import duration
from engine.screen import menu
from model.transformer import TransformerLM
from tests.helpers import checkpoints

FILES = preset_files(CONFIGS)
REFERENCE = CONFIGS / "03_reference.json"


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


def test_a_preset_needs_no_number_and_a_broken_one_hinders_none(tmp_path: Path):
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
        with pytest.raises(PresetError, match=f"'{answer}' fits several presets, 00_mine, 00_theirs; give the file"):
            menu._match(answer, files)
    assert menu._match("00_theirs", files).stem == "00_theirs"


def model_of(path: Path) -> TransformerLM:
    preset = load_preset(path)
    return menu.model_without_weights(preset.model, preset.auxiliary, preset.data.tokenizer)


@pytest.mark.parametrize("path", preset_files(CONFIGS), ids=lambda path: path.stem)
def test_a_model_for_counting_takes_no_memory(path: Path):
    model = model_of(path)
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert model.flops_per_token() > 6 * model.num_parameters() * 0.9


def test_the_reference_has_as_many_parameters_as_it_says():
    assert model_of(REFERENCE).num_parameters() == pytest.approx(15.3e6, rel=0.01)


def test_a_run_is_estimated_by_the_presets_own_throughput(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    entry = menu.MenuEntry(REFERENCE, load_preset(REFERENCE))
    menu.show_table([entry], 10**8, tmp_path)
    assert "03_reference" in (guessed := capsys.readouterr().out) and "about" in guessed and "reachable" in guessed
    lines = []
    for name, speeds in (("reference", (1.0, 5000.0, 6000.0)), ("another", (9.0,))):
        lines.append({"event": "run", "preset": {"name": name}})
        lines += [{"event": "step", "tokens_per_second": speed} for speed in speeds]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert menu.measured_throughputs(tmp_path) == {"reference": 5000.0, "another": 9.0}
    menu.show_table([entry], 10**8, tmp_path)
    assert f"about {duration(1e8 / 5000)}" in capsys.readouterr().out


def test_a_model_that_cannot_fit_is_said_to(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setattr("engine.device.machine.total_memory", lambda device: 8 * 2**30)
    paths = (REFERENCE, CONFIGS / "05_large.json")
    menu.show_table([menu.MenuEntry(path, load_preset(path)) for path in paths], 10**8, tmp_path)
    reference, large = capsys.readouterr().out.splitlines()[-2:]
    assert "too large here: one process needs 23 GiB for weights and optimizer, and has 8" in large
    assert "too large" not in reference and "about" in reference


def test_started_again_the_preset_is_the_one_trained_last(tmp_path: Path, capsys, monkeypatch):
    """By torchrun --max_restarts, whose ranks find an input that was read."""
    snapshot = replace(checkpoints.snapshot(10), preset={"name": "reference"})
    CheckpointFolder(tmp_path).save(snapshot, checkpoints.optimizer(10), {})
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert menu.choose(10**8, tmp_path)["name"] == "best_general"
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    assert menu.choose(10**8, tmp_path)["name"] == "reference"
    assert menu.choose(10**8, tmp_path / "empty")["name"] == "best_general"


def test_the_throughput_of_a_run_whose_begin_is_long_ago(tmp_path: Path):
    """Only the end of metrics.jsonl is read, and the newest snapshot knows the preset."""
    lines = [{"event": "run", "preset": {"name": "another"}}, {"event": "step", "tokens_per_second": 9.0}]
    with (tmp_path / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
        file.truncate(2**30)  # a hole: to read it all would take long
        file.seek(2**30)
        file.write("\n" + json.dumps({"event": "step", "tokens_per_second": 7.0}) + "\n")
    assert menu.measured_throughputs(tmp_path) == {}, "nobody knows whose they are"
    snapshot = checkpoints.snapshot(10)
    CheckpointFolder(tmp_path).save(replace(snapshot, preset={"name": "long"}), checkpoints.optimizer(10), {})
    assert menu.measured_throughputs(tmp_path) == {"long": 7.0}


@pytest.mark.parametrize("preset", [None, [], {"name": []}, {"name": None}])
def test_a_run_event_that_has_lost_a_bit_ends_no_menu(tmp_path: Path, preset):
    lines = [{"event": "run", "preset": preset}, {"event": "step", "tokens_per_second": 5.0}]
    lines += [{"event": "run", "preset": {"name": "tiny"}}, {"event": "step", "tokens_per_second": "fast"}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert menu.measured_throughputs(tmp_path) == {}


def test_a_run_is_estimated_in_the_presets_own_precision(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    model = model_of(REFERENCE)
    entries = []
    for name, precision in (("half", "bf16"), ("full", "fp32")):
        preset = load_preset(REFERENCE)
        train = preset.train.model_copy(update={"precision": precision})
        entries.append(menu.MenuEntry(Path(f"{name}.json"), preset.model_copy(update={"name": name, "train": train})))
    rates = {torch.bfloat16: 4e12, torch.float32: 1e12}
    menu._training_flops.cache_clear()
    monkeypatch.setattr(menu.machine, "flops_per_second", lambda device, dtype: rates[dtype])
    monkeypatch.setattr(
        menu,
        "TRAINING_EFFICIENCY",
        {("cpu", "bf16"): 0.5, ("cpu", "fp32"): 0.8, ("cuda", "bf16"): 0.5, ("cuda", "fp32"): 0.8},
    )
    menu.show_table(entries, 10**8, tmp_path)
    menu._training_flops.cache_clear()
    half, full = (line for line in capsys.readouterr().out.splitlines() if line.strip().startswith(("half", "full")))
    assert f"about {duration(1e8 * model.flops_per_token() / 2e12)}" in half
    assert f"about {duration(1e8 * model.flops_per_token() / 8e11)}" in full


def test_a_broken_preset_stands_in_the_table(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "00_broken.json").write_text('{"trian": {}}')
    (entry,) = entries = menu.read_entries([tmp_path / "00_broken.json"])
    assert entry.preset is None
    menu.show_table(entries, 1, tmp_path)
    assert "cannot be used" in (shown := capsys.readouterr().out) and 'did you mean "train"?' in shown


def test_unreachable_data_is_named_by_source(tmp_path: Path):
    values = {"data": {"sources": [{"type": "files", "path": str(tmp_path / "gone")}], "tokenizer": {"train_bpe": 300}}}
    (tmp_path / "00_x.json").write_text(json.dumps(values))
    (entry,) = menu.read_entries([tmp_path / "00_x.json"])
    assert entry.preset == parse_preset({"name": "00_x", **values}) and "gone" in entry.problem
    values["data"]["sources"].append({"type": "python_packages"})
    (tmp_path / "00_x.json").write_text(json.dumps(values))
    assert not menu.read_entries([tmp_path / "00_x.json"])[0].problem


def test_no_preset_takes_the_menu_from_the_others(tmp_path: Path, capsys, monkeypatch):
    """Neither a name that no hub knows, nor an error that nobody thought of."""
    monkeypatch.setenv("COLUMNS", "200")
    for name, tokenizer in (("00_odd", "a/b/c"), ("01_good", {"train_bpe": 300}), ("02_worse", "./worse")):
        values = {"data": {"sources": [{"type": "python_packages"}], "tokenizer": tokenizer}}
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    available = menu.tokenizer_available

    def failing(spec, *limit) -> str | None:
        if spec == "./worse":
            raise RuntimeError("nobody\nthought of this")
        return available(spec, *limit)

    monkeypatch.setattr(menu, "tokenizer_available", failing)
    odd, good, worse = entries = menu.read_entries(preset_files(tmp_path))
    assert 'tokenizer a/b/c: "a/b/c" is not a repository name' in odd.problem and odd.preset is not None
    assert not good.problem and worse.problem == "it cannot be checked (nobody)" and worse.preset is not None
    menu.show_table(entries, 10**6, tmp_path)
    shown = capsys.readouterr().out
    assert all(entry.path.stem in shown for entry in entries)
    assert 'not reachable: tokenizer a/b/c: "a/b/c" is not' in " ".join(shown.split()) and "(nobody)" in shown
