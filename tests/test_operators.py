"""Operators, Lanczos and secants, on plain matrices: compared with the dense answer."""

import pytest
import torch
from analytic import frames, normal, uniform

from isoresponse.operators import SymmetricOperator, from_secants, inverse_secant_product
from isoresponse.spectra import lanczos


def operator_of(matrix):
    return SymmetricOperator(lambda v: torch.einsum("cij,cj->ci", matrix, v), matrix[:, 0])


def symmetric(eigenvalues, generator):
    """Matrices (case, n, n) with the given eigenvalues (case, n) in random frames."""
    q = frames(*eigenvalues.shape, generator=generator)
    return torch.einsum("cki,ck,ckj->cij", q, eigenvalues, q)


@pytest.fixture
def matrix(generator):
    return symmetric(uniform(3, 9, low=-2, high=2, generator=generator), generator)


def test_an_operator_is_its_dense_matrix(matrix, generator):
    v = normal(3, 9, generator=generator)
    assert operator_of(matrix).size == 9
    torch.testing.assert_close(operator_of(matrix) @ v, torch.einsum("cij,cj->ci", matrix, v))
    torch.testing.assert_close(operator_of(matrix).dense(), matrix)


def test_full_lanczos_is_eigh(matrix, generator):
    pairs = lanczos(operator_of(matrix), 9, start=normal(3, 9, generator=generator))
    torch.testing.assert_close(pairs.values, torch.linalg.eigvalsh(matrix), rtol=0, atol=1e-12)
    identity = torch.einsum("ckn,cln->ckl", pairs.vectors, pairs.vectors)
    torch.testing.assert_close(identity, torch.eye(9, dtype=torch.float64).expand(3, 9, 9), rtol=0, atol=1e-12)
    images = torch.einsum("cij,ckj->cki", matrix, pairs.vectors)
    torch.testing.assert_close(images, pairs.values[:, :, None] * pairs.vectors, rtol=0, atol=1e-11)


@pytest.mark.parametrize("steps", [1, 2, 4, 6])
def test_residuals_bound_the_distance_to_the_nearest_eigenvalue(matrix, generator, steps):
    pairs = lanczos(operator_of(matrix), steps, start=normal(3, 9, generator=generator))
    nearest = (pairs.values[:, :, None] - torch.linalg.eigvalsh(matrix)[:, None]).abs().amin(2)
    assert (nearest <= pairs.residuals + 1e-13).all()
    assert (pairs.residuals > 1e-6).any()
    images = torch.einsum("cij,ckj->cki", matrix, pairs.vectors)
    lengths = (images - pairs.values[:, :, None] * pairs.vectors).norm(dim=2)
    torch.testing.assert_close(pairs.residuals, lengths, rtol=1e-8, atol=1e-12)


def test_deflated_directions_never_come_back(generator):
    """Fifty dimensions, one deflated eigenvector with eigenvalue 0: no curvature near zero is invented."""
    values = uniform(2, 50, low=1, high=3, generator=generator)
    values[:, 7] = 0
    matrix = symmetric(values, generator)
    null = torch.linalg.eigh(matrix).eigenvectors[:, :, :1].transpose(1, 2)
    pairs = lanczos(operator_of(matrix), 49, start=normal(2, 50, generator=generator), deflate=null)
    torch.testing.assert_close(pairs.values, torch.linalg.eigvalsh(matrix)[:, 1:], rtol=0, atol=1e-12)
    assert torch.einsum("ckn,cln->ckl", null, pairs.vectors).abs().max() < 1e-13


def test_deflation_projects_the_operator_onto_the_complement(matrix, generator):
    out = frames(3, 9, generator=generator)[:, :2]
    keep = torch.eye(9, dtype=torch.float64) - torch.einsum("cki,ckj->cij", out, out)
    pairs = lanczos(operator_of(matrix), 7, start=normal(3, 9, generator=generator), deflate=out)
    projected = torch.linalg.eigvalsh(keep @ matrix @ keep + 100 * (torch.eye(9) - keep))[:, :7]
    torch.testing.assert_close(pairs.values, projected, rtol=0, atol=1e-11)


def test_multiple_eigenvalues_are_found_once_the_krylov_space_is_exhausted(generator):
    values = torch.tensor([[1.0, 1, 1, 1, 5, 5], [2, 2, 2, 2, 2, 2]], dtype=torch.float64)
    matrix = symmetric(values, generator)
    pairs = lanczos(operator_of(matrix), 6, start=normal(2, 6, generator=generator), generator=generator)
    torch.testing.assert_close(pairs.values, values, rtol=0, atol=1e-12)


def test_the_zero_operator_has_zero_ritz_values_and_residuals(generator):
    pairs = lanczos(operator_of(torch.zeros(2, 4, 4)), 4, start=torch.ones(2, 4), generator=generator)
    assert (pairs.values == 0).all()
    assert (pairs.residuals == 0).all()


def test_a_non_finite_case_is_nan_and_leaves_the_others_alone(matrix, generator):
    start = normal(3, 9, generator=generator)
    alone = lanczos(operator_of(matrix), 9, start=start).values
    broken = matrix.clone()
    broken[1, 0, 0] = float("nan")
    values = lanczos(operator_of(broken), 9, start=start).values
    assert values[1].isnan().all()
    torch.testing.assert_close(values[[0, 2]], alone[[0, 2]], rtol=0, atol=0)


