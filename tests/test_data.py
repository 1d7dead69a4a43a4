"""The shared data sets, where they are: what the loaders make of the real files."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from isoresponse.models.digits import mnist
from isoresponse.studies.terrain import load_elevation

DATA = Path(os.environ.get("ISORESPONSE_DATA") or Path(__file__).parents[2] / "shared" / "data")


def data(*parts):
    path = DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no {path}: these data sets are not part of the repository (issue 2); ISORESPONSE_DATA says where")
    return path


def test_mnist_is_complete():
    found = mnist(data("mnist"))
    (images, labels), (test_images, test_labels) = found.train, found.test
    assert images.shape == (60_000, 1, 28, 28)
    assert test_images.shape == (10_000, 1, 28, 28)
    assert labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert test_labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert float(images.mean()) == pytest.approx(0.1307, abs=1e-4)
    assert (float(images.min()), float(images.max())) == (0.0, 1.0)
    assert found.name == "mnist"


def test_hawaii_is_where_it_is():
    path = data("dem", "hawaii.npz")
    terrain, name = load_elevation(path)
    assert name == "hawaii"
    with np.load(path) as z:
        lat, lon = z["lat"], z["lon"]
    row, column = divmod(int(terrain.grid.argmax()), terrain.grid.shape[1])
    # the higher summits, Mauna Kea and Mauna Loa, in degrees; row 0 of the map is in the south
    assert 19.4 < sorted(lat)[row] < 19.9
    assert -155.65 < lon[column] < -155.4
    width, height = terrain.extent
    assert height == pytest.approx(111.32 * abs(lat[-1] - lat[0]), rel=1e-6)
    assert width == pytest.approx(111.32 * abs(lon[-1] - lon[0]) * np.cos(np.deg2rad(lat.mean())), rel=1e-6)


def test_mauna_kea_keeps_its_height_on_a_fine_map():
    """4207 m at 19.82 N, 155.47 W; three cells of 280 m of smoothing take off less than 150 m."""
    terrain, _ = load_elevation(data("dem", "hawaii_srtm_tile.npz"))
    assert 4050 < float(terrain.grid.max()) < 4207
    row, column = divmod(int(terrain.grid.argmax()), terrain.grid.shape[1])
    assert 19 + row / 385 == pytest.approx(19.82, abs=0.01)
    assert -156 + column / 385 == pytest.approx(-155.47, abs=0.01)
    assert torch.isfinite(terrain(torch.tensor([[50.0, 50.0]]).double())).all()


@pytest.mark.parametrize(("file", "width"), [("maungawhau.npz", 0.6), ("bigtujunga.npz", 1196 * 0.03)])
def test_other_maps_have_their_size(file, width):
    """Maunga Whau is surveyed every 10 m, Big Tujunga every 30 m (`pixel_size_m`)."""
    terrain, _ = load_elevation(data("dem", file))
    assert terrain.extent[0] == pytest.approx(width)
