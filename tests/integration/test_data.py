"""What happens to a run's data: sources that die and come back, live weights, the curriculum, masks, the cache."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch

from engine import train
from engine.config import parse_preset
from engine.errors import Interrupted, SourcesFailed
from engine.events import read
from tests.helpers.hub_runs import QUESTIONS, of, on_hub, wait_for, write_preset
from tests.helpers.hub_server import Fault
from tests.helpers.text import REPOSITORY
from tests.helpers.training import (
    TOKENS_PER_STEP,
    TORCHRUN,
    WORKER,
    by_step,
    environment,
    signal_after,
    start_main,
    tiny_values,
)


@pytest.mark.slow
def test_the_reference_presets_questions_train_as_written_and_a_dead_hub_ends_the_run_resumably(
    hub, home: Path, topics_folder: Path, tmp_path: Path
):
    write_preset(home, topics_folder, [QUESTIONS], data={"tokenizer": {"train_bpe": 512}, "retry_minutes": 0.05})
    process = start_main(home, **on_hub(hub, tmp_path))
    process.stdin.close()
    wait_for(home, lambda events: sum(event["event"] == "step" for event in events) > 1)
    hub.faults.append(Fault("/resolve/", times=10**9, status=503))
    output = process.stdout.read()
    assert process.wait(60) == 3, output
    assert "question is read from the column query" in output
    assert "retrying at row" in output and "questions is no longer read" in output
    assert "Every source failed: questions:" in output and "the next start continues from there" in output
    stopped = [event for event in read(home / "checkpoints") if event["event"] == "step"][-1]["step"]

    hub.faults.clear()
    process = start_main(home, **on_hub(hub, tmp_path))
    process.stdin.close()
    wait_for(home, lambda events: any(event["event"] == "step" and event["step"] > stopped for event in events))
    process.terminate()
    output = process.stdout.read()
    assert process.wait(60) == 143 and "with its optimizer and data position" in output, output


def test_a_source_that_dies_is_dropped_on_all_ranks_at_the_same_step_and_is_back_at_the_next_start(
    hub, home: Path, topics_folder: Path, tmp_path: Path
):
    files = {"type": "files", "path": str(topics_folder), "glob": "*.txt", "name": "topics"}
    write_preset(home, topics_folder, [QUESTIONS, files], data={"tokenizer": {"train_bpe": 512}, "retry_minutes": 0.05})
    process = start_main(home, sys.executable, *TORCHRUN, **on_hub(hub, tmp_path))
    process.stdin.close()
    wait_for(home, lambda events: sum(event["event"] == "step" for event in events) > 1)
    hub.faults.append(Fault("/resolve/", times=10**9, status=503))
    events = wait_for(home, lambda events: of(events, "dropped"))
    place = events.index(of(events, "dropped")[0])
    wait_for(home, lambda events: sum(event["event"] == "step" for event in events[place:]) > 5)
    process.terminate()
    output = process.stdout.read()
    process.wait(60)
    events = read(home / "checkpoints")
    assert len(of(events, "dropped")) == 1 and of(events, "retry"), output
    before = [event for event in events[:place] if event["event"] == "step"]
    after = [event for event in events[place:] if event["event"] == "step"]
    assert set(before[-1]["sources"]) == {"questions", "topics"}
    assert all(set(event["sources"]) == {"topics"} for event in after[1:])
    assert any(event["event"] == "save" for event in events[place:])

    hub.faults.clear()
    process = start_main(home, **on_hub(hub, tmp_path))  # one process goes on with what two have left
    process.stdin.close()
    last = after[-1]["step"]
    wait_for(
        home,
        lambda events: any(e["event"] == "step" and e["step"] > last and "questions" in e["sources"] for e in events),
    )
    process.terminate()
    process.stdout.read()
    assert process.wait(60) == 143


def test_a_signal_is_heard_while_a_source_is_awaited(hub, home: Path, topics_folder: Path, tmp_path: Path):
    write_preset(home, topics_folder, [QUESTIONS], data={"tokenizer": {"train_bpe": 512}, "retry_minutes": 30})
    process = start_main(home, **on_hub(hub, tmp_path))
    process.stdin.close()
    wait_for(home, lambda events: sum(event["event"] == "step" for event in events) > 1)
    hub.faults.append(Fault("/resolve/", times=10**9, status=503))
    wait_for(home, lambda events: of(events, "retry"))
    count = len(read(home / "checkpoints"))
    time.sleep(2.0)
    begin = time.monotonic()
    process.terminate()
    output = process.stdout.read()
    assert process.wait(60) == 143 and time.monotonic() - begin < 20, output
    assert "the next start continues from there" in output and count > 0


@pytest.mark.slow
def test_cached_rows_train_the_same_model_without_any_network(hub, home: Path, topics_folder: Path, tmp_path: Path):
    data = {"tokenizer": {"train_bpe": 512}, "cache": True, "cache_dir": str(tmp_path / "cache")}
    write_preset(home, topics_folder, [QUESTIONS], data=data)
    values = json.loads((home / "configs" / "00_tiny.json").read_text())
    values["train"]["log_interval_seconds"] = 1e-9
    script = tmp_path / "worker.py"
    script.write_text(WORKER)

    def run(folder: Path, **settings: str) -> dict[int, float]:
        command = [sys.executable, str(script), json.dumps(values), str(folder), str(40 * TOKENS_PER_STEP)]
        finished = subprocess.run(
            command, env=environment(**settings), cwd=REPOSITORY, capture_output=True, text=True, timeout=200
        )
        assert finished.returncode == 0, (finished.stdout + finished.stderr)[-3000:]
        return by_step(read(folder))

    first = run(tmp_path / "first", **on_hub(hub, tmp_path))
    assert list((tmp_path / "cache").rglob("*.tar"))
    hub.faults.append(Fault("/", times=10**9, status=503))
    second = run(tmp_path / "second", **on_hub(hub, tmp_path))
    assert second == first
    weights = [
        torch.load(tmp_path / name / "lm_current.pth", weights_only=True)["model"] for name in ("first", "second")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.fixture
def two_sources(topics_folder: Path, tmp_path: Path) -> list[dict]:
    easy = tmp_path / "easy"
    easy.mkdir()
    # A source that is learned at once: pieces of one text, in real words but always the same ones.
    line = topics["assert"][:90]
    (easy / "all.jsonl").write_text("".join(json.dumps({"text": f"{line} {n}"}) + "\n" for n in range(4000)))
    return [
        {"type": "files", "path": str(topics_folder), "glob": "*.txt", "name": "topics"},
        {"type": "files", "path": str(easy), "name": "easy"},
    ]


@pytest.mark.slow
def test_adaptive_weights_follow_the_losses_and_survive_a_restart(two_sources, topics_folder, tmp_path: Path):
    def preset(**auxiliary):
        values = tiny_values(topics_folder, auxiliary=auxiliary, train={"learning_rate": 0.01})
        values["data"] = {"tokenizer": {"train_bpe": 512}, "sources": two_sources, "mix_strategy": "weighted"}
        return parse_preset(values)

    adaptive = preset(
        enable_adaptive_sources=True, adaptive_interval_tokens=10 * TOKENS_PER_STEP, adaptive_smoothing=0.5
    )
    train(adaptive, token_budget=100 * TOKENS_PER_STEP, checkpoint_dir=tmp_path / "whole")
    weights = [event["weights"] for event in of(read(tmp_path / "whole"), "weights")]
    assert len(weights) >= 9
    assert weights[-1]["topics"] > 1.2 > 0.8 > weights[-1]["easy"] >= 0.5

    for steps in (34, 40):
        signal_after(tmp_path / "parts", steps)
        with pytest.raises(Interrupted):
            train(adaptive, token_budget=100 * TOKENS_PER_STEP, checkpoint_dir=tmp_path / "parts")
    train(adaptive, token_budget=100 * TOKENS_PER_STEP, checkpoint_dir=tmp_path / "parts")
    assert [event["weights"] for event in of(read(tmp_path / "parts"), "weights")] == weights


def test_the_curriculum_weighs_rows_after_its_burn_in(two_sources, topics_folder, tmp_path: Path):
    values = tiny_values(topics_folder, train={"learning_rate": 0.01})
    values["data"]["sources"] = two_sources
    plain = parse_preset(values)
    train(plain, token_budget=60 * TOKENS_PER_STEP, checkpoint_dir=tmp_path / "plain")
    values["auxiliary"] = {
        "enable_curriculum": True,
        "curriculum_burn_in_tokens": 20 * TOKENS_PER_STEP,
        "curriculum_interval_tokens": 10 * TOKENS_PER_STEP,
        "curriculum_temperature": 0.3,
    }
    train(parse_preset(values), token_budget=60 * TOKENS_PER_STEP, checkpoint_dir=tmp_path / "weighed")
    losses = [by_step(read(tmp_path / name)) for name in ("plain", "weighed")]
    same = [losses[0][step] == losses[1][step] for step in range(1, 61)]
    assert all(same[:24]) and not any(same[30:])


def test_document_masks_train_and_evaluate(tiny, two_sources, tmp_path: Path):
    losses = {}
    for mask in (False, True):
        preset = tiny(data={"document_mask": mask, "sources": two_sources, "tokenizer": {"train_bpe": 512}})
        losses[mask] = train(preset, token_budget=30 * TOKENS_PER_STEP, checkpoint_dir=tmp_path / str(mask)).eval_loss
    assert losses[True] != losses[False] and max(losses.values()) < 6.0


def test_a_lineage_has_a_lane_for_every_worker(tiny, tmp_path: Path):
    preset = tiny(data={"num_workers": 17})
    train(preset, token_budget=TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    (run,) = [event for event in read(tmp_path) if event["event"] == "run"]
    assert (run["derived"]["lanes"], run["derived"]["data_workers"]) == (32, 17)


def test_worker_processes_change_nothing_and_leave_nothing_behind(tiny, tmp_path: Path):
    runs = [tiny(data={"num_workers": workers}) for workers in (0, 2)]
    for number, preset in enumerate(runs):
        train(preset, token_budget=20 * TOKENS_PER_STEP, checkpoint_dir=tmp_path / str(number))
    assert by_step(read(tmp_path / "0")) == by_step(read(tmp_path / "1"))
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    if children.exists():
        commands = [Path(f"/proc/{pid}/cmdline") for pid in children.read_text().split()]
        assert not any("sources.loading.worker" in path.read_text() for path in commands if path.exists())


def test_texts_kept_out_of_training_must_be_readable(tiny, tmp_path: Path):
    with pytest.raises(Exception, match=r"data\.decontaminate: .*does not exist"):
        train(
            tiny(data={"decontaminate": [str(tmp_path / "none.txt")]}),
            token_budget=TOKENS_PER_STEP,
            checkpoint_dir=tmp_path,
        )


def test_nothing_that_passes_the_filters_halts_the_run(tiny, tmp_path: Path):
    with pytest.raises(SourcesFailed):
        train(tiny(data={"min_text_length": 10**9}), token_budget=TOKENS_PER_STEP, checkpoint_dir=tmp_path)
