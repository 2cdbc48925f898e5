"""model/latent/core.py and its place in the model: causality, stop-gradients, segments, and off means off."""

import pytest
import torch
import torch.nn.functional as F

from model import AuxiliaryConfig, TransformerLM
from model.latent import FIGURES, OBJECTIVES, LookaheadCore, LookAheadSampler, Trained, expected_nll
from model.latent.core import remaining_labels
from model.latent.transition import dynamics_losses
from model.latent.value import two_hot
from model.tensors import States

SWITCHES = ["enable_policy", "enable_value", "enable_dynamics", "enable_span_contrastive", "enable_draft"]
DETACH = ["policy_detach_trunk", "value_detach_trunk", "dynamics_detach_trunk", "span_contrastive_detach_trunk"]


def only(everything: AuxiliaryConfig, switch: str, **changes) -> AuxiliaryConfig:
    return everything.model_copy(update={**dict.fromkeys(SWITCHES, False), switch: True, **changes})


def draw(model: TransformerLM, segment_ids: torch.Tensor, step: int = 0, progress: float = 1.0):
    sampler = LookAheadSampler(model.latent.auxiliary, segment_ids.shape[1], seed=0)
    return sampler.draw(segment_ids, Trained.alike(progress), step)


def gradients(output, model) -> list[torch.Tensor]:
    return list(torch.autograd.grad(output.loss_sum, list(model.parameters()), allow_unused=True))


# Causality


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_prediction_depends_on_no_token_after_its_path(model, token_ids, depth):
    before = token_ids[None, :32]
    after = before.clone()
    after[0, 9:] = (after[0, 9:] + 1) % 500
    with torch.no_grad():
        predicted = [model.latent.rollout(model, ids, depth)[-1] for ids in (before, after)]
        logits = [model.logits(states) for states in predicted]
        values = [model.latent.value(states) for states in predicted]
    for one, other in (predicted, logits, values):
        assert torch.equal(one[:, : 9 - depth], other[:, : 9 - depth])
        assert not torch.isclose(one[:, 9 - depth :], other[:, 9 - depth :]).flatten(2).all(dim=-1).any()


def test_value_and_span_query_depend_on_nothing_later(model, token_ids):
    before = token_ids[None, :32]
    after = before.clone()
    after[0, 9:] = (after[0, 9:] + 1) % 500
    with torch.no_grad():
        for part in (model.latent.value, model.latent.span_projector):
            one, other = (part(model.hidden_states(ids)) for ids in (before, after))
            assert torch.equal(one[:, :9], other[:, :9]) and not torch.equal(one[:, 9], other[:, 9])


# Stop-gradients


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize(("switch", "key"), list(zip(SWITCHES, DETACH, strict=False)))
def test_stopped_gradients_are_none_at_all(config, everything, packed, switch, key, detach):
    input_ids, labels, segment_ids = packed
    torch.manual_seed(0)
    core = LookaheadCore(config, only(everything, switch, **{key: detach}), 64)
    look_ahead = LookAheadSampler(core.auxiliary, 32, 0).draw(segment_ids, Trained.alike(1.0), 0)
    trunk = TransformerLM(config.model_copy(update={"tie_embeddings": False}), 500)
    states, token_nll = States(*torch.randn(3, 4, 32, 32).unbind()), torch.rand(4, 32)
    leaves = [*(x.requires_grad_() for x in (*states, token_nll)), *trunk.parameters()]  # with embeddings and head
    added, figures = core(trunk, look_ahead, states, input_ids, None, labels, token_nll)
    assert not figures.requires_grad
    into_hidden, *others = torch.autograd.grad(added, leaves, retain_graph=True, allow_unused=True)
    assert all(gradient is None for gradient in others)
    assert (into_hidden is None) if detach else into_hidden.any()
    assert all(gradient.any() for gradient in torch.autograd.grad(added, list(core.parameters())))


