"""For how much of the variance of measured distances gap, spacing, curvature and the box account, and what is left.

`explain` compares the `Factors` of cases, measured at the input with nothing fitted, with measured distances. It switches
the factors on in every order and shares out what each adds: the mean over all orders, and one fixed order. A regression on
the same factors, cross-validated, is reported beside it. What is left counts everything else: higher orders, other
boundaries, and the failings of the measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from isoresponse._fields import axes
from isoresponse.factors import Factors
from isoresponse.loop import Status, failed, join, take
from isoresponse.shares import explained, fitted, in_order, places, resampled, shapley

LEAST_CASES = 20


@dataclass(frozen=True, eq=False)
class Explanation:
    """Shares of the variance of the log of measured distances; `names` says of which factors, in the order of the tensors.

    `share` is the mean over all orders of switching factors on (Shapley), `in_order` what each adds in the order of `names`.
    Both add up to 1 - `unexplained`. A share below zero: the factor varies, against the others, and without them misleads.
    `fitted` is the Shapley share in a regression on the same factors, with exponents free, in cases it was not fitted to.
    """

    share: Tensor = axes("factor", about="share of the variance, mean over all orders")
    share_low: Tensor = axes("factor", about="lower end of its bootstrap interval")
    share_high: Tensor = axes("factor", about="upper end of its bootstrap interval")
    in_order: Tensor = axes("factor", about="share of the variance, in the fixed order")
    in_order_low: Tensor = axes("factor", about="lower end of its bootstrap interval")
    in_order_high: Tensor = axes("factor", about="upper end of its bootstrap interval")
    fitted: Tensor = axes("factor", about="share in a cross-validated regression, mean over all orders")
    unexplained: Tensor = axes(about="share of the variance that is left")
    unexplained_low: Tensor = axes(about="lower end of its bootstrap interval")
    unexplained_high: Tensor = axes(about="upper end of its bootstrap interval")
    unexplained_fitted: Tensor = axes(about="share that the cross-validated regression leaves")
    bias: Tensor = axes(about="mean log(measured / told) with every factor: no part of the variance")
    spread: Tensor = axes(about="standard deviation of the log of the measured distances")
    order: str = axes(about="the factors, in the fixed order")
    cases: int = axes(about="number of cases compared")
    lost: int = axes(about="number of cases left out for want of a measurement or a gradient")
    blind: int = axes(about="number of cases compared in which some block left no way to the contour")

    @property
    def names(self) -> tuple[str, ...]:
        """The factors, in the order of the tensors."""
        return tuple(self.order.split(", "))

    def __repr__(self) -> str:
        parts = ", ".join(f"{n} {100 * s:.1f} %" for n, s in zip(self.names, self.share.tolist(), strict=True))
        return (
            f"Explanation({self.cases} cases: {parts}; left {100 * float(self.unexplained):.1f} % "
            f"[{100 * float(self.unexplained_low):.1f}, {100 * float(self.unexplained_high):.1f}])"
        )

    def __str__(self) -> str:
        """A table of the shares in per cent, with their intervals."""
        rows = [f"{'':10s} {'mean over orders':>24s} {'in this order':>24s} {'fitted':>8s}"]
        for k, name in enumerate(self.names):
            mean = f"{100 * self.share[k]:8.2f} [{100 * self.share_low[k]:5.1f}, {100 * self.share_high[k]:5.1f}]"
            fixed = (
                f"{100 * self.in_order[k]:8.2f} [{100 * self.in_order_low[k]:5.1f}, {100 * self.in_order_high[k]:5.1f}]"
            )
            rows.append(f"{name:10s} {mean:>24s} {fixed:>24s} {100 * self.fitted[k]:8.2f}")
        left = f"{100 * self.unexplained:8.2f} [{100 * self.unexplained_low:5.1f}, {100 * self.unexplained_high:5.1f}]"
        rows.append(f"{'left':10s} {left:>24s} {'':24s} {100 * self.unexplained_fitted:8.2f}")
        lost = f", {self.lost} left out" if self.lost else ""
        rows.append(f"{self.cases} cases ({self.blind} blind in some block{lost}), bias {float(self.bias):+.3f}")
        return "\n".join(rows)


def explain(
    factors: Factors,
    *,
    generator: Generator,
    order: Sequence[str] | None = None,
    resamples: int = 1000,
    coverage: float = 0.95,
) -> Explanation:
    """For how much of the variance of measured log distances each factor of the geometry accounts.

    A factor that is switched off does not vary between cases. For several models together, give what `pool_factors` makes of
    their factors: what then is explained includes how models differ.

    Parameters
    ----------
    generator
        Draws the bootstrap samples, of cases within models.
    order
        In which factors are switched on for `in_order`; the order of `factors.names` if left out.
    resamples, coverage
        Number of bootstrap samples, and how often the intervals (of percentiles) are to hold.

    Raises
    ------
    ValueError
        Fewer than 20 cases with a measurement, measured distances that are all the same, an order that is not one of the
        factors, a coverage outside (0, 1), fewer than 2 resamples.

    Notes
    -----
    With d_S the distance told by the factors S, the value of S is 1 - Var(log d - log d_S) / Var(log d). Shapley's shares of
    that are, if log d_S is a sum of one term f_k per factor, (2 Cov(log d, f_k) - Cov(sum of f, f_k)) / Var(log d).

    Examples
    --------
    >>> import torch
    >>> from isoresponse import Neuron, level_factors
    >>> f = Neuron(lambda x: x.square().sum(1), shape=(2,))   # from |x| to |x| = 4 the distance is 4 - |x|
    >>> x = torch.rand(50, 2, generator=torch.Generator().manual_seed(0)) + 1
    >>> found = explain(level_factors(f, x, 16.0, 4 - x.norm(dim=1)), generator=torch.Generator().manual_seed(0))
    >>> round(float(found.unexplained), 3), found.names[int(found.share.argmax())]
    (0.0, 'spacing')
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must be between 0 and 1, got {coverage}.")
    if resamples < 2:
        raise ValueError(f"resamples must be at least 2, got {resamples}.")
    names = factors.names
    chosen = places(names, order)
    known = ~failed(factors.status) & (factors.status != int(Status.ALREADY))
    kept = int(known.sum())
    if kept < LEAST_CASES:
        raise ValueError(
            f"explain needs at least {LEAST_CASES} cases with a measured distance and a gradient, got {kept} of {len(factors)}; "
            "measure more."
        )
    some = take(factors, known)
    some = replace(some, **{n: getattr(some, n).double().cpu() for n in ("gap", "spacing", "distance", "further")})
    measured, told = some.measured.double().cpu().log(), some.logs()
    spread = measured.std()
    if not bool(spread > 1e-9):
        raise ValueError("explain needs measured distances that differ, got the same one in every case.")
    weights = torch.cat([torch.ones(1, kept).double(), resampled(some.model, resamples, generator)])
    value = explained(told, measured, weights)
    by_mean, by_order = value @ shapley(len(names)).T, value @ in_order(chosen).T
    left = 1 - value[:, -1:]
    free = fitted(some.contributions(order), measured)
    tail = 0.5 * (1 - coverage)
    low, high = (
        {k: v[1:].quantile(q, 0) for k, v in (("m", by_mean), ("o", by_order), ("l", left))} for q in (tail, 1 - tail)
    )
    at = torch.tensor(chosen)
    return Explanation(
        share=by_mean[0][at], share_low=low["m"][at], share_high=high["m"][at],
        in_order=by_order[0][at], in_order_low=low["o"][at], in_order_high=high["o"][at],
        fitted=(shapley(len(names)) @ free)[at], unexplained=left[0, 0], unexplained_low=low["l"][0],
        unexplained_high=high["l"][0], unexplained_fitted=1 - free[-1], bias=(measured - told[-1]).mean(), spread=spread,
        order=", ".join(names[k] for k in chosen), cases=kept, lost=len(factors) - kept, blind=int(some.blind.sum()),
    )  # fmt: skip


def pool_factors(factors: Sequence[Factors]) -> Factors:
    """The factors of several models as those of one population, each model a group of it.

    Raises ValueError for none, or where some models were given a look further and others not.
    """
    if len({f.names for f in factors}) != 1:
        raise ValueError(
            f"pool_factors needs factors of the same names, at least one, got {[len(f.names) for f in factors]} names; "
            "give `further` for all models or for none."
        )
    first, parts = 0, []
    for f in factors:
        parts.append(replace(f, model=f.model + first))
        first += int(f.model.max()) + 1
    return join(parts)
