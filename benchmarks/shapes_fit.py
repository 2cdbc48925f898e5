"""The law of Hoffmann et al. (arXiv 2203.15556, approach 3): bits per byte = E + A / parameters^a + B / tokens^b.

Fitted as there, by a Huber loss of the differences of logarithms, from several beginnings.
"""

import itertools
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

HUBER = 1e-3  # of a logarithm: differences beyond it count by their size, not by their square
BEGINNINGS = list(itertools.product((math.log(0.5), 0.0), (2.0, 6.0), (0.25, 0.5), (2.0, 6.0), (0.25, 0.5)))
# of log E, log A, a, log B, b: no part grows with parameters or tokens
LEAST, MOST = (-5.0, -10.0, 0.0, -10.0, 0.0), (3.0, 30.0, 2.0, 30.0, 2.0)


@dataclass(frozen=True)
class Run:
    parameters: float
    tokens: float
    bits: float  # per held-out byte


@dataclass(frozen=True)
class Law:
    """log E, log A, a, log B, b."""

    numbers: tuple[float, float, float, float, float]

    def bits(self, parameters: float, tokens: float) -> float:
        e, of_parameters, a, of_tokens, b = self.numbers
        return math.exp(e) + math.exp(of_parameters) / parameters**a + math.exp(of_tokens) / tokens**b

    def error(self, runs: Sequence[Run]) -> float:
        """The root mean square of what runs differ from it, in bits per byte."""
        return math.sqrt(statistics.mean((self.bits(run.parameters, run.tokens) - run.bits) ** 2 for run in runs))

    def __str__(self) -> str:
        e, of_parameters, a, of_tokens, b = self.numbers
        values = math.exp(e), math.exp(of_parameters), a, math.exp(of_tokens), b
        return "bits per byte = {:.3f} + {:.3g} / parameters^{:.3f} + {:.3g} / tokens^{:.3f}".format(*values)


def fit(runs: Sequence[Run], beginnings: Sequence[Sequence[float]] = BEGINNINGS) -> Law:
    """Return the law with the lowest loss of those that the beginnings lead to."""
    parameters, tokens, bits = (
        np.log([getattr(run, name) for run in runs]) for name in ("parameters", "tokens", "bits")
    )

    def differences(numbers: np.ndarray) -> np.ndarray:
        e, of_parameters, a, of_tokens, b = numbers
        terms = np.full_like(bits, e), of_parameters - a * parameters, of_tokens - b * tokens
        return np.logaddexp.reduce(terms) - bits

    found = [
        least_squares(differences, begin, bounds=(LEAST, MOST), loss="huber", f_scale=HUBER, xtol=1e-12, ftol=1e-12)
        for begin in beginnings
    ]
    e, of_parameters, a, of_tokens, b = min(found, key=lambda each: each.cost).x.tolist()
    return Law((e, of_parameters, a, of_tokens, b))


def resampled(runs: Sequence[Run], law: Law, times: int, seed: int = 0) -> list[Law]:
    """Return laws of runs whose differences from `law` were drawn anew, with replacement, as factors."""
    drawn, laws = random.Random(seed), []
    factors = [run.bits / law.bits(run.parameters, run.tokens) for run in runs]
    for _ in range(times):
        again = [
            Run(run.parameters, run.tokens, law.bits(run.parameters, run.tokens) * drawn.choice(factors))
            for run in runs
        ]
        laws.append(fit(again, [law.numbers]))
    return laws
