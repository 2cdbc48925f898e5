"""The trunk: token ids -> hidden states -> logits, and the training loss.

Notable here
- The embedding has a multiple of 64 rows, which keeps matrix products on fast paths. The padding rows have the output
  bias -inf, so their probability is exactly zero in training; decoding never reads them.
- A tied head reads the embedding: there is no second parameter and no second copy in a checkpoint.
- `forward` computes the loss without the logits of the whole batch (loss.py); `logits` is for decoding.
- What can be computed again (masks, position ids, the output bias) is not in the state dict.
- With dropout 0 `forward` draws no random number.
- Features that are off cost nothing: without segment_ids no mask is built, without `difficulty` the head is read once,
  and without auxiliary objectives there is no lookahead core.
- Options that add something to what the blocks read (streams/) start as the plain trunk and draw nothing.
- The lookahead core (latent/) is one class to the trunk: LookaheadCore gets its states, and what it returns is added to
  the loss.
- With memory tokens (memory/) a row has several windows, which are read one after the other.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import KeyValueCache, causal_mask, segment_mask
from .block import TransformerBlock, initialise_weights, make_norm
from .config import AuxiliaryConfig, ModelConfig
from .config.size import flops_per_token, padded_vocabulary, value_layers
from .experts import sparse_layers
from .experts.training import take_routing
from .latent import LookaheadCore
from .loss import linear_cross_entropy
from .memory import Read, WindowMemory, behind, memory_output, read_windows
from .positions import LearnedPositions, RotaryPositions
from .row_weights import gain_weights, row_losses, row_weights
from .streams.bigrams import NO_TOKEN, BigramEmbedding, previous_tokens
from .streams.context import EmbeddingContext, earlier_embeddings
from .streams.rescaling import add_layer_factors
from .streams.streams import Streams, normalised
from .tensors import (
    ExpertLookAheadOutput,
    ExpertOutput,
    LookAhead,
    LookAheadOutput,
    Memory,
    MemoryOutput,
    States,
    TrainingOutput,
)


class TransformerLM(nn.Module):
    """A decoder-only language model over `vocab_size` token ids (B, T), T <= config.seq_length.

    With `auxiliary` it has those parts of the lookahead core that are on there. Raises ValueError where they need
    longer rows, and for memory tokens that do not fit seq_length.
    """

    output_bias: Tensor | None
    causal_mask: Tensor

    def __init__(self, config: ModelConfig, vocab_size: int, auxiliary: AuxiliaryConfig | None = None):
        super().__init__()
        self.config = config
        self.auxiliary = auxiliary or AuxiliaryConfig()
        self.vocab_size = vocab_size
        self.padded_vocab_size = padded_vocabulary(vocab_size)
        size = config.embedding_size or config.hidden_size
        self.tokens = nn.Embedding(self.padded_vocab_size, size)
        rotary = config.positions == "rotary"
        self.positions = (
            None if rotary else LearnedPositions(config.seq_length, config.hidden_size, config.position_extension)
        )
        self.rotary = RotaryPositions(config) if rotary else None
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        with_values = value_layers(config)
        self.blocks = nn.ModuleList(
            TransformerBlock(config, layer, layer in with_values) for layer in range(config.num_layers)
        )
        self.final_norm = make_norm(config)
        self.lm_head = None
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(size, self.padded_vocab_size, bias=False)
        self.widen = self.narrow = None  # between the sizes of embeddings and hidden states
        if config.embedding_size:
            self.widen = nn.Linear(size, config.hidden_size, bias=False)
            self.narrow = nn.Linear(config.hidden_size, size, bias=False)

        output_bias = None  # nothing to add without padding rows
        if self.padded_vocab_size > vocab_size:
            output_bias = torch.zeros(self.padded_vocab_size)
            output_bias[vocab_size:] = -torch.inf
        self.register_buffer("output_bias", output_bias, persistent=False)
        self.register_buffer("causal_mask", causal_mask(config.seq_length), persistent=False)
        initialise_weights(self, config)
        if self.lm_head is not None and config.head_init == "zero":
            nn.init.zeros_(self.lm_head.weight)
        for projection in (self.widen, self.narrow):
            if projection is not None:  # keeps the size of what it projects
                nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
        add_layer_factors(self.blocks, config)
        self.streams = Streams.create(config, self.padded_vocab_size)
        self.bigrams = BigramEmbedding(config.bigram_rows, config.hidden_size) if config.bigram_rows else None
        before = config.embedding_context
        self.context = EmbeddingContext(before, config.hidden_size) if before else None
        self.memory = WindowMemory.create(config, auxiliary)
        self.latent = None if auxiliary is None else LookaheadCore.create(config, auxiliary, self.padded_vocab_size)
        self.checkpoint_activations = False  # with gradients, keep a block's input only and compute the rest again

    @property
    def head_weight(self) -> Tensor:
        """(padded_vocab_size, embedding size): the rows of the LM head, which are the embedding's when tied."""
        return self.tokens.weight if self.lm_head is None else self.lm_head.weight

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        segment_ids: Tensor | None = None,
        difficulty: Tensor | None = None,
        curriculum_temperature: float = 1.0,
        look_ahead: LookAhead | None = None,
        documents: Tensor | None = None,
    ) -> TrainingOutput | LookAheadOutput | ExpertOutput | ExpertLookAheadOutput | MemoryOutput:
        """The loss of one micro-batch: input_ids and labels (B, T) int64; labels[:, t] follows input_ids[:, t], -100 is
        ignored.

        segment_ids: see hidden_states. difficulty (K,): the thresholds by which row_weights weighs the rows; their
        losses are computed first, by reading the head once more. look_ahead: what this micro-batch draws for the
        objectives of the lookahead core, which are then added to the loss; with auxiliary.gain_weighting the tokens are
        weighed then, too. documents (B, S * T): the segments of rows
        of S windows, for a trunk with memory tokens; see memory.read_windows.
        """
        config = self.config
        read: States | Read = (
            self.states(input_ids, segment_ids=segment_ids)
            if documents is None
            else read_windows(self, input_ids, documents, segment_ids)
        )
        hidden = read.final.flatten(0, 1)
        hidden = hidden if self.narrow is None else self.narrow(hidden)
        head = (self.head_weight, self.output_bias, labels.flatten())
        token_weights = None
        if difficulty is not None:
            with torch.no_grad():
                _, token_nll = linear_cross_entropy(hidden, *head, softcap=config.logit_softcap)
                row_loss = row_losses(token_nll.view(labels.shape), labels)
                weights = row_weights(row_loss, difficulty, curriculum_temperature)
                token_weights = weights[:, None].expand_as(labels).flatten()
        if look_ahead is not None and self.auxiliary.gain_weighting:
            assert self.latent is not None, "only a model with a lookahead core looks ahead"
            with torch.no_grad():
                gain = self.latent.information_gain(read.final)
                weights = gain_weights(gain, labels, self.auxiliary.gain_weighting).flatten()
                token_weights = weights if token_weights is None else weights * token_weights
        loss_sum, token_nll = linear_cross_entropy(hidden, *head, token_weights, config.logit_softcap, config.z_loss)
        token_nll = token_nll.view(labels.shape)
        if isinstance(read, Read):
            assert look_ahead is None, "the lookahead core reads single windows"
            return memory_output(read, loss_sum, token_nll, labels)
        load = None
        if config.num_experts and self.training and torch.is_grad_enabled():
            load, added = take_routing(sparse_layers(self.blocks), self.auxiliary, labels)
            loss_sum = loss_sum if added is None else loss_sum + added
        if look_ahead is None:
            return TrainingOutput(loss_sum, token_nll) if load is None else ExpertOutput(loss_sum, token_nll, load)
        assert self.latent is not None, "only a model with a lookahead core looks ahead"
        added, figures = self.latent(self, look_ahead, read, input_ids, segment_ids, labels, token_nll)
        if load is None:
            return LookAheadOutput(loss_sum + added, token_nll, figures)
        return ExpertLookAheadOutput(loss_sum + added, token_nll, figures, load)

    def hidden_states(
        self,
        input_ids: Tensor,
        cache: KeyValueCache | None = None,
        segment_ids: Tensor | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """input_ids (B, T) -> final normalised states (B, T, D); with a cache the tokens continue what it holds.

        segment_ids (B, T) keep the segments of a row apart, each of which is read as if it stood alone: 0, 1, ... from
        left to right, -1 for padding at the end. They cannot be combined with a cache. memory: what stands before the
        tokens; a cache has read it before (memory.read_memory).
        Raises ValueError for more positions than the model has.
        """
        return self.states(input_ids, cache, segment_ids, memory).final

    def states(
        self,
        input_ids: Tensor,
        cache: KeyValueCache | None = None,
        segment_ids: Tensor | None = None,
        memory: Memory | None = None,
    ) -> States:
        """Like hidden_states, with the other states that the lookahead core reads."""
        assert cache is None or (segment_ids is None and memory is None), "a cache holds one document a row"
        length = input_ids.shape[1]
        start = 0 if cache is None else cache.length
        if start + length > self.config.seq_length:
            raise ValueError(
                f"{start + length} tokens do not fit seq_length {self.config.seq_length}; "
                "give fewer tokens or call extend_max_seq_len first."
            )
        mask = None if segment_ids is None else segment_mask(segment_ids, self.causal_mask[:length, :length])
        x = _embedding(self, input_ids, cache, segment_ids)
        rows = None if cache is None else cache.positions
        if rows is not None:
            rows = rows[:, None] + torch.arange(length, device=rows.device)
        if self.positions is not None:
            x = x + self.positions(self.positions.ids_at(length, start, segment_ids) if rows is None else rows)
        rotations = None
        if self.rotary is not None:
            rotations = self.rotary(length, start) if rows is None else self.rotary.of_rows(rows)
        if memory is not None:
            mask = self.causal_mask[None, None, :length, :length] if mask is None else mask
            x, mask, rotations = behind(self, memory, x, mask, rotations)
        states = self.through_blocks(x, input_ids, cache, mask, rotations)
        if cache is not None and rows is None:
            cache.length += length
        if memory is None:
            return states
        return States(*(part[:, memory.tokens.shape[1] :] for part in states))

    def through_blocks(
        self,
        x: Tensor,
        input_ids: Tensor | None,
        cache: KeyValueCache | None,
        mask: Tensor | None,
        rotations: Tensor | None,
    ) -> States:
        """Embeddings (B, n + T, D), of which the last T are those of input_ids (B, T), None: none of them -> the states
        of all n + T; see CausalSelfAttention.forward."""
        if self.config.embedding_norm:
            x = normalised(x)
        x = second_layer = before_last = self.dropout(x)
        streams, outputs, values = self.streams, [], None
        first = x if streams is None else normalised(x)
        for index, block in enumerate(self.blocks):
            if streams is not None:
                x, values = streams.into_block(index, x, first, outputs), streams.values_of(index, input_ids, first)
            before_last = x
            if self.checkpoint_activations and torch.is_grad_enabled():
                x = checkpoint(block, x, cache, self.causal_mask, mask, rotations, values, use_reentrant=False)
            else:
                x = block(x, cache, self.causal_mask, mask, rotations, values)
            if streams is not None:
                outputs.append(x)
            if index < 2:
                second_layer = x
        return States(self.final_norm(x), second_layer, before_last)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., vocab_size): the real vocabulary only, in fp32."""
        hidden = hidden if self.narrow is None else self.narrow(hidden)
        logits, cap = F.linear(hidden, self.head_weight[: self.vocab_size]).float(), self.config.logit_softcap
        return cap * (logits / cap).tanh() if cap else logits

    def new_cache(self, batch_size: int = 1) -> KeyValueCache:
        """An empty cache for one window of seq_length tokens, after those of a memory."""
        config = self.config
        head_size = config.hidden_size // config.num_heads
        columns = config.memory_tokens + config.seq_length
        shape = (config.num_layers, batch_size, config.num_heads, columns, head_size)
        like = self.final_norm.weight
        tokens = None
        if self.bigrams is not None or self.context is not None:
            tokens = like.new_zeros(batch_size, config.seq_length, dtype=torch.int64)
        return KeyValueCache(like.new_zeros(shape), like.new_zeros(shape), tokens=tokens)

    def extend_max_seq_len(self, new_length: int) -> None:
        """Let the model read `new_length` tokens; how positions are extended: see positions.py.

        Learned positions become a new parameter: extend before the optimizer is made. Raises ValueError for less, and
        for a length that memory tokens cannot sum up.
        """
        if new_length < self.config.seq_length:
            raise ValueError(
                f"seq_length {self.config.seq_length} cannot be extended to {new_length}; give a larger length."
            )
        if self.memory is not None:
            self.memory.extend(new_length)
        config, update = self.config, {"seq_length": new_length}
        if self.rotary is not None and config.rope_scaling != "none" and new_length > config.seq_length:
            update["rope_original_length"] = config.rope_original_length or config.seq_length
        self.config = config.model_copy(update=update)
        if self.positions is not None:
            self.positions.extend(new_length)
        if self.rotary is not None:
            self.rotary.extend(self.config)
        self.causal_mask = causal_mask(new_length, self.causal_mask.device)

    def num_parameters(self) -> int:
        """Learned numbers; a tied head counts once, padding rows count."""
        return sum(parameter.numel() for parameter in self.parameters())

    def num_active_parameters(self) -> int:
        """Learned numbers without the experts that do not read a token."""
        sparse = sparse_layers(self.blocks)
        of_experts = sum(parameter.numel() for mlp in sparse for parameter in mlp.parameters())
        return self.num_parameters() - of_experts + sum(mlp.active_weights() for mlp in sparse)

    def flops_per_token(self, seq_length: int | None = None) -> int:
        """Training FLOPs per token of rows of `seq_length` tokens (None: the longest): see config/size.py."""
        auxiliary = self.auxiliary if self.latent is None else self.latent.auxiliary
        return flops_per_token(self.config, self.vocab_size, auxiliary, seq_length)


def _embedding(
    model: TransformerLM, input_ids: Tensor, cache: KeyValueCache | None, segment_ids: Tensor | None
) -> Tensor:
    """input_ids (B, T) -> (B, T, D), without positions."""
    x = own = _looked_up(model, input_ids)
    if model.bigrams is None and model.context is None:
        return x
    count = model.config.embedding_context
    before = None if cache is None else cache.previous(input_ids, max(1, count))
    if model.bigrams is not None:
        previous = previous_tokens(input_ids, segment_ids) if before is None else before[..., 0]
        x = x + model.bigrams(previous, input_ids)
    if model.context is not None and before is None:
        x = x + model.context(earlier_embeddings(own, segment_ids, count))
    elif model.context is not None and before is not None:
        earlier = _looked_up(model, before.clamp_min(0)) * (before != NO_TOKEN)[..., None]
        x = x + model.context(list(earlier.unbind(2)))
    return x


def _looked_up(model: TransformerLM, ids: Tensor) -> Tensor:
    """(...,) -> (..., D): rows of the embedding."""
    x = model.tokens(ids)
    return x if model.widen is None else model.widen(x)
