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
from model.row_weights import gain_weights


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


@pytest.mark.parametrize("detached", [True, False])
def test_the_value_head_learns_from_it_and_if_attached_the_trunk(config, everything, packed, detached: bool):
    input_ids, labels, segment_ids = packed
    torch.manual_seed(0)
    auxiliary = everything.model_copy(update={"information_gain_weight": 0.3, "value_detach_trunk": detached})
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
        learns = name.startswith(("latent.value_head.up", "latent.value_head.gain_bins"))
        assert moved == (learns or (not detached and not name.startswith("latent."))), name
    total, count = output.auxiliary[FIGURES.index("information_gain")]
    assert count > 0 and torch.isfinite(total)


def test_off_is_off(config, everything):
    torch.manual_seed(0)
    model = TransformerLM(config, 500, everything)
    assert not any("gain" in name for name, _ in model.named_parameters())
    with pytest.raises(ValueError, match="needs enable_value, which learns the gain, and enable_draft"):
        AuxiliaryConfig(enable_value=True, information_gain_weight=0.1)


def test_the_loss_of_the_trunk_is_weighed_by_the_expected_gain(config, everything, packed):
    """Nothing else changes: neither what is reported nor what the core learns, and no weight has a gradient."""
    input_ids, labels, segment_ids = packed
    strength, models = 2.0, []
    for weighting in (0.0, strength):
        torch.manual_seed(0)
        update = {"information_gain_weight": 0.1, "gain_weighting": weighting}
        models.append(TransformerLM(config, 500, everything.model_copy(update=update)))
        torch.nn.init.normal_(models[-1].latent.value_head.gain_bins.weight, std=0.5)
    plain, weighed = models
    plain.load_state_dict(weighed.state_dict())
    draw = LookAheadSampler(plain.auxiliary, 32, seed=0).draw(segment_ids, Trained.alike(1.0), 0)
    draw = draw._replace(weights=torch.zeros_like(draw.weights))
    reported, found = (model(input_ids, labels, look_ahead=draw) for model in models)
    assert torch.equal(found.token_nll, reported.token_nll) and torch.equal(found.auxiliary, reported.auxiliary)
    weights = gain_weights(plain.latent.information_gain(plain.states(input_ids).final), labels, strength).detach()
    assert weights.max() > 1.2 and weights.min() < 0.8

    logits = plain.logits(plain.hidden_states(input_ids)).flatten(0, 1)
    nll = torch.nn.functional.cross_entropy(logits, labels.flatten(), reduction="none", ignore_index=-100)
    expected = (nll * weights.flatten()).sum()
    torch.testing.assert_close(found.loss_sum, expected, rtol=1e-4, atol=1e-4)
    both = [
        torch.autograd.grad(loss, [parameter for name, parameter in model.named_parameters() if "latent" not in name])
        for model, loss in ((weighed, found.loss_sum), (plain, expected))
    ]
    torch.testing.assert_close(*both, rtol=1e-3, atol=1e-4)
    assert weighed(input_ids, labels).loss_sum == plain(input_ids, labels).loss_sum, "an evaluation has no weights"

    weighed.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(weighed(input_ids, labels, look_ahead=draw).loss_sum, found.loss_sum)


def test_weighing_by_the_gain_needs_one_that_is_learned():
    with pytest.raises(ValueError, match="needs information_gain_weight, by which the gain is learned"):
        AuxiliaryConfig(enable_value=True, gain_weighting=0.5)
