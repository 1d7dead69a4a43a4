"""Training of small classifiers: as they are, against their own adversary, or against interval bounds.

One loop, `fit`, and three losses for it: `natural`, `Adversarial` and `IntervalBound`. The robust ones are the decisive
cases for a search for the closest adversary: units are dead or saturated, and gradients say little about the boundary.
Images hold values in [0, 1]; `eps` is a radius in the L-infinity norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Generator, Tensor, nn

from isoresponse.models.digits import Data, _cache_file, _save

Loss = Callable[[nn.Module, Tensor, Tensor, float], Tensor]
WARM_UP = 0.1  # share of the steps in which the learning rate rises from zero
CHUNK = 1000  # images at a time where a whole test set is asked about


def natural(net: nn.Module, images: Tensor, labels: Tensor, progress: float = 1.0) -> Tensor:
    """Mean cross-entropy of the images as they are."""
    return nn.functional.cross_entropy(net(images), labels)


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
    """

    eps: float
    steps: int = 1
    size: float | None = None
    ramp: float = 0.0
    generator: Generator | None = None

    def __call__(self, net: nn.Module, images: Tensor, labels: Tensor, progress: float = 1.0) -> Tensor:
        """The loss of one batch at a given progress of the training in [0, 1]."""
        eps = self.eps * _grown(progress, 0.0, self.ramp)
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
    """

    eps: float
    kappa: float = 0.5
    ramp: tuple[float, float] = (0.1, 0.6)

    def __call__(self, net: nn.Module, images: Tensor, labels: Tensor, progress: float = 1.0) -> Tensor:
        """The loss of one batch at a given progress of the training in [0, 1]."""
        share = _grown(progress, *self.ramp)
        kappa = 1 - (1 - self.kappa) * share
        loss = kappa * natural(net, images, labels)
        if share > 0:
            worst = worst_logits(net, images, labels, self.eps * share)
            loss = loss + (1 - kappa) * nn.functional.cross_entropy(worst, labels)
        return loss


def fit(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    loss: Loss = natural,
    *,
    epochs: int,
    batch: int = 128,
    rate: float = 2e-3,
    hold: float = 0.5,
    augment: Callable[[Tensor, Generator], Tensor] | None = None,
    generator: Generator | None = None,
    on_epoch: Callable[[int, int], object] | None = None,
) -> None:
    """None; `net` is trained in place with Adam, its gradients' norm kept below 10.

    Parameters
    ----------
    images, labels
        (case, ...) with values in [0, 1], and (case,) integers.
    loss
        Function of (net, images, labels, progress); progress runs from 0 to 1 over the whole training.
    rate, hold
        Learning rate, reached after a tenth of the steps and kept until the share `hold`; then it falls linearly to 0.
    augment
        Function of (images, generator) applied to every batch.
    generator
        Source of the order of the cases and of `augment`; None stands for a generator with seed 0.
    on_epoch
        Called with (epochs done, epochs in all).

    Raises
    ------
    ValueError
        Images and labels of different number, or none; epochs or batch below one.

    Examples
    --------
    >>> import torch
    >>> x = torch.rand(256, 2, generator=torch.Generator().manual_seed(0))
    >>> net = torch.nn.Linear(2, 2)
    >>> _ = torch.nn.init.zeros_(net.weight), torch.nn.init.zeros_(net.bias)
    >>> fit(net, x, (x[:, 0] > x[:, 1]).long(), epochs=30, rate=0.1)
    >>> float((net(x).argmax(1) == (x[:, 0] > x[:, 1])).float().mean()) > 0.95
    True
    """
    if len(images) != len(labels) or not len(images):
        raise ValueError(f"fit needs one label per image, got {len(images)} images and {len(labels)} labels.")
    if epochs < 1 or batch < 1:
        raise ValueError(f"fit needs at least one epoch and one image per batch, got epochs={epochs}, batch={batch}.")
    generator = generator or Generator().manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), rate)
    steps, step = epochs * -(-len(images) // batch), 0
    net.train()
    for epoch in range(epochs):
        for index in torch.randperm(len(images), generator=generator).split(batch):
            progress = step / steps
            optimizer.param_groups[0]["lr"] = rate * min(_grown(progress, 0, WARM_UP), 1 - _grown(progress, hold, 1))
            x = images[index] if augment is None else augment(images[index], generator)
            value = loss(net, x, labels[index], progress)
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 10.0)
            optimizer.step()
            step += 1
        if on_epoch is not None:
            on_epoch(epoch + 1, epochs)
    net.eval()


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
    """
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
    """Share of images that are classified as labelled and stay so at the ends of `restarts` runs of `pgd`."""
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
        As `worst_logits`.
    """
    proven = []
    with torch.no_grad():
        for x, y in zip(images.split(CHUNK), labels.split(CHUNK), strict=True):
            bound = worst_logits(net, x, y, eps).scatter(1, y[:, None], -1.0)  # its own is 0 and no rival
            proven.append((bound < 0).all(1))
    return float(torch.cat(proven).double().mean())


def cached(
    net: nn.Module, name: str, data: Data, train: Callable[[], object], *, seed: int = 0, cache: Path | None = None
) -> bool:
    """Whether weights of this name, data and seed lay in the cache; if not, `train` was called and its result kept.

    `net` has its weights either way and is in eval mode. The folder is `cache`, else the environment variable
    ISORESPONSE_CACHE, else the user's cache folder.
    """
    path = _cache_file(name, data, seed, cache)
    try:
        net.load_state_dict(load_file(path))
        found = True
    except (OSError, SafetensorError, RuntimeError):  # not there, or damaged: train (again)
        train()
        _save(net, path)
        found = False
    net.eval()
    return found


def _grown(progress: float, begin: float, end: float) -> float:
    """0 before `begin`, 1 after `end`, linear in between."""
    return 1.0 if progress >= end else max(0.0, (progress - begin) / (end - begin))


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
