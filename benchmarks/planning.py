"""Whether looking ahead improves what is written: what the value, the drafter and the transition know about a choice.

    python -m benchmarks.planning SNAPSHOT [SNAPSHOT ...] [--prompts 1000] [--judge SNAPSHOT] [--threads 2]
        [--held-out 200000] [--rows gap,temperature,samplers,gain,lines]

Each SNAPSHOT has a transition, a value and a drafter, and the sources of its preset can be opened here; several are
seeds of one another, and `lines` takes them together, the other rows one by one. All is measured on
held-out documents: what is fitted is fitted on one half of them and judged on the other. Intervals are 95% ones of a
bootstrap over documents.

Rows:
    gap           the moment gap E_{a~p} V(psi(h, a)) - V(psi(h, x)), x being what came. Tilting p by exp(-beta V) gains
                  gap^2 / (2 Var_p V) nats a token to second order; nothing where the gap is 0
    temperature   NLL with log T = a + b H + c V against the one best fixed temperature
    gain          how well h_t foretells what reading x_{t+1} will tell about x_{t+2}, the information gain
                  log p(x_{t+2} | h_{t+1}) - log sum_a p(a | h_t) q(x_{t+2} | h_t, a), q being the drafter
    samplers      rep-4, distinct-4 and the perplexity by a judge, another model, of texts drawn at six fixed
                  temperatures, with six offsets of an adaptive one, greedily and with a plan
    lines         the rest of a line of text: exact matches, edit similarity and time of greedy writing, temperatures,
                  the likeliest of n texts, beam search and planning
"""

import argparse
import difflib
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.generate import processor
from benchmarks.lookahead_text import Documents, Text, collect
from engine.config import parse_preset
from engine.device import machine
from model import Generation, LanguageModel, TransformerLM, load
from model.latent import expected_nll
from model.latent.core import LookaheadCore
from model.latent.objectives.information_gain import expected_gain
from model.latent.rollout import Rollout, RolloutContext
from model.latent.trunk import LastBlock
from model.loss import IGNORE_INDEX

COLUMNS, CHOICES = 24, 16  # of a row of text, and tokens drawn at each
LIKELIEST = 32  # tokens a over which the drafter's guess about x_{t+2} is summed
CONTEXT_CHARACTERS = 500
REST_CHARACTERS = range(6, 41)  # of a line, that are to be written
RESAMPLES = 2000
RIDGES = (1.0, 30.0, 1000.0, 30000.0)


@dataclass(frozen=True)
class Bench:
    lm: LanguageModel
    text: Text
    lines: int
    judge: LanguageModel | None

    @property
    def model(self) -> TransformerLM:
        return self.lm.model

    @property
    def core(self) -> LookaheadCore:
        core = self.model.latent
        assert core is not None and core.transition and core.value_head and core.drafter, "the model lacks a part"
        return core


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("snapshots", type=Path, nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--held-out", type=int, default=200_000, help="tokens")
    parser.add_argument("--prompts", type=int, default=1000, help="lines to complete")
    parser.add_argument("--judge", type=Path, help="another model's snapshot")
    parser.add_argument("--rows", default="gap,temperature,samplers,gain,lines")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    judge = load(arguments.judge, device="cpu") if arguments.judge else None
    print(f"{machine.describe(torch.device('cpu'))}, {processor()}, torch {torch.__version__}")
    rows, benches = arguments.rows.split(","), []
    for path in arguments.snapshots:
        lm = load(path, device="cpu")
        text = collect(parse_preset(lm.preset), lm, arguments.held_out, 0, torch.device("cpu"))
        benches.append(Bench(lm, text, arguments.prompts, judge))
        config = lm.model.config
        print(
            f"{path}: {config.num_layers} x {config.hidden_size}, vocabulary {lm.model.vocab_size:,}, "
            f"{lm.progress['tokens_total']:,} tokens; {len(text.tune)} held-out documents to fit with and "
            f"{len(text.test)} to judge by"
        )
    for bench in benches:
        for row in rows:
            if row != "lines":
                ROWS[row](bench)
    if "lines" in rows:
        lines(benches)


def interval(values: Tensor, documents: Tensor) -> str:
    """values (N,) of positions of documents (N,) -> the mean and its 95% interval."""
    count = int(documents.max()) + 1
    sums = torch.zeros(count, dtype=torch.float64).scatter_add_(0, documents, values.double())
    sizes = torch.zeros(count, dtype=torch.float64).scatter_add_(0, documents, torch.ones_like(values.double()))
    drawn = torch.randint(count, (RESAMPLES, count), generator=torch.Generator().manual_seed(0))
    means = (sums[drawn].sum(1) / sizes[drawn].sum(1)).sort().values
    low, high = means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES)]
    return f"{sums.sum() / sizes.sum():+.5f} ({low:+.5f} to {high:+.5f})"


