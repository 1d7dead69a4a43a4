"""Model neurons of the textbooks: gradients and contours' curvatures in closed form, and pairs that match but for bending."""

import inspect
import math

import pytest
import torch
from analytic import frames, normal, uniform
from torch import nn

import isoresponse as iso
from isoresponse.geometry import local_geometry, principal_curvatures
from isoresponse.jets import exact_jet
from isoresponse.loop import Status
from isoresponse.models.basic import Linear, LinearNonlinear, OutwardBent, Straight
from isoresponse.models.dictionary import mosaic
from isoresponse.models.matched import Twin, matched_pair
from isoresponse.models.networks import cnn
from isoresponse.models.receptive_fields import fit_gabors
from isoresponse.models.visual_cortex import DivisiveNormalization, EnergyModel, gabor
from isoresponse.neuron import Neuron

close = {"rtol": 1e-8, "atol": 1e-8}


def curvatures(neuron, x):
    """All principal curvatures (case, n - 1) that the library measures, descending."""
    seen = principal_curvatures(exact_jet(neuron, x), x[0].numel() - 1, generator=torch.Generator().manual_seed(0))
    assert (seen.status == int(Status.DONE)).all()
    return seen.values


def descending(*parts):
    return torch.cat(parts, 1).sort(1, descending=True).values


def zeros(cases, count):
    return torch.zeros(cases, count, dtype=torch.float64)


def hyperbolic(c, slope, r, n):
    """Curvatures (case, n - 1) at distance r (case,) from the line of a twin, and the slope m (case,) of its contours."""
    h = (1 + (c * r / slope) ** 2).sqrt()
    m = c * r / h
    meridian = c / h**3 / (1 + m**2) ** 1.5
    around = c / (h * (1 + m**2).sqrt())
    return descending(meridian[:, None], around[:, None].expand(-1, n - 2)), m


# --- linear, and linear-nonlinear


NONLINEAR = {
    "relu": (torch.relu, lambda z: (z > 0).double()),
    "sigmoid": (torch.sigmoid, lambda z: z.sigmoid() * (1 - z.sigmoid())),
    "softplus": (nn.functional.softplus, torch.sigmoid),
    "module": (nn.Tanh(), lambda z: 1 - z.tanh() ** 2),
    "callable": (lambda z: z**3, lambda z: 3 * z**2),
}


@pytest.mark.filterwarnings("ignore:the exact Hessian vanishes")  # where the nonlinearity is piecewise linear
@pytest.mark.parametrize("name", NONLINEAR)
def test_a_pointwise_nonlinearity_sets_the_spacing_and_bends_nothing(generator, name):
    phi, slope = NONLINEAR[name]
    filters, x = normal(3, 2, 4, generator=generator), 0.3 * normal(5, 2, 4, generator=generator)
    bias = normal(3, generator=generator).abs() + 3  # all rectifiers on
    model = LinearNonlinear(filters, phi, bias=bias)
    z = torch.einsum("uij,cij->cu", filters, x) + bias
    torch.testing.assert_close(model(x), phi(z), **close)
    for unit in range(3):
        neuron = Neuron.of(model, unit=unit, shape=(2, 4))
        gradient = slope(z[:, unit])[:, None, None] * filters[unit]
        torch.testing.assert_close(neuron.value_and_grad(x)[1], gradient, **close)
        torch.testing.assert_close(curvatures(neuron, x), zeros(5, 7), **close)
        spacing = 1 / (slope(z[:, unit]) * filters[unit].norm())
        torch.testing.assert_close(local_geometry(exact_jet(neuron, x)).spacing, spacing, **close)


@pytest.mark.filterwarnings("ignore:the exact Hessian vanishes")
def test_a_linear_neuron_is_its_filter(generator):
    filters, x = normal(2, 6, generator=generator), normal(4, 6, generator=generator)
    model = Linear(filters, bias=0.7)
    torch.testing.assert_close(model(x), x @ filters.T + 0.7)
    neuron = Neuron.of(Linear(filters[:1]), shape=(6,))
    torch.testing.assert_close(neuron.value_and_grad(x)[1], filters[:1].expand(4, -1))
    torch.testing.assert_close(curvatures(neuron, x), zeros(4, 5), **close)


