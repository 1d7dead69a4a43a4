"""Robustness in the L-infinity norm: an adversary and interval bounds, as losses to train with and as measures.

The networks that these make are the decisive cases for a search for the closest adversary: units are dead or saturated, and
gradients say little about the boundary. Images hold values in [0, 1]; `eps` is a radius.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from isoresponse.models.training import grown, natural

CHUNK = 1000  # images at a time where a whole test set is asked about


@dataclass(frozen=True)
class Adversarial:
    """Mean cross-entropy at the ends of a few steps of signed gradient ascent inside the ball of radius `eps`.

    Parameters
    ----------
    eps
        Radius; it grows from 0 to this value while training progresses from 0 to `ramp`.
    steps
        One is the fast gradient sign method from a random start, which may overfit to its one step: measure with `pgd`.
    size
        Length of a step relative to `eps`; None stands for 1.25 with one step and 2.5 / steps with more.
    ramp
        Share of the training after which `eps` is full.
    generator
        Source of the random starts.

    Notes
    -----
    Madry, Makelov, Schmidt, Tsipras & Vladu (2018), ICLR; one step: Wong, Rice & Kolter (2020), ICLR.

    Raises
    ------
    ValueError
        A radius that is negative or not finite, no steps, a size or ramp out of range.
    """

    eps: float
    steps: int = 1
    size: float | None = None
    ramp: float = 0.0
    generator: Generator | None = None

    def __post_init__(self) -> None:
        _require_ascent(self.eps, self.steps, self.size)
        if not 0 <= self.ramp <= 1:
            raise ValueError(f"ramp must be a share of the training in [0, 1], got {self.ramp}.")

    def __call__(self, net: nn.Module, images: Tensor, labels: Tensor, progress: float = 1.0) -> Tensor:
        """The loss of one batch at a given progress of the training in [0, 1]."""
        eps = self.eps * grown(progress, 0.0, self.ramp)
        size = self.size if self.size is not None else 1.25 if self.steps == 1 else None
        worst = pgd(net, images, labels, eps, steps=self.steps, size=size, generator=self.generator)
        return nn.functional.cross_entropy(net(worst), labels)


@dataclass(frozen=True)
class IntervalBound:
    """kappa times the natural loss plus (1 - kappa) times the cross-entropy of the worst logits that intervals allow.

    Parameters
    ----------
    eps
        Radius reached at the end of the ramp. A little more than the radius of interest certifies more at that radius.
    kappa
        Weight of the natural loss at the end of the ramp; it starts at 1.
    ramp
        Shares of the training between which `eps` grows from 0 and `kappa` falls from 1.

    Notes
    -----
    Gowal, Dvijotham, Stanforth, Bunel, Qin, Uesato, Arandjelovic, Mann & Kohli (2018), arXiv:1810.12715.

    Raises
    ------
    ValueError
        A radius that is negative or not finite, kappa or ramp out of range.
    """

    eps: float
    kappa: float = 0.5
    ramp: tuple[float, float] = (0.1, 0.6)

    def __post_init__(self) -> None:
        _require_radius(self.eps)
        if not (0 <= self.kappa <= 1 and 0 <= self.ramp[0] <= self.ramp[1] <= 1):
            raise ValueError(
                f"IntervalBound needs kappa in [0, 1] and a ramp of two growing shares of the training, got kappa={self.kappa} "
                f"and ramp={self.ramp}."
            )

    def __call__(self, net: nn.Module, images: Tensor, labels: Tensor, progress: float = 1.0) -> Tensor:
        """The loss of one batch at a given progress of the training in [0, 1]."""
        share = grown(progress, *self.ramp)
        kappa = 1 - (1 - self.kappa) * share
        loss = kappa * natural(net, images, labels)
        if share > 0:
            worst = worst_logits(net, images, labels, self.eps * share)
            loss = loss + (1 - kappa) * nn.functional.cross_entropy(worst, labels)
        return loss


def pgd(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float,
    *,
    steps: int = 40,
    size: float | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Images (case, ...) no further than `eps` from the given ones, at which the cross-entropy has been driven up.

    The last point of signed gradient ascent from a uniformly random start, inside [0, 1]. A step is `size` times `eps`
    long, 2.5 / steps if not given. It moves all pixels whatever the size of the gradient, but not where that is zero.

    Notes
    -----
    Projected gradient descent of Madry, Makelov, Schmidt, Tsipras & Vladu (2018), ICLR.

    Raises
    ------
    ValueError
        A radius that is negative or not finite, no steps, a size that is not positive.
    """
    _require_ascent(eps, steps, size)
    low, high = (images - eps).clamp_min(0), (images + eps).clamp_max(1)
    noise = torch.rand(images.shape, dtype=images.dtype, generator=generator).to(images.device)
    x = torch.clamp(images + eps * (2 * noise - 1), low, high)
    length = eps * (2.5 / steps if size is None else size)
    for _ in range(steps):
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(nn.functional.cross_entropy(net(x), labels, reduction="sum"), x)
        x = torch.clamp(x.detach() + length * slope.sign(), low, high)
    return x.detach()


