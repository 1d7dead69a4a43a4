"""Curvatures of whole contours: closed forms, both ends of the spectrum, sums, distributions, kinds; without a matrix."""

import inspect
import math
import warnings

import pytest
import torch
from analytic import SMOOTH, bending, energy, frames, linear, normal, planes, quadric, relu_net, sphere, uniform
from matplotlib.figure import Figure

import isoresponse as iso
from isoresponse import plot
from isoresponse.distribution import curvature_spectrum, mean_curvature, taxonomy
from isoresponse.geometry import (
    FlatHessianWarning,
    local_geometry,
    principal_curvatures,
    shape_operator,
    subspace_curvatures,
)
from isoresponse.jets import exact_jet, secant_jet, smoothed_jet
from isoresponse.loop import Status
from isoresponse.neuron import Box, Neuron

BENT = [make for make in SMOOTH if make is not linear]


def torus(cases=6, *, generator):
    """Minus the distance to a circle: tubes, with curvature 1/r across and cos(t) / (R + r cos(t)) along."""
    big, r = (
        uniform(cases, low=2.0, high=3.0, generator=generator),
        uniform(cases, low=0.3, high=1.5, generator=generator),
    )
    t, phi = uniform(cases, high=6.28, generator=generator), uniform(cases, high=6.28, generator=generator)
    ring = big + r * t.cos()
    point = torch.stack([ring * phi.cos(), ring * phi.sin(), r * t.sin()], 1)

    def response(x, turn, big):
        z = torch.einsum("cij,cj->ci", turn, x)
        return -torch.hypot(z[:, :2].norm(dim=1) - big, z[:, 2])

    turn = frames(cases, 3, generator=generator)
    curvatures = torch.stack([1 / r, t.cos() / ring], 1).sort(1, descending=True).values
    return Neuron(response, (3,), given=(turn, big)), torch.einsum("cij,ci->cj", turn, point), curvatures


def hyperboloid(cases=6, *, generator):
    """(x^2 + y^2) / a^2 - z^2 / c^2, one sheet: bent inward round the axis, outward along it."""
    a, c = (
        uniform(cases, low=0.5, high=2.0, generator=generator),
        uniform(cases, low=0.5, high=2.0, generator=generator),
    )
    u, phi = normal(cases, generator=generator), uniform(cases, high=6.28, generator=generator)
    radius = a * (1 + u**2).sqrt()
    point = torch.stack([radius * phi.cos(), radius * phi.sin(), c * u], 1)
    slope, second = a * u / (c * (1 + u**2).sqrt()), a / (c**2 * (1 + u**2) ** 1.5)

    def response(x, turn, a, c):
        z = torch.einsum("cij,cj->ci", turn, x)
        return z[:, :2].square().sum(1) / a**2 - z[:, 2].square() / c**2

    turn = frames(cases, 3, generator=generator)
    curvatures = torch.stack([second / (1 + slope**2) ** 1.5, -1 / (radius * (1 + slope**2).sqrt())], 1)
    gauss = -(c**2) / (c**2 + (a**2 + c**2) * u**2) ** 2
    torch.testing.assert_close(curvatures.prod(1), gauss)  # as published with the predecessor's test
    return Neuron(response, (3,), given=(turn, a, c)), torch.einsum("cij,ci->cj", turn, point), curvatures


def saddle(cases=6, *, generator):
    known = quadric(cases, low=-0.9, high=0.9, generator=generator)
    return known.neuron, known.point, known.curvatures


def all_of(jet, **how):
    n = jet.gradient.shape[1]
    return principal_curvatures(jet, n - 1, generator=torch.Generator().manual_seed(0), **how)


@pytest.mark.parametrize("make", [torus, hyperboloid, saddle])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-3)])
def test_surfaces_in_closed_form(generator, make, dtype, tolerance):
    neuron, point, curvatures = make(20, generator=generator)
    neuron = Neuron(neuron.response, neuron.shape, given=tuple(g.to(dtype) for g in neuron.given))
    seen = all_of(exact_jet(neuron, point.to(dtype)))
    assert seen.values.dtype == dtype
    torch.testing.assert_close(seen.values.double(), curvatures, rtol=tolerance, atol=tolerance)
    rounding = 1e-13 if dtype == torch.float64 else tolerance  # of the response itself, which no band can know
    assert ((seen.values.double() - curvatures).abs() <= seen.error.double() + rounding).all()


