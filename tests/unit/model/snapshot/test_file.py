"""model/snapshot.py: round trips, every kind of damage, tolerant loading."""

import copy
import json
import os
import pickle
import random
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model import AuxiliaryConfig, ModelConfig, TransformerLM, load
from model.positions import extended_rows
from model.snapshot.file import (
    Snapshot,
    SnapshotError,
    architecture_differences,
    learned_positions,
    read,
    restore,
    verify,
    write,
)
from tests.helpers.text import REPOSITORY


@pytest.fixture
def path(tmp_path, snapshot) -> Path:
    write(tmp_path / "lm.pth", snapshot)
    return tmp_path / "lm.pth"


def refused(path: Path, **options) -> str:
    """The one sentence with which `path` is refused."""
    with pytest.raises(SnapshotError) as caught:
        read(path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and message.endswith(".") and "\n" not in message
    return message


def test_a_snapshot_reads_back_equal(path, snapshot):
    for contents in (read(path), read(path, verify=False), verify(path)):
        assert all(torch.equal(contents.model[name], tensor) for name, tensor in snapshot.model.items())
        assert list(contents.model) == list(snapshot.model)
        assert (contents.config, contents.tokenizer) == (snapshot.config, snapshot.tokenizer)
        assert (contents.preset, contents.progress) == (snapshot.preset, snapshot.progress)


def test_the_file_is_what_other_programs_are_promised(path):
    contents = torch.load(path, weights_only=True)
    assert list(contents) == ["format", "model", "config", "tokenizer", "preset", "progress"]
    assert contents["format"] == 1
    assert all(tensor.dtype == torch.float32 for tensor in contents["model"].values())
    assert json.loads(contents["tokenizer"])["model"]["type"] == "BPE"


def test_weights_are_written_as_fp32_and_views_without_what_lies_behind_them(tmp_path, snapshot):
    large = torch.randn(1000, 1000)
    weights = {"view": large[0], "half": torch.ones(4, dtype=torch.bfloat16), "steps": torch.tensor(3)}
    write(tmp_path / "x.pth", replace(snapshot, model=weights))
    assert (tmp_path / "x.pth").stat().st_size < 200_000
    read_back = read(tmp_path / "x.pth").model
    assert torch.equal(read_back["view"], large[0])
    assert read_back["half"].dtype == torch.float32 and read_back["steps"].dtype == torch.int64


def test_a_bare_state_dict_loads(tmp_path, trained, config):
    torch.save(trained.state_dict(), tmp_path / "bare.pth")
    contents = read(tmp_path / "bare.pth")
    assert contents.config is None and contents.tokenizer is None and contents.progress == {}
    model = TransformerLM(config, trained.vocab_size)
    assert restore(model, contents.model).summary() == "Loaded 28 of 28 parameters."
    assert torch.equal(model.tokens.weight, trained.tokens.weight)


def test_how_many_positions_are_learned(trained):
    weights = trained.state_dict()
    assert learned_positions(weights) == learned_positions({f"module.{k}": v for k, v in weights.items()}) == 32
    assert learned_positions({"tokens.weight": torch.zeros(3, 4)}) == 0


def test_sixty_flipped_bits_are_all_noticed(tmp_path, snapshot):
    path = tmp_path / "lm.pth"
    write(path, replace(snapshot, model={"large": torch.randn(400, 1000)}))
    whole = path.read_bytes()
    generator = random.Random(0)
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        assert "damaged" in refused(path) or "cut short" in refused(path) or "not a checkpoint" in refused(path)


def test_a_flip_anywhere_is_noticed_or_harmless(tmp_path, snapshot):
    """Between the parts of a zip lie padding, dates and names read twice: a flip there changes nothing that is read."""
    path = tmp_path / "lm.pth"
    small = Snapshot({"weight": torch.arange(8.0)}, {"vocab_size": 3}, "{}", {}, {"step": 1})
    write(path, small)
    whole = path.read_bytes()
    noticed = 0
    for position in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            contents = read(path)
        except SnapshotError:
            noticed += 1
        else:
            assert torch.equal(contents.model["weight"], small.model["weight"])
            assert replace(contents, model={}) == replace(small, model={})
    assert noticed > 100


@pytest.mark.parametrize("fraction", [0, 0.25, 0.5, 1])
def test_truncated_files(path, fraction):
    whole = path.read_bytes()
    for length in {int(len(whole) * fraction), 1} if fraction == 0 else {int(len(whole) * fraction) - (fraction == 1)}:
        path.write_bytes(whole[:length])
        assert "cut short" in refused(path)
        refused(path, verify=False)


class RunsACommand:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"echo ran > '{self.target}'",)


