"""Alarms: every defence that hides its gradient raises its own, honest networks raise none, numbers are exact."""

import json
import math
from dataclasses import replace

import pytest
import torch
from analytic import frames, normal, uniform
from torch import nn
from torch.nn import functional as F

from isoresponse.classifier import Classifier
from isoresponse.masking import Alarm, masking_alarms
from isoresponse.models import digits as zoo
from isoresponse.neuron import Box
from isoresponse.probes import Found, Probe, halved, search
from isoresponse.records import to_plain

ALWAYS = ("derivative", "finite step", "vanishing", "repeatability", "gradient-free", "unbounded")
NOISE = torch.Generator().manual_seed(1)


class Straight(torch.autograd.Function):
    """Rounded to 16 levels, with the gradient of what was not rounded."""

    @staticmethod
    def forward(ctx, x):
        return (15 * x).round() / 15

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Turned(torch.autograd.Function):
    """Nothing on the way there, the wrong sign on the way back."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class Winners(nn.Module):
    """k-WTA (Xiao, Zhong and Zheng 2020): the largest tenth of the activations, in steps that shatter the gradient."""

    def forward(self, x):
        return x * (x >= x.topk(x.shape[1] // 10, dim=1).values[:, -1:])


def half_detached(x):
    """Every other element without its gradient."""
    even = (torch.arange(x[0].numel()) % 2 == 0).reshape(x.shape[1:])
    return torch.where(even, x, x.detach())


DEFENCES = {
    "rounded": (lambda x: (15 * x).round() / 15, {"derivative", "finite step", "vanishing", "gradient-free"}),
    "straight-through": (Straight.apply, {"derivative", "gradient-free"}),
    "detached": (lambda x: x.detach() + 0 * x, {"derivative", "finite step", "vanishing", "gradient-free"}),
    "half detached": (half_detached, {"derivative", "gradient-free"}),
    "negated": (Turned.apply, {"derivative", "finite step", "gradient-free"}),
    "shattered": (lambda x: x + 1e-3 * torch.sin(1e4 * x), {"finite step", "gradient-free"}),
    "slower waves": (lambda x: x + 3e-3 * torch.sin(1e3 * x), {"finite step"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def sample(digits):
    return digits.test[0][:30], digits.test[1][:30]


@pytest.fixture(scope="module")
def net(digits):
    return zoo.trained("mlp", digits)


@pytest.fixture(scope="module")
def honest(net, sample):
    return alarms(net, sample)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def on_digits(scores):
    return Classifier(scores, (1, 8, 8), 10, Box(0, 1))


def alarms(scores, sample, **options):
    return masking_alarms(on_digits(scores), *sample, generator=seeded(), **options)


def taught(data, *layers, rounds=12, reach=0.0, sparse=0.0):
    """A network trained on digits: against steps along the gradient's signs (`reach`), with sparse first activations."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), *(make() for make in layers))
    images, labels = data.train
    optimizer, generator = torch.optim.Adam(net.parameters(), 3e-3), seeded()
    for _ in range(rounds):
        for batch in torch.randperm(len(images), generator=generator).split(100):
            x, y = images[batch].requires_grad_(True), labels[batch]
            if reach:
                (gradient,) = torch.autograd.grad(F.cross_entropy(net(x), y), x)
                x = (x.detach() + reach * gradient.sign()).clamp(0, 1)
            loss = F.cross_entropy(net(x), y) + sparse * net[:3](x).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


def linear(width, act, out=10):
    return lambda: nn.Linear(64, width), act, lambda: nn.Linear(width, out)


# --- honest networks


def test_the_built_in_network_raises_nothing(honest):
    assert honest.raised == ()
    assert tuple(a.name for a in honest.alarms) == ALWAYS
    assert all(a.count == 0 for a in honest.alarms)
    assert all(a.cases >= 28 for a in honest.alarms)


