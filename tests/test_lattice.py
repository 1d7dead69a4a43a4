"""The smallest change that survives storage, against every point of small lattices and on networks."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from analytic import counted, names, normal, quadric, uniform

from isoresponse.classifier import Classifier
from isoresponse.crossing import Solution
from isoresponse.knapsack import Lattice, cheapest
from isoresponse.lattice import LatticeSolution, on_lattice
from isoresponse.loop import Status, take
from isoresponse.models.digits import digits, trained
from isoresponse.neuron import Box, Neuron
from isoresponse.records import to_dataset
from isoresponse.solve import closest_point

INF = float("inf")
NORMS = [2.0, 1.0, INF]
SIZES = [(2, 16), (4, 5), (6, 3)]  # elements and levels: up to 729 points


def small(kind, n, levels, *, generator, cases=40, start="on", bounds="even", bend=1.0):
    """Random responses in a box, starts on or off its lattice, and levels that are met somewhere in the box."""
    upper = torch.ones(n).double() if bounds == "even" else torch.linspace(0.5, 2.0, n).double()
    x, elsewhere = (upper * uniform(cases, n, low=0.0, high=1.0, generator=generator) for _ in range(2))
    if start == "on":
        x = Lattice(0 * upper, upper, levels).point(((levels - 1) * x / upper).round())
    w, matrix = normal(cases, n, generator=generator), bend * normal(cases, n, n, generator=generator)

    def response(x, w, matrix):
        straight = (w * x).sum(1)
        return straight if kind == "linear" else straight + torch.einsum("ci,cij,cj->c", x, matrix, x)

    neuron = Neuron(response, (n,), Box(0.0, 1.0 if bounds == "even" else upper), given=(w, matrix))
    return neuron, x, neuron.value(elsewhere)


def nearest_of_every_point(neuron, x, level, levels, norm):
    """Distance (case,) to the nearest lattice point across, infinite where there is none."""
    n = x.shape[1]
    lattice = Lattice.of(neuron.box, levels, x)
    points = lattice.point(torch.cartesian_prod(*[torch.arange(levels).double()] * n).reshape(-1, n))
    cases = torch.arange(len(x)).repeat_interleave(len(points))
    value = neuron.select(cases).value(points.repeat(len(x), 1)).reshape(len(x), -1)
    sign = torch.where(level >= neuron.value(x), 1.0, -1.0)
    distance = torch.linalg.vector_norm(points - x[:, None], norm, dim=2)
    return distance.masked_fill(sign[:, None] * (value - level[:, None]) <= 1e-12, INF).amin(1)


def require_sound(neuron, x, level, found, levels, norm=2.0):
    """Every answer lies on the lattice and in the box, is across, and is described by its numbers."""
    good = torch.nonzero(found.success).flatten()
    lattice = Lattice.of(neuron.box, levels, x)
    part, theirs = neuron.select(good), take(found, good)
    assert torch.equal(theirs.point, lattice.point(theirs.index.to(x.dtype)))
    assert theirs.index.min() >= 0
    assert theirs.index.max() < levels
    assert neuron.box.contains(theirs.point).all()
    sign = torch.where(level >= neuron.value(x), 1.0, -1.0)[good]
    assert (sign * (part.value(theirs.point) - level[good]) > 0).all()
    torch.testing.assert_close(theirs.value, part.value(theirs.point))
    torch.testing.assert_close(theirs.d_lattice, torch.linalg.vector_norm(theirs.point - x[good], norm, dim=1))
    kept = found.survives & found.success
    assert (found.d_lattice[kept] <= found.d_round[kept]).all()
    assert torch.equal(found.survives, torch.isfinite(found.d_round))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("start", ["on", "off"])
@pytest.mark.parametrize(("n", "levels"), SIZES)
def test_a_linear_response_gets_the_nearest_point_of_all(generator, n, levels, start, norm):
    neuron, x, level = small("linear", n, levels, start=start, generator=generator)
    found = on_lattice(
        neuron, x, closest_point(neuron, x, level, norm=norm, budget=20), level, levels=levels, norm=norm
    )
    assert set(names(found.status)) == {"DONE"}
    require_sound(neuron, x, level, found, levels, norm)
    truth = nearest_of_every_point(neuron, x, level, levels, norm)
    torch.testing.assert_close(found.d_lattice, truth, rtol=1e-12, atol=0)
    assert (found.gradients <= 3).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("n", "levels"), SIZES)
def test_elements_with_unequal_bounds(generator, n, levels, norm):
    """Now it is a knapsack in earnest; the core finds nearly all of its optima, those of L-infinity are exact."""
    neuron, x, level = small("linear", n, levels, start="off", bounds="uneven", generator=generator)
    found = on_lattice(
        neuron, x, closest_point(neuron, x, level, norm=norm, budget=20), level, levels=levels, norm=norm
    )
    require_sound(neuron, x, level, found, levels, norm)
    ratio = found.d_lattice / nearest_of_every_point(neuron, x, level, levels, norm)
    assert ratio.min() > 1 - 1e-12
    assert (ratio < 1 + 1e-12).double().mean() >= (1.0 if norm == INF else 0.95)
    assert ratio.mean() < 1.002


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("n", "levels"), SIZES)
def test_a_bent_response_is_solved_nearly_always(generator, n, levels, norm):
    """Random quadratics over a box of few levels: a coarse lattice in a response that turns round within a few steps."""
    neuron, x, level = small("quadratic", n, levels, bend=0.5, generator=generator)
    solution = closest_point(neuron, x, level, norm=norm, budget=20)
    found = on_lattice(neuron, x, solution, level, levels=levels, norm=norm)
    require_sound(neuron, x, level, found, levels, norm)
    truth = nearest_of_every_point(neuron, x, level, levels, norm)
    there = torch.isfinite(truth)
    assert not bool((found.success & ~there).any())
    assert (found.success & there).sum() >= 0.95 * there.sum()
    ratio = (found.d_lattice / truth)[found.success]
    assert (ratio < 1 + 1e-12).double().mean() > 0.9
    assert ratio.mean() < 1.02


@pytest.mark.parametrize("norm", NORMS)
def test_a_fine_lattice_is_hardly_worse_than_none(generator, norm):
    known = quadric(8, 4, low=-0.5, high=1.0, generator=generator)
    neuron = replace(known.neuron, box=Box(-8.0, 8.0))
    x = known.x.clamp(-8, 8)
    solution = closest_point(neuron, x, known.level, norm=norm, budget=60)
    found = on_lattice(neuron, x, solution, known.level, levels=65_536, norm=norm)
    require_sound(neuron, x, known.level, found, 65_536, norm)
    torch.testing.assert_close(found.d_lattice, solution.distance, rtol=2e-3, atol=0)
    assert found.success.all()


def test_the_knapsack_buys_whole_levels_where_they_gain_most():
    """By hand: gains 3 and 1 per unit of length, levels a quarter apart, 1.7 to be gained."""
    lattice = Lattice(torch.zeros(2), torch.ones(2), 5)
    start, slope = torch.zeros(1, 2), torch.tensor([[3.0, -1.0]])
    low, high = torch.zeros(1, 2), torch.full((1, 2), 4.0)
    need = torch.tensor([1.7])
    assert cheapest(lattice, start, slope.abs(), need, low, high, 2.0).tolist() == [[2, 1]]
    assert cheapest(lattice, start, slope.abs(), need, low, high, 1.0).tolist() in ([[2, 1]], [[3, 0]])
    assert cheapest(lattice, start, slope.abs(), need, low, high, INF).tolist() == [[2, 2]]
    # the second element is at its bound already; and what cannot be gained is approached as far as possible
    assert cheapest(lattice, start, slope, need, low, high, 2.0).tolist() == [[3, 0]]
    assert cheapest(lattice, start, slope, need + 9, low, high, 2.0).tolist() == [[4, 0]]
    assert cheapest(lattice, start, slope, need - 2, low, high, 2.0).tolist() == [[0, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [2, 16, 256, 65_536])
def test_lattice_points_are_the_stored_numbers(dtype, levels):
    """For images of 0 to 1, of 0 to 255 and of -1 to 1 bit by bit what reading them from a file gives."""
    stored = torch.arange(levels, dtype=torch.int64)[:, None]
    read = stored.to(dtype) / (levels - 1)
    like = torch.zeros(1, 1, dtype=dtype)
    boxes = [(Box(0, 1), read), (Box(-1, 1), 2 * read - 1)]
    if levels <= 256:
        boxes.append((Box(0, levels - 1), stored.to(dtype)))
    for box, expected in boxes:
        lattice = Lattice.of(box, levels, like)
        assert torch.equal(lattice.point(stored.to(dtype)), expected)
        assert torch.equal(lattice.place(expected).round(), stored.to(dtype))
        assert box.contains(lattice.point(stored.to(dtype))).all()


def test_the_ends_of_an_odd_box_are_met_exactly():
    lower, upper = torch.tensor([-0.1, 0.3, 0.7]), torch.tensor([0.2, 0.3, 0.9])
    lattice = Lattice.of(Box(lower, upper), 7, torch.zeros(1, 3))
    ends = lattice.point(torch.tensor([[0.0, 0.0, 0.0], [6.0, 6.0, 6.0]]))
    assert torch.equal(ends[0], lower)
    assert torch.equal(ends[1], upper)
    assert lattice.place(upper[None]).tolist() == [[6, 0, 6]]
    assert lattice.step[1] == 0


@pytest.fixture(scope="module")
def network():
    """The digits' MLP, images on the lattice of 8 bits, their decisions and adversaries."""
    images, labels = (part[:36] for part in digits().test)
    net = trained("mlp", digits()).double()
    images = (255 * images).round().double() / 255
    clf = Classifier.of(net, shape=(1, 8, 8), box=Box(0.0, 1.0))
    right = clf.predict(images) == labels
    x, labels = images[right], labels[right]
    return clf, x, labels, {norm: clf.closest_adversary(x, labels, norm=norm, budget=60) for norm in NORMS}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("levels", [256, 16])
