"""A network of affine layers and smooth activations, by its numbers, and how much its scores can bend.

A certificate cannot be had from gradients at points: it needs something that holds everywhere in a region. For a network
whose activations have bounded second derivatives that something is the Hessian, whose extreme eigenvalues the weights
bound (Singla and Feizi 2020). `SmoothNet` reads the weights from a module; `bends` gives the bounds in any region for
which ranges of the preactivations are known, from the whole space down to a small ball.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from isoresponse.norms import INF

MOST = 50_000_000  # numbers in one layer's matrix: more are no small network
FAR = 1e8  # where every activation has reached its limits
Range = tuple[Tensor, Tensor]  # lower and upper end


@dataclass(frozen=True, eq=False)
class Activation:
    """A smooth function of one number with its derivatives, and where these have their extremes."""

    value: Callable[[Tensor], Tensor]
    first: Callable[[Tensor], Tensor]
    second: Callable[[Tensor], Tensor]
    steepest: tuple[float, ...]  # zeros of the second derivative
    sharpest: tuple[float, ...]  # zeros of the third

    def slopes(self, low: Tensor, high: Tensor) -> Range:
        """Range of the first derivative between `low` and `high`, elementwise."""
        return _range(self.first, self.steepest, low, high)

    def bends(self, low: Tensor, high: Tensor) -> Range:
        """Range of the second derivative between `low` and `high`, elementwise."""
        return _range(self.second, self.sharpest, low, high)


def _range(function: Callable[[Tensor], Tensor], extremes: tuple[float, ...], low: Tensor, high: Tensor) -> Range:
    low, high = low.clamp(-FAR, FAR), high.clamp(-FAR, FAR)
    ends = function(low), function(high)
    least, most = torch.minimum(*ends), torch.maximum(*ends)
    for place in extremes:
        value = function(torch.full_like(low, place))
        within = (low < place) & (place < high)
        least = torch.where(within, torch.minimum(least, value), least)
        most = torch.where(within, torch.maximum(most, value), most)
    return least, most


def _sigmoid() -> Activation:
    s, e = torch.sigmoid, math.log(2 + math.sqrt(3))
    return Activation(
        s, lambda z: s(z) * s(-z), lambda z: s(z) * s(-z) * (s(-z) - s(z)), (0.0,), (-e, e)
    )  # fmt: skip


def _tanh() -> Activation:
    e = math.atanh(1 / math.sqrt(3))

    def first(z: Tensor) -> Tensor:
        return 1 - z.tanh().square()

    return Activation(torch.tanh, first, lambda z: -2 * z.tanh() * first(z), (0.0,), (-e, e))


def _softplus(beta: float) -> Activation:
    s = torch.sigmoid

    def value(z: Tensor) -> Tensor:
        return torch.logaddexp(torch.zeros_like(z), beta * z) / beta

    return Activation(
        value, lambda z: s(beta * z), lambda z: beta * s(beta * z) * s(-beta * z), (), (0.0,)
    )  # fmt: skip


def _gelu() -> Activation:
    def density(z: Tensor) -> Tensor:
        return torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)

    def first(z: Tensor) -> Tensor:
        return torch.special.ndtr(z) + z * density(z)

    return Activation(
        lambda z: z * torch.special.ndtr(z), first, lambda z: (2 - z.square()) * density(z),
        (-math.sqrt(2), math.sqrt(2)), (-2.0, 0.0, 2.0),
    )  # fmt: skip


def _activation(layer: nn.Module) -> Activation | None:
    if _is(layer, nn.Sigmoid):
        return _sigmoid()
    if _is(layer, nn.Tanh):
        return _tanh()
    if isinstance(layer, nn.Softplus) and _is(layer, nn.Softplus):
        return _softplus(float(layer.beta))
    if isinstance(layer, nn.GELU) and _is(layer, nn.GELU) and layer.approximate == "none":
        return _gelu()
    return None


_AFFINE = (
    nn.Linear, nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.AvgPool1d,
    nn.AvgPool2d, nn.AvgPool3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
)  # fmt: skip

_CALLED = ("__call__", "forward", "_conv_forward")  # methods that decide what a layer returns


def _is(layer: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether it does what one of the `kinds` does: a subclass with a forward of its own may do anything."""
    own = "forward" in vars(layer)
    return not own and any(isinstance(layer, k) and all(_same(layer, k, name) for name in _CALLED) for k in kinds)


def _same(layer: nn.Module, kind: type[nn.Module], name: str) -> bool:
    return getattr(type(layer), name, None) is getattr(kind, name, None)


