"""Training: closed forms on linear networks, bounds that hold, and a loop that learns, repeats itself and is kept."""

import itertools

import pytest
import torch
from analytic import normal, uniform
from torch import Generator, nn

from isoresponse.models import digits as zoo
from isoresponse.models.digits import accuracy
from isoresponse.models.robustness import (
    Adversarial,
    IntervalBound,
    certified_accuracy,
    pgd,
    robust_accuracy,
    worst_logits,
)
from isoresponse.models.training import cached, fit, natural

cross_entropy = nn.functional.cross_entropy


def tiny(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 4, 4, 2, 1), nn.ReLU()), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)
        ).double()  # fmt: skip


@pytest.fixture
def images(generator):
    return uniform(5, 1, 8, 8, low=0, high=1, generator=generator)


@pytest.fixture
def labels():
    return torch.tensor([0, 1, 2, 0, 1])


@pytest.fixture
def linear(generator):
    net = nn.Linear(4, 3).double()
    net.weight.data, net.bias.data = normal(3, 4, generator=generator), normal(3, generator=generator)
    return net


# --- bounds


def corners(x, eps):
    """All corners (corner, n) of the L-infinity ball round one x, met with [0, 1]."""
    return torch.stack(
        [(x + eps * torch.tensor(s, dtype=x.dtype)).clamp(0, 1) for s in itertools.product((-1.0, 1.0), repeat=len(x))]
    )


def test_the_bounds_of_a_linear_network_are_its_values_at_the_worst_corners(linear, generator):
    x, y = uniform(6, 4, low=0, high=1, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2])
    expected = [
        (linear(corners(a, 0.3)) - linear(corners(a, 0.3))[:, k, None]).amax(0) for a, k in zip(x, y, strict=True)
    ]
    torch.testing.assert_close(worst_logits(linear, x, y, 0.3), torch.stack(expected), rtol=0, atol=1e-12)


