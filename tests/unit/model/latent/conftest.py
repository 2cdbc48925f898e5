"""Rows of several pieces, and a small model with every part of the latent core."""

import pytest
import torch

from model import AuxiliaryConfig, TransformerLM

ROWS = [[20, 12], [32], [3, 9, 1, 14], [7]]  # lengths of the pieces; the rest of a row is padding


@pytest.fixture(scope="session")
def everything() -> AuxiliaryConfig:
    return AuxiliaryConfig(
        enable_policy=True,
        enable_value=True,
        enable_dynamics=True,
        enable_span_contrastive=True,
        policy_detach_trunk=False,
        dynamics_detach_trunk=False,
        span_contrastive_detach_trunk=False,
        auxiliary_warmup_fraction=0.0,
        rollout_depth=3,
        rollout_row_fraction=0.75,
        policy_position_fraction=0.25,
        value_horizons=(4, 16),
        span_length=4,
        span_mask_fraction=0.5,
    )


@pytest.fixture(scope="session")
def pieces(token_ids) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(input_ids, labels, segment_ids), each (4, 32), of ROWS."""
    input_ids, labels = torch.zeros(2, len(ROWS), 32, dtype=torch.int64)
    labels.fill_(-100)
    segment_ids = torch.full((len(ROWS), 32), -1, dtype=torch.int32)
    taken = 0
    for row, lengths in enumerate(ROWS):
        column = 0
        for segment, length in enumerate(lengths):
            text, place = token_ids[taken : taken + length + 1], slice(column, column + length)
            input_ids[row, place], labels[row, place], segment_ids[row, place] = text[:-1], text[1:], segment
            taken, column = taken + length, column + length
    return input_ids, labels, segment_ids


@pytest.fixture
def model(config, everything) -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(config.model_copy(update={"init_std": 0.2}), 500, everything)
