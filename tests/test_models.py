"""The built-in models: reproducible training, an honest cache, idx files, a landscape with exact derivatives."""

import gzip
import re

import numpy as np
import pytest
import scipy.ndimage
import torch
from analytic import bending, normal, uniform

from isoresponse.geometry import principal_curvatures
from isoresponse.jets import exact_jet
from isoresponse.models import digits as zoo
from isoresponse.models.basic import OutwardBent, Straight
from isoresponse.models.elevation import ElevationMap
from isoresponse.neuron import Neuron


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# --- digits


def test_digits_are_real_scans_in_the_unit_box(digits):
    assert digits.train[0].shape == (1197, 1, 8, 8)
    assert digits.test[0].shape == (600, 1, 8, 8)
    assert float(digits.train[0].min()) == 0.0
    assert float(digits.train[0].max()) == 1.0
    assert digits.test[1].bincount().min() > 40


@pytest.fixture
def few(digits):
    return zoo.Data((digits.train[0][:300], digits.train[1][:300]), digits.test, "few")


def test_training_is_reproducible_from_its_seed_and_cached(few, tmp_path):
    epochs = []
    first = zoo.trained(
        "mlp", few, seed=5, cache=tmp_path / "a", on_epoch=lambda done, total: epochs.append((done, total))
    )
    assert epochs == [(i + 1, 160) for i in range(160)]
    assert zoo.accuracy(first, *few.test) > 0.85
    assert not first.training
    again = zoo.trained("mlp", few, seed=5, cache=tmp_path / "b")
    assert same(first, again)
    read = zoo.trained("mlp", few, seed=5, cache=tmp_path / "a", on_epoch=lambda *_: pytest.fail("trained again"))
    assert same(first, read)
    assert not read.training
    assert [p.suffix for p in (tmp_path / "a").iterdir()] == [".safetensors"]


def test_seeds_data_and_networks_have_caches_of_their_own(few, tmp_path):
    other = zoo.Data((1 - few.train[0], few.train[1]), few.test, few.name)
    paths = {
        zoo._cache_file(name, data, seed, tmp_path)
        for name in ("mlp", "cnn") for data in (few, other) for seed in (0, 1)
    }  # fmt: skip
    assert len(paths) == 8


@pytest.mark.parametrize("damage", [b"not safetensors", b""], ids=["text", "empty"])
def test_a_damaged_cache_is_trained_over(few, tmp_path, monkeypatch, damage):
    monkeypatch.setattr(zoo, "_train", lambda net, *_: net)
    zoo.trained("mlp", few, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    sound = file.read_bytes()
    file.write_bytes(damage)
    zoo.trained("mlp", few, cache=tmp_path)
    assert file.read_bytes() == sound


def test_a_cache_that_cannot_be_written_costs_only_time(few, tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "_train", lambda net, *_: net)
    (tmp_path / "file").write_text("in the way")
    assert isinstance(zoo.trained("mlp", few, cache=tmp_path / "file"), torch.nn.Module)


def test_the_environment_variable_moves_the_cache(few, tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "_train", lambda net, *_: net)
    monkeypatch.setenv("ISORESPONSE_CACHE", str(tmp_path / "here"))
    zoo.trained("cnn", few)
    assert len(list((tmp_path / "here").iterdir())) == 1


def test_the_callers_random_state_is_left_alone(few, tmp_path, monkeypatch):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    images, labels = few.train
    zoo.trained("mlp", zoo.Data((images[:64], labels[:64]), few.test, "tiny"), cache=tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_unknown_network_is_refused(few):
    with pytest.raises(ValueError, match="no built-in network 'rnn'; there are mlp, cnn"):
        zoo.trained("rnn", few)


# --- MNIST files


def idx(array):
    array = np.asarray(array, dtype=np.uint8)
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture
def folder(tmp_path):
    """Three training and two test images of 4 x 4, half of the files gzipped."""
    for split, count in (("train", 3), ("t10k", 2)):
        pixels = np.arange(count * 16).reshape(count, 4, 4) * 5
        (tmp_path / f"{split}-images-idx3-ubyte").write_bytes(idx(pixels))
        (tmp_path / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.arange(count))))
    return tmp_path