@pytest.mark.parametrize("make", BENT)
def test_the_whole_zoo_in_float32(generator, make):
    known = make(10, generator=generator)
    single = known.to(torch.float32)
    seen = all_of(exact_jet(single.neuron, single.point))
    torch.testing.assert_close(seen.values.double(), known.curvatures, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("n", [2, 5, 50, 500])
def test_the_predecessors_spheres(n):
    """Radii from 0.1 to 10 in 2 to 500 dimensions, the sign being that of the growing response: bent inward."""
    radius = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    x = radius[:, None] * torch.nn.functional.normalize(torch.ones(3, n, dtype=torch.float64))
    jet = exact_jet(Neuron(lambda z: z.square().sum(1), (n,)), x)
    for end in ("both", "outward", "inward"):
        seen = principal_curvatures(jet, min(3, n - 1), end=end, generator=torch.Generator())
        torch.testing.assert_close(seen.values, (-1 / radius)[:, None].expand_as(seen.values), rtol=1e-12, atol=0)
    torch.testing.assert_close(mean_curvature(jet, generator=torch.Generator()).value, -1 / radius, rtol=1e-12, atol=0)


@pytest.mark.parametrize("radius", [0.1, 1.0, 30.0])
def test_the_predecessors_ill_conditioned_quadric(radius):
    """An ellipsoid with semi-axes in the ratios 1, 1, ..: curvatures -1/6, -1/3, -1 per radius at the tip of one axis."""
    weights = torch.tensor([1.0, 1 / 6, 1 / 3, 1.0], dtype=torch.float64)
    x = radius * torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64)
    seen = all_of(exact_jet(Neuron(lambda z: (weights * z.square()).sum(1), (4,)), x))
    torch.testing.assert_close(seen.values * radius, -torch.tensor([[1 / 6, 1 / 3, 1.0]], dtype=torch.float64))


