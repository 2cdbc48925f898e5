"""What the lookahead core must beat: heads and transitions trained on a finished model's states, regressions, trigrams.

All are fitted to the model as it is, with its weights frozen. Heads and transitions get about as many rows of training
text, steps and columns to read as the core's rollouts had, the trigram the model's number of tokens, and regressions
the held-out documents that are there for fitting, or some of the training text.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.device import machine
from engine.optim.optimizers import muon
from engine.optim.schedule import learning_rate
from model import TransformerLM
from model.latent.core import remaining_labels
from model.latent.policy import Head, linear_kl
from model.latent.rollout import Rollout, RolloutContext, roll_out
from model.latent.transition import Transition, dynamics_losses
from model.loss import IGNORE_INDEX, linear_cross_entropy
from model.tensors import States
from sources.loading.loader import Batch

DEPTH = 3
RATE, COLUMNS = 5e-3, 128  # the peak learning rate; columns of each row that are read by the head
RIDGES = (1e-4, 1e-2, 1.0)  # times the number of positions, on standardised features


class Heads(nn.Module):
    """Multi-token prediction (arXiv 2404.19737; Medusa, 2401.10774): for each depth a head of the transition's size,
    which reads h_t alone and predicts x_{t+1+depth} through the LM head."""

    def __init__(self, hidden_size: int, parameters: int):
        super().__init__()
        width = round((hidden_size**2 + parameters) ** 0.5 - hidden_size)  # 2 D w + w^2 = parameters
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(hidden_size),
                nn.Linear(hidden_size, width),
                nn.GELU(),
                nn.Linear(width, width),
                nn.GELU(),
                nn.Linear(width, hidden_size),
            )
            for _ in range(DEPTH)
        )
        self.norms = nn.ModuleList(nn.RMSNorm(hidden_size, eps=1e-6) for _ in range(DEPTH))

    def forward(self, model: TransformerLM, input_ids: Tensor, states: States, depth: int) -> list[Tensor]:
        """As LookaheadCore.rollout; the tokens are not read."""
        hidden, length = states.final, input_ids.shape[1]
        return [
            norm(hidden + head(hidden))[:, : length - step]
            for step, (head, norm) in enumerate(zip(self.heads, self.norms, strict=True), 1)
        ][:depth]


class Told(nn.Module):
    """Multi-token prediction that is told the tokens (DeepSeek-V3, arXiv 2412.19437): the transition's own shape,
    trained on nothing but the cross-entropy of what comes."""

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.transition = Transition(hidden_size, num_heads)

    def forward(self, model: TransformerLM, input_ids: Tensor, states: States, depth: int) -> list[Tensor]:
        context = RolloutContext.read(model, input_ids, states)
        return roll_out(Rollout(self.transition, model, context), context.hidden, context.embeddings, depth)


class TokensOnly(Told):
    """The transition without h, of which every column knows its own token and those that follow; trained on the core's
    own two objectives."""

    def forward(self, model: TransformerLM, input_ids: Tensor, states: States, depth: int) -> list[Tensor]:
        context = RolloutContext.read(model, input_ids, States(*map(torch.zeros_like, states)))
        alone = torch.eye(input_ids.shape[1], dtype=torch.bool, device=input_ids.device)[None, None]
        rollout = Rollout(self.transition, model, context._replace(allowed=alone))
        return roll_out(rollout, context.hidden, context.embeddings, depth)


def train_probes(
    probes: dict[str, nn.Module], model: TransformerLM, batches: Iterable[Batch], tokens: int, device: torch.device
) -> None:
    """Trains all of them beside one another, on the same batches, with the core's optimizer and in its precision."""
    generator = torch.Generator().manual_seed(0)
    bf16, done = machine.native_bf16(device), 0
    optimizers = {
        name: muon(probe, RATE, 0.0, torch.bfloat16 if bf16 else torch.float32) for name, probe in probes.items()
    }
    for batch in batches:
        columns = DEPTH + torch.randperm(batch.labels.shape[-1] - DEPTH, generator=generator)[:COLUMNS].to(device)
        ids, labels, pieces = (part[0].to(device) for part in (batch.input_ids, batch.labels, batch.segment_ids))
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            with torch.no_grad():
                states = model.states(ids)
            losses = {
                name: _loss(probe, model, ids, labels, states, remaining_labels(pieces, labels), columns)
                for name, probe in probes.items()
            }
        rate = learning_rate(done, tokens, peak=RATE, warmup_fraction=0.02, final_fraction=0.05, continued=False)
        for name, probe in probes.items():
            optimizers[name].zero_grad()
            losses[name].backward()
            torch.nn.utils.clip_grad_norm_(probe.parameters(), 1.0)
            for group in optimizers[name].param_groups:
                group["lr"] = rate
            optimizers[name].step()
        done += batch.num_tokens


