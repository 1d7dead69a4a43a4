"""Neurons with known geometry: batched, anisotropic, randomly rotated, float64.

Each function here returns a `Known`: one neuron that differs from case to case, starts, levels, and what
mathematics says about them. `curvatures` are those of the contour at `point`, the closest point, with the
library's sign: positive where {f >= c} is locally convex.
"""

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from isoresponse.geometry import normal_curvature
from isoresponse.loop import Status
from isoresponse.neuron import Box, Neuron


@dataclass(frozen=True, eq=False)
class Known:
    """One question per case, and its answer in closed form."""

    neuron: Neuron
    x: Tensor  # (case, n) where to start
    level: Tensor  # (case,) the level to reach
    distance: Tensor  # (case,) to the closest point
    point: Tensor  # (case, n) the closest point
    curvatures: Tensor  # (case, n - 1) at the closest point, descending

    def select(self, cases):
        cases = torch.atleast_1d(torch.as_tensor(cases))
        return Known(self.neuron.select(cases), *(t[cases] for t in self.tensors()))

    def to(self, dtype):
        neuron = Neuron(
            self.neuron.response,
            self.neuron.shape,
            self.neuron.box,
            given=tuple(g.to(dtype) for g in self.neuron.given),
        )
        return Known(neuron, *(t.to(dtype) for t in self.tensors()))

    def tensors(self):
        return self.x, self.level, self.distance, self.point, self.curvatures

    def __len__(self):
        return len(self.x)


def normal(*size, generator: Generator) -> Tensor:
    return torch.randn(*size, generator=generator, dtype=torch.float64)


def uniform(*size, low=0.0, high=1.0, generator: Generator) -> Tensor:
    return low + (high - low) * torch.rand(*size, generator=generator, dtype=torch.float64)


def frames(cases, n, *, generator: Generator) -> Tensor:
    """Random orthogonal matrices (case, n, n), one per case; rows are an orthonormal basis."""
    q, r = torch.linalg.qr(normal(cases, n, n, generator=generator))
    return q * torch.diagonal(r, dim1=1, dim2=2).sign()[:, None, :]


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1)


def bending(jet, direction) -> Tensor:
    """Curvature of the contour along a direction, without its error."""
    return normal_curvature(jet, direction).value


def names(status: Tensor) -> list[str]:
    """The name of every case's status."""
    return [Status(s).name for s in status.tolist()]


def _known(response, given, point, rising, distance, curvatures) -> Known:
    """Starts `distance` before `point` along the unit normal `rising`, to be risen to the point's level."""
    neuron = Neuron(response, tuple(point.shape[1:]), given=given)
    level = neuron(point)
    order = curvatures.sort(dim=1, descending=True).values
    return Known(neuron, point - distance[:, None] * rising, level, distance, point, order)


def linear(cases=6, n=7, phi=lambda z: z, *, generator: Generator) -> Known:
    """phi(w.x + b) with phi increasing: flat contours, whatever phi is."""
    w, b = normal(cases, n, generator=generator), normal(cases, generator=generator)
    point, distance = normal(cases, n, generator=generator), uniform(cases, low=0.2, high=1.0, generator=generator)
    rising = w / w.norm(dim=1, keepdim=True)
    return _known(lambda x, w, b: phi(dot(x, w) + b), (w, b), point, rising, distance, torch.zeros_like(w[:, 1:]))


def tanh(cases=6, n=7, *, generator: Generator) -> Known:
    return linear(cases, n, lambda z: torch.tanh(0.3 * z), generator=generator)


def exp(cases=6, n=7, *, generator: Generator) -> Known:
    return linear(cases, n, lambda z: torch.exp(0.5 * z), generator=generator)


def _round(cases, n, k, inside, generator) -> Known:
    """Distance to a centre within a random k-dimensional subspace, rising inwards or (inside) outwards."""
    axes = frames(cases, n, generator=generator)[:, :k]
    centre = normal(cases, n, generator=generator)
    radius = uniform(cases, low=1.0, high=2.0, generator=generator)
    outward = torch.einsum("ck,ckn->cn", normal(cases, k, generator=generator), axes)
    outward = outward / outward.norm(dim=1, keepdim=True)
    along = normal(cases, n, generator=generator)
    along = along - torch.einsum("ck,ckn->cn", torch.einsum("ckn,cn->ck", axes, along), axes)
    sign = 1.0 if inside else -1.0
    curvatures = torch.zeros(cases, n - 1, dtype=torch.float64)
    curvatures[:, : k - 1] = -sign / radius[:, None]
    distance = uniform(cases, low=0.1, high=0.9, generator=generator) * radius * (1.0 if inside else 3.0)

    def response(x, axes, centre):
        return sign * torch.einsum("ckn,cn->ck", axes, x - centre).norm(dim=1)

    point = centre + along + radius[:, None] * outward
    return _known(response, (axes, centre), point, sign * outward, distance, curvatures)


