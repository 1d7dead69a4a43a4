"""Our search called as foolbox's own attacks are called: same answers, judged by foolbox."""

import builtins

import pytest
import torch
from analytic import normal, uniform
from torch import nn

from isoresponse import attacks
from isoresponse.classifier import Classifier
from isoresponse.foolbox_attack import closest_adversary_attack
from isoresponse.neuron import Box

foolbox = pytest.importorskip("foolbox")
ep = foolbox.attacks.base.ep


def linear_net(generator, n=6, classes=4):
    net = nn.Linear(n, classes).double()
    net.weight.data, net.bias.data = normal(classes, n, generator=generator), 0.3 * normal(classes, generator=generator)
    return net.eval()


@pytest.fixture
def net(generator):
    return linear_net(generator)


@pytest.fixture
def linear(net, generator):
    """Model for foolbox, classifier for us, inputs, labels, and the exact distance to the nearest boundary."""
    x = uniform(8, 6, low=-0.5, high=0.5, generator=generator)
    scores = net(x).detach()
    labels = scores.argmax(1)
    ways = net.weight.data[labels][:, None] - net.weight.data
    gaps = (scores.gather(1, labels[:, None]) - scores).scatter(1, labels[:, None], torch.inf)
    exact = (gaps / ways.norm(dim=2).clamp_min(1e-30)).amin(1)
    model = foolbox.PyTorchModel(net, bounds=(-4, 4), device="cpu")
    return model, Classifier.of(net, shape=(6,), box=Box(-4.0, 4.0)), x, labels, exact


def changes(points, x):
    return (points - x).flatten(1).norm(dim=1)


def test_on_a_linear_model_the_distances_are_exact_and_ours(linear):
    model, clf, x, labels, exact = linear
    raw, clipped, success = closest_adversary_attack()(model, x, labels, epsilons=None)
    assert raw.shape == clipped.shape == x.shape
    assert success.shape == (len(x),)
    assert success.all()
    torch.testing.assert_close(changes(raw, x), exact)
    torch.testing.assert_close(changes(raw, x), clf.closest_adversary(x, labels).distance)
    assert (model(raw).argmax(1) != labels).all()


def test_at_given_sizes_foolbox_clips_and_judges(linear):
    model, _, x, labels, exact = linear
    sizes = [float(exact.median()), 1.01 * float(exact.max())]
    raw, clipped, success = closest_adversary_attack()(model, x, labels, epsilons=sizes)
    assert len(raw) == len(clipped) == 2
    assert torch.equal(raw[0], raw[1])
    assert success.shape == (2, len(x))
    assert success[1].all()
    clear = (exact - sizes[0]).abs() > 1e-6
    assert torch.equal(success[0][clear], (exact < sizes[0])[clear])
    for size, points in zip(sizes, clipped, strict=True):
        assert (changes(points, x) <= size * (1 + 1e-12)).all()


def test_images_and_a_network(generator):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(64, 5)).eval()
    for p in net.parameters():
        p.data = 0.3 * torch.randn(p.shape, generator=generator)
    x = torch.rand(6, 1, 6, 6, generator=generator)
    clf = Classifier.of(net, shape=(1, 6, 6), box=Box(0, 1))
    labels = clf.predict(x)
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    raw, clipped, success = closest_adversary_attack(budget=100)(model, x, labels, epsilons=[0.5, 1.0])
    ours = clf.closest_adversary(x, labels)
    torch.testing.assert_close(changes(raw[0], x)[ours.success], ours.distance[ours.success], rtol=1e-4, atol=0)
    assert raw[0].min() >= 0
    assert raw[0].max() <= 1
    assert clipped[1].shape == x.shape
    assert torch.equal(success[1], ours.success & (ours.distance <= 1.0))
    assert raw[0].dtype == x.dtype


def test_where_there_is_no_adversary_the_clean_input_comes_back():
    """Foolbox's convention; its own check then says that the attack failed."""

    class Never(nn.Module):
        def forward(self, x):
            return torch.stack([x.sum(1), x.sum(1) - 2 + x[:, 0]], 1)

    model = foolbox.PyTorchModel(Never().eval(), bounds=(0, 1), device="cpu")
    x = torch.full((2, 3), 0.5)
    raw, _, success = closest_adversary_attack()(model, x, torch.tensor([0, 0]), epsilons=None)
    assert not success.any()
    assert torch.equal(raw, x)


