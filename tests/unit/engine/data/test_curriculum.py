"""engine/data/curriculum.py: when thresholds come and what they are; over ranks and restarts, to the bit."""

import json
from pathlib import Path

import pytest
import torch

from engine.data.curriculum import BIN_NATS, BINS, DELAY_STEPS, Curriculum, quantiles
from engine.device.ranks import Ranks
from model.row_weights import QUANTILES, row_losses
from tests.helpers.processes import run_ranks
from tests.helpers.workers import curriculum
from tests.helpers.workers.curriculum import CONFIG, STEPS, rows, take

ALONE = Ranks(0, 1, torch.device("cpu"), None)


def test_quantiles_are_exact_to_a_bin():
    losses = torch.rand(20_000, generator=torch.Generator().manual_seed(1)).square() * 10 + 1
    counts = torch.histc(losses, BINS, 0.0, BINS * BIN_NATS).long()
    expected = torch.quantile(losses, torch.tensor(QUANTILES)).tolist()
    assert quantiles(counts) == pytest.approx(expected, abs=BIN_NATS)
    assert quantiles(counts) == sorted(quantiles(counts))


def test_quantiles_of_a_single_row_lie_in_its_bin():
    counts = torch.zeros(BINS, dtype=torch.int64)
    counts[100] = 1
    assert all(2.0 <= loss <= 2.02 for loss in quantiles(counts))


def test_thresholds_come_after_the_burn_in_and_the_delay():
    told = take(Curriculum(CONFIG, ALONE), 0, STEPS, ALONE)
    changes = [step for step in range(1, STEPS) if told[step] != told[step - 1]]
    # 96 labels a step: an interval of 300 is 4 steps, and the burn-in of 700 is over within the second one
    assert changes == [step + DELAY_STEPS for step in range(8, STEPS - DELAY_STEPS, 4)]
    assert told[0] is None


def test_thresholds_are_the_quantiles_of_the_interval():
    told = take(Curriculum(CONFIG, ALONE), 0, STEPS, ALONE)
    token_nll, labels = rows()
    interval = slice(4, 8)  # the second one, four steps long, is the first that ends after the burn-in
    losses = row_losses(token_nll[interval].flatten(0, 1), labels[interval].flatten(0, 1))
    losses = losses[(labels[interval] != -100).any(-1).flatten()]
    expected = losses.sort().values[(torch.tensor(QUANTILES) * len(losses)).long()].tolist()
    assert told[8 + DELAY_STEPS] == pytest.approx(expected, abs=BIN_NATS)


@pytest.mark.parametrize("middle", [1, 7, 9, 13, 20])
def test_a_restart_changes_no_bit(middle):
    whole = Curriculum(CONFIG, ALONE)
    expected = take(whole, 0, STEPS, ALONE)
    first, second = Curriculum(CONFIG, ALONE), Curriculum(CONFIG, ALONE)
    told = take(first, 0, middle, ALONE)
    second.load(json.loads(json.dumps(first.state())))
    assert told + take(second, middle, STEPS, ALONE) == expected
    assert second.state() == whole.state()


def test_a_skipped_step_changes_no_bit():
    whole, other = Curriculum(CONFIG, ALONE), Curriculum(CONFIG, ALONE)
    expected = take(whole, 0, STEPS, ALONE)
    told = take(other, 0, 9, ALONE)
    token_nll, labels = rows()
    other.add(token_nll[0] * torch.nan, labels[0])
    other.forget_step()
    assert told + take(other, 9, STEPS, ALONE) == expected
    assert other.state() == whole.state()


def test_two_processes_continue_one_and_one_continues_two(tmp_path: Path):
    whole = Curriculum(CONFIG, ALONE)
    expected = take(whole, 0, STEPS, ALONE)
    first, last = Curriculum(CONFIG, ALONE), Curriculum(CONFIG, ALONE)
    take(first, 0, 6, ALONE)  # to the middle of an interval
    path = tmp_path / "state.json"
    path.write_text(json.dumps(first.state()))
    run_ranks(Path(curriculum.__file__), str(path), "6", "15", processes=2)
    assert json.loads((tmp_path / "state.json.told").read_text()) == expected[6:15]
    last.load(json.loads(path.read_text()))
    assert take(last, 15, STEPS, ALONE) == expected[15:]
    assert last.state() == whole.state()
