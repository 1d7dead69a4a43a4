"""Exact cases in float64: error of `closest_point` where the optimum is known, and against SciPy inside a box.

    python benchmarks/exact.py [--cases 200] [--size 20]

Families: linear neurons, spheres, rotated anisotropic quadrics and saddles built so that the global optimum and
every distance x curvature are known. The last row of each family asks whether a case alone equals itself in a batch.
"""

from __future__ import annotations

import argparse

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from isoresponse import Box, Neuron, Solution, closest_point


def random_rotation(cases: int, n: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(cases, n, n, generator=generator, dtype=torch.float64))[0]


def quadrics(cases: int, n: int, low: float, high: float, seed: int) -> tuple[Neuron, Tensor, Tensor]:
    """Neuron (a different quadric per case), start and known distance, with distance x curvature in [low, high]."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    frame = random_rotation(cases, n, generator)
    product = low + (high - low) * uniform(cases, n - 1)
    product[:, 0], product[:, -1] = low, high
    distance, steep = 0.5 + 2 * uniform(cases), 0.2 + 3 * uniform(cases)
    local = torch.diag_embed(torch.cat([torch.zeros(cases, 1).double(), -(steep / distance)[:, None] * product], 1))
    coupling = (
        0.5 * torch.randn(cases, n - 1, generator=generator, dtype=torch.float64) * (steep / distance)[:, None] / n**0.5
    )
    local[:, 0, 1:], local[:, 1:, 0] = coupling, coupling
    local[:, 0, 0] = (uniform(cases) - 0.5) * steep / distance
    hessian = frame @ local @ frame.transpose(1, 2)
    normal = frame[:, :, 0]
    optimum = distance[:, None] * normal

    def response(x: Tensor, h: Tensor, g: Tensor, u: Tensor, at: Tensor) -> Tensor:
        d = x - at
        return g * (u * d).sum(1) + 0.5 * torch.einsum("ci,cij,cj->c", d, h, d)

    neuron = Neuron(response, (n,), given=(hessian, steep, normal, optimum))
    start = torch.zeros_like(optimum)
    convex = torch.linalg.eigvalsh(torch.eye(n).double() - (distance / steep)[:, None, None] * local)[:, 0] > 0
    keep = convex & (neuron.value(start) < 0)
    return neuron.select(keep), start[keep], distance[keep]


def report(name: str, found: Solution, truth: Tensor) -> None:
    error = (found.distance / truth - 1).abs()
    print(
        f"  {name:38s} cases {len(truth):4d}  success {found.success.double().mean():6.1%}  largest relative error "
        f"{error.nan_to_num(nan=torch.inf).max():.1e}  gradients {found.gradients.double().mean():5.1f} "
        f"(max {int(found.gradients.max())})"
    )


def alone(neuron: Neuron, start: Tensor, level: float, found: Solution) -> float:
    """Largest distance between a case's point by itself and in the batch, over ten cases."""
    worst = 0.0
    for i in range(min(10, len(start))):
        one = torch.tensor([i])
        single = closest_point(neuron.select(one), start[one], level, budget=200)
        worst = max(worst, float((single.point - found.point[one]).abs().max()))
    return worst


def main(cases: int, n: int) -> None:
    print(f"closest_point, float64, {n} input elements")
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(cases, n, generator=generator, dtype=torch.float64)
    x = torch.randn(cases, n, generator=generator, dtype=torch.float64)
    linear = Neuron(lambda z, w: (z * w).sum(1), (n,), given=(w,))
    gap = 3.0 - linear.value(x)
    report("linear", closest_point(linear, x, 3.0), gap.abs() / w.norm(dim=1))
    for inside, product in ((True, -0.9), (True, -0.5), (False, 1.0), (False, 20.0)):
        radius = 0.5 + torch.rand(cases, generator=generator, dtype=torch.float64)
        distance = radius * abs(product)
        u = torch.nn.functional.normalize(torch.randn(cases, n, generator=generator, dtype=torch.float64), dim=1)
        start = u * (radius - distance if inside else radius + distance)[:, None]
        # inside: leave the ball; outside: enter it
        sign = 1.0 if inside else -1.0
        ball = Neuron(lambda z, r, s=sign: s * (z.norm(dim=1) - r), (n,), given=(radius,))
        report(f"sphere, distance x curvature {product:g}", closest_point(ball, start, 0.0, budget=200), distance)
    for low, high in ((-0.9, -0.1), (-0.9, 0.5), (0.0, 1.0), (0.0, 20.0), (-0.9, 20.0), (20.0, 20.0)):
        neuron, start, distance = quadrics(cases, n, low, high, seed=1)
        found = closest_point(neuron, start, 0.0, budget=200)
        report(f"quadric, distance x curvature {low:g}..{high:g}", found, distance)
        print(f"  {'':38s} alone against in a batch: {alone(neuron, start, 0.0, found):.1e}")
    in_a_box(min(cases, 40), n)


def in_a_box(cases: int, n: int) -> None:
    """Anisotropic quadrics inside [-0.25, 0.25]^n against SciPy's SLSQP from the same start."""
    neuron, start, _ = quadrics(cases * 3, n, -0.5, 3.0, seed=2)
    boxed = Neuron(neuron.response, neuron.shape, Box(-0.25, 0.25), given=neuron.given)
    found = closest_point(boxed, start, 0.0, budget=200)
    worst, better, compared = 0.0, 0, 0
    for i in torch.nonzero(found.success).flatten()[:cases].tolist():
        one = boxed.select(torch.tensor([i]))

        def constraint(z: np.ndarray, one: Neuron = one) -> float:
            return float(one.value(torch.as_tensor(z)[None]))

        def slope(z: np.ndarray, one: Neuron = one) -> np.ndarray:
            return one.value_and_grad(torch.as_tensor(z)[None])[1][0].numpy()

        tried = [
            scipy.optimize.minimize(
                lambda z: 0.5 * z @ z, first, jac=lambda z: z, bounds=[(-0.25, 0.25)] * n, method="SLSQP",
                constraints={"type": "ineq", "fun": constraint, "jac": slope}, options={"maxiter": 500, "ftol": 1e-14},
            )
            for first in (np.zeros(n), found.point[i].numpy())
        ]  # fmt: skip
        solved = [float(np.linalg.norm(t.x)) for t in tried if t.success and constraint(t.x) > -1e-8]
        if solved:
            compared += 1
            ratio = float(found.distance[i]) / min(solved) - 1
            worst, better = max(worst, ratio), better + (ratio < -1e-6)
    pinned = (found.point[found.success].abs() > 0.25 - 1e-9).double().mean()
    print(
        f"  in the box [-0.25, 0.25]^{n}: {compared} cases, {pinned:.0%} of elements at a bound, "
        f"largest excess over the best of two SLSQP runs {worst:.1e}, shorter than both in {better}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--size", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    main(options.cases, options.size)