def test_an_input_decided_otherwise_already_stays_where_it_is(linear):
    model, _, x, labels, _ = linear
    wrong = labels.clone()
    wrong[2] = (labels[2] + 1) % 4
    raw, _, success = closest_adversary_attack()(model, x, wrong, epsilons=None)
    assert success.all()
    assert torch.equal(raw[2], x[2])
    assert (changes(raw, x) > 0).sum() == len(x) - 1


def test_the_models_preprocessing_is_part_of_the_model(generator):
    net = linear_net(generator, 4, 3).float()
    mean, std = [0.1, -0.2, 0.3, 0.0], [0.5, 2.0, 1.0, 0.25]
    model = foolbox.PyTorchModel(net, bounds=(-3, 3), device="cpu", preprocessing={"mean": mean, "std": std})
    x = torch.rand(5, 4, generator=generator)

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net((x - torch.tensor(mean)) / torch.tensor(std))

    clf = Classifier.of(Whole(), shape=(4,), box=Box(-3, 3))
    labels = clf.predict(x)
    raw, _, success = closest_adversary_attack()(model, x, labels, epsilons=None)
    assert success.all()
    torch.testing.assert_close(changes(raw, x), clf.closest_adversary(x, labels).distance, rtol=1e-4, atol=0)


def test_the_models_bounds_are_the_box(net, linear):
    """Also those of a model whose bounds foolbox has transformed."""
    model, _, x, labels, exact = linear
    tight = foolbox.PyTorchModel(net, bounds=(-0.5, 0.5), device="cpu")
    raw, _, success = closest_adversary_attack()(tight, x, labels, epsilons=None)
    assert raw.abs().max() <= 0.5
    assert (changes(raw, x)[success] >= exact[success] * (1 - 1e-9)).all()
    unit = model.transform_bounds((0, 1))
    raw, _, success = closest_adversary_attack()(unit, (x + 4) / 8, labels, epsilons=None)
    assert success.all()
    torch.testing.assert_close(8 * changes(raw, (x + 4) / 8), exact)


def test_eagerpy_in_eagerpy_out_and_misclassification_is_the_default(linear):
    model, _, x, labels, _ = linear
    attack = closest_adversary_attack()
    plain = attack(model, x, labels, epsilons=None)[0]
    raw, _, success = attack(
        model, ep.astensor(x), foolbox.criteria.Misclassification(ep.astensor(labels)), epsilons=None
    )
    assert isinstance(raw, ep.PyTorchTensor)
    assert isinstance(success, ep.PyTorchTensor)
    assert torch.equal(raw.raw, plain)
    assert torch.equal(attack.run(model, x, labels), plain)


def test_it_is_a_foolbox_attack_like_any_other(linear):
    model, _, x, labels, _ = linear
    attack = closest_adversary_attack(budget=30)
    assert isinstance(attack, foolbox.attacks.base.MinimizationAttack)
    assert type(attack) is type(closest_adversary_attack())
    assert repr(attack) == "ClosestAdversaryAttack(norm=2.0, budget=30)"
    assert attack.distance.p == 2
    again = attack.repeat(2)(model, x, labels, epsilons=None)[0]
    assert torch.equal(again, attack(model, x, labels, epsilons=None)[0])


def test_our_attack_can_measure_through_foolbox(linear):
    """There and back: a foolbox attack that is ours, as a measuring device of ours."""
    _, clf, x, labels, exact = linear
    found = attacks.from_foolbox(closest_adversary_attack()).on_decision(clf, x, labels)
    torch.testing.assert_close(found.distance, exact)
    assert (found.gradients <= 100).all()


@pytest.mark.parametrize("budget", [10, 30, 100])
def test_the_budget_is_kept(linear, budget):
    _, clf, x, labels, exact = linear
    found = attacks.from_foolbox(closest_adversary_attack(budget=budget)).on_decision(clf, x, labels)
    assert (found.gradients <= budget).all()
    assert (found.distance >= exact * (1 - 1e-9)).all()


