"""The adversarial subspace against geometry that knows it, and against a general-purpose solver with constraints."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import scipy.optimize
import torch
from analytic import frames, names, normal, uniform

from isoresponse.classifier import Classifier
from isoresponse.dual import nearest_within
from isoresponse.geometry import FlatHessianWarning
from isoresponse.jets import secant_jet
from isoresponse.loop import Status
from isoresponse.neuron import Box, Neuron
from isoresponse.records import to_dataset
from isoresponse.solve import closest_point
from isoresponse.subspace import AdversarialSubspace, adversarial_subspace, curvatures_within

HALF_AXES = torch.tensor([1.0, 1.7, 2.5, 4.0, 7.0]).double()
FIELDS = ("point", "basis", "value", "distance", "optimality", "status")


def ellipsoid(turn=None, box=None):
    """Contours are ellipsoids round the origin with these half-axes at level 1, turned by `turn` (n, n)."""
    turn = torch.eye(5).double() if turn is None else turn
    return Neuron(lambda x: ((x @ turn.to(x)) / HALF_AXES.to(x)).square().sum(1), (5,), box or Box())


def from_the_middle(cases=1, generator=None):
    """Starts next to the centre, so that the closest points are next to the vertices."""
    return 1e-4 * torch.ones(1, 5).double() if generator is None else 1e-4 * normal(cases, 5, generator=generator)


def bent(cases, n=6, *, generator, box=None):
    """A smooth two-layer response of its own, starts in the unit box, and levels not far above."""
    w, b, v = normal(14, n, generator=generator), normal(14, generator=generator), normal(14, generator=generator)
    neuron = Neuron(lambda x: torch.nn.functional.softplus(2 * x @ w.T + b) @ v, (n,), box or Box())
    x = uniform(cases, n, generator=generator)
    return neuron, x, neuron.value(x) + 0.2


def by_slsqp(neuron, x, level, basis, guess):
    """Distance to the closest point across from `guess`, orthogonal to `basis` (k, n) and in the box; NumPy throughout."""
    x, basis = x.numpy(), basis.numpy()

    def f(d):
        return float(neuron.value(torch.from_numpy(x + d)[None])) - level

    def slope(d):
        return neuron.value_and_grad(torch.from_numpy(x + d)[None])[1][0].numpy()

    constraints = [{"type": "eq", "fun": f, "jac": slope}]
    if len(basis):
        constraints.append({"type": "eq", "fun": lambda d: basis @ d, "jac": lambda d: basis})
    low, high = (t.expand(len(x)).numpy() - x for t in neuron.box.bounds(torch.from_numpy(x)))
    found = scipy.optimize.minimize(
        lambda d: d @ d, guess, jac=lambda d: 2 * d, constraints=constraints, bounds=list(zip(low, high, strict=True)),
        method="SLSQP", options={"ftol": 1e-14, "maxiter": 200},
    )  # fmt: skip
    assert abs(f(found.x)) < 1e-7
    return float(np.sqrt(found.fun))


def require_sound(neuron, x, level, found, slack=1e-12):
    """Answers are across, in the box, orthogonal to each other, in order, and described by their numbers."""
    sign = torch.where(level >= neuron.value(x), 1.0, -1.0).to(x)
    dims = found.status.shape[1]
    for k in range(dims):
        ok = found.success[:, k]
        at = found.point[ok, k]
        part = neuron.select(ok)
        assert (sign[ok] * (part.value(at) - torch.as_tensor(level).expand(len(x))[ok]) >= -slack).all()
        assert neuron.box.contains(at).all()
        torch.testing.assert_close(found.value[ok, k], part.value(at), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.distance[ok, k], (at - x[ok]).flatten(1).norm(dim=1), rtol=1e-4, atol=1e-6)
    for numbers in (found.point, found.value, found.distance):
        assert (
            torch.isfinite(numbers.flatten(2) if numbers.ndim > 2 else numbers[..., None]).all(2) == found.success
        ).all()
    known = torch.isfinite(found.basis).all(2)
    filled = found.basis.nan_to_num()
    off = filled @ filled.transpose(1, 2) - torch.diag_embed(known.to(filled))
    assert off.abs().max() < 100 * torch.finfo(x.dtype).eps * (1 + 1 / float(found.distance[known].min()))
    assert (found.distance.nan_to_num(nan=1e9).diff(dim=1) >= 0).all()


# ------------------------------------------------------------------------------------------------ a quadratic programme


def programme(cases=6, k=3, n=9, *, generator):
    """Rows of length one, bounds about zero, and values that a point inside has."""
    rows = normal(cases, k, n, generator=generator)
    rows = rows / rows.norm(dim=2, keepdim=True)
    lower, upper = -uniform(cases, n, generator=generator), uniform(cases, n, generator=generator)
    inside = lower + (upper - lower) * uniform(cases, n, low=0.1, high=0.9, generator=generator)
    return 2 * normal(cases, n, generator=generator), rows, torch.einsum("ckn,cn->ck", rows, inside), lower, upper


def test_the_nearest_point_is_that_of_a_general_solver(generator):
    y, rows, values, lower, upper = programme(generator=generator)
    d, multipliers, met = nearest_within(y, rows, values, lower, upper)
    assert met.all()
    aim = y + torch.einsum("ck,ckn->cn", multipliers, rows)
    torch.testing.assert_close(d, torch.minimum(torch.maximum(aim, lower), upper))
    for c in range(len(y)):
        target, low, high = (t[c].numpy() for t in (y, lower, upper))
        found = scipy.optimize.minimize(
            lambda p, target: ((p - target) ** 2).sum(), np.zeros(9), (target,), jac=lambda p, target: 2 * (p - target),
            constraints=scipy.optimize.LinearConstraint(rows[c].numpy(), values[c].numpy(), values[c].numpy()),
            bounds=scipy.optimize.Bounds(low, high), method="SLSQP", options={"ftol": 1e-12},
        )  # fmt: skip
        assert found.success
        np.testing.assert_allclose(d[c].numpy(), found.x, atol=1e-5)


def test_the_nearest_point_by_brute_force():
    """In the plane, on a line in a box: no point of a million of the line's points is nearer."""
    y, rows = torch.tensor([[2.0, 0.3]]).double(), torch.tensor([[[0.6, 0.8]]]).double()
    lower, upper = torch.tensor([[-1.0, -1.0]]).double(), torch.tensor([[0.7, 1.0]]).double()
    d, _, met = nearest_within(y, rows, torch.tensor([[0.5]]).double(), lower, upper)
    t = torch.linspace(-3, 3, 1_000_001).double()
    line = torch.stack([0.3 - 0.8 * t, 0.4 + 0.6 * t], 1)
    inside = ((line >= lower) & (line <= upper)).all(1)
    nearest = line[inside][(line[inside] - y).norm(dim=1).argmin()]
    assert met.all()
    torch.testing.assert_close(d[0], nearest, rtol=0, atol=1e-5)


