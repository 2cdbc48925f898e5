"""One short run of the tiny preset, for whatever reads what a run leaves."""

from pathlib import Path

import pytest

from engine import train
from engine.config import Preset, parse_preset
from tests.helpers.training import TOKENS_PER_STEP, tiny_values

STEPS = 6


@pytest.fixture(scope="session")
def trained(topics_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Preset, Path]:
    """A preset and the folder of its finished run of six steps; only to be read or copied."""
    preset = parse_preset(tiny_values(topics_folder, train={"eval_interval_tokens": 2 * TOKENS_PER_STEP}))
    folder = tmp_path_factory.mktemp("trained")
    train(preset, token_budget=STEPS * TOKENS_PER_STEP, checkpoint_dir=folder)
    return preset, folder
