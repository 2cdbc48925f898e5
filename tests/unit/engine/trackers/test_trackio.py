"""trackio's own database after two starts of a run."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.helpers.processes import start
from tests.helpers.text import REPOSITORY


@pytest.mark.slow
def test_a_resumed_run_continues_its_run_and_has_each_step_once(tmp_path: Path):
    folder, home = tmp_path / "checkpoints", tmp_path / "home"
    folder.mkdir()
    variables = {"TRACKIO_DIR": str(home), "HF_HUB_OFFLINE": "1"}
    worker = REPOSITORY / "tests/helpers/workers/trackers.py"
    process = start(worker, str(folder), "trackio", cwd=tmp_path, variables=variables)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "failed" not in printed, printed
    with closing(sqlite3.connect(home / "forethought.db")) as database:
        rows = database.execute("select run_name, step, metrics from metrics order by step, id").fetchall()
        (config,) = database.execute("select distinct config from configs").fetchone()
    assert len({name for name, _, _ in rows}) == 1
    figures = [(step, json.loads(metrics)) for _, step, metrics in rows]
    assert [step for step, values in figures if "train/loss" in values] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [values["tokens"] for _, values in figures if "train/loss" in values] == [100 * n for n in range(1, 9)]
    samples = [values["sample"]["_value"] for _, values in figures if "sample" in values]
    assert samples == ["    Once <b> upon a time\n    there"] * 2
    assert json.loads(config)["preset"]["name"] == "tiny"
