"""Losses by source, summed in whole numbers."""

import math

import pytest
import torch

from engine.data.source_losses import SourceLosses, mean_losses, sum_over_ranks
from engine.device.ranks import Ranks

ALONE = Ranks(0, 1, torch.device("cpu"), None)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("rows", [1, 8, 16, 4096])
def test_rows_that_are_not_finite_make_the_mean_nan(value: float, rows: int):
    losses, labels = SourceLosses(2, ALONE.device), torch.zeros(rows, 4, dtype=torch.int64)
    losses.add(torch.full((rows, 4), 2.0), labels, torch.zeros(rows, dtype=torch.int64))
    assert sum_over_ranks(losses.sums.clone(), ALONE)[0] == 2.0
    losses.add(torch.full((rows, 4), value), labels, torch.ones(rows, dtype=torch.int64))
    assert math.isnan(sum_over_ranks(losses.sums, ALONE)[0])


def test_means_are_over_labels_in_total_and_by_source():
    losses = SourceLosses(3, ALONE.device)
    labels = torch.tensor([[1, 1], [1, -100]])
    losses.add(torch.tensor([[1.0, 3.0], [5.0, 0.0]]), labels, torch.tensor([0, 2]))
    mean, sums = sum_over_ranks(losses.sums, ALONE)
    assert mean == 3.0 and sums[1].tolist() == [2, 0, 1]
    assert mean_losses(sums) == (3.0, [2.0, None, 5.0])