def _is_affine(layer: nn.Module) -> bool:
    # without running statistics a batch normalisation divides by the spread of the batch
    return _is(layer, *_AFFINE) and getattr(layer, "track_running_stats", True)


@dataclass(frozen=True, eq=False)
class SmoothNet:
    """Scores W_L a(... a(W_1 x + b_1) ...) + b_L of flat inputs (case, n), in float64; without activations it is affine."""

    weights: tuple[Tensor, ...]  # (units, units before)
    biases: tuple[Tensor, ...]
    activations: tuple[Activation, ...]  # one fewer

    @classmethod
    def of(cls, module: nn.Module, shape: tuple[int, ...]) -> SmoothNet:
        """The network that `module`, a (nested) `Sequential` or one layer, is in eval mode, for inputs of `shape`.

        Known layers: those that are affine (linear, convolution, average pooling, batch normalisation, flatten) and the
        activations Sigmoid, Tanh, Softplus and (exact) GELU.

        Raises
        ------
        ValueError
            A layer that is neither, or has hooks or a forward of its own, a last layer that is an activation, a matrix of more
            than 50 million numbers, weights that are not finite.
        """
        size = tuple(shape)
        first = next((p for p in module.parameters()), torch.zeros(()))
        matrix = torch.eye(math.prod(shape), dtype=torch.float64, device=first.device)
        offset = torch.zeros_like(matrix[:, 0])
        weights, biases, activations = [], [], []
        pending = True  # an affine part since the last activation
        for layer in _layers(module):
            found = _activation(layer)
            if found is not None:
                weights.append(matrix)
                biases.append(offset)
                activations.append(found)
                matrix, offset = torch.eye(len(offset)).to(matrix), torch.zeros_like(offset)
                pending = False
            elif _is_affine(layer):
                matrix, offset, size = _composed(layer, matrix, offset, size)
                pending = True
            else:
                raise ValueError(
                    f"no curvature bound is known for a layer {type(layer).__name__}; a certificate needs a Sequential of "
                    "affine layers and Sigmoid, Tanh, Softplus or GELU, without a forward of their own. For other networks see "
                    "lirpa_bound."
                )
        if not pending:
            raise ValueError(
                "the network ends in an activation; leave it out and ask about the layer before, whose contours are the same."
            )
        net = cls((*weights, matrix), (*biases, offset), tuple(activations))
        if not all(bool(torch.isfinite(t).all()) for t in (*net.weights, *net.biases)):
            raise ValueError("the module has weights that are NaN or infinite; nothing can be proved about it.")
        return net

    def hidden(self, x: Float[Tensor, "case n"]) -> list[Tensor]:
        """Preactivations (case, units) of every hidden layer."""
        found: list[Tensor] = []
        for w, b, activation in zip(self.weights, self.biases, self.activations, strict=False):
            found.append(x @ w.T + b)
            x = activation.value(found[-1])
        return found

    def scores(self, x: Float[Tensor, "case n"]) -> Float[Tensor, "case score"]:
        """The outputs."""
        if self.activations:
            x = self.activations[-1].value(self.hidden(x)[-1])
        return x @ self.weights[-1].T + self.biases[-1]

    def ranges(
        self, x: Float[Tensor, "case n"], radius: Float[Tensor, " case"], norm: float, down: Tensor, up: Tensor
    ) -> list[Range]:
        """Lower and upper ends (case, units) of every hidden preactivation within `radius` of `x` and inside the box.

        `down` and `up` (case, n) say how far each element may move; all radii may be infinite.
        """
        dual = {1.0: INF, 2.0: 2.0, INF: 1.0}[norm]
        low_x, high_x = torch.maximum(down, -radius[:, None]), torch.minimum(up, radius[:, None])
        made: list[Range] = []
        for k, (centre, w) in enumerate(zip(self.hidden(x), self.weights, strict=False)):
            if k == 0:
                lengths = w.norm(dual, dim=1).expand_as(centre)  # how fast each unit can change, per input unit
                spectral = torch.linalg.matrix_norm(w, 2).expand(len(x))
                rise, fall = _affine_range(w, low_x, high_x)
            else:
                steep = _largest(self.activations[k - 1].slopes(*made[-1]))
                mixed = w[None] * steep[:, None]
                lengths = mixed.abs() @ lengths[:, :, None]
                lengths = lengths[:, :, 0]
                if norm == 2.0:
                    lengths = torch.minimum(lengths, mixed.norm(dim=2) * spectral[:, None])
                spectral = torch.linalg.matrix_norm(mixed, 2) * spectral
                rise, fall = torch.full_like(centre, INF), torch.full_like(centre, -INF)
            way = radius[:, None] * lengths
            made.append((centre + torch.maximum(fall, -way), centre + torch.minimum(rise, way)))
        return made

    def bends(self, read: Float[Tensor, "case units"], ranges: list[Range]) -> Range:
        """How negative and how positive (case,) curvatures of `read` . (last hidden activity) can be, both as sizes >= 0.

        With B the Jacobian of layer I's preactivations and F the score's slopes in its activities, the Hessian is the sum over
        layers of B' diag(F a'') B. F is bounded by intervals. The first layer's B is its weights, so its term is bounded by an
        eigenvalue; that of later ones by products of spectral norms.
        """
        zero = torch.zeros_like(read[:, 0])
        if not self.activations:
            return zero, zero
        slopes = [a.slopes(*r) for a, r in zip(self.activations, ranges, strict=True)]
        inside = [a.bends(*r) for a, r in zip(self.activations, ranges, strict=True)]
        weighed: list[Range] = []  # of each layer's units: slope of the score x second derivative
        low = high = read
        for k in range(len(slopes) - 1, -1, -1):
            weighed.insert(0, _times(inside[k], (low, high)))
            least, most = _times(slopes[k], (low, high))
            w = self.weights[k]
            low = least @ w.clamp_min(0) + most @ w.clamp_max(0)
            high = most @ w.clamp_min(0) + least @ w.clamp_max(0)
        root = torch.linalg.qr(self.weights[0].T).R  # (at most n, units): same nonzero eigenvalues, smaller matrices
        down, up = (_top(root, c) for c in (-weighed[0][0], weighed[0][1]))
        length = torch.linalg.matrix_norm(self.weights[0], 2).expand_as(zero)  # of the Jacobian so far
        for k in range(1, len(slopes)):
            mixed = self.weights[k][None] * _largest(slopes[k - 1])[:, None]
            parts = (c.clamp_min(0).sqrt()[:, :, None] * mixed for c in (-weighed[k][0], weighed[k][1]))
            below, above = (torch.linalg.matrix_norm(p.expand(len(read), -1, -1), 2) * length for p in parts)
            down, up = down + below.square(), up + above.square()
            length = length * torch.linalg.matrix_norm(mixed, 2)
        return down, up


