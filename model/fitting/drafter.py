"""Training a drafter alone, on a finished trunk: what the trunk says at every place of a text teaches it.

Beside a run the drafter sees one position in some dozens, for it must not slow the run down. Here the trunk only
reads, and half of all positions teach.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import AuxiliaryConfig
from ..latent.core import LookaheadCore
from ..latent.distillation import DraftedText, draft_figure
from ..latent.draft import Drafter
from ..latent.rollout import RolloutContext
from ..latent.trunk import LastBlock
from ..tensors import LookAhead
from ..transformer import TransformerLM

ROWS, SHARE = 4, 0.5  # of a step, and the share of their positions that teach
LEARNING_RATE, WARMUP = 1e-2, 50
JUDGING_SHARE, MOST_JUDGING = 0.05, 32  # of the rows, which do not teach


class DrafterFit(NamedTuple):
    """What the texts taught. The overlap is the sum over all tokens of min(p, q), p being the model and q the drafter,
    for each place, on rows that did not teach."""

    overlap: list[float]
    overlap_before: list[float]
    tokens: int
    auxiliary: dict[str, Any]  # the keys of the preset's section `auxiliary` that say what the core is now


def fit_drafter(model: TransformerLM, rows: Sequence[Tensor], tokens: int) -> DrafterFit:
    """Train the model's drafter, or a new one, on `tokens` tokens of rows (see document_rows), as often as it takes.
    Raises ValueError for a model with memory tokens."""
    if model.memory is not None:
        raise ValueError("a drafter does not read memory tokens, which this model has; generate without drafts.")
    packed = torch.cat([row[:-1] for row in rows])
    length = min(model.config.seq_length, len(packed) // 4)
    windows = packed[: len(packed) // length * length].view(-1, length)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))
    judging = max(1, min(MOST_JUDGING, round(JUDGING_SHARE * len(windows))))
    drafter, auxiliary = add_drafter(model)
    trained = bool(drafter.after.weight.any())
    overlap_before = overlaps(model, drafter, windows[order[:judging]])
    training = model.training
    model.eval()
    try:
        steps = max(1, tokens // (ROWS * length))
        tables = drafter.before, drafter.after
        size, rank = model.config.hidden_size, drafter.after.embedding_dim
        embeddings = F.layer_norm(model.tokens.weight.detach(), (size,))
        before = _Projected(tables[0], embeddings, 0.0 if trained else (size * rank) ** -0.5)
        after = _Projected(tables[1], model.head_weight, 0.0)
        drafter.before, drafter.after = before, after  # type: ignore[assignment]
        try:
            _train(model, drafter, _batches(windows[order[judging:]], steps), steps)
        finally:
            drafter.before, drafter.after = before.merged(), after.merged()
    finally:
        model.train(training)
    return DrafterFit(
        overlaps(model, drafter, windows[order[:judging]]), overlap_before, steps * ROWS * length, auxiliary
    )


class _Projected(nn.Module):
    """A table of the Markov term plus a projection of the trunk's own rows: what one token teaches, similar ones learn
    too. A few ten thousand positions visit most rows of a table seldom or never."""

    def __init__(self, table: nn.Embedding, rows: Tensor, std: float):
        super().__init__()
        self.table, self.num_embeddings = table, table.num_embeddings
        self.projection = nn.Linear(rows.shape[1], table.embedding_dim, bias=False, device=rows.device)
        nn.init.normal_(self.projection.weight, std=std)
        self.register_buffer("rows", rows.detach(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids) + self.projection(F.embedding(ids, self.get_buffer("rows")))

    @torch.no_grad()
    def merged(self) -> nn.Embedding:
        """One table of both."""
        self.table.weight += self.projection(self.get_buffer("rows"))
        return self.table


def add_drafter(model: TransformerLM) -> tuple[Drafter, dict[str, Any]]:
    """The model's drafter, a new one where it has none; and the keys of `auxiliary` that this changes."""
    core = model.latent
    if core is not None and core.drafter is not None:
        return core.drafter, {}
    changed = {"enable_draft": True, "draft_rollouts": 0}
    auxiliary = (AuxiliaryConfig() if core is None else core.auxiliary).model_copy(update=changed)
    made = LookaheadCore.create(model.config, auxiliary, model.padded_vocab_size)
    assert made is not None and made.drafter is not None
    if core is not None:
        made.load_state_dict(core.state_dict(), strict=False)
    model.latent = made.to(model.final_norm.weight.device)
    return made.drafter, changed