def test_without_bounds_it_is_the_projection(generator):
    y, _, values, *_ = programme(generator=generator)
    rows, free = frames(6, 9, generator=generator)[:, :3], torch.full((6, 9), torch.inf).double()
    d, _, met = nearest_within(y, rows, values, -free, free)
    plain = y + torch.einsum("ck,ckn->cn", values - torch.einsum("ckn,cn->ck", rows, y), rows)
    assert met.all()
    torch.testing.assert_close(d, plain, rtol=0, atol=1e-12)
    again, _, _ = nearest_within(d, rows, values, -free, free)
    torch.testing.assert_close(again, d, rtol=0, atol=1e-12)


def test_a_point_that_does_not_exist_is_not_met():
    one = torch.ones(2, 3).double()
    rows = one[:, None] / 3**0.5
    d, _, met = nearest_within(0 * one, rows, torch.tensor([[1.0], [9.0]]).double(), -one, one)
    assert met.tolist() == [True, False]
    torch.testing.assert_close(d[1], one[1])  # as near as the box comes


def test_a_soft_constraint_is_missed_by_its_multiplier(generator):
    y, rows, values, lower, upper = programme(generator=generator)
    soft = 0.1 * torch.ones_like(values)
    d, multipliers, _ = nearest_within(y, rows, values, lower, upper, soft)
    torch.testing.assert_close(torch.einsum("ckn,cn->ck", rows, d) + soft * multipliers, values, rtol=0, atol=1e-10)


