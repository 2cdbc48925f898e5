"""Whether drafts pay: speculative decoding beside plain decoding of the same model, on documents it was not trained on.

    python -m benchmarks.decoding SNAPSHOT [--threads 2] [--prompts 100] [--rows identical,verify,speed,...]

SNAPSHOT has a drafter (auxiliary.enable_draft), and the sources of its preset can be opened here; the prompts are the
beginnings of held-out documents. Methods take turns; speeds are medians.

Rows: identical (greedy texts), joints (of drawn texts, over a vocabulary of 16), verify (tokens a step of the model),
speed, typical (what entropy-gated acceptance changes), overlap (of drafts and model, beside rollouts of the
transition), teaching (drafters taught with and without rollouts, by AdamW and Muon; takes a quarter of an hour),
fitting (the snapshot's drafter after lm.fit_drafter on --fit-tokens tokens of training text: overlap, tokens a step and
speed once more; takes many minutes).
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.generate import processor
from benchmarks.lookahead_text import Text, collect
from engine.config import parse_preset
from engine.device import machine
from model import LanguageModel, TransformerLM, load
from model.decoding.decoder import Weights
from model.decoding.drafts.acceptance import block_verified
from model.decoding.drafts.speculation import speculated_tokens
from model.decoding.generate import Token, generate_tokens
from model.decoding.settings import GenerationSettings
from model.fitting.drafter import LEARNING_RATE, optimizers
from model.latent.core import LookaheadCore
from model.latent.distillation import DraftedText, draft_figure
from model.latent.draft import Drafter
from model.latent.look_ahead_sampler import LookAheadSampler, Trained
from model.latent.rollout import Rollout, RolloutContext, roll_out
from model.latent.trunk import LastBlock
from tests.helpers import chains

PROMPT_TOKENS, NEW_TOKENS = 32, 100
HELD_OUT_TOKENS, TEACHING_TOKENS = 100_000, 400_000
TEACHING_STEPS, TEACHING_COLUMNS = 300, 48


@dataclass(frozen=True)
class Bench:
    lm: LanguageModel
    text: Text
    prompts: list[list[int]]
    threads: int
    fit_tokens: int = 2_000_000

    @property
    def model(self) -> TransformerLM:
        return self.lm.model

    @property
    def drafter(self) -> Drafter:
        assert self.model.latent is not None and self.model.latent.drafter is not None, "the model has no drafter"
        return self.model.latent.drafter

    def settings(self, **changes: object) -> GenerationSettings:
        values = {"max_new_tokens": NEW_TOKENS, "temperature": 0, "stop_at_eos": False, **changes}
        return GenerationSettings.of(int(values.pop("max_new_tokens")), values)  # type: ignore[call-overload]

    @torch.inference_mode()
    def write(self, weights: Weights, settings: GenerationSettings, drafts: bool) -> list[list[Token]]:
        """The texts of all prompts."""
        decoder, eos = weights.decoder(1), self.lm.eos_token_id
        if drafts:
            return [list(speculated_tokens(decoder, 0, prompt, settings, eos, 0, set())) for prompt in self.prompts]
        return [list(generate_tokens(decoder, [prompt], settings, eos, [0], set())) for prompt in self.prompts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("snapshot", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--fit-tokens", type=int, default=2_000_000)
    parser.add_argument("--rows", default="identical,joints,verify,speed,typical,overlap,teaching")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lm = load(arguments.snapshot, device="cpu")
    text = collect(parse_preset(lm.preset), lm, HELD_OUT_TOKENS, TEACHING_TOKENS, torch.device("cpu"))
    rows = text.test.input_ids[(text.test.labels >= 0).sum(1) > PROMPT_TOKENS]
    prompts = [row[1 : 1 + PROMPT_TOKENS].tolist() for row in rows[: arguments.prompts]]
    bench = Bench(lm, text, prompts, arguments.threads, arguments.fit_tokens)
    config = lm.model.config
    print(
        f"{machine.describe(torch.device('cpu'))}, {processor()}, torch {torch.__version__}, "
        f"{arguments.threads} threads"
    )
    print(
        f"{arguments.snapshot}: {config.num_layers} x {config.hidden_size}, vocabulary {lm.model.vocab_size:,}, "
        f"{lm.progress['tokens_total']:,} tokens; {len(prompts)} held-out prompts"
    )
    for row in arguments.rows.split(","):
        ROWS[row](bench)


def identical(bench: Bench) -> None:
    """Greedy, fp32."""
    weights = Weights(bench.model, "fp32")
    plain, drafted = (bench.write(weights, bench.settings(), drafts) for drafts in (False, True))
    tokens = sum(map(len, plain))
    same = sum(a.id == b.id for one, other in zip(plain, drafted, strict=True) for a, b in zip(one, other, strict=True))
    print(f"\ngreedy with and without drafts: {same:,} of {tokens:,} tokens are the same (aim: all)")


def joints(bench: Bench) -> None:
    print(
        "\ntexts of three tokens over a vocabulary of 16, 1,000,000 draws: p of the chi-square test (aim: above 0.01)"
    )
    for changes in chains.SETTINGS:
        target, drafter = chains.chains(GenerationSettings(**changes))
        for adaptive in (False, True):
            texts = chains.write(block_verified, target, drafter, 1_000_000, 1, adaptive)
            p = chains.p_value(texts, chains.exact_joint(target))
            print(f"  {changes}, {'adaptive length' if adaptive else 'three drafts'}: {p:.3f}")
        texts = chains.write(chains.too_eager, target, drafter, 1_000_000, 1, False)
        p = chains.p_value(texts, chains.exact_joint(target))
        print(f"  {changes}, a wrong residual: {p:.1e} (must fail)")


SAMPLED = {"greedy": {}, "temperature 1, top_p 0.9": {"temperature": 1.0, "top_p": 0.9, "seed": 0}}


def verify(bench: Bench) -> None:
    weights = Weights(bench.model, "fp32")
    print("\ntokens a step of the model, while writing (aim: 2.0)")
    for name, changes in SAMPLED.items():
        tokens = [token for text in bench.write(weights, bench.settings(**changes), True) for token in text]
        print(f"  {name}: {len(tokens) / sum(not token.drafted for token in tokens):.2f}")


def speed(bench: Bench) -> None:
    print("\ntokens/s, batch 1, beside our own plain decoding (aim: 1.3x)")
    for precision in ("fp32", "bf16"):
        weights = Weights(bench.model, precision)
        for name, changes in SAMPLED.items():
            settings = bench.settings(**changes)
            rates = race(
                {
                    "plain": lambda w=weights, s=settings: bench.write(w, s, False),
                    "drafts": lambda w=weights, s=settings: bench.write(w, s, True),
                },
                len(bench.prompts) * NEW_TOKENS,
            )
            ratio = rates["drafts"] / rates["plain"]
            print(f"  {precision}, {name}: plain {rates['plain']:,.0f}, drafts {rates['drafts']:,.0f}, {ratio:.2f}x")


def typical(bench: Bench) -> None:
    """How likely the model finds what it wrote, and how much of it repeats itself, beside the lossless mode."""
    weights = Weights(bench.model, "fp32")
    print("\nentropy-gated acceptance, not lossless, beside the lossless mode")
    for name, changes in SAMPLED.items():
        for mode in (True, "typical"):
            begin = time.perf_counter()
            texts = bench.write(weights, bench.settings(speculate=mode, logprobs=0, **changes), True)
            seconds = time.perf_counter() - begin
            tokens = [token for text in texts for token in text]
            nll = -statistics.fmean(token.logprob or 0.0 for token in tokens)
            steps = sum(not token.drafted for token in tokens)
            print(
                f"  {name}, {'typical' if mode == 'typical' else 'lossless'}: {len(tokens) / steps:.2f} tokens a step, "
                f"{len(tokens) / seconds:,.0f} tokens/s, {nll:.3f} nats a token written, rep-4 {repeated(texts):.3f}"
            )


def repeated(texts: list[list[Token]], size: int = 4) -> float:
    """The share of n-grams that occurred before in their text."""
    shares = []
    for text in texts:
        ids = [token.id for token in text]
        grams = [tuple(ids[at : at + size]) for at in range(len(ids) - size + 1)]
        shares.append(1 - len(set(grams)) / len(grams))
    return statistics.fmean(shares)


def overlap(bench: Bench) -> None:
    print(
        "\ndrafts and model on held-out text, teacher-forced: sum of min(p, q), and agreement of the likeliest tokens"
    )
    found = overlaps(bench, bench.drafter)
    for place, (ours, rolled) in enumerate(zip(found["drafter"], found["rollouts"], strict=False), 1):
        share = ours[0] / rolled[0] if rolled else float("nan")
        print(
            f"  place {place}: drafter {ours[0]:.3f}, {ours[1]:.3f}; rollouts of the transition {rolled[0]:.3f}, "
            f"{rolled[1]:.3f}; drafter / rollouts {share:.3f}{' (aim: 0.90)' if place == 2 else ''}"
        )


@torch.no_grad()
def overlaps(bench: Bench, drafter: Drafter) -> dict[str, list[tuple[float, float]]]:
    """By method and place: the overlap with the model's distribution, and how often the likeliest tokens agree."""
    model, totals = bench.model, {}
    assert model.latent is not None and model.latent.transition is not None
    rows = bench.text.test
    for first in range(0, len(rows.input_ids), 4):
        ids, labels = rows.input_ids[first : first + 4], rows.labels[first : first + 4]
        states, length = model.states(ids), ids.shape[1]
        rotations = None if model.rotary is None else model.rotary(length - 1, 1)
        text, embeddings = LastBlock(model).keys_and_values(states.before_last), model.tokens(ids)
        drafted = drafter(
            states.final[:, :-1], embeddings[:, 1:], text, model.causal_mask[: length - 1, :length], rotations
        )
        rollout = Rollout(model.latent.transition, model, RolloutContext.read(model, ids, states))
        rolled = roll_out(rollout, states.final, embeddings, drafter.length)
        for place in range(drafter.length):
            true = model.logits(states.final[:, 1 + place :]).softmax(-1)
            markov = F.linear(drafter.before(ids[:, 1 + place :]), drafter.after.weight[: model.vocab_size])
            valid = labels[:, 1 + place :] >= 0
            for name, logits in (
                ("drafter", model.logits(drafted[place][:, : length - 1 - place]) + markov),
                ("rollouts", model.logits(rolled[place])),
            ):
                q = logits.softmax(-1)
                agree = (q.argmax(-1) == true.argmax(-1))[valid].double()
                shared = torch.minimum(q, true).sum(-1)[valid].double()
                sums = torch.stack([shared.sum(), agree.sum(), valid.sum().double()])
                totals[name, place] = totals.get((name, place), 0) + sums
    return {
        name: [tuple((totals[name, place][:2] / totals[name, place][2]).tolist()) for place in range(drafter.length)]
        for name in ("drafter", "rollouts")
    }