def test_what_a_network_is_shown_after_storage_is_still_adversarial(network, levels, norm):
    clf, x, labels, solutions = network
    found = on_lattice(clf.decision(labels), x, solutions[norm], 0.0, levels=levels, norm=norm)
    assert found.success.all()
    stored = found.index.to(torch.uint8)
    read = stored.double() / (levels - 1)
    assert torch.equal(read, found.point)
    assert (clf.predict(read) != labels).all()
    assert clf.box.contains(read).all()
    assert torch.equal(found.d_float, solutions[norm].distance)
    assert (found.ratio > 0.97).all()  # the solution is a local optimum, and need not be the nearest
    kept = found.survives
    assert (found.d_lattice[kept] <= found.d_round[kept]).all()
    most = {(2.0, 256): 1.002, (1.0, 256): 1.01, (INF, 256): 1.04}
    assert found.median_ratio < most.get((norm, levels), 1.6)
    assert (found.gradients <= 30).all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_case_is_itself_in_any_batch(network, norm):
    """On a network whose sums do not depend on the batch: rounding alone decides between points that are as far."""
    clf, x, labels, solutions = network
    forward = clf.logits
    one_by_one = lambda images: torch.cat([forward(image) for image in images.split(1)])  # noqa: E731
    clf = Classifier(one_by_one, clf.shape, clf.classes, clf.box)
    together = on_lattice(clf.decision(labels), x, solutions[norm], 0.0, levels=16, norm=norm)
    for cases in (torch.tensor([7]), torch.tensor([25, 2, 11])):
        alone = on_lattice(
            clf.decision(labels[cases]), x[cases], take(solutions[norm], cases), 0.0, levels=16, norm=norm
        )
        assert torch.equal(alone.index, together.index[cases])
        assert torch.equal(alone.status, together.status[cases])
        assert torch.equal(alone.gradients, together.gradients[cases])
        assert torch.equal(alone.forwards, together.forwards[cases])


