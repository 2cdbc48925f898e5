"""model/latent/draft.py and the drafter's place in the core: its loss by a naive loop, its causality, its draws."""

import pytest
import torch
import torch.nn.functional as F

from model import AuxiliaryConfig, TransformerLM
from model.latent import FIGURES, LookAheadSampler, Trained
from model.latent.core import remaining_labels
from model.latent.draft import draft_losses, sample_tokens
from model.latent.policy import Head
from model.latent.rollout import Rollout, RolloutContext
from model.latent.trunk import LastBlock


def draw(model, segment_ids, step=0):
    sampler = LookAheadSampler(model.latent.auxiliary, segment_ids.shape[1], seed=0)
    return sampler.draw(segment_ids, Trained.alike(1.0), step)


@pytest.mark.parametrize("rollouts", [0, 1, 3])
def test_losses_and_gradients_equal_autograds(rollouts):
    torch.manual_seed(0)
    drafted, weight = torch.randn(7, 8, dtype=torch.double, requires_grad=True), torch.randn(20, 8, dtype=torch.double)
    previous = torch.randn(1 + rollouts, 7, 4, dtype=torch.double, requires_grad=True)
    after = torch.randn(20, 4, dtype=torch.double, requires_grad=True)
    labels, teachers = torch.randint(18, (7,)), torch.randn(rollouts, 7, 8, dtype=torch.double)
    valid = torch.tensor([False, True, True, False, True, True, True])
    loss = draft_losses(drafted, Head(weight, 18), previous, after, labels, teachers, valid)

    def log_probabilities(logits):  # two of the rows are padding
        return logits[:, :18].log_softmax(-1)

    expected = F.nll_loss(log_probabilities(drafted @ weight.T + previous[0] @ after.T), labels, reduction="none")
    for number, teacher in enumerate(teachers):
        draft = log_probabilities(drafted @ weight.T + previous[1 + number] @ after.T)
        kl = F.kl_div(draft, log_probabilities(teacher @ weight.T), reduction="none", log_target=True).sum(-1)
        expected = expected + kl / rollouts
    expected = (expected * valid).sum() / (2 if rollouts else 1)
    torch.testing.assert_close(loss, expected)
    inputs = (drafted, previous, after)
    for ours, theirs in zip(
        torch.autograd.grad(3 * loss, inputs), torch.autograd.grad(3 * expected, inputs), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_tokens_are_drawn_from_what_the_head_says():
    torch.manual_seed(0)
    hidden, weight = torch.randn(2, 8), torch.randn(12, 8)
    drawn = sample_tokens(hidden, Head(weight, 10), torch.rand(20_000, 2))
    for row in range(2):
        expected = (weight[:10] @ hidden[row]).softmax(0)
        counts = torch.bincount(drawn[:, row], minlength=10)
        assert len(counts) == 10  # none is padding
        torch.testing.assert_close(counts / 20_000, expected, atol=0.015, rtol=0)


def test_the_figure_equals_a_naive_loop(model, packed):
    input_ids, labels, segment_ids = packed
    core, look_ahead = model.latent, draw(model, segment_ids)._replace(draft_columns=torch.tensor([0, 4, 13, 21, 27]))
    rows, columns = look_ahead.rows.tolist(), look_ahead.draft_columns.tolist()
    rollouts, places = core.auxiliary.draft_rollouts, core.auxiliary.draft_length
    uniforms = torch.rand(places - 1, rollouts, len(rows) * len(columns))
    torch.nn.init.normal_(core.drafter.after.weight)
    look_ahead, losses = look_ahead._replace(draft_uniforms=uniforms), []
    remaining = remaining_labels(segment_ids, labels).tolist()
    with torch.no_grad():
        output = model(input_ids, labels, look_ahead=look_ahead)
        states, head = model.states(input_ids), Head(model.head_weight, model.vocab_size)
        text = LastBlock(model).keys_and_values(states.before_last)
        for number, row in enumerate(rows):
            for place, column in enumerate(columns):
                if remaining[row][column] < 2:
                    continue
                tokens = labels[row, column : column + places + 1].tolist()
                keys = tuple(part[row : row + 1, :, : column + 1] for part in text)
                drafted = core.drafter(
                    states.final[row, column][None, None], model.tokens(torch.tensor([[tokens[0]]])), keys, None, None
                )[:, 0, 0]
                until = slice(0, column + 2)
                context = RolloutContext.read(
                    model, input_ids[row : row + 1, until], type(states)(*(s[row : row + 1, until] for s in states))
                )
                paths = []
                for j in range(rollouts):
                    rollout, state = Rollout(core.transition, model, context, column + 1), states.final[row, column + 1]
                    path = [(tokens[0], state)]
                    for k in range(places - 1):
                        uniform = uniforms[k, j, number * len(columns) + place][None, None]
                        token = sample_tokens(state[None], head, uniform).item()
                        state = rollout.step(state[None, None], model.tokens(torch.tensor([[token]])))[0, 0]
                        path.append((token, state))
                    paths.append(path)
                for k in range(min(places, remaining[row][column] - 1)):

                    def log_q(before: int, k: int = k, drafted=drafted) -> torch.Tensor:
                        markov = core.drafter.after.weight @ core.drafter.before.weight[before]
                        return (model.head_weight @ drafted[k] + markov)[: model.vocab_size].log_softmax(0)

                    nll = -log_q(tokens[k])[tokens[k + 1]]
                    kl = [
                        F.kl_div(
                            log_q(path[k][0]), model.logits(path[k][1]).log_softmax(0), reduction="sum", log_target=True
                        )
                        for path in paths
                    ]
                    losses.append((nll + torch.stack(kl).mean()) / 2)
    total, count = output.auxiliary[FIGURES.index("draft")]
    assert count == len(losses) > 5
    assert total.item() == pytest.approx(torch.stack(losses).sum().item(), rel=1e-4)


def test_drafts_depend_on_nothing_after_the_token_they_follow(model, token_ids):
    before, after = token_ids[None, :32], token_ids[None, :32].clone()
    after[0, 9:] = (after[0, 9:] + 1) % 500
    drafted = []
    with torch.no_grad():
        for ids in (before, after):
            states = model.states(ids)
            text, allowed = LastBlock(model).keys_and_values(states.before_last), model.causal_mask[:31, :32]
            drafted.append(model.latent.drafter(states.final[:, :-1], model.tokens(ids[:, 1:]), text, allowed, None))
    one, other = drafted
    assert torch.equal(one[:, :, :8], other[:, :, :8])  # from h_t and x_{t+1}, t + 1 < 9
    assert not torch.isclose(one[:, :, 8:], other[:, :, 8:]).flatten(3).all(-1).any()


@pytest.mark.parametrize("rollouts", [0, 2])
def test_only_the_drafter_learns_from_its_loss(config, everything, packed, rollouts):
    input_ids, labels, segment_ids = packed
    torch.manual_seed(0)
    model = TransformerLM(config, 500, everything.model_copy(update={"draft_rollouts": rollouts}))
    torch.nn.init.normal_(model.latent.drafter.after.weight)
    plain, weights = draw(model, segment_ids), torch.zeros(len(FIGURES) - 1)
    losses = [
        model(input_ids, labels, look_ahead=plain._replace(weights=weights + share * (torch.arange(6) == 5))).loss_sum
        for share in (0.0, 1.0)
    ]
    names, parameters = zip(*model.named_parameters(), strict=True)
    off, on = (torch.autograd.grad(loss, parameters, allow_unused=True) for loss in losses)
    for name, one, other in zip(names, off, on, strict=True):
        moved = other is not None and not torch.equal(other, one if one is not None else torch.zeros_like(other))
        assert moved == name.startswith("latent.drafter"), name


def test_draws_are_a_function_of_the_step_and_change_no_other(everything):
    segments, off = torch.zeros(16, 64, dtype=torch.int32), everything.model_copy(update={"enable_draft": False})
    one, same, later, without = (
        LookAheadSampler(auxiliary, 64, seed=1).draw(segments, Trained.alike(1.0), step)
        for auxiliary, step in ((everything, 3), (everything, 3), (everything, 4), (off, 3))
    )
    assert all(map(torch.equal, one, same)) and not torch.equal(one.draft_uniforms, later.draft_uniforms)
    assert one.draft_columns.tolist() == sorted(one.draft_columns.tolist()) and len(one.draft_columns) == 1
    assert one.draft_uniforms.shape == (2, 2, len(one.rows))
    assert len(without.draft_columns) == len(without.draft_uniforms) == 0
    for name in ("rows", "columns", "spans"):
        assert torch.equal(getattr(one, name), getattr(without, name))


def test_rollouts_need_a_transition():
    with pytest.raises(ValueError, match="4 rollouts need enable_policy or enable_dynamics"):
        AuxiliaryConfig(enable_draft=True)
    assert AuxiliaryConfig(enable_draft=True, draft_rollouts=0).looks_ahead