def sphere(cases=6, n=5, *, generator: Generator) -> Known:
    """{f >= c} is a ball of radius r, seen from outside: every curvature +1/r."""
    return _round(cases, n, n, False, generator)


def hollow(cases=6, n=5, *, generator: Generator) -> Known:
    """{f >= c} is the outside of a ball, seen from inside: every curvature -1/r."""
    return _round(cases, n, n, True, generator)


def cylinder(cases=6, n=6, *, generator: Generator) -> Known:
    """{f >= c} is a cylinder over a 3-ball, seen from outside: two curvatures +1/r, the others 0."""
    return _round(cases, n, 3, False, generator)


def quadric(cases=6, n=6, *, low=-0.9, high=20.0, generator: Generator) -> Known:
    """Quadrics built round their closest point, with distance x curvature drawn from [low, high].

    With unit normal u, gradient s u and Hessian H at the point, the start lies d before it along u. The
    point is the global optimum because I - (d / s) H is kept positive definite. Normal and tangent are
    coupled at random, so neither the steepest path nor the start's gradient points at the answer.
    """
    tries = 8 * cases
    basis = frames(tries, n, generator=generator)
    u, tangents = basis[:, 0], basis[:, 1:]
    distance = uniform(tries, low=0.5, high=2.0, generator=generator)
    bent = uniform(tries, n - 1, low=low, high=high, generator=generator)  # distance x curvature
    weights = normal(tries, n - 1, generator=generator)
    weights = weights / weights.norm(dim=1, keepdim=True) * (1 + bent).sqrt()
    weights = weights * uniform(tries, 1, high=0.9, generator=generator)
    coupling = torch.einsum("ck,ckn->cn", weights, tangents)
    rate = uniform(tries, low=-1.0, high=0.5, generator=generator)
    hessian = -torch.einsum("ck,cki,ckj->cij", bent, tangents, tangents)
    hessian = hessian + u[:, :, None] * coupling[:, None] + coupling[:, :, None] * u[:, None]
    hessian = hessian + rate[:, None, None] * u[:, :, None] * u[:, None]
    keep = torch.linalg.eigvalsh(torch.eye(n, dtype=torch.float64) - hessian)[:, 0] > 0.05
    assert int(keep.sum()) >= cases
    cut = torch.nonzero(keep)[:cases, 0]
    u, distance, bent = u[cut], distance[cut], bent[cut]
    steepness = uniform(cases, low=0.3, high=3.0, generator=generator)
    gradient = steepness[:, None] * u
    hessian = (steepness / distance)[:, None, None] * hessian[cut]
    point = normal(cases, n, generator=generator)
    given = (point, gradient, hessian, normal(cases, generator=generator))
    return _known(quadratic, given, point, u, distance, bent / distance[:, None])


def quadratic(x, point, gradient, hessian, value):
    d = x - point
    return value + dot(gradient, d) + 0.5 * torch.einsum("ci,cij,cj->c", d, hessian, d)


def energy(cases=6, n=6, *, generator: Generator) -> Known:
    """Complex cell sqrt((p a.x)^2 + (q b.x)^2), seen from inside an elliptic contour: one curvature below 0."""
    a, b = frames(cases, n, generator=generator)[:, :2].unbind(1)
    p, q = (uniform(cases, low=0.6, high=1.6, generator=generator)[:, None] for _ in range(2))
    level, turn = (uniform(cases, low=0.5, high=h, generator=generator)[:, None] for h in (2.0, 1.3))
    across = normal(cases, n, generator=generator)
    across = across - dot(across, a)[:, None] * a - dot(across, b)[:, None] * b
    first, second = level / p, level / q  # semi-axes
    point = across + first * turn.cos() * a + second * turn.sin() * b
    rising = turn.cos() / first * a + turn.sin() / second * b
    speed = ((first * turn.sin()).square() + (second * turn.cos()).square()).sqrt()
    curvatures = torch.zeros(cases, n - 1, dtype=torch.float64)
    curvatures[:, :1] = -first * second / speed**3
    sharpest = (torch.maximum(first, second) / torch.minimum(first, second).square())[:, 0]
    distance = uniform(cases, low=0.2, high=0.8, generator=generator) / sharpest

    def response(x, a, b):
        return (dot(a, x).square() + dot(b, x).square()).sqrt()

    return _known(response, (p * a, q * b), point, rising / rising.norm(dim=1, keepdim=True), distance, curvatures)


