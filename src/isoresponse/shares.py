"""How the variance of a logarithm is shared out among factors, some of which only act together.

Everything here is about a table: for every subset of factors a prediction of every case. What a subset accounts for is the
share of the variance of what was measured. Two ways to share that out among single factors: in a fixed order, each
factor getting what it adds to those before it, or the mean over all orders (Shapley 1953; for variances Lindeman, Merenda
and Gold 1980). Nothing here knows a neuron.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import factorial

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor


def subsets(factors: int) -> Bool[Tensor, "subset factor"]:
    """Membership of each factor in each of the 2^factors subsets; bit k of a subset's number is factor k.

    >>> subsets(2).int()
    tensor([[0, 0],
            [1, 0],
            [0, 1],
            [1, 1]], dtype=torch.int32)
    """
    numbers = torch.arange(2**factors)
    return (numbers[:, None] >> torch.arange(factors)) % 2 == 1


def shapley(factors: int) -> Float[Tensor, "factor subset"]:
    """Weights that turn the values of all subsets into the mean, over all orders, of what each factor adds.

    >>> value = torch.tensor([0.0, 0.5, 0.1, 1.0], dtype=torch.float64)   # none, first, second, both
    >>> shapley(2) @ value
    tensor([0.7000, 0.3000], dtype=torch.float64)
    """
    member = subsets(factors)
    weights = torch.zeros(factors, 2**factors, dtype=torch.float64)
    for k in range(factors):
        for subset in torch.nonzero(~member[:, k]).flatten().tolist():
            size = int(member[subset].sum())
            chance = factorial(size) * factorial(factors - size - 1) / factorial(factors)
            weights[k, subset | (1 << k)] += chance
            weights[k, subset] -= chance
    return weights


def in_order(order: list[int]) -> Float[Tensor, "factor subset"]:
    """Weights that turn the values of all subsets into what each factor adds to those before it in `order`.

    >>> value = torch.tensor([0.0, 0.5, 0.1, 1.0], dtype=torch.float64)
    >>> in_order([1, 0]) @ value
    tensor([0.9000, 0.1000], dtype=torch.float64)
    """
    weights = torch.zeros(len(order), 2 ** len(order), dtype=torch.float64)
    numbers = [sum(1 << k for k in order[:i]) for i in range(len(order) + 1)]
    for k, (before, after) in zip(order, pairwise(numbers), strict=True):
        weights[k, after] += 1
        weights[k, before] -= 1
    return weights


def explained(
    told: Float[Tensor, "subset case"], measured: Float[Tensor, " case"], weights: Float[Tensor, "sample case"]
) -> Float[Tensor, "sample subset"]:
    """1 - Var(measured - told) / Var(measured) for every subset, over the cases as each sample weights them.

    No line is fitted: a prediction that varies more than what was measured counts below zero. Only a constant is free.
    """
    total = weights.sum(1, keepdim=True)

    def variance(values: Tensor) -> Tensor:
        centred = values - values.mean(-1, keepdim=True)  # before squaring, so that nothing cancels
        mean = weights @ centred.T / total
        return weights @ centred.square().T / total - mean.square()

    return 1 - variance(measured - told) / variance(measured[None])


def resampled(groups: Int[Tensor, " case"], resamples: int, generator: Generator) -> Float[Tensor, "sample case"]:
    """How often each case is drawn in `resamples` bootstrap samples, as many from every group as it has."""
    counts = torch.zeros(resamples, len(groups), dtype=torch.float64)
    for group in groups.unique().tolist():
        members = torch.nonzero(groups == group).flatten().cpu()
        draws = torch.randint(
            len(members), (resamples, len(members)), generator=generator, device=generator.device
        ).cpu()
        counts.scatter_add_(1, members[draws], torch.ones_like(draws, dtype=torch.float64))
    return counts


def fitted(
    columns: Float[Tensor, "factor case"], measured: Float[Tensor, " case"], folds: int = 10
) -> Float[Tensor, " subset"]:
    """What least squares on each subset of the columns accounts for in cases that it was not fitted to.

    Cases i, i + folds, ... are told from the others. A column that is constant tells nothing and does no harm.
    """
    factors, cases = columns.shape
    x = torch.cat([torch.ones_like(columns[:1]), columns - columns.mean(1, keepdim=True)])
    y = measured - measured.mean()
    inside = torch.cat([torch.ones(2**factors, 1, dtype=torch.bool), subsets(factors)], 1)
    both = (inside[:, :, None] & inside[:, None, :]).to(x)
    ridge = 1e-9 * torch.diag(x.square().mean(1)) + torch.eye(factors + 1).to(x) * torch.finfo(x.dtype).tiny
    absent = torch.diag_embed((~inside).to(x))
    missed = torch.zeros(2**factors, dtype=x.dtype)
    fold = torch.arange(cases) % folds
    for k in range(min(folds, cases)):
        out = fold == k
        seen = x[:, ~out]
        moments = seen @ seen.T / seen.shape[1] + ridge
        right = inside.to(x) * (seen @ y[~out] / seen.shape[1])
        slopes = torch.linalg.solve(both * moments + absent, right)
        missed += (y[out] - slopes @ x[:, out]).square().sum(1)
    return 1 - missed / y.square().sum()


def places(names: Sequence[str], order: Sequence[str] | None) -> list[int]:
    """Where the names of `order` stand among `names`; their own order if that is None. "a, b" is the same as ["a", "b"].

    Raises ValueError unless `order` holds each of the names once.
    """
    asked = order.split(", ") if isinstance(order, str) else order
    chosen = names if asked is None else tuple(asked)
    if sorted(chosen) != sorted(names):
        raise ValueError(f"order must hold each of {', '.join(names)} once, got {', '.join(chosen)}.")
    return [list(names).index(n) for n in chosen]
