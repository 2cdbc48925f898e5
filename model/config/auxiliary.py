"""The keys of a preset's section `auxiliary`: what looks ahead, and how text is chosen and weighed."""

from typing import Annotated

from pydantic import BaseModel, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from .sections import STRICT

_DETACHED = (
    "this objective does not train the trunk; true for all, because the validation loss rose with policy, dynamics and "
    'spans attached (the value was not tried: benchmarks/LOG.md, "Looking ahead")'
)


class AuxiliaryConfig(BaseModel):
    """What changes the training objective: the parts of the lookahead core, source weights, the curriculum; all off by
    default."""

    model_config = STRICT

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
        "it; with value_detach_trunk it does not train the trunk",
    )
    gain_weighting: float = Field(
        default=0.0,
        ge=0.0,
        validate_default=True,
        description="how much more a token counts that is expected to tell more: exp(gain_weighting x nats), with mean "
        "1 over each row; evaluation never does; needs information_gain_weight",
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

    memory_reconstruction_weight: float = Field(
        default=0.0, ge=0.0, description="weight of a loss by which memory tokens name the tokens that they sum up"
    )
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

    @field_validator("gain_weighting")
    @classmethod
    def _weighting_needs_the_gain(cls, strength: float, info: ValidationInfo) -> float:
        if strength and not info.data.get("information_gain_weight", 1.0):
            raise PydanticCustomError(
                "gain_weighting",
                "{strength} needs information_gain_weight, by which the gain is learned; "
                "raise that above 0 or set gain_weighting to 0.",
                {"strength": strength},
            )
        return strength

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