def test_a_silent_rectifier_has_no_contour(generator):
    neuron = Neuron.of(LinearNonlinear(torch.ones(1, 3).double(), torch.relu, bias=-1.0), shape=(3,))
    assert exact_jet(neuron, zeros(2, 3)).status.tolist() == [int(Status.FLAT)] * 2


# --- complex cells


@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_a_complex_cell_is_tolerant_within_its_subspace(generator, k, root):
    filters, x = normal(2, k, 2, 3, generator=generator), normal(5, 2, 3, generator=generator)
    model = EnergyModel(filters, root=root)
    for unit in range(2):
        a = filters[unit].flatten(1)
        project = a.T @ torch.linalg.solve(a @ a.T, a)
        part = x.flatten(1) @ project
        r = part.norm(dim=1, keepdim=True)
        torch.testing.assert_close(model(x)[:, unit], r[:, 0] if root else r[:, 0] ** 2, **close)
        neuron = Neuron.of(model, unit=unit, shape=(2, 3))
        gradient = part / r if root else 2 * part
        torch.testing.assert_close(neuron.value_and_grad(x)[1].flatten(1), gradient, **close)
        expected = descending(-1 / r.expand(-1, k - 1), zeros(5, 6 - k))
        if k > 1 or not root:  # the root of one square is straight without a Hessian
            torch.testing.assert_close(curvatures(neuron, x), expected, **close)


def test_the_basis_is_the_nearest_orthonormal_one(generator):
    axes = frames(1, 7, generator=generator)[:, :3]
    torch.testing.assert_close(EnergyModel(axes).basis, axes)
    slanted = normal(1, 3, 7, generator=generator)
    basis = EnergyModel(slanted).basis[0]
    torch.testing.assert_close(basis @ basis.T, torch.eye(3, dtype=torch.float64))
    near = (slanted[0] - basis).norm()
    for turn in frames(20, 3, generator=generator):
        assert near <= (slanted[0] - turn @ basis).norm() + 1e-12


@pytest.mark.parametrize("root", [False, True])
def test_a_complex_cell_that_sees_nothing_is_flat_not_nan(generator, root):
    neuron = Neuron.of(EnergyModel(normal(1, 2, 5, generator=generator), root=root), shape=(5,))
    value, gradient = neuron.value_and_grad(zeros(1, 5))
    assert float(value) == float(gradient.norm()) == 0
    assert exact_jet(neuron, zeros(1, 5)).status.tolist() == [int(Status.FLAT)]


# --- divisive normalisation


