"""Classifiers to compare: pointwise networks, and the same read-outs behind a sparse code.

All are plain `nn.Sequential` of images (case, channel, height, width) with values in [0, 1] and answer with scores.
`training.fit` trains them, against their own adversary if asked; `train_head` trains what follows a front end that stays.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from isoresponse.models.lca import LCA
from isoresponse.models.training import fit

CHUNK = 256  # images whose codes are found at a time


def mlp(
    shape: tuple[int, ...],
    hidden: tuple[int, ...] = (768,),
    classes: int = 10,
    *,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """An untrained multilayer perceptron for inputs (case, *shape); no `hidden` makes it linear.

    Raises
    ------
    ValueError
        A size below one.

    Examples
    --------
    >>> [type(layer).__name__ for layer in mlp((1, 28, 28))]
    ['Flatten', 'Linear', 'ReLU', 'Linear']
    """
    sizes = (prod(shape), *hidden, classes)
    if min(sizes) < 1:
        raise ValueError(f"mlp needs sizes of at least one, got {sizes}.")
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers[:-1])


def cnn(
    shape: tuple[int, int, int],
    channels: tuple[int, ...] = (16, 32),
    hidden: int = 128,
    classes: int = 10,
    *,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """An untrained convolutional network for images (case, *shape), shape = (channel, height, width).

    Each convolution (4 x 4, stride 2) halves the picture; then `hidden` units and the scores.

    Raises
    ------
    ValueError
        A shape of other axes, a size below one, a picture that is too small to be halved so often.

    Examples
    --------
    >>> import torch
    >>> cnn((1, 28, 28))(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    if len(shape) != 3 or min(*shape, *channels, hidden, classes) < 1:
        raise ValueError(
            f"cnn needs a shape (channel, height, width) and sizes of at least one, got shape={tuple(shape)}, "
            f"channels={tuple(channels)}, hidden={hidden} and classes={classes}."
        )
    height, width = (size >> len(channels) for size in shape[1:])
    if min(height, width) < 1:
        raise ValueError(f"cnn halves pictures {len(channels)} times, too often for {shape}; give fewer channels.")
    layers: list[nn.Module] = []
    for before, after in pairwise((shape[0], *channels)):
        layers += [nn.Conv2d(before, after, 4, 2, 1), activation()]
    flat = (channels[-1] if channels else shape[0]) * height * width
    layers += [nn.Flatten(), nn.Linear(flat, hidden), activation(), nn.Linear(hidden, classes)]
    return nn.Sequential(*layers)


def behind_lca(
    dictionary: Tensor,
    *,
    sparsity: float,
    rectified: bool = True,
    hidden: tuple[int, ...] = (),
    classes: int = 10,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """An LCA with this dictionary (n, units), and an untrained linear read-out or perceptron of its code.

    Layer 0 is the front end, which has no parameters: training the whole leaves it as it is.

    Raises
    ------
    ValueError
        As `LCA` and `mlp`.

    Examples
    --------
    >>> import torch
    >>> [type(layer).__name__ for layer in behind_lca(torch.eye(16, 8), sparsity=0.1)]
    ['LCA', 'Flatten', 'Linear']
    """
    head = mlp((dictionary.shape[1],), hidden, classes, activation=activation)
    return nn.Sequential(LCA(dictionary, sparsity=sparsity, rectified=rectified), *head).to(dictionary.dtype)


@torch.no_grad()
def outputs(front: nn.Module, images: Tensor, *, on_chunk: Callable[[int, int], object] | None = None) -> Tensor:
    """What a front end answers to all images (case, ...), some hundreds at a time, without gradients.

    Parameters
    ----------
    on_chunk
        Called with (images done, images in all).
    """
    found, done = [], 0
    for x in images.split(CHUNK):
        found.append(front(x))
        done += len(x)
        if on_chunk is not None:
            on_chunk(done, len(images))
    return torch.cat(found)


def train_head(net: nn.Sequential, images: Tensor, labels: Tensor, *, front: int = 1, **settings: Any) -> None:
    """None; all of `net` but its first `front` layers is trained in place, as `training.fit` does with these settings.

    The answers of the first layers are computed once, so the epochs cost what the head costs. `augment` and an adversary
    then act on these answers: to train against changes of the image, give the whole network to `fit`.

    Raises
    ------
    ValueError
        A front end that leaves no head, or answers that are not finite, as of a code that did not converge.

    Examples
    --------
    >>> import torch
    >>> x = torch.rand(256, 2, generator=torch.Generator().manual_seed(0))
    >>> net = behind_lca(torch.eye(2), sparsity=0.01, classes=2)
    >>> train_head(net, x, (x[:, 0] > x[:, 1]).long(), epochs=100, rate=0.1)
    >>> float((net(x).argmax(1) == (x[:, 0] > x[:, 1])).float().mean()) > 0.95
    True
    """
    if not 0 < front < len(net):
        raise ValueError(f"train_head needs a front end and a head, got front={front} of {len(net)} layers.")
    answers = outputs(net[:front], images)
    if bad := int((~answers.flatten(1).isfinite()).any(1).sum()):
        raise ValueError(
            f"the front end's answers to {bad} of {len(answers)} images are not finite; leave these images out, or give "
            "the LCA more steps."
        )
    fit(net[front:], answers, labels, **settings)
    net.eval()
