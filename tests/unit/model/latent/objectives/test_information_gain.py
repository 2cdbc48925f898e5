"""model/latent/objectives/information_gain.py: the gain by a naive loop, its bins, and who learns from it."""

import pytest
import torch

from model import AuxiliaryConfig, TransformerLM
from model.latent import FIGURES, OBJECTIVES, LookAheadSampler, Trained
from model.latent.objectives.information_gain import (
    LEAST_GAIN,
    LIKELIEST,
    MOST_GAIN,
    expected_gain,
    information_gains,
    two_hot_gain,
)
from model.latent.rollout import RolloutContext
from model.latent.trunk import LastBlock


@torch.no_grad()
def test_gains_equal_a_naive_loop(model_with_core, packed):
    model, (input_ids, labels, _) = model_with_core, packed
    torch.nn.init.normal_(model.latent.drafter.after.weight)
    drafter, columns = model.latent.drafter, torch.tensor([0, 4, 13, 21])
    states = model.states(input_ids)
    context = RolloutContext.read(model, input_ids, states)
    after = labels[:, columns + 1].clamp_min(0)
    known = torch.rand(after.shape)
    found = information_gains(drafter, model, context, columns, after, known)
    text = LastBlock(model).keys_and_values(states.before_last)
    for row in range(len(input_ids)):
        for place, column in enumerate(columns.tolist()):
            likeliest = model.logits(states.final[row, column]).softmax(-1).topk(LIKELIEST)
            keys, total = tuple(part[row : row + 1, :, : column + 1] for part in text), 0.0
            for token, share in zip(likeliest.indices, likeliest.values, strict=True):
                hidden, embedding = states.final[row, column][None, None], model.tokens(token)[None, None]
                drafted = drafter(hidden, embedding, keys, None, None)[0, 0, 0]
                markov = drafter.after.weight[: model.vocab_size] @ drafter.before(token)
                q = (model.logits(drafted) + markov).softmax(-1)[after[row, place]]
                total = total + share / likeliest.values.sum() * q
            torch.testing.assert_close(found[row, place], -known[row, place] - total.log(), rtol=1e-3, atol=1e-3)


def test_bins_keep_the_mean():
    gain = torch.tensor([-9.0, LEAST_GAIN, -0.3, 0.0, 5.43, MOST_GAIN, 40.0])
    shares = two_hot_gain(gain)
    torch.testing.assert_close(shares.sum(-1), torch.ones(7))
    assert ((shares > 0).sum(-1) <= 2).all()
    torch.testing.assert_close(expected_gain(shares.log()), gain.clamp(LEAST_GAIN, MOST_GAIN), rtol=1e-4, atol=1e-4)


def test_only_the_value_head_learns_from_it(config, everything, packed):
    input_ids, labels, segment_ids = packed
    torch.manual_seed(0)
    auxiliary = everything.model_copy(update={"information_gain_weight": 0.3})
    model = TransformerLM(config, 500, auxiliary)
    draw = LookAheadSampler(auxiliary, 32, seed=0).draw(segment_ids, Trained.alike(1.0), 0)
    assert draw.weights[OBJECTIVES.index("information_gain")] == pytest.approx(0.3)
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = []
    for share in (0.0, 1.0):
        weights = share * torch.eye(len(OBJECTIVES))[OBJECTIVES.index("information_gain")]
        output = model(input_ids, labels, look_ahead=draw._replace(weights=weights))
        gradients.append(torch.autograd.grad(output.loss_sum, parameters, allow_unused=True))
    for name, one, other in zip(names, *gradients, strict=True):
        moved = other is not None and not torch.equal(other, one if one is not None else torch.zeros_like(other))
        assert moved == name.startswith(("latent.value_head.up", "latent.value_head.gain_bins")), name
    total, count = output.auxiliary[FIGURES.index("information_gain")]
    assert count > 0 and torch.isfinite(total)


def test_off_is_off(config, everything):
    torch.manual_seed(0)
    model = TransformerLM(config, 500, everything)
    assert not any("gain" in name for name, _ in model.named_parameters())
    with pytest.raises(ValueError, match="needs enable_value, which learns the gain, and enable_draft"):
        AuxiliaryConfig(enable_value=True, information_gain_weight=0.1)
