"""Whether what a model writes stays what it would read: the entropy of its texts against the loss of held-out ones.

    python -m benchmarks.drift SNAPSHOT [--own 1000000] [--texts 48] [--tokens 192] [--betas 0.5,1,2]

At each place of a text the model draws from a distribution of some entropy; on held-out documents it has some loss
there. Where a model is calibrated both are equal, also far from the prompt; where they drift apart, it writes what it
would not read (Braverman et al., arXiv:1906.05664). SNAPSHOT has a transition and a value, and the sources of its
preset can be opened here.

A value is fitted to --own tokens that the model wrote: how uncertain the next tokens of its own texts are. Then texts
are drawn from p_beta(a) = p(a) exp(-beta V(psi(h, a))) up to a factor, for the CANDIDATES likeliest a; the others keep
their share. Prompts are the beginnings of held-out documents; documents that the value is judged by have no part in
what it was fitted to. Intervals are 95% ones of a bootstrap over documents.
"""

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.generate import processor
from benchmarks.lookahead_text import Documents, collect
from benchmarks.planning import interval
from engine.config import parse_preset
from engine.device import machine
from model import TransformerLM, load
from model.latent import expected_nll
from model.latent.core import LookaheadCore
from model.latent.rollout import Rollout, RolloutContext
from model.latent.value import ValueHead, value_losses, value_targets
from model.loss import IGNORE_INDEX
from model.tensors import States

PROMPT_TOKENS, BUCKET = 32, 32
CANDIDATES, COLUMNS = 8, 24
ROWS_AT_ONCE, FIT_ROWS, FIT_RATE = 64, 16, 1e-3
JUDGING_SHARE = 0.1  # of the texts written, which the value is judged by

