"""Figures with intervals for benchmarks.lookahead: sums by document, which are resampled (a bootstrap of documents)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.lookahead_text import Documents

RESAMPLES = 1000


@dataclass(frozen=True)
class Figure:
    """A number with its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def figure(sums: Tensor, of: Callable[[Tensor], Tensor]) -> Figure:
    """`of` makes figures (R,) of summed columns (R, F); sums (D, F) are by document, which are resampled."""
    generator = torch.Generator().manual_seed(0)
    sums = sums.double().cpu()
    drawn = torch.randint(len(sums), (RESAMPLES, len(sums)), generator=generator)
    weights = torch.zeros(RESAMPLES, len(sums), dtype=torch.float64)
    weights.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    resampled = of(weights @ sums).sort().values
    low, high = resampled[int(0.025 * RESAMPLES)], resampled[int(0.975 * RESAMPLES)]
    return Figure(of(sums.sum(0, keepdim=True)).item(), low.item(), high.item())


def by_document(values: Tensor, rows: Tensor, documents: Documents) -> Tensor:
    """Sums of values (N, F), each of the row in rows (N,), by document: (D, F)."""
    document = documents.document.to(rows.device)[rows].to(values.device)
    return values.new_zeros(len(documents), values.shape[1], dtype=torch.float64).index_add_(
        0, document, values.double()
    )


def mean_of(values: Tensor, rows: Tensor, documents: Documents) -> Figure:
    """The mean of values (N,)."""
    sums = by_document(torch.stack([values, torch.ones_like(values)], 1), rows, documents)
    return figure(sums, lambda s: s[:, 0] / s[:, 1])


def explained(error: Tensor, total: Tensor, rows: Tensor, documents: Documents) -> Figure:
    """R2 from squared errors and squared deviations from the mean, each (N,)."""
    return figure(by_document(torch.stack([error, total], 1), rows, documents), lambda s: 1 - s[:, 0] / s[:, 1])


def spearman(a: Tensor, b: Tensor, rows: Tensor, documents: Documents) -> Figure:
    """The rank correlation of a and b (N,); ranks are those among all, also in resamples."""
    a, b = (x.argsort().argsort().double() / len(x) for x in (a, b))
    sums = by_document(torch.stack([torch.ones_like(a), a, b, a * a, b * b, a * b], 1), rows, documents)

    def correlation(s: Tensor) -> Tensor:
        n, sum_a, sum_b, aa, bb, ab = s.T
        return (ab - sum_a * sum_b / n) / ((aa - sum_a**2 / n) * (bb - sum_b**2 / n)).sqrt()

    return figure(sums, correlation)