def test_without_a_radius_the_bounds_are_the_differences_of_the_logits(images, labels):
    scores = tiny()(images)
    expected = scores - scores.gather(1, labels[:, None])
    torch.testing.assert_close(worst_logits(tiny(), images, labels, 0.0), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("eps", [0.01, 0.1, 0.5])
def test_no_point_of_the_ball_exceeds_the_bounds(images, labels, generator, eps):
    net, bound = tiny(), worst_logits(tiny(), images, labels, eps)
    for _ in range(200):
        x = (images + eps * uniform(*images.shape, low=-1, high=1, generator=generator).sign()).clamp(0, 1)
        scores = net(x)
        assert (scores - scores.gather(1, labels[:, None]) <= bound + 1e-12).all()


def test_bounds_grow_with_the_radius_and_end_where_the_box_ends(images, labels):
    bounds = torch.stack([worst_logits(tiny(), images, labels, eps) for eps in (0.0, 0.1, 0.4, 1.0, 2.0)])
    assert (bounds.diff(dim=0) >= -1e-12).all()
    torch.testing.assert_close(bounds[3], bounds[4])


def test_a_network_that_ends_in_another_layer_has_looser_bounds(images, labels):
    chain = tiny()
    tight, loose = (
        worst_logits(chain, images, labels, 0.1),
        worst_logits(nn.Sequential(*chain, nn.Flatten()), images, labels, 0.1),
    )
    assert (loose >= tight - 1e-12).all()
    assert (loose.gather(1, labels[:, None]) == 0).all()


@pytest.mark.parametrize(
    "layer", [nn.GELU(), nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")], ids=["GELU", "Conv2d"]
)
def test_layers_without_bounds_are_refused(images, labels, layer):
    with pytest.raises(ValueError, match=f"chain .* got {type(layer).__name__}"):
        worst_logits(nn.Sequential(layer.double(), nn.Flatten(), nn.Linear(64, 3).double()), images, labels, 0.1)


# --- attack


def test_the_attack_finds_the_worst_point_of_a_linear_network(generator):
    net = nn.Linear(6, 2).double()
    x, y = uniform(20, 6, low=0.3, high=0.7, generator=generator), torch.arange(20) % 2
    away = (net.weight[1] - net.weight[0]).sign() * torch.where(y == 0, 1, -1)[:, None]
    torch.testing.assert_close(pgd(net, x, y, 0.2, generator=generator), x + 0.2 * away, rtol=0, atol=1e-12)


def test_the_attack_stays_in_the_ball_and_in_the_box(images, labels, generator):
    for steps in (1, 7):
        x = pgd(tiny(), images, labels, 0.4, steps=steps, size=3.0, generator=generator)
        assert (x - images).abs().max() <= 0.4 + 1e-12
        assert x.min() >= 0
        assert x.max() <= 1
        assert not x.requires_grad


def test_what_is_certified_survives_and_what_survives_is_right(generator):
    net, x = tiny(), uniform(300, 1, 8, 8, low=0, high=1, generator=generator)
    y = net(x).argmax(1)
    y[:30] = (y[:30] + 1) % 3
    assert zoo.accuracy(net, x, y) == pytest.approx(0.9)
    shares = []
    for eps in (0.0, 0.02, 0.1):
        certain = certified_accuracy(net, x, y, eps)
        survives = robust_accuracy(net, x, y, eps, steps=5, restarts=2, generator=generator)
        assert certain <= survives <= 0.9 + 1e-9
        shares.append(certain)
    assert shares[0] == pytest.approx(0.9)
    assert shares[1] > shares[2]


# --- losses


def test_the_interval_loss_goes_from_natural_to_mixed(images, labels):
    net, loss = tiny(), IntervalBound(0.2, kappa=0.25, ramp=(0.2, 0.6))
    plain = natural(net, images, labels)
    torch.testing.assert_close(loss(net, images, labels, 0.1), plain)
    for progress, share in ((0.4, 0.5), (0.9, 1.0)):
        worst = cross_entropy(worst_logits(net, images, labels, 0.2 * share), labels)
        kappa = 1 - 0.75 * share
        torch.testing.assert_close(loss(net, images, labels, progress), kappa * plain + (1 - kappa) * worst)


def test_the_adversarial_loss_grows_from_the_natural_one(images, labels):
    net, loss = tiny(), Adversarial(0.2, steps=3, ramp=0.5, generator=torch.Generator().manual_seed(0))
    plain = natural(net, images, labels)
    torch.testing.assert_close(loss(net, images, labels, 0.0), plain)
    assert plain < loss(net, images, labels, 0.25) < loss(net, images, labels, 0.75)


def test_one_step_of_the_adversarial_loss_is_fast_gradient_sign(images, labels):
    seed = torch.Generator().manual_seed
    value = Adversarial(0.1, generator=seed(3))(tiny(), images, labels)
    x = pgd(tiny(), images, labels, 0.1, steps=1, size=1.25, generator=seed(3))
    torch.testing.assert_close(value, cross_entropy(tiny()(x), labels))


# --- the loop


def digits_net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def test_every_training_yields_what_it_is_for(digits):
    test, eps = digits.test, 0.1
    plain, hard, proven = digits_net(), digits_net(), digits_net()
    for net, loss in (
        (plain, natural),
        (hard, Adversarial(eps, 3, generator=torch.Generator().manual_seed(1))),
        (proven, IntervalBound(eps)),
    ):
        fit(net, *digits.train, loss, epochs=20, rate=5e-3, batch=64)
    assert min(zoo.accuracy(net, *test) for net in (plain, hard, proven)) > 0.9

    def survive(net):
        return robust_accuracy(net, *test, eps, steps=10, generator=torch.Generator().manual_seed(2))

    assert min(survive(hard), survive(proven)) > 0.65 > 0.55 > survive(plain)
    assert certified_accuracy(proven, *test, eps) > 0.4
    assert max(certified_accuracy(net, *test, eps) for net in (plain, hard)) < 0.1


def test_training_repeats_itself_and_reports(digits):
    seen, nets = [], [digits_net(), digits_net()]
    for net in nets:
        fit(net, *digits.train, epochs=2, on_epoch=lambda *done: seen.append(done))
        assert not net.training
    assert seen == [(1, 2), (2, 2)] * 2
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(p, q)


def test_batches_pass_through_the_augmentation(digits):
    shapes = []

    def note(x, generator):
        shapes.append(len(x))
        return x

    fit(digits_net(), digits.train[0][:70], digits.train[1][:70], epochs=1, batch=32, augment=note)
    assert shapes == [32, 32, 6]


def test_weights_are_kept(digits, tmp_path):
    net, again, calls = digits_net(), digits_net(), []

    def train():
        calls.append(1)
        fit(net, *digits.train, epochs=1)

    assert not cached(net, "net", digits, train, cache=tmp_path)
    assert cached(again, "net", digits, lambda: pytest.fail("trained twice"), cache=tmp_path)
    assert calls == [1]
    assert torch.equal(net[1].weight, again[1].weight)


def test_training_needs_cases_labels_and_epochs(images, labels):
    with pytest.raises(ValueError, match="one label per image, got 5 images and labels of shape"):
        fit(tiny(), images, labels[:4], epochs=1)
    with pytest.raises(ValueError, match="got 0 images and labels of shape"):
        fit(tiny(), images[:0], labels[:0], epochs=1)
    with pytest.raises(ValueError, match=r"epochs and batch of at least one, .* got epochs=0, batch=128"):
        fit(tiny(), images, labels, epochs=0)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.\d+, as the network has \d+ classes, got 0\.\.99"):
        fit(tiny(), images, labels.clone().index_fill(0, torch.tensor([1]), 99), epochs=1)
    with pytest.raises(ValueError, match=r"the network does not take images of shape \(3, 8, 8\)"):
        fit(tiny(), images.expand(-1, 3, -1, -1), labels, epochs=1)
    with pytest.raises(ValueError, match=r"labels must be whole numbers, got torch\.float32"):
        fit(tiny(), images, labels.float(), epochs=1)
    with pytest.raises(ValueError, match=r"the images are torch.* but the network's weights are"):
        fit(tiny().half(), images, labels, epochs=1)


def test_images_that_are_not_finite_do_not_reach_the_weights(images, labels):
    net = tiny()
    before = [p.clone() for p in net.parameters()]
    broken = images.clone()
    broken[2, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="images must be finite, got 1 of 5 with NaN or infinity"):
        fit(net, broken, labels, epochs=1)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def losses():
    """A loss that draws nothing, and one that draws from a generator of its own."""
    return [natural, Adversarial(0.05, steps=1, generator=Generator().manual_seed(5))]


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("batches", [0, 3, 7])
def test_an_interrupted_training_resumes_to_the_same_weights(digits, tmp_path, which, batches):
    some = digits.train[0][:96], digits.train[1][:96]
    settings = {"epochs": 4, "batch": 32}
    whole = digits_net()
    fit(whole, *some, losses()[which], **settings)

    class Stopped(Exception):
        """Somebody pressed a key."""

    def stops(loss):
        seen = []

        def stopping(net, x, y, progress):
            seen.append(progress)
            if len(seen) > batches:
                raise Stopped
            return loss(net, x, y, progress)

        return stopping

    path, half = tmp_path / "half.safetensors", digits_net()
    first = losses()[which]
    stopping = stops(first)
    stopping.generator = getattr(first, "generator", None)
    stopping.__qualname__ = "loss"
    with pytest.raises(Stopped):
        fit(half, *some, stopping, **settings, checkpoint=path)
    assert not half.training
    again, second = digits_net(seed=9), losses()[which]  # another process, other weights to begin with

    def going(net, x, y, progress):
        return second(net, x, y, progress)

    going.generator = getattr(second, "generator", None)
    going.__qualname__ = "loss"
    epochs = []
    fit(again, *some, going, **settings, checkpoint=path, on_epoch=lambda done, _: epochs.append(done))
    assert epochs == list(range(batches // 3 + 1, 5))
    for p, q in zip(whole.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(p, q)


def test_a_checkpoint_of_another_training_is_refused(digits, tmp_path):
    some, path = (digits.train[0][:64], digits.train[1][:64]), tmp_path / "net.safetensors"
    fit(digits_net(), *some, Adversarial(0.05), epochs=1, checkpoint=path)
    with pytest.raises(ValueError, match=r"belongs to another training, with loss Adversarial\(eps=0\.05, .*eps=0\.1"):
        fit(digits_net(), *some, Adversarial(0.1), epochs=1, checkpoint=path)
    with pytest.raises(ValueError, match=r"belongs to another training, with epochs 1 \(now 2\)"):
        fit(digits_net(), *some, Adversarial(0.05), epochs=2, checkpoint=path)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda *_: Adversarial(-0.1), "eps must be a radius, zero or positive and finite, got -0.1"),
        (lambda *_: Adversarial(float("nan")), "eps must be a radius"),
        (lambda *_: Adversarial(0.1, steps=0), "at least one step of a positive size, got steps=0"),
        (lambda *_: Adversarial(0.1, ramp=2.0), "ramp must be a share of the training"),
        (lambda *_: IntervalBound(0.1, kappa=3.0), "kappa in .0, 1. and a ramp"),
        (lambda *_: IntervalBound(0.1, ramp=(0.6, 0.1)), "kappa in .0, 1. and a ramp"),
        (lambda n, x, y: robust_accuracy(n, x, y, -0.5), "eps must be a radius"),
        (lambda n, x, y: robust_accuracy(n, x, y, 0.1, restarts=0), "restarts must be at least one, got 0"),
        (lambda n, x, y: robust_accuracy(n, x * torch.nan, y, 0.1), "images must hold values in"),
        (lambda n, x, y: certified_accuracy(n, x, y, -0.5), "eps must be a radius"),
        (lambda n, x, y: certified_accuracy(n, 255 * x, y, 0.1), "images must hold values in"),
        (lambda n, x, y: accuracy(n, x[:0], y[:0]), "one label per image, got 0 images"),
    ],
)
def test_accuracies_and_losses_refuse_what_makes_no_sense(images, labels, ask, message):
    with pytest.raises(ValueError, match=message):
        ask(tiny(), images, labels)


def test_an_answer_of_nan_is_no_right_answer(images):
    net = tiny()
    net[-1].bias.data[:] = torch.nan
    assert accuracy(net, images, torch.zeros(5, dtype=torch.int64)) == 0
