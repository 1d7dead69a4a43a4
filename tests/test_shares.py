"""How a variance is shared out: sums, symmetry, the closed form of sums of factors, bootstrap, cross-validation."""

import pytest
import torch
from torch import Generator

from isoresponse.shares import explained, fitted, in_order, places, resampled, shapley, subsets


def test_what_the_factors_add_sums_to_what_all_explain(generator):
    value = torch.randn(2**5, generator=generator, dtype=torch.float64)
    total = value[-1] - value[0]
    torch.testing.assert_close((shapley(5) @ value).sum(), total)
    torch.testing.assert_close((in_order([3, 0, 4, 1, 2]) @ value).sum(), total)


def test_the_mean_over_all_orders_is_that(generator):
    from itertools import permutations

    value = torch.randn(2**4, generator=generator, dtype=torch.float64)
    every = [in_order(list(order)) @ value for order in permutations(range(4))]
    torch.testing.assert_close(shapley(4) @ value, torch.stack(every).mean(0))


def test_shares_of_a_sum_have_a_closed_form(generator):
    parts = torch.randn(3, 50, generator=generator, dtype=torch.float64)
    measured = parts.sum(0) + 0.3 * torch.randn(50, generator=generator, dtype=torch.float64)
    told = subsets(3).double() @ parts
    value = explained(told, measured, torch.ones(1, 50).double())[0]
    both = torch.cov(torch.cat([parts, parts.sum(0, keepdim=True), measured[None]]))
    torch.testing.assert_close(shapley(3) @ value, (2 * both[:3, 4] - both[:3, 3]) / both[4, 4])


def test_nothing_explains_nothing_and_a_constant_is_free():
    measured = torch.arange(9.0, dtype=torch.float64)
    told = torch.stack([torch.zeros(9), measured + 5, -measured]).double()
    value = explained(told, measured, torch.ones(1, 9).double())[0]
    torch.testing.assert_close(value, torch.tensor([0.0, 1.0, -3.0], dtype=torch.float64))


def test_weights_are_repetitions(generator):
    told, measured = torch.randn(4, 12, generator=generator).double(), torch.randn(12, generator=generator).double()
    drawn = resampled(torch.zeros(12, dtype=torch.int64), 3, generator)
    for weights, value in zip(drawn, explained(told, measured, drawn), strict=True):
        again = torch.arange(12).repeat_interleave(weights.long())
        torch.testing.assert_close(value, explained(told[:, again], measured[again], torch.ones(1, 12).double())[0])


def test_every_group_keeps_its_size(generator):
    groups = torch.tensor([0, 2, 0, 2, 2, 1])
    drawn = resampled(groups, 40, generator)
    assert drawn.shape == (40, 6)
    for group, size in ((0, 2), (1, 1), (2, 3)):
        assert bool((drawn[:, groups == group].sum(1) == size).all())
    assert bool((drawn[:, 0] != 1).any())


def test_least_squares_finds_exponents_and_is_not_fooled_by_chance(generator):
    columns = torch.randn(3, 200, generator=generator, dtype=torch.float64)
    measured = 0.5 * columns[0] - 2 * columns[1]
    free = fitted(columns, measured)
    torch.testing.assert_close(free[[3, 7]], torch.ones(2).double())
    noise = torch.randn(200, generator=generator, dtype=torch.float64)
    assert float(fitted(columns, noise)[-1]) < 0.02  # cross-validated: chance explains nothing
    columns[2] = 4.0
    torch.testing.assert_close(fitted(columns, measured)[3], fitted(columns, measured)[7])


def test_an_order_names_each_factor_once():
    assert places(("a", "b", "c"), None) == [0, 1, 2]
    assert places(("a", "b", "c"), ("c", "a", "b")) == [2, 0, 1]
    for wrong in (("a", "b"), ("a", "b", "b"), ("a", "b", "d")):
        with pytest.raises(ValueError, match="order must hold each of a, b, c once, got"):
            places(("a", "b", "c"), wrong)


def test_draws_follow_the_generator():
    groups = torch.zeros(5, dtype=torch.int64)
    one, two = (resampled(groups, 4, Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, two)
