"""The trunk: tokens -> hidden states -> logits, and the training loss.

Notable here
- The embedding has a multiple of 64 rows, which keeps matrix products on fast paths. The rows beyond the vocabulary
  have the output bias -inf: their probability is exactly zero in training, and decoding never sees them at all.
- A tied head is the embedding read once more: no second parameter, no second copy in a checkpoint.
- forward goes from hidden states to the loss without whole-batch logits (objectives.py); logits() is for decoding.
- What can be computed again (masks, position ids, the output bias) is never in the state dict.
- With dropout 0 forward draws no random number.
- What is off costs nothing: without segment_ids no mask is built, without difficulty the head is read once, and without
  a part of the latent core there is none; its weights are drawn after the trunk's, which keep theirs.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import NORM_EPS, CausalSelfAttention, KeyValueCache, causal_mask, segment_mask
from .config import AuxiliaryConfig, ModelConfig
from .latent.core import LatentCore
from .latent.last_block import LastBlock
from .latent.look_ahead import OBJECTIVES, LookAhead
from .latent.policy import Head
from .latent.span import SPAN_LAYER
from .latent.transition import Text, roll_out
from .loss import IGNORE_INDEX, linear_cross_entropy
from .positions import LearnedPositions, RotaryPositions
from .row_weights import row_losses, row_weights

VOCAB_MULTIPLE = 64


class TrainingOutput(NamedTuple):
    loss_sum: Tensor  # scalar fp32: (weighted) sum of the NLLs (nats) over labels that are not -100; differentiable
    token_nll: Tensor  # (B, T) fp32, detached, never weighted; 0 where the label is -100


class LookAheadOutput(NamedTuple):
    loss_sum: Tensor  # as above, plus the weighted means of the auxiliary objectives, each times the number of labels
    token_nll: Tensor  # as above
    auxiliary: Tensor  # (len(FIGURES), 2) fp32, detached: sums, and what they are over; their quotients are the means


class MLP(nn.Module):
    """Up, an activation, down; or SwiGLU (arXiv 2002.05202), whose three matrices have as many weights as the others'
    two, up to a multiple of 64."""

    def __init__(self, hidden_size: int, kind: str, bias: bool = True):
        super().__init__()
        self.kind = kind
        inner = 4 * hidden_size if kind != "swiglu" else math.ceil(8 * hidden_size / 3 / 64) * 64
        self.up = nn.Linear(hidden_size, 2 * inner if kind == "swiglu" else inner, bias)
        self.down = nn.Linear(inner, hidden_size, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activate(self.up(x)))

    def activate(self, x: Tensor) -> Tensor:
        """What `up` has made -> what `down` reads."""
        if self.kind == "gelu":
            return F.gelu(x)
        if self.kind == "squared_relu":  # Primer, arXiv 2109.08668
            return F.relu(x).square()
        gate, value = x.chunk(2, dim=-1)
        return F.silu(gate) * value


class Block(nn.Module):
    """Pre-norm: each half adds to the residual stream what it computes from the normalised stream."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.attention_norm = norm(config)
        self.attention = CausalSelfAttention(
            config.hidden_size, config.num_heads, config.dropout, layer, config.qk_norm, config.bias
        )
        self.mlp_norm = norm(config)
        self.mlp = MLP(config.hidden_size, config.mlp, config.bias)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def forward(
        self,
        x: Tensor,
        cache: KeyValueCache | None,
        causal_mask: Tensor,
        segment_mask: Tensor | None,
        rotations: Tensor | None,
    ) -> Tensor:
        attended = self.attention(self.attention_norm(x), cache, causal_mask, segment_mask, rotations)
        x = x + self.dropout(attended)
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


def norm(config: ModelConfig) -> nn.Module:
    """Of states (..., D): LayerNorm, or RMSNorm (arXiv 1910.07467), which neither centres nor shifts."""
    if config.norm == "rms":
        return nn.RMSNorm(config.hidden_size, eps=NORM_EPS)
    return nn.LayerNorm(config.hidden_size, bias=config.bias)