@pytest.mark.parametrize("detach", DETACH)
def test_detached_objectives_keep_the_trunks_gradient(config, everything, packed, detach):
    """To the bit: only the gradient of the cross-entropy reaches the trunk."""
    input_ids, labels, segment_ids = packed
    switch = dict(zip(DETACH, SWITCHES, strict=False))[detach]
    with_and_without = []
    for attached in (False, True):
        torch.manual_seed(0)
        model = TransformerLM(config, 500, only(everything, switch, **{detach: not attached}))
        look_ahead = draw(model, segment_ids)
        trunk = [p for name, p in model.named_parameters() if not name.startswith("latent")]
        plain = torch.autograd.grad(model(input_ids, labels).loss_sum, trunk)
        blended = torch.autograd.grad(model(input_ids, labels, look_ahead=look_ahead).loss_sum, trunk)
        with_and_without.append(all(map(torch.equal, plain, blended)))
    assert with_and_without == [True, False]


def test_the_policy_never_moves_an_untied_head(config, everything, packed):
    input_ids, labels, segment_ids = packed
    model = TransformerLM(config.model_copy(update={"tie_embeddings": False}), 500, only(everything, "enable_policy"))
    plain = torch.autograd.grad(model(input_ids, labels).loss_sum, model.lm_head.weight)
    blended = torch.autograd.grad(
        model(input_ids, labels, look_ahead=draw(model, segment_ids)).loss_sum, model.lm_head.weight
    )
    assert torch.equal(*plain, *blended)


def test_a_detached_value_leaves_the_transition_alone(model, packed):
    input_ids, labels, segment_ids = packed
    look_ahead = draw(model, segment_ids)
    one_hot = [torch.eye(len(OBJECTIVES))[OBJECTIVES.index(name)] for name in ("rolled_out_value", "dynamics")]
    transition = list(model.latent.transition.parameters())
    for weights, moved in zip(one_hot, (False, True), strict=True):
        output = model(input_ids, labels, look_ahead=look_ahead._replace(weights=weights))
        gradient = torch.autograd.grad(output.loss_sum, transition, allow_unused=True)
        assert any(g is not None and g.any() for g in gradient) == moved


@pytest.mark.parametrize("policy_detached", [True, False])
def test_policy_and_dynamics_detach_by_their_own_keys(config, everything, packed, policy_detached):
    input_ids, labels, segment_ids = packed
    keys = {"policy_detach_trunk": policy_detached, "dynamics_detach_trunk": not policy_detached}
    torch.manual_seed(0)
    model = TransformerLM(config, 500, everything.model_copy(update=keys))
    look_ahead = draw(model, segment_ids)
    up = model.blocks[0].mlp.up.weight
    (plain,) = torch.autograd.grad(model(input_ids, labels).loss_sum, up)
    for name, detached in (("policy", policy_detached), ("dynamics", not policy_detached)):
        weights = torch.eye(len(OBJECTIVES))[OBJECTIVES.index(name)]
        output = model(input_ids, labels, look_ahead=look_ahead._replace(weights=weights))
        assert torch.equal(torch.autograd.grad(output.loss_sum, up)[0], plain) == detached


# Segments, padding, and every figure by a naive loop