class Lesson(NamedTuple):
    """How a drafter is taught."""

    rollouts: int
    columns: int  # of a row
    rate: float
    muon: bool


LESSONS = {
    "AdamW, 4 rollouts": Lesson(4, TEACHING_COLUMNS, 2e-3, False),
    "AdamW": Lesson(0, TEACHING_COLUMNS, 2e-3, False),
    "Muon, 4 rollouts": Lesson(4, TEACHING_COLUMNS, LEARNING_RATE, True),
    "Muon": Lesson(0, TEACHING_COLUMNS, LEARNING_RATE, True),
    "Muon, four times the positions": Lesson(0, 4 * TEACHING_COLUMNS, LEARNING_RATE, True),
}


def teaching(bench: Bench) -> None:
    """Drafters of equal size, from scratch, on the same text, on a trunk and a transition that stay as they are. The
    text and what the model says along it teach them all, and rollouts some."""
    print(f"\na drafter taught for {TEACHING_STEPS} steps, three seeds: overlap at places 1, 2, 3, and seconds")
    results: dict[str, list[list[float]]] = {}
    for name, lesson in LESSONS.items():
        begin = time.perf_counter()
        for seed in (0, 1, 2):
            found = overlaps(bench, taught(bench, lesson, seed))["drafter"]
            results.setdefault(name, []).append([shared for shared, _ in found])
        seconds = (time.perf_counter() - begin) / 3
        for seed, places in enumerate(results[name]):
            print(
                f"  {name}, seed {seed}: {', '.join(f'{shared:.4f}' for shared in places)}  {seconds:.0f} s", flush=True
            )
    for name, other in itertools.pairwise(results):
        for place in range(bench.drafter.length):
            gains = [two[place] - one[place] for one, two in zip(results[name], results[other], strict=True)]
            shown = ", ".join(f"{gain:+.4f}" for gain in gains)
            print(f"  place {place + 1}: {other} less {name} {statistics.fmean(gains):+.4f} ({shown})")


