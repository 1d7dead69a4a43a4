"""Results as labelled tables: every public result converts, a store gives back what it was given."""

import inspect
import json
import math
import warnings
from dataclasses import dataclass, fields, is_dataclass

import numpy as np
import pytest
import torch
import xarray as xr
from analytic import names, quadric

import isoresponse as iso
from isoresponse._fields import axes
from isoresponse.loop import Status
from isoresponse.records import provenance, read_store, to_dataset, to_plain, write_store

SHAPE = (1, 2, 3)


@pytest.fixture(scope="module")
def results():
    """One instance of every public result class, made the way a user makes it."""
    seed = torch.Generator().manual_seed(0)
    known = quadric(3, 6, generator=seed)
    flat = known.neuron
    neuron = iso.Neuron(lambda x, *g: flat.response(x.flatten(1), *g), SHAPE, given=flat.given)
    one = iso.Neuron(lambda x: x.flatten(1).square().sum(1), SHAPE, iso.Box(-1.0, 1.0))
    two = iso.Neuron(lambda x: x.square().sum(1), (2,), iso.Box(-1.0, 1.0))
    x = known.x.reshape(3, *SHAPE)
    jet = iso.exact_jet(neuron, x)
    plane = iso.Plane.spanning(x[0], x[1], x[2])
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 3))
    clf = iso.Classifier.of(net, shape=SHAPE, box=iso.Box(0.0, 1.0))
    inputs = torch.rand(3, *SHAPE, generator=seed)
    found = clf.closest_adversary(inputs, clf.predict(inputs))
    alarms = iso.masking_alarms(clf, inputs, clf.predict(inputs), generator=seed)
    twenty = torch.rand(20, *SHAPE, generator=seed)
    distances = clf.closest_adversary(twenty, clf.predict(twenty)).distance
    factors = iso.adversary_factors(clf, twenty, clf.predict(twenty), distances)
    made = [
        factors,
        iso.explain(factors, generator=seed, resamples=2),
        alarms,
        alarms.alarms[0],
        iso.on_lattice(clf.decision(clf.predict(inputs)), inputs, found, 0.0, levels=16),
        iso.trace_attack(iso.closest_point, neuron, x, known.level, mei=x[0], keep_points=True),
        iso.closest_point(neuron, x, known.level),
        iso.predict_distance(neuron, x, known.level),
        jet,
        iso.local_geometry(jet),
        iso.principal_curvatures(jet, 2, generator=seed),
        iso.normal_curvature(jet, x),
        iso.mean_curvature(jet, generator=seed),
        iso.curvature_spectrum(jet, generator=seed),
        iso.taxonomy(jet, generator=seed),
        iso.published_curvatures(torch.rand(2, 9, 9, generator=seed), x=torch.arange(9.0), y=torch.arange(9.0) - 4),
        iso.survey_planes(
            [one],
            x[:1],
            {"random": x[None, 1:]},
            grid=iso.SurveyGrid(reach=1.0, size=5, origin=0.1 * x[0]),
            progress=False,
        ),
        iso.section_curvature(neuron, x, iso.plane_basis(x, x.flip(-1))),
        iso.gradient_path(neuron, x, known.level, knots=4),
        iso.most_exciting_input(one, generator=seed, starts=2, center=x[0]),
        iso.adversarial_subspace(neuron, x, known.level, dims=2, budget=40, generator=seed),
        iso.local_against_global(clf, inputs, clf.predict(inputs), budget=20, starts=2, generator=seed),
        iso.closest_point_on_grid(two, torch.zeros(2, 2, dtype=torch.float64), 0.5),
        iso.sampled_mass(neuron, x, known.level, 1.0, samples=50, generator=seed),
        iso.predicted_mass(neuron, x, known.level, 1.0, generator=seed),
        iso.second_order_mass(torch.ones(2), torch.zeros(2, 3)),
        iso.adversarial_fraction(neuron, x, known.level, 1.0, samples=50, generator=seed),
        iso.increasing_share(one, 0.1 * x[:1], samples=50, generator=seed),
        plane,
        iso.response_surface(one, plane, x=(0.0, 1.0), y=(0.0, 1.0), size=3),
        iso.certify_decision(net, inputs, clf.predict(inputs)),
        iso.spacing_profile(two, iso.straight_way(x[:, 0, 0, :2] / 100, x[:, 0, 0, 1:] / 100, knots=3)),
        iso.greedy_against_closest(two, torch.full((2, 2), 0.2), 0.5, generator=seed, knots=4),
        iso.compare_quality({"a": lambda d: iso.alignment(d, d[0])}, x, x, generator=seed),
    ]
    return {type(r).__name__: r for r in made}


def declared():
    """Public dataclasses that declare axes."""
    public = {n: getattr(iso, n) for n in iso.__all__}
    return {
        n for n, c in public.items() if inspect.isclass(c) and is_dataclass(c) and any("dims" in f.metadata for f in fields(c))
    }  # fmt: skip


RESULTS = sorted(declared())


def test_every_public_result_class_is_covered(results):
    assert set(results) == declared()


@pytest.mark.parametrize("name", RESULTS)
def test_every_tensor_of_a_result_becomes_a_variable_with_dims_units_and_description(results, name):
    result = results[name]
    table = to_dataset(result)
    tensors = {f.name: f for f in fields(result) if isinstance(getattr(result, f.name), torch.Tensor)}
    assert set(table.data_vars) | set(table.coords) == set(tensors)
    for field_name, f in tensors.items():
        value, variable = getattr(result, field_name), table[field_name]
        assert variable.shape == tuple(value.shape)
        np.testing.assert_array_equal(variable.values, value.numpy())
        shape = [f"input_{k}" for k in range(value.ndim - len(f.metadata["dims"]) + 1)]
        expected = [d for dim in f.metadata["dims"] for d in (shape if dim == "*shape" else (dim,))]
        assert list(variable.dims) == expected
        assert variable.attrs["units"]
        assert len(variable.attrs["long_name"]) > 5


