"""A model that reads tokens into slots, each of which holds the keys and values of one row.

`KernelDecoder` is for CPUs: one call of kernel.c a step. `TorchDecoder` (torch_decoder.py) runs the model itself, on
any device. Both keep the same promises: a token's logits depend on its slot's tokens alone. What the
lookahead core's drafter drafts, decoders draft too: see drafts/.
"""

import copy
import ctypes
from collections.abc import Sequence
from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn

from ..attention import NORM_EPS
from ..block import MLP, Norm, TransformerBlock
from ..experts import sparse_layers
from ..latent.draft import Drafter
from ..memory import SlotMemory
from ..streams.context import EmbeddingContext
from ..streams.gates import HeadGate
from ..streams.rescaling import folded
from ..streams.streams import Skip, Streams, StreamScale
from ..transformer import TransformerLM
from . import kernel
from .processing import shares_by_kernel
from .settings import GenerationSettings
from .torch_decoder import TorchDecoder

Precision = Literal["fp32", "bf16", "int8"]
_FORMATS: dict[Precision, int] = {"fp32": 0, "bf16": 1, "int8": 2}
_MLPS = {"gelu": 0, "squared_relu": 1, "swiglu": 2}


class Decoder(Protocol):
    """Slots of up to `window` tokens. `lengths` says how many each holds; lowering one forgets the tokens after it."""

    window: int
    vocab_size: int
    lengths: list[int]
    memory: SlotMemory | None  # of what has left the window, for a model with memory tokens; see memory.slide
    draft_length: int  # tokens that `draft` drafts; 0 without a drafter
    hidden: Tensor  # the final states (n, D) of the n tokens of the last call; overwritten by the next one

    def read(self, slot: int, tokens: Sequence[int], every: bool = False) -> Tensor:
        """Append tokens to a slot. Returns the logits (1, V) after the last one, or (len(tokens), V) after each; they
        are overwritten by the next call."""
        ...

    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Append one token to each of some slots. Returns logits (len(slots), V), overwritten by the next call."""
        ...

    def reorder(self, slots: Sequence[int], start: int = 0) -> None:
        """Let slot i hold what slots[i] holds; the first `start` tokens are known to be the same."""
        ...

    def place(self) -> None:
        """Before a round of `draft`, `condition` and `verify`: `lengths` are those of now."""
        ...

    def verify(self, tokens: Tensor) -> Tensor:
        """Append tokens (B, n) to the first B slots. Returns the logits (B, n, V) after each, overwritten by the next
        call."""
        ...

    def last_block(self, slot: int) -> tuple[Tensor, Tensor]:
        """Keys and values (1, H, n, D/H) of the trunk's last block, of the n tokens that a slot holds."""
        ...

    def draft(self, slot: int, hidden: Tensor, token: Tensor) -> Tensor:
        """Logits (draft_length, V) of what may follow `token` (), which follows the tokens that a slot holds; hidden
        (D,): the state after the last of these. Without the Markov term; overwritten by the next call."""
        ...

    def condition(self, logits: Tensor, previous: Tensor) -> Tensor:
        """One place's logits (V,), which may be overwritten, once the token `previous` () before it is known."""
        ...

    def shares(self, scores: Tensor, settings: GenerationSettings) -> Tensor:
        """processing.probabilities of scores (n, V), which may be overwritten."""
        ...


