"""What a start continues: the newest checkpoint, its next run, or nothing; and what keeps it from that."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.checkpoint.folder import MIRROR, CheckpointFolder
from engine.device.ranks import Ranks
from engine.errors import CheckpointError, PresetError
from engine.events import EventLog
from engine.run.resume import Start, find_start, restore_weights
from engine.run.state import Progress
from engine.screen.console import Console
from model import TransformerLM
from sources.config import DataConfig
from sources.loading.state import new_state
from sources.rows.tokenizer import load_tokenizer, train_bpe
from tests.faults.damage import tree
from tests.helpers import checkpoints
from tests.helpers.checkpoints import SHAPE

ALONE = Ranks(0, 1, torch.device("cpu"), None)


def data(**paths: str) -> DataConfig:
    """Sources by name; the tokenizer is one that any run trains."""
    sources = [{"type": "files", "path": path, "name": name} for name, path in paths.items()]
    return DataConfig(sources=sources, tokenizer={"train_bpe": 300})


DATA = data(a="./a", b="./b")


def streams(**taken: int) -> dict[str, Any]:
    return {name: {"state": None, "taken": rows, "tokens": 10 * rows} for name, rows in taken.items()}


def run_state() -> dict[str, Any]:
    """As far as a start looks into it."""
    lanes = {"0": {"streams": streams(a=1, b=2), "mixer": {"owed": {}}}, "1": {"streams": streams(b=3), "mixer": {}}}
    loader = {**new_state(7, True, 2, {"seq_length": 16, "packing": "pad"}), "lanes": lanes}
    pins = {name: {"source": {"location": name}, "small": False} for name in "ab"}
    return {"pins": pins, "loader": loader, "adaptive": None, "rows_of_pass": 8, "parts_begin": {}}


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(tmp_path / "checkpoints")


def save(folder: CheckpointFolder, tokens: int = 40, state: dict | None = None, **progress: Any) -> None:
    snapshot = checkpoints.snapshot(tokens)
    preset = {"data": DATA.model_dump(mode="json")}
    snapshot = replace(snapshot, preset=preset, progress=snapshot.progress | progress)
    folder.save(snapshot, checkpoints.optimizer(tokens), run_state() if state is None else state)


@pytest.fixture
def find(folder: CheckpointFolder) -> Callable[..., Start]:
    def start(
        model=SHAPE,
        config: DataConfig = DATA,
        budget: int = 1000,
        may_archive=lambda sentence: False,
        rows: Callable[[int], int] | None = None,
    ) -> Start:
        log = EventLog(folder.folder, Console())
        lengths = rows or (lambda tokens: model.seq_length)
        return find_start(model, config, budget, folder, ALONE, log, may_archive, lengths)

    return start


def test_an_empty_folder_begins_a_lineage(find):
    start = find()
    first = Start(Progress(), None, SHAPE.seq_length, SHAPE, is_new=True, continues=False, restored=None)
    assert start == first


def test_a_checkpoint_is_continued_where_it_stood(folder, find):
    save(folder, evaluation={"ce": 4.0}, skipped=2)
    start = find()
    assert not start.is_new and start.restored is not None and start.state == run_state()
    assert start.progress == Progress(1, 4, 40, 40, {"ce": 4.0}, False, 2)


@pytest.mark.parametrize(
    ("budget", "finished", "run"),
    [
        (40, {"finished": True}, 2),
        (41, {"finished": True}, 1),  # another budget
        (40, {"finished": False}, 1),  # its last evaluation is missing
        (40, {}, 2),  # older snapshots lack the key
        (41, {}, 1),
    ],
)
def test_a_finished_run_is_followed_by_the_next(folder, find, budget: int, finished: dict, run: int):
    save(folder, **finished)
    progress = find(budget=budget).progress
    assert (progress.run, progress.step, progress.tokens_total) == (run, 4, 40)
    assert progress.tokens_in_run == (0 if run == 2 else 40) and not progress.finished


def test_sources_that_changed_or_are_new_start_over(folder, find):
    save(folder)
    state = find(config=data(a="./a", b="./other", c="./c")).state
    assert state["pins"].keys() == {"a"}
    lanes = state["loader"]["lanes"]
    assert lanes["0"]["streams"] == streams(a=1) and lanes["1"]["streams"] == {}
    assert {**state, "loader": None, "pins": None} == {**run_state(), "loader": None, "pins": None}


def test_a_source_that_is_left_out_keeps_its_place(folder, find):
    save(folder)
    assert find(config=data(a="./a")).state == run_state()


def test_before_the_first_step_there_is_no_position(folder, find):
    save(folder, state={**run_state(), "loader": None})
    start = find(config=data(a="./elsewhere", b="./b"))
    assert start.state["loader"] is None and start.state["pins"].keys() == {"b"}


def test_a_position_of_another_version_is_dropped(folder, find):
    older = run_state()
    older["loader"]["format"] = 2
    save(folder, state=older)
    start = find()
    assert start.state is None and start.progress.step == 4
    message = restore_weights(TransformerLM(SHAPE, 64), start, folder, ALONE)
    assert "and without data position" in message and "of another version: the text starts over." in message


def test_a_position_of_a_later_version_is_not_dropped(folder, find):
    later = run_state()
    later["loader"]["format"] += 1
    save(folder, state=later)
    (folder.folder / MIRROR).unlink()  # which a repair would put back
    before = tree(folder.folder)
    with pytest.raises(CheckpointError, match=r"of a later version; .* Nothing was changed"):
        find()
    assert tree(folder.folder) == before


@pytest.mark.parametrize(("asked", "kept"), [(8, 16), (16, 16), (32, 32)])
def test_learned_positions_are_never_cut(folder, find, asked: int, kept: int):
    save(folder)
    shape = SHAPE.model_copy(update={"seq_length": asked})
    assert find(shape).model.seq_length == kept
    for path in folder.folder.glob("*.pth"):
        path.unlink()
    torch.save(TransformerLM(SHAPE, 64).state_dict(), folder.current)  # a bare state dict: by its shapes
    assert find(shape).model.seq_length == kept


@pytest.mark.parametrize("biases", [True, False])
def test_a_lineage_keeps_its_biases_or_none(folder, find, biases: bool):
    model = TransformerLM(SHAPE.model_copy(update={"bias": biases}), 64)
    snapshot = checkpoints.snapshot(40)
    preset = {"data": DATA.model_dump(mode="json")}
    config = {**snapshot.config, "bias": biases}
    folder.save(replace(snapshot, model=model.state_dict(), config=config, preset=preset), {"moments": {}}, run_state())
    for asked in (biases, not biases):
        start = find(SHAPE.model_copy(update={"bias": asked}))
        assert not start.is_new and start.model.bias == biases
        message = restore_weights(TransformerLM(start.model, 64), start, folder, ALONE)
        assert "starting fresh" not in message and "not used" not in message
        assert ("the preset's model.bias counts for new models" in message) == (asked != biases)
    for path in folder.folder.glob("*.pth"):
        path.unlink()
    torch.save(model.state_dict(), folder.current)  # a bare state dict: by its names
    assert find(SHAPE.model_copy(update={"bias": not biases})).model.bias == biases


def test_a_configuration_cannot_ask_for_positions_that_are_not_there(folder, find):
    snapshot = checkpoints.snapshot(40)
    snapshot = replace(
        snapshot, config={**snapshot.config, "seq_length": 2**20}, preset={"data": DATA.model_dump(mode="json")}
    )
    folder.save(snapshot, checkpoints.optimizer(40), run_state())
    assert find().model.seq_length == SHAPE.seq_length


def test_memory_tokens_come_and_go_but_keep_their_number(folder, find):
    save(folder)
    remembering = SHAPE.model_copy(update={"memory_tokens": 4})
    assert find(remembering, DATA).model.memory_tokens == 4
    shorter = remembering.model_copy(update={"seq_length": SHAPE.seq_length // 2, "memory_tokens": 2})
    longer = remembering.model_copy(update={"seq_length": 2 * SHAPE.seq_length})
    for other in (shorter, longer):
        with pytest.raises(PresetError, match=f"has {SHAPE.seq_length} positions and the preset a seq_length of"):
            find(other, DATA)


LARGER = SHAPE.model_copy(update={"hidden_size": 32})


@pytest.mark.parametrize(
    ("model", "config", "difference"),
    [
        (LARGER, DATA, "hidden_size 16 in the checkpoint, 32 in the preset."),
        (
            SHAPE,
            DATA.model_copy(update={"tokenizer": "gpt2"}),
            "tokenizer {'train_bpe': 300} in the checkpoint, gpt2 in",
        ),
    ],
)
def test_another_model_is_never_overwritten(folder, find, model, config: DataConfig, difference: str):
    save(folder)
    before, asked = folder.current.read_bytes(), []
    with pytest.raises(PresetError, match=f"does not fit this preset: .*move {folder.folder} away") as caught:
        find(model, config, may_archive=asked.append)
    (sentence,) = asked
    assert difference in sentence and str(caught.value).startswith(sentence)
    assert folder.current.read_bytes() == before


def test_a_lineage_is_archived_if_that_is_allowed(folder, find, capsys):
    save(folder)
    before = folder.current.read_bytes()
    assert find(LARGER, may_archive=lambda sentence: True).is_new and not folder.current.exists()
    (archived,) = (folder.folder / "archive").iterdir()
    assert (archived / folder.current.name).read_bytes() == before
    assert f"The old lineage was moved to {archived}." in "".join(capsys.readouterr().out.splitlines())


def test_a_tokenizer_of_another_name_may_be_the_same(folder, find, tmp_path: Path):
    """A name on the hub and its local copy, say."""
    (tmp_path / "copy").mkdir()
    tokenizer_json = train_bpe(iter(["to be or not to be"] * 3), 300).to_json()
    (tmp_path / "copy" / "tokenizer.json").write_text(tokenizer_json)
    (tmp_path / "copy" / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    loaded = load_tokenizer(str(tmp_path / "copy")).to_json()
    preset = {"data": {**DATA.model_dump(mode="json"), "tokenizer": "owner/name"}}
    snapshot = replace(checkpoints.snapshot(40), tokenizer=loaded, preset=preset)
    folder.save(snapshot, checkpoints.optimizer(40), run_state())
    assert not find(config=DATA.model_copy(update={"tokenizer": str(tmp_path / "copy")})).is_new
    with pytest.raises(PresetError, match="tokenizer owner/name in the checkpoint"):
        find(config=DATA.model_copy(update={"tokenizer": str(tmp_path / "none")}))


def test_weights_are_loaded_with_a_sentence(folder, find):
    save(folder)
    log = EventLog(folder.folder, Console(enabled=False))
    log.write("step", tokens_total=100)
    log.close()
    start, model = find(), TransformerLM(SHAPE, 64)
    message = restore_weights(model, start, folder, ALONE)
    assert message == (
        f"{folder.current} at 40 tokens, step 4 (run 1), with its optimizer and data position: "
        f"Loaded {len(list(model.parameters()))} of {len(list(model.parameters()))} parameters. "
        "60 tokens that were trained after it are lost."
    )
    expected = checkpoints.snapshot(40).model
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_a_new_lineage_keeps_its_first_weights(folder, find):
    torch.manual_seed(1)
    model = TransformerLM(SHAPE, 64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert restore_weights(model, find(), folder, ALONE) is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


ROTARY = SHAPE.model_copy(update={"positions": "rotary"})


def save_rotary(folder: CheckpointFolder, seq_length: int = 16, **config: Any) -> None:
    shape = ROTARY.model_copy(update={"seq_length": seq_length, **config})
    snapshot = checkpoints.snapshot(40)
    preset = {"data": DATA.model_dump(mode="json")}
    weights, described = TransformerLM(shape, 64).state_dict(), {**snapshot.config, **shape.model_dump()}
    snapshot = replace(snapshot, model=weights, config=described, preset=preset)
    folder.save(snapshot, checkpoints.optimizer(40), run_state())


def test_a_preset_with_longer_rows_continues_a_lineage(folder, find):
    save_rotary(folder)
    longer = {"seq_length": 64, "rope_scaling": "yarn", "layer_rescaling": "attention"}
    start = find(ROTARY.model_copy(update=longer))
    assert not start.is_new and start.seq_length == 64 and start.progress.longer_since == 40
    assert (start.model.rope_original_length, start.model.rope_factor) == (16, 4.0)
    assert start.model.layer_rescaling == "attention"
    assert start.state["loader"] == run_state()["loader"] and start.state["guard"] is None
    message = restore_weights(TransformerLM(start.model, 64), start, folder, ALONE)
    assert "Rows of 16 tokens become rows of 64." in message


def test_what_was_lengthened_keeps_its_scaling(folder, find):
    scaled = {"seq_length": 64, "rope_scaling": "yarn", "rope_original_length": 16, "layer_rescaling": "residual"}
    save_rotary(folder, **scaled)
    for length, factor in ((64, 4.0), (32, 4.0), (128, 8.0)):
        model = find(ROTARY.model_copy(update={"seq_length": length, "rope_scaling": "yarn"})).model
        assert (model.rope_original_length, model.rope_factor) == (16, factor) and model.seq_length == max(64, length)
        assert model.layer_rescaling == "residual"
    model = find(ROTARY.model_copy(update={"seq_length": 64, "rope_scaling": "linear"})).model
    assert model.rope_scaling == "yarn", "only longer rows change it"


def test_new_models_begin_unscaled_with_their_first_rows(folder, find):
    asked = ROTARY.model_copy(update={"seq_length": 64, "rope_scaling": "yarn", "layer_rescaling": "attention"})
    start = find(asked, rows=lambda tokens: 16 if tokens < 500 else 64)
    assert (start.seq_length, start.model.seq_length, start.model.rope_factor) == (16, 16, 1.0)
    assert start.model.layer_rescaling == "none" and start.progress.longer_since is None


def test_a_schedule_counts_from_the_beginning_of_each_run(folder, find):
    save(folder, longer_since=30, finished=True)
    rows = lambda tokens: 16 if tokens < 30 else 32  # noqa: E731
    assert find(rows=rows).seq_length == 32
    start = find(rows=rows, budget=40)
    assert start.seq_length == 16 and start.progress.longer_since is None and start.model.seq_length == 16


@pytest.mark.parametrize("how", ["copy", "resample"])
def test_moments_of_positions_grow_as_these_do(folder, find, how: str):
    snapshot = replace(checkpoints.snapshot(40), preset={"data": DATA.model_dump(mode="json")})
    moments = {key: torch.randn(16, 16) for key in ("exp_avg", "exp_avg_sq")}
    kept = {key: moment.clone() for key, moment in moments.items()}
    folder.save(snapshot, {"step": 4, "moments": {"positions.weight": moments}}, run_state())
    start = find(SHAPE.model_copy(update={"seq_length": 32, "position_extension": how}))
    model = TransformerLM(start.model, 64)
    restore_weights(model, start, folder, ALONE)
    step = 1 if how == "copy" else 2
    for key, grown in start.restored.optimizer["moments"]["positions.weight"].items():
        assert grown.shape == (32, 16) and torch.equal(grown[: 16 * step : step], kept[key])
    assert torch.equal(model.positions.weight[: 16 * step : step], snapshot.model["positions.weight"])
