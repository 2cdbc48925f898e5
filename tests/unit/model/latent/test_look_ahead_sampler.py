"""model/latent/look_ahead_sampler.py: draws that a resume repeats, weights and depth in the warm-up."""

import pytest
import torch

from model import AuxiliaryConfig
from model.config import require_room
from model.latent.look_ahead_sampler import (
    OBJECTIVES,
    LookAheadSampler,
    Trained,
    depth_at,
    rows_to_look_ahead,
    weights_at,
)

SEGMENTS, HALF = torch.zeros(16, 64, dtype=torch.int32), Trained.alike(0.5)


def drawn(look_ahead) -> list[list[int]]:
    return [look_ahead.rows.tolist(), look_ahead.columns.tolist(), look_ahead.spans.tolist()]


def test_a_draw_depends_on_seed_step_rank_and_micro_batch():
    sampler = LookAheadSampler(AuxiliaryConfig(), 64, seed=1)
    state = torch.get_rng_state()
    first = sampler.draw(SEGMENTS, HALF, step=3, rank=1, micro_batch=2)
    assert torch.equal(torch.get_rng_state(), state)
    sampler.draw(SEGMENTS, HALF, step=4, rank=1, micro_batch=2)
    assert drawn(LookAheadSampler(AuxiliaryConfig(), 64, seed=1).draw(SEGMENTS, Trained.alike(0.9), 3, 1, 2)) == drawn(
        first
    )
    others = [(1, 4, 1, 2), (1, 3, 0, 2), (1, 3, 1, 1), (2, 3, 1, 2), (1, 31, 2, 0), (1, 3, 12, 0), (13, 1, 2, 0)]
    draws = [drawn(first)]
    for seed, step, rank, micro_batch in others:
        draws.append(drawn(LookAheadSampler(AuxiliaryConfig(), 64, seed).draw(SEGMENTS, HALF, step, rank, micro_batch)))
    assert all(draws[i] != draws[j] for i in range(len(draws)) for j in range(i))


def test_shapes_never_change_and_places_can_be_read():
    auxiliary = AuxiliaryConfig(rollout_depth=3)
    sampler = LookAheadSampler(auxiliary, 64, seed=0)
    columns = set()
    for step in range(200):
        look_ahead = sampler.draw(SEGMENTS, Trained.alike(step / 200), step)
        assert (len(look_ahead.rows), len(look_ahead.columns), len(look_ahead.spans)) == (2, 32, 1)
        assert len(set(look_ahead.rows.tolist())) == 2 and 0 <= look_ahead.rows.min() <= look_ahead.rows.max() < 16
        assert len(set(look_ahead.columns.tolist())) == 32
        assert look_ahead.columns.min() >= 3 and look_ahead.columns.max() < 64
        assert look_ahead.spans.min() >= 0 and look_ahead.spans.max() + auxiliary.span_length < 64
        columns |= set(look_ahead.columns.tolist())
    assert columns == set(range(3, 64))


def test_spans_cover_their_fraction_and_never_overlap():
    auxiliary = AuxiliaryConfig(span_length=4, span_mask_fraction=0.5)
    sampler = LookAheadSampler(auxiliary, 64, seed=0)
    for step in range(100):
        starts = sampler.draw(SEGMENTS, Trained.alike(1.0), step).spans
        assert len(starts) == 8 and (starts.diff() >= 4).all()
    assert (
        len(
            LookAheadSampler(AuxiliaryConfig(span_mask_fraction=0.99), 64, 0)
            .draw(SEGMENTS, Trained.alike(1.0), 0)
            .spans
        )
        == 7
    )


def test_a_row_too_short_is_refused_with_both_keys():
    for auxiliary, length, sentence in (
        (AuxiliaryConfig(enable_span_contrastive=True), 8, "span_length: 8 needs rows of 9 tokens"),
        (AuxiliaryConfig(enable_policy=True, rollout_depth=3), 3, "rollout_depth: 3 needs rows of 4 tokens"),
        (AuxiliaryConfig(enable_value=True), 31, "value_horizons: 64 needs rows of 32 tokens"),
    ):
        with pytest.raises(ValueError, match=rf"auxiliary\.{sentence}, and model\.seq_length is {length}"):
            LookAheadSampler(auxiliary, length, 0)
        require_room(auxiliary, length + 1)


def test_what_is_off_needs_no_room():
    value_only = AuxiliaryConfig(enable_value=True, value_horizons=(4,), rollout_depth=3)
    draw = LookAheadSampler(value_only, 3, 0).draw(SEGMENTS[:, :3], HALF, 0)
    assert len(draw.columns) == len(draw.spans) == 0 and draw.columns.dtype == draw.spans.dtype == torch.int64


def test_enough_rows_for_one_to_be_rolled_out():
    assert rows_to_look_ahead(AuxiliaryConfig(enable_policy=True)) == 8
    assert rows_to_look_ahead(AuxiliaryConfig(enable_dynamics=True, rollout_row_fraction=0.3)) == 4
    assert rows_to_look_ahead(AuxiliaryConfig(enable_value=True)) == 1


def test_weights_warm_up_for_parts_that_are_on():
    auxiliary = AuxiliaryConfig(enable_policy=True, enable_value=True, policy_kl_weight=0.5, value_weight=0.2)
    auxiliary = auxiliary.model_copy(update={"auxiliary_warmup_fraction": 0.1})
    assert OBJECTIVES == (
        "policy",
        "value",
        "rolled_out_value",
        "dynamics",
        "span_contrastive",
        "draft",
        "information_gain",
    )
    for share, scale in ((0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (1.0, 1.0)):
        expected = torch.tensor([0.5, 0.2, 0.2, 0.0, 0.0, 0.0, 0.0]) * scale
        torch.testing.assert_close(weights_at(auxiliary, Trained.alike(share)), expected)
    value_only = weights_at(AuxiliaryConfig(enable_value=True), Trained.alike(1.0))
    assert value_only.nonzero().flatten().tolist() == [1]  # nothing to roll out
    at_once = auxiliary.model_copy(update={"auxiliary_warmup_fraction": 0.0})
    assert weights_at(at_once, Trained.alike(0.0))[0] == 0.5 and depth_at(at_once, 0.0) == auxiliary.rollout_depth


def test_each_part_warms_up_by_itself():
    parts = ("policy", "value", "dynamics", "span_contrastive", "draft")
    weights = {"auxiliary_warmup_fraction": 0.1, "information_gain_weight": 0.1}
    auxiliary = AuxiliaryConfig(**{f"enable_{part}": True for part in parts}, **weights)
    whole = weights_at(auxiliary, Trained.alike(1.0))
    trained = Trained(transition=0.02, value_head=0.05, span_projector=0.3, drafter=0.1)
    shares = torch.tensor([0.2, 0.5, 0.2, 0.2, 1.0, 0.2, 0.5])
    torch.testing.assert_close(weights_at(auxiliary, trained) / whole, shares)
    alone = auxiliary.model_copy(update={"draft_rollouts": 0})  # and so taught by the tokens that come
    assert weights_at(alone, trained)[5] == whole[5]


def test_the_depth_grows_step_by_step():
    auxiliary = AuxiliaryConfig(auxiliary_warmup_fraction=0.1, rollout_depth=3)
    assert [depth_at(auxiliary, progress) for progress in (0.0, 0.09, 0.11, 0.19, 0.21, 1.0)] == [1, 1, 2, 2, 3, 3]
    assert depth_at(auxiliary.model_copy(update={"rollout_depth": 1}), 1.0) == 1
