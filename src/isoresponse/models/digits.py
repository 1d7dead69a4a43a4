"""The built-in examples: a ReLU MLP and a GELU CNN on real scanned digits, trained in seconds, then cached.

`digits-*` use the 1,797 8x8 digits that ship with scikit-learn (Alpaydin and Kaynak 1998), so nothing is
downloaded. `mnist-*` are the same two networks for 28x28 images, from a folder with the four MNIST files.
Training is deterministic for a given seed and leaves the caller's random state alone.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import platformdirs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

TEST_DIGITS = 600
RECIPE = 1  # raised whenever data, networks or training change, so that old caches are not used


@dataclass(frozen=True, eq=False)
class Data:
    """Images (case, 1, height, width) with values in [0, 1] and labels (case,), for training and for testing."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    name: str

    def to(self, device: torch.device | str) -> Data:
        """The same on another device."""
        moved = [(images.to(device), labels.to(device)) for images, labels in (self.train, self.test)]
        return Data(moved[0], moved[1], self.name)


def mlp(side: int = 8, classes: int = 10) -> nn.Sequential:
    """An untrained multilayer perceptron with ReLU: piecewise linear, its exact Hessian is zero."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(side * side, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, classes)
    )


def cnn(side: int = 8, classes: int = 10) -> nn.Sequential:
    """An untrained convolutional network with GELU: smooth, its contours are truly curved."""
    width = 32 * ((side + 1) // 2) ** 2
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.GELU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.GELU(),
        nn.Flatten(), nn.Linear(width, 64), nn.GELU(), nn.Linear(64, classes),
    )  # fmt: skip


NETWORKS: dict[str, Callable[..., nn.Sequential]] = {"mlp": mlp, "cnn": cnn}
BUILT_IN = tuple(f"{data}-{net}" for data in ("digits", "mnist") for net in NETWORKS)


def digits() -> Data:
    """scikit-learn's digits, 1,197 to train and 600 to test, shuffled once with a fixed permutation."""
    from sklearn.datasets import load_digits  # heavy, and only this function needs it

    bunch = load_digits()
    images = torch.as_tensor(bunch.images, dtype=torch.float32)[:, None] / 16
    labels = torch.as_tensor(bunch.target, dtype=torch.int64)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    return Data((images[TEST_DIGITS:], labels[TEST_DIGITS:]), (images[:TEST_DIGITS], labels[:TEST_DIGITS]), "digits")


def mnist(folder: Path) -> Data:
    """MNIST from a folder with its four original files (``*-idx3-ubyte`` / ``*-idx1-ubyte``, gzipped or not).

    Raises
    ------
    FileNotFoundError
        A file is missing; says which.
    ValueError
        A file is not in the idx format.
    """
    parts = []
    for split in ("train", "t10k"):
        images = _read_idx(folder, f"{split}-images-idx3-ubyte", 3)
        labels = _read_idx(folder, f"{split}-labels-idx1-ubyte", 1)
        if len(images) != len(labels):
            raise ValueError(
                f"{folder}: {len(images)} images but {len(labels)} labels in {split}-*; get the files again."
            )
        parts.append(
            (torch.from_numpy(images.astype(np.float32) / 255)[:, None], torch.from_numpy(labels.astype(np.int64)))
        )
    return Data(parts[0], parts[1], "mnist")


def trained(
    name: str,
    data: Data,
    *,
    seed: int = 0,
    on_epoch: Callable[[int, int], object] | None = None,
    cache: Path | None = None,
) -> nn.Sequential:
    """A built-in network trained on `data`, or read from the cache where it was trained before; in eval mode.

    Parameters
    ----------
    name
        "mlp" or "cnn".
    on_epoch
        Called with (epochs done, epochs in all) while training.
    cache
        Folder for the weights; the user's cache folder, or the environment variable ISORESPONSE_CACHE.

    Raises
    ------
    ValueError
        An unknown name.
    """
    if name not in NETWORKS:
        raise ValueError(f"no built-in network {name!r}; there are {', '.join(NETWORKS)}.")
    side = data.train[0].shape[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = NETWORKS[name](side).to(data.train[0].device)
    path = _cache_file(f"{data.name}-{name}", data, seed, cache)
    try:
        net.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError):  # not there, or damaged: train (again)
        _train(net, *data.train, seed, on_epoch)
        _save(net, path)
    return net.eval()


def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images that `net` classifies as labelled; where it answers NaN it does not. ValueError without images."""
    if len(images) != len(labels) or not len(images):
        raise ValueError(f"an accuracy needs one label per image, got {len(images)} images and {len(labels)} labels.")
    with torch.no_grad():
        scores = torch.cat([net(x) for x in images.split(1000)])
    return float(((scores.argmax(1) == labels) & ~scores.isnan().any(1)).double().mean())


def _train(
    net: nn.Module, images: Tensor, labels: Tensor, seed: int, on_epoch: Callable[[int, int], object] | None
) -> None:
    epochs = max(2, round(48_000 / len(images)))
    steps = epochs * -(-len(images) // 64)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    net.train()
    for epoch in range(epochs):
        for batch in torch.randperm(len(images), generator=generator).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
        if on_epoch is not None:
            on_epoch(epoch + 1, epochs)


def _cache_file(name: str, data: Data, seed: int, cache: Path | None) -> Path:
    folder = cache or Path(os.environ.get("ISORESPONSE_CACHE") or platformdirs.user_cache_dir("isoresponse"))
    content = hashlib.sha256(b"".join(t.cpu().numpy().tobytes() for t in data.train)).hexdigest()[:12]
    return folder / f"{name}-recipe{RECIPE}-seed{seed}-{content}.safetensors"


def _save(net: nn.Module, path: Path) -> None:
    """Write beside the target and rename, so that no half-written file is ever read; a full disk is no failure."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            part = Path(folder) / "weights"
            save_file({name: t.cpu() for name, t in net.state_dict().items()}, part)
            part.replace(path)
    except OSError:
        return  # a cache that cannot be written costs seconds, not the run


def _read_idx(folder: Path, name: str, ndim: int) -> np.ndarray:
    for path, opener in ((folder / f"{name}.gz", gzip.open), (folder / name, open)):
        if path.exists():
            try:
                with opener(path, "rb") as file:
                    raw = file.read()
            except (OSError, EOFError, zlib.error) as error:
                raise ValueError(f"{path} cannot be read ({error}); get the file again.") from error
            break
    else:
        raise FileNotFoundError(f"{folder} has no file {name} or {name}.gz; give a folder with the four MNIST files.")
    if len(raw) < 4 + 4 * ndim or raw[:4] != bytes([0, 0, 8, ndim]):
        raise ValueError(f"{folder / name} is not an idx file of unsigned bytes with {ndim} axes.")
    sizes = np.frombuffer(raw, ">u4", ndim, 4)
    if len(raw) - 4 - 4 * ndim != int(np.prod(sizes)):
        raise ValueError(f"{folder / name} is cut short: {len(raw)} bytes for shape {tuple(int(s) for s in sizes)}.")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * ndim).reshape(sizes)
