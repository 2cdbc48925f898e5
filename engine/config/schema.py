"""The schema of configs/*.json: a name and the sections model, train, data and auxiliary, as frozen pydantic models.

Only setup takes a whole `Preset`; every other function takes one section or plain values.
"""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model.config import AuxiliaryConfig, ModelConfig
from model.latent import require_room
from sources.config import DataConfig


class TrainConfig(BaseModel):
    """How a run trains. Batch sizes are in rows of `model.seq_length` tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    per_gpu_batch_size: int = Field(
        default=32, ge=1, le=2**30, description="rows of a micro-batch: one forward and backward on one rank"
    )
    accumulation_steps: int = Field(
        default=1, ge=1, le=2**30, description="gradient accumulation steps: micro-batches of one optimizer step"
    )
    probe_batch: bool = Field(
        default=False,
        description="measure which micro-batch fits and is fastest; the global batch stays that of the two keys above",
    )
    train_tokens: int | None = Field(
        default=None, ge=1, description="accepted and overridden: a run is 100,000,000 tokens"
    )
    eval_tokens: int = Field(default=500_000, ge=1, le=2**50, description="tokens of the validation set")
    eval_interval_tokens: int = Field(
        default=5_000_000, ge=1, le=2**50, description="training tokens between two evaluations"
    )
    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw", description="muon: Muon for hidden matrices, AdamW for all other parameters"
    )
    learning_rate: float = Field(default=2e-3, gt=0, le=1, description="peak learning rate")
    weight_decay: float = Field(
        default=0.1, ge=0, le=1, description="for matrices; norms, biases and embeddings have none"
    )
    warmup_fraction: float = Field(
        default=0.02, ge=0, lt=1, description="share of a run in which the learning rate warms up"
    )
    final_learning_rate_fraction: float = Field(
        default=0.1, ge=0, le=1, description="learning rate at the end, as a share of its peak"
    )
    gradient_clipping: float = Field(
        default=1.0, gt=0, description="largest gradient norm, of the trunk and of the lookahead core each"
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(default=1, description="DeepSpeed's ZeRO stage")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        default="auto", description="auto: bf16 where the hardware has it natively, else fp32; weights are always fp32"
    )
    compile: Literal["auto", True, False] = Field(
        default="auto", description="torch.compile; auto: where it works, but not at ZeRO stage 3"
    )
    on_spike: Literal["log", "skip"] = Field(
        default="log", description="log: report a step whose loss is a spike; skip: skip it as well"
    )
    max_skipped_steps: int = Field(
        default=10, ge=1, le=2**30, description="this many skipped steps in a row are a divergence"
    )
    on_divergence: Literal["stop", "rollback"] = Field(
        default="stop", description="rollback: return to the newest checkpoint and continue with other text"
    )
    save_interval_minutes: float = Field(default=10.0, gt=0, description="minutes between two checkpoints")
    log_interval_seconds: float = Field(default=10.0, gt=0, description="seconds between two console lines")
    seed: int = Field(default=1234, ge=0, lt=2**63, description="of the initial weights, the data order and dropout")
    forbid_synchronization: bool = Field(
        default=False, description="for debugging: a micro-batch that waits for the device ends the run"
    )
    deterministic: bool = Field(
        default=False, description="only kernels that give the same bits every time; slower on a GPU"
    )


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
            raise ValueError(
                'auxiliary.enable_adaptive_sources has no effect with data.mix_strategy "sequential"; '
                'set the latter to "weighted" or the former to false.'
            )
        if self.auxiliary.looks_ahead:
            require_room(self.auxiliary, self.model.seq_length)
        return self
