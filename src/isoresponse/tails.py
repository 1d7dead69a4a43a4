"""Tail probabilities of quadratic responses: of a paraboloid under Gaussian noise, of a quadratic on a sphere, of an orthant.

Plain numbers in, plain numbers out; nothing here knows a neuron. A spectrum is given as nodes with counts, `count` of the
eigenvalues lying at each node, so that a complete spectrum and one that was estimated by quadrature are the same thing.
Everything is computed in float64, one row per case.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Generator, Tensor

HALVINGS, NEWTONS = 60, 24  # of a bracket; safeguarded steps to a length
LARGEST = 25.0  # logarithm of the largest saddle point looked for, in units of one over the form's standard deviation
STEP = 0.1  # standard deviations to either side of the mean between which a tail is interpolated
JITTER = 1e-9  # of the identity in a correlation matrix, so that it may be singular
CONTOUR, FARTHEST = 400, 9.0  # points of the inversion integral, and where its Gaussian factor has died (e^-40)


def log_normal_tail(beta: Tensor) -> Tensor:
    """Logarithm of the probability that a standard normal number exceeds `beta`; its own tail is lost by torch.special.ndtr."""
    return torch.special.log_ndtr(-beta)


def paraboloid_tail(
    beta: Float[Tensor, " case"], curvature: Float[Tensor, "case node"], count: Float[Tensor, "case node"]
) -> Float[Tensor, " case"]:
    """P(y > beta + sum_i curvature_i z_i^2 / 2), (case,), for independent standard normal y and z_i.

    By inversion of the characteristic function along the vertical line through the saddle point, where the trapezoid rule
    converges exponentially (Rice 1980; the integral is that of Tvedt 1990). Exact, to about ten digits, also for 1e-300. A
    negative curvature is allowed, however large; beta may have either sign.
    """
    beta, curvature, count = beta.double(), curvature.double(), count.double()
    limit = 1 / (-curvature).amax(1).clamp_min(1e-12)  # where the moment generating function ends

    def slope(s: Tensor) -> Tensor:
        bent = 0.5 * (count * curvature / (1 + s[:, None] * curvature)).sum(1)
        return s - bent - beta - 1 / s

    saddle = root(slope, torch.zeros_like(beta), torch.minimum(limit, 10 + 2 * (beta.abs() + count.sum(1).sqrt())))
    step = FARTHEST / CONTOUR
    along = step * (torch.arange(CONTOUR, dtype=torch.float64, device=beta.device) + 0.5)
    s = torch.complex(saddle[:, None].expand(-1, CONTOUR), along.expand(len(beta), -1))
    bent = (count[:, None] * torch.log(1 + s[:, :, None] * curvature[:, None])).sum(2)
    exponent = 0.5 * s * s - 0.5 * bent - s * beta[:, None] - torch.log(s)
    return exponent.exp().real.sum(1) * step / math.pi


def orthant_tail(
    beta: Float[Tensor, "case k"], correlation: Float[Tensor, "case k k"], *, samples: int = 2000, generator: Generator
) -> tuple[Float[Tensor, " case"], Float[Tensor, " case"]]:
    """P(y_i > beta_i for every i) and its standard error, (case,) each, for standard normal y with the given correlations.

    One coordinate after the other, each drawn beyond its bound given those before (Genz 1992), so that the tail does not matter.
    """
    beta, correlation = beta.double(), correlation.double()
    cases, k = beta.shape
    eye = torch.eye(k, dtype=torch.float64, device=beta.device)
    lower = torch.linalg.cholesky((1 - JITTER) * correlation + JITTER * eye)
    draws = torch.rand((samples, k), generator=generator, dtype=torch.float64, device=generator.device).to(beta.device)
    told = beta.new_zeros((cases, samples))
    seen = beta.new_zeros((cases, samples, 0))
    for i in range(k):
        bound = (beta[:, i, None] - torch.einsum("csj,cj->cs", seen, lower[:, i, :i])) / lower[:, i, i, None]
        told = told + log_normal_tail(bound)
        drawn = -torch.special.ndtri(draws[:, i] * log_normal_tail(bound).exp().clamp_min(torch.finfo(beta.dtype).tiny))
        seen = torch.cat([seen, drawn[:, :, None]], 2)
    each = told.exp()
    return each.mean(1), each.std(1) / samples**0.5


def sphere_tail(
    gap: Float[Tensor, " case"],
    pull: tuple[Float[Tensor, "case near"], Float[Tensor, "case near"]],
    bend: tuple[Float[Tensor, "case node"], Float[Tensor, "case node"]],
) -> Float[Tensor, " case"]:
    """P(g.u + u'Hu / 2 > gap), (case,), for u uniform on the unit sphere in n dimensions, by a double saddle point.

    Uniform on the sphere is Gaussian given its length, so this is a conditional tail (Skovgaard 1987; Butler 2007) of a
    Gaussian quadratic form and |z|^2, both of whose generating functions are known. The relative error falls with n and hardly
    grows in the tail: up to 8 % for n = 3, 3 % for 10, 0.02 % for 100. 0 or 1 exactly beyond the range of the form.

    Parameters
    ----------
    gap
        What is to be exceeded.
    pull
        Eigenvalues of H, and the squares of g's components along their eigenvectors (or Gauss quadrature nodes and weights of
        the spectral measure of g, times |g|^2).
    bend
        Eigenvalues of H, and how many there are of each; the counts add up to n.
    """
    near, force = (t.double() for t in pull)
    node, count = (t.double() for t in bend)
    gap, n = gap.double(), count.sum(1)
    # in units of the form's standard deviation, with z of length sqrt(n): the numbers below are then of order one
    mean = 0.5 * (count * node).sum(1) / n
    spread = 0.5 * ((count * node.square()).sum(1) - 4 * n * mean.square()).clamp_min(0) / (n * (n + 2))
    deviation = (force.sum(1) / n + spread).sqrt()
    # a constant: eigenvalues all equal and no gradient, but for rounding
    constant = deviation <= 1e-12 * (mean.abs() + gap.abs())
    deviation = torch.where(constant, torch.ones_like(deviation), deviation)
    q = ((gap - mean) / deviation).masked_fill(constant, 1.0)
    # the mean is taken out of the eigenvalues: on the sphere that only shifts the form
    form = _Form(
        (near - 2 * mean[:, None]) / (n * deviation)[:, None],
        force / (n * deviation.square())[:, None],
        (node - 2 * mean[:, None]) / (n * deviation)[:, None],
        count,
    )
    # where the saddle point comes to the mean the formula is 0 / 0, but smooth across
    middle = q.abs() < 0.5 * STEP
    tail = _conditional_tail(form, torch.where(middle, q + STEP, q))
    if bool(middle.any()):
        tail = torch.where(middle, 0.5 * (tail + _conditional_tail(form, q - STEP)), tail)
    return torch.where(constant, (mean > gap).double(), tail)


class _Form:
    """K(s, t), the joint cumulant generating function of a z + z'Bz / 2 and |z|^2 / 2, and its derivatives."""

    def __init__(self, near: Tensor, force: Tensor, node: Tensor, count: Tensor) -> None:
        self.near, self.force, self.node, self.count = near, force, node, count
        self.n = count.sum(1)

    def inverse(self, s: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        """1 / (m - s lambda) at the nodes of both measures."""
        return 1 / (m[:, None] - s[:, None] * self.near), 1 / (m[:, None] - s[:, None] * self.node)

    def shift(self, s: Tensor) -> Tensor:
        """The m = 1 - t (case,) at which the mean of |z|^2 is n, given s."""
        both = torch.cat([s[:, None] * self.near, s[:, None] * self.node], 1)
        # were all eigenvalues the largest (smallest), m would solve a quadratic equation and be an upper (lower) bound
        same = 0.5 + (0.25 + s.square() * self.force.sum(1) / self.n).sqrt()
        low, high = torch.maximum(both.amax(1), both.amin(1) + same), both.amax(1) + same

        pole, m = both.amax(1), high
        for k in range(NEWTONS):
            a, b = self.inverse(s, m)
            length = (self.count * b).sum(1) + s.square() * (self.force * a.square()).sum(1)
            fall = (self.count * b.square()).sum(1) + 2 * s.square() * (self.force * a**3).sum(1)
            low, high = torch.where(length > self.n, m, low), torch.where(length > self.n, high, m)
            # Newton's step for 1 / length, which is nearly a straight line
            step = m + length * (length - self.n) / (self.n * fall)
            # now and then the bracket is halved, on the scale of the distance to the nearest pole
            half = pole + ((low - pole) * (high - pole)).clamp_min(0).sqrt()
            half = torch.where(half > low, half, 0.5 * (low + high))
            newton = (step >= low) & (step <= high) & (k % 3 != 2)
            m = torch.where(newton, step, half)
        # the last step is Newton's, held to the bracket: halving would leave a root that rounding puts just outside of it
        return torch.minimum(torch.maximum(step, low), high)

    def value(self, s: Tensor, m: Tensor) -> Tensor:
        a, b = self.inverse(s, m)
        return 0.5 * (self.count * b.log()).sum(1) + 0.5 * s.square() * (self.force * a).sum(1)

    def slope(self, s: Tensor, m: Tensor) -> Tensor:
        """The derivative of K in s."""
        a, b = self.inverse(s, m)
        pulled = s * (self.force * a).sum(1) + 0.5 * s.square() * (self.force * self.near * a.square()).sum(1)
        return 0.5 * (self.count * self.node * b).sum(1) + pulled

    def curvature(self, s: Tensor, m: Tensor) -> Tensor:
        """Determinant of the second derivatives in (s, t)."""
        a, b = self.inverse(s, m)
        s = s[:, None]
        bend, pull = self.count * b.square(), self.force * a.square()
        tt = 0.5 * bend.sum(1) + (s.square() * pull * a).sum(1)
        st = 0.5 * (bend * self.node).sum(1) + (s * pull + s.square() * pull * a * self.near).sum(1)
        ss = (pull / a + 2 * s * pull * self.near + s.square() * pull * a * self.near.square()).sum(1)
        ss = ss + 0.5 * (bend * self.node.square()).sum(1)
        return ss * tt - st.square()


def _conditional_tail(form: _Form, q: Tensor) -> Tensor:
    """P(form > q given |z|^2 = n), by the saddle point of both."""
    far = torch.full_like(q, LARGEST)

    # s is bracketed on a logarithmic scale: near the end of the form's range it grows without bound
    def rising(e: Tensor) -> Tensor:
        s = q.sign() * e.exp()
        return q.sign() * (form.slope(s, form.shift(s)) - q)

    s = q.sign() * root(rising, -far, far).exp()
    m = form.shift(s)
    reached = q.sign() * form.slope(s, m) >= q.abs() * (1 - 1e-6)
    exponent = s * q + 0.5 * (1 - m) * form.n - form.value(s, m)
    w = s.sign() * (2 * exponent.clamp_min(0)).sqrt()
    v = s * (form.curvature(s, m) / (0.5 * form.n)).clamp_min(0).sqrt()
    density = (-0.5 * w.square()).exp() / math.sqrt(2 * math.pi)
    tail = log_normal_tail(w).exp() + density * (1 / v - 1 / w)
    beyond = torch.where(q > 0, torch.zeros_like(q), torch.ones_like(q))
    return torch.where(reached, tail, beyond).clamp(0, 1)


def pooled(
    tail: Callable[[Tensor, Tensor], Tensor],
    nodes: Float[Tensor, "case probe node"],
    counts: Float[Tensor, "case probe node"],
) -> tuple[Float[Tensor, " case"], Float[Tensor, " case"]]:
    """`tail` of the spectrum that all probes together tell, and its standard error over the probes (jackknife), (case,) each.

    `tail` takes nodes and counts (m * case, node), the cases in order and repeated m times. One probe is a complete spectrum,
    with error 0.
    """
    cases, probes, _ = nodes.shape
    if probes == 1:
        whole = tail(nodes[:, 0], counts[:, 0])
        return whole, torch.zeros_like(whole)
    keep = torch.cat([torch.ones(1, probes), (1 - torch.eye(probes)) * probes / (probes - 1)]).to(counts) / probes
    weights = torch.einsum("mp,cpk->mcpk", keep, counts).flatten(0, 1).flatten(1)
    each = tail(nodes.flatten(1).repeat(probes + 1, 1), weights).reshape(probes + 1, cases)
    left = each[1:] - each[1:].mean(0)
    return each[0], (left.square().sum(0) * (probes - 1) / probes).sqrt()


def root(rising: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """Where a `rising` function crosses zero between `low` and `high` (case,), by bisection."""
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        above = rising(middle) > 0
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return 0.5 * (low + high)