@pytest.mark.parametrize(("norm", "dual"), [(1, float("inf")), (2, 2), (float("inf"), 1)])
def test_every_norm_has_its_distance(net, linear, norm, dual):
    """On a linear model the distance in a norm is the gap over the dual norm of the slope."""
    model, clf, x, labels, _ = linear
    attack = closest_adversary_attack(norm=norm)
    raw, _, success = attack(model, x, labels, epsilons=None)
    assert success.all()
    ways, scores = net.weight.data[labels][:, None] - net.weight.data, net(x).detach()
    gaps = (scores.gather(1, labels[:, None]) - scores).scatter(1, labels[:, None], torch.inf)
    exact = (gaps / torch.linalg.vector_norm(ways, dual, dim=2).clamp_min(1e-30)).amin(1)
    assert (attack.distance(x, raw) >= exact * (1 - 1e-9)).all()
    torch.testing.assert_close(attack.distance(x, raw), exact, rtol=1e-3, atol=0)
    torch.testing.assert_close(attack.distance(x, raw), clf.closest_adversary(x, labels, norm=norm).distance)


def test_targets_are_reached(net, linear):
    model, clf, x, labels, exact = linear
    targets = (labels + 1 + torch.arange(len(x)) % 3) % 4
    criterion = foolbox.criteria.TargetedMisclassification(targets)
    raw, _, success = closest_adversary_attack()(model, x, criterion, epsilons=None)
    assert success.all()
    assert torch.equal(clf.predict(raw), targets)
    torch.testing.assert_close(changes(raw, x), clf.closest_adversary(x, labels, targets=targets).distance)
    assert (changes(raw, x) >= exact * (1 - 1e-9)).all()
    already = foolbox.criteria.TargetedMisclassification(labels)
    raw, _, success = closest_adversary_attack()(model, x, already, epsilons=None)
    assert success.all()
    assert torch.equal(raw, x)


def test_the_random_state_stays_where_it_was(linear):
    model, _, x, labels, _ = linear
    before = torch.get_rng_state()
    closest_adversary_attack()(model, x, labels, epsilons=[0.5, 1.0])
    assert torch.equal(torch.get_rng_state(), before)


# --- bad input


def test_another_criterion_is_refused(linear):
    model, _, x, labels, _ = linear
    both = foolbox.criteria.Misclassification(labels) & foolbox.criteria.Misclassification(labels)
    with pytest.raises(
        ValueError, match=r"expected a foolbox Misclassification or TargetedMisclassification .*, got .* & "
    ):
        closest_adversary_attack()(model, x, both, epsilons=None)


def test_invalid_calls_are_refused(linear):
    model, _, x, labels, _ = linear
    attack = closest_adversary_attack()
    with pytest.raises(ValueError, match=r"labels must lie in 0..3"):
        attack(model, x, labels + 9, epsilons=None)
    with pytest.raises(ValueError, match=r"targets must lie in 0..3"):
        attack(model, x, foolbox.criteria.TargetedMisclassification(labels + 9), epsilons=None)
    with pytest.raises(ValueError, match="starts at the inputs themselves; leave starting_points out"):
        attack(model, x, labels, epsilons=None, starting_points=x)
    with pytest.raises(TypeError, match="unexpected keyword argument 'steps'"):
        attack(model, x, labels, epsilons=None, steps=3)
    with pytest.raises(ValueError, match="works on PyTorch tensors, got ndarray"):
        attack(model, x.numpy(), labels.numpy(), epsilons=None)
    shapes = foolbox.PyTorchModel(nn.Identity().eval(), bounds=(-4, 4), device="cpu")
    with pytest.raises(ValueError, match=r"scores of shape \(case, classes\), got \(8, 2, 3\)"):
        attack(shapes, x.reshape(8, 2, 3), labels, epsilons=None)


def test_invalid_settings_are_refused():
    with pytest.raises(ValueError, match="budget must be at least 1 gradient per case, got 0"):
        closest_adversary_attack(budget=0)
    with pytest.raises(ValueError, match="norm must be 1, 2 or"):
        closest_adversary_attack(norm=3)


def test_without_foolbox_the_message_says_how_to_get_it(monkeypatch):
    from isoresponse import foolbox_attack

    real = builtins.__import__

    def without(name, *rest, **named):
        if name == "foolbox":
            raise ImportError("No module named 'foolbox'")
        return real(name, *rest, **named)

    foolbox_attack._attack_class.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"foolbox could not be imported .* pip install 'isoresponse\[attacks\]'"):
        closest_adversary_attack()