def _top(root: Tensor, weights: Tensor) -> Tensor:
    """Largest eigenvalue (case,) of root diag(weights) root', at least 0, rounded up."""
    matrix = (root[None] * weights[:, None]) @ root.T
    top = torch.linalg.eigvalsh(matrix)[:, -1]
    slack = 1e-12 * matrix.abs().sum(2).amax(1)
    return (top + slack).clamp_min(0)


def _largest(ends: Range) -> Tensor:
    return torch.maximum(ends[0].abs(), ends[1].abs())


def _times(one: Range, other: Range) -> Range:
    every = torch.stack([a * b for a in one for b in other])
    return every.amin(0), every.amax(0)


def _affine_range(w: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """How far w . d can rise and fall (case, units) where low <= d <= high (case, n), infinite where these are."""
    finite = torch.isfinite(low).all(1, keepdim=True) & torch.isfinite(high).all(1, keepdim=True)
    low, high = (torch.nan_to_num(t, posinf=0.0, neginf=0.0) for t in (low, high))
    plus, minus = w.clamp_min(0).T, w.clamp_max(0).T
    rise, fall = high @ plus + low @ minus, low @ plus + high @ minus
    return rise.masked_fill(~finite, INF), fall.masked_fill(~finite, -INF)


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    if module._forward_hooks or module._forward_pre_hooks:
        raise ValueError(
            f"a layer {type(module).__name__} has forward hooks, which may change what it returns; remove them for a certificate."
        )
    if isinstance(module, nn.Sequential) and _is(module, nn.Sequential):
        for part in module:
            yield from _layers(part)
    else:
        yield module


def _composed(
    layer: nn.Module, matrix: Tensor, offset: Tensor, size: tuple[int, ...]
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Matrix, offset and output shape of `layer` after an affine map."""
    exact = copy.deepcopy(layer).double().eval()
    with torch.no_grad():
        base = exact(offset.reshape(1, *size))
        if base.numel() * matrix.shape[1] > MOST:
            raise ValueError(
                f"a layer {type(layer).__name__} with {base.numel()} outputs is too large to be written as a matrix."
            )
        columns = exact((offset[:, None] + matrix).T.reshape(-1, *size))
    return (columns - base).flatten(1).T.contiguous(), base.flatten(), tuple(base.shape[1:])