@pytest.mark.parametrize(
    ("layers", "options"),
    [
        (linear(128, nn.ReLU), {"sparse": 1.0}),
        (linear(128, nn.ReLU), {"reach": 0.15}),
        (linear(128, nn.Softplus), {"reach": 0.15}),
        (linear(128, nn.GELU), {}),
    ],
    ids=["sparse", "adversarially trained", "smooth and adversarially trained", "GELU"],
)
def test_no_false_alarms(digits, sample, layers, options):
    net = taught(digits, *layers, **options)
    assert zoo.accuracy(net, *digits.test) > 0.85
    report = alarms(net, sample)
    assert report.raised == ()
    assert (report.smallest.nan_to_num() <= report.white_box.nan_to_num()).all()


def test_ties_at_the_input_are_no_wrong_gradient():
    """Pooling over a background where all is equal has a kink right there."""
    pooled = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    pooled[2].weight.data = normal(3, 16, generator=seeded()).float()
    pooled[2].bias.data.zero_()
    x = torch.zeros(30, 1, 8, 8)
    x[:, :, ::2, ::2] = torch.rand(30, 1, 4, 4, generator=seeded()).round()
    clf = Classifier.of(pooled, shape=(1, 8, 8), box=Box(0, 1))
    report = masking_alarms(clf, x, clf.predict(x), generator=seeded())
    assert report["derivative"].count <= 1
    assert not report["derivative"].raised


# --- defences that hide their gradient


@pytest.mark.parametrize("name", DEFENCES)
def test_a_hidden_gradient_raises_its_alarms(net, sample, name):
    hide, expected = DEFENCES[name]
    report = alarms(lambda x: net(hide(x)), sample)
    assert expected <= set(report.raised)
    assert "repeatability" not in report.raised
    assert set(report.raised) == {a.name for a in report.alarms if a.raised}
    assert (report.smallest.nan_to_num() <= report.white_box.nan_to_num()).all()
    assert report.smallest.isfinite().sum() == report["unbounded"].cases  # what hides does not look robust


def test_saturated_scores_have_no_gradient_though_they_are_a_networks(net, sample, honest):
    report = alarms(lambda x: (1e6 * net(x)).softmax(1), sample)
    assert "vanishing" in report.raised  # the others tell how far our own search gets without a gradient
    assert report["vanishing"].share == 1.0
    assert report["derivative"].cases == 0  # nothing changes, so nothing can be compared
    assert report["derivative"].interval == (0.0, 1.0)
    assert math.isnan(report["derivative"].share)
    assert report["derivative"].sentence == "No case could be judged: too little changes, or nothing was found."
    known = honest.smallest.isfinite() & report.smallest.isfinite()
    assert (report.smallest / honest.smallest)[known].median() < 2  # what hides is found all the same


def test_a_random_model_does_not_repeat_itself(net, sample):
    def scores(x):
        return net(x + 0.05 * torch.randn(x.shape, generator=NOISE))

    report = alarms(scores, sample, solution=on_digits(net).closest_adversary(*sample))
    assert "repeatability" in report.raised
    assert report["repeatability"].share == 1.0
    assert report.smallest.isfinite().sum() == report["repeatability"].cases


def test_winners_take_all_shatters_the_gradient(digits, sample):
    net = taught(digits, *linear(128, Winners))
    assert zoo.accuracy(net, *digits.test) > 0.9
    assert {"finite step", "gradient-free"} <= set(alarms(net, sample).raised)


def test_a_gradient_that_is_not_finite_is_counted_as_vanished(net, sample):
    report = alarms(lambda x: net(x) + (x - x).flatten(1).square().sum(1, keepdim=True).sqrt(), sample)
    assert report["vanishing"].share == 1.0


def test_a_handful_of_cases_raises_only_what_is_certain(net, sample):
    few = sample[0][:3], sample[1][:3]
    report = alarms(lambda x: net(Turned.apply(x)), few)
    assert report["derivative"].share == 1.0
    assert report["derivative"].interval == pytest.approx((0.4385, 1.0), abs=1e-4)


