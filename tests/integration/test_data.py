"""What happens to a run's data: sources that die and come back, live weights, the curriculum, masks, the cache."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from engine import train
from engine.config import parse_preset
from engine.errors import Interrupted, SourcesFailed
from engine.events import read
from tests.helpers.folders import equal, events_of, weights
from tests.helpers.hub_runs import QUESTIONS, of, on_hub, wait_for, write_preset
from tests.helpers.hub_server import Fault, HubServer
from tests.helpers.jobs import Job
from tests.helpers.processes import environment, start_ranks
from tests.helpers.text import REPOSITORY
from tests.helpers.training import TOKENS_PER_STEP, by_step, signal_after, tiny_values

BPE = {"tokenizer": {"train_bpe": 512}}
DEAD = Fault("/resolve/", times=10**9, status=503)


def start_on(hub: HubServer, home: Path, tmp_path: Path, processes: int = 1) -> list[Job]:
    """main.py on the tiny preset, with the hub that is served here."""
    ranks = start_ranks(REPOSITORY / "main.py", cwd=home, processes=processes, variables=on_hub(hub, tmp_path))
    jobs = [Job(home, process) for process in ranks]
    for job in jobs:
        job.answer()
    return jobs


def steps_after(step: int, count: int = 1, source: str | None = None) -> Callable[[list[dict]], bool]:
    """Whether there are `count` steps after that one, with text of a source."""

    def reached(events: list[dict]) -> bool:
        steps = [event for event in events if event["event"] == "step" and event["step"] > step]
        return sum(source is None or source in event["sources"] for event in steps) >= count

    return reached


@pytest.mark.slow
def test_a_dead_hub_ends_a_run_resumably(hub: HubServer, home: Path, topics_folder: Path, tmp_path: Path):
    """The reference preset's questions as they are written there."""
    write_preset(home, topics_folder, [QUESTIONS], data=BPE | {"retry_minutes": 0.05})
    (job,) = start_on(hub, home, tmp_path)
    wait_for(home, steps_after(0, 2))
    hub.faults.append(DEAD)
    output = job.rest()
    assert job.process.wait(60) == 3, output
    assert "question is read from the column query" in output
    assert "retrying at row" in output and "questions is no longer read" in output
    assert "Every source failed: questions:" in output and "the next start continues from there" in output
    stopped = events_of(home / "checkpoints", "step")[-1]["step"]

    hub.faults.clear()
    (job,) = start_on(hub, home, tmp_path)
    wait_for(home, steps_after(stopped))
    output = job.signal(signal.SIGTERM)
    assert job.process.wait(60) == 143 and "with its optimizer and data position" in output, output


def test_a_dead_source_is_dropped_and_back_at_the_next_start(
    hub: HubServer, home: Path, topics_folder: Path, tmp_path: Path
):
    files = {"type": "files", "path": str(topics_folder), "glob": "*.txt", "name": "topics"}
    write_preset(home, topics_folder, [QUESTIONS, files], data=BPE | {"retry_minutes": 0.02})
    jobs = start_on(hub, home, tmp_path, processes=2)
    wait_for(home, steps_after(0, 2))
    hub.faults.append(DEAD)
    events = wait_for(home, lambda events: bool(of(events, "dropped")))
    place = events.index(of(events, "dropped")[0])
    last = max(event["step"] for event in events if event["event"] == "step")
    wait_for(home, steps_after(last, 3))
    jobs[1].process.terminate()
    output = jobs[0].rest()
    assert [job.process.wait(60) for job in jobs] == [143, 143], output
    events = read(home / "checkpoints")
    assert len(of(events, "dropped")) == 1 and of(events, "retry"), output
    before = [event for event in events[:place] if event["event"] == "step"]
    after = [event for event in events[place:] if event["event"] == "step"]
    assert set(before[-1]["sources"]) == {"questions", "topics"}
    assert len(after) >= 3 and all(set(event["sources"]) == {"topics"} for event in after[1:])
    assert any(event["event"] == "save" for event in events[place:])

    hub.faults.clear()
    (job,) = start_on(hub, home, tmp_path)  # one process goes on with what two have left
    wait_for(home, steps_after(after[-1]["step"], source="questions"))
    job.signal(signal.SIGTERM)
    assert job.process.wait(60) == 143


def test_a_signal_is_heard_while_a_source_is_awaited(hub, home: Path, topics_folder: Path, tmp_path: Path):
    write_preset(home, topics_folder, [QUESTIONS], data=BPE | {"retry_minutes": 30})
    (job,) = start_on(hub, home, tmp_path)
    wait_for(home, steps_after(0, 2))
    hub.faults.append(DEAD)
    wait_for(home, lambda events: bool(of(events, "retry")))
    steps = len(events_of(home / "checkpoints", "step"))
    time.sleep(1.0)  # until what was read ahead is used up
    begin = time.monotonic()
    output = job.signal(signal.SIGTERM)
    assert job.process.wait(60) == 143 and time.monotonic() - begin < 20, output
    assert "the next start continues from there" in output and steps > 0