def test_a_case_alone_has_the_ritz_values_it_has_in_a_batch(matrix, generator):
    start = normal(3, 9, generator=generator)
    together = lanczos(operator_of(matrix), 4, start=start)
    alone = lanczos(operator_of(matrix[1:2]), 4, start=start[1:2])
    torch.testing.assert_close(alone.values, together.values[1:2], rtol=0, atol=1e-13)
    torch.testing.assert_close(alone.residuals, together.residuals[1:2], rtol=0, atol=1e-13)


def test_lanczos_in_float32_stays_in_float32_and_within_rounding(matrix, generator):
    start = normal(3, 9, generator=generator)
    pairs = lanczos(operator_of(matrix.float()), 9, start=start.float())
    assert pairs.values.dtype == pairs.vectors.dtype == pairs.residuals.dtype == torch.float32
    torch.testing.assert_close(pairs.values.double(), torch.linalg.eigvalsh(matrix), rtol=0, atol=5e-6)


def test_all_secants_of_a_matrix_give_the_matrix(matrix, generator):
    steps = normal(3, 9, 9, generator=generator)
    told = from_secants(steps, torch.einsum("cij,ckj->cki", matrix, steps))
    torch.testing.assert_close(told.operator().dense(), matrix, rtol=0, atol=1e-10)
    assert told.asymmetry.max() < 1e-11


def test_a_few_secants_are_reproduced_and_nothing_is_added_outside(matrix, generator):
    steps = normal(3, 4, 9, generator=generator)
    told = from_secants(steps, torch.einsum("cij,ckj->cki", matrix, steps))
    dense = told.operator().dense()
    torch.testing.assert_close(dense, dense.transpose(1, 2), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        torch.einsum("cij,ckj->cki", dense, steps), torch.einsum("cij,ckj->cki", matrix, steps), rtol=0, atol=1e-11
    )
    outside = torch.eye(9, dtype=torch.float64) - torch.einsum("cki,ckj->cij", told.basis, told.basis)
    assert (outside @ dense @ outside).abs().max() < 1e-12


def test_repeated_and_zero_steps_are_left_out(matrix, generator):
    steps = normal(3, 4, 9, generator=generator)
    padded = torch.stack([steps[:, 0], 2 * steps[:, 0], 0 * steps[:, 0], *steps[:, 1:].unbind(1)], 1)
    images = torch.einsum("cij,ckj->cki", matrix, padded)
    told = from_secants(padded, images)
    assert told.basis.norm(dim=2).round().tolist() == [[1, 0, 0, 1, 1, 1]] * 3
    plain = from_secants(steps, torch.einsum("cij,ckj->cki", matrix, steps))
    torch.testing.assert_close(told.operator().dense(), plain.operator().dense(), rtol=0, atol=1e-11)


def test_asymmetry_is_the_share_of_the_antisymmetric_part(generator):
    """Changes from A + B, A symmetric and B antisymmetric: the operator is A, the asymmetry |B| / |A|."""
    raw = normal(3, 5, 5, generator=generator)
    even, odd = (raw + raw.transpose(1, 2)) / 2, (raw - raw.transpose(1, 2)) / 2
    steps = frames(3, 5, generator=generator)
    told = from_secants(steps, torch.einsum("cij,ckj->cki", raw, steps))
    torch.testing.assert_close(told.operator().dense(), even, rtol=0, atol=1e-12)
    torch.testing.assert_close(told.asymmetry, odd.flatten(1).norm(dim=1) / even.flatten(1).norm(dim=1))


def test_without_secants_the_operator_is_zero(generator):
    none = torch.zeros(2, 0, 5, dtype=torch.float64)
    told = from_secants(none, none)
    v = normal(2, 5, generator=generator)
    assert (told @ v == 0).all()
    assert (told.operator() @ v == 0).all()
    assert (told.asymmetry == 0).all()


def test_n_conjugate_secants_give_the_inverse(generator):
    matrix = symmetric(uniform(3, 6, low=0.2, high=4, generator=generator), generator)
    steps = torch.linalg.eigh(matrix).eigenvectors.transpose(1, 2)  # conjugate: eigenvectors
    changes = torch.einsum("cij,ckj->cki", matrix, steps)
    v = normal(3, 6, generator=generator)
    product = inverse_secant_product(steps, changes, torch.ones(3, dtype=torch.float64), v)
    torch.testing.assert_close(product, torch.linalg.solve(matrix, v), rtol=0, atol=1e-10)


def test_the_inverse_product_maps_the_newest_change_back_to_its_step(generator):
    matrix = symmetric(uniform(3, 6, low=0.2, high=4, generator=generator), generator)
    steps = normal(3, 4, 6, generator=generator)
    changes = torch.einsum("cij,ckj->cki", matrix, steps)
    back = inverse_secant_product(steps, changes, torch.ones(3, dtype=torch.float64), changes[:, -1])
    torch.testing.assert_close(back, steps[:, -1], rtol=0, atol=1e-12)


def test_empty_places_in_the_memory_only_scale(generator):
    empty, v = torch.zeros(3, 4, 6, dtype=torch.float64), normal(3, 6, generator=generator)
    scale = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(inverse_secant_product(empty, empty, scale, v), scale[:, None] * v)