# --- numbers


@pytest.mark.parametrize(
    ("count", "cases", "interval"),
    [(0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0)), (5, 10, (0.2366, 0.7634)), (0, 0, (0.0, 1.0))],
)
def test_the_interval_is_wilsons(count, cases, interval):
    judged = torch.arange(12) < cases
    alarm = Alarm("vanishing", torch.arange(12) < count, judged)
    assert alarm.interval == pytest.approx(interval, abs=5e-5)
    assert (alarm.count, alarm.cases) == (count, cases)
    assert alarm.raised == (interval[0] > 0.05)


def lines(n, cases=40, *, generator):
    """A linear classifier of two classes in a wide box, inputs on both sides, and their exact distances."""
    turn = frames(1, n, generator=generator)[0, :2]
    clf = Classifier(lambda x: x @ torch.stack([turn[0], 3 * turn[1]]).T, (n,), 2, Box(-100.0, 100.0))
    x = normal(cases, n, generator=generator)
    apart = turn[0] - 3 * turn[1]
    return clf, x, (x @ apart).abs() / apart.norm()


@pytest.mark.parametrize(("n", "worst"), [(2, 1.001), (6, 1.02), (30, 1.4)])
def test_the_search_without_gradients_comes_close_to_the_exact_distance(generator, n, worst):
    clf, x, distance = lines(n, generator=generator)
    every = Probe.of(clf, x, clf.predict(x))
    nothing = Found(x, torch.full_like(distance, math.inf))
    found = search(every, every, nothing, [], generator)
    assert (found.size >= distance * (1 - 1e-9)).all()
    assert (found.size / distance).median() < worst
    assert (every.margin(every.scores(found.point)) < 0).all()
    torch.testing.assert_close((found.point - x).norm(dim=1), found.size)


def test_a_ray_is_halved_down_to_its_crossing(generator):
    clf, x, _ = lines(5, generator=generator)
    probe = Probe.of(clf, x, clf.predict(x))
    far = next(probe.others(probe))
    near = halved(probe, far, 30)
    before = near.point - 2**-29 * (far - x)
    assert (probe.margin(probe.scores(near.point)) < 0).all()
    assert (probe.margin(probe.scores(before)) > 0).all()


def test_honest_distances_are_exact_and_unlabelled_cases_are_left_out(generator):
    clf, x, distance = lines(4, generator=generator)
    labels = clf.predict(x)
    labels[:5] = 1 - labels[:5]
    report = masking_alarms(clf, x, labels, generator=generator)
    assert report.raised == ()
    assert all(a.cases == 35 for a in report.alarms)
    assert report.white_box[:5].isnan().all()
    torch.testing.assert_close(report.white_box[5:], distance[5:], rtol=1e-6, atol=0)
    torch.testing.assert_close(report.smallest[5:], distance[5:], rtol=1e-6, atol=0)


def answer(clf, x, factor):
    """The closest adversaries of a linear classifier, made too far by a factor per case."""
    found = clf.closest_adversary(x, clf.predict(x))
    return replace(found, point=x + factor[:, None] * (found.point - x), distance=factor * found.distance)


def test_answers_that_are_too_far_are_found_out(generator):
    clf, x, _ = lines(6, generator=generator)
    labels, right = clf.predict(x), torch.ones(40, dtype=torch.float64)
    some = torch.where(torch.arange(40) < 10, 1.3, 1.001).double()
    report = masking_alarms(clf, x, labels, answer(clf, x, some), generator=generator)
    assert report.raised == ("gradient-free",)
    assert report["gradient-free"].flagged.tolist() == [True] * 10 + [False] * 30
    none = torch.where(torch.arange(40) < 4, math.nan, right)
    report = masking_alarms(clf, x, labels, answer(clf, x, none), generator=generator)
    assert "unbounded" in report.raised
    assert report["unbounded"].share == 0.1
    assert report.white_box[:4].isinf().all()
    short = masking_alarms(clf, x, labels, answer(clf, x, 0.9 * right), generator=generator)
    assert short["unbounded"].share == 1.0  # answers are not believed but checked


