"""Training of small classifiers: one loop, which can be interrupted, for any loss of a network, images and labels.

`natural` is the ordinary loss; those that make networks robust are in `models.robustness`. Images hold values in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Generator, Tensor, nn

from isoresponse.models.checkpoint import State, fingerprint, run_steps
from isoresponse.models.digits import Data, _cache_file, _save

Loss = Callable[[nn.Module, Tensor, Tensor, float], Tensor]
WARM_UP = 0.1  # share of the steps in which the learning rate rises from zero


def natural(net: nn.Module, images: Tensor, labels: Tensor, progress: float = 1.0) -> Tensor:
    """Mean cross-entropy of the images as they are."""
    return nn.functional.cross_entropy(net(images), labels)


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
    checkpoint: Path | None = None,
    on_epoch: Callable[[int, int], object] | None = None,
) -> None:
    """None; `net` is trained in place with Adam, its gradients' norm kept below 10, and is in eval mode however it ends.

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
    checkpoint
        File from which to go on where it exists, written after every epoch. A training that was interrupted and resumed ends
        with the same bits, if `loss` draws from a `generator` of its own or not at all.
    on_epoch
        Called with (epochs done, epochs in all).

    Raises
    ------
    ValueError
        Images that are not finite or labels that the network has no class for, of different number or none; numbers out of
        range; a checkpoint that is damaged, of another training or cannot be written; a loss that is no longer finite.

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
    if epochs < 1 or batch < 1 or not (0 < rate < float("inf") and 0 <= hold <= 1):
        raise ValueError(
            f"fit needs epochs and batch of at least one, a positive rate and a hold in [0, 1], got epochs={epochs}, "
            f"batch={batch}, rate={rate}, hold={hold}."
        )
    labels = _classes_of(net, images, labels)
    optimizer = torch.optim.Adam(net.parameters(), rate)
    each = -(-len(images) // batch)

    def epoch(state: State, done: int, generator: Generator) -> tuple[State, float]:
        _restore(state, net, optimizer, loss)
        net.train()
        total = torch.zeros((), device=images.device)
        for step, index in enumerate(torch.randperm(len(images), generator=generator).split(batch), done * each):
            progress = step / (epochs * each)
            optimizer.param_groups[0]["lr"] = rate * min(grown(progress, 0, WARM_UP), 1 - grown(progress, hold, 1))
            x = images[index] if augment is None else augment(images[index], generator)
            value = loss(net, x, labels[index], progress)
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 10.0)
            optimizer.step()
            total += value.detach()
        return _snapshot(net, optimizer, loss), float(total) / each

    settings: dict[str, object] = {
        "learner": "classifier",
        "epochs": epochs,
        "batch": batch,
        "rate": rate,
        "hold": hold,
    }
    if checkpoint is not None:
        settings |= {
            "loss": _named(loss),
            "images": fingerprint(images),
            "labels": fingerprint(labels),
            "net": str(net),
        }
    try:
        done = run_steps(
            lambda _: _snapshot(net, optimizer, loss), epoch, steps=epochs, generator=generator, device=images.device,
            settings=settings, checkpoint=checkpoint, every=1,
            on_step=None if on_epoch is None else lambda done, every, _: on_epoch(done, every),
        )  # fmt: skip
        _restore(done, net, optimizer, loss)
    finally:
        net.eval()


def _snapshot(net: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss) -> State:
    """All that the next epoch depends on, but for the generator of the order."""
    state = {f"net {name}": value.detach().clone() for name, value in net.state_dict().items()}
    for k, parameter in enumerate(net.parameters()):
        moments = optimizer.state.get(parameter, {})
        state |= {f"optimizer {k} {name}": value.clone() for name, value in moments.items()}
    source = getattr(loss, "generator", None)
    return state if source is None else state | {"generator of the loss": source.get_state()}


def _restore(state: State, net: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss) -> None:
    net.load_state_dict({name.removeprefix("net "): v for name, v in state.items() if name.startswith("net ")})
    for k, parameter in enumerate(net.parameters()):
        own = f"optimizer {k} "
        moments = {name.removeprefix(own): v for name, v in state.items() if name.startswith(own)}
        optimizer.state[parameter] = {name: v.cpu() if name == "step" else v for name, v in moments.items()}
    if "generator of the loss" in state:
        loss.generator.set_state(state["generator of the loss"].cpu())  # type: ignore[attr-defined]


def _named(loss: Loss) -> str:
    """What tells a loss from another one: its name, and its settings if it is a dataclass."""
    if not is_dataclass(loss):
        return str(getattr(loss, "__qualname__", type(loss).__qualname__))
    told = [f"{f.name}={getattr(loss, f.name)}" for f in fields(loss) if f.name != "generator"]
    return f"{type(loss).__qualname__}({', '.join(told)})"


def _classes_of(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The labels (case,) as whole numbers, or the reason why a network cannot be trained on them."""
    for what, given in (("images", images), ("labels", labels)):
        if not isinstance(given, Tensor):
            raise TypeError(f"{what} must be a tensor, got {type(given).__name__}; use torch.as_tensor.")
    if len(images) != len(labels) or not len(images) or labels.ndim != 1:
        raise ValueError(
            f"fit needs one label per image, got {len(images)} images and labels of shape {tuple(labels.shape)}."
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be whole numbers, got {labels.dtype}; convert them, e.g. labels.long().")
    own = next((p for p in net.parameters() if p.is_floating_point()), None)
    numbers = images.dtype in (torch.int32, torch.int64)  # of tokens, say, which the network looks up
    if own is not None and (own.device != images.device or not (numbers or own.dtype == images.dtype)):
        raise ValueError(
            f"the images are {images.dtype} on {images.device} but the network's weights are {own.dtype} on {own.device}; "
            "move one to the other."
        )
    if bad := int((~images.isfinite()).flatten(1).any(1).sum()):
        raise ValueError(f"images must be finite, got {bad} of {len(images)} with NaN or infinity; remove them.")
    try:
        with torch.no_grad():
            classes = net.eval()(images[:1]).shape[-1]
    except (RuntimeError, IndexError) as error:
        raise ValueError(f"the network does not take images of shape {tuple(images.shape[1:])}: {error}") from error
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"labels must lie in 0..{classes - 1}, as the network has {classes} classes, got {low}..{high}."
        )
    return labels.long()


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


def grown(progress: float, begin: float, end: float) -> float:
    """0 before `begin`, 1 after `end`, linear in between."""
    return 1.0 if progress >= end else max(0.0, (progress - begin) / (end - begin))
