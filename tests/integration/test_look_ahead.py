"""The lookahead core in whole runs: off, on, resumed, switched between runs, in all stages and on several processes."""

import json
import math
from pathlib import Path

import pytest
import torch

from engine import train
from engine.config import parse_preset
from engine.errors import Interrupted, PresetError
from engine.optim.optimizers import parameter_groups
from model import TransformerLM, load
from model.latent import FIGURES, LookAhead, LookAheadSampler
from tests.helpers.folders import events_of, progress, weights, whole
from tests.helpers.look_ahead import ON
from tests.helpers.processes import run_ranks
from tests.helpers.training import TOKENS_PER_STEP, by_step, signal_after, train_with
from tests.helpers.workers import look_ahead

KEYS = ("latent.transition.", "latent.value_head.", "latent.span_projector.", "latent.drafter.")


def test_off_is_the_trunk_alone_whatever_the_other_keys_say(tiny, tmp_path: Path):
    others = {"policy_kl_weight": 1.0, "rollout_depth": 1, "span_length": 31, "auxiliary_warmup_fraction": 0.0}
    for name, auxiliary in (("plain", {}), ("off", others)):
        train(tiny(auxiliary=auxiliary), token_budget=4 * TOKENS_PER_STEP, checkpoint_dir=tmp_path / name)
    plain, off = weights(tmp_path / "plain"), weights(tmp_path / "off")
    assert plain.keys() == off.keys() and not any(name.startswith("latent") for name in plain)
    assert all(torch.equal(plain[name], off[name]) for name in plain)
    assert all(event["auxiliary"] == {} for event in events_of(tmp_path / "off", "step"))


@pytest.mark.parametrize("stage", [0, 3])  # alone, a process has stage 0 in the place of 1 and 2
def test_a_detached_core_leaves_the_trunk_to_the_bit(tiny, tmp_path: Path, stage: int):
    detached = {f"{part}_detach_trunk": True for part in ("policy", "value", "dynamics", "span_contrastive")}
    # a limit that clips every step: what the core's gradients are must not decide how much
    options = {"zero_stage": stage, "gradient_clipping": 0.05}
    for name, auxiliary in (("off", {}), ("on", ON | detached)):
        train(
            tiny(auxiliary=auxiliary, train=options), token_budget=6 * TOKENS_PER_STEP, checkpoint_dir=tmp_path / name
        )
    off, on = weights(tmp_path / "off"), weights(tmp_path / "on")
    assert off.keys() < on.keys() and all(torch.equal(on[name], tensor) for name, tensor in off.items())
    steps = [events_of(tmp_path / name, "step") for name in ("off", "on")]
    without, detached_core = ([(event["loss"], event["grad_norm"]) for event in events] for events in steps)
    assert without == detached_core and all(norm > 0.05 for _, norm in without)


def test_with_every_part_on_a_run_learns_and_logs_every_figure(tiny, tmp_path: Path):
    result = train(tiny(auxiliary=ON), token_budget=40 * TOKENS_PER_STEP, checkpoint_dir=tmp_path / "on")
    train(tiny(), token_budget=TOKENS_PER_STEP, checkpoint_dir=tmp_path / "off")
    steps = events_of(tmp_path / "on", "step")
    assert steps[0]["loss"] == events_of(tmp_path / "off", "step")[0]["loss"], "the trunk begins with the same weights"
    for event in steps:
        assert tuple(event["auxiliary"]) == FIGURES
        assert all(math.isfinite(value) for value in (event["loss"], event["grad_norm"], *event["auxiliary"].values()))
    begin, end = steps[4]["auxiliary"], steps[-1]["auxiliary"]  # after the warm-up, and at the end
    assert end["value"] < begin["value"] - 0.2 and end["rolled_out_value"] < begin["rolled_out_value"] - 0.2
    assert end["dynamics"] < begin["dynamics"] / 2
    assert end["latent_variance"] > 0.05
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.3

    lm = load(result.snapshot)
    assert lm.model.latent is not None
    evaluations = events_of(tmp_path / "on", "evaluation")
    assert result.eval_loss == evaluations[-1]["ce"] and 3 < result.eval_loss < math.log(512)
    assert evaluations[-1]["sample"]["text"]


def test_interrupted_twice_equals_uninterrupted_to_the_bit(tiny, tmp_path: Path):
    preset = tiny(auxiliary=ON)
    undisturbed, parts = tmp_path / "undisturbed", tmp_path / "parts"
    train(preset, token_budget=20 * TOKENS_PER_STEP, checkpoint_dir=undisturbed)
    for steps in (1, 5):  # in the warm-up, and later
        signal_after(parts, steps)
        with pytest.raises(Interrupted):
            train(preset, token_budget=20 * TOKENS_PER_STEP, checkpoint_dir=parts)
    train(preset, token_budget=20 * TOKENS_PER_STEP, checkpoint_dir=parts)
    ours, theirs = weights(parts), weights(undisturbed)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    steps = [events_of(folder, "step") for folder in (parts, undisturbed)]
    figures = [[(event["step"], event["loss"], event["auxiliary"]) for event in events] for events in steps]
    assert figures[0] == figures[1] and len(figures[0]) == 20