@pytest.mark.parametrize("n", [50, 200, 784])
def test_as_the_dense_eigendecomposition(generator, n):
    net = torch.nn.Sequential(torch.nn.Linear(n, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1)).double()
    for parameter in net.parameters():
        parameter.data = normal(*parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
    x = normal(2, n, generator=generator)
    jet = exact_jet(Neuron.of(net, shape=(n,)), x)
    hessian = jet.hessian.dense()
    p = torch.eye(n, dtype=torch.float64) - jet.normal[:, :, None] * jet.normal[:, None]
    dense = torch.linalg.eigvalsh(-p @ hessian @ p / jet.steepness[:, None, None])
    for end, expected in (("outward", dense.flip(1)[:, :6]), ("inward", dense[:, :6].flip(1))):
        seen = principal_curvatures(jet, 6, end=end, generator=generator)
        torch.testing.assert_close(seen.values, expected, rtol=1e-9, atol=1e-12)
        assert ((seen.values - expected).abs() <= seen.error + 1e-15).all()  # the dense matrix rounds too
        assert (seen.products < n).all() or n <= 64
    total = mean_curvature(jet, probes=n, generator=generator)
    torch.testing.assert_close(total.value, dense.sum(1) / (n - 1), rtol=1e-9, atol=1e-12)


def test_fewer_products_for_looser_residuals_and_residuals_hold(generator):
    known = quadric(4, 120, low=-0.9, high=5.0, generator=generator)
    jet = exact_jet(known.neuron, known.point)
    tight, loose = (principal_curvatures(jet, 3, rtol=t, generator=torch.Generator()) for t in (1e-8, 1e-2))
    assert (loose.products < tight.products).all()
    for seen in (tight, loose):
        nearest = (seen.values[:, :, None] - known.curvatures[:, None]).abs().amin(2)
        assert (nearest <= seen.residuals).all()
    few = principal_curvatures(jet, 3, max_steps=4, generator=torch.Generator())
    assert (few.status == int(Status.MAX_STEPS)).all()
    assert (few.residuals > 1e-3).all()


@pytest.mark.parametrize("end", ["both", "outward", "inward"])
def test_repeated_curvatures_are_all_found(generator, end):
    """|P x| on four dimensions of thirty: three times -1/r and 26 times 0."""
    axes = frames(1, 30, generator=generator)[0, :4]
    x = normal(3, 30, generator=generator)
    jet = exact_jet(Neuron(lambda z: (z @ axes.T).norm(dim=1), (30,)), x)
    radius = (x @ axes.T).norm(dim=1, keepdim=True)
    seen = principal_curvatures(jet, 5, end=end, generator=generator).values
    expected = torch.cat([torch.zeros(3, 2), -torch.ones(3, 3)], 1).double() / radius
    torch.testing.assert_close(seen, expected * (end != "outward"), rtol=1e-12, atol=1e-12)


def test_a_case_alone_is_itself_in_a_batch(generator):
    known = quadric(7, 40, low=-0.9, high=5.0, generator=generator)

    def measured(k):
        jet, seed = exact_jet(k.neuron, k.point), torch.Generator()
        return (
            principal_curvatures(jet, 3, generator=seed.manual_seed(1)).values,
            mean_curvature(jet, probes=4, generator=seed.manual_seed(1)).value[:, None],
            curvature_spectrum(jet, probes=2, steps=5, generator=seed.manual_seed(1)).nodes.flatten(1),
            smoothed_jet(k.neuron, k.point, scale=0.1, samples=100, generator=seed.manual_seed(1)).error[:, None],
        )

    for alone, together in zip(measured(known.select(4)), measured(known), strict=True):
        torch.testing.assert_close(alone[0], together[4], rtol=1e-10, atol=1e-11)


def test_products_grow_with_the_rank_not_with_the_dimension(generator):
    spent = []
    for n in (200, 800):
        scale = 0.8 ** torch.arange(n, dtype=torch.float64)
        neuron = Neuron(lambda z, s=scale: z[:, 0] + 0.5 * (s * z.square()).sum(1), (n,))
        jet = exact_jet(neuron, torch.zeros(1, n, dtype=torch.float64))
        spent.append(int(principal_curvatures(jet, 5, generator=torch.Generator()).products))
    assert abs(spent[0] - spent[1]) < 10


# --- directions, subspaces, sums and distributions


def test_a_subspace_has_the_curvatures_of_the_compressed_shape_operator(generator):
    known = quadric(5, 9, generator=generator)
    jet = exact_jet(known.neuron, known.point)
    basis = normal(5, 3, 9, generator=generator)
    seen = subspace_curvatures(jet, basis)
    tangent = basis - torch.einsum("ckn,cn->ck", basis, jet.normal)[:, :, None] * jet.normal[:, None]
    rows = torch.linalg.qr(tangent.transpose(1, 2)).Q.transpose(1, 2)
    small = rows @ shape_operator(jet).dense() @ rows.transpose(1, 2)
    torch.testing.assert_close(seen.values, torch.linalg.eigvalsh(small).flip(1), rtol=1e-9, atol=1e-9)
    for k in range(3):
        torch.testing.assert_close(bending(jet, seen.directions[:, k]), seen.values[:, k], rtol=1e-9, atol=1e-9)
    assert torch.einsum("ckn,cn->ck", seen.directions, jet.normal).abs().max() < 1e-12
    spoilt = basis.clone()
    spoilt[2, 0] = jet.normal[2]
    status = subspace_curvatures(jet, spoilt).status.tolist()
    assert status == [1, 1, int(Status.UNDEFINED), 1, 1]


@pytest.mark.parametrize("builder", ["secant", "smoothed"])
def test_jets_in_a_subspace_know_what_they_measured_and_say_so(generator, builder):
    known = quadric(4, 9, generator=generator)
    basis = normal(4, 3, 9, generator=generator)
    if builder == "secant":
        jet = secant_jet(known.neuron, known.point, scale=0.3, basis=basis)
    else:
        jet = smoothed_jet(known.neuron, known.point, scale=0.3, samples=20, generator=generator, basis=basis)
    exact = subspace_curvatures(exact_jet(known.neuron, known.point), basis)
    seen = principal_curvatures(jet, 3, generator=generator)
    torch.testing.assert_close(seen.values, exact.values, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(subspace_curvatures(jet, basis).values, exact.values, rtol=1e-8, atol=1e-8)
    mean = mean_curvature(jet, generator=generator)
    torch.testing.assert_close(mean.value, exact.values.mean(1), rtol=1e-8, atol=1e-8)
    with pytest.raises(
        ValueError, match="rank must be between 1 and 3 \\(measured directions minus the normal\\), got 4"
    ):
        principal_curvatures(jet, 4, generator=generator)
    outside = iso.normal_curvature(jet, normal(4, 9, generator=generator))
    assert (outside.status == int(Status.UNDEFINED)).all()
    assert outside.value.isnan().all()
    inside = iso.normal_curvature(jet, seen.directions[:, 0])
    torch.testing.assert_close(inside.value, seen.values[:, 0], rtol=1e-8, atol=1e-8)


def test_the_mean_holds_within_its_error(generator):
    known = quadric(60, 40, low=-0.9, high=3.0, generator=generator)
    jet = exact_jet(known.neuron, known.point)
    told = mean_curvature(jet, probes=8, generator=generator)
    truth = known.curvatures.mean(1)
    assert ((told.value - truth).abs() <= told.error).double().mean() >= 0.9
    assert (told.standard_error > 0).all()
    assert (mean_curvature(jet, probes=20, generator=generator).standard_error < 1e-12).all()  # every direction


@pytest.mark.parametrize("make", [energy, sphere])
def test_a_trace_of_low_rank_costs_few_probes(generator, make):
    known = make(5, 60, generator=generator)
    told = mean_curvature(exact_jet(known.neuron, known.point), probes=4, generator=generator)
    torch.testing.assert_close(told.value, known.curvatures.mean(1), rtol=1e-8, atol=1e-12)


def test_the_spectrum_has_the_shares_of_the_curvatures(generator):
    known = quadric(4, 400, low=-0.9, high=3.0, generator=generator)
    spectrum = curvature_spectrum(exact_jet(known.neuron, known.point), probes=13, steps=30, generator=generator)
    torch.testing.assert_close(spectrum.weights.sum(2), torch.ones(4, 13, dtype=torch.float64))
    low, high = known.curvatures[:, -1] - 1, known.curvatures.median(1).values
    share, error = spectrum.share(low, high)
    assert ((share - 0.5).abs() <= 4 * error + 0.02).all()
    assert (error > 0).all()
    assert (error < 0.05).all()
    torch.testing.assert_close(
        (spectrum.nodes * spectrum.weights).sum(2).mean(1), known.curvatures.mean(1), rtol=0.1, atol=0
    )


def test_the_histogram_of_a_spectrum_adds_up_and_is_drawn(generator):
    known = quadric(2, 60, low=-0.9, high=3.0, generator=generator)
    spectrum = curvature_spectrum(exact_jet(known.neuron, known.point), probes=5, steps=10, generator=generator)
    shares, errors = spectrum.histogram(torch.linspace(-5, 8, 14, dtype=torch.float64))
    assert shares.shape == errors.shape == (2, 13)
    torch.testing.assert_close(shares.sum(1), torch.ones(2, dtype=torch.float64))
    ax = Figure().subplots()
    plot.curvature_spectrum(ax, spectrum, case=1)
    (stairs,) = [p for p in ax.patches if hasattr(p, "get_data")]
    assert stairs.get_data().values.sum() == pytest.approx(1)
    assert "59 directions" in ax.get_legend_handles_labels()[1]
    with pytest.raises(ValueError, match="at least 2 bins, got 1 bins"):
        plot.curvature_spectrum(ax, spectrum, bins=1)


def test_a_small_spectrum_is_counted(generator):
    known = quadric(4, 12, generator=generator)
    spectrum = curvature_spectrum(exact_jet(known.neuron, known.point), generator=generator)
    assert spectrum.nodes.shape == (4, 1, 11)
    torch.testing.assert_close(spectrum.nodes[:, 0].flip(1), known.curvatures, rtol=1e-8, atol=1e-8)
    share, error = spectrum.share(0.0, math.inf)
    torch.testing.assert_close(share, (known.curvatures >= 0).double().mean(1))
    assert (error == 0).all()


# --- kinds


def test_kinds_of_directions_in_closed_form(generator):
    for make, expected in ((sphere, (8, 0, 0)), (energy, (0, 7, 1))):
        known = make(5, 9, generator=generator)
        kind = taxonomy(exact_jet(known.neuron, known.point), generator=generator)
        for seen, count in zip((kind.selective, kind.flat, kind.tolerant), expected, strict=True):
            torch.testing.assert_close(seen, torch.full((5,), float(count), dtype=torch.float64))
        assert (kind.band > 0).all()
        assert (kind.band < 1e-12).all()


def test_in_many_dimensions_kinds_are_estimated_with_an_error(generator):
    axes = frames(1, 300, generator=generator)[0, :60]
    neuron = Neuron(lambda z: (z @ axes[:30].T).norm(dim=1) - (z @ axes[30:].T).square().sum(1), (300,))
    x = axes[0][None].clone()
    kind = taxonomy(exact_jet(neuron, x), probes=20, steps=12, generator=generator)
    assert float(kind.band) < 1e-6
    for seen, error, truth in (
        (kind.selective, kind.selective_error, 30), (kind.tolerant, kind.tolerant_error, 29),
    ):  # fmt: skip
        assert float(error) > 0
        assert abs(float(seen) - truth) < 4 * float(error)
    torch.testing.assert_close(kind.selective + kind.flat + kind.tolerant, torch.tensor([299.0], dtype=torch.float64))


def test_the_flat_band_is_the_estimators_error(generator):
    net = Neuron.of(relu_net(generator=generator), shape=(6,))
    x = normal(4, 6, generator=generator)
    jet = secant_jet(net, x, scale=0.7)
    kind = taxonomy(jet, generator=generator)
    assert (kind.band >= jet.error / jet.steepness).all()
    values = principal_curvatures(jet, 5, generator=generator).values
    torch.testing.assert_close(kind.flat, (values.abs() <= kind.band[:, None]).double().sum(1))


def test_the_four_blocks_come_together(generator):
    known = quadric(3, generator=generator)
    jet = exact_jet(known.neuron, known.point)
    blocks = local_geometry(jet, rank=2, generator=generator)
    assert blocks.curvatures is not None
    assert blocks.curvatures.values.shape == (3, 2)
    assert local_geometry(jet).curvatures is None
    with pytest.raises(ValueError, match="need a generator"):
        local_geometry(jet, rank=2)


# --- what has no answer


def test_flat_and_broken_cases_have_a_status_and_the_neighbours_go_on(generator):
    neuron = Neuron(lambda x: x.square().sum(1) * torch.where(x[:, 0] > 5, torch.nan, 1.0), (4,))
    x = torch.tensor([[1.0, 2, 3, 4], [0, 0, 0, 0], [6, 0, 0, 0]], dtype=torch.float64)
    expected = [Status.DONE, Status.FLAT, Status.NOT_FINITE]
    jets = [
        exact_jet(neuron, x),
        secant_jet(neuron, x, scale=0.1),
        smoothed_jet(neuron, x, scale=0.1, samples=200, generator=generator),
    ]
    for jet in jets[:2]:
        assert jet.status.tolist() == [int(s) for s in expected]
    assert int(jets[2].status[2]) == int(Status.NOT_FINITE)
    for jet in jets:
        for seen, numbers in (
            (r := principal_curvatures(jet, 2, generator=generator), r.values),
            (r := mean_curvature(jet, generator=generator), r.value[:, None]),
            (r := taxonomy(jet, generator=generator), r.selective[:, None]),
            (r := subspace_curvatures(jet, normal(3, 2, 4, generator=generator)), r.values),
            (r := local_geometry(jet), r.turning),
        ):
            assert torch.isfinite(numbers[0]).all()
            assert numbers[2].isnan().all()
            if jet.estimator != "smoothed":
                assert numbers[1].isnan().all()
                assert seen.status.tolist() == [int(s) for s in expected]


@pytest.mark.parametrize("measure", [mean_curvature, taxonomy, curvature_spectrum])
@pytest.mark.parametrize("make", [linear, planes])
def test_exactly_flat_answers_warn(generator, measure, make):
    known = make(3, generator=generator)
    with pytest.warns(FlatHessianWarning, match="says nothing about bending"):
        measure(exact_jet(known.neuron, known.point), generator=generator)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure(secant_jet(known.neuron, known.point, scale=0.01), generator=generator)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda j, g: inspect.unwrap(principal_curvatures)(j, 1, end="up", generator=g),
            "end must be 'both', 'outward' or 'inward', got 'up'",
        ),
        (lambda j, g: principal_curvatures(j, 1, rtol=-1.0, generator=g), "rtol must not be negative, got -1.0"),
        (lambda j, g: mean_curvature(j, probes=1, generator=g), "probes must be at least 2, got 1"),
        (lambda j, g: curvature_spectrum(j, steps=1, generator=g), "probes and steps must be at least 2, got 8 and 1"),
        (lambda j, g: subspace_curvatures(j, torch.zeros(2, 1, 4).double()), r"basis must have shape \(3, k, 6\)"),
        (lambda j, g: subspace_curvatures(j, torch.zeros(3, 6, 6).double()), r"with k below 6, got \(3, 6, 6\)"),
    ],
)
def test_questions_that_make_no_sense_are_refused(generator, ask, message):
    known = quadric(3, generator=generator)
    with pytest.raises(ValueError, match=message):
        ask(exact_jet(known.neuron, known.point), generator)