def test_costs_are_counted_where_they_arise(network):
    clf, x, labels, solutions = network
    neuron, spent = counted(clf.decision(labels))
    found = on_lattice(neuron, x, solutions[2.0], 0.0, levels=16)
    assert spent == {"forwards": int(found.forwards.sum()), "gradients": int(found.gradients.sum())}


def test_more_gradients_never_lose_a_point(network):
    clf, x, labels, solutions = network
    distances = [
        on_lattice(clf.decision(labels), x, solutions[2.0], 0.0, levels=16, budget=budget).d_lattice
        for budget in (1, 2, 4, 8, 30)
    ]
    for fewer, more in pairwise(distances):
        assert (more <= fewer).all()
    assert set(names(on_lattice(clf.decision(labels), x, solutions[2.0], 0.0, budget=1).status)) == {"MAX_STEPS"}


def test_one_bit_images(network):
    """Starts far off the lattice of black and white: distances still count from them."""
    clf, x, labels, solutions = network
    found = on_lattice(clf.decision(labels), x, solutions[2.0], 0.0, levels=2)
    assert found.success.all()
    assert set(found.point.unique().tolist()) <= {0.0, 1.0}
    assert (clf.predict(found.point) != labels).all()
    torch.testing.assert_close(found.d_lattice, (found.point - x).flatten(1).norm(dim=1))
    nearest = (x.round() - x).flatten(1).norm(dim=1)
    assert (found.d_lattice >= nearest).all()


