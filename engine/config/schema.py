"""The schema of configs/*.json: a name and the sections model, train, data and auxiliary, as frozen pydantic models.

Only setup takes a whole `Preset`; every other function takes one section or plain values.
"""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from model.config import ADDITIONS, AuxiliaryConfig, ModelConfig, require_room
from sources.config import DataConfig

TOKENS_PER_RUN = 100_000_000
MOST_ROWS = 2**30
Count = Annotated[int, Field(ge=1, le=MOST_ROWS)]
Tokens = Annotated[int, Field(ge=1, le=2**50)]
Fraction = Annotated[float, Field(ge=0, le=1)]
LengthFrom = Annotated[tuple[Fraction, Annotated[int, Field(ge=2, le=2**20)]], Field(strict=False)]
Factor = Annotated[float, Field(gt=0, le=1000)]
Polynomial = Literal["quintic", "polar_express"]
_OF_MUON = ("cautious_weight_decay", "muon_momentum_warmup_fraction", "muon_normalise_rows", "muon_soap")


class TrainConfig(BaseModel):
    """How a run trains. Batch sizes are in rows of `model.seq_length` tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    per_gpu_batch_size: Count = Field(default=32, description="rows of one micro-batch on one rank")
    accumulation_steps: Count = Field(default=1, description="gradient accumulation: micro-batches of one step")
    batch_doublings: tuple[Fraction, ...] = Field(
        default=(), strict=False, max_length=20, description="shares of a run at which the rows of a step double"
    )
    seq_length_schedule: tuple[LengthFrom, ...] = Field(
        default=(),
        strict=False,
        max_length=20,
        description="[share of a run, tokens of a row from there on]; steps keep their tokens; empty: model.seq_length",
    )
    rewarm_fraction: Fraction = Field(
        default=0.3, description="learning rate / peak, to which it is warmed again where rows become longer"
    )
    memory_segments: int = Field(
        default=2, ge=2, le=1024, description="windows of a row, with model.memory_tokens; gradients flow through all"
    )
    probe_batch: bool = Field(default=False, description="measure the fastest micro-batch; the global batch stays")
    train_tokens: int | None = Field(default=None, ge=1, description="overridden: a run is 100,000,000 tokens")
    eval_tokens: Tokens = Field(default=500_000, description="tokens of the validation set")
    eval_interval_tokens: Tokens = Field(default=5_000_000, description="training tokens between two evaluations")
    optimizer: Literal["adamw", "muon"] = Field(default="adamw", description="muon: for hidden matrices, AdamW else")
    learning_rate: float = Field(default=2e-3, gt=0, le=1, description="peak learning rate")
    weight_decay: Fraction = Field(default=0.1, description="for matrices; norms, biases and embeddings have none")
    warmup_fraction: float = Field(default=0.02, ge=0, lt=1, description="share of a run with learning rate warm-up")
    final_learning_rate_fraction: Fraction = Field(default=0.1, description="final learning rate / peak learning rate")
    learning_rate_schedule: Literal["cosine", "linear"] = Field(default="cosine", description="how it falls")
    cooldown_fraction: float = Field(default=1.0, gt=0, le=1, description="share of a run, its end, in which it falls")
    embedding_rate_factor: Factor = Field(default=1.0, description="embeddings' learning rate / learning_rate")
    head_rate_factor: Factor = Field(default=1.0, description="an untied head's learning rate / learning_rate")
    scalar_rate_factor: Factor = Field(default=1.0, description="norms', biases' and scalars' rate / learning_rate")
    embedding_weight_decay: Fraction = Field(default=0.0, description="for embeddings and a head tied to them")
    head_weight_decay: Fraction | None = Field(default=None, description="for an untied head; null: weight_decay")
    weight_decay_schedule: Literal["constant", "linear"] = Field(default="constant", description="linear: falls to 0")
    # optimizer comes before the following ones, whose validator reads it.
    cautious_weight_decay: bool = Field(default=False, description="only of what a step of Muon makes smaller")
    muon_momentum_warmup_fraction: Fraction = Field(default=0.0, description="share of a run with momentum warm-up")
    muon_nesterov: bool = Field(default=True, description="Nesterov momentum")
    muon_normalise_rows: bool = Field(default=False, description="rows of Muon's updates are normalised, as NorMuon's")
    muon_soap: bool = Field(default=False, description="SOAP scales Muon's updates before they are orthogonalised")
    muon_polynomial: Polynomial = Field(default="quintic", description="how Muon orthogonalises")
    muon_iterations: int = Field(default=5, ge=1, le=20, description="how often")
    beta2_half_life_tokens: Tokens | None = Field(
        default=None,
        description="tokens after which AdamW has forgotten half of a squared gradient; null: beta2 is 0.95",
    )
    weight_average_fraction: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of a run, its end, whose average weights are its result; 0: the last",
    )
    gradient_clipping: float = Field(default=1.0, gt=0, description="largest gradient norm, the lookahead core aside")
    zero_stage: Literal["auto", 0, 1, 2, 3] = Field(
        default=1, description="DeepSpeed's ZeRO stage; auto: the lowest that fits into memory"
    )
    offload_optimizer: bool = Field(default=False, description="keep AdamW's state in the CPU's memory; stages 1 and 2")
    checkpoint_activations: bool = Field(default=False, description="compute blocks again in the backward: less memory")
    expert_parallel_size: Count = Field(default=1, description="processes over which the experts of a block are spread")
    precision: Literal["auto", "bf16", "fp32"] = Field(default="auto", description="auto: bf16 where native, else fp32")
    products: Literal["auto", "torch", "kernel"] = Field(
        default="auto", description="what multiplies fp32 on a CPU; auto: without bf16 arithmetic the faster one"
    )
    compile: Literal["auto", True, False] = Field(default="auto", description="auto: where it works, not at stage 3")
    on_spike: Literal["log", "skip"] = Field(default="log", description="skip: a step whose loss is a spike is skipped")
    max_skipped_steps: Count = Field(default=10, description="skipped steps in a row that end the run or roll it back")
    on_divergence: Literal["stop", "rollback"] = Field(
        default="stop", description="rollback: return to the newest checkpoint and continue with other text"
    )
    save_interval_minutes: float = Field(default=10.0, gt=0, description="minutes between two checkpoints")
    log_interval_seconds: float = Field(default=10.0, gt=0, description="seconds between two console lines")
    log_to: Annotated[tuple[Literal["tensorboard", "trackio", "wandb"], ...], Field(strict=False)] = Field(
        default=(), description="experiment trackers that get the run's events, too"
    )
    seed: int = Field(default=1234, ge=0, lt=2**63, description="of the initial weights, the data order and dropout")
    forbid_synchronization: bool = Field(default=False, description="debugging: a micro-batch may not wait for the GPU")
    deterministic: bool = Field(default=False, description="only deterministic kernels: the same bits; slower on a GPU")

    @field_validator("batch_doublings")
    @classmethod
    def _shares_ascend(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if list(shares) != sorted(shares):
            raise PydanticCustomError(
                "batch_doublings",
                "{shares} is not a list of ascending shares of a run; give the smallest first.",
                {"shares": str(list(shares))},
            )
        return shares

    @field_validator("seq_length_schedule")
    @classmethod
    def _rows_grow(cls, schedule: tuple[tuple[float, int], ...]) -> tuple[tuple[float, int], ...]:
        shares, lengths = [share for share, _ in schedule], [length for _, length in schedule]
        ascend = all(sorted(set(numbers)) == numbers for numbers in (shares, lengths))
        if schedule and (shares[0] or shares[-1] >= 1 or not ascend):
            raise PydanticCustomError(
                "seq_length_schedule",
                "{schedule} does not begin at share 0 with the shortest rows, or does not ascend to a share below 1; "
                "write it as [[0, 256], [0.85, 1024]].",
                {"schedule": json.dumps(schedule)},
            )
        return schedule

    @property
    def shortest_rows(self) -> int | None:
        """Tokens of the first rows of a schedule; None without one."""
        return self.seq_length_schedule[0][1] if self.seq_length_schedule else None

    @field_validator(*_OF_MUON)
    @classmethod
    def _belongs_to_muon(cls, value: Any, info: ValidationInfo) -> Any:
        if value and info.data.get("optimizer") == "adamw":
            raise PydanticCustomError(
                "of_muon", '{value} needs Muon; set train.optimizer to "muon" or leave it out.', {"value": str(value)}
            )
        return value

    @field_validator("muon_soap")
    @classmethod
    def _scales_once(cls, soap: bool, info: ValidationInfo) -> bool:
        if soap and info.data.get("muon_normalise_rows"):
            raise PydanticCustomError(
                "muon_soap", "SOAP and muon_normalise_rows both scale Muon's updates; turn one of them off."
            )
        return soap

    @model_validator(mode="after")
    def _check_offload(self) -> Self:
        if self.offload_optimizer and (self.zero_stage in (0, 3) or self.optimizer != "adamw"):
            raise ValueError(
                'Offloading the optimizer works with train.optimizer "adamw" at ZeRO stages 1 and 2; set '
                "train.offload_optimizer to false or change those."
            )
        return self


class Preset(BaseModel):
    """A whole preset. Every key has a default, so a file names only what it changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_file: str | None = Field(default=None, alias="$schema", description="for editors; ignored")
    name: str = Field(min_length=1, pattern=r"^[\w .+-]+$")
    description: str = Field(default="", description="for whoever reads the file")
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    data: DataConfig = DataConfig()
    auxiliary: AuxiliaryConfig = AuxiliaryConfig()

    @model_validator(mode="after")
    def _check_sections_against_each_other(self) -> Self:
        if self.auxiliary.enable_adaptive_sources and self.data.mix_strategy == "sequential":
            remedy = 'set data.mix_strategy to "weighted" or auxiliary.enable_adaptive_sources to false'
            raise ValueError(f'Adaptive sources have no effect with data.mix_strategy "sequential"; {remedy}.')
        if self.auxiliary.enable_adaptive_sources and self.train.batch_doublings:
            remedy = "leave out train.batch_doublings or set auxiliary.enable_adaptive_sources to false"
            raise ValueError(f"Adaptive sources count steps of one size; {remedy}.")
        if self.train.offload_optimizer and self.auxiliary.looks_ahead:
            raise ValueError("The lookahead core is not offloaded; set train.offload_optimizer to false.")
        self._check_rows()
        if self.auxiliary.looks_ahead:
            require_room(self.auxiliary, self.model.seq_length)
            if shortest := self.train.shortest_rows:
                require_room(self.auxiliary, shortest, "train.seq_length_schedule begins with")
            for key in ("value_embeddings", "logit_softcap", "embedding_size", "memory_tokens"):
                if key in self.model.additions:
                    raise ValueError(
                        f"The lookahead core cannot read a trunk with model.{key}; set that to "
                        f"{json.dumps(ADDITIONS[key])} or turn the core's parts in auxiliary off."
                    )
        if problem := self._expert_parallel_problem():
            size = self.train.expert_parallel_size
            raise ValueError(f"train.expert_parallel_size {size} {problem} or train.expert_parallel_size to 1.")
        if problem := self._memory_problem():
            raise ValueError(problem)
        return self

    def _check_rows(self) -> None:
        """A schedule's rows end as model.seq_length says, and as many of them make one of those."""
        longest = self.model.seq_length
        for _, length in self.train.seq_length_schedule:
            if longest % length:
                raise ValueError(
                    f"train.seq_length_schedule: rows of {length} tokens do not divide those of model.seq_length, "
                    f"{longest}, which a step's tokens are counted in; change one of them."
                )
        if self.train.seq_length_schedule and self.train.seq_length_schedule[-1][1] != longest:
            raise ValueError(
                f"train.seq_length_schedule ends with rows of {self.train.seq_length_schedule[-1][1]} tokens, and "
                f"model.seq_length is {longest}; make them equal."
            )
        if self.data.long_text_length and len(self.train.seq_length_schedule) < 2:
            raise ValueError(
                "data.long_text_length has no effect without a train.seq_length_schedule of two steps or more; "
                "remove it, or raise data.min_text_length."
            )

    @property
    def windows(self) -> int:
        """How many windows of model.seq_length tokens a row of the training has."""
        return self.train.memory_segments if self.model.memory_tokens else 1

    def _memory_problem(self) -> str | None:
        """What keeps memory tokens from being trained, and what to set."""
        tokens, length, train = self.model.memory_tokens, self.model.seq_length, self.train
        if not tokens:
            for key, is_set in (
                ("train.memory_segments", train.memory_segments != 2),
                ("auxiliary.memory_reconstruction_weight", self.auxiliary.memory_reconstruction_weight),
            ):
                if is_set:
                    return f"{key} has no effect without memory tokens; set model.memory_tokens or leave it out."
            return None
        if tokens % 2 or length % tokens:
            return (
                f"model.memory_tokens {tokens} is no even divisor of model.seq_length {length}, summed up in equal "
                "groups; make it one, for example an eighth, or set it to 0."
            )
        if len(train.seq_length_schedule) > 1:
            return (
                "model.memory_tokens need rows of one length; leave out train.seq_length_schedule or set "
                "model.memory_tokens to 0."
            )
        if self.model.num_experts:
            return "model.memory_tokens and model.num_experts cannot be combined; set one of them to 0."
        if train.per_gpu_batch_size % train.memory_segments:
            return (
                f"train.per_gpu_batch_size {train.per_gpu_batch_size} cannot be divided into rows of "
                f"train.memory_segments {train.memory_segments} windows; make it a multiple of that."
            )
        return None

    def _expert_parallel_problem(self) -> str | None:
        """What keeps experts from being spread over processes, and what to set."""
        size = self.train.expert_parallel_size
        if size == 1:
            return None
        if not self.model.num_experts or self.model.num_experts % size:
            return f"does not divide model.num_experts {self.model.num_experts}; set that to a multiple of it"
        if self.train.zero_stage not in (1, 2):
            return f"needs ZeRO stage 1 or 2; set train.zero_stage {self.train.zero_stage} to one of them"
        if self.train.offload_optimizer:
            return "does not go with train.offload_optimizer; set that to false"
        if self.auxiliary.looks_ahead:
            return "leaves the lookahead core no experts to read; turn the core's parts in auxiliary off"
        return None