@pytest.mark.parametrize(
    ("stage", "k", "at_tip"),
    [
        ("filters", 1, False), ("filters", 1, True), ("roots", 1, False), ("roots", 2, False), ("roots", 3, False),
        ("energies", 1, False), ("energies", 2, False), ("energies", 3, False), ("energies", 2, True),
    ],
)  # fmt: skip
def test_normalised_cells_are_tolerant_within_and_selective_against(generator, stage, k, at_tip):
    """Hyperboloids of revolution, at their tip too, where the rest of the pool is silent; complex cells and simple ones."""
    n, subspaces, weight, s, cases = 8, 2, 0.6, 0.7, 5
    turn = torch.eye(n, dtype=torch.float64) if at_tip else frames(1, n, generator=generator)[0]  # exact zeros
    axes = turn[: k * subspaces].reshape(subspaces, k, n)
    if stage == "filters":
        model = nn.Sequential(Linear(axes[:, 0]), DivisiveNormalization(semi_saturation=s, pool=weight))
    elif stage == "roots":
        model = nn.Sequential(EnergyModel(axes, root=True), DivisiveNormalization(semi_saturation=s, pool=weight))
    else:
        model = nn.Sequential(EnergyModel(axes), DivisiveNormalization(exponent=1.0, semi_saturation=s**2, pool=weight))
    own, other = (nn.functional.normalize(normal(cases, k, generator=generator)) for _ in range(2))
    own = own.abs() if k == 1 else own
    u = uniform(cases, 1, low=0.5, high=2.0, generator=generator)
    r = 0 * u if at_tip else uniform(cases, 1, low=0.1, high=2.0, generator=generator)
    rest = torch.linalg.qr(axes.reshape(-1, n).T, mode="complete")[0][:, subspaces * k :]
    silent = normal(cases, n - subspaces * k, generator=generator) @ rest.T
    x = u * own @ axes[0] + r * other @ axes[1] + silent
    c = u**2 / (s**2 + weight * (u**2 + r**2))
    torch.testing.assert_close(model(x)[:, :1], c, **close)
    a, b = s / (1 / c - weight).sqrt(), s / weight**0.5
    size = (u**2 / a**4 + r**2 / b**4).sqrt()  # cosh e = u / A, sinh e = r / B
    meridian = a * b / ((a * r / b) ** 2 + (b * u / a) ** 2) ** 1.5
    inward, outward = -1 / (a**2 * size), 1 / (b**2 * size)
    expected = descending(meridian, inward.expand(-1, k - 1), outward.expand(-1, k - 1), zeros(cases, n - 2 * k))
    neuron = Neuron.of(model, unit=0, shape=(n,))
    torch.testing.assert_close(curvatures(neuron, x), expected, **close)


@pytest.mark.parametrize("exponent", [1.0, 1.5, 2.0, 3.0, 4.0])
def test_generalised_normalisation_as_documented(generator, exponent):
    """Any exponent, dependent filters, an uneven pool: never bent inward."""
    n, units, cases, p, s = 5, 7, 6, exponent, 0.8
    a, pool = normal(units, n, generator=generator), uniform(units, units, generator=generator)
    x = normal(cases, n, generator=generator)
    x = x * (x @ a[2]).sign()[:, None]  # unit 2 responds
    model = nn.Sequential(Linear(a), DivisiveNormalization(exponent=p, semi_saturation=s, pool=pool))
    d = x @ a.T
    own, total = d[:, 2], s**p + (pool[2] * d.abs() ** p).sum(1)
    value = own**p / total
    torch.testing.assert_close(model(x)[:, 2], value, **close)
    assert (model(-x)[:, 2] == 0).all()
    neuron = Neuron.of(model, unit=2, shape=(n,))
    steep = p * a[2] / own[:, None] - p / total[:, None] * ((pool[2] * d.abs() ** (p - 1) * d.sign()) @ a)
    torch.testing.assert_close(neuron.value_and_grad(x)[1], value[:, None] * steep, **close)
    bent = torch.einsum("cj,ji,jk->cik", pool[2] * d.abs() ** (p - 2) / total[:, None], a, a)
    bent = bent - (a[2] / own[:, None])[:, :, None] * (a[2] / own[:, None])[:, None]
    unit = steep / steep.norm(dim=1, keepdim=True)
    tangents = torch.eye(n, dtype=torch.float64) - unit[:, :, None] * unit[:, None]
    shape = p * (p - 1) * tangents @ bent @ tangents / steep.norm(dim=1)[:, None, None]
    off = torch.linalg.qr(unit[:, :, None], mode="complete")[0][:, :, 1:]
    expected = torch.linalg.eigvalsh(off.mT @ shape @ off).flip(1)
    seen = curvatures(neuron, x)
    torch.testing.assert_close(seen, expected, **close)
    assert (seen > -1e-12).all()


