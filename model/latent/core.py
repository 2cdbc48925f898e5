"""The lookahead core: small parts over the states of one trunk and its LM head, and the objectives that train them.

A part exists only when its switch is on. There is no second head: TransformerLM.logits reads predicted states too.

Stop-gradients: no objective moves the head, the embeddings, the last block as the transition reads it, or the true
states that predictions are compared with. An objective with `detach_trunk` reads states that are detached from the
trunk; the value's loss then does not train the transition either.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..block import initialise_weights
from ..config import AuxiliaryConfig, ModelConfig, require_room
from ..loss import IGNORE_INDEX
from ..tensors import LookAhead, States
from .distillation import DraftedText, draft_figure
from .draft import Drafter
from .look_ahead_sampler import OBJECTIVES
from .objectives.information_gain import NUM_BINS as GAIN_BINS
from .objectives.information_gain import expected_gain, gain_figure
from .policy import Head, linear_kl
from .rollout import Rollout, RolloutContext, roll_out
from .span import SpanProjector, info_nce, span_keys
from .transition import Transition, dynamics_losses, variance_ratio
from .trunk import Trunk
from .value import ValueHead, expected_nll, value_losses, value_targets

# The rows of the figures: the objectives, and a figure that shows collapse.
FIGURES = (*OBJECTIVES, "latent_variance")


class LookaheadCore(nn.Module):
    """The parts that `auxiliary` switches on, for a trunk of `config` whose head has `vocab_rows` rows.

    Methods take the trunk that the core belongs to: it is no submodule, and nothing here changes it.
    Raises ValueError where no rollout or no span fits seq_length.
    """

    def __init__(self, config: ModelConfig, auxiliary: AuxiliaryConfig, vocab_rows: int):
        super().__init__()
        require_room(auxiliary, config.seq_length)
        self.auxiliary = auxiliary
        size = config.hidden_size
        self.transition = Transition(size, config.num_heads) if auxiliary.rolls_out else None
        self.value_head = None
        if auxiliary.enable_value:
            self.value_head = ValueHead(size, auxiliary.value_horizons, GAIN_BINS * auxiliary.foretells_gain)
        self.span_projector = SpanProjector(size) if auxiliary.enable_span_contrastive else None
        self.drafter = None
        if auxiliary.enable_draft:
            self.drafter = Drafter(size, config.num_heads, vocab_rows, auxiliary.draft_length)

    @classmethod
    def create(cls, config: ModelConfig, auxiliary: AuxiliaryConfig, vocab_rows: int) -> "LookaheadCore | None":
        """A core with initial weights, None where every part is off; torch's global generator is left as it was."""
        if not auxiliary.looks_ahead:
            return None
        with torch.random.fork_rng(devices=[]):
            core = cls(config, auxiliary, vocab_rows)
            initialise_weights(core, config)
            if core.drafter is not None:
                core.drafter.begin()
        return core

    def forward(
        self,
        trunk: Trunk,
        look_ahead: LookAhead,
        states: States,
        input_ids: Tensor,
        segment_ids: Tensor | None,
        labels: Tensor,
        token_nll: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The objectives on one micro-batch, of which the trunk made `states` and token_nll (B, T).

        input_ids, segment_ids and labels are those of TransformerLM.forward. Returns what is added to the sum of the
        NLLs, a scalar: the weighted mean of each objective times the number of labels; and FIGURES (F, 2) in fp32,
        detached: a sum and a count of each, zeros where its part is off.
        """
        remaining = remaining_labels(look_ahead.segment_ids, labels)
        by_name: dict[str, Tensor] = {}
        targets = None
        if self.value_head is not None:
            targets = value_targets(token_nll, remaining, self.value_head.horizons)
            by_name["value"] = self._value_figure(states.final, *targets)
        if self.span_projector is not None:
            by_name["span_contrastive"] = self._span_figure(self.span_projector, look_ahead.spans, states, remaining)
        if self.transition is not None or self.drafter is not None:
            context = RolloutContext.read(trunk, input_ids, states, segment_ids, look_ahead.rows)
            if self.transition is not None:
                by_name |= self._rollout_figures(trunk, look_ahead, states.final, context, remaining, targets)
            if self.drafter is not None:
                text = DraftedText(context, look_ahead, labels, remaining)
                by_name["draft"] = draft_figure(self.drafter, self.transition, trunk, text)
                if self.value_head is not None and self.auxiliary.foretells_gain:
                    hidden = context.hidden if self.auxiliary.value_detach_trunk else states.final[look_ahead.rows]
                    by_name["information_gain"] = gain_figure(
                        self.value_head, self.drafter, trunk, text, token_nll, hidden
                    )
        absent = states.final.new_zeros(2, dtype=torch.float32)
        figures = torch.stack([by_name.get(name, absent) for name in FIGURES])
        sums, counts = figures[: len(OBJECTIVES)].unbind(dim=1)
        blended = (look_ahead.weights * sums / counts.clamp_min(1.0)).sum()
        return blended * (labels != IGNORE_INDEX).sum(), figures.detach()

    def begin_rollout(
        self, trunk: Trunk, input_ids: Tensor, states: States, segment_ids: Tensor | None = None, start: int = 0
    ) -> Rollout:
        """A rollout from `states`, which the trunk made of texts input_ids (B, T) with the same segment_ids. For a core
        with a transition."""
        assert self.transition is not None, "without a transition there are no rollouts"
        return Rollout(self.transition, trunk, RolloutContext.read(trunk, input_ids, states, segment_ids), start)

    def rollout(self, trunk: Trunk, input_ids: Tensor, depth: int, segment_ids: Tensor | None = None) -> list[Tensor]:
        """`depth` steps from every state of texts input_ids (B, T), along the texts themselves: see roll_out. For a
        core with a transition."""
        states = trunk.states(input_ids, segment_ids=segment_ids)
        rollout = self.begin_rollout(trunk, input_ids, states, segment_ids)
        return roll_out(rollout, states.final.detach(), trunk.tokens(input_ids).detach(), depth)

    def value(self, hidden: Tensor) -> Tensor:
        """States, true or predicted, (..., D) -> logits (..., H, NUM_BINS) over the mean NLL of the next K tokens for
        each of the H horizons K; value.expected_nll turns them into nats. For a core with a value."""
        assert self.value_head is not None, "without a value there are no logits of it"
        return self.value_head(hidden)

    def information_gain(self, hidden: Tensor) -> Tensor:
        """States (..., D) -> (...,): how many nats reading the next token is expected to tell about the one after it.
        For a core with a value that foretells the gain."""
        assert self.value_head is not None, "without a value nothing foretells the gain"
        return expected_gain(self.value_head.gain(hidden))

    def path_value(self, token_nll: Tensor, predicted: Tensor) -> Tensor:
        """Q of a path of d tokens (MuZero), in nats over d + K tokens, for each horizon K: the NLLs of its tokens,
        token_nll (..., d), as read from the states before them, plus K times the value of the state where it ends,
        predicted (..., D). Returns (..., H). For a core with a value."""
        assert self.value_head is not None, "without a value no path has one"
        horizons = torch.tensor(self.value_head.horizons, device=predicted.device)
        return token_nll.sum(-1, keepdim=True) + horizons * expected_nll(self.value(predicted))

    def _value_figure(self, states: Tensor, targets: Tensor, known: Tensor) -> Tensor:
        states = states.detach() if self.auxiliary.value_detach_trunk else states
        return _sum_and_count(value_losses(self.value(states), targets), known)

    def _span_figure(self, projector: SpanProjector, starts: Tensor, states: States, remaining: Tensor) -> Tensor:
        auxiliary = self.auxiliary
        valid = remaining[:, starts] > auxiliary.span_length
        hidden = states.final
        before = hidden[:, starts].detach() if auxiliary.span_contrastive_detach_trunk else hidden[:, starts]
        queries = projector(before).flatten(0, 1)
        keys = span_keys(states.second_layer, starts, auxiliary.span_length, valid).flatten(0, 1)
        losses = info_nce(
            queries, keys, valid.flatten(), auxiliary.span_contrastive_temperature, auxiliary.span_l2_normalize
        )
        return _sum_and_count(losses, valid.flatten())

    def _rollout_figures(
        self,
        trunk: Trunk,
        look_ahead: LookAhead,
        hidden: Tensor,
        context: RolloutContext,
        remaining: Tensor,
        realised: tuple[Tensor, Tensor] | None,
    ) -> dict[str, Tensor]:
        """The figures of predicted states. hidden, remaining and `realised`, the value's targets, are those of all
        rows; `context` is of look_ahead.rows."""
        auxiliary, rows, columns = self.auxiliary, look_ahead.rows, look_ahead.columns
        depth = auxiliary.rollout_depth  # all steps are always made, so that shapes stay; look_ahead.depth masks them
        hidden, remaining = hidden[rows], remaining[rows]
        true, figures = hidden.detach(), {}
        to_read, to_compare = self._rollouts(trunk, context, hidden)

        comparable = [(remaining[:, :-i] > i) & (i <= look_ahead.depth) for i in range(1, depth + 1)]
        if auxiliary.enable_dynamics:
            losses = [dynamics_losses(predicted, true[:, i:]) for i, predicted in enumerate(to_compare, 1)]
            figures["dynamics"] = sum(map(_sum_and_count, losses, comparable))
        ratios = [
            torch.stack([variance_ratio(predicted, true[:, i:], valid), (valid.sum() > 1).float()])
            for i, (predicted, valid) in enumerate(zip(to_compare, comparable, strict=True), 1)
        ]
        figures["latent_variance"] = torch.stack(ratios)[look_ahead.depth[None] - 1][0]

        # What head and value read at a column: the predictions of its state, made i steps before it; (depth, R, P, D).
        read = torch.stack([predicted[:, columns - i] for i, predicted in enumerate(to_read, 1)])
        valid = torch.stack([mask[:, columns - i] for i, mask in enumerate(comparable, 1)])
        if auxiliary.enable_policy:
            head = Head(trunk.head_weight, trunk.vocab_size, torch.compiler.is_compiling())
            kl_sum, _ = linear_kl(read.flatten(1, 2), true[:, columns].flatten(0, 1), head, valid.flatten(1))
            figures["policy"] = torch.stack([kl_sum, valid.sum().float()])
        if realised is not None:
            targets, known = (tensor[rows][:, columns] for tensor in realised)
            figures["rolled_out_value"] = self._value_figure(read, targets, known & valid[..., None])
        return figures

    def _rollouts(self, trunk: Trunk, context: RolloutContext, hidden: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Predicted states that head and value read, and those that the dynamics compare: the same ones, unless only
        one of policy and dynamics is to reach the trunk."""
        auxiliary, transition = self.auxiliary, self.transition
        assert transition is not None

        def rollouts(detached: bool) -> list[Tensor]:
            start = hidden.detach() if detached else hidden
            return roll_out(Rollout(transition, trunk, context), start, context.embeddings, auxiliary.rollout_depth)

        if not auxiliary.enable_policy:
            both = rollouts(auxiliary.dynamics_detach_trunk)
        else:
            both = rollouts(auxiliary.policy_detach_trunk)
            if auxiliary.enable_dynamics and auxiliary.dynamics_detach_trunk != auxiliary.policy_detach_trunk:
                return both, rollouts(auxiliary.dynamics_detach_trunk)
        return both, both


def remaining_labels(segment_ids: Tensor, labels: Tensor) -> Tensor:
    """(B, T): how many labels follow in the segment at each column, its own counted; 0 in padding.

    segment_ids and labels (B, T). A label that is ignored ends the segment. The prediction that i steps make from h_t
    has a true state to compare with where remaining_labels[:, t] > i.
    """
    segments = torch.where(labels == IGNORE_INDEX, -1, segment_ids)
    length = segments.shape[1]
    columns = torch.arange(length, device=segments.device)
    last = F.pad(segments[:, 1:] != segments[:, :-1], (0, 1), value=True)
    ends = torch.where(last, columns + 1, length).flip(1).cummin(dim=1).values.flip(1)
    return torch.where(segments >= 0, ends - columns, 0)


def _sum_and_count(losses: Tensor, counted: Tensor) -> Tensor:
    """(2,) fp32: the sum of the losses (...) where `counted` (...), and the number of these."""
    return torch.stack([losses.masked_fill(~counted, 0.0).sum(), counted.sum().float()])
