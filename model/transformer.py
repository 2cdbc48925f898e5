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
- The lookahead core (latent/) is one class to the trunk: LookaheadCore gets its states, and what it returns is added to
  the loss.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import KeyValueCache, causal_mask, segment_mask
from .block import TransformerBlock, initialise_weights, make_norm
from .config import AuxiliaryConfig, ModelConfig
from .latent import LookaheadCore
from .loss import linear_cross_entropy
from .positions import LearnedPositions, RotaryPositions
from .row_weights import row_losses, row_weights
from .tensors import LookAhead, LookAheadOutput, States, TrainingOutput

VOCAB_MULTIPLE = 64


class TransformerLM(nn.Module):
    """A decoder-only language model over `vocab_size` token ids (B, T), T <= config.seq_length.

    With `auxiliary` it has those parts of the lookahead core that are on there. Raises ValueError where they need
    longer rows.
    """

    output_bias: Tensor | None
    causal_mask: Tensor

    def __init__(self, config: ModelConfig, vocab_size: int, auxiliary: AuxiliaryConfig | None = None):
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.padded_vocab_size = math.ceil(vocab_size / VOCAB_MULTIPLE) * VOCAB_MULTIPLE
        self.tokens = nn.Embedding(self.padded_vocab_size, config.hidden_size)
        rotary = config.positions == "rotary"
        self.positions = None if rotary else LearnedPositions(config.seq_length, config.hidden_size)
        self.rotary = RotaryPositions(config.seq_length, config.hidden_size // config.num_heads) if rotary else None
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.blocks = nn.ModuleList(TransformerBlock(config, layer) for layer in range(config.num_layers))
        self.final_norm = make_norm(config)
        self.lm_head = None
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, self.padded_vocab_size, bias=False)

        output_bias = None  # nothing to add without padding rows
        if self.padded_vocab_size > vocab_size:
            output_bias = torch.zeros(self.padded_vocab_size)
            output_bias[vocab_size:] = -torch.inf
        self.register_buffer("output_bias", output_bias, persistent=False)
        self.register_buffer("causal_mask", causal_mask(config.seq_length), persistent=False)
        initialise_weights(self, config)
        self.latent = None if auxiliary is None else LookaheadCore.create(config, auxiliary, self.padded_vocab_size)

    @property
    def head_weight(self) -> Tensor:
        """(padded_vocab_size, D): the rows of the LM head, which are the embedding's when tied."""
        return self.tokens.weight if self.lm_head is None else self.lm_head.weight

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        segment_ids: Tensor | None = None,
        difficulty: Tensor | None = None,
        curriculum_temperature: float = 1.0,
        look_ahead: LookAhead | None = None,
    ) -> TrainingOutput | LookAheadOutput:
        """The loss of one micro-batch: input_ids and labels (B, T) int64; labels[:, t] follows input_ids[:, t], -100 is
        ignored.

        segment_ids: see hidden_states. difficulty (K,): the thresholds by which row_weights weighs the rows; their
        losses are computed first, by reading the head once more. look_ahead: what this micro-batch draws for the
        objectives of the lookahead core, which are then added to the loss.
        """
        states = self.states(input_ids, segment_ids=segment_ids)
        hidden = states.final.flatten(0, 1)
        head = (self.head_weight, self.output_bias, labels.flatten())
        token_weights = None
        if difficulty is not None:
            with torch.no_grad():
                _, token_nll = linear_cross_entropy(hidden, *head)
                row_loss = row_losses(token_nll.view(labels.shape), labels)
                weights = row_weights(row_loss, difficulty, curriculum_temperature)
                token_weights = weights[:, None].expand_as(labels).flatten()
        loss_sum, token_nll = linear_cross_entropy(hidden, *head, token_weights)
        token_nll = token_nll.view(labels.shape)
        if look_ahead is None:
            return TrainingOutput(loss_sum, token_nll)
        assert self.latent is not None, "only a model with a lookahead core looks ahead"
        added, figures = self.latent(self, look_ahead, states, input_ids, segment_ids, labels, token_nll)
        return LookAheadOutput(loss_sum + added, token_nll, figures)

    def hidden_states(
        self, input_ids: Tensor, cache: KeyValueCache | None = None, segment_ids: Tensor | None = None
    ) -> Tensor:
        """input_ids (B, T) -> final normalised states (B, T, D); with a cache the tokens continue what it holds.

        segment_ids (B, T) keep the segments of a row apart, each of which is read as if it stood alone: 0, 1, ... from
        left to right, -1 for padding at the end. They cannot be combined with a cache.
        Raises ValueError for more positions than the model has.
        """
        return self.states(input_ids, cache, segment_ids).final

    def states(
        self, input_ids: Tensor, cache: KeyValueCache | None = None, segment_ids: Tensor | None = None
    ) -> States:
        """Like hidden_states, with the other states that the lookahead core reads."""
        assert cache is None or segment_ids is None, "a cache holds one document a row"
        length = input_ids.shape[1]
        start = 0 if cache is None else cache.length
        if start + length > self.config.seq_length:
            raise ValueError(
                f"{start + length} tokens do not fit seq_length {self.config.seq_length}; "
                "give fewer tokens or call extend_max_seq_len first."
            )
        mask = None if segment_ids is None else segment_mask(segment_ids, self.causal_mask[:length, :length])
        x = self.tokens(input_ids)
        rows = None if cache is None else cache.positions
        if rows is not None:
            rows = rows[:, None] + torch.arange(length, device=rows.device)
        if self.positions is not None:
            x = x + self.positions(self.positions.ids_at(length, start, segment_ids) if rows is None else rows)
        rotations = None
        if self.rotary is not None:
            rotations = self.rotary(length, start) if rows is None else self.rotary.of_rows(rows)
        x = second_layer = before_last = self.dropout(x)
        for index, block in enumerate(self.blocks):
            before_last = x
            x = block(x, cache, self.causal_mask, mask, rotations)
            if index < 2:
                second_layer = x
        if cache is not None and rows is None:
            cache.length += length
        return States(self.final_norm(x), second_layer, before_last)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., vocab_size): the real vocabulary only, in fp32."""
        return F.linear(hidden, self.head_weight[: self.vocab_size]).float()

    def new_cache(self, batch_size: int = 1) -> KeyValueCache:
        """An empty cache for one window of seq_length tokens."""
        config = self.config
        head_size = config.hidden_size // config.num_heads
        shape = (config.num_layers, batch_size, config.num_heads, config.seq_length, head_size)
        like = self.final_norm.weight
        return KeyValueCache(like.new_zeros(shape), like.new_zeros(shape))

    def extend_max_seq_len(self, new_length: int) -> None:
        """Let the model read `new_length` tokens; learned positions keep their bits, new ones: see positions.py.

        Learned positions become a new parameter: extend before the optimizer is made. Raises ValueError for less.
        """
        if new_length < self.config.seq_length:
            raise ValueError(
                f"seq_length {self.config.seq_length} cannot be extended to {new_length}; give a larger length."
            )
        for table in (self.positions, self.rotary):
            if table is not None:
                table.extend(new_length)
        self.causal_mask = causal_mask(new_length, self.causal_mask.device)
        self.config = self.config.model_copy(update={"seq_length": new_length})

    def num_parameters(self) -> int:
        """Learned numbers; a tied head counts once, padding rows count."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self, seq_length: int | None = None) -> int:
        """Training FLOPs per token of rows of `seq_length` tokens (None: the longest), forward and backward: 6 per
        weight of every matrix product (the head is one, the embedding look-up is not) plus 12 * L * D * T for attention
        (PaLM, arXiv 2204.02311, appendix B), plus those of the lookahead core at its full depth."""
        config, length = self.config, seq_length or self.config.seq_length
        matrices = sum(p.numel() for name, p in self.blocks.named_parameters() if p.ndim == 2)
        matrices += self.padded_vocab_size * config.hidden_size
        flops = 6 * matrices + 12 * config.num_layers * config.hidden_size * length
        if self.latent is None:
            return flops
        return flops + round(self.latent.flops_per_token(config.hidden_size, self.padded_vocab_size, length))