def _batches(windows: Tensor, steps: int) -> Iterator[Tensor]:
    """(ROWS, T), `steps` times, in a new order each time through the windows."""
    generator, waiting = torch.Generator().manual_seed(1), torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(waiting) < ROWS:
            waiting = torch.cat([waiting, torch.randperm(len(windows), generator=generator)])
        yield windows[waiting[:ROWS]]
        waiting = waiting[ROWS:]


@torch.enable_grad()
def _train(model: TransformerLM, drafter: Drafter, batches: Iterator[Tensor], steps: int) -> None:
    device = model.tokens.weight.device
    made = optimizers(drafter, LEARNING_RATE)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(one, lambda step: min(1.0, (step + 1) / WARMUP) * (1 - step / steps))
        for one in made
    ]
    generator = torch.Generator().manual_seed(2)
    for ids in batches:
        ids = ids.to(device)
        with torch.no_grad():
            context = RolloutContext.read(model, ids, model.states(ids))
        total, count = draft_figure(drafter, None, model, _lesson(context, ids, drafter.length, generator))
        drafter.zero_grad()
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(drafter.parameters(), 1.0)
        for one in (*made, *schedules):
            one.step()


def optimizers(drafter: Drafter, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of linear layers, which learns a drafter in a quarter of AdamW's steps, and AdamW for the
    rest (benchmarks/LOG.md)."""
    matrices = [module.weight for module in drafter.modules() if isinstance(module, nn.Linear)]
    others = [parameter for parameter in drafter.parameters() if all(parameter is not some for some in matrices)]
    muon = torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)]


def _lesson(context: RolloutContext, ids: Tensor, places: int, generator: torch.Generator) -> DraftedText:
    """What the columns of ids (R, T) teach, SHARE of them."""
    rows, length = ids.shape
    last = length - places
    columns = torch.randperm(last, generator=generator)[: max(1, round(SHARE * last))].sort().values.to(ids.device)
    labels = F.pad(ids[:, 1:], (0, 1))
    remaining = (length - 1 - torch.arange(length, device=ids.device)).expand(rows, -1)
    nothing, every = ids.new_empty(0), torch.arange(rows, device=ids.device)
    look_ahead = LookAhead(
        torch.zeros_like(ids), every, nothing, nothing, torch.empty(0), torch.tensor(0), columns,
        torch.empty(places - 1, 0, rows * len(columns)),
    )  # fmt: skip
    return DraftedText(context, look_ahead, labels, remaining)


@torch.no_grad()
def overlaps(model: TransformerLM, drafter: Drafter, rows: Tensor) -> list[float]:
    """The mean overlap at each place after x_{t+1}, on rows (N, T), of which every token is read as it came."""
    sums, length = torch.zeros(drafter.length, dtype=torch.float64), rows.shape[1]
    rotations = None if model.rotary is None else model.rotary(length - 1, 1)
    for ids in rows.to(model.tokens.weight.device).split(1):
        states = model.states(ids)
        drafted = drafter(
            states.final[:, :-1],
            model.tokens(ids)[:, 1:],
            LastBlock(model).keys_and_values(states.before_last),
            model.causal_mask[: length - 1, :length],
            rotations,
        )
        for place in range(drafter.length):
            p = model.logits(states.final[:, 1 + place :]).softmax(-1)
            markov = F.linear(drafter.before(ids[:, 1 + place :]), drafter.after.weight[: model.vocab_size])
            q = (model.logits(drafted[place][:, : length - 1 - place]) + markov).softmax(-1)
            sums[place] += torch.minimum(p, q).sum(-1).mean().cpu()
    return (sums / len(rows)).tolist()