# ------------------------------------------------------------------------------------------------------- known answers


def test_the_axes_of_an_ellipsoid(generator):
    """The half-axes in order, along them, whichever way they point."""
    turn = frames(1, 5, generator=generator)[0]
    x = from_the_middle(2, generator)
    for neuron, axes in ((ellipsoid(), torch.eye(5).double()), (ellipsoid(turn), turn)):
        found = adversarial_subspace(neuron, x, 1.0, dims=5)
        assert set(names(found.status.flatten())) == {"DONE"}
        require_sound(neuron, x, 1.0, found)
        torch.testing.assert_close(found.distance, HALF_AXES.expand(2, -1), rtol=3e-4, atol=0)
        along = torch.einsum("ckn,nk->ck", found.basis, axes).abs()
        torch.testing.assert_close(along, torch.ones_like(along), rtol=0, atol=1e-4)
        assert (found.reached == 5).all()


def test_curvatures_of_an_ellipsoid_inside_the_subspace(generator):
    """At the vertex a the normal curvature along axis b is a / b^2, inward round the lower response."""
    x = from_the_middle()
    found = adversarial_subspace(ellipsoid(), x, 1.0, dims=4, generator=generator)
    truth = (-HALF_AXES[0] / HALF_AXES[1:4] ** 2).flip(0)
    torch.testing.assert_close(found.curvatures.values[0], truth, rtol=1e-3, atol=0)
    torch.testing.assert_close(found.mean_curvature, truth.mean()[None], rtol=1e-3, atol=0)
    # any tangents lie between the extremes, and are orthonormal tangents
    every = -HALF_AXES[0] / HALF_AXES[1:] ** 2
    values, directions = found.random_curvatures.values[0], found.random_curvatures.directions[0]
    assert ((values > every.min() - 1e-3) & (values < every.max() + 1e-3)).all()
    torch.testing.assert_close(directions @ directions.T, torch.eye(3).double(), rtol=0, atol=1e-10)
    assert directions[:, 0].abs().max() < 1e-3
    torch.testing.assert_close(found.random_mean_curvature[0], values.mean())


def test_curvatures_at_a_scale_and_of_part_of_a_basis(generator):
    """A quadratic is bent alike at every scale. Directions that are not known, at the end, leave the others alone."""
    x, turn = from_the_middle(), frames(1, 5, generator=generator)[0]
    found = adversarial_subspace(ellipsoid(turn), x, 1.0, dims=4, jet=partial(secant_jet, scale=0.3))
    assert found.curvatures.estimator.startswith("secant")
    truth = (-HALF_AXES[0] / HALF_AXES[1:4] ** 2).flip(0)
    torch.testing.assert_close(found.curvatures.values[0], truth, rtol=1e-3, atol=0)
    basis = torch.cat([found.basis, found.basis, found.basis])
    basis[1, 3:], basis[2, 1:] = torch.nan, torch.nan
    parts = curvatures_within(ellipsoid(turn), found.point[[0, 0, 0], 0], basis)
    assert names(parts.status) == ["DONE", "DONE", "UNDEFINED"]
    torch.testing.assert_close(parts.values[0], truth, rtol=1e-3, atol=0)
    torch.testing.assert_close(parts.values[1, :2], truth[1:], rtol=1e-3, atol=0)
    assert parts.values[1, 2].isnan()
    assert parts.values[2].isnan().all()