def divisive(cases=6, n=6, *, generator: Generator) -> Known:
    """Divisive normalisation w.x / sqrt(s^2 + |x|^2): contours are sheets of hyperboloids round w, all convex."""
    axis, out = frames(cases, n, generator=generator)[:, :2].unbind(1)
    level, s, bend = (uniform(cases, low=0.3, high=h, generator=generator)[:, None] for h in (0.8, 1.5, 1.0))
    long = level * s / (1 - level.square()).sqrt()  # z^2 / long^2 - r^2 / s^2 = 1
    point = long * bend.cosh() * axis + s * bend.sinh() * out
    rising = bend.cosh() / long * axis - bend.sinh() / s * out
    size = rising.norm(dim=1, keepdim=True)
    curvatures = (1 / (s.square() * size)).expand(-1, n - 1).clone()
    curvatures[:, :1] = long * s / ((long * bend.sinh()).square() + (s * bend.cosh()).square()) ** 1.5

    def response(x, w, s):
        return dot(w, x) / (s.square() + dot(x, x)).sqrt()

    distance = uniform(cases, low=0.1, high=2.0, generator=generator)
    return _known(response, (axis, s[:, 0]), point, rising / size, distance, curvatures)


def planes(cases=6, n=6, count=3, *, generator: Generator) -> Known:
    """Maximum over planes from where the steepest is also nearest: flat contours, with kinks between them."""
    w = normal(cases, count, n, generator=generator)
    w = 0.2 * w / w.norm(dim=2, keepdim=True)
    w[:, 0] *= 8
    point, distance = normal(cases, n, generator=generator), uniform(cases, low=0.2, high=0.5, generator=generator)
    offset = -torch.einsum("ckn,cn->ck", w, point)
    offset[:, 1:] -= 1.5
    rising = w[:, 0] / w[:, 0].norm(dim=1, keepdim=True)

    def response(x, w, offset):
        return (torch.einsum("ckn,cn->ck", w, x) + offset).amax(1)

    return _known(response, (w, offset), point, rising, distance, torch.zeros(cases, n - 1, dtype=torch.float64))


# ranges of distance x curvature: focusing, gently bent, strongly bent, saddles
BENT = [(-0.9, -0.1), (0.0, 1.0), (0.0, 20.0), (-0.9, 20.0)]
SMOOTH = [linear, tanh, exp, sphere, hollow, cylinder, quadric, energy, divisive]
ZOO = [*SMOOTH, planes]


def rotated(known: Known, turn: Tensor) -> Known:
    """The same questions in a frame turned by `turn` (n, n)."""
    inner = known.neuron
    neuron = Neuron(lambda x, *given: inner.response(x @ turn, *given), inner.shape, Box(), given=inner.given)
    return Known(neuron, known.x @ turn.T, known.level, known.distance, known.point @ turn.T, known.curvatures)


def relu_net(n=6, width=40, *, generator: Generator):
    """A random two-layer ReLU network (float64) with one output."""
    net = torch.nn.Sequential(torch.nn.Linear(n, width), torch.nn.ReLU(), torch.nn.Linear(width, 1)).double()
    for parameter in net.parameters():
        parameter.data = normal(*parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
    return net


def counted(neuron):
    """The same neuron, and its true numbers of forward and backward passes, in cases."""
    spent = {"forwards": 0, "gradients": 0}

    def back(gradient):
        spent["gradients"] += len(gradient)

    def response(x, *given):
        spent["forwards"] += len(x)
        if x.requires_grad:
            x = x.view_as(x)
            x.register_hook(back)
        return neuron.response(x, *given)

    return replace(neuron, response=response), spent


# one question for each way to fail, and a second input from which the same level is reached
_ROOT = Neuron(lambda x: (x[:, 0] - 0.5).sqrt() + x[:, 1], (2,))
FAILURES = {
    Status.FLAT: (
        Neuron(lambda x: torch.where(x.abs().amax(1) < 1e6, x.relu().sum(1), 0.0), (2,)),
        [-1e30, -2e30],
        5.0,
    ),
    Status.BLOCKED: (Neuron(lambda x: x.sum(1), (2,), Box(-1.0, 1.0)), [1.0, 1.0], 3.0),
    Status.UNREACHABLE: (Neuron(lambda x: x.square().sum(1), (2,)), [1.0, 2.0], -1.0),
    Status.NOT_FINITE: (_ROOT, [0.0, 1.0], 2.5),
}
SOUND = {Status.FLAT: [1.0, 1.0], Status.NOT_FINITE: [0.75, 0.5]}
