"""What is studied: a model and labelled inputs for it, from a built-in name, a module path or a file.

Everything that can be wrong with a user's model or data file is said here, in one sentence, before anything
is computed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isoresponse.classifier import Classifier
from isoresponse.models import digits as zoo
from isoresponse.neuron import Box

INPUT_NAMES, LABEL_NAMES = ("inputs", "images", "x"), ("labels", "label", "y")


@dataclass(frozen=True, eq=False)
class Subject:
    """A classifier with labelled inputs inside its box."""

    classifier: Classifier
    module: nn.Module
    images: Tensor
    labels: Tensor
    model_name: str
    data_name: str


def load_subject(
    model: str,
    *,
    inputs: Path | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
    device: str = "cpu",
    on_epoch: Callable[[int, int], object] | None = None,
) -> Subject:
    """The model named `model` with its inputs, on `device`, ready to be measured.

    Parameters
    ----------
    model
        ``digits-mlp``, ``digits-cnn``, ``mnist-mlp``, ``mnist-cnn``, ``package.module:name`` or ``file.py:name``, where
        the name is an `nn.Module` or a function without arguments that returns one.
    inputs
        ``.npz`` with arrays ``inputs`` (or ``images``, ``x``) and ``labels`` (or ``label``, ``y``), or a folder with the four
        MNIST files. Unsigned bytes 0..255 are mapped onto `bounds`, other numbers taken as they are, in the model's
        dtype. The built-in digits bring their own.
    bounds
        Allowed range of every input element.
    seed
        For training a built-in model.

    Raises
    ------
    ValueError, TypeError, OSError
        Whatever does not fit, in one sentence.
    """
    where = device_named(device)
    if not -float("inf") < bounds[0] < bounds[1] < float("inf"):
        raise ValueError(
            f"bounds must be two increasing finite numbers, got {bounds[0]} and {bounds[1]}; where inputs have no bounds, give "
            "ones that they never reach."
        )
    if model in zoo.BUILT_IN:
        module, images, labels, data_name = _built_in(model, inputs, bounds, seed, on_epoch)
    else:
        if inputs is None:
            raise ValueError(f"model {model!r} needs data: give --inputs FILE.npz with arrays 'inputs' and 'labels'.")
        module = load_module(model)
        images, labels = _read_inputs(inputs, bounds)
        data_name = inputs.name
    parameter = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(()))
    module = module.to(where)
    images = images.to(where, parameter.dtype)
    classifier = Classifier.of(module, shape=tuple(images.shape[1:]), box=Box(*bounds), name=model)
    labels = labels.to(where)
    try:
        classifier.require_labelled(images, labels)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{data_name}: {str(error).replace('x must', 'the inputs must')} (--bounds sets the box.)"
        ) from error
    return Subject(classifier, module, images, labels, model, data_name)


def load_module(spec: str) -> nn.Module:
    """The `nn.Module` that ``package.module:name``, ``file.py:name`` or a built-in name stands for.

    Raises
    ------
    ValueError
        A spec of another form, a module that fails to import, a missing name, something that is no model.
    """
    if spec in zoo.BUILT_IN:
        return zoo.NETWORKS[spec.split("-")[1]](8 if spec.startswith("digits") else 28)
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        known = ", ".join(zoo.BUILT_IN)
        raise ValueError(f"no model {spec!r}: expected one of {known}, or package.module:name, or file.py:name.")
    module = _import_file(Path(place)) if place.endswith(".py") else _import_package(place)
    if not name.isidentifier() or name not in vars(module):
        raise ValueError(
            f"{place} has no {name!r}; it has {', '.join(n for n in vars(module) if not n.startswith('_'))}."
        )
    made = vars(module)[name]
    if not isinstance(made, nn.Module):
        if not callable(made):
            raise ValueError(
                f"{spec} is a {type(made).__name__}; expected a torch.nn.Module or a function that returns one."
            )
        try:
            made = made()
        except (Exception, SystemExit) as error:
            raise ValueError(f"calling {spec} without arguments failed: {type(error).__name__}: {error}") from error
    if not isinstance(made, nn.Module):
        raise ValueError(f"{spec} returned a {type(made).__name__}; expected a torch.nn.Module.")
    return made


def _built_in(
    model: str,
    inputs: Path | None,
    bounds: tuple[float, float],
    seed: int,
    on_epoch: Callable[[int, int], object] | None,
) -> tuple[nn.Module, Tensor, Tensor, str]:
    family, network = model.split("-")
    if family == "mnist":
        if inputs is None or not inputs.is_dir():
            raise ValueError(
                f"model {model!r} trains on MNIST: give --inputs FOLDER with the four MNIST files, got {inputs}."
            )
        data = zoo.mnist(inputs)
        return zoo.trained(network, data, seed=seed, on_epoch=on_epoch), *data.test, data.name
    data = zoo.digits()
    images, labels, name = *data.test, data.name
    if inputs is not None:
        images, labels = _read_inputs(inputs, bounds)
        name = inputs.name
        if images.shape[1:] != data.test[0].shape[1:]:
            raise ValueError(
                f"model {model!r} takes inputs of shape (1, 8, 8), but {inputs} holds {tuple(images.shape[1:])}; for MNIST "
                "use --model mnist-mlp or mnist-cnn with --inputs FOLDER, otherwise your own model."
            )
    return zoo.trained(network, data, seed=seed, on_epoch=on_epoch), images, labels, name


def _read_inputs(path: Path, bounds: tuple[float, float]) -> tuple[Tensor, Tensor]:
    if path.is_dir():
        return zoo.mnist(path).test
    arrays = read_arrays(path)
    images, labels = _pick(arrays, INPUT_NAMES, path), _pick(arrays, LABEL_NAMES, path)
    if images.ndim < 2 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{path}: expected inputs (case, ...) and labels (case,), got shapes {images.shape} and {labels.shape}."
        )
    if np.issubdtype(labels.dtype, np.floating) and (labels == np.round(labels)).all():
        labels = labels.astype(np.int64)
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{path}: labels must be integers, got {labels.dtype}.")
    if images.dtype == np.uint8:
        images = images.astype(np.float32) / 255 * (bounds[1] - bounds[0]) + bounds[0]
    elif np.issubdtype(images.dtype, np.integer) or images.dtype == np.bool_:
        images = images.astype(np.float32)
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"{path}: inputs must be numbers, got {images.dtype}.")
    kind = np.float32 if images.dtype.itemsize <= 4 else np.float64  # native byte order, a kind that torch knows
    return torch.from_numpy(np.ascontiguousarray(images, dtype=kind)), torch.from_numpy(labels.astype(np.int64))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file by name; pickled objects are refused.

    Raises
    ------
    FileNotFoundError, ValueError
        No such file, or one that is no (complete) ``.npz``.
    """
    if not path.exists():
        raise FileNotFoundError(f"no file {path}; expected an .npz file of named arrays, as numpy.savez writes.")
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise ValueError("it holds a single array without a name")
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is not an .npz file that can be read ({error}); save it with numpy.savez.") from error