def test_the_most_exciting_input_lies_on_a_silent_pool_and_is_bent_there(generator):
    """On its axis all other drives are exactly zero; curvature there is A / B^2, or zero for exponents above 2."""
    model = nn.Sequential(Linear(torch.eye(4).double()), DivisiveNormalization(semi_saturation=0.5, pool=0.9))
    x = torch.tensor([[2.0, 0, 0, 0]], dtype=torch.float64)  # d = A, and 1 / B^2 = 0.9 / 0.25
    seen = curvatures(Neuron.of(model, unit=0, shape=(4,)), x)
    torch.testing.assert_close(seen, torch.full((1, 3), 2.0 * 0.9 / 0.25, dtype=torch.float64), **close)
    model[1].exponent = 3.0
    torch.testing.assert_close(curvatures(Neuron.of(model, unit=0, shape=(4,)), x), zeros(1, 3), **close)


def test_the_semi_saturation_is_where_a_unit_alone_answers_one_half():
    stage = DivisiveNormalization(exponent=2.7, semi_saturation=3.0)
    torch.testing.assert_close(stage(torch.tensor([[3.0], [0.0]])), torch.tensor([[0.5], [0.0]]))
    uneven = DivisiveNormalization(pool=torch.tensor([[0.0, 2.0], [1.0, 0.0]]))
    torch.testing.assert_close(uneven(torch.tensor([[3.0, 2.0]])), torch.tensor([[9 / 9, 4 / 10]]))


# --- Gabor filters


def test_gabor_filters_make_a_quadrature_pair():
    how = {"wavelength": 5.3, "orientation": 0.7, "dtype": torch.float64}
    even, odd = (gabor((15, 18), phase=p, **how) for p in (0.0, math.pi / 2))
    for patch in (even, odd):
        assert float(patch.norm()) == pytest.approx(1)
        assert abs(float(patch.sum())) < 1e-12
    assert abs(float((even * odd).sum())) < 1e-12
    torch.testing.assert_close(even, even.flip(0, 1))
    torch.testing.assert_close(odd, -odd.flip(0, 1))


def test_gabor_filters_have_the_orientation_phase_and_place_that_they_say():
    vertical = gabor((21, 21), wavelength=6.0, orientation=math.pi / 2, dtype=torch.float64)
    horizontal = gabor((21, 21), wavelength=6.0, dtype=torch.float64)
    torch.testing.assert_close(vertical, horizontal.T)
    assert (vertical[9:12, 10] > 0.8 * vertical[10, 10]).all()  # the bar is upright
    assert float(vertical[10, 13]) < 0  # half a period to the side
    right = gabor((21, 21), wavelength=6.0, orientation=math.pi / 2, phase=0.8, dtype=torch.float64)
    down = gabor((21, 21), wavelength=6.0, phase=0.8, dtype=torch.float64)
    for patch, axis in ((right, 1), (down, 0)):
        line = patch.square().sum(1 - axis)
        assert float(line[11]) > float(line[9])
    slanted = gabor((21, 21), wavelength=6.0, orientation=math.pi / 4, dtype=torch.float64)
    assert float(slanted[8, 12]) > 0 > float(slanted[12, 12])  # up and to the right along the bar, down across it
    moved = gabor((21, 21), wavelength=6.0, center=(4.0, 15.0), dtype=torch.float64)
    assert divmod(int(moved.argmax()), 21) == (4, 15)
    assert gabor((9, 9), wavelength=4.0).dtype == torch.get_default_dtype()


# --- pairs that match


