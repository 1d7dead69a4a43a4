"""Sparse codes: closed form, another library as referee, optimality, and derivatives that are those of the minimiser."""

import pytest
import torch
from analytic import normal
from sklearn.linear_model import Lasso

import isoresponse
from isoresponse.models.lca import LCA

both = pytest.mark.parametrize("rectified", [True, False], ids=["rectified", "signed"])


@pytest.fixture
def dictionary(generator):
    """Overcomplete, with columns of any length that have a common direction: units compete."""
    return normal(32, 64, generator=generator) + 0.3


@pytest.fixture
def x(generator):
    return normal(6, 32, generator=generator)


def direct_derivative(model, x, v, step=1e-6):
    return (model(x + step * v) - model(x - step * v)) / (2 * step)


# --- the minimiser


@both
def test_an_orthonormal_dictionary_thresholds_its_drive(generator, rectified):
    basis, _ = torch.linalg.qr(normal(8, 5, generator=generator))
    x = 2 * normal(50, 8, generator=generator)
    drive = x @ basis
    expected = (drive - 0.7).relu() - (0 if rectified else (-drive - 0.7).relu())
    torch.testing.assert_close(LCA(3 * basis, sparsity=0.7, rectified=rectified)(x), expected, rtol=0, atol=1e-13)


@both
@pytest.mark.parametrize("sparsity", [1.0, 0.1])
def test_it_agrees_with_the_lasso_of_scikit_learn(dictionary, x, sparsity, rectified):
    code = LCA(dictionary, sparsity=sparsity, rectified=rectified)(x)
    columns = (dictionary / dictionary.norm(dim=0)).numpy()
    lasso = Lasso(sparsity / 32, fit_intercept=False, positive=rectified, tol=1e-14, max_iter=1_000_000)
    expected = torch.stack([torch.as_tensor(lasso.fit(columns, row).coef_) for row in x.numpy()])
    torch.testing.assert_close(code, expected, rtol=0, atol=1e-6)
    assert 0 < (code != 0).sum(1).min() < 32


@both
def test_what_remains_of_the_drive_is_the_sparsity_where_active_and_less_elsewhere(dictionary, x, rectified):
    model = LCA(dictionary, sparsity=0.2, rectified=rectified)
    code, columns = model(x), dictionary / dictionary.norm(dim=0)
    remains, active = (x - code @ columns.T) @ columns, code != 0
    torch.testing.assert_close(remains[active], 0.2 * code[active].sign(), rtol=0, atol=1e-12)
    assert ((remains if rectified else remains.abs())[~active] < 0.2).all()
    assert not rectified or (code >= 0).all()
    assert (model.residual(x) < 1e-12).all()


def test_nothing_in_nothing_out(dictionary):
    model, zero = LCA(dictionary, sparsity=0.1), torch.zeros(2, 32, dtype=torch.float64, requires_grad=True)
    code = model(zero)
    assert not code.any()
    assert not torch.autograd.grad(code.sum(), zero)[0].any()
    assert not model.residual(zero).any()
    assert model(zero[:0]).shape == (0, 64)