def _pick(arrays: dict[str, np.ndarray], names: tuple[str, ...], path: Path) -> np.ndarray:
    for name in names:
        if name in arrays:
            return arrays[name]
    raise ValueError(
        f"{path} has no array {names[0]!r} (or {', '.join(names[1:])}); it has {', '.join(arrays) or 'none'}."
    )


def device_named(name: str) -> torch.device:
    """The device `cpu` or `cuda`, with convolutions in full precision.

    Raises ValueError for another name, or where torch sees no such device.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' was asked for but torch sees no CUDA device; use --device cpu.")
    if name not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, got {name!r}.")
    torch.backends.cudnn.allow_tf32 = False  # else convolutions drop 13 of a float32's 24 bits, which differences need
    return torch.device(name)


@contextmanager
def _importable_from(folder: Path) -> Iterator[None]:
    """A model's own folder on the import path while it is loaded, as when Python runs a script there."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _import_package(name: str) -> Any:
    try:
        with _importable_from(Path.cwd()):
            return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"could not import {name!r}: {type(error).__name__}: {error}; is it installed in this environment?"
        ) from error


def _import_file(path: Path) -> Any:
    if not path.exists():
        raise FileNotFoundError(f"no file {path}; --model file.py:name takes a path to a Python file.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} cannot be imported as Python.")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    try:
        with _importable_from(path.resolve().parent):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path} failed to run: {type(error).__name__}: {error}") from error
    return module