def taught(bench: Bench, lesson: Lesson, seed: int) -> Drafter:
    model, own = bench.model, bench.model.latent
    assert own is not None
    rollouts = lesson.rollouts
    auxiliary = own.auxiliary.model_copy(update={"draft_rollouts": rollouts})
    torch.manual_seed(seed)
    core = LookaheadCore.create(model.config, auxiliary, model.padded_vocab_size)
    assert core is not None and core.drafter is not None
    adamw = torch.optim.AdamW(core.drafter.parameters(), lr=lesson.rate, betas=(0.9, 0.95), weight_decay=0.0)
    made = optimizers(core.drafter, lesson.rate) if lesson.muon else [adamw]
    for step, (ids, labels) in enumerate(teaching_rows(bench, seed)):
        for group in (group for optimizer in made for group in optimizer.param_groups):
            group["lr"] = lesson.rate * min(1.0, (step + 1) / 50) * (1 - step / TEACHING_STEPS)
        draw = LookAheadSampler(auxiliary, ids.shape[1], seed).draw(torch.zeros_like(ids), Trained.alike(1.0), step)
        generator = torch.Generator().manual_seed(step)
        columns = torch.randperm(ids.shape[1] - auxiliary.draft_length, generator=generator)[: lesson.columns]
        uniforms = torch.rand(auxiliary.draft_length - 1, rollouts, len(ids) * len(columns), generator=generator)
        draw = draw._replace(
            rows=torch.arange(len(ids)), draft_columns=columns.sort().values, draft_uniforms=uniforms,
        )  # fmt: skip
        with torch.no_grad():
            context = RolloutContext.read(model, ids, model.states(ids))
        remaining = torch.full_like(ids, ids.shape[1]) - torch.arange(ids.shape[1])
        text = DraftedText(context, draw, labels, remaining)
        total, count = draft_figure(core.drafter, own.transition, model, text)
        core.drafter.zero_grad()
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(core.drafter.parameters(), 1.0)
        for optimizer in made:
            optimizer.step()
    return core.drafter.eval()


