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
    num_layers: int = Field(3, ge=1)
    num_heads: int = Field(4, ge=1)
    positions: Literal["learned", "rotary"] = "learned"
    hidden_size: int = Field(256, ge=1)
    seq_length: int = Field(256, ge=2)
    norm: Literal["layer", "rms"] = "layer"
    qk_norm: bool = False
    mlp: Literal["gelu", "squared_relu", "swiglu"] = "gelu"
    tie_embeddings: bool = True
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    init_std: float = Field(0.02, gt=0.0, le=1.0)

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


class AuxiliaryConfig(BaseModel):
    """What changes the objective or its weights, all of it off by default."""

    model_config = _STRICT

    enable_policy: bool = False
    enable_value: bool = False
    enable_dynamics: bool = False
    enable_span_contrastive: bool = False
    enable_adaptive_sources: bool = False
    enable_curriculum: bool = False

    policy_kl_weight: float = Field(0.05, ge=0.0)
    value_weight: float = Field(0.1, ge=0.0)
    dynamics_weight: float = Field(0.1, ge=0.0)
    span_contrastive_weight: float = Field(0.1, ge=0.0)
    # All are detached, because the cross-entropy paid for it where they were not (benchmarks/LOG.md, "Looking ahead").
    policy_detach_trunk: bool = True
    value_detach_trunk: bool = True
    dynamics_detach_trunk: bool = True
    span_contrastive_detach_trunk: bool = True
    auxiliary_warmup_fraction: float = Field(0.05, ge=0.0, lt=1.0)
    learning_rate_factor: float = Field(1.0, gt=0.0)

    rollout_depth: int = Field(2, ge=1, le=3)
    # rollout_row_fraction stands before policy_position_fraction so that the latter's check can see it.
    rollout_row_fraction: float = Field(0.125, gt=0.0, le=1.0)
    policy_position_fraction: float = Field(0.0625, gt=0.0, le=1.0)
    value_horizons: tuple[Annotated[int, Field(ge=1)], ...] = Field((4, 16, 64), strict=False)
    span_length: int = Field(8, ge=1)
    span_mask_fraction: float = Field(0.15, gt=0.0, lt=1.0)
    span_contrastive_temperature: float = Field(0.1, gt=0.0)
    span_l2_normalize: bool = True

    adaptive_interval_tokens: int = Field(1_000_000, ge=1)
    adaptive_min_weight: float = Field(0.5, gt=0.0, le=1.0)
    adaptive_max_weight: float = Field(2.0, ge=1.0)
    adaptive_smoothing: float = Field(0.9, ge=0.0, lt=1.0)
    curriculum_temperature: float = Field(1.0, ge=0.01)
    curriculum_burn_in_tokens: int = Field(5_000_000, ge=0)
    curriculum_interval_tokens: int = Field(1_000_000, ge=1)

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
        return self.enable_policy or self.enable_value or self.enable_dynamics or self.enable_span_contrastive
