"""A cache folder of the tests' own, in which this machine is remembered, so that nothing is measured."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.screen.machines import Machine
from tests.helpers.machines import MACHINE, remembering


@pytest.fixture(autouse=True)
def machine(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Machine:
    for name, value in remembering(tmp_path_factory.mktemp("cache")).items():
        monkeypatch.setenv(name, value)
    return MACHINE


@pytest.fixture
def write_runs(tmp_path: Path) -> Callable[..., None]:
    """Writes metrics.jsonl: for each preset's name the throughputs that its run reported."""

    def write(folder: Path, runs: dict[str, list[float]], **values: object) -> None:
        lines = []
        for name, rates in runs.items():
            lines.append({"event": "run", "preset": {"name": name}, **values})
            lines += [{"event": "step", "step": n, "loss": 4.0, "tokens_per_second": r} for n, r in enumerate(rates)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    return write
