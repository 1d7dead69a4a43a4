"""Loaders: every kind of file gives the same images, the real ones are what they are, and broken ones are named."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from isoresponse.models import data as loaders
from isoresponse.models import digits
from isoresponse.models.natural import patches, whiten

DATA = Path(os.environ.get("ISORESPONSE_DATA") or Path(__file__).parents[2] / "shared" / "data")


def shared(*parts):
    path = DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no {path}: these data sets are not part of the repository (issue 5); ISORESPONSE_DATA says where")
    return path


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (5, 6, 7), dtype=np.uint8)


def idx(array, code=0x08):
    kind = loaders.IDX_TYPES[code]
    return bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(kind).tobytes()


# --- one truth, many files


def write_idx(folder, pixels):
    (folder / "some-idx3-ubyte").write_bytes(idx(pixels))
    return folder / "some-idx3-ubyte"


def write_idx_gz(folder, pixels):
    (folder / "some.gz").write_bytes(gzip.compress(idx(pixels)))
    return folder / "some.gz"


def write_npz(folder, pixels):
    np.savez(folder / "some.npz", images=pixels, labels=np.arange(5))
    return folder / "some.npz"


def write_npz_last(folder, pixels):
    np.savez_compressed(folder / "some.npz", inputs=pixels[..., None])
    return folder / "some.npz"


def write_npz_apart(folder, pixels):
    np.savez(folder / "some.npz", **{f"picture{k}": p for k, p in enumerate(pixels)})
    return folder / "some.npz"


def write_npy(folder, pixels):
    np.save(folder / "some.npy", pixels)
    return folder / "some.npy"


def write_folder(folder, pixels):
    for k, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{k}.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.mark.parametrize(
    "write", [write_idx, write_idx_gz, write_npz, write_npz_last, write_npz_apart, write_npy, write_folder]
)
def test_every_kind_of_file_gives_the_same_images(tmp_path, pixels, write):
    images = loaders.load_images(write(tmp_path, pixels))
    torch.testing.assert_close(images, torch.from_numpy(pixels).float()[:, None] / 255, rtol=0, atol=0)
    pictures = loaders.load_pictures(write(tmp_path, pixels))
    assert all(torch.equal(p, i[0]) for p, i in zip(pictures, images, strict=True))


def test_colours_and_their_luma(tmp_path):
    rgb = np.random.default_rng(1).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    image = loaders.load_images(tmp_path / "a.png")
    assert image.shape == (1, 3, 6, 5)
    torch.testing.assert_close(image[0], torch.from_numpy(rgb).permute(2, 0, 1) / 255)
    luma = torch.from_numpy(np.array(Image.fromarray(rgb).convert("L"))) / 255
    torch.testing.assert_close(loaders.load_images(tmp_path, grey=True)[0, 0], luma, rtol=0, atol=1.01 / 255)
    torch.testing.assert_close(loaders.load_pictures(tmp_path)[0], luma, rtol=0, atol=1.01 / 255)


def test_deep_pictures_are_not_cut_off(tmp_path):
    """Sixteen bits, floating point, two values, grey with transparency: one channel each, with its own range."""
    deep = np.arange(0, 65536, 4369, dtype=np.uint16)[:15].reshape(3, 5)
    smooth = np.linspace(-2, 700, 15).reshape(3, 5).astype(np.float32)
    kinds = {
        "deep.png": (Image.fromarray(deep), deep / 65535),
        "smooth.tif": (Image.fromarray(smooth), smooth),
        "two.png": (Image.fromarray(deep > 30_000), deep > 30_000),
        "clear.png": (Image.fromarray((deep >> 8).astype(np.uint8)).convert("LA"), (deep >> 8) / 255),
    }
    for name, (picture, expected) in kinds.items():
        picture.save(tmp_path / name)
        found = loaders.load_images(tmp_path / name)
        torch.testing.assert_close(found[0, 0], torch.from_numpy(np.asarray(expected, np.float32)))
        assert found.shape == (1, 1, 3, 5)


def test_grey_needs_one_or_three_channels(tmp_path, pixels):
    np.save(tmp_path / "two.npy", np.stack([pixels, pixels], 1))
    assert loaders.load_images(tmp_path / "two.npy").shape == (5, 2, 6, 7)
    with pytest.raises(ValueError, match="grey values need one or three channels, got 2"):
        loaders.load_images(tmp_path / "two.npy", grey=True)


@pytest.mark.parametrize("code", [0x08, 0x09, 0x0B, 0x0C])
def test_labels_of_every_whole_type(tmp_path, code):
    (tmp_path / "labels").write_bytes(idx(np.array([3, 1, 4, 1, 5]), code))
    labels = loaders.load_labels(tmp_path / "labels")
    assert (labels.tolist(), labels.dtype) == ([3, 1, 4, 1, 5], torch.int64)


@pytest.mark.parametrize(("code", "dtype"), [(0x0D, torch.float32), (0x0E, torch.float64)])
def test_floating_point_numbers_stay_as_they_are(tmp_path, code, dtype):
    values = np.linspace(-3, 7, 24).reshape(2, 3, 4).astype(np.float32)
    (tmp_path / "values").write_bytes(idx(values, code))
    images = loaders.load_images(tmp_path / "values")
    assert images.dtype == dtype
    assert np.array_equal(images[:, 0].numpy(), values)


def test_an_array_is_named(tmp_path, pixels):
    np.savez(tmp_path / "a.npz", left=pixels, right=255 - pixels, x=pixels, y=np.arange(5))
    path = tmp_path / "a.npz"
    torch.testing.assert_close(loaders.load_images(path, key="left") + loaders.load_images(path, key="right"),
                               torch.ones(5, 1, 6, 7))  # fmt: skip
    assert loaders.load_labels(path).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="has no array middle; it has left, right, x, y"):
        loaders.load_images(path, key="middle")


def test_a_folder_per_class(tmp_path, pixels):
    for name, chosen in (("dogs", pixels[:2]), ("cats", pixels[2:])):
        (tmp_path / name).mkdir()
        write_folder(tmp_path / name, chosen)
    images, labels, classes = loaders.load_folder(tmp_path)
    assert (labels.tolist(), classes) == ([0, 0, 0, 1, 1], ("cats", "dogs"))
    torch.testing.assert_close(images[3:, 0], torch.from_numpy(pixels[:2]).float() / 255)
    Image.fromarray(pixels[0, :3]).save(tmp_path / "cats" / "9.png")
    with pytest.raises(ValueError, match="has images of 2 shapes"):
        loaders.load_folder(tmp_path)
    (tmp_path / "cats" / "9.png").unlink()
    for name in ("0", "1"):
        Image.fromarray(pixels[0, :3]).save(tmp_path / "dogs" / f"{name}.png")
    with pytest.raises(ValueError, match="classes have images of different shapes"):
        loaders.load_folder(tmp_path)


# --- data sets of pairs


class Pairs:
    """As torchvision has them: length, items, and whatever kind of image the transform leaves."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def to_tensor(picture):
    return torch.from_numpy(picture).float()[None] / 255