def robust_accuracy(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float,
    *,
    steps: int = 40,
    restarts: int = 1,
    generator: Generator | None = None,
) -> float:
    """Share of images that are classified as labelled and stay so at the ends of `restarts` runs of `pgd`.

    Raises
    ------
    ValueError
        As `pgd`; no runs; images outside [0, 1], or not as many as labels.
    """
    _require_pictures(images, labels)
    _require_ascent(eps, steps, None)
    if restarts < 1:
        raise ValueError(f"restarts must be at least one, got {restarts}.")
    right = []
    for x, y in zip(images.split(CHUNK), labels.split(CHUNK), strict=True):
        stays = net(x).argmax(1) == y
        for _ in range(restarts):
            stays &= net(pgd(net, x, y, eps, steps=steps, generator=generator)).argmax(1) == y
        right.append(stays)
    return float(torch.cat(right).double().mean())


def worst_logits(net: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """Upper bounds (case, class) of every logit minus the labelled one, over the L-infinity ball met with [0, 1].

    A case whose bounds are all negative but its own, which is 0, keeps its class in the whole ball. Interval arithmetic
    runs up to the last layer; that one, if linear, is met by its differences of classes, which is tighter.

    Raises
    ------
    ValueError
        A layer that is not Conv2d (padded with zeros), Linear, ReLU or Flatten, or a network that is not a chain.

    Notes
    -----
    Gowal et al. (2018), arXiv:1810.12715, with the last layer elided.

    Examples
    --------
    >>> import torch
    >>> net = torch.nn.Linear(2, 2, bias=False)
    >>> _ = net.weight.data.copy_(torch.eye(2))
    >>> worst_logits(net, torch.tensor([[0.75, 0.25]]), torch.tensor([0]), 0.125).detach()
    tensor([[ 0.0000, -0.2500]])
    """
    layers = list(_chain(net))
    low, high = (images - eps).clamp_min(0), (images + eps).clamp_max(1)
    center, radius = (high + low) / 2, (high - low) / 2
    last = layers[-1] if layers else None
    elided = isinstance(last, nn.Linear)
    for layer in layers[:-1] if elided else layers:
        center, radius = _interval(layer, center, radius)
    own = labels[:, None]
    if not isinstance(last, nn.Linear):
        lowest = (center - radius).gather(1, own)
        return (center + radius - lowest).scatter(1, own, 0.0)
    weight = last.weight - last.weight[labels][:, None]  # (case, class, unit)
    bound = (weight @ center[:, :, None] + weight.abs() @ radius[:, :, None])[:, :, 0]
    return bound if last.bias is None else bound + (last.bias - last.bias[own])


def certified_accuracy(net: nn.Module, images: Tensor, labels: Tensor, eps: float) -> float:
    """Share of images that provably are classified as labelled everywhere within `eps`, by interval bounds.

    A lower bound of what `robust_accuracy` estimates from above.

    Raises
    ------
    ValueError
        As `worst_logits`; a radius that is negative or not finite; images outside [0, 1], or not as many as labels.
    """
    _require_pictures(images, labels)
    _require_radius(eps)
    proven = []
    with torch.no_grad():
        for x, y in zip(images.split(CHUNK), labels.split(CHUNK), strict=True):
            bound = worst_logits(net, x, y, eps).scatter(1, y[:, None], -1.0)  # its own is 0 and no rival
            proven.append((bound < 0).all(1))
    return float(torch.cat(proven).double().mean())


def _require_radius(eps: float) -> None:
    if not 0 <= eps < float("inf"):
        raise ValueError(f"eps must be a radius, zero or positive and finite, got {eps}.")


def _require_ascent(eps: float, steps: int, size: float | None) -> None:
    _require_radius(eps)
    if steps < 1 or not (size is None or 0 < size < float("inf")):
        raise ValueError(f"an ascent needs at least one step of a positive size, got steps={steps} and size={size}.")


def _require_pictures(images: Tensor, labels: Tensor) -> None:
    if len(images) != len(labels) or not len(images):
        raise ValueError(f"an accuracy needs one label per image, got {len(images)} images and {len(labels)} labels.")
    if not bool(((images >= 0) & (images <= 1)).all()):
        raise ValueError("images must hold values in [0, 1], got others, or NaN; rescale them.")


def _chain(net: nn.Module) -> Iterator[nn.Module]:
    """The layers of a network, nested chains unfolded."""
    if isinstance(net, nn.Sequential):
        for part in net:
            yield from _chain(part)
    elif not isinstance(net, (nn.Linear, nn.ReLU, nn.Flatten)) and not (
        isinstance(net, nn.Conv2d) and net.padding_mode == "zeros"
    ):
        raise ValueError(
            "worst_logits needs a chain (Sequential) of Conv2d with zero padding, Linear, ReLU and Flatten, got "
            f"{type(net).__name__}; interval bounds of other layers are not written down here."
        )
    else:
        yield net


def _interval(layer: nn.Module, center: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Centres and radii behind one layer."""
    if isinstance(layer, nn.Conv2d):
        spread = nn.functional.conv2d(
            radius, layer.weight.abs(), None, layer.stride, layer.padding, layer.dilation, layer.groups
        )
        return layer(center), spread
    if isinstance(layer, nn.Linear):
        return layer(center), nn.functional.linear(radius, layer.weight.abs())
    if isinstance(layer, nn.ReLU):
        low, high = (center - radius).relu(), (center + radius).relu()
        return (high + low) / 2, (high - low) / 2
    return layer(center), layer(radius)  # Flatten