def hidden(generator):
    net = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 1)).double()
    for parameter in net.parameters():
        parameter.data = normal(*parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
    return net


BENT = {
    "complex cell": lambda g: EnergyModel(normal(1, 2, 2, 3, generator=g)),
    "normalised": lambda g: nn.Sequential(
        Linear(normal(4, 2, 3, generator=g)), nn.Softplus(), DivisiveNormalization(), Linear(torch.eye(4).double()[:1])
    ),
    "outward bent": lambda g: nn.Sequential(nn.Flatten(), OutwardBent(normal(6, generator=g))),
    "network": lambda g: nn.Sequential(nn.Flatten(), hidden(g)),
}


@pytest.mark.parametrize("name", BENT)
@pytest.mark.parametrize(("curvature", "slope"), [(0.0, 1.0), (1.7, 0.6), (-0.8, 1.3), (0.9, math.inf)])
def test_a_twin_of_any_neuron_differs_in_its_bending_only(generator, name, curvature, slope):
    given = Neuron.of(BENT[name](generator), shape=(2, 3))
    point = normal(2, 3, generator=generator)
    model = Twin(given, point, curvature=curvature, slope=slope)
    twin = Neuron.of(model, shape=(2, 3))
    for mine, theirs in zip(twin.value_and_grad(point[None]), given.value_and_grad(point[None]), strict=True):
        torch.testing.assert_close(mine, theirs, **close)
    line = point + torch.linspace(-1, 2, 9).double()[:, None, None] * model.direction
    torch.testing.assert_close(twin(line), given(line), **close)
    here, there = (local_geometry(exact_jet(neuron, point[None])) for neuron in (twin, given))
    torch.testing.assert_close(here.spacing, there.spacing, **close)
    torch.testing.assert_close(here.spacing_rate, there.spacing_rate, **close)
    torch.testing.assert_close(here.turning, torch.zeros_like(here.turning), **close)
    expected = torch.full((1, 5), curvature, dtype=torch.float64)
    if name != "outward bent" or curvature:  # along its gradient far off the axis it has some Hessian as well
        torch.testing.assert_close(curvatures(twin, point[None]), expected, **close)


@pytest.mark.parametrize(("curvature", "slope"), [(1.7, 0.6), (-0.8, 1.3), (0.9, math.inf)])
def test_curvatures_of_a_twin_away_from_its_line(generator, curvature, slope):
    """A rising response along the line, everywhere: an exponential."""
    point, u, x = normal(6, generator=generator), normal(6, generator=generator), normal(9, 6, generator=generator)
    u = u / u.norm()
    model = Twin(lambda z: torch.exp(0.4 * z @ u), point, curvature=curvature, slope=slope)
    torch.testing.assert_close(model.direction, u)
    away = x - point
    across = away - (away @ u)[:, None] * u
    r = across.norm(dim=1)
    expected, m = hyperbolic(curvature, slope, r, 6)
    neuron = Neuron.of(model, shape=(6,))
    value, gradient = neuron.value_and_grad(x)
    direct = 0.4 * value[:, None] * (u - m[:, None] * across / r[:, None])
    torch.testing.assert_close(gradient, direct, **close)
    torch.testing.assert_close(curvatures(neuron, x), expected, **close)


def test_the_essays_bent_neuron_is_a_twin_and_has_its_curvatures_everywhere(generator):
    phi, x = normal(5, generator=generator), normal(7, 5, generator=generator)
    u = phi / phi.norm()
    bent = OutwardBent(phi, bend=0.8, width=0.6)
    twin = Twin(Straight(phi), zeros(1, 5)[0], direction=phi, curvature=0.8 / 0.6, slope=0.8)
    torch.testing.assert_close(bent(x), twin(x), **close)
    across = x - (x @ u)[:, None] * u
    r = across.norm(dim=1)
    expected, m = hyperbolic(0.8 / 0.6, 0.8, r, 5)
    neuron = Neuron.of(bent, shape=(5,))
    torch.testing.assert_close(neuron.value_and_grad(x)[1], u - m[:, None] * across / r[:, None], **close)
    torch.testing.assert_close(curvatures(neuron, x), expected, **close)


@pytest.mark.parametrize("curvature", [1.2, -0.4])
@pytest.mark.parametrize("name", ["linear", "softplus"])
def test_matched_pairs_match(generator, curvature, name):
    mei = normal(2, 3, generator=generator)
    mei = 1.5 * mei / mei.norm()
    given = None if name == "linear" else LinearNonlinear(mei[None], nn.functional.softplus, bias=-1.0)
    pair = [Neuron.of(model, shape=(2, 3)) for model in matched_pair(mei, curvature=curvature, neuron=given)]
    straight, bent = pair
    ray = torch.linspace(-2, 2, 9).double()[:, None, None] * mei
    for a, b in zip(straight.value_and_grad(ray), bent.value_and_grad(ray), strict=True):
        torch.testing.assert_close(a, b, **close)
    level = straight.value(1.3 * mei[None])
    gaps = [iso.closest_point(neuron, mei[None], level).distance for neuron in pair]
    torch.testing.assert_close(torch.cat(gaps), torch.full((2,), 0.45, dtype=torch.float64), rtol=1e-8, atol=0)
    ball = nn.functional.normalize(normal(500, 6, generator=generator)).reshape(-1, 2, 3) * 1.5
    for neuron in pair:
        assert (neuron.value(ball) < neuron.value(mei[None])).all()
        best = iso.most_exciting_input(
            neuron, norm=1.5, starts=2, max_steps=40, generator=generator, center=torch.zeros_like(mei)
        )
        torch.testing.assert_close(best.point, mei, rtol=0, atol=2e-3)
    hessians = [exact_jet(neuron, mei[None]).hessian.dense()[0] for neuron in pair]
    u = mei.flatten() / 1.5
    tangents = torch.eye(6, dtype=torch.float64) - u[:, None] * u
    steepness = straight.value_and_grad(mei[None])[1].norm()
    torch.testing.assert_close(hessians[1] - hessians[0], -curvature * steepness * tangents, **close)
    aside = ray + normal(9, 2, 3, generator=generator)
    assert ((bent(aside) < straight(aside)) == (curvature > 0)).all()


def test_contours_bent_more_tightly_than_the_sphere_have_another_mei(generator):
    mei = torch.tensor([0.0, 2.0, 0.0], dtype=torch.float64)
    _, bent = matched_pair(mei, curvature=-0.499)
    nearly = nn.functional.normalize(mei + 0.05 * normal(200, 3, generator=generator)) * 2
    assert (bent(nearly) < bent(mei[None])).all()
    tight = Twin(Linear(mei[None] / 2), mei, curvature=-0.501)
    assert (tight(nearly) > tight(mei[None])).any()
    with pytest.raises(ValueError, match=r"a curvature above -1/\|mei\| = -0.5, .* got curvature=-0.5; bend less"):
        matched_pair(mei, curvature=-0.5)


# --- as all modules


def models(dtype, generator):
    filters = normal(3, 2, 4, generator=generator).to(dtype)
    return [
        Linear(filters, bias=0.3),
        LinearNonlinear(filters, torch.relu),
        EnergyModel(filters[None], root=True),
        nn.Sequential(Linear(filters), DivisiveNormalization(pool=torch.rand(3, 3, generator=generator))),
        nn.Sequential(EnergyModel(filters[:, None]), DivisiveNormalization(exponent=1.0, pool=0.3)),
        *matched_pair(filters[0], curvature=0.7),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_follows_the_input_and_a_case_does_not_know_its_neighbours(generator, dtype):
    x = normal(5, 2, 4, generator=generator)
    for model in models(torch.float64, generator):
        y = model(x.to(dtype))
        assert y.dtype == dtype
        assert len(y) == 5
        torch.testing.assert_close(model(x[3:4].to(dtype)), y[3:4])
        torch.testing.assert_close(y, model(x).to(dtype), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.to(dtype)(x.to(dtype)), y, rtol=1e-5, atol=1e-5)
        assert all(not p.requires_grad for p in model.parameters())


def test_single_precision_models_answer_in_double(generator):
    for model in models(torch.float32, generator):
        assert model(normal(2, 2, 4, generator=generator)).dtype == torch.float64


@pytest.mark.parametrize("model", [Straight(torch.ones(4)), OutwardBent(torch.ones(4))])
def test_the_essays_pair_follows_the_input_and_refuses_another(generator, model):
    x = normal(3, 4, generator=generator)
    assert model(x).dtype == torch.float64
    torch.testing.assert_close(model(x.float()), model(x).float())
    for bad in (x[:, :3], x[0], x.long()):
        with pytest.raises(ValueError, match=r"expected floating-point inputs of shape \(case, 4\), as phi is, got"):
            model(bad)


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.5])
def test_normalised_responses_to_huge_drives_are_shares_not_nan(exponent):
    drive = torch.tensor([[1e30, 1e30], [3e30, -1e30], [1e-30, 0.0]])
    told = DivisiveNormalization(exponent=exponent)(drive)
    part = 3**exponent / (3**exponent + 1)
    torch.testing.assert_close(told[:2], torch.tensor([[0.5, 0.5], [part, 0.0]]))
    assert (told[2] >= 0).all()


