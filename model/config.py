"""The keys of a preset's `model` and `auxiliary` sections.

Both are frozen and refuse unknown keys; types are strict, because a preset is JSON and `"256"` is not a number there.
The vocabulary is no key of a preset: it follows from the tokenizer and is handed to the model beside its configuration.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)


class ModelConfig(BaseModel):
    """The shape of the trunk: a pre-norm decoder."""

    model_config = _STRICT

    # num_heads and positions stand before hidden_size so that the latter's check can see them.
    num_layers: int = Field(3, ge=1, le=1000, description="blocks of the trunk")
    num_heads: int = Field(4, ge=1, le=2**20, description="attention heads of a block")
    positions: Literal["learned", "rotary"] = Field("learned", description="how a token knows its place")
    hidden_size: int = Field(256, ge=1, le=2**20, description="width of the states")
    seq_length: int = Field(256, ge=2, le=2**20, description="tokens of a row")
    norm: Literal["layer", "rms"] = Field("layer", description="LayerNorm or RMSNorm")
    qk_norm: bool = Field(False, description="queries and keys are normalised head by head")
    mlp: Literal["gelu", "squared_relu", "swiglu"] = Field(
        "gelu", description="the activation between a block's two products"
    )
    bias: bool = Field(True, description="the products and LayerNorms of the blocks add a bias")
    tie_embeddings: bool = Field(True, description="the head reads the embedding")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="share of what the blocks add that is dropped")
    init_std: float = Field(0.02, gt=0.0, le=1.0, description="standard deviation of the initial weights")

    @field_validator("hidden_size")
    @classmethod
    def _heads_divide_hidden_size(cls, hidden_size: int, info: ValidationInfo) -> int:
        num_heads = info.data.get("num_heads", 1)  # absent when num_heads itself was refused
        if hidden_size % num_heads:
            below = hidden_size // num_heads * num_heads
            remedy = f"{below} or {below + num_heads}" if below else f"{num_heads}"
            raise PydanticCustomError(
                "hidden_size",
                "{hidden_size} cannot be divided among num_heads {num_heads}; use {remedy}",
                {"hidden_size": hidden_size, "num_heads": num_heads, "remedy": remedy},
            )
        if info.data.get("positions") == "rotary" and hidden_size // num_heads % 2:
            raise PydanticCustomError(
                "hidden_size",
                "{hidden_size} over num_heads {num_heads} is odd, and rotary positions turn pairs; make it even",
                {"hidden_size": hidden_size, "num_heads": num_heads},
            )
        return hidden_size


_DETACHED = (
    "that objective does not train the trunk; all are detached, because the cross-entropy paid for it where policy, "
    'dynamics and spans were not (the value was not tried: benchmarks/LOG.md, "Looking ahead")'
)


class AuxiliaryConfig(BaseModel):
    """What changes the objective or its weights, all of it off by default."""

    model_config = _STRICT

    enable_policy: bool = Field(
        False, description="what a predicted state says through the LM head is to be what the true one says"
    )
    enable_value: bool = Field(False, description="a state tells how hard the next tokens will be")
    enable_dynamics: bool = Field(False, description="a predicted state is to be near the true one")
    enable_span_contrastive: bool = Field(
        False, description="a state tells the coming span from all others of the pass"
    )
    enable_adaptive_sources: bool = Field(
        False, description="source weights follow the losses: what is learned less well is read more"
    )
    enable_curriculum: bool = Field(False, description="rows count by how hard they are; evaluation is never weighed")

    policy_kl_weight: float = Field(0.05, ge=0.0, description="what the policy counts beside the cross-entropy")
    value_weight: float = Field(0.1, ge=0.0, description="what the value counts, of true states and of predicted ones")
    dynamics_weight: float = Field(0.4, ge=0.0, description="what the dynamics count")
    span_contrastive_weight: float = Field(0.1, ge=0.0, description="what the contrast of spans counts")
    policy_detach_trunk: bool = Field(True, description=_DETACHED)
    value_detach_trunk: bool = Field(True, description=_DETACHED)
    dynamics_detach_trunk: bool = Field(True, description=_DETACHED)
    span_contrastive_detach_trunk: bool = Field(True, description=_DETACHED)
    auxiliary_warmup_fraction: float = Field(
        0.05,
        ge=0.0,
        lt=1.0,
        description="share of a run, from where a part begins, in which its weights grow from 0; after each such "
        "share a rollout becomes one step longer",
    )
    learning_rate_factor: float = Field(
        1.0, gt=0.0, description="the core's learning rate, in units of train.learning_rate"
    )

    rollout_depth: int = Field(2, ge=1, le=3, description="steps predicted ahead")
    # rollout_row_fraction stands before policy_position_fraction so that the latter's check can see it.
    rollout_row_fraction: float = Field(
        0.125, gt=0.0, le=1.0, description="share of the rows of a pass in which that is done; at least one row"
    )
    policy_position_fraction: float = Field(
        0.0625,
        gt=0.0,
        le=1.0,
        description="share of all positions at which predicted states are read by the head and the value",
    )
    value_horizons: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (4, 16, 64), strict=False, description='tokens over which "how hard" is the mean'
    )
    span_length: int = Field(8, ge=1, description="tokens of a span")
    span_mask_fraction: float = Field(0.15, gt=0.0, lt=1.0, description="share of the tokens that are in one")
    span_contrastive_temperature: float = Field(0.1, gt=0.0, description="of the contrast")
    span_l2_normalize: bool = Field(True, description="cosine; else the dot product over sqrt(hidden_size)")

    adaptive_interval_tokens: int = Field(1_000_000, ge=1, description="tokens between two changes of the weights")
    adaptive_min_weight: float = Field(0.5, gt=0.0, le=1.0, description="least multiple of a source's own weight")
    adaptive_max_weight: float = Field(2.0, ge=1.0, description="largest multiple of a source's own weight")
    adaptive_smoothing: float = Field(
        0.9, ge=0.0, lt=1.0, description="share of the old average of losses that is kept"
    )
    curriculum_temperature: float = Field(1.0, ge=0.01, description="lower weighs easy rows down more")
    curriculum_burn_in_tokens: int = Field(5_000_000, ge=0, description="tokens before it begins")
    curriculum_interval_tokens: int = Field(1_000_000, ge=1, description="tokens between two looks at recent rows")

    @field_validator("policy_position_fraction")
    @classmethod
    def _positions_lie_in_rolled_out_rows(cls, fraction: float, info: ValidationInfo) -> float:
        rows = info.data.get("rollout_row_fraction", 1.0)  # absent when it was refused itself
        if fraction > rows:
            raise PydanticCustomError(
                "policy_position_fraction",
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
                "{horizons} is no list of ascending numbers of tokens; give one or more, the smallest first.",
                {"horizons": str(list(horizons))},
            )
        return horizons

    @property
    def looks_ahead(self) -> bool:
        """Whether any part of the latent core is on."""
        return self.rolls_out or self.enable_value or self.enable_span_contrastive

    @property
    def rolls_out(self) -> bool:
        """Whether there is a transition."""
        return self.enable_policy or self.enable_dynamics
