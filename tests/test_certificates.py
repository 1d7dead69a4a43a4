"""Certificates: exact where contours are straight, never above what a search finds, and refusing what cannot be proved."""

import itertools
import math
import sys
import types

import pytest
import torch
from analytic import names
from matplotlib.figure import Figure

import isoresponse as iso
from isoresponse import plot
from isoresponse.certificates import Certificate
from isoresponse.smooth import SmoothNet, _gelu, _sigmoid, _softplus, _tanh

INF = float("inf")
NORMS = (1.0, 2.0, INF)
BOX = iso.Box(-1.0, 2.0)


def network(*sizes, activation=torch.nn.Tanh, seed=0, gain=2.0):
    """A random smooth network in float64, steep enough to bend inside the box."""
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for before, after in itertools.pairwise(sizes):
        linear = torch.nn.Linear(before, after).double()
        linear.weight.data = gain * torch.randn(after, before, generator=generator, dtype=torch.float64) / before**0.5
        linear.bias.data = 0.3 * torch.randn(after, generator=generator, dtype=torch.float64)
        layers += [linear, activation()]
    return torch.nn.Sequential(*layers[:-1]).eval()


def inputs(cases, n, seed=1):
    return torch.rand(cases, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- straight contours


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("box", [iso.Box(), iso.Box(0.0, 1.0)])
def test_affine_networks_are_exact(norm, box):
    net = network(7, 5, gain=1.0)
    x = inputs(15, 7)
    labels = net(x).argmax(1)
    found = iso.certify_decision(net, x, labels, norm=norm, box=box)
    clf = iso.Classifier.of(net, shape=(7,), box=box)
    measured = clf.closest_adversary(x, labels, norm=norm, budget=200)
    reached = measured.success
    assert reached.sum() >= 3
    torch.testing.assert_close(found.lower[reached], measured.distance[reached], rtol=1e-6, atol=0)
    assert found.exact.all()
    assert found.method == "straight contours"
    # a decision that cannot be changed inside the box has no adversary at any distance
    assert torch.isinf(found.lower[~reached]).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("rising", [True, False])
@pytest.mark.parametrize(
    "nonlinearity",
    [torch.sigmoid, lambda z: z.relu(), lambda z: z**3, lambda z: z],
    ids=["sigmoid", "relu", "cube", "linear"],
)
def test_pointwise_neurons_are_exact_whatever_the_nonlinearity(norm, rising, nonlinearity):
    w = torch.tensor([2.0, -1.0, 0.5, 0.0], dtype=torch.float64)
    neuron = iso.Neuron(lambda x: nonlinearity(x @ w), (4,), iso.Box(-3.0, 3.0))
    x = inputs(10, 4) + torch.tensor([0.7, 0.0, 0.0, 0.0])
    gap = 0.6 if rising else -0.6
    drive = x @ w
    found = iso.certify_pointwise(neuron, w, x, nonlinearity(drive + gap), norm=norm)
    dual = {1.0: INF, 2.0: 2.0, INF: 1.0}[norm]
    able = drive > 0.7  # so that the rectified drive does not end at zero
    assert able.sum() >= 3
    torch.testing.assert_close(found.lower[able], torch.full_like(drive, 0.6 / w.norm(dual))[able], rtol=1e-6, atol=0)


def test_a_level_that_no_drive_reaches_has_an_infinite_bound_or_none():
    w = torch.tensor([1.0, 2.0], dtype=torch.float64)
    x = torch.zeros(2, 2, dtype=torch.float64)
    boxed = iso.Neuron(lambda x: torch.sigmoid(x @ w), (2,), iso.Box(-1.0, 1.0))
    assert torch.isinf(iso.certify_pointwise(boxed, w, x, 0.99).lower).all()
    unbounded = iso.Neuron(lambda x: torch.sigmoid(x @ w), (2,))
    found = iso.certify_pointwise(unbounded, w, x, 1.5)
    assert names(found.status) == ["UNDEFINED"] * 2
    assert found.lower.isnan().all()
    there = iso.certify_pointwise(unbounded, w, x, 0.5)
    assert names(there.status) == ["ALREADY"] * 2
    assert there.lower.tolist() == [0.0, 0.0]


def test_a_neuron_that_is_not_pointwise_is_refused(unchecked):
    w = torch.ones(2, dtype=torch.float64)
    x = inputs(4, 2)
    with pytest.raises(ValueError, match=r"does not depend on the drive weight \. x alone"):
        iso.certify_pointwise(iso.Neuron(lambda x: x[:, 0], (2,)), w, x, 2.0)
    with pytest.raises(ValueError, match="does not rise with the drive"):
        iso.certify_pointwise(iso.Neuron(lambda x: 3 * (4 * (x @ w)).sin() + x @ w, (2,)), w, x, 40.0)
    with pytest.raises(ValueError, match=r"weight must have the shape of one input, \(2,\)"):
        unchecked(iso.certify_pointwise)(iso.Neuron(lambda x: x.sum(1), (2,)), torch.ones(3), x, 2.0)


# --- curvature


@pytest.mark.parametrize(
    "activation", [_sigmoid(), _tanh(), _softplus(3.0), _gelu()], ids=["sigmoid", "tanh", "softplus", "gelu"]
)
def test_derivatives_of_activations_and_their_ranges(activation, generator):
    z = (4 * torch.randn(200, generator=generator, dtype=torch.float64)).requires_grad_(True)
    first = torch.autograd.grad(activation.value(z).sum(), z, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), z)[0]
    torch.testing.assert_close(activation.first(z), first, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(activation.second(z), second, rtol=1e-9, atol=1e-12)
    low = 3 * torch.randn(50, generator=generator, dtype=torch.float64)
    high = low + 3 * torch.rand(50, generator=generator, dtype=torch.float64)
    inside = low + (high - low) * torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None]
    for function, bound in ((activation.first, activation.slopes), (activation.second, activation.bends)):
        values, (least, most) = function(inside), bound(low, high)
        assert (least <= values.amin(0) + 1e-12).all()
        assert (most >= values.amax(0) - 1e-12).all()
        torch.testing.assert_close(least, values.amin(0), rtol=0, atol=1e-5)
        torch.testing.assert_close(most, values.amax(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("sizes", [(5, 8, 3), (5, 8, 6, 3), (9, 4, 3, 3)], ids=str)
@pytest.mark.parametrize("radius", [0.1, 1.0, INF])
def test_the_hessian_never_bends_more_than_is_bounded(sizes, radius, generator):
    net = SmoothNet.of(network(*sizes), (sizes[0],))
    x = inputs(4, sizes[0])
    room = torch.full_like(x, 5.0)
    read = torch.randn(4, sizes[-2], generator=generator, dtype=torch.float64)
    ranges = net.ranges(x, torch.full((4,), radius, dtype=torch.float64), 2.0, -room, room)
    down, up = net.bends(read, ranges)
    extremes = []
    for _ in range(40):
        way = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        reach = min(radius, 2.0) * torch.rand(4, 1, generator=generator, dtype=torch.float64)
        at = x + reach * way / way.norm(dim=1, keepdim=True)
        for z, (low, high) in zip(net.hidden(at), ranges, strict=True):
            assert ((low <= z) & (z <= high)).all()
        rows = [
            torch.autograd.functional.hessian(
                lambda q, i=i: (net.activations[-1].value(net.hidden(q[None])[-1]) * read[i]).sum(), at[i]
            )
            for i in range(4)
        ]
        extremes.append(torch.linalg.eigvalsh(torch.stack(rows)))
    every = torch.stack(extremes)
    assert (every.amin((0, 2)) >= -down).all()
    assert (every.amax((0, 2)) <= up).all()
    if radius == 0.1 and len(sizes) == 3:  # in a small ball the bound is what is there
        torch.testing.assert_close(down, -every.amin((0, 2)), rtol=0.8, atol=0.1)


def test_the_closed_form_of_one_tanh_is_met():
    """One hidden unit: contours are straight, and the dual problem has no gap."""
    net = network(6, 1, 1, gain=1.0)
    x = inputs(10, 6)
    level = net(x)[:, 0] - 0.05 * net[2].weight[0, 0].detach()
    w = net[0].weight[0].detach()
    z = net[0](x)[:, 0].detach()
    truth = (torch.atanh(z.tanh() - 0.05) - z).abs() / w.norm()
    found = iso.certify_level(net, x, level.detach())
    assert (found.lower <= truth).all()
    torch.testing.assert_close(found.lower, truth, rtol=2e-3, atol=0)


@pytest.mark.parametrize("activation", [torch.nn.Tanh, torch.nn.GELU, torch.nn.Softplus])
@pytest.mark.parametrize("sizes", [(6, 10, 4), (6, 8, 8, 4)], ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_nothing_is_found_nearer_than_certified(activation, sizes, norm):
    net = network(*sizes, activation=activation)
    x = inputs(12, sizes[0])
    labels = net(x).argmax(1)
    measured = iso.Classifier.of(net, shape=(6,), box=BOX).closest_adversary(x, labels, norm=norm, budget=80)
    found = iso.certify_decision(net, x, labels, norm=norm, box=BOX, radii=2)
    assert measured.success.sum() > 6
    assert (found.lower > 0).all()
    assert not found.contradicted(measured.distance).any()
    assert not found.exact.any()
    globally = iso.certify_decision(net, x, labels, norm=norm, box=BOX, radii=0)
    assert (found.lower >= globally.lower * (1 - 1e-12)).all()


def test_certified_points_keep_their_decision(generator):
    """The referee that needs no search: draws inside the certified ball."""
    net = network(6, 10, 4)
    x = inputs(20, 6)
    labels = net(x).argmax(1)
    radius = iso.certify_decision(net, x, labels, box=BOX).lower
    for _ in range(50):
        way = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        at = x + radius[:, None] * way / way.norm(dim=1, keepdim=True)
        inside = BOX.contains(at)
        assert (net(at).argmax(1) == labels)[inside].all()


def test_on_gently_bent_networks_the_bound_is_the_distance():
    """Where the dual problem has no gap, the search is proved to have found the globally closest point."""
    net = network(6, 10, 4, gain=0.7)
    x = inputs(40, 6)
    labels = net(x).argmax(1)
    measured = iso.Classifier.of(net, shape=(6,)).closest_adversary(x, labels, budget=200)
    found = iso.certify_decision(net, x, labels)
    ratio = (found.lower / measured.distance)[measured.success]
    assert ratio.median() > 0.999
    assert ratio.max() <= 1 + 1e-6


def test_a_box_makes_bounds_larger():
    net = network(6, 10, 4)
    x = inputs(20, 6)
    labels = net(x).argmax(1)
    for norm in (2.0, INF):
        free = iso.certify_decision(net, x, labels, norm=norm, radii=0).lower
        boxed = iso.certify_decision(net, x, labels, norm=norm, radii=0, box=iso.Box(0.0, 1.0)).lower
        assert (boxed >= free * (1 - 1e-9)).all()
        assert (boxed > 1.01 * free).any()


def test_convolutions_are_matrices():
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3, padding=1), torch.nn.AvgPool2d(2), torch.nn.GELU(), torch.nn.Flatten(),
        torch.nn.Sequential(torch.nn.Linear(12, 5), torch.nn.Dropout()), torch.nn.Sigmoid(), torch.nn.Linear(5, 3),
    ).double().eval()  # fmt: skip
    x = inputs(5, 16).reshape(5, 1, 4, 4)
    torch.testing.assert_close(SmoothNet.of(net, (1, 4, 4)).scores(x.flatten(1)), net(x), rtol=1e-12, atol=1e-12)


def test_a_case_alone_and_in_a_batch_and_in_float32():
    net = network(6, 8, 8, 4)
    x = inputs(10, 6)
    labels = net(x).argmax(1)
    many = iso.certify_decision(net, x, labels, box=BOX)
    alone = iso.certify_decision(net, x[3:4], labels[3:4], box=BOX)
    torch.testing.assert_close(alone.lower, many.lower[3:4], rtol=1e-9, atol=0)
    single = iso.certify_decision(net.float(), x.float(), labels, box=BOX)
    assert single.lower.dtype == torch.float32
    torch.testing.assert_close(single.lower.double(), many.lower, rtol=1e-4, atol=0)


def test_cases_without_a_certificate_say_why():
    net = network(6, 8, 4)
    x = inputs(6, 6)
    labels = net(x).argmax(1)
    labels[2] = (labels[2] + 1) % 4
    found = iso.certify_decision(net, x, labels)
    assert names(found.status) == ["DONE", "DONE", "ALREADY", "DONE", "DONE", "DONE"]
    assert found.lower[2] == 0
    assert found.exact[2]
    assert "Hessian bound" in repr(found)


def test_a_planted_violation_is_seen():
    net = network(6, 8, 4)
    x = inputs(12, 6)
    labels = net(x).argmax(1)
    measured = iso.Classifier.of(net, shape=(6,), box=BOX).closest_adversary(x, labels, budget=100).distance
    found = iso.certify_decision(net, x, labels, box=BOX)
    ax = plot.certified(Figure().subplots(), found, measured, low=0.9 * measured, high=1.1 * measured)
    assert "certified > measured in 0 of 12" in ax.get_title()
    assert "contradiction" not in [t.get_text() for t in ax.get_legend().get_texts()]
    planted = measured.clone()
    planted[[4, 7]] = 0.5 * found.lower[[4, 7]]
    assert torch.nonzero(found.contradicted(planted)).flatten().tolist() == [4, 7]
    ax = plot.certified(Figure().subplots(), found, planted)
    assert "certified > measured in 2 of 12" in ax.get_title()
    assert "contradiction" in [t.get_text() for t in ax.get_legend().get_texts()]


class TestRefusals:
    def test_a_network_without_a_bound(self):
        net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).double()
        with pytest.raises(ValueError, match=r"no curvature bound is known for a layer ReLU.*see lirpa_bound"):
            iso.certify_decision(net, inputs(2, 2), torch.tensor([0, 1]))

    def test_a_network_that_ends_in_an_activation(self):
        net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Sigmoid()).double()
        with pytest.raises(ValueError, match="ends in an activation; leave it out"):
            iso.certify_level(net, inputs(2, 2), 0.5)

    def test_labels_units_norms_and_radii(self, unchecked):
        net, x = network(2, 3, 2), inputs(2, 2)
        with pytest.raises(ValueError, match=r"labels must lie in 0\.\.1"):
            iso.certify_decision(net, x, torch.tensor([0, 2]))
        with pytest.raises(TypeError, match="labels must be 2 integers"):
            unchecked(iso.certify_decision)(net, x, torch.zeros(2))
        with pytest.raises(ValueError, match=r"unit must be a whole number in 0\.\.1, got 5"):
            iso.certify_level(net, x, 0.5, unit=5)
        with pytest.raises(ValueError, match="level must be finite"):
            iso.certify_level(net, x, INF)
        with pytest.raises(ValueError, match="norm must be 1, 2 or"):
            iso.certify_decision(net, x, torch.tensor([0, 1]), norm=3.0)
        with pytest.raises(ValueError, match="radii must be at least 0"):
            iso.certify_decision(net, x, torch.tensor([0, 1]), radii=-1)

    def test_layers_that_do_something_of_their_own(self):
        class Doubled(torch.nn.Linear):
            def forward(self, x):
                return 2 * super().forward(x)

        class Backwards(torch.nn.Sequential):
            def forward(self, x):
                return -super().forward(x)

        x, labels = inputs(2, 2), torch.tensor([0, 1])
        own = torch.nn.Linear(2, 2)
        own.forward = lambda x: 3 * x  # ty: ignore
        hooked = torch.nn.Linear(2, 2)
        hooked.register_forward_hook(lambda layer, args, out: 2 * out)
        batch = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2, track_running_stats=False))
        for net, message in [
            (torch.nn.Sequential(Doubled(2, 2)), "no curvature bound is known for a layer Doubled"),
            (Backwards(torch.nn.Linear(2, 2)), "no curvature bound is known for a layer Backwards"),
            (own, "no curvature bound is known for a layer Linear.*without a forward of their own"),
            (hooked, "a layer Linear has forward hooks"),
            (batch, "no curvature bound is known for a layer BatchNorm1d"),
        ]:
            with pytest.raises(ValueError, match=message):
                iso.certify_decision(net.double(), x, labels)

    def test_labels_inputs_and_weights_of_other_kinds(self, unchecked):
        net, x, labels = network(2, 3, 2), inputs(2, 2), torch.tensor([0, 1])
        with pytest.raises(TypeError, match="labels must be a tensor of 2 integers, got list"):
            unchecked(iso.certify_decision)(net, x, [0, 1])
        with pytest.raises(ValueError, match=r"does not take inputs of shape \(3,\)"):
            iso.certify_decision(net, inputs(2, 3), labels)
        with pytest.raises(ValueError, match="unit must be a whole number"):
            unchecked(iso.certify_level)(net, x, 0.5, unit=1.0)
        with pytest.raises(ValueError, match=r"level must be a number or have shape \(2,\), got \(3,\)"):
            unchecked(iso.certify_level)(net, x, torch.zeros(3))
        with pytest.raises(ValueError, match="do not fit inputs of shape"):
            iso.certify_level(net, x, 0.5, box=iso.Box(torch.zeros(3), torch.ones(3)))
        net[0].weight.data[0, 0] = math.nan
        with pytest.raises(ValueError, match="weights that are NaN or infinite"):
            iso.certify_level(net, x, 0.5)

    def test_rows_of_different_length(self):
        found = Certificate(torch.ones(2), torch.zeros(2).long(), torch.zeros(2).bool(), torch.ones(2).long(), "x")
        with pytest.raises(ValueError, match="one number per case in each row"):
            plot.certified(Figure().subplots(), found, torch.ones(3))