def test_nothing_of_n_by_n_is_made_at_image_size():
    """The largest tensor made on the way is a handful of vectors, not a matrix."""
    n = 3 * 64 * 64
    w = torch.randn(8, n, generator=torch.Generator().manual_seed(0)) / n**0.5
    neuron = Neuron(lambda z: torch.tanh(z @ w.T).sum(1), (n,), Box(0.0, 1.0))
    largest = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest.append(out.numel())
            return out

    x = torch.rand(1, n, generator=torch.Generator().manual_seed(1))
    with Watch():
        jet = exact_jet(neuron, x)
        seen = principal_curvatures(jet, 3, generator=torch.Generator())
        mean_curvature(jet, probes=4, generator=torch.Generator())
        taxonomy(jet, probes=2, steps=6, generator=torch.Generator())
    assert max(largest) <= 40 * n
    assert (seen.status == int(Status.DONE)).all()


# --- numbers that looked fine


@pytest.mark.parametrize("n", [3072, 150528])
def test_lengths_and_curvatures_in_float32_at_image_size(n):
    x = torch.full((1, n), 0.01)
    ball = Neuron(lambda z: -0.5 * z.square().sum(1), (n,))
    jet = exact_jet(ball, x)
    truth = 1 / float(x.double().norm())
    for seen in (
        principal_curvatures(jet, 1, generator=torch.Generator()).values,
        iso.normal_curvature(jet, torch.randn(1, n, generator=torch.Generator())).value,
        local_geometry(jet).spacing,
    ):
        assert float(seen) == pytest.approx(truth, rel=2e-6)
    cut = iso.section_curvature(ball, x, iso.plane_basis(x, torch.randn(1, n, generator=torch.Generator())))
    assert abs(float(cut.curvature) - truth) <= float(cut.error) < 1e-3 * truth


