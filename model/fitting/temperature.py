"""Fitting the adaptive temperature: what makes text that the model was not trained on likeliest."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..decoding.fitted import AdaptiveTemperature, features
from ..transformer import TransformerLM

MOST_LOGITS = 64_000_000  # that are kept: 256 MB
STEPS = 40


@torch.no_grad()
def places(model: TransformerLM, rows: Sequence[Tensor], most: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N, V), features (N, 2) and the tokens that came (N,), at the places of `rows` (see document_rows), or at
    as many of them as memory allows, drawn at random."""
    device, core = model.tokens.weight.device, model.latent
    total = sum(len(row) - 1 for row in rows)
    share = min(1.0, (most or MOST_LOGITS // model.vocab_size) / total)
    generator = torch.Generator().manual_seed(0)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for row in rows:
        chosen = (torch.rand(len(row) - 1, generator=generator) < share).nonzero()[:, 0].to(device)
        hidden = model.hidden_states(row[None, :-1].to(device))[0, chosen]
        logits = model.logits(hidden)
        found.append((logits, features(logits, hidden, core), row[1:].to(device)[chosen]))
    logits, described, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    return logits, described, labels


def fit_temperature(model: TransformerLM, rows: Sequence[Tensor]) -> AdaptiveTemperature:
    """By the text of `rows` (see document_rows)."""
    logits, described, labels = places(model, rows)
    has_value = model.latent is not None and model.latent.value_head is not None
    return fitted(logits, described if has_value else described[:, :1], labels)


@torch.enable_grad()
def fitted(logits: Tensor, described: Tensor, labels: Tensor) -> AdaptiveTemperature:
    """The weights of features (N, F), 0 to 2 of them, with which logits (N, V) make labels (N,) likeliest."""
    centre = described.mean(0)
    weights = torch.zeros(1 + described.shape[1], requires_grad=True, device=logits.device)
    optimizer = torch.optim.LBFGS([weights], max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        log_temperature = weights[0] + (described - centre) @ weights[1:]
        loss = F.cross_entropy(logits / log_temperature.exp()[:, None], labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    bias, slopes = weights[0].item(), weights[1:].detach()
    entropy, value = (*slopes.tolist(), 0.0, 0.0)[:2]
    return AdaptiveTemperature(bias - (slopes @ centre).item(), entropy, value)