# --- the adapter, on a stub with the call signatures of auto_LiRPA 0.7.1


class _Ball:
    def __init__(self, eps=0, norm=INF, x_L=None, x_U=None):
        self.eps, self.norm, self.x_L, self.x_U = eps, norm, x_L, x_U


class _Bounded:
    """Interval bounds for one affine layer, with the arguments of `BoundedModule`."""

    def __init__(self, model, global_input, bound_opts=None, device="auto", verbose=False, custom_ops=None):
        assert not model.training
        self.layer = model

    def compute_bounds(
        self, x=None, aux=None, C=None, method="backward", IBP=False, forward=False, bound_lower=True, bound_upper=True
    ):  # fmt: skip
        ((point, ball),) = x
        assert method == "CROWN"
        assert not bound_upper
        w, b = C @ self.layer.weight, C @ self.layer.bias
        if ball.norm == INF:
            low, high = ball.x_L, ball.x_U
            least = (w.clamp_min(0) * low[:, None] + w.clamp_max(0) * high[:, None]).sum(2)
        else:
            dual = {1.0: INF, 2.0: 2.0}[ball.norm]
            least = (w * point[:, None]).sum(2) - ball.eps * w.norm(dual, dim=2)
        return least + b, None


@pytest.fixture
def stub(monkeypatch):
    package = types.ModuleType("auto_LiRPA")
    package.BoundedModule, package.PerturbationLpNorm = _Bounded, _Ball
    package.BoundedTensor = lambda x, ptb: (x, ptb)
    monkeypatch.setitem(sys.modules, "auto_LiRPA", package)


