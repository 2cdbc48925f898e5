"""What runs of several lengths say: the loss after a time, the time to a loss, and intervals over seeds.

A run's schedule ends with the run, so its only loss that counts is the last one. Runs of other lengths are other runs.
Between two of them the loss is taken to fall evenly in the logarithm of the time.
"""

import itertools
import math
import statistics
from collections.abc import Sequence

Point = tuple[float, float]  # a run's time and its last loss
AS_GOOD_AS_EQUAL = 0.02  # of a time: so far may a run be from it
# 97.5% quantiles of Student's t by the number of seeds
T_QUANTILES = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}


def loss_at(points: Sequence[Point], time: float) -> float | None:
    """The loss after `time`; None where no run is as long, or none as short."""
    ordered = sorted(points)
    for (t0, loss0), (t1, loss1) in itertools.pairwise(ordered):
        if t0 <= time <= t1:
            share = math.log(time / t0) / math.log(t1 / t0) if t1 > t0 else 0.0
            return loss0 + share * (loss1 - loss0)
    near = [(abs(t / time - 1), loss) for t, loss in ordered if abs(t / time - 1) <= AS_GOOD_AS_EQUAL]
    return min(near)[1] if near else None


def time_to(points: Sequence[Point], loss: float) -> tuple[str, float] | None:
    """The time to `loss`, after "=", or where the shortest run is below it already, after "<"; None where no run is."""
    ordered = sorted(points)
    if not ordered or min(found for _, found in ordered) > loss:
        return None
    if ordered[0][1] <= loss:
        return ("=" if ordered[0][1] == loss else "<"), ordered[0][0]
    for (t0, loss0), (t1, loss1) in itertools.pairwise(ordered):
        if loss1 <= loss < loss0:
            return "=", t0 * (t1 / t0) ** ((loss0 - loss) / (loss0 - loss1))
    return None


def interval(values: Sequence[float]) -> str:
    """The mean and half the width of its 95% interval."""
    mean = statistics.mean(values)
    if len(values) not in T_QUANTILES:
        return f"{mean:+.4f}"
    return f"{mean:+.4f} +- {T_QUANTILES[len(values)] * statistics.stdev(values) / math.sqrt(len(values)):.4f}"
