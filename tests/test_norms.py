"""The nearest point of a plane inside a box, in each norm, against linear programming and by hand."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from isoresponse.norms import INF, nearest_in_plane, require_norm, size


def problems(n, generator, count=40):
    """Planes, boxes around the origin, and gaps that the box can reach; one element in three has no slope."""
    gradient = torch.randn(count, n, generator=generator, dtype=torch.float64)
    gradient[::3, 0] = 0.0
    lower = -torch.rand(count, n, generator=generator, dtype=torch.float64)
    upper = torch.rand(count, n, generator=generator, dtype=torch.float64)
    top = torch.where(gradient > 0, gradient * upper, gradient * lower).sum(1)
    return top * torch.rand(count, generator=generator, dtype=torch.float64), gradient, lower, upper


def by_linear_programming(gap, g, lower, upper, norm):
    n = len(g)
    if norm == 1.0:
        bounds = [(0, u) for u in upper] + [(0, -v) for v in lower]
        return linprog(np.ones(2 * n), A_eq=[np.r_[g, -g]], b_eq=[gap], bounds=bounds).fun
    both = np.r_[np.c_[np.eye(n), -np.ones(n)], np.c_[-np.eye(n), -np.ones(n)]]
    bounds = [*zip(lower, upper, strict=True), (0, None)]
    cost = np.r_[np.zeros(n), 1.0]
    return linprog(cost, A_eq=[np.r_[g, 0.0]], b_eq=[gap], A_ub=both, b_ub=np.zeros(2 * n), bounds=bounds).fun


@pytest.mark.parametrize("norm", [1.0, INF])
def test_it_is_the_optimum_of_the_linear_program(generator, norm):
    gap, gradient, lower, upper = problems(7, generator)
    d, exists = nearest_in_plane(gap, gradient, lower, upper, norm)
    assert exists.all()
    torch.testing.assert_close((d * gradient).sum(1), gap)
    assert ((d >= lower - 1e-15) & (d <= upper + 1e-15)).all()
    truth = [
        by_linear_programming(*(t[i].numpy() for t in (gap, gradient, lower, upper)), norm) for i in range(len(gap))
    ]
    torch.testing.assert_close(size(d, norm), torch.tensor(truth, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("norm", "answer"), [(1.0, [0.0, 0.0, 1.5]), (2.0, [0.6, 0.0, 1.2]), (INF, [1.0, 0.0, 1.0])])
@pytest.mark.parametrize("wide", [10.0, INF])
def test_by_hand(norm, answer, wide):
    gradient = torch.tensor([[1.0, 0.0, 2.0]])
    bound = torch.full((1, 3), wide)
    d, exists = nearest_in_plane(torch.tensor([3.0]), gradient, -bound, bound, norm)
    torch.testing.assert_close(d, torch.tensor([answer]))
    assert exists.all()


@pytest.mark.parametrize("norm", [1.0, 2.0, INF])
def test_a_plane_beyond_the_box_leaves_its_corner(norm):
    gradient, bound = torch.tensor([[1.0, 0.0, -2.0]]), torch.ones(1, 3)
    d, exists = nearest_in_plane(torch.tensor([30.0]), gradient, -bound, bound, norm)
    assert d.tolist() == [[1.0, 0.0, -1.0]]
    assert not exists.any()


@pytest.mark.parametrize("norm", [1.0, 2.0, INF])
def test_a_gap_that_is_closed_moves_nothing(norm):
    gradient, bound = torch.tensor([[1.0, -2.0]]), torch.ones(1, 2)
    d, exists = nearest_in_plane(torch.tensor([-1.0]), gradient, -bound, bound, norm)
    assert d.tolist() == [[0.0, 0.0]]
    assert exists.all()


@pytest.mark.parametrize("norm", [0, 3, -1.0, True])
def test_other_norms_are_refused(norm):
    with pytest.raises(ValueError, match=r"norm must be 1, 2 or float\('inf'\)"):
        require_norm(norm)