# --- the moment gap


@torch.inference_mode()
def gap(bench: Bench) -> None:
    print("\nmoment gap of the value of the state after a choice, nats a token: choices drawn from p less what came")
    drawn, came, documents = values_of_choices(bench, bench.text.test)
    for number, horizon in enumerate(bench.core.auxiliary.value_horizons):
        differences = drawn[:, :, number].mean(1) - came[:, number]
        variance = drawn[:, :, number].var(1).mean().item()
        gain = differences.mean().item() ** 2 / (2 * variance)
        print(
            f"  next {horizon} tokens: {interval(differences, documents)}, Var_p V {variance:.5f}, "
            f"so at most {gain:.6f} nats a token are to be had"
        )


def values_of_choices(bench: Bench, rows: Documents) -> tuple[Tensor, Tensor, Tensor]:
    """V of the predicted state after each of CHOICES tokens drawn from p (N, CHOICES, H), after what came (N, H), and
    the documents of the N positions."""
    model, core = bench.model, bench.core
    generator = torch.Generator().manual_seed(0)
    drawn, came, documents = [], [], []
    for first in range(0, len(rows.input_ids), 4):
        ids, labels = rows.input_ids[first : first + 4], rows.labels[first : first + 4]
        columns = torch.randperm(ids.shape[1], generator=generator)[:COLUMNS].sort().values
        states = model.states(ids)
        hidden = states.final[:, columns]
        tokens = model.logits(hidden).softmax(-1).flatten(0, 1).multinomial(CHOICES, True, generator=generator)
        tokens = torch.cat([tokens, labels[:, columns].clamp_min(0).view(-1, 1)], dim=1)  # (rows * columns, C + 1)
        rollout = Rollout(
            core.transition, model, RolloutContext.read(model, ids, states), columns=columns.repeat(CHOICES + 1)
        )
        by_row = tokens.view(len(ids), len(columns), -1).transpose(1, 2).flatten(1)
        predicted = rollout.step(hidden.repeat(1, CHOICES + 1, 1), model.tokens(by_row))
        values = expected_nll(core.value(predicted)).view(len(ids), CHOICES + 1, len(columns), -1).transpose(1, 2)
        valid = labels[:, columns] != IGNORE_INDEX
        drawn.append(values[:, :, :CHOICES][valid])
        came.append(values[:, :, CHOICES][valid])
        documents.append(rows.document[first : first + 4, None].expand_as(valid)[valid])
    return torch.cat(drawn), torch.cat(came), torch.cat(documents)


# --- adaptive temperature


def temperature(bench: Bench) -> None:
    print("\nheld-out NLL by the temperature, against the best fixed one; fitted on the other half of the documents")
    tune, test = logits_of(bench, bench.text.tune, 12_000), logits_of(bench, bench.text.test, 30_000)
    names = {"fixed": [], "entropy": [0], "value": [1], "entropy and value": [0, 1]}
    losses = {}
    for name, used in names.items():
        weights = fitted_temperature(tune, used)
        losses[name] = tempered_nll(test, used, weights)
        shown = ", ".join(f"{w:+.4f}" for w in weights.tolist())
        against = "" if name == "fixed" else f", less fixed: {interval(losses[name] - losses['fixed'], test[3])}"
        print(f"  log T by {name} ({shown}): {losses[name].mean():.5f} nats{against}")
    plain = F.cross_entropy(test[0], test[1], reduction="none")
    print(f"  T = 1: {plain.mean():.5f} nats, less fixed: {interval(plain - losses['fixed'], test[3])}")


