"""What the experiments are made of: whitened natural patches, labelled images, and models trained on them and kept.

Pictures and images come from a folder that the user names; without one, from what scikit-learn brings (two photographs, the
digits), and the results say so. What takes long to train is kept in the cache and goes on where it was interrupted.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import platformdirs
import torch
from torch import Generator, Tensor

from isoresponse.models import digits as zoo
from isoresponse.models.checkpoint import fingerprint
from isoresponse.models.controls import Autoencoder, learn_autoencoder, learn_ica
from isoresponse.models.data import Data, cifar10, load_pictures, mnist
from isoresponse.models.dictionary import learn_dictionary
from isoresponse.models.natural import patches, whiten
from isoresponse.studies.measure import Stage, silent

WHITENED = "olshausen_field_whitened.npz"
PHOTOGRAPHS = "kodak_gray.npz"


@dataclass(frozen=True, eq=False)
class Patches:
    """Whitened patches (case, size, size) in float32, pixels of standard deviation 1; their mean length; their origin."""

    x: Tensor
    norm: float
    name: str

    @classmethod
    def of(cls, x: Tensor, name: str) -> Patches:
        """Patches with their mean length."""
        return cls(x, float(x.flatten(1).norm(dim=1).mean()), name)

    @property
    def size(self) -> int:
        """Pixels along a side."""
        return self.x.shape[-1]


def natural_patches(data: Path | None, size: int, count: int, *, seed: int = 0, device: str = "cpu") -> Patches:
    """Patches of natural pictures that are whitened and have standard deviation 1.

    Parameters
    ----------
    data
        Folder with `olshausen_field_whitened.npz` (taken as it is) or `kodak_gray.npz` (whitened here), in itself or in
        `natural_images/`; or a folder of pictures, which are whitened. None takes scikit-learn's two photographs.

    Raises
    ------
    FileNotFoundError
        A folder that is not there, or has none of them.
    """
    pictures, name = _pictures(data)
    scaled = [p / p.std() for p in pictures]
    return Patches.of(patches(scaled, size, count, generator=Generator().manual_seed(seed)).to(device), name)


def _pictures(data: Path | None) -> tuple[list[Tensor], str]:
    if data is None:
        from sklearn.datasets import load_sample_images  # heavy, and only this needs it

        luma = np.asarray([0.299, 0.587, 0.114])
        grey = [torch.as_tensor(i @ luma, dtype=torch.float32) for i in load_sample_images().images]
        return [whiten(p) for p in grey], "two photographs of scikit-learn, whitened"
    require_folder(data)
    for folder in (data / "natural_images", data):
        if (folder / WHITENED).exists():
            return load_pictures(folder / WHITENED), WHITENED
        if (folder / PHOTOGRAPHS).exists():
            return [whiten(p) for p in load_pictures(folder / PHOTOGRAPHS)], f"{PHOTOGRAPHS}, whitened"
    try:
        return [whiten(p) for p in load_pictures(data)], f"pictures in {data.name}, whitened"
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{data} has neither natural_images/{WHITENED} nor natural_images/{PHOTOGRAPHS} nor pictures; give --data a "
            "folder with one of them, or leave it out for scikit-learn's two photographs."
        ) from None


def labelled_images(data: Path | None, *, seed: int = 0, device: str = "cpu") -> dict[str, Data]:
    """MNIST and grey CIFAR-10, cropped to its middle 28 x 28 pixels, from the folders `mnist` and `cifar10` of `data`.

    Where one of the two is missing the other is taken alone; None takes scikit-learn's digits of 8 x 8 pixels. Training
    images are shuffled.

    Raises
    ------
    FileNotFoundError
        A folder that is not there, or has neither.
    """
    if data is None:
        return {"digits": zoo.digits().to(device)}
    require_folder(data)
    found = {}
    if (data / "mnist").is_dir():
        found["MNIST"] = mnist(data / "mnist")
    if (data / "cifar10").is_dir():
        grey = cifar10(data / "cifar10", grey=True)
        crop = [(images[..., 2:-2, 2:-2].contiguous(), labels) for images, labels in (grey.train, grey.test)]
        found["grey CIFAR-10"] = Data(crop[0], crop[1], grey.name)
    if not found:
        raise FileNotFoundError(
            f"{data} has neither a folder mnist nor a folder cifar10; give --data a folder with one of them, or leave it out "
            "for scikit-learn's digits."
        )
    order = Generator().manual_seed(seed)
    shuffled = {name: Data(_shuffled(d.train, order), _shuffled(d.test, order), d.name) for name, d in found.items()}
    return {name: d.to(device) for name, d in shuffled.items()}


def _shuffled(split: tuple[Tensor, Tensor], generator: Generator) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(split[0]), generator=generator)
    return split[0][order], split[1][order]


def require_folder(data: Path) -> None:
    """Raise FileNotFoundError unless `data` is a folder."""
    if not data.is_dir():
        raise FileNotFoundError(f"no folder {data}; nothing is fetched, give --data the path of one that is there.")


# --- models that are trained once -------------------------------------------------------------------------


def trained_dictionary(
    x: Tensor, units: int, *, sparsity: float, steps: int, seed: int = 0, stage: Stage = silent, batch: int = 256
) -> Tensor:
    """Elements (n, units) for rectified `LCA`, in float64, learnt on patches or images (case, ...)."""
    with stage(f"learn a dictionary of {units}", steps, "step") as on_done:
        learnt = learn_dictionary(
            x, units, sparsity=sparsity, steps=steps, batch=batch, generator=Generator().manual_seed(seed),
            checkpoint=_kept("dictionary", x, units, sparsity, steps, batch, seed), on_step=_counted(on_done),
        )  # fmt: skip
    return learnt.double()


def trained_autoencoder(
    x: Tensor, units: int, *, sparsity: float, steps: int, seed: int = 0, stage: Stage = silent
) -> Autoencoder:
    """A sparse ReLU autoencoder in float64."""
    with stage(f"learn an autoencoder of {units}", steps, "step") as on_done:
        learnt = learn_autoencoder(
            x, units, sparsity=sparsity, steps=steps, generator=Generator().manual_seed(seed),
            checkpoint=_kept("autoencoder", x, units, sparsity, steps, seed), on_step=_counted(on_done),
        )  # fmt: skip
    return learnt.double()


def trained_ica(x: Tensor, units: int, *, steps: int, seed: int = 0, stage: Stage = silent) -> Tensor:
    """Filters (n, units) of linear units whose responses are as sparse as can be, in float64."""
    with stage(f"learn {units} linear units", steps, "step") as on_done:
        learnt = learn_ica(
            x, units, steps=steps, generator=Generator().manual_seed(seed),
            checkpoint=_kept("ica", x, units, steps, seed), on_step=_counted(on_done),
        )  # fmt: skip
    return learnt.double()


def _counted(on_done: Callable[[int], object]) -> Callable[[int, int, float], object]:
    seen = [0]

    def on_step(done: int, _steps: int, _objective: float) -> None:
        on_done(done - seen[0])
        seen[0] = done

    return on_step


def _kept(learner: str, x: Tensor, *settings: float) -> Path | None:
    """The file of a training in the cache; None where there can be no cache, which costs time only."""
    folder = Path(os.environ.get("ISORESPONSE_CACHE") or platformdirs.user_cache_dir("isoresponse")) / "studies"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(folder, os.W_OK):
        return None
    return folder / f"{'-'.join([learner, *(f'{s:g}' for s in settings), fingerprint(x)])}.safetensors"


def units_of(overcompleteness: float, n: int) -> int:
    """Number of units for inputs of n numbers.

    Raises
    ------
    ValueError
        An overcompleteness that is not positive.
    """
    if not 0 < overcompleteness < math.inf:
        raise ValueError(f"overcompleteness must be positive, got {overcompleteness}.")
    return max(1, round(overcompleteness * n))