@pytest.mark.parametrize("kind", [Image.fromarray, np.asarray, to_tensor, torch.from_numpy])
def test_pairs_of_any_kind_of_image(pixels, kind):
    images, labels = loaders.from_dataset(Pairs([(kind(p), k % 3) for k, p in enumerate(pixels)]))
    torch.testing.assert_close(images, torch.from_numpy(pixels).float()[:, None] / 255)
    assert labels.tolist() == [0, 1, 2, 0, 1]
    assert len(loaders.from_dataset(Pairs([(kind(p), 0) for p in pixels]), limit=2)[0]) == 2


def test_a_data_set_of_torchvision_works_as_it_is():
    datasets = pytest.importorskip("torchvision.datasets", reason="torchvision is not installed")
    images, labels = loaders.from_dataset(datasets.FakeData(7, (3, 8, 9), 4), limit=5)
    assert images.shape == (5, 3, 8, 9)
    assert images.min() >= 0.0
    assert 0.9 < images.max() <= 1.0
    assert labels.dtype == torch.int64


def test_pairs_that_are_none(pixels):
    with pytest.raises(ValueError, match="at least one pair, got 0"):
        loaders.from_dataset(Pairs([]))
    with pytest.raises(ValueError, match=r"pairs \(image, label\), got ndarray at index 0"):
        loaders.from_dataset(Pairs([pixels[0]]))
    with pytest.raises(ValueError, match="images of one shape, got 2"):
        loaders.from_dataset(Pairs([(pixels[0], 1), (pixels[1, :4], 2)]))