def test_the_subspace_need_not_contain_the_normal(generator):
    """The curvature along the one tangent of a plane that is oblique to the contour: -t'Ht / |g|."""
    known, tangent = from_the_middle(), torch.tensor([0.0, 0.6, 0.8, 0.0, 0.0]).double()
    oblique = torch.tensor([0.8, 0.0, 0.0, 0.6, 0.0]).double()
    vertex = torch.eye(5).double()[:1]
    found = curvatures_within(ellipsoid(), vertex, torch.stack([oblique, tangent])[None])
    truth = -(0.36 / HALF_AXES[1] ** 2 + 0.64 / HALF_AXES[2] ** 2)
    assert found.values.shape == (len(known), 1)
    torch.testing.assert_close(found.values[0, 0], truth)
    torch.testing.assert_close(found.directions[0, 0].abs(), tangent)


def test_a_linear_neuron_has_one_way_out(generator):
    w = normal(4, 6, generator=generator)
    neuron = Neuron(lambda x, w: (w * x).sum(1), (6,), given=(w,))
    x = normal(4, 6, generator=generator)
    gap = uniform(4, low=0.5, high=2.0, generator=generator)
    found = adversarial_subspace(neuron, x, neuron.value(x) + gap, dims=3, budget=20)
    assert [names(s) for s in found.status] == [["DONE", "UNREACHABLE", "UNREACHABLE"]] * 4
    torch.testing.assert_close(found.distance[:, 0], gap / w.norm(dim=1))
    assert found.distance[:, 1:].isnan().all()
    assert (found.reached == 1).all()
    assert (found.gradients[:, 1] <= 20).all()
    assert (found.gradients[:, 2] == 0).all()
    assert names(found.curvatures.status) == ["UNDEFINED"] * 4
    assert found.mean_curvature.isnan().all()


def test_a_linear_neuron_in_a_box_has_one_too():
    """The first perturbation d is t w where it is free, and less at a bound. So an e orthogonal to it rises by
    the sum of (w - d / t) e over the elements at a bound only, where e is no larger than d: less than d rises by.
    """
    neuron = Neuron(lambda x: x @ x.new_tensor([3.0, 2.0, 1.0]), (3,), Box(-10.0, torch.tensor([0.5, 10.0, 10.0])))
    x = torch.zeros(1, 3).double()
    found = adversarial_subspace(neuron, x, 4.0, dims=2, budget=20)
    torch.testing.assert_close(found.point[0, 0], torch.tensor([0.5, 1.0, 0.5]).double(), rtol=0, atol=1e-6)
    assert names(found.status[0]) == ["DONE", "UNREACHABLE"]


@pytest.mark.parametrize("box", [Box(), Box(0.0, 1.0)], ids=["free", "box"])
def test_against_a_general_solver(generator, box):
    """Every answer is the local optimum of the same question, put to SciPy's SLSQP from a place near by."""
    neuron, x, level = bent(2, generator=generator, box=box)
    found = adversarial_subspace(neuron, x, level, dims=3, budget=60, rtol=1e-5)
    require_sound(neuron, x, level, found)
    assert (found.status[:, 0] == int(Status.DONE)).all()
    compared = 0
    for c in range(len(x)):
        dims = int(found.reached[c])
        for k in range(dims):
            guess = (found.point[c, k] - x[c]).numpy() + 0.001
            # orthogonal to those that are nearer, or found after the next one, and so orthogonal to that too
            others = [found.basis[c, :k], torch.cat([found.basis[c, :k], found.basis[c, k + 1 : dims]])]
            truths = [by_slsqp(neuron, x[c], float(level[c]), basis, guess) for basis in others[: 2 if k else 1]]
            assert min(abs(float(found.distance[c, k]) / truth - 1) for truth in truths) < 1e-5
            compared += 1
    assert compared >= 4
    first = closest_point(neuron, x, level, rtol=1e-5)
    torch.testing.assert_close(found.distance[:, 0], first.distance, rtol=1e-6, atol=0)


