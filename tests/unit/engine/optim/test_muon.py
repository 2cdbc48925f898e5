"""Muon: what a step is, against torch's own and singular values; and runs that stop, go on and change optimizers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine import train
from engine.checkpoint.folder import CURRENT, CheckpointFolder
from engine.errors import Interrupted
from engine.events import read
from engine.optim.muon import Fragment, MuonAdamW, MuonSettings, normalised_rows
from engine.optim.optimizers import muon
from engine.optim.orthogonal import ADAMW_RMS, coefficients
from engine.optim.schedule import MOMENTUM
from model import AuxiliaryConfig, ModelConfig, TransformerLM
from tests.helpers.training import TOKENS_PER_STEP, by_step, signal_after, train_with

SHAPE = ModelConfig(hidden_size=32, num_layers=2, num_heads=2, seq_length=16, tie_embeddings=False)
EVERYTHING = AuxiliaryConfig(
    enable_policy=True, enable_value=True, enable_dynamics=True, enable_span_contrastive=True, value_horizons=(4,)
)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / CURRENT, weights_only=True)["model"]


def test_a_step_is_that_of_torchs_muon():
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Sequential(torch.nn.Linear(24, 64), torch.nn.Linear(64, 24)) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    mine = muon(ours, 0.02, 0.1, torch.bfloat16)
    reference = [
        torch.optim.Muon([theirs[0].weight, theirs[1].weight], 0.02, 0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([theirs[0].bias, theirs[1].bias], 0.02, (0.9, 0.95), weight_decay=0.0),
    ]
    x = torch.randn(100, 24)
    for _ in range(5):
        for model in (ours, theirs):
            (model(x) - x.roll(1, 1)).square().mean().backward()
        mine.step()
        for optimizer in reference:
            optimizer.step()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=2e-4, rtol=0)
        ours.zero_grad()
        theirs.zero_grad()


def test_which_weights_muon_steps_and_how_fused_ones_split():
    model = TransformerLM(SHAPE, 64, EVERYTHING)
    optimizer = muon(model, 1e-2, 0.1, torch.float32)
    names = {parameter: name for name, parameter in model.named_parameters()}
    *with_muon, outputs, core_outputs, _, _ = optimizer.param_groups  # the trunk's and the core's of each kind
    assert {names[p] for group in with_muon for p in group["params"]} == optimizer.matrices.keys()
    assert {name.split(".", 2)[2] for name in optimizer.matrices if name.startswith("blocks")} == {
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "mlp.up.weight",
        "mlp.down.weight",
    }
    assert [names[p] for p in outputs["params"]] == ["lm_head.weight"]
    assert [names[p] for p in core_outputs["params"]] == ["latent.value_head.bins.weight"]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1] * 4 + [0.0] * 2

    fused = model.blocks[0].attention.in_proj_weight
    before = fused.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    fused.grad[:32] *= 1000  # were it one matrix, keys and values would hardly move
    optimizer.step()
    moved = (fused - before * (1 - 1e-2 * 0.1)).view(3, 32, 32).square().mean((1, 2)).sqrt()
    assert moved.tolist() == pytest.approx([1e-2 * ADAMW_RMS] * 3, rel=0.2)


@pytest.mark.parametrize(
    "settings",
    [
        MuonSettings(),
        MuonSettings(False, True, True, polynomials=coefficients("polar_express", 6)),
        MuonSettings(soap=True),
    ],
    ids=["plain", "every option", "soap"],
)
def test_flat_pieces_that_ranks_share_make_the_step_of_whole_matrices(settings: MuonSettings):
    """Two ranks by hand: three parameters in one flat tensor, cut in the middle of the second."""
    torch.manual_seed(0)
    a, b, c = (1, 8, 12), (3, 6, 6), (1, 10, 8)  # of 96, 108 and 80 numbers
    start, gradient, cut = torch.randn(284), torch.randn(284), 150
    left = [Fragment(a, 0, 0, 96, False), Fragment(b, 0, 96, 54, True), Fragment(c, 0, 0, 0, False)]
    right = [Fragment(a, 0, 0, 0, False), Fragment(b, 54, 0, 54, True), Fragment(c, 0, 54, 80, False)]
    both = [Fragment(a, 0, 0, 96, False), Fragment(b, 0, 96, 108, False), Fragment(c, 0, 204, 80, False)]

    def stepped(part: slice, fragments: list[Fragment], sum_over_ranks: Callable) -> torch.Tensor:
        flat = torch.nn.Parameter(start[part].clone())
        flat.grad = gradient[part].clone()
        groups = [{"params": [flat], "weight_decay": 0.1, "muon": True}]
        optimizer = MuonAdamW(groups, {}, 0.1, torch.float32, settings)
        optimizer.fragments, optimizer.sum_over_ranks = {flat: fragments}, sum_over_ranks
        optimizer.step()
        return flat.detach()

    halves = ((slice(0, cut), left), (slice(cut, None), right))
    parts: list[torch.Tensor] = []
    for half in halves:  # what each adds to the sum
        stepped(*half, lambda tensor: parts.append(tensor.clone()))
    made = [stepped(*half, lambda tensor: tensor.copy_(sum(parts))) for half in halves]
    torch.testing.assert_close(torch.cat(made), stepped(slice(None), both, lambda tensor: pytest.fail("nobody shares")))


def stepped(settings: MuonSettings, gradients: list[torch.Tensor], **group) -> list[torch.Tensor]:
    """A weight of ones and minus ones after each step."""
    weight = torch.nn.Parameter(torch.ones_like(gradients[0]))
    with torch.no_grad():
        weight[:, ::2] = -1
    groups = [{"params": [weight], "weight_decay": 0.5, "muon": True, **group}]
    optimizer = MuonAdamW(groups, {}, 0.1, torch.float32, settings)
    optimizer.fragments = {weight: [Fragment((1, *weight.shape), 0, 0, weight.numel(), False)]}
    made = []
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
        made.append(weight.detach().clone())
    return made


def test_cautious_decay_takes_what_the_update_makes_smaller_only():
    torch.manual_seed(0)
    gradient = torch.randn(16, 24)
    (plain,), (cautious,) = (stepped(MuonSettings(cautious=each), [gradient]) for each in (False, True))
    start = torch.ones(16, 24)
    start[:, ::2] = -1
    update = start * (1 - 0.1 * 0.5) - plain  # with the learning rate
    smaller = update * start > 0
    assert smaller.any() and not smaller.all()
    torch.testing.assert_close(cautious, torch.where(smaller, plain, start - update))


def test_momentum_and_nesterov_are_those_asked_for():
    torch.manual_seed(0)
    first, second = torch.randn(2, 16, 24)
    usual = stepped(MuonSettings(), [first, second])
    assert all(map(torch.equal, usual, stepped(MuonSettings(), [first, second], momentum=MOMENTUM)))
    forgetful = stepped(MuonSettings(nesterov=False), [first, second], momentum=0.0)
    alone = stepped(MuonSettings(nesterov=False), [second], momentum=0.0)
    start = stepped(MuonSettings(), [torch.zeros(16, 24)])[0] / (1 - 0.1 * 0.5)
    decayed = 1 - 0.1 * 0.5
    torch.testing.assert_close(forgetful[1] - forgetful[0] * decayed, alone[0] - start * decayed)
    heavy = stepped(MuonSettings(nesterov=False), [first, second])
    torch.testing.assert_close(heavy[0], forgetful[0])
    assert not torch.allclose(heavy[1], usual[1], atol=1e-3)


def test_normalised_rows_are_equal_and_together_as_large_as_before():
    torch.manual_seed(0)
    matrices = torch.randn(2, 30, 8) * torch.linspace(0.1, 3, 30)[:, None]
    made, squares = normalised_rows(matrices, torch.zeros_like(matrices))
    rows = made.norm(dim=2)
    torch.testing.assert_close(rows, rows[:, :1].expand(2, 30))
    torch.testing.assert_close(made.norm(dim=(1, 2)), matrices.norm(dim=(1, 2)))
    torch.testing.assert_close(squares, 0.05 * matrices.square().mean(-1, keepdim=True).expand(2, 30, 8))
    again, later = normalised_rows(torch.ones(2, 30, 8), squares)
    assert again[0, 0, 0] > 2 * again[0, -1, 0]  # rows that were small before move more
    torch.testing.assert_close(later, squares * 0.95 + 0.05)


@pytest.mark.parametrize(
    ("stage", "options", "kept"),  # alone, a process has stage 0 in the place of 1 and 2
    [
        (0, {}, {"exp_avg"}),
        (3, {}, {"exp_avg"}),
        (0, {"muon_soap": True}, {"exp_avg", "exp_avg_sq", "soap_gram", "soap_basis"}),
    ],
)
def test_a_run_learns_and_one_interrupted_twice_equals_it_to_the_bit(
    tiny, tmp_path: Path, stage: int, options: dict, kept: set[str]
):
    preset = tiny(train={"optimizer": "muon", "zero_stage": stage} | options)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(preset, token_budget=16 * TOKENS_PER_STEP, checkpoint_dir=whole)
    for steps in (1, 5):
        signal_after(parts, steps)
        with pytest.raises(Interrupted):
            train(preset, token_budget=16 * TOKENS_PER_STEP, checkpoint_dir=parts)
    train(preset, token_budget=16 * TOKENS_PER_STEP, checkpoint_dir=parts)
    assert all(torch.equal(tensor, weights(parts)[name]) for name, tensor in weights(whole).items())
    losses = list(by_step(read(whole)).values())
    assert losses[-1] < losses[0] - 0.2
    moments = CheckpointFolder(whole).newest().optimizer["moments"]
    assert moments["blocks.0.mlp.up.weight"].keys() == kept
    assert moments["tokens.weight"].keys() == {"exp_avg", "exp_avg_sq"}


def test_a_gated_projection_is_two_matrices():
    optimizer = muon(TransformerLM(SHAPE.model_copy(update={"mlp": "swiglu"}), 64), 1e-2, 0.1, torch.float32)
    assert optimizer.matrices["blocks.0.mlp.up.weight"] == (2, 128, 32)
    assert optimizer.matrices["blocks.0.mlp.down.weight"] == (1, 32, 128)


def test_the_optimizer_may_change_between_runs(tiny, tmp_path: Path, capsys):
    """Momentum is kept; squares that were never counted begin at zero, with their averages, so no step is wild."""
    for number, optimizer in enumerate(("adamw", "muon", "adamw"), 1):
        train(tiny(train={"optimizer": optimizer}), token_budget=number * 8 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
        printed = " ".join(capsys.readouterr().out.split())
        # Muon has no squares to give
        assert ("state lacks 8 parameters; their moments start at zero" in printed) == (number == 3)
    losses = list(by_step(read(tmp_path)).values())
    assert len(losses) == 24 and max(losses[8:]) < losses[0]
    assert losses[-1] < losses[7]
    moments = CheckpointFolder(tmp_path).newest().optimizer["moments"]
    assert all(own.keys() == {"exp_avg", "exp_avg_sq"} for own in moments.values())


@pytest.mark.parametrize("option", ["muon_normalise_rows", "muon_soap"])
def test_updates_may_be_scaled_in_a_later_run(tiny, tmp_path: Path, capsys, option: str):
    """What that needs begins at zero, and the momentum is kept."""
    for number, changes in enumerate(({}, {option: True}, {}), 1):
        preset = tiny(train={"optimizer": "muon"} | changes)
        train(preset, token_budget=number * 8 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
        moments = CheckpointFolder(tmp_path).newest().optimizer["moments"]["blocks.0.mlp.up.weight"]
        assert ("exp_avg_sq" in moments) == (number == 2)
    assert "their moments start at zero" not in capsys.readouterr().out
    losses = list(by_step(read(tmp_path)).values())
    assert len(losses) == 24 and losses[8] < losses[7] + 0.1 and losses[-1] < losses[7]


@pytest.mark.slow
@pytest.mark.parametrize("soap", [False, True])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_processes_train_what_one_does_and_continue_each_other(tiny, tmp_path: Path, stage: int, soap: bool):
    train = {"optimizer": "muon", "muon_soap": soap, "zero_stage": stage}
    alone = tiny(train=train | {"per_gpu_batch_size": 8})
    shared = tiny(train=train | {"per_gpu_batch_size": 4})
    budget = 8 * TOKENS_PER_STEP
    one = by_step(train_with(1, alone, tmp_path / "one", budget))
    two = by_step(train_with(2, shared, tmp_path / "two", budget))
    assert list(two.values()) == pytest.approx(list(one.values()), abs=1e-3)
    one = by_step(train_with(1, alone, tmp_path / "two", 2 * budget))
    two = by_step(train_with(2, shared, tmp_path / "one", 2 * budget))
    assert len(one) == 16 and list(two.values())[8:] == pytest.approx(list(one.values())[8:], abs=5e-3)


@pytest.mark.parametrize(
    ("optimizer", "stage"),
    [("muon", 1), *(pytest.param(*case, marks=pytest.mark.slow) for case in (("muon", 2), ("adamw", 1), ("adamw", 2)))],
)
def test_two_interrupted_ranks_equal_two_uninterrupted_to_the_bit(tiny, tmp_path: Path, optimizer, stage):
    preset = tiny(train={"optimizer": optimizer, "zero_stage": stage, "per_gpu_batch_size": 4})
    budget = 10 * TOKENS_PER_STEP
    train_with(2, preset, tmp_path / "whole", budget)
    interrupted = by_step(train_with(2, preset, tmp_path / "parts", budget, stop_after=4))
    assert 4 <= len(interrupted) < 10
    train_with(2, preset, tmp_path / "parts", budget)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())