class States(NamedTuple):
    final: Tensor  # (B, T, D), normalised: what the head reads
    second_layer: Tensor  # (B, T, D), not normalised; the only layer's, where there is but one
    before_last: Tensor  # (B, T, D), not normalised: what the last block reads


class TransformerLM(nn.Module):
    """A decoder-only language model over `vocab_size` token ids (B, T), T <= config.seq_length.

    With `auxiliary` it has those parts of the latent core that are switched on there.
    """

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
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.final_norm = norm(config)
        self.lm_head = None
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, self.padded_vocab_size, bias=False)

        output_bias = None  # nothing is added where nothing is padded
        if self.padded_vocab_size > vocab_size:
            output_bias = torch.zeros(self.padded_vocab_size)
            output_bias[vocab_size:] = -torch.inf
        self.register_buffer("output_bias", output_bias, persistent=False)
        self.register_buffer("causal_mask", causal_mask(config.seq_length), persistent=False)
        self.latent = None
        self._initialise()
        if auxiliary is not None and auxiliary.looks_ahead:
            with torch.random.fork_rng(devices=[]):
                self.latent = LatentCore(config, auxiliary)
                self._initialise(self.latent)

    def _initialise(self, part: nn.Module | None = None) -> None:
        """GPT-2's scheme, drawn from the global generator: normal weights, and residual projections narrowed so that
        the residual stream's variance does not grow with depth. For the whole model unless a part is given."""
        std = self.config.init_std
        residual_std = std / math.sqrt(2 * self.config.num_layers)
        for name, parameter in (part or self).named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith(("out_proj.weight", "mlp.down.weight")):
                nn.init.normal_(parameter, std=residual_std)
            elif "norm" not in name:  # the norms' weights stay at one
                nn.init.normal_(parameter, std=std)

    @property
    def head_weight(self) -> Tensor:
        """(padded_vocab_size, D): the head's rows, which are the embedding's when tied."""
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
        """input_ids and labels (B, T) int64; labels[:, t] is what follows input_ids[:, t], or -100 to be left out.

        segment_ids: see hidden_states. difficulty (K,): the thresholds by which row_weights (curriculum.py) weighs the
        rows; their losses are found first, by one more pass over the head. look_ahead: what this pass draws for the
        latent core's objectives, which join the loss.
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
        embeddings = self.tokens(input_ids[look_ahead.rows])
        figures = self.latent(
            look_ahead,
            *states,
            embeddings,
            labels,
            token_nll,
            Head(self.head_weight, self.vocab_size, torch.compiler.is_compiling()),
            self.last_block,
            self._allowed(input_ids.shape[1], segment_ids),
        )
        sums, counts = figures[: len(OBJECTIVES)].unbind(dim=1)
        blended = (look_ahead.weights * sums / counts.clamp_min(1.0)).sum()
        return LookAheadOutput(loss_sum + blended * (labels != IGNORE_INDEX).sum(), token_nll, figures.detach())

    def hidden_states(
        self, input_ids: Tensor, cache: KeyValueCache | None = None, segment_ids: Tensor | None = None
    ) -> Tensor:
        """input_ids (B, T) -> final normalised states (B, T, D); with a cache the tokens continue what it holds.

        segment_ids (B, T) keeps the pieces of a row apart: 0, 1, ... from left to right, -1 for padding at the end.
        Each is then read as if it stood alone. They do not go together with a cache.
        Raises ValueError when more positions are asked for than the model has.
        """
        return self.states(input_ids, cache, segment_ids).final

    def states(
        self, input_ids: Tensor, cache: KeyValueCache | None = None, segment_ids: Tensor | None = None
    ) -> States:
        """As hidden_states, with what else the latent core reads."""
        assert cache is None or segment_ids is None, "a cache holds one document a row"
        length = input_ids.shape[1]
        start = 0 if cache is None else cache.length
        if start + length > self.config.seq_length:
            raise ValueError(
                f"{start + length} tokens do not fit seq_length {self.config.seq_length}; "
                "give fewer tokens or call extend_max_seq_len first."
            )
        mask = None if segment_ids is None else segment_mask(segment_ids, self.causal_mask[:length, :length])
        x, rotations = self.tokens(input_ids), None
        if self.rotary is not None:
            rotations = self.rotary(length, start)
        else:
            x = x + self.positions(length, start, segment_ids)
        x = before_last = self.dropout(x)
        for number, block in enumerate(self.blocks, 1):
            x = block(x, cache, self.causal_mask, mask, rotations)
            if number <= SPAN_LAYER:
                second_layer = x
            if number == len(self.blocks) - 1:
                before_last = x
        if cache is not None:
            cache.length += length
        return States(self.final_norm(x), second_layer, before_last)

    @property
    def last_block(self) -> LastBlock:
        """What makes the final states, as the latent core's transition reads it."""
        return LastBlock(self.blocks[-1], self.final_norm, self.rotary)

    def text(self, input_ids: Tensor, states: States, segment_ids: Tensor | None = None) -> Text:
        """What a rollout remembers of texts (B, T) whose states are `states`; segment_ids as given for these."""
        allowed = self._allowed(input_ids.shape[1], segment_ids)
        return Text(states.final.detach(), states.before_last.detach(), self.tokens(input_ids).detach(), allowed)

    def rollout(self, input_ids: Tensor, depth: int, segment_ids: Tensor | None = None) -> list[Tensor]:
        """`depth` steps from every state of texts (B, T) along the texts themselves: see transition.roll_out. For a
        model whose latent core has a transition."""
        text = self.text(input_ids, self.states(input_ids, segment_ids=segment_ids), segment_ids)
        return roll_out(self.latent.begin(self.last_block, text), text.hidden, text.embeddings, depth)

    def _allowed(self, length: int, segment_ids: Tensor | None) -> Tensor:
        """(1 or B, 1, T, T): what attention may look at."""
        mask = self.causal_mask[:length, :length]
        return mask[None, None] if segment_ids is None else segment_mask(segment_ids, mask)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., vocab_size): the real vocabulary only, in fp32."""
        return F.linear(hidden, self.head_weight[: self.vocab_size]).float()

    def new_cache(self, batch_size: int = 1) -> KeyValueCache:
        """An empty cache for one window of seq_length tokens."""
        config = self.config
        head_size = config.hidden_size // config.num_heads
        return KeyValueCache(
            config.num_layers, batch_size, config.num_heads, config.seq_length, head_size, like=self.final_norm.weight
        )

    def extend_max_seq_len(self, new_length: int) -> None:
        """Let the model read `new_length` tokens; learned positions keep their bits, new ones: see positions.py.

        Learned positions become a new parameter: extend before the optimizer is made. Raises ValueError for less.
        """
        if new_length < self.config.seq_length:
            raise ValueError(
                f"seq_length {self.config.seq_length} cannot be extended to {new_length}; give a larger length."
            )
        (self.positions if self.rotary is None else self.rotary).extend(new_length)
        self.causal_mask = causal_mask(new_length, self.causal_mask.device)
        self.config = self.config.model_copy(update={"seq_length": new_length})

    def num_parameters(self) -> int:
        """Learned numbers; a tied head counts once, padding rows count."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self, seq_length: int | None = None) -> int:
        """Training FLOPs per token of rows of that length (None: the longest), forward and backward: 6 per weight of
        every matrix product (the head is one, the embedding's look-up is not) plus 12 * L * D * T for attention (PaLM,
        arXiv 2204.02311, appendix B), plus the latent core's at its full depth."""
        config, length = self.config, seq_length or self.config.seq_length
        matrices = sum(p.numel() for name, p in self.blocks.named_parameters() if p.ndim == 2)
        matrices += self.padded_vocab_size * config.hidden_size
        flops = 6 * matrices + 12 * config.num_layers * config.hidden_size * length
        if self.latent is None:
            return flops
        return flops + round(self.latent.flops_per_token(config.hidden_size, self.padded_vocab_size, length))
