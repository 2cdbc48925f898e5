"""Event files as TensorBoard itself reads them."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from engine import events, train
from engine.trackers import Trackers
from tests.helpers.tracked import Event, event, first_start, resume_event, run_event, second_start, step_event
from tests.helpers.training import TOKENS_PER_STEP, by_step


@pytest.fixture(autouse=True)
def file_names_of_one_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard reads files in the order of their names, which end with a second and a number."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(1000))


def show(shown: list[Event], folder: Path) -> None:
    said: list[str] = []
    trackers = Trackers(["tensorboard"], lambda: folder, said.append, said.append)
    for one in shown:
        trackers.take(one)
    trackers.close()
    assert not said


def read(folder: Path, axis: str) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder / "tensorboard" / axis))
    return accumulator.Reload()


def steps(folder: Path, axis: str, name: str) -> list[int]:
    return [scalar.step for scalar in read(folder, axis).Scalars(name)]


def test_a_run_that_is_killed_and_resumed_has_each_step_once(tmp_path: Path):
    show(first_start(), tmp_path)
    assert steps(tmp_path, "by_step", "train/loss") == [1, 2, 3, 4, 5]
    show(second_start(), tmp_path)
    assert steps(tmp_path, "by_step", "train/loss") == [1, 2, 3, 4, 5, 6, 7, 8]
    assert steps(tmp_path, "by_tokens", "train_by_tokens/loss") == [100 * step for step in range(1, 9)]
    assert steps(tmp_path, "by_step", "validation/loss") == [8]  # the one at step 5 was given up


def test_a_rollback_takes_its_steps_back(tmp_path: Path):
    rollback = event("rollback", step=5, to_step=2, reason="The weights are not finite")
    again = [rollback, resume_event(2), run_event(), step_event(3, loss=1.0)]
    show([*first_start(), *again], tmp_path)
    scalars = read(tmp_path, "by_step").Scalars("train/loss")
    assert [(scalar.step, scalar.value) for scalar in scalars[-2:]] == [(2, scalars[1].value), (3, 1.0)]


def test_a_new_model_in_the_same_folder_starts_from_nothing(tmp_path: Path):
    show(first_start(), tmp_path)
    show([run_event(), step_event(1)], tmp_path)
    assert steps(tmp_path, "by_step", "train/loss") == [1]


def test_samples_and_the_preset_are_texts(tmp_path: Path):
    show(first_start(), tmp_path)
    texts = read(tmp_path, "by_step").Tags()["tensors"]
    assert {"preset/text_summary", "sample/text_summary"} <= set(texts)
    (sample,) = read(tmp_path, "by_step").Tensors("sample/text_summary")
    assert sample.tensor_proto.string_val[0].decode() == "    Once <b> upon a time\n    there"


def test_two_runs_of_a_model_show_what_their_metrics_have(tiny, tmp_path: Path):
    preset = tiny(train={"log_to": ["tensorboard"]})
    for _ in range(2):
        train(preset, token_budget=3 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    losses = {scalar.step: scalar.value for scalar in read(tmp_path, "by_step").Scalars("train/loss")}
    expected = by_step(events.read(tmp_path))
    assert losses == pytest.approx(expected) and len(losses) == 6
    evaluations = [event["ce"] for event in events.read(tmp_path) if event["event"] == "evaluation"]
    shown = [scalar.value for scalar in read(tmp_path, "by_tokens").Scalars("validation_by_tokens/loss")]
    assert shown == pytest.approx(evaluations)
