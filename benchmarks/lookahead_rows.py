"""The rows of benchmarks.lookahead: what each claim is measured by, and the baselines beside it."""

import itertools
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.lookahead_figures import by_document, explained, figure, mean_of, spearman
from benchmarks.lookahead_probes import DEPTH, Heads, TokensOnly, Told, Trigram, bags, ridge, train_probes
from benchmarks.lookahead_reading import Reading
from benchmarks.lookahead_text import Text
from model import LanguageModel
from model.latent import expected_nll
from model.latent.span import span_keys
from model.latent.value import value_targets
from model.loss import IGNORE_INDEX

DEPTHS = range(1, 9)
HORIZON = 16  # the value's, for the figures
RIDGE_POSITIONS, OVERLAP_POSITIONS = 150_000, 20_000
SPAN_STARTS, CANDIDATES, SPAN_BEFORE = 16, 1024, 32  # the last: tokens that the baselines read before a span
PAST = (8, 32, 128)
MORE = 1.3  # times as many tokens as the core's model has had are the most that the plain one is compared with


@dataclass
class Probe:
    """The models by what was on, their runs' events, and the text."""

    models: dict[Any, LanguageModel]  # benchmarks.lookahead.Model -> it
    events: dict[Any, list[dict[str, Any]]]
    text: Text
    device: torch.device

    @cached_property
    def trigram(self) -> Trigram:
        first, events = next(iter(self.models)), next(iter(self.events.values()))
        tokens = max(event["tokens_total"] for event in events if event["event"] == "step")  # the model's own
        return Trigram(self.text.training(tokens, seed=first.seed), self.text.tokenizer.vocab_size)


def table(probe: Probe, baselines: bool) -> Iterator[str]:
    """All rows, as lines; `baselines` are fitted to the first model that has a core."""
    test = probe.text.test
    yield (
        f"{len(test):,} held-out documents for the figures ({int((test.labels != IGNORE_INDEX).sum()):,} tokens), as "
        f"many others for fitting; vocabulary {probe.text.tokenizer.vocab_size:,}"
    )
    yield from gate(probe)
    on = [(key, lm) for key, lm in probe.models.items() if lm.model.latent is not None]
    for number, (key, lm) in enumerate(on):
        yield f"\nThe core of {key.folder}"
        yield from Core(lm, probe, seed=key.seed, baselines=baselines and number == 0).rows()


def gate(probe: Probe) -> Iterator[str]:
    """The loss on held-out text of every model, uniformly weighted, and its difference from the plain ones of the same
    seed that have as many tokens, or some more."""
    yield f"\n{'model':16} {'tokens':>12} {'tokens/s':>9}  validation loss"
    sums: dict[Any, Tensor] = {}
    for key, lm in probe.models.items():
        reading = Reading(lm.model, probe.text.test)
        rows, columns = reading.places(0)
        nll = reading.token_nll[rows, columns]
        sums[key] = by_document(torch.stack([nll, torch.ones_like(nll)], 1), rows, probe.text.test)
        steps = [event for event in probe.events[key] if event["event"] == "step"]
        speed = statistics.median(event["tokens_per_second"] for event in steps)
        ce = figure(sums[key], lambda s: s[:, 0] / s[:, 1])
        yield f"{key.folder:16} {steps[-1]['tokens_total']:12,} {speed:9,.0f}  {ce}"
    differences: dict[tuple[str, str], list[float]] = {}
    for key, base in itertools.product(sums, sums):
        more = base.share / key.share
        if key.method == "off" or base.method != "off" or base.seed != key.seed or not 1.0 <= more <= MORE:
            continue
        if not differences:
            yield f"\n{'less the CE of':34} {'seed':>4}  nats"
        both = torch.cat([sums[key], sums[base]], 1)
        against = figure(both, lambda s: s[:, 0] / s[:, 1] - s[:, 2] / s[:, 3])
        differences.setdefault((key.label, base.label), []).append(against.value)
        yield f"{key.label:16} {base.label:17} {key.seed:4}  {against}"
    for (label, base), each in differences.items():
        spread = f", from {min(each):+.4f} to {max(each):+.4f}" if len(each) > 1 else ""
        yield f"{label:16} {base:17} {statistics.mean(each):+.4f} in the mean of {len(each)} seeds{spread}"