def test_a_longer_search_must_not_do_worse_and_should_not_do_better(generator):
    clf, x, _ = lines(6, generator=generator)
    labels = clf.predict(x)
    far, near = (answer(clf, x, torch.full((40,), f, dtype=torch.float64)) for f in (1.2, 1.0))
    worse = masking_alarms(clf, x, labels, near, longer=far, generator=generator)
    assert worse.raised == ("budget",)
    better = masking_alarms(clf, x, labels, far, longer=near, generator=generator)
    assert {"convergence", "gradient-free"} == set(better.raised)
    same = masking_alarms(clf, x, labels, near, longer=near, generator=generator)
    assert same.raised == ()
    assert [a.name for a in same.alarms] == [*ALWAYS, "budget", "convergence"]


def test_another_models_gradient_shows_what_is_hidden(net, sample):
    honest = on_digits(net)
    report = alarms(lambda x: net((15 * x).round() / 15), sample, surrogate=honest)
    assert "transfer" in report.raised
    assert report["transfer"].share == 1.0
    direct = honest.closest_adversary(*sample).distance
    assert (report.smallest / direct).nanmedian() < 1.2


def test_a_surrogate_that_is_no_better_raises_nothing(generator):
    clf, x, _ = lines(6, generator=generator)
    tilted = replace(clf, logits=lambda z: clf.logits(z + 0.1 * z.roll(1, 1)))
    report = masking_alarms(clf, x, clf.predict(x), surrogate=tilted, generator=generator)
    assert report.raised == ()
    assert report["transfer"].count == 0
    assert report["transfer"].cases == int((tilted.predict(x) == clf.predict(x)).sum())


def test_every_pass_is_counted(net, sample):
    spent = {"forwards": 0, "gradients": 0}

    def scores(x):
        spent["forwards"] += len(x)
        if x.requires_grad:
            x = x.view_as(x)
            x.register_hook(lambda g: spent.update(gradients=spent["gradients"] + len(g)))
        return net(x)

    report = alarms(scores, sample)
    assert report.forwards * 30 == pytest.approx(spent["forwards"])
    assert report.gradients * 30 == pytest.approx(spent["gradients"])
    given = alarms(net, sample, solution=on_digits(net).closest_adversary(*sample))
    assert given.gradients == pytest.approx(2 * given["vanishing"].cases / 30)
    assert 300 < given.forwards < 700


def test_units_of_input_and_response_do_not_matter(net, sample, honest):
    scaled = Classifier(lambda z: 64 * net((z + 128) / 256), (1, 8, 8), 10, Box(-128, 128))
    other = masking_alarms(scaled, 256 * sample[0] - 128, sample[1], generator=seeded())
    assert other.raised == ()
    torch.testing.assert_close(other.smallest / 256, honest.smallest, rtol=1e-3, atol=0, equal_nan=True)


def test_the_generator_decides(net, sample, honest):
    again = alarms(net, sample)
    assert torch.equal(again.smallest.nan_to_num(), honest.smallest.nan_to_num())
    assert repr(again) == repr(honest)


def test_double_precision_and_an_open_box_are_fine(generator):
    clf, x, _ = lines(4, generator=generator)
    opened = replace(clf, box=Box())
    report = masking_alarms(opened, x, clf.predict(x), generator=generator)
    assert report.raised == ()
    assert report.smallest.dtype == torch.float64
    far = replace(opened, logits=lambda z: z[:, :2] * torch.tensor([1.0, 0.0]).to(z) + torch.tensor([50.0, 0]).to(z))
    beyond = masking_alarms(far, x.abs() + 1, torch.zeros(40, dtype=torch.int64), generator=generator)
    assert beyond.raised == ()  # though the answers lie outside the range where the probes look
    frozen = replace(clf, box=Box(torch.full((4,), -9.0), torch.tensor([9.0, 9, 9, -9.0])))
    x[:, 3] = -9.0
    assert masking_alarms(frozen, x, clf.predict(x), generator=generator).raised == ()