Tempered = tuple[Tensor, Tensor, Tensor, Tensor]  # logits (N, V), labels (N,), features (N, 2), documents (N,)


@torch.inference_mode()
def logits_of(bench: Bench, rows: Documents, most: int) -> Tempered:
    """Of `most` positions; the features are entropy and value (the longest horizon), in nats, less their means."""
    model, core = bench.model, bench.core
    logits, labels, features, documents = [], [], [], []
    each = max(1, most // len(rows.input_ids))
    generator = torch.Generator().manual_seed(1)
    for at in range(len(rows.input_ids)):
        valid = (rows.labels[at] != IGNORE_INDEX).nonzero()[:, 0]
        chosen = valid[torch.randperm(len(valid), generator=generator)[:each]]
        hidden = model.states(rows.input_ids[at : at + 1]).final[0, chosen]
        line = model.logits(hidden).float()
        entropy = torch.special.entr(line.softmax(-1)).sum(-1)
        logits.append(line)
        labels.append(rows.labels[at, chosen])
        features.append(torch.stack([entropy, expected_nll(core.value(hidden))[:, -1]], dim=-1))
        documents.append(rows.document[at].expand(len(chosen)))
    return torch.cat(logits), torch.cat(labels), torch.cat(features) - 3.0, torch.cat(documents)


def tempered_nll(text: Tempered, used: Sequence[int], weights: Tensor) -> Tensor:
    logits, labels, features, _ = text
    log_temperature = weights[0] + features[:, list(used)] @ weights[1:]
    return F.cross_entropy(logits / log_temperature.exp()[:, None], labels, reduction="none")


def fitted_temperature(text: Tempered, used: Sequence[int]) -> Tensor:
    """(1 + len(used),): what makes the text likeliest."""
    text = tuple(part.clone() for part in text)  # made in inference mode
    weights = torch.zeros(1 + len(used), requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=30, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        mean = tempered_nll(text, used, weights).mean()
        mean.backward()
        return mean

    optimizer.step(loss)
    return weights.detach()


# --- information gain


@torch.inference_mode()
def gain(bench: Bench) -> None:
    print("\ninformation gain of the next token about the one after it, nats: R2 and rank correlation on held-out text")
    tune, test = (gains(bench, rows) for rows in (bench.text.tune, bench.text.test))
    print(f"  mean {test.gain.mean():.3f}, standard deviation {test.gain.std():.3f}, over {len(test.gain):,} positions")
    for name in ("entropy", "entropy, value, source", "state"):
        features = [(text.state if name == "state" else text.small[name]) for text in (tune, test)]
        predicted = ridge(features[0], tune.gain, features[1])
        residual = (test.gain - predicted).square().mean() / test.gain.var(correction=0)
        print(f"  a regression on {name}: R2 {1 - residual:.3f}, rank correlation {ranked(predicted, test.gain):.3f}")
    head = bench.core.value_head
    if head is not None and head.gain_bins is not None:  # auxiliary.information_gain_weight
        predicted = expected_gain(head.gain(test.state))
        residual = (test.gain - predicted).square().mean() / test.gain.var(correction=0)
        print(f"  the value head: R2 {1 - residual:.3f}, rank correlation {ranked(predicted, test.gain):.3f}")


@dataclass(frozen=True)
class Gains:
    gain: Tensor  # (N,)
    state: Tensor  # (N, D)
    small: dict[str, Tensor]  # (N, F)


def gains(bench: Bench, rows: Documents) -> Gains:
    model, core = bench.model, bench.core
    drafter = core.drafter
    assert drafter is not None
    generator = torch.Generator().manual_seed(2)
    found, hiddens, entropies, values, sources = [], [], [], [], []
    for at in range(len(rows.input_ids)):
        ids, labels = rows.input_ids[at : at + 1], rows.labels[at]
        columns = torch.randperm(ids.shape[1] - 1, generator=generator)[:COLUMNS].sort().values
        columns = columns[labels[columns + 1] != IGNORE_INDEX]
        if not len(columns):
            continue
        states, count = model.states(ids), len(columns)
        hidden, label = states.final[0, columns], labels[columns + 1, None]
        p = model.logits(hidden).softmax(-1)
        known = model.logits(states.final[0, columns + 1]).log_softmax(-1).gather(1, label)[:, 0]
        likeliest = p.topk(LIKELIEST)
        rotations = None if model.rotary is None else model.rotary.at(columns.repeat(LIKELIEST) + 1, ids.shape[1] + 1)
        allowed = model.causal_mask[: ids.shape[1], : ids.shape[1]][columns.repeat(LIKELIEST)][None, None]
        tokens = likeliest.indices.T.flatten()
        drafted = drafter(
            hidden.repeat(LIKELIEST, 1)[None],
            model.tokens(tokens)[None],
            LastBlock(model).keys_and_values(states.before_last),
            allowed,
            rotations,
        )[0, 0]
        markov = F.linear(drafter.before(tokens), drafter.after.weight[: model.vocab_size])
        q = (model.logits(drafted) + markov).log_softmax(-1).view(LIKELIEST, count, -1)
        q = q.gather(2, label.expand(LIKELIEST, count, 1))[..., 0]
        shares = likeliest.values / likeliest.values.sum(1, keepdim=True)
        unknown = torch.logsumexp(q + shares.T.log(), dim=0)
        found.append(known - unknown)
        hiddens.append(hidden)
        entropies.append(torch.special.entr(p).sum(-1, keepdim=True))
        values.append(expected_nll(core.value(hidden)))
        sources.append(F.one_hot(rows.source[at], len(bench.text.opened.sources)).expand(count, -1))
    entropy = torch.cat(entropies)
    small = {
        "entropy": torch.cat([entropy, entropy.square()], dim=1),
        "entropy, value, source": torch.cat([entropy, entropy.square(), torch.cat(values), torch.cat(sources)], dim=1),
    }
    return Gains(torch.cat(found), torch.cat(hiddens), small)


def ridge(features: Tensor, targets: Tensor, judged: Tensor) -> Tensor:
    """Predictions for `judged` (M, F) by a regression on features (N, F) and targets (N,); its strength is chosen by a
    fifth of these."""
    mean, spread = features.mean(0), features.std(0).clamp_min(1e-6)
    x, y = (((f - mean) / spread).double() for f in (features, judged))
    targets, last = targets.double(), len(x) * 4 // 5

    def weights(upto: int, strength: float) -> tuple[Tensor, Tensor]:
        centre = targets[:upto].mean()
        gram = x[:upto].T @ x[:upto] + strength * torch.eye(x.shape[1], dtype=torch.float64)
        return torch.linalg.solve(gram, x[:upto].T @ (targets[:upto] - centre)), centre

    def error(strength: float) -> float:
        found, centre = weights(last, strength)
        return (x[last:] @ found + centre - targets[last:]).square().mean().item()

    found, centre = weights(len(x), min(RIDGES, key=error))
    return (y @ found + centre).float()


def ranked(first: Tensor, second: Tensor) -> float:
    """Spearman's rank correlation."""
    ranks = torch.stack([part.argsort().argsort().double() for part in (first, second)])
    return torch.corrcoef(ranks)[0, 1].item()


# --- samplers


SAMPLED_PROMPTS, PROMPT_TOKENS, SAMPLED_TOKENS = 40, 32, 100
FIXED = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
OFFSETS = tuple(math.log(fixed) for fixed in FIXED)  # as many, and about as far


def samplers(bench: Bench) -> None:
    rows = bench.text.test.input_ids[(bench.text.test.labels >= 0).sum(1) > PROMPT_TOKENS][:SAMPLED_PROMPTS]
    prompts = [bench.lm.tokenizer.decode(row[1 : 1 + PROMPT_TOKENS].tolist()) for row in rows]
    print(
        f"\nwhat samplers write, {len(prompts)} texts of {SAMPLED_TOKENS} tokens each, top_p 1: rep-4, distinct-4, "
        "nats a token by the model itself and, where there is a judge, perplexity a token by it"
    )
    bench.lm.fit_temperature(documents_of(bench))
    bench.lm.fit_plan(documents_of(bench))
    grid: list[tuple[str, dict]] = [(f"temperature {t}", {"temperature": t}) for t in FIXED]
    grid += [
        (f"adaptive {offset:+.2f}", {"temperature": "adaptive", "temperature_offset": offset}) for offset in OFFSETS
    ]
    grid += [("greedy", {"temperature": 0}), ("plan", {"temperature": 0, "plan": True})]
    for name, settings in grid:
        texts = bench.lm.generate(prompts, SAMPLED_TOKENS, top_p=1.0, seed=0, stop_at_eos=False, logprobs=0, **settings)
        grams = [list(zip(*(text.tokens[at:] for at in range(4)), strict=False)) for text in texts]
        every = [gram for some in grams for gram in some]
        repeated = 1 - sum(len(set(some)) for some in grams) / len(every)
        own = -statistics.fmean(token.logprob for text in texts for token in text.logprobs or [])
        shown = f"  {name:<16} {repeated:.3f}  {len(set(every)) / len(every):.3f}  {own:.3f}"
        print(shown + (f"  {judged(bench.judge, prompts, texts):.1f}" if bench.judge else ""), flush=True)


def judged(judge: LanguageModel, prompts: Sequence[str], texts: Sequence[str]) -> float:
    """The judge's perplexity of the texts, each after its prompt, a token of its own."""
    nats, tokens = 0.0, 0
    for prompt, text in zip(prompts, texts, strict=True):
        before, whole = judge.score(prompt), judge.score(prompt + text)
        nats += float(whole.token_nll.sum() - before.token_nll.sum())
        tokens += len(whole.tokens) - len(before.tokens)
    return math.exp(nats / max(1, tokens))


def documents_of(bench: Bench) -> list[str]:
    """The texts of the documents that are for fitting."""
    rows = bench.text.tune
    ids: dict[int, list[int]] = {}
    for at, document in enumerate(rows.document.tolist()):
        read = rows.labels[at] != IGNORE_INDEX
        ids.setdefault(document, []).extend(rows.labels[at][read].tolist())
    decode = bench.lm.tokenizer.decode
    return [decode([token for token in some if token != bench.lm.eos_token_id]) for some in ids.values()]


# --- the rest of a line


@dataclass(frozen=True)
class Line:
    prompt: str
    rest: str
    python: bool


class Completed(NamedTuple):
    """What a method made of all lines, by line; and how long it took."""

    exact: Tensor
    similar: Tensor
    nll: Tensor  # nats a token of what was written, by the model itself
    seconds: float
    gates: int = 0
    candidates: int = 0
    forwards: int = 0


METHODS: dict[str, dict] = {
    "greedy": {"temperature": 0},
    **{f"temperature {t}": {"temperature": t, "top_p": 1.0, "seed": 0} for t in (0.2, 0.4, 0.6, 0.8)},
    "adaptive": {"temperature": "adaptive", "temperature_offset": math.log(0.4), "top_p": 1.0, "seed": 0},
    **{f"the likeliest of {n}": {"temperature": 0.6, "top_p": 1.0, "seed": 0, "num_samples": n} for n in (2, 4)},
    **{f"beam search, {n}": {"temperature": 0, "num_beams": n} for n in (2, 4)},
    "greedy, drafts": {"temperature": 0, "speculate": True},
    "plan": {"temperature": 0, "plan": True},
    "plan, drafts": {"temperature": 0, "plan": True, "speculate": True},
}


def lines(benches: Sequence[Bench]) -> None:
    """For all models together: they are seeds of one another."""
    results: dict[str, list[Completed]] = {name: [] for name in METHODS}
    for number, bench in enumerate(benches):
        tasks = list(lines_of(bench))
        fits = bench.lm.fit_temperature(documents_of(bench)), bench.lm.fit_plan(documents_of(bench))
        print(f"\nmodel {number}, the rest of {len(tasks)} lines; {fits[0]}; {fits[1]}")
        for name, settings in METHODS.items():
            found = complete_all(bench.lm, tasks, settings)
            results[name].append(found)
            cost = ""
            if settings.get("plan"):
                cost = f"  {found.gates} places, {found.candidates} candidates, {found.forwards} forward calls"
            print(f"  {name:<20} {shown(found, tasks)}{cost}", flush=True)
    print(
        "\nover all models: exact matches, edit similarity, nats a token, milliseconds a line; and the first two less "
        "those of greedy writing, line by line"
    )
    greedy = results["greedy"]
    curve = []
    for name, found in results.items():
        exact, similar, nll = (torch.cat([getattr(one, part) for one in found]) for part in ("exact", "similar", "nll"))
        milliseconds = 1000 * sum(one.seconds for one in found) / len(exact)
        curve.append((milliseconds, exact.mean().item(), name))
        against = ""
        if name != "greedy":
            places = torch.cat([torch.arange(len(one.exact)) for one in found])  # a line is one draw in all models
            differences = [
                interval(part - torch.cat([getattr(one, label) for one in greedy]), places)
                for part, label in ((exact, "exact"), (similar, "similar"))
            ]
            against = f"  {differences[0]}  {differences[1]}"
        print(f"  {name:<20} {exact.mean():.4f}  {similar.mean():.4f}  {nll.mean():.3f}  {milliseconds:.1f}{against}")
    print("\nquality against time: what no faster method equals")
    best = -1.0
    for milliseconds, exact, name in sorted(curve):
        if exact > best:
            best = exact
            print(f"  {milliseconds:8.1f} ms  {exact:.4f}  {name}")


def shown(found: Completed, tasks: Sequence[Line]) -> str:
    python = torch.tensor([task.python for task in tasks])
    kinds = {"Python": python, "prose": ~python}
    shares = ", ".join(f"{found.exact[kind].mean():.3f} of {name}" for name, kind in kinds.items() if kind.any())
    return f"exact {shares}  similar {found.similar.mean():.3f}  {found.nll.mean():.3f} nats  {found.seconds:.1f} s"


def complete_all(lm: LanguageModel, tasks: Sequence[Line], settings: dict) -> Completed:
    begin = time.perf_counter()
    written = [complete(lm, task, settings) for task in tasks]
    seconds = time.perf_counter() - begin
    similar = [
        difflib.SequenceMatcher(None, text, task.rest, autojunk=False).ratio()
        for (text, _), task in zip(written, tasks, strict=True)
    ]
    plans = [text.plan for text, _ in written if text.plan is not None]
    return Completed(
        torch.tensor([float(text == task.rest) for (text, _), task in zip(written, tasks, strict=True)]),
        torch.tensor(similar),
        torch.tensor([nll for _, nll in written]),
        seconds,
        *(sum(getattr(plan, part) for plan in plans) for part in ("gates", "candidates", "forwards")),
    )


def complete(lm: LanguageModel, task: Line, settings: dict) -> tuple[Generation, float]:
    """The text that a method chooses, up to the line's end, and its NLL in nats a token."""
    texts = lm.generate(task.prompt, 24, stop="\n", logprobs=0, **settings)
    found = [
        (-statistics.fmean([token.logprob for token in text.logprobs or []] or [0.0]), text)
        for text in (texts if isinstance(texts, list) else [texts])
    ]
    nll, text = min(found, key=lambda one: one[0])
    return text, nll


def lines_of(bench: Bench) -> Iterator[Line]:
    """bench.lines beginnings of lines in the documents that judge, each cut between two words; half of them of Python,
    where there are as many."""
    generator, rows = random.Random(0), bench.text.test
    sources = list(bench.text.opened.sources)
    candidates = []
    for at in range(len(rows.input_ids)):
        ids = rows.input_ids[at][rows.labels[at] != IGNORE_INDEX].tolist()
        text = bench.lm.tokenizer.decode(ids)
        ends = [place for place, character in enumerate(text) if character == "\n"]
        for start, end in pairwise(ends):
            cuts = [place for place in range(start + 1, end) if text[place] == " " and text[start + 1 : place].strip()]
            cuts = [cut for cut in cuts if end - cut in REST_CHARACTERS]
            if cuts and start > CONTEXT_CHARACTERS // 2:
                cut = generator.choice(cuts)
                python = sources[int(rows.source[at])] == "python_packages"
                candidates.append(Line(text[max(0, cut - CONTEXT_CHARACTERS) : cut], text[cut:end], python))
    for python in (True, False):
        some = [line for line in candidates if line.python == python]
        yield from generator.sample(some, min(bench.lines // 2, len(some)))


ROWS: dict[str, Callable[[Bench], None]] = {
    "gap": gap,
    "temperature": temperature,
    "samplers": samplers,
    "gain": gain,
}

if __name__ == "__main__":
    main()