# --- what makes no sense

ONE = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: Linear(torch.ones(3)), r"filters of shape \(units, \*shape\), got torch.float32 \(3,\); a single"),
        (lambda: Linear(torch.ones(2, 3).long()), "needs floating-point filters .* got torch.int64"),
        (lambda: Linear(torch.ones(0, 3)), r"got torch.float32 \(0, 3\)"),
        (lambda: Linear(ONE / 0), "needs finite filters and bias, got NaN or infinity"),
        (lambda: Linear(ONE, bias=math.nan), "needs finite filters and bias"),
        (lambda: Linear(ONE, bias=torch.ones(3)), r"a number or has shape \(2,\), one per filter, got \(3,\)"),
        (lambda: Linear(ONE)(torch.ones(4, 2)), r"inputs of shape \(case, 3\), as the filters are, got torch.float32 \(4, 2\)"),
        (lambda: Linear(ONE)(torch.ones(4, 3).long()), "expected floating-point inputs .* got torch.int64"),
        (lambda: Linear(ONE)(torch.tensor(1.0)), r"got torch.float32 \(\); convert or reshape"),
        (
            lambda: LinearNonlinear(ONE, lambda z: z.sum(1))(torch.ones(4, 3)),
            r"keep the shape \(4, 2\), got \(4,\) from it",
        ),
        (lambda: Straight(torch.zeros(3)), r"phi must be one direction \(n,\), .* of norm 0.0"),
        (lambda: OutwardBent(torch.ones(3) / 0), "phi must be one direction"),
        (lambda: Straight(torch.ones(3).long()), "got torch.int64"),
        (lambda: EnergyModel(ONE), r"shape \(units, k, \*shape\), got torch.float32 \(2, 3\); a single quadrature pair"),
        (lambda: EnergyModel(ONE[None] * math.nan), "EnergyModel needs finite filters"),
        (lambda: EnergyModel(ONE[None]), "got 2 per unit in 3 dimensions, dependent in 1 of 1 units"),
        (lambda: EnergyModel(torch.eye(4)[None, :, :3]), "linearly independent filters for every unit, got 4 per unit in 3"),
        (lambda: DivisiveNormalization(exponent=0.5), "exponent of at least 1 .* got exponent=0.5"),
        (lambda: DivisiveNormalization(semi_saturation=0.0), "positive semi_saturation, .* semi_saturation=0.0"),
        (lambda: DivisiveNormalization(pool=-0.5), r"weights that are not negative, .* got shape \(\) down to -0.5"),
        (lambda: DivisiveNormalization(pool=ONE), r"one number or \(units, units\), got shape \(2, 3\)"),
        (lambda: DivisiveNormalization(pool=torch.eye(3))(ONE[:, :2]), r"drives of shape \(case, 3\), got torch.float32 \(2, 2"),
        (lambda: DivisiveNormalization()(ONE[None]), r"drives of shape \(case, units\), got torch.float32 \(1, 2, 3\)"),
        (lambda: gabor((8, 8), wavelength=1.9), "a wavelength of at least 2 pixels .* wavelength=1.9"),
        (lambda: gabor((8, 8), wavelength=4.0, width=0.0), "a positive width, .* width=0.0"),
        (lambda: gabor((9, 9), wavelength=2.0, phase=math.pi / 2), r"vanishes on a grid of \(9, 9\) pixels"),
        (lambda: gabor((8, 8), wavelength=4.0, center=(999.0, 0.0)), "vanishes on a grid"),
        (lambda: Twin(Straight(torch.ones(3)), torch.ones(3), curvature=math.inf), "a finite curvature .* curvature=inf"),
        (lambda: Twin(Straight(torch.ones(3)), torch.ones(3), slope=0.0), "a positive slope, .* slope=0.0"),
        (lambda: Twin(Straight(torch.ones(3)), torch.ones(3).long()), "one finite floating-point input, got torch.int64"),
        (
            lambda: Twin(Straight(torch.ones(3)), torch.ones(3), direction=torch.ones(2)),
            r"a direction of the point's shape \(3,\), got \(2,\)",
        ),
        (
            lambda: Twin(Straight(torch.ones(3)), torch.ones(3), direction=torch.zeros(3)),
            "needs a direction that is finite and not zero, got norm 0.0",
        ),
        (lambda: Twin(EnergyModel(torch.eye(3)[None, :2]), torch.zeros(3)), "needs a gradient at the point that is finite"),
        (lambda: Twin(lambda x: torch.ones(len(x)), torch.ones(3)), "needs a gradient at the point that is finite"),
        (lambda: Twin(Linear(ONE), torch.ones(3)), r"shape \(1,\) or \(1, 1\), got \(1, 2\); pick a unit"),
        (
            lambda: Twin(Straight(torch.ones(3)), torch.ones(3))(torch.ones(4, 2)),
            r"inputs of shape \(case, 3\), as the point is, got \(4, 2\)",
        ),
        (lambda: matched_pair(torch.zeros(3), curvature=1.0), "an?.* mei that is finite and not zero, got .* norm 0.0"),
        (lambda: matched_pair(torch.ones(3).long(), curvature=1.0), "a floating-point mei .* got torch.int64"),
    ],
)  # fmt: skip
def test_neurons_that_make_no_sense_are_refused(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()


def test_a_nonlinearity_is_a_function_not_a_name():
    with pytest.raises(TypeError, match=r"a nonlinearity that can be called, got 'relu'; give torch\.relu"):
        inspect.unwrap(LinearNonlinear.__init__)(LinearNonlinear.__new__(LinearNonlinear), ONE, "relu")


def test_filters_twins_and_pictures_of_other_kinds_are_refused(unchecked):
    with pytest.raises(ValueError, match=r"a shape \(height, width\) and a floating-point dtype, got shape=\(16,\)"):
        unchecked(gabor)((16,), wavelength=5.0)
    with pytest.raises(ValueError, match=r"got shape=\(8, 8\) and dtype=torch\.int32"):
        gabor((8, 8), wavelength=5.0, dtype=torch.int32)
    with pytest.raises(TypeError, match=r"a neuron that can be called with inputs .* got a int"):
        unchecked(Twin.__init__)(Twin.__new__(Twin), 3, torch.ones(2))
    with pytest.raises(
        ValueError, match="mosaic needs at least one column and no negative gap, got columns=-2 and gap=1"
    ):
        mosaic(torch.ones(4, 3), (2, 2), columns=-2)
    with pytest.raises(ValueError, match=r"has 4 rows of floating-point numbers, got torch\.int64 \(4, 3\)"):
        mosaic(torch.ones(4, 3, dtype=torch.int64), (2, 2))
    with pytest.raises(ValueError, match=r"got torch\.float32 \(4, 0\)"):
        fit_gabors(torch.ones(4, 0), (2, 2))
    with pytest.raises(ValueError, match=r"cnn needs a shape \(channel, height, width\) and sizes of at least one"):
        cnn((1, 8, 8), hidden=0)