def test_remaining_labels_of_each_segment(packed):
    _, labels, segment_ids = packed
    counts = remaining_labels(segment_ids, labels)
    assert counts[0].tolist() == [*range(20, 0, -1), *range(12, 0, -1)]
    assert counts[1].tolist() == [*range(32, 0, -1)]
    assert counts[2].tolist() == [3, 2, 1, *range(9, 0, -1), 1, *range(14, 0, -1), *[0] * 5]
    assert counts[3].tolist() == [*range(7, 0, -1), *[0] * 25]
    labels = labels.clone()
    labels[1, 10] = -100  # an ignored label ends what can be compared
    assert remaining_labels(segment_ids, labels)[1, 8:12].tolist() == [2, 1, 0, 21]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_figures_equal_a_naive_loop_over_segments(model, packed, depth):
    input_ids, labels, segment_ids = packed
    look_ahead = draw(model, segment_ids)._replace(depth=torch.tensor(depth))
    core, auxiliary = model.latent, model.latent.auxiliary
    with torch.no_grad():
        output = model(input_ids, labels, look_ahead=look_ahead)
        hidden, embeddings = model.hidden_states(input_ids), model.tokens(input_ids)

    def same_segment(row: int, first: int, last: int) -> bool:
        return last < 32 and segment_ids[row, first] == segment_ids[row, last] != -1

    def value_loss(state, row: int, column: int) -> list[float]:
        losses = []
        for horizon, logits in zip(auxiliary.value_horizons, core.value(state), strict=True):
            ahead = [output.token_nll[row, t] for t in range(column, column + horizon) if same_segment(row, column, t)]
            if 2 * len(ahead) >= horizon:
                losses.append(-(two_hot(torch.stack(ahead).mean()) * logits.log_softmax(-1)).sum())
        return losses

    expected = {name: [] for name in OBJECTIVES}
    with torch.no_grad():
        states = model.states(input_ids)
        for row in range(4):
            for column in range(32):
                if segment_ids[row, column] >= 0:
                    expected["value"] += value_loss(hidden[row, column], row, column)
                if row not in look_ahead.rows:
                    continue
                state, read = hidden[row, column], slice(0, column + 1)
                so_far = States(*(part[row : row + 1, read] for part in states))
                rollout = core.begin_rollout(model, input_ids[row : row + 1, read], so_far, start=column)
                for step in range(1, depth + 1):
                    if not same_segment(row, column, column + step):
                        break
                    target = column + step
                    state = rollout.step(state[None, None], embeddings[row, target][None, None])[0, 0]
                    expected["dynamics"].append(dynamics_losses(state, hidden[row, target]))
                    if target in look_ahead.columns:
                        teacher, student = (model.logits(h).log_softmax(-1) for h in (hidden[row, target], state))
                        expected["policy"].append(F.kl_div(student, teacher, reduction="sum", log_target=True))
                        expected["rolled_out_value"] += value_loss(state, row, target)
    for name, losses in expected.items():
        total, count = output.auxiliary[OBJECTIVES.index(name)]
        if name not in ("span_contrastive", "draft", "information_gain"):  # these have tests of their own
            assert count == len(losses) > 0, name
            assert total.item() == pytest.approx(torch.stack(losses).sum().item(), rel=1e-4), name
    total, count = output.auxiliary[OBJECTIVES.index("span_contrastive")]
    assert count == sum(same_segment(row, s, s + auxiliary.span_length) for row in range(4) for s in look_ahead.spans)
    assert 1 < count < 4 * len(look_ahead.spans) and total > 0
    assert 0.1 < output.auxiliary[FIGURES.index("latent_variance"), 0] < 10


def test_predictions_read_no_other_document(model, packed):
    """With attention kept inside documents too, one document's tokens change no prediction about another."""
    input_ids, labels, segment_ids = packed
    changed = input_ids.clone()
    changed[0, :20] = (changed[0, :20] + 1) % 500  # the first of the two documents of row 0
    look_ahead = draw(model, segment_ids)
    look_ahead = look_ahead._replace(
        rows=torch.tensor([0]),
        columns=torch.arange(20, 32),  # read in the second
        draft_uniforms=look_ahead.draft_uniforms[..., : len(look_ahead.draft_columns)],
    )
    with torch.no_grad():
        one, other = (model(ids, labels, segment_ids, look_ahead=look_ahead).auxiliary for ids in (input_ids, changed))
    same = (one == other).all(dim=1)
    assert same[FIGURES.index("policy")] and same[FIGURES.index("rolled_out_value")]
    assert not same[FIGURES.index("dynamics")]


def test_a_micro_batch_without_labels_adds_nothing(model, packed):
    input_ids = packed[0]
    nothing = torch.full_like(input_ids, -100)
    output = model(input_ids, nothing, look_ahead=draw(model, torch.full_like(input_ids, -1)))
    assert output.loss_sum == 0 and not output.auxiliary.any()
    assert all(not gradient.any() for gradient in gradients(output, model) if gradient is not None)


def test_the_value_of_a_path_is_its_cost_and_where_it_ends(model):
    states, costs = torch.randn(5, 32), torch.rand(5, 3)
    with torch.no_grad():
        expected = costs.sum(1, keepdim=True) + torch.tensor([4, 16]) * expected_nll(model.latent.value(states))
        torch.testing.assert_close(model.latent.path_value(costs, states), expected)


# How it joins the loss