def _loss(
    probe: nn.Module, model: TransformerLM, ids: Tensor, labels: Tensor, states: States, ahead: Tensor, columns: Tensor
) -> Tensor:
    """TokensOnly's on the true states and what the head reads from them, the others' on the tokens that came."""
    predicted, weight = probe(model, ids, states, DEPTH), model.head_weight.detach()
    valid = torch.stack([(ahead[:, :-i] > i)[:, columns - i] for i in range(1, DEPTH + 1)])
    read = torch.stack([state[:, columns - i] for i, state in enumerate(predicted, 1)])
    if not isinstance(probe, TokensOnly):
        targets = labels[:, columns].expand_as(valid).masked_fill(~valid, IGNORE_INDEX)
        nll, _ = linear_cross_entropy(read.flatten(0, 2), weight, model.output_bias, targets.flatten())
        return nll / valid.sum().clamp_min(1)
    true = states.final[:, columns].flatten(0, 1)
    kl, _ = linear_kl(read.flatten(1, 2), true, Head(weight, model.vocab_size), valid.flatten(1))
    errors = [dynamics_losses(state, states.final[:, i:])[ahead[:, :-i] > i] for i, state in enumerate(predicted, 1)]
    return kl / valid.sum().clamp_min(1) + torch.cat(errors).mean()


Predictor = Callable[[Tensor], Tensor]


def ridge(features: Tensor, targets: Tensor, tune_features: Tensor, tune_targets: Tensor) -> Predictor:
    """A linear map with intercept from features (N, F) to targets (N, G), its penalty the best of RIDGES on the rows
    for tuning."""
    mean, spread = features.mean(0), features.std(0).clamp_min(1e-6)
    centre, size = targets.mean(0), features.shape[1]
    gram = torch.zeros(size, size, dtype=torch.float64, device=features.device)
    cross = torch.zeros(size, targets.shape[1], dtype=torch.float64, device=features.device)
    for some, wanted in zip(features.split(20_000), targets.split(20_000), strict=True):
        scaled = (some - mean) / spread
        gram += (scaled.T @ scaled).double()
        cross += (scaled.T @ (wanted - centre)).double()
    identity = torch.eye(size, dtype=torch.float64, device=features.device)

    def predictor(penalty: float) -> Predictor:
        weights = torch.linalg.solve(gram + penalty * len(features) * identity, cross).float()
        return lambda x: ((x - mean) / spread) @ weights + centre

    candidates = [predictor(penalty) for penalty in RIDGES]
    errors = [(candidate(tune_features) - tune_targets).square().mean() for candidate in candidates]
    return candidates[int(torch.stack(errors).argmin())]


class Trigram:
    """Absolute discounting, interpolated down to the unigram, whose counts begin at one (Kneser and Ney, 1995, without
    their change of the lower orders)."""

    DISCOUNT = 0.75

    def __init__(self, batches: Iterable[Batch], vocab_size: int):
        self.base = vocab_size
        codes: list[Tensor] = []
        for batch in batches:
            ids, labels, pieces = (part.flatten(0, 1) for part in (batch.input_ids, batch.labels, batch.segment_ids))
            same = (pieces[:, 1:] == pieces[:, :-1]) & (labels[:, 1:] != IGNORE_INDEX)
            codes.append(self._code(ids[:, :-1], ids[:, 1:], labels[:, 1:])[same])
        self.trigrams, self.counts = torch.cat(codes).unique(return_counts=True)
        context, token = self.trigrams // self.base, self.trigrams % self.base
        self.pairs = _Contexts(context, self.counts)
        bigram = (context % self.base) * self.base + token
        self.bigrams, where = bigram.unique(return_inverse=True)
        self.bigram_counts = torch.zeros_like(self.bigrams).index_add_(0, where, self.counts)
        self.singles = _Contexts(self.bigrams // self.base, self.bigram_counts)
        unigram = torch.ones(self.base, dtype=torch.int64).index_add_(0, token, self.counts)
        self.unigram = unigram.double() / unigram.sum()

    def nll(self, before: Tensor, last: Tensor, following: Tensor) -> Tensor:
        """(N,) nats of `following` after the tokens `before` and `last`, all (N,)."""
        p = self.unigram[following]
        for codes, counts, contexts, context in (
            (self.bigrams, self.bigram_counts, self.singles, last),
            (self.trigrams, self.counts, self.pairs, before * self.base + last),
        ):
            total, kinds = contexts.look_up(context)
            found = _count(codes, counts, context * self.base + following).double()
            seen = total.clamp_min(1)
            discounted = (found - self.DISCOUNT).clamp_min(0) / seen + self.DISCOUNT * kinds / seen * p
            p = torch.where(total > 0, discounted, p)
        return -p.log()

    def _code(self, before: Tensor, last: Tensor, following: Tensor) -> Tensor:
        return (before.long() * self.base + last) * self.base + following


class _Contexts:
    """How often each context was seen, and with how many different followers."""

    def __init__(self, contexts: Tensor, counts: Tensor):
        self.contexts, where, self.kinds = contexts.unique(return_inverse=True, return_counts=True)
        self.totals = torch.zeros_like(self.contexts).index_add_(0, where, counts)

    def look_up(self, contexts: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(_count(self.contexts, values, contexts).double() for values in (self.totals, self.kinds))


def _count(codes: Tensor, values: Tensor, wanted: Tensor) -> Tensor:
    """values where the sorted `codes` hold `wanted`, 0 elsewhere."""
    place = torch.searchsorted(codes, wanted).clamp_max(len(codes) - 1)
    return torch.where(codes[place] == wanted, values[place], 0)


def bags(tokens: Tensor, valid: Tensor, inverse_frequency: Tensor) -> Tensor:
    """tokens (N, L) where valid -> (N, V) tf-idf vectors of length one."""
    bag = torch.zeros(len(tokens), len(inverse_frequency), device=tokens.device)
    bag.scatter_add_(1, tokens, valid.float())
    return F.normalize(bag * inverse_frequency, dim=1)
