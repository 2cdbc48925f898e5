"""Which drafted tokens stand, and what the token after them is drawn from. Everything here is a fixed sequence of
tensor operations, for B rows with K drafts each over a vocabulary of V.

`block_verified` is block verification (arXiv 2403.10444): drafts q and acceptance together leave exactly the target p,
jointly over all tokens, and keep at least as many drafts as judging them one by one. `greedily_verified` is its case
for a target that always takes the likeliest token. `typically_verified` is not lossless: where the target is uncertain,
it also keeps drafts that are merely likely enough (typical acceptance: arXiv 2401.10774).
"""

import torch
from torch import Tensor

LEAST_PROBABILITY, ENTROPY_SHARE = 0.09, 0.3  # of typical acceptance; as in its paper


def block_verified(drafts: Tensor, draft_shares: Tensor, shares: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """drafts (B, K) int64, drawn from draft_shares (B, K, V); shares (B, K + 1, V): the target at the same places and
    after the last; shares count up to a factor for each place; uniforms (B, K) in [0, 1).

    Returns the number of drafts that stand (B,) int64, and what the next token is drawn from (B, V), fp64, up to a
    factor.
    """
    p, q = _normalised(shares), _normalised(draft_shares)
    places = drafts.shape[1]
    ratios = _chosen(p[:, :places], drafts) / _chosen(q, drafts)
    weight = torch.ones_like(ratios[:, 0])
    stands, left = [], []  # by place; left[k]: what follows k drafts
    for place in range(places):
        residual = (weight[:, None] * p[:, place] - q[:, place]).clamp_min(0.0)
        if place:
            mass = residual.sum(-1)
            rest = mass + 1.0 - weight
            # nothing is left where p is q: the next draft then stands for sure, and this one with it
            stands.append(torch.where(rest > 0, uniforms[:, place - 1] * rest < mass, True))
        left.append(residual)
        weight = (weight * ratios[:, place]).clamp_max(1.0)
    stands.append(uniforms[:, -1] < weight)
    left.append(p[:, -1])
    numbers = torch.arange(1, places + 1, device=drafts.device)
    count = (torch.stack(stands, dim=1) * numbers).amax(dim=1)
    return count, _at(torch.stack(left, dim=1), count)


def greedily_verified(drafts: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """drafts (B, K), scores (B, K + 1, V) -> the number of drafts that stand (B,) and the token after them (B,)."""
    likeliest = scores.argmax(dim=-1)
    count = _leading(drafts == likeliest[:, :-1])
    return count, _at(likeliest, count)


def typically_verified(
    drafts: Tensor, draft_shares: Tensor, shares: Tensor, scores: Tensor, uniforms: Tensor
) -> tuple[Tensor, Tensor]:
    """Like block_verified, draft by draft, but a draft also stands where the model's own probability of it, from scores
    (B, K + 1, V), is above min(LEAST_PROBABILITY, ENTROPY_SHARE * exp(-entropy))."""
    p, q = _normalised(shares), _normalised(draft_shares)
    places = drafts.shape[1]
    exact = uniforms * _chosen(q, drafts) < _chosen(p[:, :places], drafts)
    own = scores[:, :places].double().softmax(dim=-1)
    entropy = torch.special.entr(own).sum(dim=-1)
    threshold = (ENTROPY_SHARE * (-entropy).exp()).clamp_max(LEAST_PROBABILITY)
    count = _leading(exact | (_chosen(own, drafts) > threshold))
    left = torch.cat([(p[:, :places] - q).clamp_min(0.0), p[:, places:]], dim=1)
    # where p is q nothing is left, and an exact draft stands
    return count, torch.where(_at(left, count).sum(-1, keepdim=True) > 0, _at(left, count), _at(p, count))


def _leading(stands: Tensor) -> Tensor:
    """(B, K) booleans -> (B,): how many are true before the first that is not."""
    return stands.long().cumprod(dim=1).sum(dim=1)


def _normalised(shares: Tensor) -> Tensor:
    shares = shares.double()
    return shares / shares.sum(dim=-1, keepdim=True)


def _chosen(shares: Tensor, tokens: Tensor) -> Tensor:
    """(B, K, V), (B, K) -> (B, K)."""
    return shares.gather(-1, tokens[..., None])[..., 0]


def _at(values: Tensor, count: Tensor) -> Tensor:
    """(B, K + 1, ...), (B,) -> (B, ...)."""
    return values[torch.arange(len(count), device=count.device), count]