# --- what is missing or broken


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.png", "a-idx3-ubyte", "a.gz"])
def test_a_missing_file_is_named_and_nothing_fetched(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=f"no file .*{name}; nothing is fetched"):
        loaders.load_images(tmp_path / name)


@pytest.mark.parametrize("write", [write_idx_gz, write_npz, write_npy])
def test_a_file_cut_short_is_named(tmp_path, pixels, write):
    path = write(tmp_path, pixels)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=f"{path.name} cannot be read.*get the file again"):
        loaders.load_images(path)


def test_an_idx_file_of_another_length_is_named(tmp_path, pixels):
    path = write_idx(tmp_path, pixels)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"cut short or too long: 225 bytes for shape \(5, 6, 7\)"):
        loaders.load_images(path)
    path.write_bytes(b"some text")
    with pytest.raises(ValueError, match=r"is not an idx file, nor .npz, .npy or a picture by its name"):
        loaders.load_images(path)


def test_a_broken_picture_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG no more")
    with pytest.raises(ValueError, match=r"a.png cannot be read as a picture"):
        loaders.load_images(tmp_path)


def test_what_holds_no_images_or_labels_is_refused(tmp_path, pixels):
    with pytest.raises(FileNotFoundError, match="has no pictures"):
        loaders.load_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="has no folders in it"):
        loaders.load_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        loaders.load_folder(tmp_path / "none")
    np.savez(tmp_path / "a.npz", images=pixels[0], labels=pixels, other=np.arange(3))
    with pytest.raises(ValueError, match=r"needs images \(case, height, width\).* got uint8 \(6, 7\)"):
        loaders.load_images(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"needs whole numbers \(case,\) as labels, got uint8 \(5, 6, 7\)"):
        loaders.load_labels(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", first=pixels[0], second=np.arange(3))
    with pytest.raises(ValueError, match=r"not one picture each .*name the array with key"):
        loaders.load_images(tmp_path / "b.npz")
    with pytest.raises(ValueError, match="has no array labels or label or y; it has first, second"):
        loaders.load_labels(tmp_path / "b.npz")
    np.save(tmp_path / "c.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"c.npy cannot be read"):
        loaders.load_images(tmp_path / "c.npy")


# --- CIFAR-10


def test_the_binary_version_of_cifar10(tmp_path):
    rows = np.random.default_rng(2).integers(0, 256, (6, 3073), dtype=np.uint8)
    rows[:, 0] %= 10
    for k in (1, 2):
        rows[3 * k - 3 : 3 * k].tofile(tmp_path / f"data_batch_{k}.bin")
    with pytest.raises(FileNotFoundError, match="has neither data_batch"):
        loaders.cifar10(tmp_path)
    rows[:1].tofile(tmp_path / "test_batch.bin")
    found = loaders.cifar10(tmp_path)
    assert found.train[1].tolist() == rows[:, 0].tolist()
    torch.testing.assert_close(found.train[0].flatten(1), torch.from_numpy(rows[:, 1:]) / 255)
    assert (found.test[0].shape, found.name) == ((1, 3, 32, 32), "cifar10")
    (tmp_path / "data_batch_2.bin").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"data_batch_2.bin is not a binary CIFAR-10 batch: 5 bytes"):
        loaders.cifar10(tmp_path)


def test_the_real_cifar10_in_grey(tmp_path):
    for name in ("jpeg_train_0.npz", "jpeg_test.npz"):
        (tmp_path / name).symlink_to(shared("cifar10", name).resolve())
    found = loaders.cifar10(tmp_path, grey=True)
    assert found.train[0].shape == (10_000, 1, 32, 32)
    assert found.train[1].bincount().tolist() == [1005, 974, 1032, 1016, 999, 937, 1030, 1001, 1025, 981]
    assert found.test[1].bincount().tolist() == [1000] * 10
    assert float(found.train[0].mean()) == pytest.approx(0.299 * 0.4913 + 0.587 * 0.4821 + 0.114 * 0.4465, abs=3e-3)
    assert isinstance(found, digits.Data)


def test_the_real_mnist_is_read_alike():
    folder = shared("mnist")
    images = loaders.load_images(folder / "t10k-images-idx3-ubyte.gz")
    labels = loaders.load_labels(folder / "t10k-labels-idx1-ubyte.gz")
    assert (images.shape, labels[:4].tolist()) == ((10_000, 1, 28, 28), [7, 2, 1, 0])
    assert labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


# --- patches and whitening


def test_patches_are_pieces_of_the_pictures():
    """Pixels that tell where they are from: row, column and picture can be read off each patch."""
    pictures = [
        (torch.arange(h)[:, None] * 100 + torch.arange(w)).double() + 1e6 * k
        for k, (h, w) in enumerate([(9, 20), (30, 12)])
    ]
    found = patches(pictures, 5, 4000, centered=False)
    owner, within = found[:, 0, 0].div(1e6, rounding_mode="floor"), found[:, 0, 0] % 1e6
    row, column = within // 100, within % 100
    expected = within[:, None, None] + 1e6 * owner[:, None, None]
    expected = expected + (torch.arange(5)[:, None] * 100 + torch.arange(5)).double()
    assert torch.equal(found, expected)
    for k, (rows, columns) in enumerate([(5, 16), (26, 8)]):  # every position is as likely as any other
        count = (row * columns + column)[owner == k].long().bincount(minlength=rows * columns).double()
        assert len(count) == rows * columns
        assert count.mean() == pytest.approx(4000 / (5 * 16 + 26 * 8), rel=0.15)
        assert count.var() == pytest.approx(count.mean(), rel=0.5)  # Poisson


def test_patches_are_centered_repeatable_and_vary(generator):
    pictures = torch.rand(2, 16, 16, generator=generator)
    pictures[0] = 0.5
    found = patches(pictures, 4, 50, least=0.1)
    torch.testing.assert_close(found.mean((1, 2)), torch.zeros(50))
    assert (found.flatten(1).std(dim=1, correction=0) > 0.1).all()
    assert torch.equal(found, patches(pictures, 4, 50, least=0.1, generator=torch.Generator().manual_seed(0)))
    assert not torch.equal(found, patches(pictures, 4, 50, least=0.1, generator=torch.Generator().manual_seed(1)))
    with pytest.raises(ValueError, match=r"found only 0 of .* above least=10"):
        patches(pictures, 4, 50, least=10.0)
    with pytest.raises(ValueError, match=r"at least 17 x 17 .* got 5 of \[\(16, 16\), \(16, 16\)\]"):
        patches(pictures, 17, 5)


def test_whitening_multiplies_each_grating_by_its_factor():
    row, column = torch.meshgrid(torch.arange(64).double(), torch.arange(48).double(), indexing="ij")

    def grating(k, m, phase):
        return torch.cos(2 * torch.pi * (k * row / 64 + m * column / 48) + phase)

    low, high = grating(3, 2, 0.3), grating(11, -9, 1.1)
    found = whiten(5 + 2 * low + 0.5 * high, cutoff=0.3)
    factor = [f * np.exp(-((f / 0.3) ** 4)) for f in (np.hypot(3 / 64, 2 / 48), np.hypot(11 / 64, 9 / 48))]
    expected = 2 * factor[0] * low + 0.5 * factor[1] * high
    torch.testing.assert_close(found, expected / expected.std(correction=0), rtol=0, atol=1e-12)


def test_whitening_flattens_the_spectrum_of_photographs():
    """The amplitude of natural pictures falls as 1 / f; afterwards it is level, as Olshausen & Field's pictures are."""
    with np.load(shared("natural_images", "kodak_gray.npz")) as stored:
        pictures = [torch.from_numpy(stored[f"kodim{k}"][:512, :512].astype(np.float32)) for k in (13, 14, 16, 23)]

    def fall(picture):
        power = torch.fft.fft2(picture - picture.mean()).abs().square()
        rows, columns = (torch.fft.fftfreq(n) * 512 for n in picture.shape)
        f = torch.hypot(rows[:, None], columns[None, :])
        ring = [float(power[(f >= a) & (f < 1.3 * a)].mean().log()) for a in (10, 80)]
        return (ring[0] - ring[1]) / np.log(8)

    assert min(fall(p) for p in pictures) > 1.3
    assert max(abs(fall(whiten(p)) - fall(p) + 2) for p in pictures) < 0.15
    assert np.mean([fall(whiten(p)) for p in pictures]) == pytest.approx(0, abs=0.6)


def test_what_cannot_be_whitened_is_refused():
    with pytest.raises(ValueError, match=r"one picture \(height, width\) of finite"):
        whiten(torch.zeros(2, 8, 8))
    with pytest.raises(ValueError, match="one picture"):
        whiten(torch.full((8, 8), torch.nan))
    with pytest.raises(ValueError, match="a picture that varies, got a constant one"):
        whiten(torch.full((8, 8), 3.0))
    with pytest.raises(ValueError, match=r"positive cutoff and deviation, got 0.0 and 1.0"):
        whiten(torch.eye(8), cutoff=0.0)


def test_arrays_of_another_byte_order_are_read(tmp_path):
    images = np.arange(32, dtype=">f4").reshape(2, 4, 4) / 32
    np.save(tmp_path / "a.npy", images)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(2, dtype=">i8"))
    for name in ("a.npy", "a.npz"):
        assert torch.equal(loaders.load_images(tmp_path / name)[:, 0], torch.from_numpy(images.astype("f4")))
    assert loaders.load_labels(tmp_path / "a.npz").tolist() == [0, 1]


@pytest.mark.parametrize("label", [0.5, "a", None, torch.tensor([0, 1]), float("nan")])
def test_labels_of_pairs_are_whole_numbers(label):
    with pytest.raises(ValueError, match=r"from_dataset needs whole numbers as labels, got .* at index 1"):
        loaders.from_dataset([(torch.zeros(1, 4, 4), 0), (torch.zeros(1, 4, 4), label)])
    for whole in (1, 1.0, np.int64(1), torch.tensor(1), torch.tensor([1])):
        assert loaders.from_dataset([(torch.zeros(1, 4, 4), whole)])[1].tolist() == [1]


def test_labels_that_are_none_or_too_large_are_refused(tmp_path):
    for name, values, message in (
        ("none", np.zeros(0, np.int64), "needs whole numbers"),
        ("large", np.array([2**63], np.uint64), "fit into 64 bits"),
    ):
        np.save(tmp_path / f"{name}.npy", values)
        with pytest.raises(ValueError, match=message):
            loaders.load_labels(tmp_path / f"{name}.npy")