def test_single_precision(network):
    clf, x, labels, solutions = network
    net = trained("mlp", digits())
    single = Classifier.of(net, shape=(1, 8, 8), box=Box(0.0, 1.0))
    solution = single.closest_adversary(x.float(), labels)
    found = on_lattice(single.decision(labels), x.float(), solution, 0.0)
    assert found.point.dtype == found.d_lattice.dtype == torch.float32
    assert (single.predict(found.index.to(torch.uint8).float() / 255) != labels).all()
    alone = torch.cat([single.predict(p[None]) for p in found.point])
    assert (alone != labels).all()
    double = on_lattice(clf.decision(labels), x, solutions[2.0], 0.0)
    torch.testing.assert_close(found.d_lattice.double(), double.d_lattice, rtol=0.02, atol=0)


def test_an_input_decided_otherwise_stays_where_it_is(network):
    clf, x, labels, _ = network
    wrong = labels.clone()
    wrong[3] = (labels[3] + 1) % 10
    found = on_lattice(clf.decision(wrong), x, clf.closest_adversary(x, wrong, budget=40), 0.0)
    assert names(found.status)[3] == "ALREADY"
    assert names(found.status).count("ALREADY") == 1
    assert float(found.d_float[3]) == float(found.d_round[3]) == float(found.d_lattice[3]) == 0.0
    assert found.survives[3]
    assert torch.equal(found.point[3], x[3])
    assert found.ratio[3].isnan()


def test_a_start_at_the_level_is_there_already():
    neuron = Neuron(lambda x: x.sum(1), (2,), Box(0, 1))
    x = torch.tensor([[0.25, 0.5], [0.3, 0.4]], dtype=torch.float64)
    level = neuron.value(x)
    found = on_lattice(neuron, x, closest_point(neuron, x, level), level, levels=5)
    assert found.index.tolist()[0] == [1, 2]
    assert found.d_lattice[0] == 0
    assert names(found.status)[0] == "ALREADY"
    assert found.success[1]
    assert found.value[1] >= level[1]


def test_failed_cases_stay_failed_and_the_others_go_on(network):
    clf, x, labels, solutions = network
    solution = solutions[2.0]
    status = solution.status.clone()
    status[4], status[9] = int(Status.BLOCKED), int(Status.FLAT)
    broken = replace(solution, status=status).blanked()
    found = on_lattice(clf.decision(labels), x, broken, 0.0)
    assert names(found.status)[4] == "BLOCKED"
    assert names(found.status)[9] == "FLAT"
    for numbers in (found.value, found.d_float, found.d_round, found.d_lattice, found.point[:, 0, 0, 0]):
        assert torch.nonzero(numbers.isnan()).flatten().tolist()[:2] == [4, 9] or numbers is found.d_round
        assert numbers[[4, 9]].isnan().all()
    assert (found.index[[4, 9]] == -1).all()
    assert not found.survives[[4, 9]].any()
    assert (found.gradients[[4, 9]] == 0).all()
    whole = on_lattice(clf.decision(labels), x, solution, 0.0)
    others = torch.tensor([i for i in range(len(x)) if i not in (4, 9)])
    assert torch.equal(found.index[others], whole.index[others])
    # an answer that is none, whatever its status says
    nowhere = replace(solution, point=solution.point.index_fill(0, torch.tensor([5]), torch.nan))
    assert names(on_lattice(clf.decision(labels), x, nowhere, 0.0).status)[5] == "NOT_FINITE"


