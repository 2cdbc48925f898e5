"""model/latent/distillation.py: the drafter's figure by a naive loop, and who learns from it."""

import pytest
import torch
import torch.nn.functional as F

from model import TransformerLM
from model.latent import FIGURES, LookAheadSampler, Trained
from model.latent.core import remaining_labels
from model.latent.draft import sample_tokens
from model.latent.policy import Head
from model.latent.rollout import Rollout, RolloutContext
from model.latent.trunk import LastBlock


def draw(model, segment_ids, step=0):
    sampler = LookAheadSampler(model.latent.auxiliary, segment_ids.shape[1], seed=0)
    return sampler.draw(segment_ids, Trained.alike(1.0), step)


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
                text_path = [(tokens[k], states.final[row, column + 1 + k]) for k in range(places)]
                for k in range(min(places, remaining[row][column] - 1)):

                    def log_q(before: int, k: int = k, drafted=drafted) -> torch.Tensor:
                        markov = core.drafter.after.weight @ core.drafter.before.weight[before]
                        return (model.head_weight @ drafted[k] + markov)[: model.vocab_size].log_softmax(0)

                    nll = -log_q(tokens[k])[tokens[k + 1]]
                    kl = [
                        F.kl_div(
                            log_q(path[k][0]), model.logits(path[k][1]).log_softmax(0), reduction="sum", log_target=True
                        )
                        for path in [*paths, *([text_path] if k else [])]
                    ]
                    losses.append((nll + torch.stack(kl).mean()) / 2)
    total, count = output.auxiliary[FIGURES.index("draft")]
    assert count == len(losses) > 5
    assert total.item() == pytest.approx(torch.stack(losses).sum().item(), rel=1e-4)


@pytest.mark.parametrize("rollouts", [0, 2])
def test_only_the_drafter_learns_from_its_loss(config, everything, packed, rollouts):
    input_ids, labels, segment_ids = packed
    torch.manual_seed(0)
    model = TransformerLM(config, 500, everything.model_copy(update={"draft_rollouts": rollouts}))
    torch.nn.init.normal_(model.latent.drafter.after.weight)
    plain, weights = draw(model, segment_ids), torch.zeros(len(FIGURES) - 1)
    losses = [
        model(
            input_ids, labels, look_ahead=plain._replace(weights=weights + share * (torch.arange(len(weights)) == 5))
        ).loss_sum
        for share in (0.0, 1.0)
    ]
    names, parameters = zip(*model.named_parameters(), strict=True)
    off, on = (torch.autograd.grad(loss, parameters, allow_unused=True) for loss in losses)
    for name, one, other in zip(names, off, on, strict=True):
        moved = other is not None and not torch.equal(other, one if one is not None else torch.zeros_like(other))
        assert moved == name.startswith("latent.drafter"), name
