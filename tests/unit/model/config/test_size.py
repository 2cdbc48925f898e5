"""model/config/size.py: what it counts without torch is what a real model has."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import CONFIGS, load_preset, preset_files
from model import AuxiliaryConfig, ModelConfig, TransformerLM
from model.config.size import (
    active_parameter_count,
    expert_size,
    flops_per_token,
    inner_size,
    is_sparse,
    num_spans,
    parameter_count,
    parameters_by_part,
)
from model.experts import sparse_layers
from model.latent.objectives.information_gain import LIKELIEST
from tests.helpers.text import REPOSITORY

SHAPES = st.builds(
    lambda heads, half, **keys: ModelConfig(num_heads=heads, hidden_size=2 * heads * half, **keys),
    heads=st.integers(1, 4),
    half=st.integers(1, 12),
    num_layers=st.integers(1, 3),
    seq_length=st.integers(64, 80),
    positions=st.sampled_from(["learned", "rotary"]),
    norm=st.sampled_from(["layer", "rms"]),
    mlp=st.sampled_from(["gelu", "squared_relu", "swiglu"]),
    qk_norm=st.booleans(),
    bias=st.booleans(),
    tie_embeddings=st.booleans(),
    stream_scales=st.booleans(),
    skip_connections=st.booleans(),
    attention_gates=st.booleans(),
    exclusive_attention=st.booleans(),
    bigram_rows=st.sampled_from([0, 100]),
    embedding_context=st.integers(0, 3),
    layer_rescaling=st.sampled_from(["none", "attention", "residual"]),
)
# With these the lookahead core is off.
ALONE = st.fixed_dictionaries(
    {"value_embeddings": st.sampled_from(["none", "tables", "projections"]), "embedding_size": st.sampled_from([0, 24])}
)
EXPERTS = st.fixed_dictionaries(
    {
        "num_layers": st.integers(2, 3),
        "num_experts": st.integers(3, 9),
        "experts_per_token": st.integers(1, 3),
        "shared_experts": st.integers(0, 2),
        "moe_layers": st.sampled_from(["all", "alternate"]),
        "expert_hidden_size": st.sampled_from([None, 24]),
    }
)
CORES = st.builds(
    AuxiliaryConfig,
    enable_policy=st.just(True),
    enable_dynamics=st.booleans(),
    enable_value=st.booleans(),
    enable_span_contrastive=st.booleans(),
    enable_draft=st.booleans(),
    draft_length=st.integers(2, 4),
    draft_rollouts=st.integers(0, 3),
    draft_position_fraction=st.sampled_from([1 / 64, 1 / 16]),
)
GAIN = AuxiliaryConfig(enable_dynamics=True, enable_value=True, enable_draft=True, information_gain_weight=0.1)


def on_meta(config: ModelConfig, vocab_size: int, auxiliary: AuxiliaryConfig | None) -> TransformerLM:
    with torch.device("meta"):
        return TransformerLM(config, vocab_size, auxiliary)


def flops_of(model: TransformerLM) -> float:
    """As flops_per_token counts them, from the weights that a model has."""
    config, length, rows = model.config, model.config.seq_length, model.padded_vocab_size
    size = config.hidden_size
    weights = matrices(model.blocks) + sum(mlp.active_routed_weights() for mlp in sparse_layers(model.blocks))
    flops = 6.0 * (weights + model.head_weight.numel()) + 12 * config.num_layers * size * length
    flops += 6 * sum(matrices(part) for part in (model.widen, model.narrow) if part is not None)
    if model.context is not None:
        flops += 6 * model.context.weight.numel()
    if model.streams is not None and not model.streams.from_ids:
        flops += 6 * matrices(model.streams.values)
    if (core := model.latent) is None:
        return flops
    auxiliary, head, step = core.auxiliary, size * rows, 0.0
    if (psi := core.transition) is not None:
        outcome, step = psi.outcome.weight.numel(), matrices(psi) + 12 * size**2 + 2 * size * length
        each = 6 * (matrices(psi) - outcome + 2 * (psi.width + size) * length) + 48 * size**2
        once = 6 * (psi.query.weight.numel() + outcome) + 4 * size**2
        flops += (once + each * auxiliary.rollout_depth) * auxiliary.rollout_row_fraction
    read = auxiliary.rollout_depth * auxiliary.policy_position_fraction
    if auxiliary.enable_policy:
        flops += 2 * head * auxiliary.policy_position_fraction + 4 * head * read
    if core.value_head is not None:
        flops += 6 * matrices(core.value_head) * (1 + read * (psi is not None))
    if core.span_projector is not None:
        flops += 6 * matrices(core.span_projector) * num_spans(auxiliary, length) / length
    if (drafter := core.drafter) is not None:
        markov, places = drafter.after.weight.numel(), drafter.length
        layers = matrices(drafter) - 2 * markov
        drafts = 6 * (layers + (2 + auxiliary.draft_rollouts) * places * markov + places * head) + 4 * size * length
        if psi is not None:
            drafts += 2 * auxiliary.draft_rollouts * (places - 1) * (step + 2 * head)
        if auxiliary.foretells_gain:
            drafts += 2 * (LIKELIEST * (layers + markov + head + 2 * size * length) + head)
        flops += drafts * auxiliary.draft_position_fraction
    return flops


def matrices(part: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters() if parameter.ndim == 2)


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.integers(1, 1000), st.none() | st.just(AuxiliaryConfig(enable_value=True)) | st.just(GAIN) | CORES)
def test_counts_are_those_of_the_model(config: ModelConfig, vocab_size: int, auxiliary: AuxiliaryConfig | None):
    model = on_meta(config, vocab_size, auxiliary)
    assert parameter_count(config, vocab_size, auxiliary) == model.num_parameters()
    assert model.flops_per_token() == pytest.approx(flops_of(model), abs=1)


@settings(max_examples=20, deadline=None)
@given(SHAPES, ALONE, st.integers(1, 1000))
def test_options_that_stand_alone_are_counted(config: ModelConfig, options: dict, vocab_size: int):
    config = config.model_copy(update=options)
    model = on_meta(config, vocab_size, None)
    assert parameter_count(config, vocab_size) == model.num_parameters()
    assert model.flops_per_token() == flops_of(model)


@settings(max_examples=40, deadline=None)
@given(SHAPES, EXPERTS, st.none() | st.just(GAIN))
def test_experts_are_counted(config: ModelConfig, experts: dict, auxiliary: AuxiliaryConfig | None):
    config = config.model_copy(update=experts)
    model = on_meta(config, 512, auxiliary)
    assert parameter_count(config, 512, auxiliary) == model.num_parameters()
    assert active_parameter_count(config, 512, auxiliary) == model.num_active_parameters()
    assert model.flops_per_token() == pytest.approx(flops_of(model), abs=1)
    parts = parameters_by_part(config, 512, auxiliary)
    assert parts["experts"] == sum(parameter.numel() for parameter in model.blocks.parameters() if parameter.ndim == 3)
    assert ("mlp" in parts) == (config.moe_layers == "alternate")
    assert ("shared experts" in parts) == (config.shared_experts > 0)


@pytest.mark.parametrize("size", [0, 24])
@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_memory_tokens_are_counted(size: int, weight: float):
    """Of a window behind a memory: what stands before it goes through the blocks, too, but not through the head."""
    config = ModelConfig(seq_length=64, memory_tokens=8, embedding_size=size)
    auxiliary = AuxiliaryConfig(memory_reconstruction_weight=weight)
    model = on_meta(config, 512, auxiliary)
    assert parameter_count(config, 512, auxiliary) == model.num_parameters()
    plain = config.model_copy(update={"memory_tokens": 0})
    assert parameters_by_part(config, 512, auxiliary)["memory"] == parameter_count(
        config, 512, auxiliary
    ) - parameter_count(plain, 512)
    projections = sum(matrices(part) for part in (model.widen, model.narrow) if part is not None)
    blocks, attention = 6 * (matrices(model.blocks) + projections), 12 * 3 * 256 * 64
    more = blocks / 8 + attention * (9 / 8 * 9 / 8 - 1) + 6 / 8 * (matrices(model.memory) - 8 * 256)
    more += 4 / 8 * model.head_weight.numel() * (weight > 0)
    assert model.flops_per_token() == pytest.approx(flops_per_token(plain, 512) + more, abs=2)


def test_all_parameters_are_active_without_experts():
    assert active_parameter_count(ModelConfig(), 512, GAIN) == parameter_count(ModelConfig(), 512, GAIN)


def test_layers_with_experts():
    assert not any(is_sparse(ModelConfig(num_layers=4), layer) for layer in range(4))
    every = ModelConfig(num_layers=4, num_experts=8)
    assert all(is_sparse(every, layer) for layer in range(4))
    alternate = ModelConfig(num_layers=4, num_experts=8, moe_layers="alternate")
    assert [is_sparse(alternate, layer) for layer in range(4)] == [False, True, False, True]


@pytest.mark.parametrize("kind", ["gelu", "swiglu"])
def test_a_tokens_experts_are_as_wide_as_a_dense_mlp(kind: str):
    config = ModelConfig(hidden_size=384, mlp=kind, num_experts=8)
    assert expert_size(config) % 8 == 0
    assert 0 <= 3 * expert_size(config) - inner_size(384, kind) < 3 * 8
    assert expert_size(config.model_copy(update={"expert_hidden_size": 50})) == 50


@pytest.mark.parametrize("key", ["draft_position_fraction", "information_gain_weight", "draft_rollouts"])
def test_what_teaches_the_drafter_and_the_value_costs_flops(key: str):
    more = GAIN.model_copy(update={key: 2 * getattr(GAIN, key)})
    less = GAIN.model_copy(update={key: 0 if key != "draft_position_fraction" else GAIN.draft_position_fraction / 2})
    config = ModelConfig()
    assert flops_per_token(config, 512, less) < flops_per_token(config, 512, GAIN) <= flops_per_token(config, 512, more)
    weighed = GAIN.model_copy(update={"gain_weighting": 0.5})
    assert flops_per_token(config, 512, weighed) > flops_per_token(config, 512, GAIN)


@pytest.mark.parametrize("path", preset_files(CONFIGS), ids=lambda path: path.stem)
def test_the_presets_models_are_counted(path):
    preset = load_preset(path)
    model = on_meta(preset.model, 50_257, preset.auxiliary)
    assert parameter_count(preset.model, 50_257, preset.auxiliary) == model.num_parameters()
    matrices = sum(parameter.numel() for parameter in model.blocks.parameters() if parameter.ndim == 2)
    attention = 12 * preset.model.num_layers * preset.model.hidden_size * preset.model.seq_length
    trunk = 6 * (matrices + model.padded_vocab_size * preset.model.hidden_size) + attention
    assert flops_per_token(preset.model, 50_257) == trunk
    assert (flops_per_token(preset.model, 50_257, preset.auxiliary) > trunk) == preset.auxiliary.looks_ahead


def test_parts_that_a_model_lacks_are_left_out():
    config = ModelConfig(positions="rotary", bias=False, norm="rms")
    assert set(parameters_by_part(config, 512)) == {"embedding", "attention", "mlp", "norms"}
    draft = AuxiliaryConfig(enable_draft=True, draft_rollouts=0)
    assert "drafter" in parameters_by_part(config, 512, draft)


def test_counting_needs_no_torch():
    program = "import sys, model.config.size, engine.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY).returncode == 0