def test_a_turned_space_has_a_turned_subspace(generator):
    turn = frames(1, 6, generator=generator)[0]
    neuron, x, level = bent(2, generator=generator)
    turned = Neuron(lambda z: neuron.response(z @ turn), (6,))
    one = adversarial_subspace(neuron, x, level, dims=2, budget=60)
    other = adversarial_subspace(turned, x @ turn.T, level, dims=2, budget=60)
    both = one.success & other.success
    assert both[:, 0].all()
    torch.testing.assert_close(one.distance[both], other.distance[both], rtol=1e-6, atol=0)


def test_a_network_with_kinks_in_a_box(generator):
    """Sound answers, and no farther than the same search without the gradients for it."""
    w, v = normal(40, 12, generator=generator), normal(40, generator=generator)
    neuron = Neuron(lambda x: (x @ w.T).relu() @ v, (12,), Box(0.0, 1.0))
    x = uniform(2, 12, generator=generator)
    level = neuron.value(x) + 1.5
    some, more = (
        adversarial_subspace(neuron, x, level, dims=2, budget=b, jet=partial(secant_jet, scale=0.2)) for b in (20, 60)
    )
    for found in (some, more):
        require_sound(neuron, x, level, found)
    assert (more.distance[:, 0] <= some.distance[:, 0] * (1 + 1e-6)).all()
    assert (more.gradients <= 60).all()
    assert torch.isfinite(more.mean_curvature[more.reached >= 2]).all()
    with pytest.warns(FlatHessianWarning):
        adversarial_subspace(neuron, x, level, dims=2, budget=20)


def test_of_a_classifier(generator):
    w = normal(3, 8, generator=generator)
    clf = Classifier.of(torch.nn.Sequential(torch.nn.Flatten(), linear(w)), shape=(2, 4), box=Box(-3.0, 3.0))
    x = uniform(4, 2, 4, low=-1.0, generator=generator)
    labels = clf.predict(x)
    found = adversarial_subspace(clf.decision(labels), x, 0.0, dims=2, budget=40, jet=partial(secant_jet, scale=0.1))
    assert found.point.shape == (4, 2, 2, 4)
    assert found.basis.shape == (4, 2, 8)
    assert (clf.predict(found.point[:, 0]) != labels).all()
    assert (found.distance[:, 0] <= clf.closest_adversary(x, labels).distance * 1.05).all()


def linear(w):
    layer = torch.nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=w.dtype)
    layer.weight.data.copy_(w)
    return layer


# ---------------------------------------------------------------------------------------------------------- invariances


def test_a_case_alone_equals_itself_in_a_batch(generator):
    neuron, x, level = bent(3, generator=generator)
    together = adversarial_subspace(neuron, x, level, dims=2, budget=40, generator=torch.Generator().manual_seed(1))
    for c in (0, 2):
        seed = torch.Generator().manual_seed(1)
        alone = adversarial_subspace(neuron, x[c : c + 1], level[c : c + 1], dims=2, budget=40, generator=seed)
        for field in FIELDS:
            one, other = getattr(alone, field)[0], getattr(together, field)[c]
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4, equal_nan=True)
        torch.testing.assert_close(
            alone.random_curvatures.values[0], together.random_curvatures.values[c], rtol=1e-5, atol=1e-8
        )


