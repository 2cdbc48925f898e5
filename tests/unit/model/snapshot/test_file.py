"""model/snapshot/file.py: round trips, and contents that are refused."""

import json
import os
import zipfile
from dataclasses import replace

import pytest
import torch

from model import AuxiliaryConfig, TransformerLM, load
from model.snapshot import SnapshotError, container, read, restore, write

PARTS = {"enable_policy": True, "enable_value": True, "enable_span_contrastive": True}


def test_a_snapshot_reads_back_equal(path, snapshot):
    for contents in (read(path), read(path, verify=False)):
        assert all(torch.equal(contents.model[name], tensor) for name, tensor in snapshot.model.items())
        assert list(contents.model) == list(snapshot.model)
        assert (contents.config, contents.tokenizer) == (snapshot.config, snapshot.tokenizer)
        assert (contents.preset, contents.progress) == (snapshot.preset, snapshot.progress)


def test_what_was_fitted_is_a_key_of_its_own(tmp_path, snapshot, path):
    """Which older versions do not look at, and files without it do not have."""
    fitted = {"temperature": {"bias": 0.1, "entropy": -0.2, "value": 0.0}}
    write(tmp_path / "fitted.pth", replace(snapshot, fitted=fitted))
    assert read(tmp_path / "fitted.pth").fitted == fitted and read(path).fitted == {}
    assert torch.load(tmp_path / "fitted.pth", weights_only=True).keys() - torch.load(path).keys() == {"fitted"}
    assert load(tmp_path / "fitted.pth", device="cpu").fitted.temperature.entropy == -0.2
    write(tmp_path / "wrong.pth", replace(snapshot, fitted={"temperature": {"bias": "hot"}}))
    with pytest.raises(SnapshotError, match=r"wrong\.pth: what was fitted to the model is damaged; fit it again"):
        load(tmp_path / "wrong.pth", device="cpu")


def test_the_file_is_what_other_programs_are_promised(path):
    contents = torch.load(path, weights_only=True)
    assert list(contents) == ["format", "model", "config", "tokenizer", "preset", "progress"]
    assert contents["format"] == 1
    assert all(tensor.dtype == torch.float32 for tensor in contents["model"].values())
    assert json.loads(contents["tokenizer"])["model"]["type"] == "BPE"


def test_a_bare_state_dict_loads(tmp_path, trained, config):
    torch.save(trained.state_dict(), tmp_path / "bare.pth")
    contents = read(tmp_path / "bare.pth")
    assert contents.config is None and contents.tokenizer is None and contents.preset == contents.progress == {}
    model = TransformerLM(config, trained.vocab_size)
    assert restore(model, contents.model).summary() == "Loaded 28 of 28 parameters."
    assert torch.equal(model.tokens.weight, trained.tokens.weight)


def test_files_of_other_kinds(tmp_path, refused):
    path = tmp_path / "x.pth"
    assert "cannot be opened (No such file or directory)" in refused(path)
    path.write_text("Dear diary")
    assert "not a checkpoint" in refused(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("letter.txt", "Dear diary")
    assert "damaged" in refused(path)
    torch.save([1, 2, 3], path)
    assert "holds no model" in refused(path)
    torch.save({"weights": 1}, path)
    assert "holds no model" in refused(path)
    assert "cannot be opened" in refused(tmp_path)


def test_incomplete_wrong_and_newer_contents(path, refused):
    contents = torch.load(path, weights_only=True)
    torch.save({**contents, "format": 2}, path)
    assert "has format 2, and this version reads format 1" in refused(path)
    for version in ("1", True, 1.0, None, 10**500, "\x1b[2J"):
        torch.save({**contents, "format": version}, path)
        assert "a part has the wrong type" in refused(path)
    torch.save({key: value for key, value in contents.items() if key != "progress"}, path)
    assert "lacks progress" in refused(path)
    torch.save({**contents, "preset": "best"}, path)
    assert "wrong type" in refused(path)
    contents["model"]["final_norm.bias"][3] = torch.nan
    torch.save(contents, path)
    assert "final_norm.bias holds NaN" in refused(path)
    read(path, verify=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"progress": {"tokens_in_run": "many"}},
        {"progress": {"step": None}},
        {"progress": {"step": True}},
        {"progress": {"evaluation": 3}},
        {"config": {}},
        {"config": {"seq_length": "x"}},
        {"preset": {"data": 3}},
        {"preset": {"data": {"sources": 3}}},
        {"tokenizer": 5},
    ],
)
def test_values_of_the_wrong_type_are_refused(path, changes, refused):
    contents = torch.load(path, weights_only=True)
    (key, value), *_ = changes.items()
    if key == "config" and value:
        value = {**contents["config"], **value}
    torch.save({**contents, key: value}, path)
    assert "wrong type" in refused(path)


