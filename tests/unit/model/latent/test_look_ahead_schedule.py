"""model/latent/look_ahead_schedule.py: the draws of a step, and parts that are switched on later."""

import torch

from model.latent import LookAheadSampler, LookAheadSchedule, Trained

SEGMENTS = torch.zeros(3, 4, 32, dtype=torch.int32)  # of 3 micro-batches


def test_each_micro_batch_has_a_draw_of_its_own(model):
    core = model.latent
    schedule = LookAheadSchedule(core, 32, seed=5, tokens_per_run=1000, tokens_total=0, saved=None)
    draws = schedule.sample(SEGMENTS, batch_number=7, tokens_total=100, rank=1)
    sampler = LookAheadSampler(core.auxiliary, 32, seed=5)
    for micro_batch, draw in enumerate(draws):
        expected = sampler.draw(SEGMENTS[micro_batch], Trained.alike(1.0), 7, 1, micro_batch)
        assert all(map(torch.equal, draw, expected))
    assert len({tuple(draw.columns.tolist()) for draw in draws}) == 3


def test_without_a_core_nothing_is_drawn():
    schedule = LookAheadSchedule(None, 32, 0, tokens_per_run=1000, tokens_total=0, saved=None)
    assert schedule.sample(SEGMENTS, 0, 0) is None and schedule.state() == {}


def test_a_part_is_never_less_than_untrained(model):
    """A rollback may lead to before a part was switched on."""
    begun = LookAheadSchedule(model.latent, 32, 0, tokens_per_run=1000, tokens_total=500, saved={})
    behind = LookAheadSchedule(model.latent, 32, 0, tokens_per_run=1000, tokens_total=300, saved=begun.state())
    assert set(behind.trained(300)) == {0.0} and set(behind.trained(800)) == {0.5}
    assert set(begun.trained(600)) == {0.1}


def test_saved_parts_go_on_and_new_ones_start_now(model):
    saved = {"transition": 100}
    schedule = LookAheadSchedule(model.latent, 32, 0, tokens_per_run=1000, tokens_total=500, saved=saved)
    assert schedule.state() == {"transition": 100, "value_head": 500, "span_projector": 500, "drafter": 500}
    assert schedule.trained(600) == Trained(transition=0.5, value_head=0.1, span_projector=0.1, drafter=0.1)
