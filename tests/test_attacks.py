"""Somebody else's attack as a measuring device: checked, counted, and never its own referee."""

import builtins

import pytest
import torch
from analytic import names, normal, uniform
from torch import nn

from isoresponse import attacks
from isoresponse.attacks import FoolboxAttack, from_foolbox
from isoresponse.classifier import Classifier
from isoresponse.neuron import Box, Neuron
from isoresponse.solve import closest_point
from isoresponse.trace import trace_attack

foolbox = pytest.importorskip("foolbox")

DDN = foolbox.attacks.DDNAttack(steps=200)
DEEPFOOL = foolbox.attacks.L2DeepFoolAttack(steps=50)
RATIOS = {"DDN": (DDN, 1.01), "DeepFool": (DEEPFOOL, 1.05)}  # largest accepted multiple of the true optimum


@pytest.fixture
def plane(generator):
    """A linear neuron per batch, starts well inside a wide box, a level that is reached inside it."""
    w = normal(6, generator=generator)
    neuron = Neuron(lambda x: x @ w, (6,), Box(-4.0, 4.0))
    x = uniform(5, 6, low=-0.5, high=0.5, generator=generator)
    level = neuron.value(x) + torch.tensor([1.0, -1.0, 0.5, -0.5, 2.0], dtype=torch.float64)
    return neuron, x, level, (level - neuron.value(x)).abs() / w.norm()


@pytest.fixture
def linear(generator):
    net = nn.Linear(6, 4).double()
    net.weight.data, net.bias.data = normal(4, 6, generator=generator), 0 * normal(4, generator=generator)
    clf = Classifier.of(net, shape=(6,), box=Box(-4.0, 4.0))
    x = uniform(6, 6, low=-1, generator=generator)
    return clf, x, clf.predict(x)


@pytest.mark.parametrize("name", RATIOS)
def test_a_foreign_attack_on_a_linear_neuron_is_near_the_optimum_and_truly_across(plane, name):
    neuron, x, level, distance = plane
    attack, most = RATIOS[name]
    found = from_foolbox(attack)(neuron, x, level)
    assert set(names(found.status)) == {"DONE"}
    assert (found.distance >= distance * (1 - 1e-9)).all()
    assert (found.distance <= most * distance).all()
    rising = level > neuron.value(x)
    assert torch.equal(found.value > level, rising)
    torch.testing.assert_close(found.value, neuron.value(found.point))
    torch.testing.assert_close(found.distance, (found.point - x).norm(dim=1))
    assert found.optimality.isnan().all()


def test_ours_is_an_attack_of_the_same_kind(plane):
    neuron, x, level, distance = plane
    torch.testing.assert_close(closest_point(neuron, x, level).distance, distance)


@pytest.mark.parametrize("name", RATIOS)
def test_a_foreign_attack_on_a_linear_decision_is_near_the_optimum(linear, name):
    clf, x, labels = linear
    attack, most = RATIOS[name]
    ours, theirs = clf.closest_adversary(x, labels), from_foolbox(attack).on_decision(clf, x, labels)
    assert set(names(theirs.status)) == {"DONE"}
    assert (clf.predict(theirs.point) != labels).all()
    ratio = theirs.distance / ours.distance
    assert (ratio >= 1 - 1e-9).all()
    assert ratio.median() <= most + 0.05  # a rival may be mistaken for the nearest


def test_a_case_the_attack_did_not_solve_is_nan_and_says_so():
    neuron = Neuron(lambda x: x.sum(1).tanh(), (3,), Box(-1.0, 1.0))
    x = torch.zeros(2, 3, dtype=torch.float64)
    found = from_foolbox(DDN)(neuron, x, torch.tensor([0.5, 2.0], dtype=torch.float64))
    assert names(found.status) == ["DONE", "UNREACHABLE"]
    for numbers in (found.distance, found.value, found.point[:, 0]):
        assert numbers.isnan().tolist() == [False, True]


def test_an_input_already_decided_otherwise_is_at_distance_zero(linear):
    clf, x, labels = linear
    wrong = labels.clone()
    wrong[2] = (labels[2] + 1) % 4
    found = from_foolbox(DDN).on_decision(clf, x, wrong)
    assert names(found.status)[2] == "ALREADY"
    assert names(found.status).count("DONE") == 5
    assert found.distance[2] == 0


def test_an_answer_outside_the_box_is_not_believed(plane):
    """A foreign attack that ignores its bounds is caught, here one made up for the purpose."""
    neuron, x, level, _ = plane

    def careless(model, inputs, labels, *, epsilons):
        far = inputs + 100 * torch.sign(level - neuron.value(inputs))[:, None] * torch.sign(neuron.value_and_grad(x)[1])
        return None, far, None

    assert set(names(FoolboxAttack(careless)(neuron, x, level).status)) == {"UNREACHABLE"}


# --- attacks of a fixed size