def test_no_point_of_the_lattice_may_be_across():
    """A narrow bump between the points of a coarse lattice; beside it a case that has one."""
    centre = torch.tensor([[0.4, 0.4], [0.5, 0.0]], dtype=torch.float64)
    narrow = torch.tensor([200.0, 20.0], dtype=torch.float64)
    neuron = Neuron(lambda x, c, a: (-a * (x - c).square().sum(1)).exp(), (2,), Box(0, 1), given=(centre, narrow))
    x = torch.full_like(centre, 0.33)
    solution = closest_point(neuron, x, 0.5)
    assert solution.success.all()
    found = on_lattice(neuron, x, solution, 0.5, levels=3)
    assert names(found.status)[0] == "UNREACHABLE"
    assert found.point[0].isnan().all()
    assert found.d_lattice[0].isnan()
    assert torch.isfinite(found.d_float).all()
    assert found.index[1].tolist() == [1, 0]


def test_a_response_that_is_not_finite_beyond_the_level_ends_its_case_only():
    neuron = Neuron(lambda x, end: x[:, 0] + 0 * (end - x[:, 0]).sqrt(), (1,), Box(0, 1))
    neuron = replace(neuron, given=(torch.tensor([0.7, 2.0], dtype=torch.float64),))
    x = torch.zeros(2, 1, dtype=torch.float64)
    found = on_lattice(neuron, x, closest_point(neuron, x, 0.6), 0.6, levels=3)
    assert names(found.status) == ["NOT_FINITE", "DONE"]
    assert found.index.tolist() == [[-1], [2]]


def test_a_frozen_element_does_not_move():
    box = Box(torch.tensor([0.0, 0.3, 0.0]), torch.tensor([1.0, 0.3, 2.0]))
    neuron = Neuron(lambda x: x @ torch.tensor([1.0, 5.0, 1.0]), (3,), box)
    x = torch.tensor([[0.0, 0.3, 0.0]])
    for norm in NORMS:
        found = on_lattice(neuron, x, closest_point(neuron, x, 2.9, norm=norm), 2.9, levels=11, norm=norm)
        assert found.point[0, 1] == x[0, 1]
        assert found.index[0, 1] == 0
        assert found.success.all()


def test_a_level_may_be_approached_from_above(generator):
    neuron, x, level = small("linear", 4, 6, generator=generator)
    turned = replace(neuron, response=lambda x, w, m: -neuron.response(x, w, m))
    one = on_lattice(neuron, x, closest_point(neuron, x, level), level, levels=6)
    other = on_lattice(turned, x, closest_point(turned, x, -level), -level, levels=6)
    assert torch.equal(one.index, other.index)
    assert torch.equal(one.value, -other.value)


def test_a_target_is_still_decided_after_storage(network):
    clf, x, labels, _ = network
    targets = (labels + 3) % 10
    solution = clf.closest_adversary(x, labels, targets=targets, budget=40)
    found = on_lattice(clf.decision(labels, targets), x, solution, 0.0, levels=16)
    assert found.success.all()
    assert (clf.predict(found.point) == targets).all()