@pytest.mark.parametrize("name", RESULTS)
def test_every_result_survives_a_store(results, name, tmp_path):
    table = to_dataset(results[name])
    write_store(table, tmp_path / "a.zarr")
    back = read_store(tmp_path / "a.zarr")
    for variable in table.variables:
        np.testing.assert_array_equal(back[variable].values, table[variable].values)
        assert back[variable].attrs == table[variable].attrs


def test_a_status_carries_its_meanings(results):
    attrs = to_dataset(results["Solution"])["status"].attrs
    meanings = dict(zip(attrs["flag_values"], attrs["flag_meanings"].split(), strict=True))
    assert [meanings[s] for s in results["Solution"].status.tolist()] == names(results["Solution"].status)
    assert meanings == {int(s): s.name for s in Status}


def test_labels_and_names_of_the_input_axes_can_be_given(results):
    table = to_dataset(results["Path"], coords={"case": ["a", "b", "c"]}, shape_dims=("channel", "height", "width"))
    assert table["points"].dims == ("case", "knot", "channel", "height", "width")
    assert table.sel(case="b")["arclength"].shape == (4,)


@dataclass(frozen=True)
class Energy:
    energy: torch.Tensor = axes("case", "band", units="J", about="energy per band")
    note: str = axes(about="no tensor")
    private: torch.Tensor | None = None


def test_a_users_own_result_converts_too():
    table = to_dataset(Energy(torch.ones(2, 3, requires_grad=True), "x", torch.zeros(5)))
    assert list(table.data_vars) == ["energy"]
    assert dict(table.sizes) == {"case": 2, "band": 3}
    assert table["energy"].attrs == {"units": "J", "long_name": "energy per band"}


@dataclass(frozen=True)
class Undeclared:
    value: torch.Tensor


def test_results_that_do_not_say_their_dims_are_refused():
    with pytest.raises(ValueError, match="Undeclared declares no axes; define its fields with"):
        to_dataset(Undeclared(torch.ones(2)))
    with pytest.raises(ValueError, match=r"Energy\.energy declares the dims .* but has 3 axes"):
        to_dataset(Energy(torch.ones(2, 3, 4), "x"))


# --- the store


@pytest.fixture
def table():
    return to_dataset(Energy(torch.rand(2, 3, generator=torch.Generator().manual_seed(0)), "x"))


def test_a_store_says_where_it_comes_from(table, tmp_path):
    settings = {"seed": 3, "levels": [1.0, 2.0]}
    write_store(table, tmp_path / "a.zarr", settings=settings)
    attrs = read_store(tmp_path / "a.zarr").attrs
    assert attrs["schema"] == 1
    assert json.loads(attrs["settings"]) == settings
    versions = json.loads(attrs["versions"])
    assert versions["isoresponse"] == iso.__version__
    assert versions["torch"] == torch.__version__
    assert attrs["created"].startswith("20")
    assert "commit" in attrs


def test_provenance_is_fit_for_json():
    written = json.dumps(provenance({"a": 1}), allow_nan=False)
    assert json.loads(written)["settings"] == {"a": 1}


@pytest.mark.parametrize("occupant", [lambda p: p.mkdir(), lambda p: p.write_text("mine")])
def test_nothing_is_overwritten(table, tmp_path, occupant):
    path = tmp_path / "a.zarr"
    occupant(path)
    with pytest.raises(FileExistsError, match=r"a\.zarr exists; give another path or remove it"):
        write_store(table, path)
    assert path.is_dir() or path.read_text() == "mine"


def foreign(table, path, **attrs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table.assign_attrs(attrs).to_zarr(path, consolidated=False)


@pytest.mark.parametrize(
    ("attrs", "message"),
    [
        ({"schema": 2}, "has schema 2, this version reads up to 1; update isoresponse"),
        ({}, "has no 'schema' attribute, so it is not a store of isoresponse"),
        ({"schema": "v3"}, "schema"),
    ],
)
def test_newer_and_foreign_stores_are_refused(table, tmp_path, attrs, message):
    foreign(table, tmp_path / "a.zarr", **attrs)
    with pytest.raises(ValueError, match=message):
        read_store(tmp_path / "a.zarr")


def test_no_store_is_said_so(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_store(tmp_path / "absent.zarr")


# --- plain values


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (float("nan"), None),
        ([math.inf, -math.inf, 1.5], [None, None, 1.5]),
        (torch.tensor([[1.0, float("nan")]]), [[1.0, None]]),
        (torch.tensor(3), 3),
        (np.array([1.0, np.nan]), [1.0, None]),
        (np.float32("nan"), None),
        (np.float64(0.5), 0.5),
        (np.int64(4), 4),
        (np.bool_(True), True),
        (True, True),
        ({1: (2.0, {"x": float("nan")})}, {"1": [2.0, {"x": None}]}),
        (Status.FLAT, 5),
        (None, None),
        ("text", "text"),
    ],
)
def test_plain_values_are_strict_json(value, plain):
    assert json.loads(json.dumps(to_plain(value), allow_nan=False)) == plain


def test_a_dataset_keeps_dtypes(results):
    table = to_dataset(results["ResponseSurface"])
    assert table["inside"].dtype == bool
    assert table["response"].dtype == np.float64
    assert isinstance(table, xr.Dataset)
