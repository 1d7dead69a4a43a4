"""Images from the user's own files, as tensors: idx, npz, npy, pictures, folders, and anything with images and labels.

Nothing is fetched. Unsigned bytes, and pictures of 16 bits, become numbers in [0, 1]; other numbers stay as they are. What
is missing, cut short or of another kind is said in one sentence that names the file.
"""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from isoresponse.models.digits import Data, mnist

__all__ = [
    "Data", "Labelled", "cifar10", "from_dataset", "load_folder", "load_images", "load_labels", "load_pictures", "mnist",
]  # fmt: skip

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".webp")
IMAGE_KEYS, LABEL_KEYS = ("images", "image", "inputs", "x"), ("labels", "label", "y")
IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@runtime_checkable
class Labelled(Protocol):
    """What `from_dataset` reads: as many (image, label) pairs as `len` says, as torchvision's data sets have."""

    def __len__(self) -> int:
        """Number of pairs."""
        ...

    def __getitem__(self, index: int) -> Any:
        """The pair (image, label) of one index."""
        ...


def load_images(path: Path, *, key: str | None = None, grey: bool = False) -> Tensor:
    """Images (case, channel, height, width) of one size from an idx, npz or npy file, a picture, or a folder of pictures.

    Parameters
    ----------
    path
        An idx file (gzipped or not), a `.npz` or `.npy` with (case, height, width), (case, channel, height, width) or
        (case, height, width, channel); a picture; a folder, whose pictures are taken in the order of their names. Bytes,
        and pictures of 16 bits, become numbers in [0, 1]; other arrays stay as they are.
    key
        Array of a `.npz`; None takes the first of images, image, inputs, x, or else all arrays, as one picture each.
    grey
        Whether three colours become one luma (ITU-R BT.601).

    Raises
    ------
    FileNotFoundError
        No such file, or a folder without pictures.
    ValueError
        A file that cannot be read or has no images in it, or pictures of several sizes.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/dots.npy", np.full((5, 8, 8), 255, np.uint8))
    ...     images = load_images(Path(folder) / "dots.npy")
    >>> images.shape, float(images.max())
    (torch.Size([5, 1, 8, 8]), 1.0)
    """
    found = _images(Path(path), key)
    sizes = {image.shape for image in found}
    if len(sizes) > 1:
        raise ValueError(
            f"{path} has images of {len(sizes)} shapes, such as {' and '.join(str(tuple(s)) for s in sorted(sizes)[:2])} "
            "(channel, height, width); crop them to one size, or use load_pictures."
        )
    images = torch.stack(found)
    return _luma(images) if grey else images


def load_pictures(path: Path, *, key: str | None = None) -> list[Tensor]:
    """Grey pictures (height, width), of any sizes, from what `load_images` reads; for `natural.whiten` and `natural.patches`.

    Raises
    ------
    FileNotFoundError, ValueError
        As `load_images`, but sizes may differ.
    """
    return [_luma(image)[0] for image in _images(Path(path), key)]


def load_labels(path: Path, *, key: str | None = None) -> Tensor:
    """Labels (case,), integers, from an idx, npz or npy file.

    Parameters
    ----------
    key
        Array of a `.npz`; None takes the first of labels, label, y.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        A file that cannot be read, or has no whole numbers (case,) in it.
    """
    path = Path(path)
    values = _array(path, key, LABEL_KEYS)
    if values.ndim != 1 or values.dtype.kind not in "iu" or not len(values):
        raise ValueError(f"{path} needs whole numbers (case,) as labels, got {values.dtype} {values.shape}.")
    if values.dtype == np.uint64 and values.max() > np.iinfo(np.int64).max:
        raise ValueError(
            f"{path} needs labels that fit into 64 bits with a sign, got {values.max()}; number the classes."
        )
    return torch.from_numpy(values.astype(np.int64))


def load_folder(path: Path, *, grey: bool = False) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Images (case, channel, height, width), labels (case,) and class names from a folder with one folder per class.

    Labels count the classes in the order of their names.

    Raises
    ------
    FileNotFoundError
        No such folder, no folders in it, or one without pictures.
    ValueError
        Pictures that cannot be read or have several sizes.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is no folder; give one that has a folder of pictures for every class.")
    classes = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not classes:
        raise FileNotFoundError(f"{path} has no folders in it; give one that has a folder of pictures for every class.")
    images = [load_images(folder, grey=grey) for folder in classes]
    shapes = {i.shape[1:] for i in images}
    if len(shapes) > 1:
        raise ValueError(
            f"{path}: the classes have images of different shapes, {sorted(map(tuple, shapes))}; crop them."
        )
    labels = torch.arange(len(images)).repeat_interleave(torch.tensor([len(i) for i in images]))
    return torch.cat(images), labels, tuple(folder.name for folder in classes)


