"""The solver behind sparse codes: scikit-learn as referee, pictures as matrices, hard thresholds, every derivative, dynamics."""

import copy

import pytest
import torch
from analytic import normal
from sklearn.decomposition import sparse_encode
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from isoresponse.models.lca import LCA, ConvLCA
from isoresponse.models.sparse_elements import Columns, Shifted, Shrinkage
from isoresponse.models.sparse_exchange import exchange
from isoresponse.models.sparse_solver import minimise, missed

both = pytest.mark.parametrize("rectified", [True, False], ids=["rectified", "signed"])
thresholds = pytest.mark.parametrize("threshold", ["soft", "hard"])


def unit(columns):
    return columns / columns.norm(dim=0)


@pytest.fixture
def dictionary(generator):
    return normal(32, 64, generator=generator) + 0.3


@pytest.fixture
def x(generator):
    return normal(6, 32, generator=generator)


@pytest.fixture
def kernels(generator):
    return normal(5, 2, 3, 4, generator=generator)


@pytest.fixture
def pictures(generator):
    return normal(3, 2, 8, 9, generator=generator)


def shifted(kernels, stride, size):
    """Elements, and the same as a matrix (n, count)."""
    kernels = kernels / kernels.flatten(1).norm(dim=1)[:, None, None, None]
    elements = Shifted.of(kernels, stride, size)
    return elements, elements.sum(torch.eye(elements.count, dtype=kernels.dtype)).T


# --- soft thresholds


@both
@pytest.mark.parametrize(("n", "units", "sparsity"), [(64, 128, 0.5), (64, 128, 1.0), (100, 60, 0.3), (30, 300, 0.5)])
def test_codes_are_those_of_scikit_learn(generator, n, units, sparsity, rectified):
    columns, x = unit(normal(n, units, generator=generator)), normal(8, n, generator=generator)
    code = LCA(columns, sparsity=sparsity, rectified=rectified).code(x)
    expected = sparse_encode(
        x.numpy(), columns.T.numpy(), algorithm="lasso_cd", alpha=sparsity, positive=rectified, max_iter=100_000
    )
    torch.testing.assert_close(code.activity, torch.as_tensor(expected), rtol=0, atol=1e-6)
    assert code.converged.all()
    assert (code.residual < 1e-11).all()


@both
def test_many_times_more_units_than_numbers_and_hardly_any_sparsity(generator, rectified):
    """The first sets that are tried have more units than can be independent."""
    columns, x = unit(normal(16, 320, generator=generator)), normal(40, 16, generator=generator)
    code = LCA(columns, sparsity=1e-3, rectified=rectified).code(x)
    assert code.converged.all()
    assert (code.residual < 1e-10).all()
    assert ((code.activity != 0).sum(1) <= 16).all()


@both
def test_any_set_to_begin_with_leads_to_the_same_codes(generator, rectified, monkeypatch):
    columns, x = unit(normal(32, 96, generator=generator)), normal(20, 32, generator=generator)
    expected = LCA(columns, sparsity=0.1, rectified=rectified)(x)
    for name, value in (("FEW", 100), ("SETS", 1), ("BURST", 3), ("HASTE", 20.0), ("SINGLE", 0)):
        monkeypatch.setattr(f"isoresponse.models.sparse_solver.{name}", value)
        torch.testing.assert_close(LCA(columns, sparsity=0.1, rectified=rectified)(x), expected, rtol=0, atol=1e-11)


@both
@pytest.mark.parametrize(("n", "units", "sparsity"), [(32, 96, 0.1), (10, 100, 1e-3), (8, 4, 0.2)])
def test_exchanging_units_one_by_one_leads_there_too(generator, n, units, sparsity, rectified):
    columns, x = unit(normal(n, units, generator=generator)), normal(20, n, generator=generator)
    elements, shrinkage = (
        Columns.of(columns, torch.linalg.matrix_norm(columns, ord=2) ** 2),
        Shrinkage(sparsity, rectified),
    )
    found, missing = exchange(elements, shrinkage, x, hard=False, tolerance=1e-11, max_steps=1000)
    assert (missing < 1e-10).all()
    expected, _ = minimise(elements, shrinkage, x, tolerance=1e-11, max_steps=20_000)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


def test_what_is_missed_is_what_the_conditions_say():
    elements, shrinkage = Columns.of(torch.eye(3).double(), torch.ones(())), Shrinkage(0.5, rectified=True)
    x = torch.tensor([[2.0, 0.75, -1.0]]).double()
    assert float(missed(elements, shrinkage, x, torch.tensor([[1.4, 0.0, 0.0]]).double())) == pytest.approx(0.25)
    assert float(missed(elements, shrinkage, x, torch.tensor([[1.1, 0.25, 0.0]]).double())) == pytest.approx(0.4)
    activity, missing = minimise(elements, shrinkage, x, tolerance=1e-12, max_steps=100)
    torch.testing.assert_close(activity, torch.tensor([[1.5, 0.25, 0.0]]).double(), rtol=0, atol=1e-14)
    assert float(missing) < 1e-14


