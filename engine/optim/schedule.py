"""What a step's place in a run decides: learning rate, weight decay, momentum and beta2, counted in tokens.

The learning rate rises in a linear warm-up, stays at its peak where the cool-down is not the whole rest, and falls, by
a cosine or linearly, to a fraction of the peak.

A run that continues a trained model with its optimizer's moments warms up again, but briefly: the moments are there
already, and the step sizes only have to grow back from the end of the last run. Where rows become longer, within a run
or at the start of one, the rate is warmed again too, to a share of its peak.
"""

import math
from typing import Literal, NamedTuple

from engine.config import TrainConfig

CONTINUED_WARMUP = 0.25  # of the first run's warm-up
FITTING_SHARE = 0.1  # of what is left of a run where rows become longer: layers' factors are fitted in it
MOMENTUM = 0.95  # Muon's
FIRST_MOMENTUM = 0.85  # where a warm-up of Muon's momentum starts


class Hyperparameters(NamedTuple):
    """What a step is made with, beside what never changes."""

    learning_rate: float  # of the trunk's matrices
    decay_share: float = 1.0  # of the weight decay
    momentum: float | None = None  # Muon's; None: its own
    beta2: float | None = None  # AdamW's; None: its own
    fits_layers: bool = False  # whether the factors of layers (model.layer_rescaling) learn


def hyperparameters(
    train: TrainConfig, tokens: int, budget: int, continued: bool, step_tokens: int, longer_since: int | None = None
) -> Hyperparameters:
    """Those of the step that begins after `tokens` of a run's `budget`; `step_tokens`: of a step before any doubling;
    `longer_since`: the tokens of the run at which its rows became longer last, None: they did not.

    The learning rate grows with the root of the batch (Malladi et al., arXiv 2205.10287).
    """
    multiple = batch_multiple(train, tokens, budget)
    rate = _rate(train, tokens, budget, continued)
    if longer_since is not None:
        rate = _rewarmed_rate(train, tokens, budget, continued, longer_since)
    rate *= math.sqrt(multiple)
    share = max(0.0, 1 - tokens / budget) if train.weight_decay_schedule == "linear" else 1.0
    momentum = beta2 = None
    if train.muon_momentum_warmup_fraction and not continued:
        done = min(1.0, tokens / (train.muon_momentum_warmup_fraction * budget))
        momentum = FIRST_MOMENTUM + (MOMENTUM - FIRST_MOMENTUM) * done
    if train.beta2_half_life_tokens is not None:
        beta2 = 0.5 ** (multiple * step_tokens / train.beta2_half_life_tokens)
    fits = longer_since is not None and tokens < longer_since + FITTING_SHARE * (budget - longer_since)
    return Hyperparameters(rate, share, momentum, beta2, fits)


def _rate(train: TrainConfig, tokens: int, budget: int, continued: bool) -> float:
    return learning_rate(
        tokens,
        budget,
        peak=train.learning_rate,
        warmup_fraction=train.warmup_fraction,
        final_fraction=train.final_learning_rate_fraction,
        continued=continued,
        shape=train.learning_rate_schedule,
        cooldown_fraction=train.cooldown_fraction,
    )


def _rewarmed_rate(train: TrainConfig, tokens: int, budget: int, continued: bool, since: int) -> float:
    """The rate once rows became longer at `since`: from what it was there up to rewarm_fraction of the peak, then down
    to the end of the run. Where it was higher, it goes on as if nothing had happened; a run that begins with longer
    rows never goes higher."""
    floor = train.final_learning_rate_fraction * train.learning_rate
    top = max(floor, train.rewarm_fraction * train.learning_rate)
    start = _rate(train, since, budget, continued)
    if since == 0:
        start = min(start, top)
    elif start >= top:
        return _rate(train, tokens, budget, continued)
    left, done = budget - since, tokens - since
    warmup = min(CONTINUED_WARMUP * train.warmup_fraction * budget, 0.5 * left)
    if done < warmup:
        return start + (top - start) * done / warmup
    share = (done - warmup) / max(1.0, left - warmup)
    fallen = share if train.learning_rate_schedule == "linear" else 0.5 * (1 - math.cos(math.pi * min(1.0, share)))
    return top + (floor - top) * min(1.0, fallen)


def row_length(train: TrainConfig, longest: int, tokens: int, budget: int) -> int:
    """Tokens of the rows of the step that begins after `tokens` of a run's `budget`; `longest`: model.seq_length."""
    begun = [length for share, length in train.seq_length_schedule if tokens >= share * budget]
    return begun[-1] if begun else longest


def batch_multiple(train: TrainConfig, tokens: int, budget: int) -> int:
    """How many times the rows of a run's first steps the step has that begins after `tokens` of its `budget`."""
    return 2 ** sum(tokens >= share * budget for share in train.batch_doublings)


def steps_of_a_run(train: TrainConfig, budget: int, step_tokens: int) -> int:
    """How many steps a run of `budget` tokens has; `step_tokens`: of a step before any doubling."""
    steps = tokens = 0
    for doublings, share in enumerate((*train.batch_doublings, 1.0)):
        size = step_tokens * 2**doublings
        more = max(0, math.ceil((share * budget - tokens) / size))
        steps, tokens = steps + more, tokens + more * size
    return steps


def learning_rate(
    tokens: int,
    budget: int,
    *,
    peak: float,
    warmup_fraction: float,
    final_fraction: float,
    continued: bool,
    shape: Literal["cosine", "linear"] = "cosine",
    cooldown_fraction: float = 1.0,
) -> float:
    """The rate for the step that begins after `tokens` of a run's `budget`.

    A continued run's warm-up starts at the rate where the last run ended, a first run's at nearly zero. The cool-down
    takes the last `cooldown_fraction` of the run, or what the warm-up leaves of it.
    """
    warmup = warmup_fraction * budget * (CONTINUED_WARMUP if continued else 1.0)
    floor = final_fraction * peak
    if tokens < warmup:
        start = floor if continued else 0.01 * peak
        return start + (peak - start) * tokens / warmup
    begin = max(warmup, (1 - cooldown_fraction) * budget)
    done = min(1.0, max(0.0, (tokens - begin) / max(1.0, budget - begin)))
    if shape == "linear":
        return peak + (floor - peak) * done
    return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * done))
