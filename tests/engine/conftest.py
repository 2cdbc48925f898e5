"""Presets small enough to train within seconds on one core."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from engine.preset import Preset, parse_preset
from tests.conftest import REPOSITORY
from tests.sources.hub_server import HubServer
from tests.sources.test_hub import parquet

TINY: dict[str, Any] = {
    "name": "tiny",
    "model": {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "seq_length": 32},
    "train": {
        "per_gpu_batch_size": 8,
        "accumulation_steps": 2,
        "eval_tokens": 2000,
        "eval_interval_tokens": 4096,
        "log_interval_seconds": 1e-9,
        "compile": False,
        "precision": "fp32",
    },
    "data": {"tokenizer": {"train_bpe": 512}},
}


@pytest.fixture
def tiny(topics_folder: Path) -> Callable[..., Preset]:
    """Makes a preset of 512 tokens a step; keyword arguments are merged into its sections."""

    def make(**sections: dict[str, Any]) -> Preset:
        return parse_preset(tiny_values(topics_folder, **sections))

    return make


def tiny_values(topics_folder: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    values = copy.deepcopy(TINY)
    values["data"]["sources"] = [{"type": "files", "path": str(topics_folder), "glob": "*.txt", "name": "topics"}]
    for section, changes in sections.items():
        values[section] = {**values.get(section, {}), **changes}
    return values


@pytest.fixture
def hub():
    with HubServer() as served:
        lines = [line for text in topics.values() for line in text.split("\n\n") if len(line) > 60]
        pairs = [{"query": line[:60], "answer": line} for line in lines[:1500]]
        # Shaped as the reference preset's second source is: it asks for `question`, the column is `query`.
        served.repositories["sentence-transformers/natural-questions"] = {"data/train-0.parquet": parquet(pairs, 50)}
        yield served


@pytest.fixture
def home(tmp_path: Path, topics_folder: Path) -> Path:
    """A folder to start main.py in, with one tiny preset."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "00_tiny.json").write_text(json.dumps(tiny_values(topics_folder)))
    return tmp_path


def environment(**changes: str) -> dict[str, str]:
    values = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | changes
    return {name: value for name, value in values.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}


def start_main(home: Path, *launcher: str, **changes: str) -> subprocess.Popen[str]:
    """main.py in `home`, started by python or by a launcher; its output is one stream of text."""
    command = [*(launcher or (sys.executable,)), str(REPOSITORY / "main.py")]
    return subprocess.Popen(
        command,
        cwd=home,
        env=environment(**changes),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run_main(home: Path, answer: str = "", timeout: float = 180, **changes: str) -> tuple[int, str]:
    """Exit status and output of a main.py that is given `answer` on standard input."""
    process = start_main(home, **changes)
    output, _ = process.communicate(answer, timeout=timeout)
    return process.returncode, output