@pytest.mark.parametrize("norm", NORMS)
def test_the_adapter_gives_the_largest_radius_that_is_proved(stub, norm):
    net = network(6, 4)[0]
    x = inputs(20, 6)
    labels = net(x).argmax(1)
    labels[0] = (labels[0] + 1) % 4
    truth = iso.certify_decision(net, x, labels, norm=norm, box=BOX).lower
    free = iso.certify_decision(net, x, labels, norm=norm).lower
    radii = torch.logspace(-3, 0.3, 60).tolist()
    found = iso.lirpa_bound(net, x, labels, radii, norm=norm, box=BOX)
    known = found.success & (labels == net(x).argmax(1))
    assert known.sum() > 15
    assert (found.lower <= truth)[known].all()
    last = torch.tensor(
        [max([r for r in radii if r < d], default=0.0) for d in (truth if norm == INF else free).tolist()]
    )
    torch.testing.assert_close(found.lower[known], last[known].double(), rtol=1e-9, atol=0)
    assert names(found.status)[0] == "ALREADY"
    assert found.method == "auto_LiRPA CROWN"
    with pytest.raises(ValueError, match="radii must be positive, finite and rising"):
        iso.lirpa_bound(net, x, labels, [0.2, 0.1])
    far = iso.lirpa_bound(net, x, labels, [100.0], norm=2.0)
    assert set(names(far.status)) == {"ALREADY", "UNDEFINED"}
    assert far.lower[1:].isnan().all()


def test_without_the_package_the_adapter_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "auto_LiRPA", None)
    net = network(2, 2)
    with pytest.raises(
        ImportError, match=r"lirpa_bound needs the package auto_LiRPA.*does not resolve with a current torch"
    ):
        iso.lirpa_bound(net, inputs(2, 2), torch.tensor([0, 1]), [0.1])