def test_repeatable(generator):
    neuron, x, level = bent(2, generator=generator)
    one, other = (
        adversarial_subspace(neuron, x, level, dims=2, budget=20, starts=2, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    assert torch.equal(one.distance, other.distance)
    assert torch.equal(one.random_curvatures.values, other.random_curvatures.values)


def test_more_starts_lose_nothing(generator):
    """The narrow hill is nearer, and against the gradient."""
    neuron = Neuron(
        lambda x: torch.exp(-(x - 3).square().sum(1) / 8) + torch.exp(-(x + 1.3).square().sum(1)), (2,), Box(-2.0, 6.0)
    )
    x = torch.tensor([[0.3, 0.4]]).double()
    one = adversarial_subspace(neuron, x, 0.8, dims=1)
    many = adversarial_subspace(neuron, x, 0.8, dims=1, budget=240, starts=6, generator=generator)
    assert one.distance[0, 0] == pytest.approx(2.41221, rel=1e-4)
    assert many.distance[0, 0] == pytest.approx(1.83562, rel=1e-4)
    assert one.curvatures is None
    assert many.mean_curvature.isnan().all()


def test_float32(generator):
    x = from_the_middle(2, generator).float()
    found = adversarial_subspace(ellipsoid(), x, 1.0, dims=3, generator=generator)
    for field in ("point", "basis", "value", "distance", "optimality"):
        assert getattr(found, field).dtype == torch.float32
    require_sound(ellipsoid(), x, 1.0, found, slack=1e-6)
    torch.testing.assert_close(found.distance, HALF_AXES[:3].float().expand(2, -1), rtol=1e-3, atol=0)
    assert found.random_curvatures.values.dtype == torch.float32


# ---------------------------------------------------------------------------------------------------------- bad weather


def test_every_way_to_fail():
    """A start at the level, one that cannot be left, one that is not a number on the way; the batch goes on."""

    def response(x, kind):
        squared = (x / HALF_AXES).square().sum(1)
        nowhere = torch.where((kind == 2) & (squared > 1e-6), torch.nan, 0.0)
        return torch.where(kind == 1, 0.0, 1.0) * squared + nowhere

    neuron = Neuron(response, (5,), Box(-20.0, 20.0), given=(torch.tensor([0.0, 1.0, 2.0, 0.0]).double(),))
    x = from_the_middle().expand(4, -1).clone()
    x[3] = torch.eye(5)[0]
    found = adversarial_subspace(neuron, x, 1.0, dims=2, budget=60, generator=torch.Generator().manual_seed(0))
    assert names(found.status[0]) == ["DONE", "DONE"]
    assert names(found.status[3]) == ["ALREADY", "ALREADY"]
    assert found.success.tolist() == [[True, True], [False, False], [False, False], [True, True]]
    assert names(found.status[1]) == ["FLAT", "FLAT"]
    assert found.distance[3].tolist() == [0.0, 0.0]
    assert found.reached.tolist() == [2, 0, 0, 0]
    assert found.curvatures.status[1] == found.status[1, 0]
    assert names(found.curvatures.status[[0, 3]]) == ["DONE", "UNDEFINED"]
    torch.testing.assert_close(found.distance[0], HALF_AXES[:2], rtol=1e-3, atol=0)


def test_without_a_generator_there_is_no_random_subspace():
    found = adversarial_subspace(ellipsoid(), from_the_middle(), 1.0, dims=2)
    assert found.random_curvatures is None
    assert found.random_mean_curvature.isnan().all()
    assert torch.isfinite(found.mean_curvature).all()


def test_refusals(generator):
    ask = partial(adversarial_subspace, ellipsoid(), from_the_middle(), 1.0)
    for dims in (0, 6):
        with pytest.raises(ValueError, match=f"dims must be between 1 and 5.* got {dims}"):
            ask(dims=dims)
    with pytest.raises(ValueError, match="starts must be at least 1, and more than 1 need a generator"):
        ask(starts=2)
    with pytest.raises(ValueError, match="budget must be at least 1"):
        ask(budget=0)
    with pytest.raises(ValueError, match="rtol must be at least 0 and below 1"):
        ask(rtol=1.0)
    with pytest.raises(ValueError, match="level must be finite"):
        adversarial_subspace(ellipsoid(), from_the_middle(), torch.nan)
    with pytest.raises(ValueError, match="must lie in the box"):
        adversarial_subspace(ellipsoid(box=Box(1.0, 2.0)), from_the_middle(), 1.0)


def test_it_speaks_and_is_stored(generator):
    found = adversarial_subspace(ellipsoid(), from_the_middle(2, generator), 1.0, dims=2)
    assert (
        repr(found)
        == "AdversarialSubspace(2 cases, 2.0 of 2 dimensions on average, median distances 0.9999, 1.7, {'DONE': 4})"
    )
    assert len(found) == 2
    stored = to_dataset(replace(found, curvatures=None))
    assert stored["distance"].dims == ("case", "dim")
    assert isinstance(found, AdversarialSubspace)
