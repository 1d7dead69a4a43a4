"""Classifiers: they are the chains they say, codes stay codes when what follows is trained, and adversaries can take part."""

import os
from pathlib import Path

import pytest
import torch
from analytic import normal, uniform
from safetensors.torch import load_file, save_file
from torch import nn

from isoresponse.models import digits
from isoresponse.models.data import load_images, load_labels
from isoresponse.models.dictionary import learn_dictionary
from isoresponse.models.lca import LCA
from isoresponse.models.networks import behind_lca, cnn, mlp, outputs, train_head
from isoresponse.models.robustness import Adversarial, robust_accuracy
from isoresponse.models.training import fit

DATA = Path(os.environ.get("ISORESPONSE_DATA") or Path(__file__).parents[2] / "shared" / "data")


def kinds(net):
    return [type(layer).__name__ for layer in net]


@pytest.fixture
def dictionary(generator):
    return normal(9, 14, generator=generator)


@pytest.fixture
def images(generator):
    return uniform(60, 1, 3, 3, low=0, high=1, generator=generator)


@pytest.fixture
def labels(images):
    return (images.flatten(1)[:, 0] > images.flatten(1)[:, 4]).long()


# --- what they are


def test_a_perceptron_is_its_formula(images):
    net = mlp((1, 3, 3), (7, 5), 4, activation=nn.Tanh).double()
    assert kinds(net) == ["Flatten", "Linear", "Tanh", "Linear", "Tanh", "Linear"]
    h = images.flatten(1)
    for k in (1, 3):
        h = torch.tanh(h @ net[k].weight.T + net[k].bias)
    torch.testing.assert_close(net(images), h @ net[5].weight.T + net[5].bias)
    assert kinds(mlp((4,), ())) == ["Flatten", "Linear"]
    with pytest.raises(ValueError, match=r"sizes of at least one, got \(9, 0, 10\)"):
        mlp((1, 3, 3), (0,))


@pytest.mark.parametrize(("shape", "channels"), [((1, 28, 28), (16, 32)), ((3, 32, 20), (4, 5, 6)), ((2, 7, 9), (3,))])
def test_a_convolutional_network_takes_pictures_of_its_shape(shape, channels):
    net = cnn(shape, channels, hidden=11, classes=4, activation=nn.Softplus)
    assert kinds(net) == ["Conv2d", "Softplus"] * len(channels) + ["Flatten", "Linear", "Softplus", "Linear"]
    assert net(torch.zeros(2, *shape)).shape == (2, 4)


def test_a_picture_too_small_to_be_halved_is_refused():
    with pytest.raises(ValueError, match=r"halves pictures 3 times, too often for \(1, 7, 32\)"):
        cnn((1, 7, 32), (4, 4, 4))


@pytest.mark.parametrize("hidden", [(), (6,)])
def test_behind_lca_reads_out_the_code(dictionary, images, hidden):
    net = behind_lca(dictionary, sparsity=0.1, rectified=False, hidden=hidden, classes=3)
    assert kinds(net) == ["LCA", "Flatten"] + ["Linear", "ReLU"] * len(hidden) + ["Linear"]
    code = LCA(dictionary, sparsity=0.1, rectified=False)(images)
    torch.testing.assert_close(net(images), net[1:](code))
    assert {id(p) for p in net.parameters()} == {id(p) for p in net[1:].parameters()}  # the code is no parameter


def test_gradients_pass_the_code(dictionary, images):
    net = behind_lca(dictionary, sparsity=0.1, hidden=(6,), activation=nn.Softplus)
    x, v = images[:5].clone().requires_grad_(), 1e-6 * torch.ones_like(images[:5])
    score = net(x)[:, 2]
    (slope,) = torch.autograd.grad(score.sum(), x)
    with torch.no_grad():
        rise = (net(x + v)[:, 2] - net(x - v)[:, 2]) / 2e-6
    torch.testing.assert_close(slope.flatten(1).sum(1), rise, rtol=1e-5, atol=1e-7)


def test_weights_travel_with_their_dictionary(dictionary, images, tmp_path):
    net, other = (behind_lca(d, sparsity=0.1) for d in (dictionary, dictionary.flip(0)))
    save_file(net.state_dict(), tmp_path / "weights")
    other.load_state_dict(load_file(tmp_path / "weights"))
    assert torch.equal(other(images), net(images))


