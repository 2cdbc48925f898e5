"""One short run of the tiny preset, for whatever reads what a run leaves; runs that are only set up."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine import train
from engine.checkpoint.folder import CheckpointFolder
from engine.config import Preset, parse_preset
from engine.device.ranks import join
from engine.errors import Diverged
from engine.events import EventLog
from engine.run.components import Components
from engine.run.setup import setup
from engine.screen.console import Console
from tests.helpers.training import TOKENS_PER_STEP, tiny_values

STEPS = 6


@pytest.fixture(scope="session")
def trained(topics_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Preset, Path]:
    """A preset and the folder of its finished run of six steps; only to be read or copied."""
    preset = parse_preset(tiny_values(topics_folder, train={"eval_interval_tokens": 2 * TOKENS_PER_STEP}))
    folder = tmp_path_factory.mktemp("trained")
    train(preset, token_budget=STEPS * TOKENS_PER_STEP, checkpoint_dir=folder)
    return preset, folder


BUDGET = 8 * TOKENS_PER_STEP


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Callable[..., Components]]:
    """Sets up a run in tmp_path, which is closed after the test."""
    built: list[Components] = []
    log = EventLog(tmp_path, Console(enabled=False))

    def make(preset: Preset, diverged: Diverged | None = None) -> Components:
        folder = CheckpointFolder(tmp_path)
        built.append(setup(preset, BUDGET, folder, join(), log, lambda sentence: False, diverged))
        return built[-1]

    yield make
    for components in built:
        components.close()
    log.close()
