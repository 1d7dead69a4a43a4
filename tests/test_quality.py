"""Measures of what a perturbation looks like: known shares, the matched control, and what chance gives."""

import itertools

import pytest
import torch
from matplotlib.figure import Figure

import isoresponse as iso
from isoresponse import plot, quality
from isoresponse.models.basic import OutwardBent
from isoresponse.models.matched import Twin

NAN = float("nan")


def normal(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(n, seed=0):
    return torch.linalg.qr(normal(n, n, seed=seed)).Q


# --- the control


def curved(n=6):
    """A smooth network's unit, different from case to case by a shift."""
    w, v = normal(8, n, seed=1), normal(8, seed=2)
    return iso.Neuron(lambda x: (x @ w.T).tanh() @ v + 0.1 * x.square().sum(1), (n,))


def test_without_an_mei_the_control_is_the_twin_with_straight_contours():
    neuron, x = curved(), 0.5 * normal(5, 6, seed=3)
    level = neuron.value(x) + 0.3
    found = iso.pointwise_control(neuron, x, level)
    for i in range(5):
        twin = iso.Neuron.of(Twin(neuron.response, x[i]), shape=(6,))
        other = iso.closest_point(twin, x[i : i + 1], level[i : i + 1])
        torch.testing.assert_close(found.distance[i], other.distance[0], rtol=1e-6, atol=0)
        torch.testing.assert_close(found.point[i], other.point[0], rtol=1e-5, atol=1e-6)
    gradient = neuron.value_and_grad(x)[1]
    torch.testing.assert_close(iso.alignment(found.point - x, gradient), torch.ones(5).double(), rtol=1e-6, atol=0)


def test_with_an_mei_gap_and_gradient_stay_and_the_perturbation_is_along_it():
    neuron, x, mei = curved(), 0.5 * normal(5, 6, seed=3), normal(6, seed=4)
    level = neuron.value(x) - 0.2
    found, plain = iso.pointwise_control(neuron, x, level, mei=mei), iso.pointwise_control(neuron, x, level)
    torch.testing.assert_close(found.distance, plain.distance, rtol=1e-6, atol=0)
    torch.testing.assert_close(iso.alignment(found.point - x, mei), -torch.ones(5).double(), rtol=1e-6, atol=0)


def test_a_meaningless_unit_is_aligned_perfectly_so_that_alignment_is_no_meaning():
    """A bent neuron is less aligned with its own MEI than the pointwise control with the same MEI; the growth is the bend's."""
    mei = torch.tensor([1.0, 0.0], dtype=torch.float64)
    neuron = iso.Neuron.of(OutwardBent(mei, bend=1.0, width=0.3), shape=(2,))
    x = torch.tensor([[0.5, 0.8], [0.5, -0.6]], dtype=torch.float64)
    level = neuron.value(x) + 0.8
    found, control = iso.closest_point(neuron, x, level), iso.pointwise_control(neuron, x, level, mei=mei)
    told = iso.compare_quality(
        {"alignment": lambda d: iso.alignment(d, mei)}, found.point - x, control.point - x,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert (told.control > 1 - 1e-9).all()
    assert (told.gain < -0.05).all()
    path = iso.gradient_path(neuron, x, level)
    assert (quality.growth(path, mei) > 0.01).all()
    straight = iso.gradient_path(iso.Neuron(lambda z: z[:, 0].exp(), (2,)), x, 3.0)
    torch.testing.assert_close(quality.growth(straight, mei + 1), torch.zeros(2).double(), rtol=0, atol=1e-6)
    assert quality.alignment_along(straight, mei)[:, 0].isnan().all()


# --- measures


def test_alignment_takes_one_direction_or_one_per_case_and_knows_no_scale():
    d, a = normal(4, 2, 3), normal(4, 2, 3, seed=1)
    expected = torch.nn.functional.cosine_similarity(d.flatten(1), a.flatten(1), dim=1)
    torch.testing.assert_close(iso.alignment(1e-9 * d, 1e6 * a), expected)
    torch.testing.assert_close(iso.alignment(d, a[2])[2], expected[2])
    d[1] = 0
    assert iso.alignment(d, a).isnan().tolist() == [False, True, False, False]
    assert iso.alignment(d, 0 * a).isnan().all()
    with pytest.raises(
        ValueError, match=r"direction must have the shape of one input, \(2, 3\), or of all, \(4, 2, 3\)"
    ):
        iso.alignment(d, a[0, 0])


def test_the_share_on_a_flat_manifold_is_the_projections():
    n, dims = 12, 3
    frame = rotation(n)
    data = normal(400, dims, seed=1) @ frame[:dims] + 1e-4 * normal(400, n, seed=2)
    d, x = normal(20, n, seed=3), data[:20]
    share = iso.on_manifold_share(d, x, data, neighbours=40, dims=dims)
    truth = (d @ frame[:dims].T).square().sum(1) / d.square().sum(1)
    torch.testing.assert_close(share, truth, rtol=0, atol=2e-3)
    turned = rotation(n, seed=5)
    torch.testing.assert_close(
        iso.on_manifold_share(d @ turned, x @ turned, data @ turned, neighbours=40, dims=dims),
        share,
        rtol=1e-6,
        atol=1e-9,
    )
    torch.testing.assert_close(iso.on_manifold_share(d[4:5], x[4:5], data, neighbours=40, dims=dims), share[4:5])


def test_the_tangent_is_local_on_a_circle():
    angle = torch.linspace(0, 2 * torch.pi, 201, dtype=torch.float64)[:-1]
    data = torch.stack([angle.cos(), angle.sin()], 1)
    x = data[::40]
    tangent = torch.stack([-x[:, 1], x[:, 0]], 1)
    along = iso.on_manifold_share(tangent, x, data, neighbours=7, dims=1)
    across = iso.on_manifold_share(x, x, data, neighbours=7, dims=1)
    assert (along > 0.9999).all()
    assert (across < 1e-4).all()


def test_a_code_of_few_elements_is_found_and_noise_is_not():
    n, units = 30, 60
    dictionary = torch.nn.functional.normalize(normal(n, units), dim=0)
    d = dictionary[:, [3, 17]] @ torch.tensor([[2.0, -1.0], [1.0, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(iso.coded_share(d.T, dictionary, active=2), torch.ones(2).double())
    noise = normal(50, n, seed=4)
    shares = [iso.coded_share(noise, dictionary, active=k) for k in (1, 2, 5, 15, n)]
    for fewer, more in itertools.pairwise(shares):
        assert (more >= fewer - 1e-12).all()
    assert shares[1].median() < 0.5
    torch.testing.assert_close(shares[0], ((noise / noise.norm(dim=1, keepdim=True)) @ dictionary).square().amax(1))
    torch.testing.assert_close(shares[-1], torch.ones(50).double())
    torch.testing.assert_close(iso.coded_share(7 * noise, 5 * dictionary, active=5), shares[2])


def test_matching_pursuit_agrees_with_scikit_learns():
    decomposition = pytest.importorskip("sklearn.decomposition")
    dictionary = torch.nn.functional.normalize(normal(20, 40), dim=0)
    d = normal(10, 20, seed=2)
    code = torch.as_tensor(
        decomposition.sparse_encode(d.numpy(), dictionary.T.numpy(), algorithm="omp", n_nonzero_coefs=4)
    )
    rest = (d - code @ dictionary.T).square().sum(1) / d.square().sum(1)
    torch.testing.assert_close(iso.coded_share(d, dictionary, active=4), 1 - rest)


def test_an_independent_model_agrees_by_the_part_of_its_margin():
    one = iso.Classifier(lambda x: torch.stack([x[:, 0], -x[:, 0]], 1), (2,), 2)
    d = torch.tensor([[-0.5, 9.0], [-2.0, 0.0], [0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    labels = torch.zeros(4, dtype=torch.int64)
    told = iso.agreement(d, x, one, labels, labels + 1)
    assert told.tolist()[:3] == [0.5, 2.0, 0.0]
    assert told[3].isnan()  # it does not decide as labelled
    with pytest.raises(ValueError, match=r"rivals must lie in 0\.\.1"):
        iso.agreement(d, x, one, labels, labels + 2)


def test_spectral_shares_are_those_of_gratings_and_only_for_images():
    t = torch.arange(16, dtype=torch.float64)
    slow, fast = (2 * torch.pi * t / 16).cos(), (2 * torch.pi * 6 * t / 16).cos()
    d = torch.stack([slow.expand(16, 16), fast.expand(16, 16), (slow + 2 * fast).expand(16, 16)])[:, None]
    torch.testing.assert_close(iso.low_frequency_share(d), torch.tensor([1.0, 0.0, 0.2]).double(), rtol=1e-6, atol=1e-9)
    assert iso.low_frequency_share(0 * d).isnan().all()
    with pytest.raises(ValueError, match="is for images, inputs of at least two axes"):
        iso.low_frequency_share(normal(3, 5))
    with pytest.raises(ValueError, match="cutoff must be positive"):
        iso.low_frequency_share(d, cutoff=0.0)


# --- together


def test_chance_is_what_theory_says_and_shares_have_intervals():
    n, cases = 16, 300
    d, mei = normal(cases, n), normal(n, seed=1)
    dictionary = torch.eye(n, dtype=torch.float64)
    told = iso.compare_quality(
        {"alignment": lambda p: iso.alignment(p, mei), "length": lambda p: p.norm(dim=1),
         "one": lambda p: iso.coded_share(p, dictionary, active=n)},
        d, -d, generator=torch.Generator().manual_seed(0), draws=20,
    )  # fmt: skip
    torch.testing.assert_close(told.chance[1], told.value[1])
    assert abs(float(told.chance[0].mean())) < 0.02
    torch.testing.assert_close(told.chance[2], torch.ones(cases).double())
    share, low, high = told.share_above("alignment")
    assert low < share < high
    assert all(v != v for v in told.share_above("length"))  # equal everywhere: nothing to say
    assert told.coords == {"measure": ["alignment", "length", "one"]}
    assert "alignment" in repr(told)
    with pytest.raises(ValueError, match="no measure 'size'; there are alignment"):
        told.share_above("size")
    ax = plot.quality(Figure().subplots(), told)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["alignment", "length", "one"]


def test_an_input_that_is_not_finite_is_near_no_data():
    data, d = normal(20, 4), normal(3, 4)
    x = data[:3].clone()
    x[1, 2] = float("nan")
    share = iso.on_manifold_share(d, x, data, neighbours=6, dims=2)
    assert torch.isfinite(share).tolist() == [True, False, True]
    assert torch.equal(share[[0, 2]], iso.on_manifold_share(d[[0, 2]], x[[0, 2]], data, neighbours=6, dims=2))


def test_refusals(unchecked):
    d = normal(3, 4)
    seed = torch.Generator().manual_seed(0)
    compare = unchecked(iso.compare_quality)
    with pytest.raises(TypeError, match=r"measures must be functions by name, such as .* got list"):
        compare([lambda p: p], d, d, generator=seed)
    with pytest.raises(TypeError, match=r"perturbation and control must be torch tensors \(case, \*shape\)"):
        compare({"a": lambda p: p}, d.tolist(), d, generator=seed)
    with pytest.raises(TypeError, match=r"measure 'a' must answer with a tensor \(case,\), got float"):
        compare({"a": lambda _: 1.0}, d, d, generator=seed)
    with pytest.raises(ValueError, match="data must be finite"):
        iso.on_manifold_share(d, d, d / 0, neighbours=3, dims=2)
    with pytest.raises(ValueError, match="needs measures and at least 1 draw"):
        iso.compare_quality({}, d, d, generator=seed)
    with pytest.raises(ValueError, match=r"measure 'a' must answer with shape \(3,\), got \(3, 4\)"):
        iso.compare_quality({"a": lambda p: p}, d, d, generator=seed)
    with pytest.raises(ValueError, match="1 <= dims < neighbours <= number of data"):
        iso.on_manifold_share(d, d, d, neighbours=3, dims=3)
    with pytest.raises(ValueError, match=r"dictionary must have shape \(4, units\)"):
        iso.coded_share(d, torch.eye(3))
    with pytest.raises(ValueError, match="active must lie between 1 and 4"):
        iso.coded_share(d, torch.eye(4), active=9)