def test_the_loss_is_cross_entropy_plus_weighted_means(model, packed):
    input_ids, labels, segment_ids = packed
    look_ahead = draw(model, segment_ids)
    output = model(input_ids, labels, look_ahead=look_ahead)
    means = output.auxiliary[:, 0] / output.auxiliary[:, 1].clamp_min(1)  # the information gain is off
    num_labels = (labels != -100).sum()
    expected = model(input_ids, labels).loss_sum + num_labels * (look_ahead.weights * means[: len(OBJECTIVES)]).sum()
    torch.testing.assert_close(output.loss_sum, expected)
    assert not output.auxiliary.requires_grad and output.auxiliary.dtype == torch.float32
    # so do the gradients, one objective at a time
    parts = [
        gradients(model(input_ids, labels, look_ahead=look_ahead._replace(weights=row)), model)
        for row in torch.diag(look_ahead.weights)
    ]
    plain = gradients(
        model(input_ids, labels, look_ahead=look_ahead._replace(weights=torch.zeros(len(OBJECTIVES)))), model
    )
    blended = gradients(output, model)
    for whole, base, *each in zip(blended, plain, *parts, strict=True):
        torch.testing.assert_close(whole, base + sum(part - base for part in each), atol=2e-4, rtol=1e-3)


def test_bf16_autocast_keeps_losses_and_gradients_in_fp32(model, packed):
    input_ids, labels, segment_ids = packed
    look_ahead = draw(model, segment_ids)
    exact = model(input_ids, labels, look_ahead=look_ahead)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(input_ids, labels, look_ahead=look_ahead)
    assert output.auxiliary.dtype == torch.float32
    torch.testing.assert_close(output.auxiliary, exact.auxiliary, rtol=0.03, atol=0)
    for ours, theirs in zip(gradients(output, model), gradients(exact, model), strict=True):
        assert ours.dtype == torch.float32 and (ours - theirs).norm() <= 0.1 * theirs.norm()


def test_gradients_equal_those_in_float64(model, packed):
    input_ids, labels, segment_ids = packed
    look_ahead = draw(model, segment_ids)
    ours = gradients(model(input_ids, labels, look_ahead=look_ahead), model)
    theirs = gradients(model.double()(input_ids, labels, look_ahead=look_ahead), model)
    for single, double in zip(ours, theirs, strict=True):
        assert (single - double).norm() <= 1e-4 * double.norm()


def test_compiled_once_for_all_depths(model, packed):
    input_ids, labels, segment_ids = packed
    depths = map(torch.tensor, (1, 3, 1, 3))
    draws = [draw(model, segment_ids, step)._replace(depth=depth) for step, depth in enumerate(depths)]
    other = segment_ids.roll(1, dims=0)
    draws[2:] = [look_ahead._replace(segment_ids=other) for look_ahead in draws[2:]]
    expected = [model(input_ids, labels, look_ahead=look_ahead) for look_ahead in draws]
    gradient = gradients(expected[-1], model)
    model.compile(backend="aot_eager", fullgraph=True)
    outputs = [model(input_ids, labels, look_ahead=draws[0])]
    with torch.compiler.set_stance("fail_on_recompile"):
        outputs += [model(input_ids, labels, look_ahead=look_ahead) for look_ahead in draws[1:]]
    for ours, theirs in zip(outputs, expected, strict=True):
        torch.testing.assert_close(ours.loss_sum, theirs.loss_sum)
        torch.testing.assert_close(ours.auxiliary, theirs.auxiliary)
    for ours, theirs in zip(gradients(outputs[-1], model), gradient, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


# Off means off


def test_with_everything_off_the_bits_are_the_baselines(config, packed):
    input_ids, labels, _ = packed
    results = []
    for auxiliary in (
        (),
        (AuxiliaryConfig(),),
        (AuxiliaryConfig(enable_adaptive_sources=True, enable_curriculum=True),),
    ):
        torch.manual_seed(7)
        model = TransformerLM(config, 500, *auxiliary)
        assert model.latent is None and not any(name.startswith("latent") for name, _ in model.named_modules())
        output = model(input_ids, labels)
        assert type(output).__name__ == "TrainingOutput" and len(output) == 2
        results.append([torch.get_rng_state(), *output, *model.parameters(), *gradients(output, model)])
    for other in results[1:]:
        assert len(other) == len(results[0]) and all(map(torch.equal, results[0], other))


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_part_changes_no_weight_of_the_trunk_and_no_draw(config, everything, packed, switch):
    input_ids, labels, segment_ids = packed
    torch.manual_seed(7)
    plain = TransformerLM(config, 500)
    state = torch.get_rng_state()
    torch.manual_seed(7)
    model = TransformerLM(config, 500, only(everything, switch))
    assert torch.equal(torch.get_rng_state(), state)
    names = {name.split(".")[1] for name, _ in model.named_parameters() if name.startswith("latent")}
    others = {"enable_value": "value_head", "enable_span_contrastive": "span_projector", "enable_draft": "drafter"}
    part = others.get(switch, "transition")
    assert names == {part}
    for name, parameter in plain.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter)
    output = model(input_ids, labels, look_ahead=draw(model, segment_ids))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(output.token_nll, plain(input_ids, labels).token_nll)
    assert torch.equal(model(input_ids, labels).loss_sum, plain(input_ids, labels).loss_sum)
    on = {name for name, count in zip(FIGURES, output.auxiliary[:, 1], strict=True) if count}
    assert on - {"latent_variance"} == {switch.removeprefix("enable_")}


