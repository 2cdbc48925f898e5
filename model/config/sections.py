"""The keys of a preset's section `model`.

It is frozen and refuses unknown keys, as `auxiliary` is and does; types are strict, because a preset is JSON and
`"256"` is not a number there. The vocabulary size is not a key: it follows from the tokenizer and is passed to the
model beside its configuration.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

MOST_HIDDEN = 2**20
STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)


# What no other program and no kernel for decoding has, and its value where it is off.
ADDITIONS: dict[str, Any] = {
    "embedding_norm": False,
    "stream_scales": False,
    "skip_connections": False,
    "value_embeddings": "none",
    "attention_gates": False,
    "exclusive_attention": False,
    "bigram_rows": 0,
    "embedding_context": 0,
    "logit_softcap": 0.0,
    "embedding_size": 0,
    "memory_tokens": 0,
}


class ModelConfig(BaseModel):
    """The shape of the trunk: a pre-norm decoder."""

    model_config = STRICT

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
    head_init: Literal["normal", "zero"] = Field(default="normal", description="initial weights of an untied head")
    embedding_size: int = Field(
        default=0, ge=0, le=MOST_HIDDEN, description="size of embeddings and head, which are projected; 0: hidden_size"
    )
    bigram_rows: int = Field(
        default=0, ge=0, le=2**30, description="rows of a hashed embedding of pairs of tokens; 0: there is none"
    )
    embedding_context: int = Field(
        default=0,
        ge=0,
        le=64,
        description="tokens before each one whose embeddings are added to its own, through a matrix for each distance",
    )
    memory_tokens: int = Field(
        default=0, ge=0, le=2**20, description="tokens that sum up the window before, an even divisor of seq_length"
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
