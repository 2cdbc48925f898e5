"""Saving beside training, and what happens when the disk does not take it."""

import copy
import itertools
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from engine import train
from engine.checkpoint.background import BackgroundSaver
from engine.checkpoint.folder import CURRENT, CheckpointFolder
from engine.device.ranks import Ranks
from engine.errors import Interrupted
from engine.events import EventLog, read
from engine.screen.console import Console
from tests.helpers import checkpoints
from tests.helpers.jobs import STEP_LINE
from tests.helpers.training import TOKENS_PER_STEP, after_steps, num_steps, obstruct, start_main

EVERY_STEP = {"save_interval_minutes": 1e-9}


def steps_of(folder: Path, event: str) -> list[int]:
    return [line["step"] for line in read(folder) if line["event"] == event]


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.stdout.read()
    process.wait()


def test_training_goes_on_while_a_snapshot_is_written(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save = CheckpointFolder.save

    def slowly(self, *copy):
        time.sleep(1.0)
        return save(self, *copy)

    monkeypatch.setattr(CheckpointFolder, "save", slowly)
    train(tiny(), token_budget=20 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    saves = [line for line in read(tmp_path) if line["event"] == "save"]
    assert [line["step"] for line in saves] == [0, 20]
    assert all(line["seconds"] > 1.0 and line["held_up_seconds"] < 0.5 for line in saves)
    order = [(line["event"], line["step"]) for line in read(tmp_path) if line["event"] in ("save", "step")]
    assert order.index(("save", 0)) > order.index(("step", 3)), "several steps were made before the first save was done"


def test_a_save_is_a_copy_of_its_moment(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What training does to weights and moments while they are being written is not in the file."""
    save = CheckpointFolder.save
    handed_over = []

    def slowly(self, snapshot, optimizer, data):
        handed_over.append(copy.deepcopy((snapshot.model, optimizer)))
        time.sleep(0.2)  # the next step is made meanwhile
        return save(self, snapshot, optimizer, data)

    monkeypatch.setattr(CheckpointFolder, "save", slowly)
    train(tiny(train=EVERY_STEP), token_budget=5 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    folder = CheckpointFolder(tmp_path)
    for weights, optimizer in handed_over[-1:-4:-1]:
        restored = folder.newest()
        assert all(torch.equal(restored.snapshot.model[name], tensor) for name, tensor in weights.items())
        assert all(
            torch.equal(restored.optimizer["moments"][name][key], moment)
            for name, moments in optimizer["moments"].items()
            for key, moment in moments.items()
        )
        folder.step_back(1)


def test_a_save_that_fails_is_tried_again_and_the_old_files_stay(tiny, tmp_path: Path, monkeypatch, capsys):
    seen = []

    def fail_for_a_while() -> None:
        clear = obstruct(tmp_path)
        time.sleep(0.3)  # until a save that was under way is done
        reached = num_steps(tmp_path)
        seen.append((tmp_path / CURRENT).read_bytes())
        while num_steps(tmp_path) < reached + 8:
            time.sleep(0.01)
        seen.append((tmp_path / CURRENT).read_bytes())
        failed = steps_of(tmp_path, "save")
        clear()
        while len(steps_of(tmp_path, "save")) < len(failed) + 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("engine.checkpoint.background.RETRY_SECONDS", 0.05)
    after_steps(tmp_path, 4, fail_for_a_while)
    with pytest.raises(Interrupted):
        train(tiny(train=EVERY_STEP), token_budget=10_000 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    saves = steps_of(tmp_path, "save")
    assert len(seen) == 2 and seen[0] == seen[1] and saves[-1] == num_steps(tmp_path)
    assert max(after - before for before, after in itertools.pairwise(saves)) >= 8, "none while the disk failed"
    output = capsys.readouterr().out
    assert "could not be written" in output and "Training goes on; the next try is in" in output
    assert CheckpointFolder(tmp_path).newest().optimizer is not None


def test_a_failure_is_told_by_the_save_that_waits_for_it(tmp_path: Path, capsys):
    (tmp_path / "state").write_text("in the way")
    taken = (checkpoints.snapshot(10), checkpoints.optimizer(10), {})
    alone = Ranks(0, 1, torch.device("cpu"), None)
    log = EventLog(tmp_path, Console())
    saver = BackgroundSaver(lambda: taken, 10.0, CheckpointFolder(tmp_path), alone, log, None)
    saver.save()
    saver.save()
    assert "could not be written" in " ".join(capsys.readouterr().out.split())
    saver.close()
    log.close()


def test_a_finished_run_waits_for_the_disk(tiny, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr("engine.checkpoint.background.FINAL_RETRY_SECONDS", 0.2)

    def fail_until_the_end() -> None:
        clear = obstruct(tmp_path)
        while not steps_of(tmp_path, "evaluation"):
            time.sleep(0.01)
        time.sleep(0.5)
        clear()

    after_steps(tmp_path, 2, fail_until_the_end)
    preset = tiny(train={"eval_interval_tokens": 10**9})
    result = train(preset, token_budget=60 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    assert result.snapshot.exists() and steps_of(tmp_path, "save") == [0, num_steps(tmp_path)]
    assert "Trying again" in capsys.readouterr().out


def test_a_second_run_in_the_folder_is_refused(tiny, home: Path):
    process = start_main(home)
    process.stdin.close()
    for line in process.stdout:
        if re.search(STEP_LINE, line):
            break
    second = start_main(home)
    output, _ = second.communicate("", timeout=60)
    assert second.returncode == 6 and f"is in use by process {process.pid} on" in output
    assert "Traceback" not in output
    end(process)
    with CheckpointFolder(home / "checkpoints").held():
        pass


def test_the_last_save_of_a_run_follows_its_folder(tmp_path: Path, capsys):
    """Also when that very checkpoint was in a folder that is gone."""
    alone = Ranks(0, 1, torch.device("cpu"), None)
    folder, taken = (
        CheckpointFolder(tmp_path / "checkpoints"),
        (checkpoints.snapshot(10), checkpoints.optimizer(10), {}),
    )
    log = EventLog(folder.folder, Console())
    with folder.held():
        saver = BackgroundSaver(lambda: taken, 10.0, folder, alone, log, None)
        saver.save_final(taken[0].progress, lambda: False)
        assert saver.moved is None
        shutil.rmtree(folder.folder)
        saver.save_final(taken[0].progress, lambda: False)
        went = folder.folder.rename(tmp_path / "elsewhere")
        saver.save()
        saver.close()
        saver.poll()
        assert checkpoints.tokens_of(CheckpointFolder(went)) == [10, 10, 10], "it is written where it was begun"
        saver = BackgroundSaver(lambda: taken, 10.0, folder, alone, log, None)
        saver.save_final(taken[0].progress, lambda: False)
        assert saver.moved and str(went) in saver.moved
    saver.close()
    log.close()
    assert folder.current == went / CURRENT and not (tmp_path / "checkpoints").exists()
    assert steps_of(went, "save") == [1, 1], "the first into the new folder, and the last"
    assert "the folder of this run is" in " ".join(capsys.readouterr().out.split())


def test_a_run_whose_folder_is_moved_makes_room_for_another(home: Path):
    """As docs/survival.md advises for a new model: both end with what they have trained, each in its own folder."""
    first, folder = start_main(home), home / "checkpoints"
    first.stdin.close()
    for line in first.stdout:
        if "  step 3 " in line:
            break
    folder.rename(home / "old")
    output = first.stdout.read()
    assert first.wait(20) == 5 and f"saved to {home / 'old' / CURRENT}" in " ".join(output.split())
    assert not folder.exists() and "Traceback" not in output
    last = steps_of(home / "old", "step")[-1]
    assert CheckpointFolder(home / "old").newest().snapshot.progress["step"] == last >= 3
    second = start_main(home)
    second.stdin.close()
    for line in second.stdout:
        if "  step 2 " in line:
            break
    end(second)
    assert steps_of(folder, "step")[0] == 1 and steps_of(home / "old", "step")[-1] == last


def test_a_killed_run_goes_on_and_says_what_was_lost(home: Path):
    process = start_main(home)
    process.stdin.close()
    for line in process.stdout:
        if "  step 5 " in line:
            break
    end(process)
    reached = steps_of(home / "checkpoints", "step")[-1]
    process = start_main(home)
    process.stdin.close()
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "  step 3 " in line:
            break
    end(process)
    (resumed,) = [line for line in lines if "  resumed " in line]
    assert "at 0 tokens, step 0 (run 1), with its optimizer" in resumed
    assert f"{reached * TOKENS_PER_STEP / 1000:.2f}k tokens that were trained after it are lost." in resumed
