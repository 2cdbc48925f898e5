"""SOAP in front of Muon: a matrix's update is scaled in the eigenbasis of its gradients before it is orthogonalised.

SOAP (Vyas et al., arXiv 2409.11321) is Adam in the basis of Shampoo's preconditioner. Here its one-sided form is used:
the basis is that of the smaller side alone, so that all of its state fits into tensors of the parameter's shape, which
any ZeRO stage divides and any world size continues.
"""

import torch
from torch import Tensor

MEMORY = 0.95  # share of an average that a step keeps: of the squares, and of the product of gradients
REFRESH_STEPS = 10  # between two refinements of a basis
GRAM, BASIS = "soap_gram", "soap_basis"
STATE = (GRAM, BASIS)  # beside the averages of squares, which are exp_avg_sq
_SMALLEST = 1e-12


def preconditioned(
    updates: Tensor, gradients: Tensor, squares: Tensor, grams: Tensor, bases: Tensor, step: int
) -> list[Tensor]:
    """Scale updates by the root of the averages of squared gradients, in the gradients' eigenbasis.

    All are (N, R, C). With m = min(R, C), the first m * m numbers of each matrix of `grams` hold the average of the
    products of gradients along the larger side, those of `bases` a basis, whose vectors are columns; the rest is
    unused. step: 1 at the first one. Returns updates, squares, grams and bases.
    """
    if updates.shape[1] < updates.shape[2]:
        turned = preconditioned(updates.mT, gradients.mT, squares.mT, _turned(grams), _turned(bases), step)
        return [turned[0].mT, turned[1].mT, *(_turned(packed) for packed in turned[2:])]
    side = updates.shape[2]
    gram = torch.lerp(gradients.mT @ gradients, _unpacked(grams, side), MEMORY)
    basis = _refreshed(_unpacked(bases, side), gram, step)
    squares = torch.lerp((gradients @ basis).square(), squares, MEMORY)
    scaled = (updates @ basis / squares.sqrt().clamp_min(_SMALLEST)) @ basis.mT
    return [scaled, squares, _packed(gram, grams), _packed(basis, bases)]


def _refreshed(basis: Tensor, gram: Tensor, step: int) -> Tensor:
    """Orthonormal columns (N, m, m): the eigenvectors of `gram` at the first step, refined by one iteration of
    subspace iteration now and then. A basis of zeros, in a run that had none, begins as the identity."""
    if step == 1:
        return torch.linalg.eigh(gram).eigenvectors.flip(-1)  # the largest first, as the iteration sorts them
    empty = basis.square().sum((1, 2), keepdim=True) == 0
    basis = torch.where(empty, torch.eye(basis.shape[1], device=basis.device), basis)
    return torch.linalg.qr(gram @ basis).Q if step % REFRESH_STEPS == 1 else basis


def _turned(packed: Tensor) -> Tensor:
    """(N, R, C) -> (N, C, R), the numbers of a matrix in the order in which they are stored."""
    return packed.reshape(packed.shape[0], packed.shape[2], packed.shape[1])


def _unpacked(packed: Tensor, side: int) -> Tensor:
    return packed.reshape(packed.shape[0], -1)[:, : side * side].view(-1, side, side)


def _packed(matrices: Tensor, like: Tensor) -> Tensor:
    flat = torch.zeros_like(like).reshape(like.shape[0], -1)
    flat[:, : matrices[0].numel()] = matrices.flatten(1)
    return flat.view(like.shape)
