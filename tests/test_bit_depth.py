"""Bit depth: sizes in grey levels and what storage makes of them, where the answer is known; and verdicts that follow."""

import numpy as np
import pytest
import torch

from isoresponse.classifier import Classifier
from isoresponse.models import digits as zoo
from isoresponse.neuron import Box
from isoresponse.records import read_store
from isoresponse.studies import bit_depth
from isoresponse.studies.claims.subjects import Networks
from isoresponse.studies.experiment import FAILS, HOLDS, write_outcome


def planes(gap_levels, cases=12, n=25):
    """A linear decision so many grey levels of every pixel away from images on the levels."""
    net = torch.nn.Linear(n, 2, bias=False).double()
    net.weight.data = torch.stack([torch.ones(n), -torch.ones(n)]).double()
    generator = torch.Generator().manual_seed(0)
    one = torch.randint(60, 200, (n,), generator=generator).double() / 255
    x = torch.stack([one[torch.randperm(n, generator=generator)] for _ in range(cases)])  # all equally far
    level = float(x[0].sum() - n * gap_levels / 255)
    classifier = Classifier(lambda z: net(z) - torch.tensor([2 * level, 0.0]), (n,), 2, Box(0.0, 1.0), "planes")
    return Networks({"plane": classifier}, x, torch.zeros(cases, dtype=torch.int64), "toy", {"plane": 1.0})


@pytest.fixture(scope="module")
def dataset():
    settings = bit_depth.Settings(cases=12, budget=20, lattice_budget=10)
    near, far = planes(0.3), planes(9.8)
    near = Networks(near.of, near.x, near.labels, "near", near.accuracy)
    far = Networks(far.of, far.x, far.labels, "far", far.accuracy)
    return bit_depth.stored([near, far], settings)


def test_sizes_in_grey_levels_are_those_of_the_plane(dataset):
    assert dataset.grey.sel(condition="near: plane").values == pytest.approx(0.3, rel=1e-4)
    assert dataset.grey.sel(condition="far: plane").values == pytest.approx(9.8, rel=1e-4)
    assert (dataset.levels == 256).all()


def test_the_nearest_image_on_the_levels_changes_few_pixels_by_a_whole_level(dataset):
    """0.3 levels in each of 25 pixels are to be made of whole levels: eight pixels change by one."""
    one = dataset.sel(condition="near: plane").isel(case=0)
    assert float(one.d_lattice) == pytest.approx(8**0.5 / 255, rel=1e-6)
    assert not bool(one.survives)
    assert np.isnan(one.d_round)
    assert (dataset.d_lattice <= dataset.d_round.fillna(np.inf) * (1 + 1e-9)).all()


def test_verdicts_follow_the_numbers(dataset):
    told = [c.verdict for c in bit_depth.claims(dataset)]
    assert told[0] == HOLDS  # near: 0.3 / 255 is below 0.006
    assert told[1:3] == [HOLDS, FAILS]  # rounding undoes it; the square root of 8 levels instead of 1.5
    assert told[3] == FAILS  # far
    assert told[5] == HOLDS


def test_what_is_written(dataset, tmp_path):
    numbers = write_outcome(bit_depth.outcome(dataset), tmp_path)
    assert (tmp_path / "figures" / "bit-depth.png").exists()
    row = dict(zip(numbers["table"]["columns"], numbers["table"]["rows"][0], strict=True))
    assert row["data and network"] == "near: plane"
    assert row["over the footnote's 0.006"] == pytest.approx(0.3 / 255 / 0.006, rel=1e-4)
    assert row["share below one grey level"] == 1.0
    assert read_store(tmp_path / "results.zarr").sizes["case"] == 12


def test_digits_are_asked_with_their_own_levels_too(cache, monkeypatch):
    monkeypatch.setattr(zoo, "NETWORKS", {"mlp": zoo.mlp})
    settings = bit_depth.Settings(cases=4, budget=12, lattice_budget=4)
    (nets,) = bit_depth.subjects_of(None, settings)
    found = bit_depth.stored([nets], settings)
    assert [str(c) for c in found.condition.values] == [
        "digits: MLP",
        "digits: MLP, 17 levels",
    ]
    assert found.levels.values.tolist() == [256, 17]
    assert np.isfinite(found.d_lattice.values).all()


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing is fetched"):
        bit_depth.study(tmp_path / "absent", quick=True)
