"""The keys of a preset's sections `model` and `auxiliary`.

Both are frozen and refuse unknown keys; types are strict, because a preset is JSON and `"256"` is not a number there.
The vocabulary size is not a key: it follows from the tokenizer and is passed to the model beside its configuration.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

MOST_HIDDEN = 2**20
_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)


# What no other program and no kernel for decoding has, and its value where it is off.
ADDITIONS: dict[str, Any] = {
    "embedding_norm": False,
    "stream_scales": False,
    "skip_connections": False,
    "value_embeddings": "none",
    "attention_gates": False,
    "exclusive_attention": False,
    "bigram_rows": 0,
    "logit_softcap": 0.0,
    "embedding_size": 0,
}


class ModelConfig(BaseModel):
    """The shape of the trunk: a pre-norm decoder."""

    model_config = _STRICT

    # num_heads and positions come before hidden_size, whose validator reads them.
    num_layers: int = Field(default=3, ge=1, le=1000, description="blocks of the trunk")
    num_heads: int = Field(default=4, ge=1, le=2**20, description="attention heads of a block")
    positions: Literal["learned", "rotary"] = Field(default="learned", description="how positions are encoded")
    hidden_size: int = Field(default=256, ge=1, le=MOST_HIDDEN, description="size of the hidden states")
    seq_length: int = Field(default=256, ge=2, le=2**20, description="tokens of a row")
    rope_scaling: Literal["none", "linear", "ntk", "yarn"] = Field(
        default="none", description="how rotary positions are scaled once rows are longer than those trained on before"
    )
    rope_original_length: int | None = Field(
        default=None, ge=2, le=2**20, description="tokens of a row before that; null: it follows from the checkpoint"
    )
    position_extension: Literal["copy", "resample"] = Field(
        default="copy", description="how learned positions become those of longer rows"
    )
    layer_rescaling: Literal["none", "attention", "residual"] = Field(
        default="none",
        description="a factor of each block, fitted once rows are longer: on attention's logits or on what it adds",
    )
    norm: Literal["layer", "rms"] = Field(default="layer", description="LayerNorm or RMSNorm")
    qk_norm: bool = Field(default=False, description="normalise queries and keys head by head")
    mlp: Literal["gelu", "squared_relu", "swiglu"] = Field(default="gelu", description="activation of the blocks' MLPs")
    bias: bool = Field(default=True, description="biases in linear layers and LayerNorms")
    tie_embeddings: bool = Field(default=True, description="the LM head shares the embedding's weights")
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="dropout of embeddings, attention and blocks")
    init_std: float = Field(default=0.02, gt=0.0, le=1.0, description="standard deviation of the initial weights")
    embedding_norm: bool = Field(default=False, description="normalise the embedding before the first block")
    stream_scales: bool = Field(
        default=False, description="learned scalars of each block on what it reads and on the normalised embedding"
    )
    skip_connections: bool = Field(
        default=False, description="outputs of the first half of the blocks are added to the second half, as in a U-net"
    )
    value_embeddings: Literal["none", "tables", "projections"] = Field(
        default="none",
        description="what every second block adds to attention's values: rows of a table, or a projection of the "
        "embedding",
    )
    attention_gates: bool = Field(default=False, description="learned gates of what each attention head returns")
    exclusive_attention: bool = Field(
        default=False, description="attention returns nothing along a position's own value (arXiv 2603.09078)"
    )
    logit_softcap: float = Field(
        default=0.0, ge=0.0, le=1e4, description="bound of the logits, which approach it by a tanh; 0: there is none"
    )
    z_loss: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="weight of the squared logarithm of the softmax's denominator in the loss",
    )
    head_init: Literal["normal", "zero"] = Field(
        default="normal", description="initial weights of a head that is not tied"
    )
    embedding_size: int = Field(
        default=0, ge=0, le=MOST_HIDDEN, description="size of embeddings and head, which are projected; 0: hidden_size"
    )
    bigram_rows: int = Field(
        default=0, ge=0, le=2**30, description="rows of a hashed embedding of pairs of tokens; 0: there is none"
    )
    # num_experts and num_layers come before the keys whose validators read them.
    num_experts: int = Field(default=0, ge=0, le=1024, description="experts of an MLP, routed token by token; 0: none")
    experts_per_token: int = Field(default=2, ge=1, le=1024, description="routed experts that read a token")
    shared_experts: int = Field(default=1, ge=0, le=1024, description="further experts, which read every token")
    moe_layers: Literal["all", "alternate"] = Field(
        default="all", description="blocks with experts; alternate: every second one, the first has none"
    )
    expert_hidden_size: int | None = Field(
        default=None, ge=1, le=MOST_HIDDEN, description="width of an expert; null: a token's experts are a dense MLP's"
    )

    @field_validator("experts_per_token")
    @classmethod
    def _there_are_as_many_experts(cls, per_token: int, info: ValidationInfo) -> int:
        experts = info.data.get("num_experts", 0)
        if experts and per_token > experts:
            raise PydanticCustomError(
                "experts_per_token",
                "{per_token} experts cannot be chosen among num_experts {experts}; lower it or raise num_experts.",
                {"per_token": per_token, "experts": experts},
            )
        return per_token

    @field_validator("moe_layers")
    @classmethod
    def _some_block_has_experts(cls, layers: str, info: ValidationInfo) -> str:
        if info.data.get("num_experts") and layers == "alternate" and info.data.get("num_layers") == 1:
            raise PydanticCustomError(
                "moe_layers", 'The only block has no experts with "alternate"; use "all" or raise num_layers.'
            )
        return layers

    @field_validator("head_init")
    @classmethod
    def _a_tied_head_starts_as_the_embedding(cls, head_init: str, info: ValidationInfo) -> str:
        if head_init == "zero" and info.data.get("tie_embeddings", True):
            raise PydanticCustomError(
                "head_init", "zero needs a head of its own; set tie_embeddings to false or leave head_init out."
            )
        return head_init

    @property
    def rope_factor(self) -> float:
        """How many times longer rows are than those that rotary positions began with; 1 where nothing is scaled."""
        if self.rope_scaling == "none" or self.rope_original_length is None:
            return 1.0
        return max(1.0, self.seq_length / self.rope_original_length)

    @property
    def additions(self) -> list[str]:
        """The keys, among those that change what a plain decoder computes, that are on."""
        return [key for key, off in ADDITIONS.items() if getattr(self, key) != off]

    @field_validator("hidden_size")
    @classmethod
    def _heads_divide_hidden_size(cls, hidden_size: int, info: ValidationInfo) -> int:
        num_heads = info.data.get("num_heads", 1)  # missing when num_heads was refused
        if hidden_size % num_heads:
            below = hidden_size // num_heads * num_heads
            sizes = [size for size in (below, below + num_heads) if 1 <= size <= MOST_HIDDEN]
            remedy = " or ".join(map(str, sizes))
            raise PydanticCustomError(
                "hidden_size",
                "{hidden_size} cannot be divided among num_heads {num_heads}; use {remedy}",
                {"hidden_size": hidden_size, "num_heads": num_heads, "remedy": remedy},
            )
        if info.data.get("positions") == "rotary" and hidden_size // num_heads % 2:
            raise PydanticCustomError(
                "hidden_size",
                "{hidden_size} over num_heads {num_heads} is odd, and rotary positions need pairs; make it even",
                {"hidden_size": hidden_size, "num_heads": num_heads},
            )
        return hidden_size


_DETACHED = (
    "this objective does not train the trunk; true for all, because the validation loss rose with policy, dynamics and "
    'spans attached (the value was not tried: benchmarks/LOG.md, "Looking ahead")'
)


class AuxiliaryConfig(BaseModel):
    """What changes the training objective: the parts of the lookahead core, source weights, the curriculum; all off by
    default."""

    model_config = _STRICT

    enable_policy: bool = Field(
        default=False, description="train predicted states to give the LM head's distribution at the true ones"
    )
    enable_value: bool = Field(default=False, description="predict from a state how hard the next tokens are")
    enable_dynamics: bool = Field(default=False, description="train predicted states to be near the true ones")
    enable_span_contrastive: bool = Field(
        default=False, description="tell the next span from all other spans of the micro-batch"
    )
    enable_draft: bool = Field(
        default=False, description="train a drafter of several next tokens, which speeds up generation"
    )
    enable_adaptive_sources: bool = Field(
        default=False, description="source weights follow the losses: sources with a higher loss are read more"
    )
    enable_curriculum: bool = Field(default=False, description="weigh rows by difficulty; evaluation never does")

    policy_kl_weight: float = Field(default=0.05, ge=0.0, description="weight of the policy beside the cross-entropy")
    value_weight: float = Field(
        default=0.1, ge=0.0, description="weight of the value, each for true and for predicted states"
    )
    dynamics_weight: float = Field(default=0.4, ge=0.0, description="weight of the dynamics")
    span_contrastive_weight: float = Field(default=0.1, ge=0.0, description="weight of the contrast of spans")
    draft_weight: float = Field(default=0.1, ge=0.0, description="weight of the drafter")
    information_gain_weight: float = Field(
        default=0.0,
        ge=0.0,
        validate_default=True,
        description="weight of a further target of the value: what reading the next token tells about the one after "
        "it; it never trains the trunk",
    )
    policy_detach_trunk: bool = Field(default=True, description=_DETACHED)
    value_detach_trunk: bool = Field(default=True, description=_DETACHED)
    dynamics_detach_trunk: bool = Field(default=True, description=_DETACHED)
    span_contrastive_detach_trunk: bool = Field(default=True, description=_DETACHED)
    auxiliary_warmup_fraction: float = Field(
        default=0.05,
        ge=0.0,
        lt=1.0,
        description="share of a run in which the weights of a new part grow from 0; after each such share rollouts "
        "become one step longer",
    )
    learning_rate_factor: float = Field(
        default=1.0, gt=0.0, description="learning rate of the lookahead core, as a multiple of train.learning_rate"
    )
    expert_bias_rate: float = Field(
        default=1e-3, ge=0.0, le=1.0, description="step of an expert's bias towards an even load; 0: biases stay"
    )
    expert_balance_weight: float = Field(default=0.0, ge=0.0, description="weight of a loss of uneven loads of experts")
    router_z_weight: float = Field(default=0.0, ge=0.0, description="weight of a loss of large logits of routers")

    rollout_depth: int = Field(default=2, ge=1, le=3, description="steps predicted ahead")
    # rollout_row_fraction comes before policy_position_fraction, whose validator reads it.
    rollout_row_fraction: float = Field(
        default=0.125,
        gt=0.0,
        le=1.0,
        description="share of the rows of a micro-batch that are rolled out; at least one row",
    )
    policy_position_fraction: float = Field(
        default=0.0625,
        gt=0.0,
        le=1.0,
        description="share of all positions at which head and value read predicted states",
    )
    value_horizons: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(4, 16, 64), strict=False, description="numbers of next tokens over which difficulty is averaged"
    )
    span_length: int = Field(default=8, ge=1, description="tokens of a span")
    span_mask_fraction: float = Field(default=0.15, gt=0.0, lt=1.0, description="share of all tokens that lie in spans")
    span_contrastive_temperature: float = Field(default=0.1, gt=0.0, description="temperature of the contrast")
    span_l2_normalize: bool = Field(
        default=True, description="compare spans by cosine; else by the dot product over sqrt(hidden_size)"
    )

    draft_length: int = Field(default=3, ge=2, le=4, description="tokens that the drafter writes at once")
    draft_rollouts: int = Field(
        default=4,
        ge=0,
        le=16,
        validate_default=True,
        description="rollouts of the transition that teach the drafter, beside the text and what the model says along "
        "it; 0: these alone",
    )
    draft_position_fraction: float = Field(
        default=1 / 64,
        gt=0.0,
        le=1.0,
        validate_default=True,
        description="share of all positions that teach the drafter; rollouts from more of them slow training down",
    )

    adaptive_interval_tokens: int = Field(
        default=1_000_000, ge=1, description="tokens between changes of source weights"
    )
    adaptive_min_weight: float = Field(
        default=0.5, gt=0.0, le=1.0, description="least multiple of a source's own weight"
    )
    adaptive_max_weight: float = Field(default=2.0, ge=1.0, description="largest multiple of a source's own weight")
    adaptive_smoothing: float = Field(
        default=0.9, ge=0.0, lt=1.0, description="share of the previous mean loss that is kept"
    )
    curriculum_temperature: float = Field(
        default=1.0, ge=0.01, description="lower reduces the weight of easy rows more"
    )
    curriculum_burn_in_tokens: int = Field(default=5_000_000, ge=0, description="tokens before the curriculum starts")
    curriculum_interval_tokens: int = Field(
        default=1_000_000, ge=1, description="tokens between updates of the thresholds of difficulty"
    )

    @field_validator("policy_position_fraction", "draft_position_fraction")
    @classmethod
    def _positions_lie_in_rolled_out_rows(cls, fraction: float, info: ValidationInfo) -> float:
        rows = info.data.get("rollout_row_fraction", 1.0)  # missing when it was refused
        drafts = info.field_name == "draft_position_fraction"
        if fraction > rows and (info.data.get("enable_draft") or not drafts):
            raise PydanticCustomError(
                "draft_position_fraction" if drafts else "policy_position_fraction",
                "{fraction} of all positions cannot lie in rollout_row_fraction {rows} of the rows; "
                "lower it or raise rollout_row_fraction.",
                {"fraction": fraction, "rows": rows},
            )
        return fraction

    @field_validator("value_horizons")
    @classmethod
    def _horizons_ascend(cls, horizons: tuple[int, ...]) -> tuple[int, ...]:
        if not horizons or list(horizons) != sorted(set(horizons)):
            raise PydanticCustomError(
                "value_horizons",
                "{horizons} is not a list of ascending numbers of tokens; give one or more, the smallest first.",
                {"horizons": str(list(horizons))},
            )
        return horizons

    @field_validator("draft_rollouts")
    @classmethod
    def _rollouts_need_a_transition(cls, rollouts: int, info: ValidationInfo) -> int:
        transition = info.data.get("enable_policy") or info.data.get("enable_dynamics")
        if rollouts and info.data.get("enable_draft") and not transition:
            raise PydanticCustomError(
                "draft_rollouts",
                "{rollouts} rollouts need enable_policy or enable_dynamics, which train what is rolled out; "
                "turn one of them on or set draft_rollouts to 0.",
                {"rollouts": rollouts},
            )
        return rollouts

    @field_validator("information_gain_weight")
    @classmethod
    def _gain_needs_value_and_drafter(cls, weight: float, info: ValidationInfo) -> float:
        if weight and not (info.data.get("enable_value") and info.data.get("enable_draft")):
            raise PydanticCustomError(
                "information_gain_weight",
                "{weight} needs enable_value, which learns the gain, and enable_draft, which measures it; "
                "turn both on or set information_gain_weight to 0.",
                {"weight": weight},
            )
        return weight

    @property
    def foretells_gain(self) -> bool:
        """Whether the value head learns what the next token will tell."""
        return self.information_gain_weight > 0

    @property
    def looks_ahead(self) -> bool:
        """Whether any part of the lookahead core is on."""
        return self.rolls_out or self.enable_value or self.enable_span_contrastive or self.enable_draft

    @property
    def rolls_out(self) -> bool:
        """Whether the lookahead core has a transition."""
        return self.enable_policy or self.enable_dynamics