def test_rows_too_short_for_the_core_are_refused(config, everything):
    with pytest.raises(ValueError, match=r"auxiliary\.span_length: 32 needs rows of 33 tokens"):
        TransformerLM(config, 500, everything.model_copy(update={"span_length": 32}))


def test_a_model_on_the_meta_device_takes_no_memory(config, everything):
    with torch.device("meta"):
        model = TransformerLM(config, 500, everything)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_counts_of_parameters_and_flops(config, everything):
    everything = everything.model_copy(update={"enable_draft": False})  # counted below
    plain, model = TransformerLM(config, 512), TransformerLM(config, 512, everything)
    step, outcome = 64 * 64 + 64 * 64 + 64 * 32 + 64 * 16 + 16 * 64 + 16 * 32, 32 * 16
    value, span = 32 * 32 + 32 * 2 * 64, 32 * 32 + 32 * 32
    biases = (64 + 64 + 32) + 3 * 64 + (16 + 16 + 32 + 32) + (32 + 2 * 64) + (32 + 32)  # with the norms' weights
    assert model.num_parameters() - plain.num_parameters() == step + outcome + value + span + biases
    # 3 steps in 3/4 of the rows, each with 2 products of attention over 32 slots and 32 keys, and through a block whose
    # weights get no gradient; slots, keys and values are computed once; 1/4 of the positions are read; 4 spans in 32
    each, once = 6 * (step + 2 * (16 + 32) * 32) + 4 * 12 * 32 * 32, 6 * (64 * 16 + outcome) + 2 * 2 * 32 * 32
    rollouts, policy = (each * 3 + once) * 0.75, (2 + 4 * 3) * 512 * 32 * 0.25
    values, spans = 6 * value * (1 + 3 * 0.25), 6 * span * 4 / 32
    assert model.flops_per_token() - plain.flops_per_token() == round(rollouts + policy + values + spans)


@pytest.mark.parametrize("rollouts", [0, 2])
def test_counts_of_the_drafter(config, everything, rollouts):
    plain = TransformerLM(config, 512, everything.model_copy(update={"enable_draft": False}))
    model = TransformerLM(config, 512, everything.model_copy(update={"draft_rollouts": rollouts}))
    matrices, markov = 64 * 32 + 32 * 64 + 64 * 64 + 2 * 64 * 3 * 32, 512 * 64
    assert model.num_parameters() - plain.num_parameters() == matrices + 2 * markov + 4 * 32 + 64 + 8 + 32
    # at 1 in 64 positions: three places, of which the head reads drafts and teachers; two steps of each rollout
    step = 64 * 64 + 64 * 64 + 64 * 32 + 64 * 16 + 16 * 64 + 16 * 32 + 32 * 16 + 12 * 32**2 + 2 * 32 * 32
    drafts = 6 * (matrices + (2 + rollouts) * 3 * markov) + 6 * 3 * 32 * 512 + 4 * 32 * 32
    flops = (drafts + 2 * rollouts * 2 * (step + 2 * 32 * 512)) / 64
    assert model.flops_per_token() - plain.flops_per_token() == pytest.approx(flops, abs=1)