def test_a_model_that_is_not_finite_is_not_kept(tmp_path, snapshot):
    weights = {**snapshot.model, "final_norm.bias": torch.full((32,), torch.inf)}
    with pytest.raises(SnapshotError, match=r"final_norm\.bias holds NaN or infinity"):
        write(tmp_path / "lm.pth", replace(snapshot, model=weights))
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_are_infinite_in_fp32_are_refused(path, snapshot, refused, tmp_path):
    contents = torch.load(path, weights_only=True)
    weights = contents["model"] | {"final_norm.bias": torch.full((32,), 1e300, dtype=torch.float64)}
    torch.save({**contents, "model": weights}, path)
    assert "final_norm.bias holds NaN or infinity" in refused(path)
    with pytest.raises(SnapshotError, match=r"final_norm\.bias holds NaN or infinity"):
        write(tmp_path / "other.pth", replace(snapshot, model=weights))


def test_names_of_a_file_cannot_write_to_a_terminal(path, refused):
    contents = torch.load(path, weights_only=True)
    contents["model"]["\x1b[2J\u202e\n" + "x" * 10**6] = torch.tensor([torch.nan])
    torch.save(contents, path)
    assert (sentence := refused(path)).isprintable() and len(sentence) < 500
    contents["model"] = {name: torch.ones(1) for name in contents["model"]}
    torch.save(contents, path)
    with pytest.raises(SnapshotError) as caught:
        load(path, "cpu")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


def test_a_pipe_or_a_device_is_not_read(tmp_path, refused):
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "zero.pth").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe.pth", tmp_path / "zero.pth"):
        assert "cannot be opened (it is not a regular file)" in refused(path)
        with pytest.raises(OSError, match="it is not a regular file"):
            container.sha256(path)


def test_a_snapshot_says_which_parts_its_core_has(tmp_path, snapshot, config, trained):
    assert not snapshot.auxiliary().looks_ahead and not replace(snapshot, preset={}).auxiliary().looks_ahead
    section = AuxiliaryConfig(**PARTS, value_horizons=(2, 8)).model_dump(mode="json")
    preset = {"name": "small", "auxiliary": {**section, "a_key_of_another_version": 1}}
    model = TransformerLM(config, trained.vocab_size, AuxiliaryConfig(**section))
    restore(model, trained.state_dict())
    write(tmp_path / "lm.pth", replace(snapshot, model=model.state_dict(), preset=preset))
    auxiliary = read(tmp_path / "lm.pth").auxiliary()
    assert auxiliary == AuxiliaryConfig(**section)

    loaded = load(tmp_path / "lm.pth", "cpu")
    assert loaded.model.latent.value_head.horizons == (2, 8)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)
    assert loaded.generate("The", max_new_tokens=4, seed=0) is not None

    preset["auxiliary"]["rollout_depth"] = 9
    write(tmp_path / "lm.pth", replace(snapshot, model=model.state_dict(), preset=preset))
    with pytest.raises(SnapshotError, match="does not describe a model of this version"):
        load(tmp_path / "lm.pth", "cpu")