def test_the_summary_counts_what_was_given():
    one, two = torch.ones(5), torch.tensor([1.5, 2.0, torch.nan, torch.nan, 0.0])
    found = LatticeSolution(
        point=torch.zeros(5, 2), index=torch.zeros(5, 2, dtype=torch.int32), value=one,
        d_float=torch.tensor([1.0, 1.0, 2.0, torch.nan, 0.0]), d_round=two,
        d_lattice=torch.tensor([1.25, 2.0, 3.0, torch.nan, 0.0]),
        survives=torch.tensor([True, True, False, False, True]),
        status=torch.tensor([1, 1, 3, 7, 4]), gradients=torch.tensor([2, 2, 4, 0, 0]), forwards=torch.zeros(5).long(),
    )  # fmt: skip
    assert found.survival_rate == pytest.approx(2 / 3)  # of the two without a way to go nothing can be lost
    assert found.ratio.tolist()[:3] == [1.25, 2.0, 1.5]
    assert found.ratio[3:].isnan().all()
    assert found.median_ratio == 1.5
    assert found.ratio_quantile(1.0) == 2.0
    assert len(found) == 5
    assert found.success.tolist() == [True, True, True, False, True]
    assert repr(found) == (
        "LatticeSolution(4 of 5 cases, 66.7% survive rounding, median d_lattice / d_float 1.5, 1.6 gradients per case)"
    )
    assert set(to_dataset(found).data_vars) >= {"d_float", "d_round", "d_lattice", "survives", "index", "status"}


class TestRefusals:
    @pytest.fixture
    def asked(self):
        neuron = Neuron(lambda x: x.sum(1), (2,), Box(0, 1))
        x = torch.zeros(2, 2)
        return neuron, x, closest_point(neuron, x, 0.7)

    @pytest.mark.parametrize("box", [Box(), Box(0.0, INF), Box(torch.tensor([-INF, 0.0]), 1.0)])
    def test_an_unbounded_box(self, asked, box):
        neuron, x, solution = asked
        with pytest.raises(ValueError, match=r"needs a box with finite bounds, got Box.*give e.g. Box\(0, 1\)"):
            on_lattice(replace(neuron, box=box), x, solution, 0.7)

    @pytest.mark.parametrize("levels", [1, 0, -3, 65_537])
    def test_too_few_or_too_many_levels(self, asked, levels):
        with pytest.raises(ValueError, match=f"levels must be a whole number from 2 to 65536, got {levels}"):
            on_lattice(*asked, 0.7, levels=levels)

    def test_a_norm_that_is_none(self, asked):
        with pytest.raises(ValueError, match="norm must be 1, 2 or float"):
            on_lattice(*asked, 0.7, norm=3.0)

    def test_no_budget(self, asked):
        with pytest.raises(ValueError, match="budget must be at least 1 gradient per case, got 0"):
            on_lattice(*asked, 0.7, budget=0)

    def test_a_solution_of_other_inputs(self, asked):
        neuron, x, solution = asked
        with pytest.raises(ValueError, match=r"one point per case of x, shape \(1, 2\), got \(2, 2\)"):
            on_lattice(neuron, x[:1], solution, 0.7)

    def test_a_point_instead_of_a_solution(self, asked, unchecked):
        neuron, x, solution = asked
        with pytest.raises(TypeError, match="solution must be a Solution, as closest_point gives it, got Tensor"):
            unchecked(on_lattice)(neuron, x, solution.point, 0.7)

    @pytest.mark.parametrize("levels", [2.5, True, "many"])
    def test_levels_that_are_no_number(self, asked, unchecked, levels):
        neuron, x, _ = asked
        with pytest.raises(ValueError, match="levels must be a whole number"):
            unchecked(Lattice.of.__func__)(Lattice, neuron.box, levels, x)

    def test_a_level_that_is_not_finite(self, asked):
        with pytest.raises(ValueError, match="level must be finite"):
            on_lattice(*asked, float("nan"))


def test_any_attacks_solution_will_do(generator):
    """A far and careless answer is enough to begin with: here the farthest corner of the box along the gradient."""
    neuron, x, level = small("linear", 5, 5, generator=generator)
    rising = torch.where(level >= neuron.value(x), 1.0, -1.0)
    corner = (rising[:, None] * neuron.given[0] > 0).double()
    distance, none = (corner - x).norm(dim=1), torch.zeros(len(x), dtype=torch.int64)
    careless = Solution(corner, neuron.value(corner), distance, distance * torch.nan, none + 1, none, none)
    found = on_lattice(neuron, x, careless, level, levels=5)
    truth = nearest_of_every_point(neuron, x, level, 5, 2.0)
    torch.testing.assert_close(found.d_lattice, truth, rtol=1e-12, atol=0)