def test_mnist_files_are_read_gzipped_or_not(folder):
    data = zoo.mnist(folder)
    assert data.train[0].shape == (3, 1, 4, 4)
    torch.testing.assert_close(data.train[0][1, 0, 0], torch.tensor([80.0, 85, 90, 95]) / 255)
    assert data.test[1].tolist() == [0, 1]
    assert data.test[1].dtype == torch.int64


def test_a_missing_mnist_file_is_named(folder):
    (folder / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no file t10k-images-idx3-ubyte or t10k-images-idx3-ubyte\.gz; give a"
    ):
        zoo.mnist(folder)


IMAGES = idx(np.zeros((3, 4, 4)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "train-images-idx3-ubyte is not an idx file of unsigned bytes with 3 axes"),
        (b"", "is not an idx file"),
        (idx([1, 2, 3]), "is not an idx file of unsigned bytes with 3 axes"),
        (IMAGES[:-5], r"is cut short: 59 bytes for shape \(3, 4, 4\)"),
        (idx(np.zeros((2, 4, 4))), "2 images .*3 labels"),
    ],
    ids=["text", "empty", "labels", "cut short", "fewer images than labels"],
)
def test_a_wrong_mnist_file_is_refused(folder, content, message):
    (folder / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        zoo.mnist(folder)


ZIPPED = gzip.compress(IMAGES, mtime=0)


@pytest.mark.parametrize(
    "content",
    [ZIPPED[:30], b"hello, this is no gzip", ZIPPED[:-8] + b"damage!!"],
    ids=["cut short", "text", "checksum"],
)
def test_a_damaged_gzip_file_is_refused_by_name(folder, content):
    (folder / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(ValueError, match="train-images-idx3-ubyte"):
        zoo.mnist(folder)


# --- two neurons


@pytest.mark.filterwarnings("ignore:the exact Hessian vanishes")  # it does where bend is zero
@pytest.mark.parametrize(("bend", "width"), [(1.0, 0.5), (0.3, 2.0), (0.0, 1.0)])
def test_the_bent_neuron_has_its_curvature_at_the_tip(generator, bend, width):
    phi = normal(5, generator=generator)
    unit = phi / phi.norm()
    neuron = Neuron.of(OutwardBent(phi, bend=bend, width=width), shape=(5,))
    tip = 1.7 * unit[None]
    jet = exact_jet(neuron, tip)
    torch.testing.assert_close(jet.normal[0], unit)
    tangent = normal(1, 5, generator=generator)
    tangent = tangent - (tangent @ unit)[:, None] * unit
    kappa = bending(jet, tangent / tangent.norm())
    torch.testing.assert_close(kappa, torch.tensor([bend / width], dtype=torch.float64), rtol=1e-10, atol=1e-12)
    if bend:
        values = principal_curvatures(jet, 4, generator=generator).values
        torch.testing.assert_close(values, torch.full((1, 4), bend / width, dtype=torch.float64), rtol=1e-8, atol=0)


def test_straight_and_bent_agree_on_the_axis_and_only_there(generator):
    phi = normal(4, generator=generator)
    straight, bent = (Neuron.of(m, shape=(4,)) for m in (Straight(phi), OutwardBent(phi)))
    on_axis = torch.linspace(-2, 3, 7).double()[:, None] * phi
    torch.testing.assert_close(straight(on_axis), on_axis @ phi / phi.norm())
    for a, b in zip(straight.value_and_grad(on_axis), bent.value_and_grad(on_axis), strict=True):
        torch.testing.assert_close(a, b)
    off = on_axis + normal(7, 4, generator=generator)
    assert (bent(off) < straight(off)).all()


@pytest.mark.parametrize(("bend", "width"), [(-0.1, 1.0), (1.0, 0.0), (float("nan"), 1.0)])
def test_bends_that_are_none_are_refused(bend, width):
    with pytest.raises(ValueError, match=re.escape(f"got bend={bend} and width={width}")):
        OutwardBent(torch.ones(2), bend=bend, width=width)


# --- a landscape


@pytest.fixture
def hills(generator):
    grid = 100 * normal(6, 9, generator=generator).numpy()
    return grid, ElevationMap(grid, (0.5, 0.25))


def test_a_landscape_passes_through_its_grid(hills):
    grid, terrain = hills
    assert terrain.extent == (4.0, 1.25)
    for row in range(6):
        x = torch.tensor([[0.5 * column, 0.25 * (5 - row)] for column in range(9)], dtype=torch.float64)
        np.testing.assert_allclose(terrain(x).numpy(), grid[row], rtol=0, atol=1e-10)


def test_between_grid_points_and_at_its_mirrored_edges_it_is_scipys_cubic_spline(hills, generator):
    grid, terrain = hills
    x = uniform(200, 2, generator=generator) * torch.tensor(terrain.extent)
    x[:20, 0], x[20:40, 1] = 0.02, 1.24
    at = [5 - x[:, 1].numpy() / 0.25, x[:, 0].numpy() / 0.5]
    np.testing.assert_allclose(
        terrain(x).numpy(), scipy.ndimage.map_coordinates(grid, at, order=3, mode="mirror"), atol=1e-9
    )


def test_it_is_twice_differentiable_and_smooth_across_cells(hills, generator):
    _, terrain = hills
    x = (uniform(4, 2, low=0.1, high=0.9, generator=generator) * torch.tensor(terrain.extent)).requires_grad_(True)
    assert torch.autograd.gradcheck(terrain, (x,), atol=1e-4)
    assert torch.autograd.gradgradcheck(terrain, (x,), atol=1e-3)
    neuron, edge = Neuron(terrain, (2,)), torch.tensor([[1.5, 0.6], [2.0, 0.3]], dtype=torch.float64)
    step = torch.tensor([1e-7, 0.0], dtype=torch.float64)
    along = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    left, right = (neuron.hvp(edge + sign * step, along) for sign in (-1, 1))
    torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-3 * float(left.abs().max()))


def test_outside_it_is_as_high_as_its_nearest_edge(hills):
    _, terrain = hills
    out = torch.tensor([[-1.0, 0.6], [9.0, 0.6], [1.0, -3.0], [1.0, 7.0]], dtype=torch.float64)
    edge = torch.tensor([[0.0, 0.6], [4.0, 0.6], [1.0, 0.0], [1.0, 1.25]], dtype=torch.float64)
    torch.testing.assert_close(terrain(out), terrain(edge))


def test_smoothing_is_a_gaussian_in_cells(generator):
    grid = normal(8, 8, generator=generator).numpy()
    terrain = ElevationMap(grid, (1.0, 1.0), smoothing=1.5)
    smooth = scipy.ndimage.gaussian_filter(grid, 1.5, mode="nearest")
    assert float(terrain(torch.tensor([[3.0, 2.0]]).double())) == pytest.approx(smooth[5, 3])


@pytest.mark.parametrize(
    ("grid", "cell", "message"),
    [
        (np.zeros((3, 9)), (1.0, 1.0), r"at least 4 x 4 numbers, got shape \(3, 9\)"),
        (np.zeros(9), (1.0, 1.0), r"got shape \(9,\)"),
        (np.full((5, 5), np.nan), (1.0, 1.0), "finite, got"),
        (np.zeros((5, 5)), (1.0, 0.0), "two positive lengths in kilometres"),
        (np.zeros((5, 5)), (float("nan"), 1.0), "two positive lengths"),
        (np.zeros((5, 5)), (1.0, float("nan")), "two positive lengths"),
    ],
)
def test_grids_that_are_no_landscape_are_refused(grid, cell, message):
    with pytest.raises(ValueError, match=message):
        ElevationMap(grid, cell)