FIXED = {  # attack, and the norm dual to its own
    "L2PGD": (foolbox.attacks.L2PGD(rel_stepsize=0.1, steps=15, random_start=False), 2.0),
    "LinfPGD": (foolbox.attacks.LinfPGD(rel_stepsize=0.1, steps=15, random_start=False), 1.0),
    "FGM": (foolbox.attacks.FGM(), 2.0),
    "FGSM": (foolbox.attacks.FGSM(), 1.0),
}
EPSILON, HALVINGS = 2.0, 8


@pytest.mark.parametrize("name", FIXED)
def test_an_attack_of_a_fixed_size_is_bisected_down_to_the_optimum(plane, name):
    """On a linear neuron it succeeds exactly where the size is at least the distance, the gap over the dual norm."""
    neuron, x, level, _ = plane
    attack, dual = FIXED[name]
    exact = (level - neuron.value(x)).abs() / torch.linalg.vector_norm(neuron.value_and_grad(x)[1], dual, dim=1)
    found = from_foolbox(attack, epsilon=EPSILON, halvings=HALVINGS)(neuron, x, level)
    assert set(names(found.status)) == {"DONE"}
    assert (found.distance >= exact * (1 - 1e-9)).all()
    assert (found.distance <= exact + EPSILON / 2**HALVINGS * (1 + 1e-9)).all()
    assert torch.equal(found.value > level, level > neuron.value(x))
    own = {2.0: 2.0, 1.0: torch.inf}[dual]
    torch.testing.assert_close(found.distance, torch.linalg.vector_norm(found.point - x, own, dim=1))
    assert (found.gradients == (HALVINGS + 1) * (15 if name.endswith("PGD") else 1)).all()


def test_without_halvings_the_one_size_is_attacked(plane):
    neuron, x, level, distance = plane
    epsilon = float(distance.median()) * 1.001
    found = from_foolbox(FIXED["FGM"][0], epsilon=epsilon, halvings=0)(neuron, x, level)
    within = distance <= epsilon
    assert names(found.status) == ["DONE" if ok else "UNREACHABLE" for ok in within.tolist()]
    torch.testing.assert_close(found.distance[within], torch.full_like(distance[within], epsilon))
    assert found.distance[~within].isnan().all()
    assert (found.gradients == 1).all()


def test_a_case_that_withstands_the_largest_size_costs_one_run_and_disturbs_nobody(plane):
    neuron, x, level, distance = plane
    epsilon = float(distance.median()) * 1.001
    device = from_foolbox(FIXED["L2PGD"][0], epsilon=epsilon, halvings=3)
    found = device(neuron, x, level)
    assert found.gradients.tolist() == [60 if d <= epsilon else 15 for d in distance.tolist()]
    for k in range(len(x)):
        alone = device(neuron, x[k : k + 1], level[k : k + 1])
        torch.testing.assert_close(alone.distance[0], found.distance[k], equal_nan=True)
        assert alone.status[0] == found.status[k]


def test_a_decision_is_attacked_at_fixed_sizes_too(generator):
    """Between two classes of a linear model the loss rises along the boundary's normal, so the optimum is known."""
    w, x = normal(2, 6, generator=generator), uniform(6, 6, low=-0.5, high=0.5, generator=generator)
    clf = Classifier(lambda z: z @ w.T, (6,), 2, Box(-4.0, 4.0))
    labels = clf.predict(x)
    labels[2] = 1 - labels[2]
    found = from_foolbox(FIXED["L2PGD"][0], epsilon=EPSILON, halvings=HALVINGS).on_decision(clf, x, labels)
    assert names(found.status) == ["ALREADY" if k == 2 else "DONE" for k in range(6)]
    assert torch.equal(found.point[2], x[2])
    assert (clf.predict(found.point) != labels).all()
    apart = w[0] - w[1]
    exact = ((x @ apart).abs() / apart.norm()).index_fill(0, torch.tensor([2]), 0.0)
    assert (found.distance >= exact * (1 - 1e-9)).all()
    assert (found.distance <= exact + EPSILON / 2**HALVINGS * (1 + 1e-9)).all()


def test_the_random_state_is_safe_from_random_starts(plane):
    neuron, x, level, _ = plane
    before = torch.get_rng_state()
    found = from_foolbox(foolbox.attacks.L2PGD(rel_stepsize=0.1, steps=15), epsilon=EPSILON)(neuron, x, level)
    assert set(names(found.status)) == {"DONE"}
    assert torch.equal(torch.get_rng_state(), before)


def test_runs_of_some_of_the_cases_can_be_traced(plane):
    neuron, x, level, _ = plane
    device = from_foolbox(FIXED["FGM"][0], epsilon=EPSILON, halvings=3)
    watched = trace_attack(device, neuron, x, level)
    torch.testing.assert_close(watched.solution.distance, device(neuron, x, level).distance)
    assert (watched.gradients == 4).all()