# --- training


def test_outputs_come_in_chunks_and_carry_no_graph(dictionary, generator):
    x = uniform(600, 9, low=0, high=1, generator=generator)
    front, told = LCA(dictionary, sparsity=0.1), []
    found = outputs(front, x, on_chunk=lambda *done: told.append(done))
    torch.testing.assert_close(found, front(x))
    assert told == [(256, 600), (512, 600), (600, 600)]
    assert not found.requires_grad


def test_training_the_head_is_training_behind_the_code(dictionary, images, labels):
    """Codes computed once, or in every epoch: the same weights."""
    once, always = (behind_lca(dictionary, sparsity=0.1, hidden=(5,), classes=2) for _ in range(2))
    always.load_state_dict(once.state_dict())
    settings = {"epochs": 3, "batch": 16, "rate": 1e-2}
    train_head(once, images, labels, **settings)
    fit(always, images, labels, **settings)
    for a, b in zip(once.parameters(), always.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-8)
    assert torch.equal(once[0].dictionary, always[0].dictionary)
    assert torch.equal(once[0].dictionary, LCA(dictionary, sparsity=0.1).dictionary)
    assert not once.training


def test_a_front_end_of_any_depth(images, labels):
    net = mlp((1, 3, 3), (6, 5), 2).double()
    before = [p.clone() for p in net.parameters()]
    train_head(net, images, labels, front=3, epochs=1, batch=16)
    same = [torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)]
    assert same == [True, True, False, False, False, False]
    for front in (0, len(net)):
        with pytest.raises(ValueError, match=f"a front end and a head, got front={front} of 6 layers"):
            train_head(net, images, labels, front=front, epochs=1)


class Logarithm(nn.Module):
    """A front end that, like a code that did not converge, has no answer to some inputs."""

    def forward(self, x):
        return x.flatten(1).log()


def test_answers_that_are_not_finite_are_named(images, labels):
    images[[3, 8], 0, 1, 1] = 0
    with pytest.raises(ValueError, match="answers to 2 of 60 images are not finite; leave these images out, or give"):
        train_head(nn.Sequential(Logarithm(), nn.Linear(9, 2)), images, labels, epochs=1)


@pytest.mark.parametrize("front", ["none", "lca"])
def test_adversaries_can_take_part(generator, front):
    """Two features tell the classes: a clear one that errs in 10 %, and a fragile one, gone within a radius of 0.15."""
    labels = torch.arange(200) % 2
    side = 2.0 * labels - 1
    clear = 0.5 + torch.where(torch.arange(200) // 2 % 10 > 0, 0.4, -0.4) * side
    x = torch.stack([clear, 0.5 + 0.1 * side], 1)
    made = []
    for loss in ((), (Adversarial(0.15, 3, generator=generator),)):
        net = behind_lca(torch.eye(2), sparsity=0.01, classes=2) if front == "lca" else mlp((2,), (), 2)
        with torch.no_grad():
            net[-1].weight.copy_(torch.tensor([[-1.0, -10.0], [1.0, 10.0]]))
            net[-1].bias.copy_(torch.tensor([5.5, -5.5]))
        fit(net, x, labels, *loss, epochs=15, batch=100, rate=0.5)
        made.append(net)
    clean = [digits.accuracy(net, x, labels) for net in made]
    held = [robust_accuracy(net, x, labels, 0.15, steps=10, generator=generator) for net in made]
    assert clean == pytest.approx([1.0, 0.9])
    assert held == pytest.approx([0.0, 0.9], abs=0.02)


def test_a_code_of_real_digits_is_read_out():
    folder = DATA / "mnist"
    if not folder.exists():
        pytest.skip(f"no {folder}: the digits are not part of the repository (issue 5); ISORESPONSE_DATA says where")
    images = load_images(folder / "t10k-images-idx3-ubyte.gz")[:1500]
    labels = load_labels(folder / "t10k-labels-idx1-ubyte.gz")[:1500]
    x = nn.functional.avg_pool2d(images, 4)
    learnt = learn_dictionary(x[:1000], 60, sparsity=0.1, steps=40, batch=64)
    net = behind_lca(learnt, sparsity=0.1)
    train_head(net, x[:1000], labels[:1000], epochs=40, rate=1e-2)
    assert digits.accuracy(net, x[1000:], labels[1000:]) > 0.78