class Weights:
    """A model's weights in the form in which a decoder reads them; made once, used by many decoders."""

    def __init__(self, model: TransformerLM, precision: Precision):
        self.precision: Precision = precision
        # The kernel knows neither experts nor memory tokens.
        on_cpu = model.final_norm.weight.device.type == "cpu" and not model.config.num_experts
        self.on_kernel = on_cpu and kernel.knows(model.config) and kernel.library() is not None
        self.model = model
        self._kept: list[Tensor] = []  # what the structures point to
        self.drafter = None if model.latent is None else model.latent.drafter
        if self.on_kernel:
            self._pack(_without_factors(model))
            if self.drafter is not None:
                self._pack_drafter(self.drafter, model.head_weight)
        elif precision != "fp32":
            self.model = _converted(model, precision)

    def decoder(self, slots: int) -> Decoder:
        """A decoder of `slots` empty slots."""
        return KernelDecoder(self, slots) if self.on_kernel else TorchDecoder(self.model, slots, self.drafter)

    def _pack(self, model: TransformerLM) -> None:
        blocks = [cast(TransformerBlock, block) for block in model.blocks]
        layers, streams = (kernel.Layer * len(blocks))(), model.streams
        for number, (layer, block) in enumerate(zip(layers, blocks, strict=True)):
            attention, mlp = block.attention, cast(MLP, block.mlp)
            layer.attention_norm, layer.mlp_norm = self._norm(block.attention_norm), self._norm(block.mlp_norm)
            layer.query_norm, layer.key_norm = self._norm(attention.query_norm), self._norm(attention.key_norm)
            layer.qkv = self._linear(attention.in_proj_weight, attention.in_proj_bias)
            layer.out = self._linear(attention.out_proj.weight, attention.out_proj.bias)
            layer.up = self._linear(mlp.up.weight, mlp.up.bias)
            layer.down = self._linear(mlp.down.weight, mlp.down.bias)
            layer.output_gate, layer.value_gate = self._gate(attention.output_gate), self._gate(attention.value_gate)
            if streams is not None:
                self._pack_streams(streams, number, layer)
        config = model.config
        rotary = None if model.rotary is None else model.rotary(config.seq_length)
        self.layers, self.context = layers, (kernel.Linear * config.embedding_context)()
        for distance in range(config.embedding_context):
            self.context[distance] = self._linear(cast(EmbeddingContext, model.context).weight[distance], None)
        self.structure = kernel.Model(
            layers=config.num_layers, hidden=config.hidden_size, heads=config.num_heads,
            inner=cast(MLP, blocks[0].mlp).down.in_features, vocab=model.vocab_size, window=config.seq_length,
            format=_FORMATS[self.precision], rms_norm=config.norm == "rms", mlp=_MLPS[config.mlp],
            threads=torch.get_num_threads(), embedding_norm=config.embedding_norm, exclusive=config.exclusive_attention,
            skips=config.num_layers // 2 if config.skip_connections else 0,
            context_tokens=config.embedding_context, context=self.context,
            unit=self._norm(nn.RMSNorm(config.hidden_size, eps=NORM_EPS) if config.additions else None),
            embedding=self._plain(model.tokens.weight),
            bigrams=self._plain(None if model.bigrams is None else model.bigrams.table.weight),
            bigram_rows=config.bigram_rows,
            learned=self._plain(None if model.positions is None else model.positions.weight),
            rotary=self._plain(rotary), layer=layers, final_norm=self._norm(model.final_norm),
            head=self._linear(model.head_weight, None),
        )  # fmt: skip

    def _pack_streams(self, streams: Streams, number: int, layer: kernel.Layer) -> None:
        if streams.scales is not None:
            layer.scales = self._plain(cast(StreamScale, streams.scales[number]).scales)
        if streams.skips is not None and number >= streams.first_skip:
            skip = number - streams.first_skip
            layer.skip = self._plain(cast(Skip, streams.skips[skip]).scale)
            layer.skip_from = len(streams.skips) - 1 - skip
        if str(number) in streams.values:
            weight = cast(Tensor, streams.values[str(number)].weight)
            if streams.from_ids:
                layer.value_table = self._plain(weight)
            else:
                layer.value_projection = self._linear(weight, None)

    def _gate(self, gate: HeadGate | None) -> int | None:
        return None if gate is None else self._plain(gate.weight)

    def _pack_drafter(self, drafter: Drafter, head: Tensor) -> None:
        """In bf16 at least: what is drafted need not be exact, and reading the weights is what it costs."""
        format: Precision = "int8" if self.precision == "int8" else "bf16"
        linears = {
            name: self._linear(getattr(drafter, name).weight, getattr(drafter, name).bias, format)
            for name in ("query", "recall", "up", "direct", "down")
        }
        norms = {
            name: self._norm(getattr(drafter, name)) for name in ("state_norm", "token_norm", "query_norm", "out_norm")
        }
        after, before = self._linear(drafter.after.weight, None, format), self._plain(drafter.before.weight)
        self.draft_structure = kernel.Drafter(
            length=drafter.length, rank=drafter.after.embedding_dim, after=after, before=before, **linears, **norms
        )
        self.draft_format, self.draft_head = _FORMATS[format], self._linear(head, None, format)

    def _linear(self, weight: Tensor, bias: Tensor | None, format: Precision | None = None) -> kernel.Linear:
        """Weights (out, in) with rows up to a multiple of four, which the kernel reads at a time."""
        format = format or self.precision
        weight = weight.detach()
        missing = -len(weight) % 4
        if missing:
            weight = nn.functional.pad(weight, (0, 0, 0, missing))
        scale = None
        if format == "int8":
            weight, scale = quantized(weight)
        elif format == "bf16":
            weight = weight.bfloat16()
        return kernel.Linear(self._pointer(weight), self._plain(scale), self._plain(bias))

    def _norm(self, norm: Norm | None) -> kernel.Norm:
        if norm is None:
            return kernel.Norm()
        return kernel.Norm(self._plain(norm.weight), self._plain(getattr(norm, "bias", None)), norm.eps)

    def _plain(self, tensor: Tensor | None) -> int | None:
        return None if tensor is None else self._pointer(tensor.detach().float())

    def _pointer(self, tensor: Tensor) -> int:
        self._kept.append(tensor.contiguous())
        return self._kept[-1].data_ptr()