@pytest.mark.parametrize(
    "attack", [foolbox.attacks.LinfPGD(), foolbox.attacks.L2PGD().repeat(3)], ids=["PGD", "thrice"]
)
def test_an_attack_of_a_fixed_size_needs_one(attack):
    with pytest.raises(
        ValueError,
        match=r"L(2|inf)ProjectedGradientDescentAttack attacks at a fixed size; give the largest .* epsilon=1\.0",
    ):
        from_foolbox(attack)
    assert from_foolbox(attack, epsilon=0.5).epsilon == 0.5


@pytest.mark.parametrize("attack", [DDN, DDN.repeat(2)], ids=["once", "twice"])
def test_an_attack_that_minimises_by_itself_takes_no_size(attack):
    with pytest.raises(
        ValueError, match=r"DDNAttack looks for the smallest change by itself; leave epsilon out, got 0\.5"
    ):
        from_foolbox(attack, epsilon=0.5)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("inf"), float("nan")])
def test_a_size_must_be_positive_and_finite(epsilon):
    with pytest.raises(ValueError, match=f"epsilon must be positive and finite, got {epsilon}"):
        from_foolbox(FIXED["FGM"][0], epsilon=epsilon)


def test_halvings_cannot_be_negative():
    with pytest.raises(ValueError, match="halvings must be 0 or more, got -1"):
        from_foolbox(FIXED["FGM"][0], epsilon=1.0, halvings=-1)


@pytest.mark.parametrize(
    ("attack", "norm"),
    [
        (foolbox.attacks.LinfDeepFoolAttack(steps=50), torch.inf),
        (foolbox.attacks.EADAttack(binary_search_steps=3, steps=100), 1.0),
        (foolbox.attacks.InversionAttack(distance=foolbox.distances.linf), torch.inf),
        (foolbox.attacks.InversionAttack(), 2.0),
    ],
    ids=["L-infinity", "L1", "a chosen distance", "no distance chosen"],
)
def test_distances_are_in_the_attacks_own_norm(linear, attack, norm):
    clf, x, labels = linear
    found = from_foolbox(attack).on_decision(clf, x, labels)
    won = found.success
    assert won.any()
    torch.testing.assert_close(found.distance[won], torch.linalg.vector_norm(found.point - x, norm, dim=1)[won])
    if "distance" not in vars(attack):
        own = clf.closest_adversary(x, labels, norm=norm).distance
        assert (found.distance[won] >= own[won] * (1 - 1e-6)).all()


# --- what it costs, and what it leaves alone


def test_costs_are_counted_where_they_arise(plane):
    neuron, x, level, _ = plane
    found = from_foolbox(foolbox.attacks.DDNAttack(steps=20))(neuron, x, level)
    assert (found.gradients == 20).all()
    assert (found.forwards >= 20).all()


def test_the_random_state_stays_where_it_was(plane):
    """Also for an attack that draws from the global generator, as many do."""
    neuron, x, level, _ = plane

    def noisy(model, inputs, labels, *, epsilons):
        return None, inputs + torch.randn_like(inputs), None

    before = torch.get_rng_state()
    FoolboxAttack(noisy)(neuron, x, level)
    from_foolbox(DDN)(neuron, x, level)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "box", [Box(), Box(0.0), Box(torch.tensor([0.0, -1.0, 0.0]), 1.0)], ids=["none", "half", "per element"]
)
def test_foolbox_needs_one_finite_range(box):
    neuron = Neuron(lambda x: x.sum(1), (3,), box)
    with pytest.raises(ValueError, match=r"one finite range for all input elements, .* give e.g. Box\(0, 1\)"):
        from_foolbox(DDN)(neuron, torch.full((2, 3), 0.5), 2.0)


@pytest.mark.parametrize("thing", [foolbox.attacks.DDNAttack, closest_point, "DDN"], ids=["class", "function", "name"])
def test_only_foolbox_attacks_are_wrapped(thing):
    with pytest.raises(TypeError, match=r"expected a foolbox attack instance, got (ABCMeta|type|function|str); e.g."):
        from_foolbox(thing)


def test_invalid_labels_and_levels_are_refused(linear, plane):
    clf, x, labels = linear
    with pytest.raises(ValueError, match=r"labels must lie in 0..3"):
        from_foolbox(DDN).on_decision(clf, x, labels + 9)
    neuron, x, _, _ = plane
    with pytest.raises(ValueError, match="level must be finite"):
        from_foolbox(DDN)(neuron, x, float("nan"))


def test_without_foolbox_the_message_says_how_to_get_it(monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **named):
        if name == "foolbox":
            raise ImportError("No module named 'foolbox'")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        ImportError, match=r"foolbox could not be imported .* pip install 'isoresponse\[attacks\]'.*`git`"
    ):
        attacks.from_foolbox(DDN)