def test_one_large_curvature_among_very_many_equal_ones_is_found():
    n = 20_000
    weights = torch.ones(n)
    weights[1] = 1.04
    x = torch.zeros(1, n)
    x[0, 0] = 1
    jet = exact_jet(Neuron(lambda z: -0.5 * (weights * z.square()).sum(1), (n,)), x)
    seen = principal_curvatures(jet, 1, generator=torch.Generator())
    assert float(seen.values) == pytest.approx(1.04, rel=1e-5)


def test_a_flat_majority_is_not_taken_for_a_tolerant_one(generator):
    """A network of 64 hidden units in 600 dimensions is flat in at least 535 directions."""
    net = torch.nn.Sequential(torch.nn.Linear(600, 64), torch.nn.GELU(), torch.nn.Linear(64, 1)).double()
    for parameter in net.parameters():
        parameter.data = normal(*parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
    jet = exact_jet(Neuron.of(net, shape=(600,)), normal(1, 600, generator=generator))
    kind = taxonomy(jet, probes=6, steps=30, generator=generator)
    assert float(kind.flat) > 500
    complete = taxonomy(jet, probes=20, steps=30, generator=generator)  # as many products as there are directions
    assert float(complete.flat) >= 535
    assert float(complete.band) < 1e-10
    assert float(kind.band) > float(complete.band)


def test_exact_zeros_along_one_direction_of_a_curved_contour_do_not_warn(generator):
    """Along a cylinder's axis zero is the truth; on an affine response it says nothing."""
    rod = Neuron(lambda x: -x[:, :2].norm(dim=1), (3,))
    x, axis = torch.tensor([[1.0, 1, 1]], dtype=torch.float64), torch.tensor([[0.0, 0, 1]], dtype=torch.float64)
    assert float(iso.normal_curvature(exact_jet(rod, x), axis).value) == 0
    plane = iso.plane_basis(rod.value_and_grad(x)[1], axis)
    assert float(iso.section_curvature(rod, x, plane).curvature) == 0
    affine = Neuron(lambda x: x.sum(1), (3,))
    for ask in (
        lambda: iso.normal_curvature(exact_jet(affine, x), axis),
        lambda: subspace_curvatures(exact_jet(affine, x), axis[:, None]),
        lambda: iso.section_curvature(affine, x, iso.plane_basis(torch.ones_like(x), axis)),
    ):
        with pytest.warns(FlatHessianWarning):
            ask()


def test_one_input_element_has_no_tangents(generator):
    jet = exact_jet(Neuron(lambda x: x.square().sum(1), (1,)), torch.ones(2, 1))
    for measure in (mean_curvature, taxonomy, curvature_spectrum):
        with pytest.raises(
            ValueError, match="no tangent directions are known: a contour needs at least 2 input elements"
        ):
            measure(jet, generator=generator)