def test_where_no_other_class_is_known_nothing_is_judged(generator):
    constant = Classifier(lambda x: torch.stack([x[:, 0] + 9, x[:, 1]], 1), (2,), 2, Box(0, 1))
    x = uniform(20, 2, generator=generator)
    report = masking_alarms(constant, x, torch.zeros(20, dtype=torch.int64), generator=generator)
    assert report["unbounded"].cases == report["gradient-free"].cases == 0
    assert report.raised == ()
    assert report.smallest.isinf().all()


def test_scores_that_are_not_numbers_are_no_class_and_no_answer(generator):
    def scores(x):
        return torch.stack([x[:, 0], -x[:, 0]], 1) + (x[:, 1:] - 0.5).clamp_max(0).sqrt().where(
            x[:, 1:] < 0.5, x[:, 1:] * 0
        )

    x = torch.cat([uniform(20, 1, low=-1.0, generator=generator), torch.full((20, 1), 0.9, dtype=torch.float64)], 1)
    x[:4, 1] = 0.1
    clf = Classifier(scores, (2,), 2, Box(-1, 1))
    report = masking_alarms(clf, x, (x[:, 0] < 0).long(), generator=generator)
    assert report["vanishing"].cases == 16
    assert report.smallest[:4].isnan().all()
    torch.testing.assert_close(report.smallest[4:], x[4:, 0].abs(), rtol=1e-3, atol=0)


# --- what is shown


def test_the_report_is_a_table(net, sample):
    report = alarms(lambda x: net(Turned.apply(x)), sample)
    text = repr(report).splitlines()
    assert text[0].startswith(f"MaskingReport({len(report.raised)} of 6 alarms raised, 30 cases, ")
    assert text[0].endswith("gradients per case)")
    assert text[1].split() == ["alarm", "raised", "share", "95", "%", "interval", "limit", "what", "was", "seen"]
    assert len(text) == 8
    assert text[2].startswith("derivative     YES     100.0%  ")
    assert "The gradient is not the derivative: cut off, replaced or turned round." in text[2]
    page = report._repr_html_()
    assert page.count("<tr>") == 7
    assert "<td>derivative</td><td>YES</td>" in page
    row = report["derivative"].numbers()
    assert row["sentence"] == report["derivative"].sentence
    assert json.loads(json.dumps(to_plain(row), allow_nan=False))["raised"] is True
    assert report["vanishing"].sentence.endswith("cases the gradient is zero, negligible or not finite.")
    with pytest.raises(KeyError, match="no alarm 'transfer' here; there are derivative, finite step"):
        _ = report["transfer"]


# --- bad input


def test_bad_input_is_refused(generator):
    clf, x, _ = lines(4, generator=generator)
    labels = clf.predict(x)
    found = clf.closest_adversary(x, labels)

    def refused(message, *, x=x, labels=labels, clf=clf, **options):
        with pytest.raises(ValueError, match=message):
            masking_alarms(clf, x, labels, generator=generator, **options)

    refused("x must have shape", x=x[:, :3])
    refused("labels must lie in 0..1", labels=labels + 2)
    refused("none of the 40 inputs is classified as labelled", labels=1 - labels)
    refused(r"solution must hold one point per input, \(40, 4\), got \(39, 4\)", solution=replace(found, point=x[:39]))
    refused("longer must be of the Euclidean norm", longer=replace(found, distance=0.5 * found.distance))
    refused(
        "surrogate must take the inputs and have the classes of", surrogate=Classifier(lambda z: z, (4,), classes=4)
    )
    same = torch.ones(3, 4, dtype=torch.float64)
    opened = replace(clf, box=Box())
    refused("the box leaves no room, or has no bounds", clf=opened, x=same, labels=clf.predict(same))