def test_code_in_a_file_is_refused_and_not_run(tmp_path, snapshot):
    proof, path = tmp_path / "proof", tmp_path / "evil.pth"
    payload = RunsACommand(proof)
    torch.save({"format": 1, "model": {}, "config": payload, "tokenizer": "", "preset": {}, "progress": {}}, path)
    assert "code" in refused(path) and "code" in refused(path, verify=False)
    path.write_bytes(pickle.dumps(payload))
    assert "not a checkpoint" in refused(path)
    assert not proof.exists()
    pickle.loads(path.read_bytes())
    assert proof.exists()  # the payload was a live one


def test_files_of_other_kinds(tmp_path):
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


def test_incomplete_wrong_and_newer_contents(path):
    contents = torch.load(path, weights_only=True)
    torch.save({**contents, "format": 2}, path)
    assert "has format 2, and this version reads format 1" in refused(path)
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
def test_values_of_the_wrong_type_are_refused(path, changes):
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


def test_a_write_the_system_stops_is_one_sentence_and_leaves_nothing(tmp_path):
    """A limit on file size acts as a full disk does: the system stops the write half-way."""
    code = """
import resource, sys, torch
from model.snapshot import Snapshot, SnapshotError, write
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write(sys.argv[1], Snapshot({"large": torch.zeros(200, 1000)}, {}, "{}"))
except SnapshotError as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "lm.pth"], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert run.stdout.strip() == (
        f"{tmp_path / 'lm.pth'}: the checkpoint could not be written (File too large); "
        "check the disk's free space and permissions."
    ), run.stderr
    assert list(tmp_path.iterdir()) == []


def test_too_little_free_space_is_noticed_before_writing(tmp_path, snapshot):
    huge = torch.zeros(1).expand(2**45)  # 128 TiB that take no memory
    with pytest.raises(SnapshotError, match=r"MB are needed and only .* MB are free; make room"):
        write(tmp_path / "lm.pth", replace(snapshot, model={"huge": huge}))
    with pytest.raises(SnapshotError, match="No such file or directory"):
        write(tmp_path / "nowhere" / "lm.pth", snapshot)


def test_restore_removes_wrappers_prefixes(trained, config):
    for prefix in ("module.", "_orig_mod.", "module._orig_mod."):
        model = TransformerLM(config, trained.vocab_size)
        report = restore(model, {prefix + name: tensor for name, tensor in trained.state_dict().items()})
        assert not report.new and not report.left_out
        assert torch.equal(model.blocks[1].mlp.up.weight, trained.blocks[1].mlp.up.weight)


def test_restore_names_what_is_new_and_what_is_left_out(trained, config):
    weights = trained.state_dict()
    del weights["blocks.1.mlp.up.bias"]
    weights["blocks.0.mlp.up.weight"] = torch.zeros(3, 3)
    weights["router.weight"] = torch.zeros(2)
    torch.manual_seed(5)
    model = TransformerLM(config, trained.vocab_size)
    before = model.blocks[0].mlp.up.weight.clone()
    report = restore(model, weights)
    assert report.new == ["blocks.0.mlp.up.weight", "blocks.1.mlp.up.bias"]
    assert report.left_out == ["blocks.0.mlp.up.weight", "router.weight"]
    assert report.extended == [] and len(report.loaded) == 26
    assert torch.equal(model.blocks[0].mlp.up.weight, before)
    assert report.summary() == (
        "Loaded 26 of 28 parameters. Starting fresh: blocks.0.mlp.up.weight, blocks.1.mlp.up.bias; "
        "in the file but not used: blocks.0.mlp.up.weight, router.weight."
    )


def test_restore_extends_positions_in_either_direction(trained, config):
    longer = TransformerLM(config.model_copy(update={"seq_length": 48}), trained.vocab_size)
    report = restore(longer, trained.state_dict())
    assert report.extended == ["positions.weight"] and not report.new and not report.left_out
    assert torch.equal(longer.positions.weight, extended_rows(trained.positions.weight, 48))

    shorter = TransformerLM(config.model_copy(update={"seq_length": 16}), trained.vocab_size)
    report = restore(shorter, trained.state_dict())
    assert report.extended == ["positions.weight"] and not report.new and not report.left_out
    assert shorter.config.seq_length == 32
    assert torch.equal(shorter.positions.weight, trained.positions.weight)
    assert "resized: positions.weight" in report.summary()


@pytest.mark.parametrize("rows", [450, 512])
def test_restore_tolerates_other_paddings_of_the_vocabulary_only(config, rows):
    source, model = TransformerLM(config, 450), TransformerLM(config, 450)
    weights = source.state_dict()
    weights["tokens.weight"] = torch.cat([source.tokens.weight[:450], torch.zeros(62, 32)])[:rows]
    assert not restore(model, weights).new
    assert torch.equal(model.tokens.weight[:450], source.tokens.weight[:450])

    for other_vocabulary in (400, 600):
        weights["tokens.weight"] = torch.zeros(other_vocabulary, 32)
        report = restore(copy.deepcopy(model), weights)
        assert report.new == report.left_out == ["tokens.weight"]


def test_architecture_differences():
    config = {**ModelConfig().model_dump(), "vocab_size": 500, "eos_token_id": 0}
    other = {**config, "seq_length": 512, "dropout": 0.1, "init_std": 0.01, "eos_token_id": 4}
    assert architecture_differences(config, other) == []
    other |= {"hidden_size": 512, "tie_embeddings": False, "vocab_size": 600}
    assert architecture_differences(config, other) == [
        "hidden_size 256 in the checkpoint, 512 in the preset",
        "tie_embeddings True in the checkpoint, False in the preset",
        "vocab_size 500 in the checkpoint, 600 in the preset",
    ]
    without = {key: value for key, value in config.items() if key != "num_layers"}
    assert architecture_differences(without, config) == []  # an absent key has its default
    assert architecture_differences(config, {**without, "num_layers": 4}) == [
        "num_layers 3 in the checkpoint, 4 in the preset"
    ]


PARTS = {"enable_policy": True, "enable_value": True, "enable_span_contrastive": True}


def test_parts_of_the_latent_core_are_added_to_a_trained_model_and_left_out_again(trained, config):
    torch.manual_seed(3)
    model = TransformerLM(config, trained.vocab_size, AuxiliaryConfig(**PARTS))
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items() if name.startswith("latent")}
    report = restore(model, trained.state_dict())
    assert set(report.new) == set(fresh) and not report.left_out
    assert report.summary() == (
        f"Loaded 28 of {28 + len(fresh)} parameters. "
        "Starting fresh: latent.transition, latent.value_head, latent.span_projector."
    )
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, fresh[name] if name in fresh else trained.state_dict()[name])

    fewer = TransformerLM(config, trained.vocab_size, AuxiliaryConfig(enable_value=True))
    report = restore(fewer, model.state_dict())
    assert not report.new and {name.split(".")[1] for name in report.left_out} == {"transition", "span_projector"}
    assert report.summary() == (
        "Loaded 32 of 32 parameters. In the file but not used: latent.transition, latent.span_projector."
    )
    assert torch.equal(fewer.latent.value_head.up.weight, model.latent.value_head.up.weight)

    other_horizons = AuxiliaryConfig(enable_value=True, value_horizons=(4,))
    report = restore(TransformerLM(config, trained.vocab_size, other_horizons), fewer.state_dict())
    bins = "latent.value_head.bins.weight, latent.value_head.bins.bias"
    assert report.summary() == (
        f"Loaded 30 of 32 parameters. Starting fresh: {bins}; in the file but not used: {bins}."
    )


def test_a_snapshot_tells_which_parts_its_model_has(tmp_path, snapshot, config, trained):
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