def from_dataset(dataset: Labelled, *, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Images (case, channel, height, width) and labels (case,) of a data set of pairs, such as torchvision's.

    Parameters
    ----------
    dataset
        Its images are pictures of PIL, arrays (height, width[, channel]) or tensors ([channel,] height, width), with or
        without a transform; its labels whole numbers.
    limit
        Take only so many, the first ones.

    Raises
    ------
    ValueError
        A data set without pairs, or whose images have several shapes, or whose labels are no whole numbers.

    Examples
    --------
    >>> import torch
    >>> pairs = torch.utils.data.TensorDataset(torch.rand(4, 1, 8, 8), torch.arange(4))
    >>> images, labels = from_dataset(pairs)
    >>> images.shape, labels.tolist()
    (torch.Size([4, 1, 8, 8]), [0, 1, 2, 3])
    """
    count = len(dataset) if limit is None else min(limit, len(dataset))
    if count < 1:
        raise ValueError(f"from_dataset needs at least one pair, got {len(dataset)} with limit={limit}.")
    images: list[Tensor] = []
    labels: list[int] = []
    for index in range(count):
        pair = dataset[index]
        if not isinstance(pair, Sequence) or len(pair) != 2:
            raise ValueError(f"from_dataset needs pairs (image, label), got {type(pair).__name__} at index {index}.")
        image, label = pair
        image = image if isinstance(image, Tensor) else torch.from_numpy(_channels_first(np.array(image)).copy())
        images.append(_unit(image[None] if image.ndim == 2 else image))
        labels.append(_whole(label, index))
    if len(shapes := {i.shape for i in images}) > 1:
        raise ValueError(
            f"from_dataset needs images of one shape, got {len(shapes)}, such as "
            f"{' and '.join(str(tuple(s)) for s in sorted(shapes)[:2])}; give the data set a transform that crops them."
        )
    return torch.stack(images), torch.tensor(labels)


def cifar10(folder: Path, *, grey: bool = False) -> Data:
    """CIFAR-10 (Krizhevsky 2009), images (case, 3, 32, 32), or (case, 1, 32, 32) if `grey`.

    Parameters
    ----------
    folder
        With the binary version, `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`; or with `jpeg_train_*.npz`
        and `jpeg_test.npz`, the images after JPEG as second differences (so accuracies are not comparable with others').
        The Python version is pickled, and running what a pickle says is not done here.

    Raises
    ------
    FileNotFoundError
        A folder without either.
    ValueError
        A file that is damaged.
    """
    folder = Path(folder)
    for pattern, test, read in (
        ("data_batch_?.bin", "test_batch.bin", _cifar_binary),
        ("jpeg_train_*.npz", "jpeg_test.npz", _cifar_differences),
    ):
        train = sorted(folder.glob(pattern))
        if train and (folder / test).exists():
            parts = [read(file) for file in train]
            splits = [(torch.cat([i for i, _ in parts]), torch.cat([y for _, y in parts])), read(folder / test)]
            if grey:
                splits = [(_luma(images), labels) for images, labels in splits]
            return Data(splits[0], splits[1], "cifar10-grey" if grey else "cifar10")
    raise FileNotFoundError(
        f"{folder} has neither data_batch_*.bin with test_batch.bin nor jpeg_train_*.npz with jpeg_test.npz; give a folder "
        "with one of the two."
    )


# ----------------------------------------------------------------------------------------------------------- reading


def _whole(label: Any, index: int) -> int:
    """A label as a whole number, which it has to be already."""
    one = isinstance(label, np.generic) or (isinstance(label, Tensor | np.ndarray) and label.reshape(-1).shape == (1,))
    value = label.item() if one else label
    if not isinstance(value, int | float) or value != value // 1:
        raise ValueError(
            f"from_dataset needs whole numbers as labels, got {label!r} at index {index}; give the data set a target_transform."
        )
    return int(value)


def _images(path: Path, key: str | None) -> list[Tensor]:
    """Every image (channel, height, width) of a path."""
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES)
        if not files:
            raise FileNotFoundError(f"{path} has no pictures ({', '.join(PICTURES)}) in it.")
        return [_unit(_channels_first(_picture(file))) for file in files]
    if path.suffix.lower() in PICTURES:
        return [_unit(_channels_first(_picture(path)))]
    if path.suffix == ".npz" and key is None and not set(IMAGE_KEYS) & (stored := _npz(path)).keys():
        if not stored or any(a.ndim not in (2, 3) for a in stored.values()):
            raise ValueError(
                f"{path} has none of {', '.join(IMAGE_KEYS)}, and its arrays are not one picture each "
                f"({', '.join(stored)}); name the array with key."
            )
        return [_unit(_channels_first(array)) for array in stored.values()]
    array = _array(path, key, IMAGE_KEYS)
    if array.ndim not in (3, 4) or array.dtype.kind not in "uif" or 0 in array.shape:
        raise ValueError(
            f"{path} needs images (case, height, width) or with a channel, got {array.dtype} {array.shape}."
        )
    last = array.ndim == 4 and array.shape[3] in (1, 3, 4) and array.shape[1] not in (1, 3, 4)
    array = array.transpose(0, 3, 1, 2) if last else array[:, None] if array.ndim == 3 else array
    return list(_unit(array))


def _array(path: Path, key: str | None, usual: tuple[str, ...]) -> np.ndarray:
    """The array of a file, by its suffix; anything else than npz and npy is taken as idx."""
    if path.suffix == ".npz":
        stored = _npz(path)
        name = key or next((k for k in usual if k in stored), None)
        if name not in stored:
            raise ValueError(f"{path} has no array {key or ' or '.join(usual)}; it has {', '.join(stored)}.")
        return stored[name]
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; nothing is fetched, give the path of one that is there.")
    if path.suffix == ".npy":
        try:
            return _native(np.load(path, allow_pickle=False))
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{path} cannot be read ({error}); get the file again.") from error
    return _idx(path)


def _npz(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; nothing is fetched, give the path of one that is there.")
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: _native(stored[name]) for name in stored.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as .npz ({error}); get the file again.") from error


def _native(array: np.ndarray) -> np.ndarray:
    """The array in the machine's byte order, which is the one that torch knows."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _idx(path: Path) -> np.ndarray:
    """An idx file of any of its types, in the machine's byte order."""
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error}); get the file again.") from error
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in IDX_TYPES or len(raw) < 4 + 4 * raw[3]:
        raise ValueError(f"{path} is not an idx file, nor .npz, .npy or a picture by its name; give one of these.")
    kind, sizes = np.dtype(IDX_TYPES[raw[2]]), np.frombuffer(raw, ">u4", raw[3], 4)
    if len(raw) != 4 + 4 * raw[3] + kind.itemsize * int(np.prod(sizes, dtype=np.int64)):
        raise ValueError(
            f"{path} is cut short or too long: {len(raw)} bytes for shape {tuple(sizes.tolist())}; get it again."
        )
    return np.frombuffer(raw, kind, offset=4 + 4 * raw[3]).reshape(sizes).astype(kind.newbyteorder("="))


