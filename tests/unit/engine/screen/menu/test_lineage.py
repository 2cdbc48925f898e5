"""engine/screen/menu/lineage.py: what a checkpoint folder holds, read without torch."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from engine.checkpoint.folder import CURRENT, PREV, CheckpointFolder
from engine.screen.menu.lineage import Lineage, measured, read_lineage
from tests.helpers import checkpoints
from tests.helpers.text import REPOSITORY


def save(folder: Path, tokens: int, name: str, **progress: object) -> None:
    snapshot = checkpoints.snapshot(tokens)
    snapshot = replace(snapshot, preset={"name": name}, progress={**snapshot.progress, **progress})
    CheckpointFolder(folder).save(snapshot, checkpoints.optimizer(tokens), {})


def test_an_empty_folder_holds_nothing(tmp_path: Path):
    assert read_lineage(tmp_path) is None and read_lineage(tmp_path / "nowhere") is None


def test_a_lineage_says_how_far_it_is(tmp_path: Path):
    save(tmp_path, 41, "mine", run=2)
    lines = [{"event": "step", "step": step, "loss": loss} for step, loss in ((3, 4.5), (4, 4.024), (5, 3.9))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_lineage(tmp_path)
    assert found == Lineage("mine", 2, 41, False, 4.024), "of the step that was saved"
    assert found.sentence(100) == "run 2, 41%, loss 4.02" and found.verb == "resumes"


def test_a_finished_run_is_followed_by_another(tmp_path: Path):
    save(tmp_path, 100, "mine", finished=True, evaluation={"ce": 3.5})
    found = read_lineage(tmp_path)
    assert found is not None and found.sentence(100) == "run 1 done, loss 3.50" and found.verb == "starts run 2"


def test_of_a_damaged_snapshot_an_older_one_speaks(tmp_path: Path):
    save(tmp_path, 10, "mine")
    save(tmp_path, 20, "mine")
    assert (tmp_path / PREV).exists()
    (tmp_path / CURRENT).write_bytes(b"PK\3\4 damaged")
    found = read_lineage(tmp_path)
    assert found is not None and found.tokens_in_run == 10


def test_the_throughput_of_a_run_is_that_of_its_last_reports(tmp_path: Path, write_runs):
    write_runs(tmp_path, {"reference": [1.0, 5000.0, 6000.0], "another": [9.0, 9.0]})
    assert measured(tmp_path, None).tokens == {"reference": 5000.0}, "the other has hardly begun"
    assert measured(tmp_path, None, "another machine").tokens == {"reference": 5000.0}, "no machine is known"


def test_runs_of_another_machine_do_not_count(tmp_path: Path, write_runs):
    derived = {"flops_per_token": 4e7, "precision": "bf16"}
    write_runs(tmp_path, {"mine": [5.0, 7.0, 7.0]}, machine="H200", derived=derived)
    assert measured(tmp_path, None, "CPU").tokens == {}
    here = measured(tmp_path, None, "H200")
    assert here.tokens == {"mine": 7.0} and here.flops == {"bf16": 2.8e8}
    write_runs(tmp_path, {"tiny": [5.0, 7.0, 7.0]}, machine="H200", derived={**derived, "flops_per_token": 1e6})
    tiny = measured(tmp_path, None, "H200")
    assert tiny.tokens == {"tiny": 7.0} and tiny.flops == {}, "it says nothing about larger models"


def test_the_throughput_of_a_run_whose_begin_is_long_ago(tmp_path: Path):
    """Only the end of metrics.jsonl is read, and the newest snapshot knows the preset."""
    lines = [{"event": "run", "preset": {"name": "another"}}]
    with (tmp_path / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
        file.truncate(2**30)  # a hole: to read it all would take long
        file.seek(2**30)
        file.write("\n" + 3 * (json.dumps({"event": "step", "tokens_per_second": 7.0}) + "\n"))
    assert measured(tmp_path, None).tokens == {}, "nobody knows whose they are"
    assert measured(tmp_path, Lineage("long", 1, 0, False, None)).tokens == {"long": 7.0}


@pytest.mark.parametrize("preset", [None, [], {"name": []}, {"name": None}])
def test_an_event_that_has_lost_a_bit_ends_no_menu(tmp_path: Path, preset):
    lines = [{"event": "run", "preset": preset, "derived": 7}, *3 * [{"event": "step", "tokens_per_second": 5.0}]]
    lines += [{"event": "run", "preset": {"name": "tiny"}}, *3 * [{"event": "step", "tokens_per_second": "fast"}]]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert measured(tmp_path, None).tokens == {}


def test_what_the_first_screen_imports_lacks_torch():
    heavy = "{'torch', 'deepspeed', 'transformers', 'datasets', 'pyarrow'}"
    program = f"import sys, main; sys.exit(str({heavy} & sys.modules.keys()) if {heavy} & sys.modules.keys() else 0)"
    ended = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