@pytest.mark.parametrize("stage", [0, 3])
def test_a_part_may_be_switched_on_and_off_between_runs(tiny, tmp_path: Path, stage: int):
    def run(budget: int, auxiliary: dict) -> dict[str, torch.Tensor]:
        preset = tiny(auxiliary=auxiliary, train={"zero_stage": stage})
        train(preset, token_budget=budget * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
        return weights(tmp_path)

    on = {**ON, "information_gain_weight": 0.0}  # which needs a value and a drafter
    trunk = run(3, {}).keys()
    both = run(6, on)
    assert trunk < both.keys() and {name[: name.index(".", 7) + 1] for name in both.keys() - trunk} == set(KEYS)
    moments = whole(tmp_path)[1]["moments"]
    assert moments.keys() == both.keys() and all(moments[name]["exp_avg_sq"].any() for name in both.keys() - trunk)
    off = ("enable_policy", "enable_dynamics", "enable_span_contrastive", "enable_draft")
    value_only = run(9, {**on, **dict.fromkeys(off, False)})
    assert {name for name in value_only if name.startswith("latent")} == {n for n in both if n.startswith(KEYS[1])}
    assert run(12, {}).keys() == trunk

    said = [event["message"] for event in events_of(tmp_path, "resume")]
    assert len(said) == 3 and all("with its optimizer" in message for message in said)
    assert "Starting fresh: latent.transition, latent.value_head, latent.span_projector" in said[0]
    assert "In the file but not used: latent.transition, latent.span_projector" in said[1]
    assert "In the file but not used: latent.value_head" in said[2]
    steps = events_of(tmp_path, "step")
    assert set(steps[8]["auxiliary"]) == {"value"} and steps[9]["auxiliary"] == {}
    assert progress(tmp_path)["step"] == 12


@pytest.fixture
def drawn(monkeypatch) -> list[LookAhead]:
    """Every draw from here on, but for the warm-up's."""
    draws = []
    original = LookAheadSampler.draw

    def recorded(sampler, segment_ids, trained, step, *arguments):
        draw = original(sampler, segment_ids, trained, step, *arguments)
        if step >= 0:
            draws.append(draw)
        return draw

    monkeypatch.setattr(LookAheadSampler, "draw", recorded)
    return draws


def test_the_weights_warm_up_in_the_first_run_of_a_lineage_only(tiny, tmp_path: Path, drawn):
    preset = tiny(auxiliary={**ON, "auxiliary_warmup_fraction": 0.25})
    for _ in range(2):
        train(preset, token_budget=8 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    steps = [drawn[number] for number in range(0, len(drawn), 2)]  # of each step the first of its two passes
    shares = [(step.weights[1] / 0.1).item() for step in steps]
    assert shares == pytest.approx([0.0, 0.5] + [1.0] * 14, abs=0.02)
    assert [step.depth for step in steps] == [1, 1, 2, 2, 3, 3, 3, 3] + [3] * 8
    places = {tuple(draw.columns.tolist()) for draw in drawn}
    assert len(places) > len(drawn) / 2, "passes draw for themselves"


def test_a_part_that_is_switched_on_later_warms_up_then(tiny, tmp_path: Path, drawn):
    def run(auxiliary: dict) -> torch.Tensor:
        """(steps, objectives): the weights of each step, as shares of the whole ones."""
        drawn.clear()
        preset = tiny(auxiliary={**auxiliary, "auxiliary_warmup_fraction": 0.25})
        train(preset, token_budget=8 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
        weights = torch.stack([draw.weights[:6] for draw in drawn[::2]])  # a step has two passes; no information gain
        keys = ("policy_kl_weight", "value_weight", "value_weight", "dynamics_weight")
        keys = (*keys, "span_contrastive_weight", "draft_weight")
        return (weights / torch.tensor([getattr(preset.auxiliary, key) for key in keys])).round(decimals=2)

    grows, whole = torch.tensor([0.0, 0.5] + [1.0] * 6), torch.ones(8)
    value_only = run({"enable_value": True, "value_horizons": [4, 16]})
    assert torch.equal(value_only[:, 1], grows)
    everything = run(ON)
    policy, value, rolled_out_value, dynamics, span, draft = everything.T
    assert torch.equal(value, whole), "trained in the run before"
    assert all(torch.equal(weights, grows) for weights in (policy, rolled_out_value, dynamics, span, draft))
    assert [draw.depth for draw in drawn[::2]] == [1, 1, 2, 2, 3, 3, 3, 3]
    assert torch.equal(run(ON), torch.ones(8, 6))


@pytest.mark.parametrize("stage", [0, 3])
def test_a_detached_core_without_finite_gradients_is_left_out(tiny, tmp_path: Path, capsys, stage: int):
    huge = {**ON, "policy_kl_weight": 1e38, "auxiliary_warmup_fraction": 0.0}
    for name, auxiliary in (("off", {}), ("on", huge)):
        preset = tiny(auxiliary=auxiliary, train={"zero_stage": stage})
        train(preset, token_budget=4 * TOKENS_PER_STEP, checkpoint_dir=tmp_path / name)
    off, on = weights(tmp_path / "off"), weights(tmp_path / "on")
    assert all(torch.equal(on[name], tensor) for name, tensor in off.items())
    assert all(tensor.isfinite().all() for tensor in on.values())
    for event in events_of(tmp_path / "on", "step"):
        assert event["core_grad_norm"] is None and event["core_left_out"] == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "lookahead gradient not finite in 1 step" in printed
    assert "core_grad_norm" not in events_of(tmp_path / "off", "step")[0]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return run_worker(tmp_path_factory.mktemp("one") / "figures.json", 1, "0", "3")


def run_worker(output: Path, processes: int, *stages: str) -> dict:
    run_ranks(Path(look_ahead.__file__), str(output), *stages, processes=processes)
    return json.loads(output.read_text())


def assert_same(found: dict, expected: dict) -> None:
    assert found["losses"] == pytest.approx(expected["losses"], abs=1e-5)
    assert found["norms"] == pytest.approx(expected["norms"], rel=1e-4)
    for ours, theirs in zip(found["figures"], expected["figures"], strict=True):
        assert tuple(ours) == FIGURES and ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("stage", "03")
def test_every_stage_equals_a_plain_loop_over_unequal_passes(one_process: dict, stage: str):
    plain = one_process["plain"]
    assert plain["losses"][-1] < plain["losses"][0] - 0.8, "it must learn, or the comparison says nothing"
    assert_same(one_process[stage], plain)


@pytest.mark.slow
@pytest.mark.parametrize("stages", [("1",), ("0", "2", "3")], ids=lambda stages: "".join(stages))
def test_two_processes_equal_one(one_process: dict, tmp_path: Path, stages: tuple[str, ...]):
    results = run_worker(tmp_path / "figures.json", 2, *stages)
    for stage in stages:
        assert_same(results[stage], one_process["plain"])


@pytest.mark.slow
def test_a_run_on_two_processes_learns_as_one_does(tiny, tmp_path: Path):
    """Draws belong to a rank, so the losses are near one another, not equal."""
    budget = 12 * TOKENS_PER_STEP
    one = train_with(1, tiny(auxiliary=ON), tmp_path / "one", budget)
    shared = tiny(auxiliary=ON, train={"per_gpu_batch_size": 4})
    two = train_with(2, shared, tmp_path / "two", budget)
    assert list(by_step(two).values()) == pytest.approx(list(by_step(one).values()), abs=0.02)
    ours, theirs = (events_of(tmp_path / name, "step")[-1]["auxiliary"] for name in ("two", "one"))
    assert ours["value"] == pytest.approx(theirs["value"], abs=0.05) and ours.keys() == theirs.keys()


def test_the_parts_matrices_decay_and_nothing_else_of_them():
    model = TransformerLM(look_ahead.SHAPE, 256, look_ahead.EVERYTHING)
    decayed = {id(parameter) for parameter in parameter_groups(model, 0.1)[0]["params"]}
    latent = {name: id(parameter) in decayed for name, parameter in model.named_parameters() if "latent" in name}
    kept = ("norm", "drafter.before", "drafter.after")  # the drafter's tables are embeddings
    assert latent == {name: name.endswith("weight") and not any(part in name for part in kept) for name in latent}


@pytest.mark.parametrize(
    ("auxiliary", "sentence"),
    [
        (
            {"enable_policy": True, "rollout_depth": 3},
            "auxiliary.rollout_depth: 3 needs rows of 4 tokens, and model.seq_length is 3",
        ),
        ({"enable_span_contrastive": True, "rollout_depth": 1}, "auxiliary.span_length: 8 needs rows of 9 tokens"),
    ],
)
def test_rows_too_short_to_look_ahead_are_refused_at_the_door(auxiliary: dict, sentence: str):
    with pytest.raises(PresetError, match=f"^p.json: {sentence}") as caught:
        parse_preset({"name": "x", "model": {"seq_length": 3}, "auxiliary": auxiliary}, "p.json")
    assert caught.value.status == 2 and "\n" not in str(caught.value)
    assert parse_preset({"name": "x", "model": {"seq_length": 3}})