class Core:
    """The rows of one model. Without `baselines` only what the core says is measured, not what it must beat."""

    def __init__(self, lm: LanguageModel, probe: Probe, seed: int, baselines: bool):
        text = probe.text
        self.model, self.probe, self.text, self.device = lm.model, probe, text, probe.device
        self.seed, self.baselines = seed, baselines
        self._rolled_out: dict[str, list[Tensor]] = {}
        self.core = lm.model.latent
        self.test, self.tune = (Reading(lm.model, documents) for documents in (text.test, text.tune))

    def rows(self) -> Iterator[str]:
        if self.core.transition is not None:
            yield from self.transition()
            yield from self.overlap()
        if self.core.value_head is not None:
            yield from self.value()
        if self.core.span_projector is not None:
            yield from self.span()

    @cached_property
    def probes(self) -> dict[str, Any]:
        size, heads = self.model.config.hidden_size, self.model.config.num_heads
        parameters = sum(p.numel() for p in self.core.transition.parameters())
        torch.manual_seed(0)
        probes = {
            "psi without h": TokensOnly(size, heads),
            "MTP heads": Heads(size, parameters),
            "MTP told tokens": Told(size, heads),
        }
        probes = {name: probe.to(self.device) for name, probe in probes.items()}
        batches = self.text.training(self.text.probe_tokens, seed=self.seed + 1000)
        train_probes(probes, self.model, batches, self.text.probe_tokens, self.device)
        return probes

    # Transition

    def transition(self) -> Iterator[str]:
        """R2 of h^_{t+k} and CE of x_{t+1+k} through the LM head, k steps along the text."""
        names = ["psi", "identity"] + (["ridge", *self.probes] if self.baselines else [])
        yield "\nR2 of the state k steps on, and the CE of the token after it; `true` is the trunk's own state"
        yield f"{'k':>2}  {'':16} {'R2':>24}   {'CE, nats':>24}   over the true state's"
        mean = self.tune.hidden[self.tune.places(0)].mean(0)
        for depth in DEPTHS:
            rows, columns = self.test.places(depth)
            at = columns + depth
            true, labels = self.test.hidden[rows, at], self.test.documents.labels[rows, at]
            total = (true - mean).square().sum(1)
            base = self.test.token_nll[rows, at]
            yield f"{depth:2}  {'true':16} {'':>24}   {mean_of(base, rows, self.test.documents)!s:>24}"
            for name in names:
                if name in self.probes_of_depth(depth):
                    continue
                states = self.predicted(name, depth)[rows, at]
                error = (states - true).square().sum(1)
                r2 = explained(error, total, rows, self.test.documents) if not name.startswith("MTP") else ""
                nll = self.test.nll(states, labels)
                over = mean_of(nll - base, rows, self.test.documents)
                ce = mean_of(nll, rows, self.test.documents)
                yield f"    {name:16} {r2!s:>24}   {ce!s:>24}   {over}"
            if self.baselines:
                ids = self.test.documents.input_ids
                # before x_{t+1} of depth 1 stands x_t: there are always two tokens
                nll = (
                    self.probe.trigram.nll(ids[rows, at - 1].cpu(), ids[rows, at].cpu(), labels.cpu()).float().to(base)
                )
                over = mean_of(nll - base, rows, self.test.documents)
                yield f"    {'trigram':16} {'':>24}   {mean_of(nll, rows, self.test.documents)!s:>24}   {over}"

    def probes_of_depth(self, depth: int) -> list[str]:
        """Those that know nothing of this depth: heads exist for the first ones only."""
        return ["MTP heads"] if depth > DEPTH else []

    def predicted(self, name: str, depth: int) -> Tensor:
        """(N, T, D): a prediction of every state of the test documents from `depth` steps before."""
        if name == "identity":
            return F.pad(self.test.hidden[:, :-depth], (0, 0, depth, 0))
        if name == "ridge":
            return self.ridge(depth)
        if name not in self._rolled_out:
            core = self.core
            rolls = (
                (lambda model, ids, _, depth: core.rollout(model, ids, depth)) if name == "psi" else self.probes[name]
            )
            self._rolled_out[name] = self.test.rolled_out(rolls, DEPTHS[-1])
        return self._rolled_out[name][depth - 1]

    @cached_property
    def ridge_text(self) -> list[tuple[Tensor, ...]]:
        """Training text for the regressions: of each batch the pieces, states and embeddings."""
        read = []
        for batch in self.text.training(2 * RIDGE_POSITIONS, seed=self.seed + 2000):
            ids, pieces = batch.input_ids[0].to(self.device), batch.segment_ids[0].to(self.device)
            read.append((pieces, self.model.hidden_states(ids), self.model.tokens(ids)))
        return read

    @torch.no_grad()
    def ridge(self, depth: int) -> Tensor:
        """Linear in h_t and the embeddings of the `depth` tokens that follow, fitted for this depth."""

        def features(reading: Reading, rows: Tensor, columns: Tensor) -> Tensor:
            told = [self.model.tokens(reading.documents.input_ids[rows, columns + i]) for i in range(1, depth + 1)]
            return torch.cat([reading.hidden[rows, columns], *told], 1)

        given, wanted = [], []
        for pieces, states, emb in self.ridge_text:
            kept = ((pieces[:, :-depth] == pieces[:, depth:]) & (pieces[:, depth:] >= 0)).nonzero()[::2]
            rows, columns = kept.T
            given.append(torch.cat([states[rows, columns], *(emb[rows, columns + i] for i in range(1, depth + 1))], 1))
            wanted.append(states[rows, columns + depth])
        x, y = torch.cat(given)[:RIDGE_POSITIONS], torch.cat(wanted)[:RIDGE_POSITIONS]
        rows, columns = (part[:20_000] for part in self.tune.places(depth))
        tuned = features(self.tune, rows, columns), self.tune.hidden[rows, columns + depth]
        predict = ridge(x, y, *tuned)
        rows, columns = self.test.places(depth)
        out = torch.zeros_like(self.test.hidden)
        for some, where in zip(rows.split(20_000), columns.split(20_000), strict=True):
            out[some, where + depth] = predict(features(self.test, some, where))
        return out

    def overlap(self) -> Iterator[str]:
        """Sum of min(p, q): the share of drafts that speculative sampling would accept, one depth at a time."""
        yield "\nDraft overlap, sum of min(p, q), at depth 1, 2, 3 (aims 0.65, 0.55, 0.45)"
        for name in ["psi", *([name for name in self.probes if name.startswith("MTP")] if self.baselines else [])]:
            figures = []
            for depth in range(1, DEPTH + 1):
                rows, columns = self.test.places(depth)
                chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:OVERLAP_POSITIONS]
                rows, at = rows[chosen.to(rows.device)], (columns + depth)[chosen.to(rows.device)]
                states = self.predicted(name, depth)[rows, at]
                shared = torch.cat(
                    [
                        torch.minimum(self.model.logits(true).softmax(-1), self.model.logits(guess).softmax(-1)).sum(-1)
                        for true, guess in zip(self.test.hidden[rows, at].split(1000), states.split(1000), strict=True)
                    ]
                ).detach()
                figures.append(mean_of(shared, rows, self.test.documents))
            yield f"    {name:16} " + "   ".join(map(str, figures))

    # Value

    def value(self) -> Iterator[str]:
        """How well the mean NLL of the next tokens is known beforehand, where all of them come."""
        where = self.core.value_head.horizons.index(HORIZON)
        rows, columns = self.test.places(0, least=HORIZON)
        realised = self.realised(self.test)[rows, columns]
        tune_rows, tune_columns = self.tune.places(0, least=HORIZON)
        tune_realised = self.realised(self.tune)[tune_rows, tune_columns]
        total = (realised - tune_realised.mean()).square()

        def told(name: str, expected: Tensor) -> str:
            r2 = explained((expected - realised).square(), total, rows, self.test.documents)
            return f"    {name:28} {r2!s:>24}   {spearman(expected, realised, rows, self.test.documents)}"

        yield f"\nThe mean NLL of the next {HORIZON} tokens, told at each (aims: R2 0.05 above the ridge, Spearman 0.5)"
        yield f"    {'':28} {'R2 (a constant: 0)':>24}   Spearman"
        value = self.expected(self.test.hidden[rows, columns], where)
        yield told("value", value)
        features, tune_features = (
            self.features(self.test, rows, columns),
            self.features(self.tune, tune_rows, tune_columns),
        )
        tuning = torch.arange(len(tune_rows), device=rows.device) % 5 == 0

        def fitted(columns_used: slice) -> Tensor:
            x, y = tune_features[:, columns_used], tune_realised[:, None]
            return ridge(x[~tuning], y[~tuning], x[tuning], y[tuning])(features[:, columns_used])[:, 0]

        yield told("current entropy, linear", fitted(slice(0, 1)))
        best = fitted(slice(None))
        yield told("ridge on seven kinds", best)
        sums = torch.stack([(best - realised).square() - (value - realised).square(), total], 1)
        over = figure(by_document(sums, rows, self.test.documents), lambda s: s[:, 0] / s[:, 1])
        yield f"    value's R2 over the ridge's     {over}"
        if self.core.transition is not None:
            yield from self.rolled_out_value(where)

    def rolled_out_value(self, where: int) -> Iterator[str]:
        """At depth 3: the value of a predicted state beside the true one's, and with what the path cost (Q)."""
        rows, columns = self.test.places(DEPTH, least=HORIZON + DEPTH)
        at = columns + DEPTH
        realised = self.realised(self.test)[rows, at]
        total = (realised - realised.mean()).square()
        states = {"true": self.test.hidden[rows, at], "predicted": self.predicted("psi", DEPTH)[rows, at]}
        found = {}
        for name, state in states.items():
            error = (self.expected(state, where) - realised).square()
            found[name] = explained(error, total, rows, self.test.documents)
            yield f"    value of a {name} state, 3 on {found[name]!s:>24}"
        yield f"    kept of it                   {found['predicted'].value / found['true'].value:10.3f} (aim 0.8)"
        path = torch.stack(
            [self.test.token_nll[rows, columns]]
            + [
                self.test.nll(
                    self.predicted("psi", i)[rows, columns + i], self.test.documents.labels[rows, columns + i]
                )
                for i in range(1, DEPTH)
            ],
            1,
        )
        cost = (
            torch.stack([self.test.token_nll[rows, columns + i] for i in range(DEPTH)], 1).sum(1) + HORIZON * realised
        )
        total = (cost - cost.mean()).square()
        with torch.no_grad():
            q = self.core.path_value(path, states["predicted"])[:, where]
            exact = self.core.path_value(
                torch.stack([self.test.token_nll[rows, columns + i] for i in range(DEPTH)], 1), states["true"]
            )[:, where]
        for name, value in (("Q of 3 tokens, rolled out", q), ("Q of them, true states", exact)):
            yield f"    {name:28} {explained((value - cost).square(), total, rows, self.test.documents)!s:>24}"

    def expected(self, states: Tensor, where: int) -> Tensor:
        with torch.no_grad():
            return torch.cat([expected_nll(self.core.value(some))[:, where] for some in states.split(20_000)])

    def realised(self, reading: Reading) -> Tensor:
        """(N, T): the mean NLL of the next HORIZON tokens from each column on."""
        return value_targets(reading.token_nll, reading.remaining, (HORIZON,))[0][..., 0]

    @torch.no_grad()
    def features(self, reading: Reading, rows: Tensor, columns: Tensor) -> Tensor:
        """Entropy now, mean past NLL over three windows, position, log p of the token as a unigram, and the source."""
        log_p = [self.model.logits(some).log_softmax(-1) for some in reading.hidden[rows, columns].split(4000)]
        entropy = torch.cat([-(part.exp() * part).sum(-1) for part in log_p])
        sums = F.pad(reading.token_nll.cumsum(1), (1, 0))
        past = []
        for window in PAST:
            first = (columns - window).clamp_min(0)
            past.append((sums[rows, columns] - sums[rows, first]) / (columns - first).clamp_min(1))
        unigram = self.probe.trigram.unigram.log().float().to(rows.device)[reading.documents.input_ids[rows, columns]]
        sources = F.one_hot(reading.documents.source[rows.cpu()], len(self.text.opened.sources)).float().to(entropy)
        return torch.cat([torch.stack([entropy, *past, columns.float(), unigram], 1), sources], 1)

    # Span

    @torch.no_grad()
    def span(self) -> Iterator[str]:
        """Which of CANDIDATES spans follows: the others of the same row are among them."""
        length = self.core.auxiliary.span_length
        documents = self.test.documents
        full = (self.test.remaining[:, 0] == documents.labels.shape[1]).nonzero()[:, 0]  # rows without padding
        group = CANDIDATES // SPAN_STARTS
        full = full[: len(full) // group * group]
        part = documents.labels.shape[1] // SPAN_STARTS
        starts = torch.arange(SPAN_STARTS, device=full.device) * part + part - length - 1
        unigram = self.probe.trigram.unigram.float().to(full.device)
        rare = -unigram.log()
        hits: dict[str, list[Tensor]] = {}
        for rows in full.split(group):
            ids = documents.input_ids[rows]
            states = self.model.states(ids)
            valid = torch.ones(len(rows), len(starts), dtype=torch.bool, device=rows.device)
            keys = span_keys(states.second_layer, starts, length, valid).flatten(0, 1)
            inside = starts[:, None] + 1 + torch.arange(length, device=rows.device)
            before = (starts[:, None] - torch.arange(SPAN_BEFORE, device=rows.device)).clamp_min(0)
            embedded = self.model.tokens(ids)
            ways = {
                "span projector": (self.core.span_projector(states.final[:, starts]).flatten(0, 1), keys),
                "the state itself": (states.final[:, starts].flatten(0, 1), keys),
                "mean embedding": tuple(
                    (embedded[:, columns].mean(2) - embedded.mean((0, 1))).flatten(0, 1) for columns in (before, inside)
                ),
                "unigram, tf-idf": tuple(
                    bags(ids[:, columns].flatten(0, 1), torch.ones_like(ids[:, columns].flatten(0, 1)), rare)
                    for columns in (before, inside)
                ),
            }
            for name, (queries, answers) in ways.items():
                similarity = F.normalize(queries, dim=1) @ F.normalize(answers, dim=1).T
                own = similarity.diagonal()[:, None]
                # ties count as misses
                hits.setdefault(name, []).append(((similarity >= own).sum(1) == 1).float())
        yield (
            f"\nThe {length} tokens that follow, among {CANDIDATES:,} spans, {SPAN_STARTS - 1} of them in its row; "
            "top-1 (aim: twice the best baseline)"
        )
        where = full[:, None].expand(-1, SPAN_STARTS).flatten()
        for name, found in hits.items():
            yield f"    {name:28} {mean_of(torch.cat(found), where, documents)!s:>24}"
