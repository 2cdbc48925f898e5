"""The latent core: one small set of parts over one trunk and its LM head, and what each of them is trained on.

A part exists only when its switch is on. There is no second head: TransformerLM.logits reads predicted states too.

Stop-gradients: no loss here moves the head, the embeddings, the last block as the transition reads it or the true
states that it compares with. An objective with `detach_trunk` reads states that are cut off from the trunk; the value's
loss then leaves the transition alone as well.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..config import AuxiliaryConfig, ModelConfig
from .last_block import LastBlock
from .look_ahead import OBJECTIVES, LookAhead, num_spans, remaining, require_room
from .policy import Head, linear_kl
from .span import SpanProjector, info_nce, span_keys
from .transition import Rollout, Text, Transition, dynamics_losses, roll_out, variance_ratio
from .value import ValueHead, expected_nll, value_losses, value_targets

# What LatentCore.forward returns: the objectives, and a figure that tells collapse.
FIGURES = (*OBJECTIVES, "latent_variance")


class LatentCore(nn.Module):
    """The parts that `auxiliary` switches on, over a trunk of `config`.

    Raises ValueError where no rollout or no span fits seq_length.
    """

    def __init__(self, config: ModelConfig, auxiliary: AuxiliaryConfig):
        super().__init__()
        require_room(auxiliary, config.seq_length)
        self.auxiliary = auxiliary
        size = config.hidden_size
        self.transition = Transition(size, config.num_heads) if auxiliary.rolls_out else None
        self.value_head = ValueHead(size, auxiliary.value_horizons) if auxiliary.enable_value else None
        self.span_projector = SpanProjector(size) if auxiliary.enable_span_contrastive else None

    def begin(self, last_block: LastBlock, text: Text, start: int = 0) -> Rollout:
        """A rollout, whose `step` follows, from states of a text of the trunk that `last_block` belongs to."""
        return Rollout(self.transition, last_block, text, start)

    def value(self, hidden: Tensor) -> Tensor:
        """States, true or predicted, (..., D) -> logits (..., H, NUM_BINS) over the mean NLL of the next K tokens, for
        each of the H horizons K; value.expected_nll makes nats of them."""
        return self.value_head(hidden)

    def path_value(self, token_nll: Tensor, predicted: Tensor) -> Tensor:
        """Q of a path of d tokens, in nats over d + K tokens, for each horizon K: what its tokens cost, token_nll
        (..., d), as read from the states before them, and K times the value of where it leads, predicted (..., D).
        Returns (..., H)."""
        horizons = torch.tensor(self.value_head.horizons, device=predicted.device)
        return token_nll.sum(-1, keepdim=True) + horizons * expected_nll(self.value(predicted))

    def flops_per_token(self, hidden_size: int, head_rows: int, seq_length: int) -> float:
        """Training FLOPs per token at the full depth, counted as TransformerLM does; none for gradients that stop."""
        auxiliary, depth = self.auxiliary, self.auxiliary.rollout_depth
        head, flops = hidden_size * head_rows, 0.0
        if self.transition is not None:
            # What is remembered is made once; the last block's weights get no gradient.
            key, outcome = self.transition.query.weight.numel(), self.transition.outcome.weight.numel()
            each = _matrices(self.transition) - outcome + 2 * (self.transition.width + hidden_size) * seq_length
            once = 6 * (key + outcome) + 2 * 2 * hidden_size**2
            flops += (once + (6 * each + 4 * 12 * hidden_size**2) * depth) * auxiliary.rollout_row_fraction
        if auxiliary.enable_policy:
            # the teacher's logits once; a prediction's logits and its gradient
            flops += (2 + 4 * depth) * head * auxiliary.policy_position_fraction
        if self.value_head is not None:
            read = depth * auxiliary.policy_position_fraction if self.transition is not None else 0
            flops += 6 * _matrices(self.value_head) * (1 + read)
        if self.span_projector is not None:
            flops += 6 * _matrices(self.span_projector) * num_spans(auxiliary, seq_length) / seq_length
        return flops

    def forward(
        self,
        look_ahead: LookAhead,
        hidden: Tensor,
        second_layer: Tensor,
        before_last: Tensor,
        embeddings: Tensor,
        labels: Tensor,
        token_nll: Tensor,
        head: Head,
        last_block: LastBlock,
        allowed: Tensor,
    ) -> Tensor:
        """What the pass that made hidden (B, T, D) says of each of FIGURES: a sum and how many it is over (F, 2), fp32.

        second_layer (B, T, D): that layer's states; before_last (B, T, D): those before the trunk's last block;
        embeddings (R, T, D): those of the tokens of look_ahead.rows; labels (B, T) and token_nll (B, T) as in
        TransformerLM; allowed (1 or B, 1, T, T): what attention may look at. Rows of parts that are
        off are 0.
        """
        ahead = remaining(look_ahead.segment_ids, labels)
        figures, realised = {}, None
        if self.value_head is not None:
            realised = value_targets(token_nll, ahead, self.value_head.horizons)
            figures["value"] = self._value_figure(hidden, *realised)
        if self.span_projector is not None:
            figures["span_contrastive"] = self._span_figure(look_ahead.spans, hidden, second_layer, ahead)
        if self.transition is not None:
            rows = look_ahead.rows
            allowed = allowed if len(allowed) == 1 else allowed[rows]
            text = Text(hidden[rows].detach(), before_last[rows].detach(), embeddings.detach(), allowed)
            begin = functools.partial(self.begin, last_block, text)
            figures |= self._rollout_figures(look_ahead, hidden, embeddings, ahead, realised, head, begin)
        absent = hidden.new_zeros(2, dtype=torch.float32)
        return torch.stack([figures.get(name, absent) for name in FIGURES])

    def _value_figure(self, states: Tensor, targets: Tensor, known: Tensor) -> Tensor:
        states = states.detach() if self.auxiliary.value_detach_trunk else states
        return _sum_and_count(value_losses(self.value(states), targets), known)

    def _span_figure(self, starts: Tensor, hidden: Tensor, second_layer: Tensor, ahead: Tensor) -> Tensor:
        auxiliary = self.auxiliary
        valid = ahead[:, starts] > auxiliary.span_length
        before = hidden[:, starts].detach() if auxiliary.span_contrastive_detach_trunk else hidden[:, starts]
        queries = self.span_projector(before).flatten(0, 1)
        keys = span_keys(second_layer, starts, auxiliary.span_length, valid).flatten(0, 1)
        losses = info_nce(
            queries, keys, valid.flatten(), auxiliary.span_contrastive_temperature, auxiliary.span_l2_normalize
        )
        return _sum_and_count(losses, valid.flatten())

    def _rollout_figures(
        self,
        look_ahead: LookAhead,
        hidden: Tensor,
        embeddings: Tensor,
        ahead: Tensor,
        realised: tuple[Tensor, Tensor] | None,
        head: Head,
        begin: Callable[[], Rollout],
    ) -> dict[str, Tensor]:
        """What is said of predicted states; `realised` are the value's targets where there is a value; `begin` makes a
        rollout of the rows that look_ahead names."""
        auxiliary, rows, columns = self.auxiliary, look_ahead.rows, look_ahead.columns
        depth = auxiliary.rollout_depth  # all steps are always made, so that the shapes stay: see look_ahead.depth
        hidden, ahead = hidden[rows], ahead[rows]
        true, figures = hidden.detach(), {}
        to_read, to_compare = self._rollouts(hidden, embeddings.detach(), depth, begin)

        comparable = [(ahead[:, :-i] > i) & (i <= look_ahead.depth) for i in range(1, depth + 1)]
        if auxiliary.enable_dynamics:
            losses = [dynamics_losses(states, true[:, i:]) for i, states in enumerate(to_compare, 1)]
            figures["dynamics"] = sum(map(_sum_and_count, losses, comparable))
        ratios = [
            torch.stack([variance_ratio(states, true[:, i:], counted), (counted.sum() > 1).float()])
            for i, (states, counted) in enumerate(zip(to_compare, comparable, strict=True), 1)
        ]
        figures["latent_variance"] = torch.stack(ratios)[look_ahead.depth[None] - 1][0]

        # What the heads read at a column are the predictions of its state, made i steps before it: (depth, R, P, D).
        read = torch.stack([states[:, columns - i] for i, states in enumerate(to_read, 1)])
        valid = torch.stack([mask[:, columns - i] for i, mask in enumerate(comparable, 1)])
        if auxiliary.enable_policy:
            kl_sum, _ = linear_kl(read.flatten(1, 2), true[:, columns].flatten(0, 1), head, valid.flatten(1))
            figures["policy"] = torch.stack([kl_sum, valid.sum().float()])
        if realised is not None:
            targets, known = (tensor[rows][:, columns] for tensor in realised)
            figures["rolled_out_value"] = self._value_figure(read, targets, known & valid[..., None])
        return figures

    def _rollouts(
        self, hidden: Tensor, embeddings: Tensor, depth: int, begin: Callable[[], Rollout]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The rollouts that the heads read and those that the dynamics compare: the same ones, unless one objective is
        to reach the trunk and the other is not."""
        auxiliary = self.auxiliary

        def rollouts(detached: bool) -> list[Tensor]:
            return roll_out(begin(), hidden.detach() if detached else hidden, embeddings, depth)

        if not auxiliary.enable_policy:
            both = rollouts(auxiliary.dynamics_detach_trunk)
        else:
            both = rollouts(auxiliary.policy_detach_trunk)
            if auxiliary.enable_dynamics and auxiliary.dynamics_detach_trunk != auxiliary.policy_detach_trunk:
                return both, rollouts(auxiliary.dynamics_detach_trunk)
        return both, both


def _sum_and_count(losses: Tensor, counted: Tensor) -> Tensor:
    """(2,) fp32: the sum of the losses (...) where `counted` (...), and how many these are."""
    return torch.stack([losses.masked_fill(~counted, 0.0).sum(), counted.sum().float()])


def _matrices(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters() if parameter.ndim == 2)