@pytest.mark.slow
def test_cached_rows_train_the_same_model_without_any_network(hub, home: Path, topics_folder: Path, tmp_path: Path):
    data = BPE | {"cache": True, "cache_dir": str(tmp_path / "cache")}
    write_preset(home, topics_folder, [QUESTIONS], data=data)
    values = json.loads((home / "configs" / "00_tiny.json").read_text())
    values["train"]["log_interval_seconds"] = 1e-9
    script = str(REPOSITORY / "tests/helpers/workers/training.py")

    def run(folder: Path) -> dict[int, float]:
        command = [sys.executable, script, json.dumps(values), str(folder), str(40 * TOKENS_PER_STEP), "0"]
        variables = environment(**on_hub(hub, tmp_path))
        done = subprocess.run(command, env=variables, cwd=REPOSITORY, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        return by_step(read(folder))

    first = run(tmp_path / "first")
    assert list((tmp_path / "cache").rglob("*.tar"))
    hub.faults.append(Fault("/", times=10**9, status=503))
    assert run(tmp_path / "second") == first
    assert equal(weights(tmp_path / "first"), weights(tmp_path / "second"))


@pytest.fixture
def two_sources(topics_folder: Path, tmp_path: Path) -> list[dict]:
    easy = tmp_path / "easy"
    easy.mkdir()
    # A source that is learned at once: pieces of one text, in real words but always the same ones.
    line = topics["assert"][:90]
    (easy / "all.jsonl").write_text("".join(json.dumps({"text": f"{line} {n}"}) + "\n" for n in range(300)))
    return [
        {"type": "files", "path": str(topics_folder), "glob": "*.txt", "name": "topics"},
        {"type": "files", "path": str(easy), "name": "easy"},
    ]


@pytest.mark.slow
def test_adaptive_weights_follow_losses_and_survive_a_restart(two_sources, topics_folder, tmp_path: Path):
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


@pytest.mark.slow
def test_the_end_of_a_run_has_its_own_sources(two_sources, topics_folder, tmp_path: Path):
    values = tiny_values(topics_folder)
    values["data"] = {"tokenizer": {"train_bpe": 512}, "sources": two_sources}
    values["data"] |= {"final_source_weights": {"topics": 1.0}, "final_fraction": 0.5}
    preset = parse_preset(values)
    train(preset, token_budget=80 * TOKENS_PER_STEP, checkpoint_dir=tmp_path / "whole")
    for steps in (38, 6):  # as it is decided, and before it counts
        signal_after(tmp_path / "parts", steps)
        with pytest.raises(Interrupted):
            train(preset, token_budget=80 * TOKENS_PER_STEP, checkpoint_dir=tmp_path / "parts")
    train(preset, token_budget=80 * TOKENS_PER_STEP, checkpoint_dir=tmp_path / "parts")

    (event,) = of(read(tmp_path / "whole"), "weights")
    assert of(read(tmp_path / "parts"), "weights")[0]["weights"] == event["weights"]
    last = [
        [each for each in read(tmp_path / name) if each["event"] == "evaluation"][-1] for name in ("whole", "parts")
    ]
    assert last[0]["ce"] == last[1]["ce"], "the same rows were read"
    read_tokens = {name: part["tokens"] for name, part in last[0]["data"].items()}
    # even shares up to the middle and eight batches more; then one source
    assert read_tokens["easy"] / sum(read_tokens.values()) == pytest.approx(0.5 * (40 + 8) / 80, abs=0.03)


def test_the_curriculum_weighs_rows_after_its_burn_in(two_sources, topics_folder, tmp_path: Path):
    values = tiny_values(topics_folder, train={"learning_rate": 0.01})
    values["data"]["sources"] = two_sources
    plain = parse_preset(values)
    train(plain, token_budget=40 * TOKENS_PER_STEP, checkpoint_dir=tmp_path / "plain")
    values["auxiliary"] = {
        "enable_curriculum": True,
        "curriculum_burn_in_tokens": 20 * TOKENS_PER_STEP,
        "curriculum_interval_tokens": 10 * TOKENS_PER_STEP,
        "curriculum_temperature": 0.3,
    }
    train(parse_preset(values), token_budget=40 * TOKENS_PER_STEP, checkpoint_dir=tmp_path / "weighed")
    losses = [by_step(read(tmp_path / name)) for name in ("plain", "weighed")]
    same = [losses[0][step] == losses[1][step] for step in range(1, 41)]
    assert all(same[:24]) and not any(same[30:])


def test_document_masks_train_and_evaluate(tiny, two_sources, tmp_path: Path):
    losses = {}
    for mask in (False, True):
        preset = tiny(data={"document_mask": mask, "sources": two_sources, "tokenizer": {"train_bpe": 512}})
        losses[mask] = train(preset, token_budget=30 * TOKENS_PER_STEP, checkpoint_dir=tmp_path / str(mask)).eval_loss
    assert losses[True] != losses[False] and max(losses.values()) < 6.0


@pytest.mark.slow
def test_a_lineage_has_a_lane_for_every_worker(tiny, tmp_path: Path):
    preset = tiny(data={"num_workers": 17})
    train(preset, token_budget=TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    (run,) = events_of(tmp_path, "run")
    assert (run["derived"]["lanes"], run["derived"]["data_workers"]) == (32, 17)


def test_worker_processes_change_nothing_and_leave_nothing(tiny, tmp_path: Path):
    runs = [tiny(data={"num_workers": workers}) for workers in (0, 2)]
    for number, preset in enumerate(runs):
        train(preset, token_budget=20 * TOKENS_PER_STEP, checkpoint_dir=tmp_path / str(number))
        (run,) = events_of(tmp_path / str(number), "run")
        assert (run["derived"]["lanes"], run["derived"]["data_workers"]) == (16, preset.data.num_workers)
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
