"""The learning rate over one run: a linear warm-up, then a cosine down to a fraction of the peak, counted in tokens.

A run that continues a trained model with its optimizer's moments warms up again, but briefly: the moments are there
already, and the step sizes only have to grow back from the end of the last run.
"""

import math

CONTINUED_WARMUP = 0.25  # of the first run's warm-up


def learning_rate(
    tokens: int, budget: int, *, peak: float, warmup_fraction: float, final_fraction: float, continued: bool
) -> float:
    """The rate for the step that begins after `tokens` of a run's `budget`.

    A continued run's warm-up starts at the rate where the last run ended, a first run's at nearly zero.
    """
    warmup = warmup_fraction * budget * (CONTINUED_WARMUP if continued else 1.0)
    floor = final_fraction * peak
    if tokens < warmup:
        start = floor if continued else 0.01 * peak
        return start + (peak - start) * tokens / warmup
    done = min(1.0, (tokens - warmup) / max(1.0, budget - warmup))
    return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * done))
