"""How large a model is, from its configuration alone: parameters by part, and training FLOPs per token.

Needs no torch, so a preset's size is known before anything heavy is imported. A test compares the sum with the
parameters of real models.
"""

import math
from dataclasses import dataclass

from .auxiliary import AuxiliaryConfig
from .sections import ModelConfig

VOCAB_MULTIPLE = 64  # rows of the embedding: keeps matrix products on fast paths
VALUE_BINS = 64  # of the value's distribution, for each horizon
MARKOV_RANK = 64  # of the drafter's two tables
WIDTH_MULTIPLE = 8  # of an expert: grouped products on a GPU need rows of a multiple of 16 bytes
GAIN_BINS = 64  # of the distribution of what the next token will tell
GAIN_TOKENS = 8  # likeliest tokens over which that is measured


@dataclass(frozen=True)
class Linear:
    """A linear layer's numbers of inputs and outputs."""

    inputs: int
    outputs: int
    bias: bool = True

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs

    @property
    def parameters(self) -> int:
        return self.weights + self.bias * self.outputs


def padded_vocabulary(vocab_size: int) -> int:
    """The rows of the embedding and of the head."""
    return math.ceil(vocab_size / VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def inner_size(hidden_size: int, kind: str) -> int:
    """The number of inputs of an MLP's down-projection."""
    return 4 * hidden_size if kind != "swiglu" else math.ceil(8 * hidden_size / 3 / 64) * 64


def is_sparse(config: ModelConfig, layer: int) -> bool:
    """Whether block `layer` has experts in place of one MLP."""
    return config.num_experts > 0 and (config.moe_layers == "all" or layer % 2 == 1)


def expert_size(config: ModelConfig) -> int:
    """The number of inputs of an expert's down-projection; by default all experts that read a token together have as
    many as a dense MLP, up to a multiple of 8 each."""
    if config.expert_hidden_size is not None:
        return config.expert_hidden_size
    read = config.experts_per_token + config.shared_experts
    return math.ceil(inner_size(config.hidden_size, config.mlp) / read / WIDTH_MULTIPLE) * WIDTH_MULTIPLE


def share_of(whole: int, fraction: float) -> int:
    """The nearest whole number to a fraction of `whole`, at least 1."""
    return max(1, round(fraction * whole))


def num_spans(auxiliary: AuxiliaryConfig, length: int) -> int:
    """Spans in a row of `length` tokens: those that make up span_mask_fraction of it, as far as they fit."""
    fitting = length // (auxiliary.span_length + 1)
    return min(share_of(length, auxiliary.span_mask_fraction / auxiliary.span_length), fitting)


def value_layers(config: ModelConfig) -> list[int]:
    """The blocks with value embeddings: every second one, and the last."""
    if config.value_embeddings == "none":
        return []
    return list(range((config.num_layers - 1) % 2, config.num_layers, 2))


def transition_width(hidden_size: int, num_heads: int) -> int:
    """The width at which the transition attends: half of the trunk's, to be cheap."""
    return num_heads * max(1, hidden_size // num_heads // 2)


def parameters_by_part(
    config: ModelConfig, vocab_size: int, auxiliary: AuxiliaryConfig | None = None
) -> dict[str, int]:
    """The learned numbers of TransformerLM(config, vocab_size, auxiliary), by part; what it lacks is left out."""
    size, rows, layers = config.hidden_size, padded_vocabulary(vocab_size), config.num_layers
    embedding_size = config.embedding_size or size
    norm = size * (1 if config.norm == "rms" or not config.bias else 2)
    head_norms = 2 * (size // config.num_heads) if config.qk_norm else 0
    attention, sparse = _attention(config), _sparse_blocks(config)
    mlp = _mlp(config, inner_size(size, config.mlp), config.bias)
    parts = {
        "embedding": rows * embedding_size,
        "bigrams": config.bigram_rows * size,
        "value embeddings": rows * size * len(value_layers(config)) if config.value_embeddings == "tables" else 0,
        "positions": config.seq_length * size if config.positions == "learned" else 0,
        "attention": layers * sum(layer.parameters for layer in attention),
        "mlp": (layers - sparse) * sum(layer.parameters for layer in mlp),
        "experts": sparse * config.num_experts * _expert_weights(config),
        "shared experts": sparse * config.shared_experts * _expert_weights(config),
        "routers": sparse * size * config.num_experts,
        "norms": layers * (2 * norm + head_norms) + norm,
        "layer factors": layers if config.layer_rescaling != "none" else 0,
        "streams": 2 * layers * config.stream_scales + layers // 2 * config.skip_connections,
        **{name: _weights(linear) for name, linear in _options(config).items()},
        "memory": _weights(_memory(config, auxiliary)) + config.memory_tokens * size,
        "lm head": 0 if config.tie_embeddings else rows * embedding_size,
    }
    if auxiliary is not None:
        core = _core(auxiliary, config, rows)
        layer_norm, width = 2 * size, transition_width(size, config.num_heads)
        others = {
            "transition": 3 * layer_norm + 2 * width + 2 * width,  # the slot for nothing, the norm of what is recalled
            "drafter": 2 * layer_norm + 2 * rows * MARKOV_RANK + size // config.num_heads + size,
        }
        parts |= {
            name: sum(layer.parameters for layer in linear) + others.get(name, 0) for name, linear in core.items()
        }
    return {name: number for name, number in parts.items() if number}


def parameter_count(config: ModelConfig, vocab_size: int, auxiliary: AuxiliaryConfig | None = None) -> int:
    """The learned numbers of TransformerLM(config, vocab_size, auxiliary)."""
    return sum(parameters_by_part(config, vocab_size, auxiliary).values())


def active_parameter_count(config: ModelConfig, vocab_size: int, auxiliary: AuxiliaryConfig | None = None) -> int:
    """The same without the experts that do not read a token."""
    idle = _sparse_blocks(config) * (config.num_experts - config.experts_per_token) * _expert_weights(config)
    return parameter_count(config, vocab_size, auxiliary) - idle


def flops_per_token(
    config: ModelConfig, vocab_size: int, auxiliary: AuxiliaryConfig | None = None, seq_length: int | None = None
) -> int:
    """Training FLOPs per token of rows of `seq_length` tokens (None: the longest), forward and backward: 6 per weight
    of every matrix product (the head is one, the embedding look-up is not; of experts those that read a token) plus
    12 * L * D * T for attention (PaLM, arXiv 2204.02311, appendix B), plus those of the lookahead core at its full
    depth, without gradients that stop. With memory tokens: of a window behind a memory, which costs more."""
    size, rows, length = config.hidden_size, padded_vocabulary(vocab_size), seq_length or config.seq_length
    sparse = _sparse_blocks(config)
    weights = config.num_layers * _weights(_attention(config))
    weights += (config.num_layers - sparse) * _weights(_mlp(config, inner_size(size, config.mlp), config.bias))
    read = config.experts_per_token + config.shared_experts
    weights += sparse * (read * _expert_weights(config) + size * config.num_experts)
    weights += sum(_weights(linear) for linear in _options(config).values())
    more = config.memory_tokens / config.seq_length  # which the blocks read beside a token, in a window behind a memory
    of_blocks = 6 * weights + 12 * config.num_layers * size * length * (1 + more)
    flops = round(of_blocks * (1 + more) + 6 * more * _weights(_memory(config, auxiliary)))
    flops += 6 * rows * (config.embedding_size or size)
    if auxiliary is not None and auxiliary.memory_reconstruction_weight:  # the head gets no gradient
        flops += round(4 * more * rows * (config.embedding_size or size))
    return flops if auxiliary is None else flops + round(_core_flops(auxiliary, config, rows, length))


def _attention(config: ModelConfig) -> list[Linear]:
    size = config.hidden_size
    return [Linear(size, 3 * size, config.bias), Linear(size, size, config.bias)]


def _mlp(config: ModelConfig, inner: int, bias: bool) -> list[Linear]:
    """The linear layers of an MLP, or of an expert, whose down-projection has `inner` inputs."""
    up = Linear(config.hidden_size, 2 * inner if config.mlp == "swiglu" else inner, bias)
    return [up, Linear(inner, config.hidden_size, bias)]


def _sparse_blocks(config: ModelConfig) -> int:
    """How many blocks have experts."""
    return sum(is_sparse(config, layer) for layer in range(config.num_layers))


def _expert_weights(config: ModelConfig) -> int:
    return _weights(_mlp(config, expert_size(config), bias=False))


def _options(config: ModelConfig) -> dict[str, list[Linear]]:
    """The matrices of those options of the trunk that are on, without the tables, of which a token reads a row."""
    size, with_values = config.hidden_size, len(value_layers(config))
    gate = Linear(size, config.num_heads, bias=False)
    parts = {"gates": [gate] * (config.num_layers * config.attention_gates + with_values)}
    if config.embedding_context:
        parts["embedding context"] = [Linear(size, size, bias=False)] * config.embedding_context
    if config.value_embeddings == "projections":
        parts["value projections"] = [Linear(size, size, bias=False)] * with_values
    if between := config.embedding_size:
        parts["projections"] = [Linear(between, size, bias=False), Linear(size, between, bias=False)]
    return parts


def _memory(config: ModelConfig, auxiliary: AuxiliaryConfig | None) -> list[Linear]:
    """The matrices of memory tokens, without the table of their places."""
    if not config.memory_tokens:
        return []
    size = config.hidden_size
    reconstructs = auxiliary is not None and auxiliary.memory_reconstruction_weight > 0
    parts = [Linear(size, size, bias=False)]
    return parts + [Linear(size, config.embedding_size or size, bias=False)] * reconstructs


def _core(auxiliary: AuxiliaryConfig, config: ModelConfig, rows: int) -> dict[str, list[Linear]]:
    """The linear layers of those parts of the lookahead core that are on. In the transition the projections of memory
    come first: of keys, of values."""
    size, width = config.hidden_size, transition_width(config.hidden_size, config.num_heads)
    places, wide = auxiliary.draft_length * size, 2 * size
    parts: dict[str, list[Linear]] = {}
    if auxiliary.rolls_out:
        recall = [Linear(width, wide, bias=False), Linear(width, size, bias=False)]
        mlp = [Linear(wide, wide), Linear(wide, wide), Linear(wide, size)]
        parts["transition"] = [Linear(wide, width), Linear(size, width), *recall, *mlp]
    if auxiliary.enable_value:
        parts["value"] = [Linear(size, size), Linear(size, len(auxiliary.value_horizons) * VALUE_BINS)]
        if auxiliary.foretells_gain:
            parts["value"].append(Linear(size, GAIN_BINS))
    if auxiliary.enable_span_contrastive:
        parts["span projector"] = [Linear(size, size), Linear(size, size)]
    if auxiliary.enable_draft:
        attention = [Linear(wide, size, bias=False), Linear(size, wide, bias=False)]
        parts["drafter"] = [*attention, Linear(wide, wide), *2 * [Linear(wide, places, bias=False)]]
    return parts


def _core_flops(auxiliary: AuxiliaryConfig, config: ModelConfig, rows: int, length: int) -> float:
    size, depth, core, flops = config.hidden_size, auxiliary.rollout_depth, _core(auxiliary, config, rows), 0.0
    head, positions = size * rows, auxiliary.policy_position_fraction
    step = 0
    if transition := core.get("transition"):
        # memory, keys and values are made once; the weights of the last block get no gradient
        key, outcome = transition[0].weights, transition[1].weights
        each = _weights(transition) - outcome + 2 * (transition_width(size, config.num_heads) + size) * length
        once = 6 * (key + outcome) + 2 * 2 * size**2
        flops += (once + (6 * each + 4 * 12 * size**2) * depth) * auxiliary.rollout_row_fraction
        step = _weights(transition) + 12 * size**2 + 2 * size * length
    if auxiliary.enable_policy:
        # the teacher's logits once; logits and gradient of each prediction
        flops += (2 + 4 * depth) * head * positions
    if value := core.get("value"):
        flops += 6 * _weights(value) * (1 + (depth * positions if transition else 0))
        if auxiliary.gain_weighting:  # a further forward pass for the expected gain
            flops += 2 * (value[0].weights + value[-1].weights)
    if projector := core.get("span projector"):
        flops += 6 * _weights(projector) * num_spans(auxiliary, length) / length
    if drafter := core.get("drafter"):
        places, rollouts = auxiliary.draft_length, auxiliary.draft_rollouts
        markov = rows * MARKOV_RANK
        drafts = 6 * (_weights(drafter) + (2 + rollouts) * places * markov) + 6 * places * head + 4 * size * length
        if transition:
            drafts += 2 * rollouts * (places - 1) * (step + 2 * head)
        if auxiliary.foretells_gain:  # forward passes alone
            each = _weights(drafter) + markov + size * (rows + 2 * length)
            drafts += 2 * (GAIN_TOKENS * each + head)
        flops += drafts * auxiliary.draft_position_fraction
    return flops


def _weights(layers: list[Linear]) -> int:
    return sum(layer.weights for layer in layers)
