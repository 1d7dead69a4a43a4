"""A decision as geometry: the nearest of many boundaries, in closed form where the classifier is linear."""

import pytest
import torch
from analytic import names, normal, uniform
from torch import nn

from isoresponse.classifier import Classifier
from isoresponse.neuron import Box


def linear_net(generator, n=6, classes=5):
    net = nn.Linear(n, classes).double()
    net.weight.data, net.bias.data = normal(classes, n, generator=generator), 0.3 * normal(classes, generator=generator)
    return net


def deep_net(generator, n=6, classes=5):
    net = nn.Sequential(nn.Linear(n, 32), nn.GELU(), nn.Linear(32, classes)).double()
    for parameter in net.parameters():
        parameter.data = 2 * normal(*parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
    return net


def boundaries(net, x, labels):
    """Gap and distance to the boundary with every other class of a linear net; infinite for the label itself."""
    scores, weights = net(x).detach(), net.weight.detach()
    gap = scores.gather(1, labels[:, None]) - scores
    size = (weights[labels][:, None] - weights[None]).norm(dim=2)
    own = torch.nn.functional.one_hot(labels, len(weights)).bool()
    return gap.masked_fill(own, torch.inf), (gap / size).masked_fill(own, torch.inf)


class Observed(nn.Module):
    """A classifier that counts the cases that go forward and backward through it."""

    def __init__(self, net):
        super().__init__()
        self.net, self.forwards, self.gradients = net, 0, 0

    def forward(self, x):
        self.forwards += len(x)
        if x.requires_grad:
            x = x.view_as(x)
            x.register_hook(self.count)
        return self.net(x)

    def count(self, gradient):
        self.gradients += len(gradient)


@pytest.fixture(params=[2, 5, 11])
def linear(request, generator):
    net, x = linear_net(generator, classes=request.param), normal(12, 6, generator=generator)
    return net, Classifier.of(net, shape=(6,)), x, net(x).argmax(1)


@pytest.fixture
def deep(generator):
    net, x = deep_net(generator), uniform(20, 6, generator=generator)
    clf = Classifier.of(net, shape=(6,), box=Box(0.0, 1.0))
    return clf, x, clf.predict(x)


def test_the_nearest_boundary_of_a_linear_classifier(linear):
    net, clf, x, labels = linear
    _, distance = boundaries(net, x, labels)
    found = clf.closest_adversary(x, labels)
    assert set(names(found.status)) == {"DONE"}
    torch.testing.assert_close(found.distance, distance.amin(1), rtol=1e-9, atol=0)
    torch.testing.assert_close(found.distance, (found.point - x).norm(dim=1))
    assert torch.equal(clf.predict(found.point), distance.argmin(1))
    assert (found.value <= 0).all()


def test_predictions_of_a_linear_classifier(linear):
    net, clf, x, labels = linear
    gap, distance = boundaries(net, x, labels)
    torch.testing.assert_close(clf.predict_distance(x, labels, predictor=0).distance, gap.amin(1))
    for tier in (1, 2, 3, 4):
        told = clf.predict_distance(x, labels, predictor=tier)
        torch.testing.assert_close(told.distance, distance.amin(1), rtol=1e-9, atol=0)
        torch.testing.assert_close(told.displacement.norm(dim=1), told.distance)


def test_margin_and_decision_are_differences_of_scores(generator):
    net, x = linear_net(generator), normal(5, 6, generator=generator)
    clf, labels = Classifier.of(net, shape=(6,)), torch.tensor([0, 1, 2, 3, 4])
    gap, _ = boundaries(net, x, labels)
    rivals = labels.roll(1)
    torch.testing.assert_close(clf.margin(labels, rivals).value(x), gap.gather(1, rivals[:, None])[:, 0])
    decision = clf.decision(labels).value(x)
    torch.testing.assert_close(decision, gap.amin(1))
    assert torch.equal(decision < 0, clf.predict(x) != labels)


def test_an_input_already_decided_otherwise_is_at_distance_zero(linear):
    _, clf, x, labels = linear
    wrong = labels.clone()
    wrong[3] = (labels[3] + 1) % clf.classes
    right, mixed = clf.closest_adversary(x, labels), clf.closest_adversary(x, wrong)
    assert [i for i, name in enumerate(names(mixed.status)) if name == "ALREADY"] == [3]
    assert mixed.success.all()
    assert mixed.distance[3] == 0
    assert torch.equal(mixed.point[3], x[3])
    others = torch.arange(12) != 3
    torch.testing.assert_close(mixed.distance[others], right.distance[others])
    for tier in (0, 1, 2, 3, 4):
        told = clf.predict_distance(x, wrong, predictor=tier)
        assert names(told.status)[3] == "ALREADY"
        assert told.distance[3] == 0
        assert names(told.status).count("ALREADY") == 1


@pytest.mark.parametrize("constant", [0.0, 3.0])
def test_constant_scores_have_no_boundary(generator, constant):
    clf = Classifier(lambda x: constant + 0 * x[:, :3], (6,), 3)
    x, labels = normal(4, 6, generator=generator), torch.zeros(4, dtype=torch.int64)
    found = clf.closest_adversary(x, labels)
    assert not found.success.any()
    for numbers in (found.distance, found.value, found.optimality, found.point[:, 0]):
        assert numbers.isnan().all()
    for tier in (1, 2, 3, 4):
        told = clf.predict_distance(x, labels, predictor=tier)
        assert names(told.status) == ["FLAT"] * 4
        assert told.distance.isnan().all()


def test_a_dead_case_leaves_its_neighbours_alone(generator):
    net = linear_net(generator)
    clf = Classifier(lambda x: torch.where(x.norm(dim=1, keepdim=True) > 1e6, x[:, :1] * 0, net(x)), (6,), 5)
    x = normal(4, 6, generator=generator)
    x[2] *= 1e30
    labels = clf.predict(x)
    found = clf.closest_adversary(x, labels)
    assert found.success.tolist() == [True, True, False, True]
    _, distance = boundaries(net, x, labels)
    torch.testing.assert_close(found.distance[[0, 1, 3]], distance.amin(1)[[0, 1, 3]], rtol=1e-9, atol=0)


def test_answers_stay_in_the_box_and_change_the_decision(deep):
    clf, x, labels = deep
    found = clf.closest_adversary(x, labels)
    assert int(found.success.sum()) >= 15
    some = found.success
    assert clf.box.contains(found.point[some]).all()
    assert (clf.predict(found.point[some]) != labels[some]).all()
    assert (found.value[some] <= 0).all()
    torch.testing.assert_close(found.distance[some], (found.point - x).norm(dim=1)[some])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_answer_holds_and_is_the_same_in_any_batch(generator, dtype):
    net = deep_net(generator).to(dtype)
    clf = Classifier.of(net, shape=(6,), box=Box(0.0, 1.0))
    x = uniform(11, 6, generator=generator).to(dtype)
    labels = clf.predict(x)
    whole, done = clf.closest_adversary(x, labels), []
    parts = clf.closest_adversary(x, labels, batch_size=4, on_cases=done.append)
    assert done == [4, 4, 3]
    tight = 1e-9 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(parts.distance, whole.distance, rtol=tight, atol=0, equal_nan=True)
    told = [clf.predict_distance(x, labels, batch_size=b).distance for b in (4, 256)]
    torch.testing.assert_close(told[0], told[1], rtol=tight, atol=0, equal_nan=True)
    for i in torch.nonzero(whole.success).flatten().tolist():
        alone = clf.closest_adversary(x[i : i + 1], labels[i : i + 1])
        torch.testing.assert_close(alone.distance, whole.distance[i : i + 1], rtol=tight, atol=0)
        assert clf.predict(whole.point[i : i + 1]) != labels[i]


@pytest.mark.parametrize("build", [linear_net, deep_net])
def test_reported_costs_are_the_true_costs(generator, build):
    watched, x = Observed(build(generator)), uniform(9, 6, generator=generator)
    clf = Classifier.of(watched, shape=(6,), box=Box(0.0, 1.0))
    labels = clf.predict(x)
    for tier in (None, 0, 1, 2, 3, 4):
        watched.forwards = watched.gradients = 0
        told = clf.closest_adversary(x, labels) if tier is None else clf.predict_distance(x, labels, predictor=tier)
        assert int(told.gradients.sum()) == watched.gradients
        assert int(told.forwards.sum()) == watched.forwards


def test_no_more_gradients_than_promised(deep):
    clf, x, labels = deep
    for budget in (3, 4, 10, 30, 100):
        for norm in (1.0, 2.0, float("inf")):
            found = clf.closest_adversary(x, labels, budget=budget, norm=norm)
            assert (found.gradients <= budget).all()


def test_images_and_the_callers_model_are_kept(generator):
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), linear_net(generator)).train()
    clf, x = Classifier.of(net, shape=(1, 2, 3)), normal(3, 1, 2, 3, generator=generator)
    found = clf.closest_adversary(x, clf.predict(x))
    assert found.point.shape == x.shape
    assert clf.predict_distance(x, clf.predict(x)).displacement.shape == x.shape
    assert all(module.training for module in net.modules())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert clf.name == "Sequential"


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([0, 1], TypeError, "labels must be an integer tensor, got list; use torch.as_tensor"),
        (torch.zeros(2), TypeError, "labels must be an integer tensor, got torch.float32"),
        (torch.tensor([True, False]), TypeError, "labels must be an integer tensor, got torch.bool"),
        (torch.tensor([0]), ValueError, r"labels must have shape \(2,\), one per input, got \(1,\)"),
        (
            torch.tensor([0, 5]),
            ValueError,
            r"labels must lie in 0..4 for this model of 5 classes, got values from 0 to 5",
        ),
        (torch.tensor([-1, 0]), ValueError, r"got values from -1 to 0"),
    ],
)
def test_invalid_labels_are_refused(generator, unchecked, labels, error, message):
    clf = Classifier.of(linear_net(generator), shape=(6,))
    with pytest.raises(error, match=message):
        unchecked(Classifier.require_labelled)(clf, torch.zeros(2, 6, dtype=torch.float64), labels)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda c, x, y: c.closest_adversary(x[:, :2], y), r"x must have shape \(case, 6\)"),
        (lambda c, x, y: c.predict_distance(x[:, :2], y), r"x must have shape \(case, 6\)"),
        (lambda c, x, y: c.closest_adversary(x, y + 9), r"labels must lie in 0..4"),
        (
            lambda c, x, y: c.closest_adversary(x, y, budget=0),
            "budget must be at least 1 gradient per case, got 0",
        ),
        (lambda c, x, y: c.closest_adversary(x, y, batch_size=0), "batch_size must be at least 1 case, got 0"),
        (lambda c, x, y: c.predict_distance(x, y, batch_size=-1), "batch_size must be at least 1 case, got -1"),
        (lambda c, x, y: c.predict_distance(x, y, predictor=9), r"a tier of cost from 0 \(margin\) .*got 9"),
    ],
)
def test_invalid_questions_are_refused(generator, ask, message):
    clf = Classifier.of(linear_net(generator), shape=(6,))
    with pytest.raises(ValueError, match=message):
        ask(clf, torch.zeros(2, 6, dtype=torch.float64), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("net", [nn.Linear(6, 1), nn.Sequential(nn.Linear(6, 4), nn.Unflatten(1, (2, 2)))])
def test_a_module_without_class_scores_is_refused(net):
    with pytest.raises(
        ValueError, match=r"scores of shape \(case, classes\) with at least 2 classes, got \(2, .* Neuron.of"
    ):
        Classifier.of(net, shape=(6,))