def _picture(path: Path) -> np.ndarray:
    """A picture's pixels (height, width) or (height, width, 3): bytes, or what a deeper picture of one channel holds."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; nothing is fetched, give the path of one that is there.")
    try:
        from PIL import Image, UnidentifiedImageError  # only pictures need it
    except ImportError as error:
        raise ImportError("reading pictures needs Pillow: pip install pillow, or convert them to .npz.") from error
    try:
        with Image.open(path) as picture:
            if picture.mode.startswith("I;16"):  # Pillow's conversion would cut them off at 255
                return np.array(picture, np.float32) / 65535
            kept = picture.mode in ("L", "RGB", "I", "F")
            return np.array(picture if kept else picture.convert("L" if picture.mode in ("1", "LA") else "RGB"))
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a picture ({error}); get the file again or remove it.") from error


def _channels_first(array: np.ndarray) -> np.ndarray:
    """(channel, height, width) of an array (height, width[, channel])."""
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _unit(array: np.ndarray | Tensor) -> Tensor:
    """Bytes over 255, other whole numbers as float32, floating-point numbers as they are."""
    values = torch.from_numpy(array.copy()) if isinstance(array, np.ndarray) else array
    if values.dtype == torch.uint8:
        return values.float() / 255
    return values if values.is_floating_point() else values.float()


def _luma(images: Tensor) -> Tensor:
    """One channel (..., 1, height, width) of one or of three."""
    if images.shape[-3] == 1:
        return images
    if images.shape[-3] != 3:
        raise ValueError(f"grey values need one or three channels, got {images.shape[-3]}.")
    weight = torch.tensor(LUMA, dtype=images.dtype, device=images.device)
    return (images * weight[:, None, None]).sum(-3, keepdim=True)


def _cifar_binary(path: Path) -> tuple[Tensor, Tensor]:
    raw = np.fromfile(path, np.uint8)
    if not len(raw) or len(raw) % 3073 or raw[::3073].max() > 9:
        wrong = "a label above 9" if len(raw) and not len(raw) % 3073 else f"{len(raw)} bytes, not 3073 per image"
        raise ValueError(f"{path} is not a binary CIFAR-10 batch: {wrong}; get it again.")
    rows = raw.reshape(-1, 3073)
    return _unit(rows[:, 1:].reshape(-1, 3, 32, 32)), torch.from_numpy(rows[:, 0].astype(np.int64))


def _cifar_differences(path: Path) -> tuple[Tensor, Tensor]:
    stored = _npz(path)
    if not {"delta", "label"} <= stored.keys():
        raise ValueError(f"{path} needs the arrays delta and label, got {', '.join(stored)}; get the file again.")
    x = np.cumsum(np.cumsum(stored["delta"], 2, dtype=np.uint8), 3, dtype=np.uint8)
    x[:, 0] += x[:, 1]
    x[:, 2] += x[:, 1]
    return _unit(x), torch.from_numpy(stored["label"].astype(np.int64))