# --- pictures


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_shifted_kernels_are_columns_of_a_matrix(kernels, pictures, stride):
    elements, matrix = shifted(kernels, stride, (8, 9))
    products = matrix.T @ matrix
    every = torch.arange(elements.count)[None]
    torch.testing.assert_close(elements.inhibition(every)[0], products, rtol=0, atol=1e-13)
    torch.testing.assert_close(elements.drive(pictures.flatten(1)), pictures.flatten(1) @ matrix)
    a = elements.drive(pictures.flatten(1))
    torch.testing.assert_close(elements.climb(a, pictures.flatten(1)), 2 * a)
    assert torch.linalg.eigvalsh(products)[-1] <= elements.largest()


@both
@thresholds
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolutional_code_is_the_dense_one_of_all_shifts(kernels, pictures, stride, rectified, threshold):
    settings = {"sparsity": 0.4, "rectified": rectified, "threshold": threshold}
    elements, matrix = shifted(kernels, stride, (8, 9))
    code = ConvLCA(kernels, stride=stride, **settings)(pictures)
    assert code.shape == (3, 5, *elements.positions)
    dense = LCA(matrix, **settings)
    torch.testing.assert_close(code.flatten(1), dense(pictures.flatten(1)), rtol=0, atol=1e-10)
    again = ConvLCA(kernels, stride=stride, **settings).code(pictures.float())
    assert again.activity.dtype == again.residual.dtype == torch.float32


@both
def test_convolutional_codes_of_low_sparsity_are_found_or_missed_case_by_case(generator, rectified):
    """More active units than numbers: no set of them can be tried, and steps have to go on."""
    kernels, pictures = normal(3, 1, 3, 3, generator=generator), normal(4, 1, 6, 6, generator=generator)
    found = ConvLCA(kernels, sparsity=0.01, rectified=rectified).code(pictures)
    assert found.converged.all()
    assert (found.residual < 1e-10).all()
    bright = ConvLCA(torch.ones(2, 1, 5, 5), sparsity=0.1).code(torch.ones(2, 1, 12, 12))  # equal kernels
    assert bright.converged.all()


def test_no_pictures_have_no_codes(kernels, pictures):
    model = ConvLCA(kernels, sparsity=0.4)
    assert model(pictures[:0]).shape == (0, *model(pictures).shape[1:])
    assert model.code(pictures[:0]).residual.shape == (0,)
    assert model.dynamics(pictures[:0], 3, 10.0).activity.shape[:2] == (4, 0)


def test_a_convolutional_code_has_a_batched_jacobian(kernels, pictures):
    model = ConvLCA(kernels, sparsity=0.4)
    one_by_one = torch.autograd.functional.jacobian(model, pictures[:1])
    at_once = torch.autograd.functional.jacobian(model, pictures[:1], vectorize=True)
    torch.testing.assert_close(at_once, one_by_one)


def test_pictures_of_another_size_are_coded_by_the_same_kernels(kernels, generator):
    """A picture that is moved has a code that is moved."""
    model, small = ConvLCA(kernels, sparsity=2.0), normal(2, 2, 3, 4, generator=generator)
    wide = torch.zeros(2, 2, 9, 12, dtype=torch.float64)
    wide[:, :, 3:6, 4:8] = small
    moved = wide.roll((1, 2), (2, 3))
    torch.testing.assert_close(model(moved)[:, :, 1:, 2:], model(wide)[:, :, :-1, :-2], rtol=0, atol=1e-11)
    assert model(small).shape == (2, 5, 1, 1)


# --- hard thresholds