def teaching_rows(bench: Bench, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """TEACHING_STEPS times some rows of training text, each with what follows its tokens."""
    done = 0
    while done < TEACHING_STEPS:
        for batch in bench.text.training(TEACHING_TOKENS, seed):
            yield batch.input_ids[0], batch.labels[0].clamp_min(0)
            if (done := done + 1) == TEACHING_STEPS:
                return


def fitting(bench: Bench) -> None:
    decode = bench.lm.tokenizer.decode
    texts = [
        decode(row.tolist())
        for batch in bench.text.training(bench.fit_tokens, 1)
        for row in batch.input_ids.flatten(0, -2)
    ]
    begin = time.perf_counter()
    fit = bench.lm.fit_drafter(texts, bench.fit_tokens)
    shown = [", ".join(f"{share:.3f}" for share in shares) for shares in (fit.overlap_before, fit.overlap)]
    print(
        f"\nthe drafter after {fit.tokens:,} tokens by itself, {time.perf_counter() - begin:.0f} s: overlap on rows "
        f"that did not teach {shown[0]} before, {shown[1]} now"
    )
    for row in (overlap, verify, speed):
        row(bench)


def race(methods: dict[str, Callable[[], object]], tokens: int, rounds: int = 5) -> dict[str, float]:
    """Median tokens/s of methods that take turns; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(rounds + 1):
        for name, method in methods.items():
            begin = time.perf_counter()
            method()
            if number:
                seconds[name].append(time.perf_counter() - begin)
    return {name: tokens / statistics.median(times) for name, times in seconds.items()}


ROWS: dict[str, Callable[[Bench], None]] = {
    "identical": identical,
    "joints": joints,
    "verify": verify,
    "speed": speed,
    "typical": typical,
    "overlap": overlap,
    "teaching": teaching,
    "fitting": fitting,
}

if __name__ == "__main__":
    main()