class KernelDecoder:
    """See Decoder."""

    def __init__(self, weights: Weights, slots: int):
        library = kernel.library()
        assert library is not None
        self._weights, self._library = weights, library
        self.memory: SlotMemory | None = None
        config = weights.model.config
        self.window, self.vocab_size, self.lengths = config.seq_length, weights.model.vocab_size, [0] * slots
        head = config.hidden_size // config.num_heads
        # Not zeroed: no position is read before it is written.
        self._cache = torch.empty(2, config.num_layers, slots, config.num_heads, self.window, head)
        self._structure = kernel.Model.from_buffer_copy(weights.structure)
        self._structure.slots = slots
        self._structure.keys, self._structure.values = (part.data_ptr() for part in self._cache)
        self._read = torch.empty(slots, self.window, dtype=torch.int64)  # the ids, for bigrams and context
        self._structure.read = self._read.data_ptr()
        self._make_room(max(1, slots))
        self.hidden = self._logits.new_empty(0, config.hidden_size)
        self.draft_length = 0 if weights.drafter is None else weights.drafter.length
        if weights.drafter is not None:
            self._draft_model = kernel.Model.from_buffer_copy(self._structure)
            self._draft_model.format, self._draft_model.head = weights.draft_format, weights.draft_head
            self._draft_logits = torch.empty(self.draft_length, self.vocab_size)
            size = library.draft_scratch_size(self._structure, weights.draft_structure)
            self._draft_scratch = torch.empty(size)

    def read(self, slot: int, tokens: Sequence[int], every: bool = False) -> Tensor:
        start = self.lengths[slot]
        assert 0 < len(tokens) <= self.window - start
        self.lengths[slot] += len(tokens)
        positions = range(start, start + len(tokens))
        return self._forward(tokens, [slot] * len(tokens), positions, len(tokens) if every else 1)

    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> Tensor:
        positions = [self.lengths[slot] for slot in slots]
        for slot in slots:
            self.lengths[slot] += 1
        return self._forward(tokens, slots, positions, len(slots))

    def reorder(self, slots: Sequence[int], start: int = 0) -> None:
        self.lengths = [self.lengths[slot] for slot in slots]
        changed = slice(start, max(self.lengths))
        self._read[:] = self._read[list(slots)]
        self._cache[..., changed, :] = self._cache[:, :, list(slots), :, changed]

    def place(self) -> None:
        pass

    def verify(self, tokens: Tensor) -> Tensor:
        rows, count = tokens.shape
        starts = self.lengths[:rows]
        self.lengths[:rows] = [start + count for start in starts]
        slots = [slot for slot in range(rows) for _ in range(count)]
        positions = [starts[slot] + place for slot in range(rows) for place in range(count)]
        return self._forward(tokens.flatten().tolist(), slots, positions, rows * count).unflatten(0, (rows, count))

    def last_block(self, slot: int) -> tuple[Tensor, Tensor]:
        keys, values = self._cache[:, -1, slot : slot + 1, :, : self.lengths[slot]]
        return keys, values

    def draft(self, slot: int, hidden: Tensor, token: Tensor) -> Tensor:
        self._library.draft(
            self._draft_model, self._weights.draft_structure, hidden.data_ptr(), int(token), slot, self.lengths[slot],
            self._draft_logits.data_ptr(), self._draft_scratch.data_ptr(),
        )  # fmt: skip
        return self._draft_logits

    def condition(self, logits: Tensor, previous: Tensor) -> Tensor:
        self._library.condition(self._draft_model, self._weights.draft_structure, int(previous), logits.data_ptr())
        return logits

    def shares(self, scores: Tensor, settings: GenerationSettings) -> Tensor:
        return shares_by_kernel(scores.contiguous(), settings)

    def _forward(self, tokens: Sequence[int], slots: Sequence[int], positions: Sequence[int], wanted: int) -> Tensor:
        count = len(tokens)
        if count > len(self._tokens):
            self._make_room(count)
        self._tokens[:count], self._slots[:count], self._positions[:count] = tokens, slots, positions
        if wanted > len(self._logits):
            self._logits = torch.empty(wanted, self.vocab_size)
        self._library.forward(
            self._structure, count, self._tokens, self._slots, self._positions, wanted,
            self._logits.data_ptr(), self._scratch.data_ptr(),
        )  # fmt: skip
        width = self._weights.model.config.hidden_size
        self.hidden = self._scratch[count * width :][: count * width].view(count, width)
        return self._logits[:wanted]

    def _make_room(self, count: int) -> None:
        """For calls of `count` tokens."""
        self._tokens = (ctypes.c_int64 * count)()
        self._slots, self._positions = (ctypes.c_int32 * count)(), (ctypes.c_int32 * count)()
        self._logits = torch.empty(min(count, len(self.lengths)), self.vocab_size)
        self._scratch = torch.empty(self._library.scratch_size(self._structure, count))


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (out, in) as int8 and one fp32 scale a row (out,): weight is about int8 * scale."""
    scale = weight.float().abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return (weight.float() / scale[:, None]).round().to(torch.int8), scale


def _copy_of_trunk(model: TransformerLM) -> TransformerLM:
    latent, model.latent = model.latent, None
    try:
        return copy.deepcopy(model)
    finally:
        model.latent = latent


def _without_factors(model: TransformerLM) -> TransformerLM:
    """The same trunk without factors of its blocks, which the kernel does not know."""
    if model.config.layer_rescaling == "none":
        return model
    plain = _copy_of_trunk(model)
    weights, plain.config = folded(plain.state_dict(), plain.config)
    for module in plain.blocks:
        block = cast(TransformerBlock, module)
        block.layer_factor = block.attention.layer_factor = None
    plain.load_state_dict(weights)
    return plain


@torch.no_grad()
def _converted(model: TransformerLM, precision: Precision) -> TransformerLM:
    """A copy of the trunk in bf16, or with weights rounded to int8: the same numbers as the kernel's, unpacked."""
    converted = _copy_of_trunk(model)
    if precision == "bf16":
        routers = [(mlp, copy.deepcopy(mlp.router)) for mlp in sparse_layers(converted.blocks)]
        converted.bfloat16()
        for mlp, router in routers:  # stay in fp32
            mlp.router = router
        return converted
    if converted.lm_head is None:  # the embedding is looked up as it is
        converted.lm_head = nn.Linear(*reversed(converted.tokens.weight.shape), bias=False)
        converted.lm_head.weight = nn.Parameter(converted.tokens.weight.clone())
    tables = {module.weight for module in converted.modules() if isinstance(module, nn.Embedding)}
    for name, parameter in converted.named_parameters():
        if parameter.ndim >= 2 and parameter not in tables and "gate" not in name and "router" not in name:
            weight, scale = quantized(parameter.flatten(0, -2))  # experts are stacked
            parameter.copy_((weight * scale[:, None]).view(parameter.shape))
    return converted