@both
def test_an_orthonormal_dictionary_passes_all_or_nothing(generator, rectified):
    basis, _ = torch.linalg.qr(normal(8, 5, generator=generator))
    x = 2 * normal(50, 8, generator=generator)
    drive = x @ basis
    expected = torch.where((drive if rectified else drive.abs()) > 0.7, drive, 0.0)
    found = LCA(3 * basis, sparsity=0.7, rectified=rectified, threshold="hard")(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


@both
@pytest.mark.parametrize("sparsity", [0.1, 0.5])
def test_hard_codes_are_fixed_points_no_worse_than_those_of_the_neurons(dictionary, x, sparsity, rectified):
    model = LCA(dictionary, sparsity=sparsity, rectified=rectified, threshold="hard")
    code, columns = model.code(x), unit(dictionary)
    a = code.activity
    potential = (x - a @ columns.T) @ columns + a
    torch.testing.assert_close(model._activation(potential), a, rtol=0, atol=1e-11)
    assert code.converged.all()
    assert (code.residual < 1e-11).all()
    assert (a[a != 0].abs() > sparsity).all()
    way = model.dynamics(x, 4000, 10.0).activity[-1]

    def cost(a):
        return (x - a @ columns.T).square().sum(1) / 2 + sparsity**2 / 2 * (a != 0).sum(1)

    assert cost(a).mean() < 1.05 * cost(way).mean()


@both
def test_a_hard_case_alone_is_itself_in_a_batch(dictionary, x, rectified):
    model = LCA(dictionary, sparsity=0.3, rectified=rectified, threshold="hard")
    alone = torch.cat([model(x[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(model(x), alone, rtol=0, atol=1e-12)
    assert not model(torch.zeros(1, 32)).any()
    assert model(x[:0]).shape == (0, 64)


# --- derivatives


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own, in forward mode
@pytest.mark.parametrize("kind", ["soft", "signed", "hard", "pictures"])
def test_every_mode_of_differentiation_agrees_with_differences(kind, dictionary, x, kernels, pictures, generator):
    if kind == "pictures":
        model, x = ConvLCA(kernels, sparsity=0.4), pictures
    else:
        model = LCA(
            dictionary, sparsity=0.3, rectified=kind != "signed", threshold="hard" if kind == "hard" else "soft"
        )
    weight, v = normal(*model(x).shape[1:], generator=generator), normal(*x.shape, generator=generator)

    def response(x):
        return (model(x) * weight).flatten(1).sum(1).div(3).tanh()

    def alone(x):
        return response(x[None])[0]

    def close(a, b):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)

    leaf = x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(response(leaf).sum(), leaf, create_graph=True)
    (turn,) = torch.autograd.grad(slope, leaf, v, retain_graph=True)
    along, step = (slope * v).flatten(1).sum(1).detach(), 1e-6
    assert turn.abs().max() > 1e-5
    with torch.no_grad():
        ahead, behind = (response(x + s * v) for s in (step, -step))
    torch.testing.assert_close((ahead - behind) / (2 * step), along, rtol=1e-6, atol=1e-6)
    close(jvp(response, (x,), (v,))[1], along)
    close(vmap(grad(alone))(x), slope.detach())
    close(jvp(vmap(grad(alone)), (x,), (v,))[1], turn)
    second = vmap(hessian(alone))(x).reshape(len(x), x[0].numel(), -1)
    close((second @ v.flatten(1)[:, :, None])[:, :, 0], turn.flatten(1))
    for twice in (jacfwd(jacfwd(alone)), jacrev(jacrev(alone))):
        close(twice(x[0]).reshape(second[0].shape), second[0])
    torch.autograd.gradgradcheck(response, (leaf,), fast_mode=True)


def test_a_case_without_a_code_has_no_gradient(dictionary, x):
    broken = x.index_fill(0, torch.tensor([2]), torch.nan).requires_grad_(True)
    code = LCA(dictionary, sparsity=0.1).code(broken)
    assert code.converged.tolist() == [True, True, False, True, True, True]
    (gradient,) = torch.autograd.grad(code.activity.sum(), broken)
    assert gradient[2].isnan().all()
    assert gradient[[0, 1, 3, 4, 5]].isfinite().all()


def test_a_hard_case_given_up_is_nan_and_says_how_far_it_was(dictionary, x):
    code = LCA(dictionary, sparsity=0.01, threshold="hard", max_steps=2).code(x)
    assert code.activity.isnan().all()
    assert not code.converged.any()
    assert (code.residual > 1e-3).all()


def test_products_after_a_gradient_factor_once(dictionary, x, monkeypatch):
    made = []
    system = "isoresponse.models.sparse_active.ActiveSystem"
    original = __import__("isoresponse.models.sparse_active", fromlist=["ActiveSystem"]).ActiveSystem
    monkeypatch.setattr(system, lambda *a, **k: made.append(1) or original(*a, **k))
    leaf = x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(LCA(dictionary, sparsity=0.1)(leaf).square().sum(), leaf, create_graph=True)
    for _ in range(3):
        torch.autograd.grad(slope, leaf, x, retain_graph=True)
    assert len(made) == 1


def test_another_dictionary_loaded_is_the_one_used(dictionary, x):
    model, other = LCA(dictionary, sparsity=0.1), LCA(dictionary.flip(1), sparsity=0.1)
    before = model(x)
    twin = copy.deepcopy(model)
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(model(x), before.flip(1), rtol=0, atol=1e-12)
    torch.testing.assert_close(twin(x), before, rtol=0, atol=0)


# --- dynamics


@both
def test_the_neurons_settle_at_the_code_but_not_in_75_steps(generator, rectified):
    dictionary, x = normal(64, 128, generator=generator), normal(20, 64, generator=generator)
    model = LCA(dictionary, sparsity=0.5, rectified=rectified)
    with torch.no_grad():
        short, code = model.dynamics(x, 75, 30.0), model(x)
        long = model.dynamics(x, 6000, 4.0)
    assert short.potential.shape == short.activity.shape == (76, 20, 128)
    assert not short.activity[0].any()
    off = ((short.activity[-1] - code).norm(dim=1) / code.norm(dim=1)).median()
    assert off > 0.2
    torch.testing.assert_close(long.activity[-1], code, rtol=0, atol=1e-4)


def test_dynamics_have_the_shape_of_the_code_and_a_gradient(kernels, pictures):
    leaf = pictures.float().requires_grad_(True)
    way = ConvLCA(kernels, sparsity=0.4, threshold="hard").dynamics(leaf, 5, 10.0)
    assert way.activity.shape == (6, 3, 5, 6, 6)
    assert way.activity.dtype == torch.float32
    assert torch.autograd.grad(way.potential[-1].sum(), leaf)[0].any()


# --- refusals


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LCA(torch.eye(3), sparsity=1.0, threshold="firm"), "'soft' or 'hard', got threshold='firm'"),
        (lambda: LCA(torch.eye(3), sparsity=-0.1), "positive, finite sparsity, got sparsity=-0.1"),
        (
            lambda: LCA(torch.ones(3, 2), sparsity=1.0, threshold="hard"),
            "dictionary columns that differ, got 1 that repeat",
        ),
        (
            lambda: LCA(torch.tensor([[1.0, -2.0]]), sparsity=1.0, threshold="hard", rectified=False),
            "got 1 that repeat an earlier one; remove them",
        ),
        (lambda: ConvLCA(torch.ones(3, 2), sparsity=1.0), r"kernels \(unit, channel, height, width\), got .* \(3, 2\)"),
        (
            lambda: ConvLCA(torch.zeros(3, 1, 2, 2), sparsity=1.0),
            "ConvLCA needs kernels that are .* not zero, got 3 of 3",
        ),
        (lambda: ConvLCA(torch.ones(1, 1, 2, 2), sparsity=1.0, stride=0), "stride of at least one pixel, got stride=0"),
        (
            lambda: ConvLCA(torch.ones(1, 1, 2, 2), sparsity=1.0)(torch.ones(1, 1, 1, 5)),
            r"of at least 2 x 2 pixels, as its kernels are, got torch.float32 \(1, 1, 1, 5\)",
        ),
        (lambda: ConvLCA(torch.ones(1, 1, 2, 2), sparsity=1.0)(torch.ones(1, 3, 4, 5)), r"pictures \(case, 1, height"),
        (lambda: LCA(torch.eye(3), sparsity=1.0).dynamics(torch.ones(1, 3), -1, 2.0), "steps >= 0 .* got steps=-1"),
        (lambda: LCA(torch.eye(3), sparsity=1.0).dynamics(torch.ones(1, 3), 1, 0.5), "tau of at least one step, got"),
    ],
)
def test_what_cannot_be_coded_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("make", "given", "settings", "message"),
    [
        (LCA, [[1.0]], {"sparsity": 0.1}, r"floating-point dictionary of shape \(n, units\), got a list"),
        (LCA, torch.eye(2).numpy(), {"sparsity": 0.1}, "got a ndarray"),
        (LCA, torch.eye(2).long(), {"sparsity": 0.1}, r"got torch\.int64 \(2, 2\)"),
        (LCA, torch.eye(2), {"sparsity": "a"}, "positive, finite sparsity, got sparsity=a"),
        (LCA, torch.eye(2), {"sparsity": True}, "positive, finite sparsity, got sparsity=True"),
        (ConvLCA, [1.0], {"sparsity": 0.1}, "floating-point kernels .* got a list"),
        (
            ConvLCA,
            torch.ones(1, 1, 2, 2),
            {"sparsity": 0.1, "stride": 1.5},
            "stride of at least one pixel, got stride=1.5",
        ),
    ],
)
def test_other_kinds_of_settings_are_named(unchecked, monkeypatch, make, given, settings, message):
    base = make.__mro__[1]
    monkeypatch.setattr(base, "__init__", unchecked(base.__init__))
    with pytest.raises(ValueError, match=message):
        unchecked(make.__init__)(make.__new__(make), given, **settings)