@both
def test_a_case_alone_is_itself_in_a_batch(dictionary, x, rectified):
    model, images = LCA(dictionary, sparsity=0.1, rectified=rectified), x.reshape(6, 1, 4, 8)
    alone = torch.cat([model(images[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(model(images), alone, rtol=0, atol=1e-12)


def test_a_broken_case_leaves_the_others_alone(dictionary, x):
    model = LCA(dictionary, sparsity=0.1)
    broken = x.index_fill(0, torch.tensor([2]), torch.nan).requires_grad_(True)
    code, others = model(broken), [0, 1, 3, 4, 5]
    assert code[2].isnan().all()
    torch.testing.assert_close(code[others], model(x[others]), rtol=0, atol=1e-12)
    assert torch.autograd.grad(code[others].sum(), broken)[0][others].isfinite().all()


def test_a_case_given_up_is_nan_and_tells_how_far_it_was(dictionary, x):
    model = LCA(dictionary, sparsity=1e-3, rectified=False, max_steps=1)
    assert model(x).isnan().all()
    assert (model.residual(x) > 1e-6).all()


@both
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_float32_stays_float32_and_finds_the_same_units(dictionary, x, rectified, scale):
    model, x = LCA(dictionary, sparsity=0.03 * scale, rectified=rectified), scale * x.float()
    exact = model(x.double())
    assert rectified or exact.count_nonzero() > 0.9 * 6 * 32  # nearly dependent: float32 would find other units
    torch.testing.assert_close(model(x), exact.float(), rtol=1e-6, atol=1e-6 * scale)
    single = LCA(dictionary.float(), sparsity=0.03 * scale, rectified=rectified)
    torch.testing.assert_close(single(x), exact.float(), rtol=1e-4, atol=1e-4 * scale)
    x.requires_grad_(True)
    assert torch.autograd.grad(single(x).sum(), x)[0].dtype == single.residual(x).dtype == torch.float32


def test_equal_columns_share_their_activity(dictionary, x):
    twice = LCA(torch.cat([dictionary, dictionary], 1), sparsity=0.3)(x)
    torch.testing.assert_close(twice[:, :64], twice[:, 64:], rtol=0, atol=1e-10)
    torch.testing.assert_close(twice[:, :64] + twice[:, 64:], LCA(dictionary, sparsity=0.3)(x), rtol=0, atol=1e-10)


def test_the_callers_random_state_is_left_alone(dictionary, x):
    before = torch.get_rng_state()
    LCA(dictionary, sparsity=0.1)(x)
    assert torch.equal(torch.get_rng_state(), before)


# --- its derivatives


@both
def test_the_gradient_is_that_of_the_minimiser(dictionary, x, generator, rectified):
    model = LCA(dictionary, sparsity=0.1, rectified=rectified)
    weight, v = normal(6, 64, generator=generator), normal(6, 32, generator=generator)
    x.requires_grad_(True)
    (gradient,) = torch.autograd.grad((model(x) * weight).sum(), x)
    with torch.no_grad():
        expected = (direct_derivative(model, x, v) * weight).sum(1)
    torch.testing.assert_close((gradient * v).sum(1), expected, rtol=1e-6, atol=1e-6)


def test_it_is_piecewise_linear(dictionary, x, generator):
    model, v = LCA(dictionary, sparsity=0.1), normal(6, 32, generator=generator)
    _, second = torch.autograd.functional.hvp(lambda x: model(x).sum(), x, v)
    assert not second.any()
    x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(model(x).square().sum() / 2, x, create_graph=True)
    (second,) = torch.autograd.grad(gradient, x, v)  # of half a square: J'Jv
    (expected,) = torch.autograd.grad(model(x), x, direct_derivative(model, x.detach(), v))
    torch.testing.assert_close(second, expected, rtol=1e-6, atol=1e-6)


def test_its_units_are_neurons(dictionary, x):
    model = LCA(dictionary, sparsity=0.1)
    unit = int(model(x).sum(0).argmax())
    neuron = isoresponse.Neuron.of(model, unit=unit, shape=(32,))
    value, gradient = neuron.value_and_grad(x)
    torch.testing.assert_close(value, model(x)[:, unit], rtol=0, atol=0)
    slope = direct_derivative(neuron.value, x, gradient)
    torch.testing.assert_close(slope, gradient.square().sum(1), rtol=1e-6, atol=1e-6)
    assert gradient.any()
    assert not neuron.hvp(x, gradient).any()


# --- refusals


@pytest.mark.parametrize(
    ("dictionary", "settings", "message"),
    [
        (torch.ones(3), {}, r"shape \(n, units\), got torch.float32 \(3,\); give one flattened receptive field"),
        (torch.ones(3, 0), {}, r"got torch.float32 \(3, 0\)"),
        (torch.ones(3, 2).int(), {}, r"floating-point dictionary .*got torch.int32"),
        (torch.full((3, 2), torch.nan), {}, "columns that are finite .*, got 2 of 2 that hold NaN .*; remove them"),
        (
            torch.eye(3)[:, [0, 1, 1]] * torch.tensor([1.0, 0, 0]),
            {},
            "finite and not zero, got 2 of 3 that .* are zero; remove them",
        ),
        (torch.eye(3), {"sparsity": 0.0}, "positive, finite sparsity, got sparsity=0.0; give a number above zero"),
        (torch.eye(3), {"sparsity": float("nan")}, "got sparsity=nan"),
        (torch.eye(3), {"tolerance": -1.0}, "got tolerance=-1.0"),
        (torch.eye(3), {"max_steps": 0}, "got max_steps=0"),
    ],
)
def test_dictionaries_and_settings_that_are_none_are_refused(dictionary, settings, message):
    with pytest.raises(ValueError, match=message):
        LCA(dictionary, **{"sparsity": 0.1, **settings})


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            torch.ones(2, 4),
            r"inputs \(case, ...\) of 3 numbers each, .* got torch.float32 \(2, 4\); convert or reshape",
        ),
        (torch.ones(3), r"got torch.float32 \(3,\)"),
        (torch.ones(2, 3).int(), "got torch.int32"),
    ],
)
def test_inputs_of_another_kind_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        LCA(torch.eye(3), sparsity=0.1)(x)