Value = Callable[[Tensor], Tensor]  # states (..., D) -> (...,) nats
Distribution = Callable[[Tensor], Tensor]  # texts (N, T) -> probabilities (N, V) of the next token


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("snapshot", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--held-out", type=int, default=200_000, help="tokens")
    parser.add_argument("--own", type=int, default=1_000_000, help="tokens that the model writes to fit the value to")
    parser.add_argument("--texts", type=int, default=48, help="written from each distribution")
    parser.add_argument("--tokens", type=int, default=192, help="of a text")
    parser.add_argument("--betas", default="0.5,1,2")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lm = load(arguments.snapshot, device="cpu")
    model, core = lm.model, lm.model.latent
    assert core is not None and core.transition and core.value_head, "the model lacks a part"
    text = collect(parse_preset(lm.preset), lm, arguments.held_out, 0, torch.device("cpu"))
    print(f"{machine.describe(torch.device('cpu'))}, {processor()}, torch {torch.__version__}")
    betas = [float(beta) for beta in arguments.betas.split(",")]
    length = PROMPT_TOKENS + arguments.tokens
    tune, test = (whole_rows(rows, length) for rows in (text.tune, text.test))
    print(
        f"{arguments.snapshot}: {model.config.num_layers} x {model.config.hidden_size}, "
        f"{lm.progress['tokens_total']:,} tokens; {len(tune)} and {len(test)} held-out rows of {length} tokens"
    )

    since = time.monotonic()
    own = own_texts(model, tune[:, :PROMPT_TOKENS], arguments.own, arguments.tokens, lm.eos_token_id)
    print(f"wrote {own[:, PROMPT_TOKENS:].numel():,} tokens in {time.monotonic() - since:.0f} s")
    head = fitted_value(model, core.value_head, own)
    values: dict[str, Value] = {
        "the model's value": lambda hidden: expected_nll(core.value(hidden))[..., -1],
        "the value of own texts": lambda hidden: expected_nll(head(hidden))[..., -1],
    }
    for name, value in values.items():
        of_held_out(model, core, text.test, name, value, betas)

    prompts = test[torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[: arguments.texts]]
    print(f"\nnats a token at places after {PROMPT_TOKENS} tokens of prompt, {len(prompts)} texts each")
    ends = [min(start + BUCKET, arguments.tokens) for start in range(0, arguments.tokens, BUCKET)]
    print(f"  {'':34}" + "".join(f"{f'to {end}':>9}" for end in ends) + f"{'last less first':>18}")
    show("loss of held-out documents", losses(model, prompts)[:, PROMPT_TOKENS - 1 :])
    starts = prompts[:, :PROMPT_TOKENS]
    show("entropy, drawn from p", write(starts, arguments.tokens, Plain(model, len(starts)), lm.eos_token_id)[1])
    for name, value in values.items():
        for beta in betas:
            tilted = Tilted(model, core, value, beta)
            show(f"beta {beta:g}, {name}", write(starts, arguments.tokens, tilted, lm.eos_token_id)[1])


def whole_rows(documents: Documents, length: int) -> Tensor:
    """(N, length): the beginnings of those rows that have so many tokens of their document."""
    whole = (documents.labels[:, : length - 1] != IGNORE_INDEX).all(dim=1)
    return documents.input_ids[whole, :length]


def show(name: str, nats: Tensor) -> None:
    """nats (N, T), by places."""
    buckets = nats.split(BUCKET, dim=1)
    means = "".join(f"{bucket.mean():9.3f}" for bucket in buckets)
    change = buckets[-1].mean(dim=1) - buckets[0].mean(dim=1)
    print(f"  {name:34}{means}   {interval(change, torch.arange(len(change)))}", flush=True)


# --- what is drawn from


class Plain:
    """p, read with a cache: each call reads the tokens that are new."""

    def __init__(self, model: TransformerLM, rows: int):
        self.model, self.cache = model, model.new_cache(rows)

    def __call__(self, ids: Tensor) -> Tensor:
        hidden = self.model.hidden_states(ids[:, self.cache.length :], self.cache)
        return self.model.logits(hidden[:, -1]).softmax(-1)


class Tilted:
    """p_beta; each call reads the whole text, for a rollout starts from all its states."""

    def __init__(self, model: TransformerLM, core: LookaheadCore, value: Value, beta: float):
        self.model, self.core, self.value, self.beta = model, core, value, beta

    def __call__(self, ids: Tensor) -> Tensor:
        states = self.model.states(ids)
        last = torch.tensor([ids.shape[1] - 1])
        p = self.model.logits(states.final[:, -1]).softmax(-1)
        tokens, values = candidates(self.model, self.core, self.value, ids, states, last, p[:, None])
        factors = torch.exp(-self.beta * values[:, 0])
        tilted = p.scatter(1, tokens[:, 0], p.gather(1, tokens[:, 0]) * factors)
        return tilted / tilted.sum(-1, keepdim=True)


def candidates(
    model: TransformerLM, core: LookaheadCore, value: Value, ids: Tensor, states: States, columns: Tensor, p: Tensor
) -> tuple[Tensor, Tensor]:
    """The likeliest tokens (N, C, CANDIDATES) after columns (C,) of texts ids (N, T), of which the model made `states`
    and says p (N, C, V); and the value of the state after each, less its mean over them."""
    assert core.transition is not None
    likeliest = p.topk(CANDIDATES, dim=-1)
    context = RolloutContext.read(model, ids, states)
    rollout = Rollout(core.transition, model, context, columns=columns.repeat_interleave(CANDIDATES))
    hidden = states.final[:, columns].repeat_interleave(CANDIDATES, dim=1)
    predicted = rollout.step(hidden, model.tokens(likeliest.indices.flatten(1)))
    values = value(predicted).unflatten(1, (len(columns), CANDIDATES))
    shares = likeliest.values / likeliest.values.sum(-1, keepdim=True)
    return likeliest.indices, values - (shares * values).sum(-1, keepdim=True)


@torch.inference_mode()
def write(prompts: Tensor, tokens: int, distribution: Distribution, eos: int) -> tuple[Tensor, Tensor]:
    """Texts (N, P + tokens) after prompts (N, P), and the entropies (N, tokens) of what each token was drawn from. No
    text ends: a token EOS is never drawn."""
    generator, ids, entropies = torch.Generator().manual_seed(0), prompts, []
    for _ in range(tokens):
        p = distribution(ids)
        p[:, eos] = 0.0
        p = p / p.sum(-1, keepdim=True)
        entropies.append(torch.special.entr(p).sum(-1))
        ids = torch.cat([ids, p.multinomial(1, generator=generator)], dim=1)
    return ids, torch.stack(entropies, dim=1)


@torch.inference_mode()
def losses(model: TransformerLM, ids: Tensor) -> Tensor:
    """(N, T - 1): the NLLs of tokens ids (N, T) after the first."""
    parts = []
    for rows in ids.split(FIT_ROWS):
        logits = model.logits(model.hidden_states(rows[:, :-1]))
        parts.append(F.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none"))
    return torch.cat(parts)


# --- the value of a model's own texts


def own_texts(model: TransformerLM, prompts: Tensor, tokens: int, each: int, eos: int) -> Tensor:
    """(N, P + each): what the model writes after prompts (M, P), `tokens` tokens or a few more."""
    written, count = [], -(-tokens // each)
    for start in range(0, count, ROWS_AT_ONCE):
        some = prompts[torch.arange(start, min(start + ROWS_AT_ONCE, count)) % len(prompts)]
        written.append(write(some, each, Plain(model, len(some)), eos)[0])
    return torch.cat(written)


def fitted_value(model: TransformerLM, begun: ValueHead, texts: Tensor) -> ValueHead:
    """A value of what the model finds in its own texts (N, P + T), from the one that held-out text taught."""
    head = copy.deepcopy(begun).train()
    texts = texts[torch.randperm(len(texts), generator=torch.Generator().manual_seed(1))]
    judging = max(1, round(JUDGING_SHARE * len(texts)))
    batches = texts[judging:].split(FIT_ROWS)
    optimizer = torch.optim.AdamW(head.parameters(), lr=FIT_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / len(batches))
    for rows in batches:
        hidden, targets, known = lesson(model, head, rows)
        loss = value_losses(head(hidden), targets)[known].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        hidden, targets, known = (
            torch.cat(parts) for parts in zip(*lessons(model, head, texts[:judging]), strict=True)
        )
        for name, judged in (("before", begun), ("after", head)):
            errors, spread = (expected_nll(judged(hidden)) - targets)[..., -1], targets[..., -1]
            seen = known[..., -1]
            share = errors[seen].square().mean() / spread[seen].var(correction=0)
            print(f"the value on {judging} own texts {name} it was fitted to others: R2 {1 - share:.3f}")
    return head.eval()


def lessons(model: TransformerLM, head: ValueHead, texts: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    return [lesson(model, head, rows) for rows in texts.split(FIT_ROWS)]


def lesson(model: TransformerLM, head: ValueHead, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """States (N, T, D) of what was written after the prompts, the targets (N, T, H) there, and where they are known."""
    with torch.no_grad():
        hidden = model.hidden_states(rows[:, :-1])
        logits = model.logits(hidden)
        nll = F.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none")
    remaining = torch.arange(nll.shape[1], 0, -1).expand(len(rows), -1)
    targets, known = value_targets(nll, remaining, head.horizons)
    start = PROMPT_TOKENS - 1
    return hidden[:, start:], targets[:, start:], known[:, start:]


# --- on held-out text


@torch.inference_mode()
def of_held_out(
    model: TransformerLM, core: LookaheadCore, rows: Documents, name: str, value: Value, betas: list[float]
) -> None:
    """The moment gap of a value among the CANDIDATES, and the loss under p_beta less that under p."""
    generator = torch.Generator().manual_seed(0)
    gaps, variances, documents = [], [], []
    changes: dict[float, list[Tensor]] = {beta: [] for beta in betas}
    for first in range(0, len(rows.input_ids), 4):
        ids, labels = rows.input_ids[first : first + 4], rows.labels[first : first + 4]
        columns = torch.randperm(ids.shape[1], generator=generator)[:COLUMNS].sort().values
        states, labels = model.states(ids), labels[:, columns]
        p = model.logits(states.final[:, columns]).softmax(-1)
        valid = labels != IGNORE_INDEX
        tokens, values = candidates(model, core, value, ids, states, columns, p)
        shares, came = p.gather(2, tokens), tokens == labels[..., None]
        for beta in betas:
            factors = torch.exp(-beta * values)
            total = 1.0 + (shares * (factors - 1.0)).sum(-1)
            own = torch.where(came, factors, 0.0).sum(-1) + ~came.any(-1)
            changes[beta].append((total.log() - own.log())[valid])
        foreseen = came.any(-1) & valid
        inner = shares / shares.sum(-1, keepdim=True)
        gaps.append((-torch.where(came, values, 0.0).sum(-1))[foreseen])  # the mean over p is 0
        variances.append((inner * values.square()).sum(-1)[foreseen])
        documents.append((rows.document[first : first + 4, None].expand_as(valid)[valid], foreseen[valid]))
    of_valid, kept = (torch.cat(parts) for parts in zip(*documents, strict=True))
    gap, variance = torch.cat(gaps), torch.cat(variances).mean()
    print(
        f"\n{name}: among {CANDIDATES} candidates, choices drawn from p less what came {interval(gap, of_valid[kept])},"
    )
    print(f"  Var_p V {variance:.5f}: the best beta is {gap.mean() / variance:+.3f} to second order")
    for beta, parts in changes.items():
        print(f"  held-out loss under p_beta less p, beta {beta:g}: {interval(torch.cat(parts), of_valid)}")


if __name__ == "__main__":
    main()
