"""The published measures of bending: exact where the contour is a parabola, honest where there is none."""

import pytest
import torch

from isoresponse.loop import Status
from isoresponse.paiton2020 import published_curvatures

TICKS = torch.linspace(-2, 2, 30, dtype=torch.float64)
X, Y = TICKS[None, :], TICKS[:, None]
STEP = 4 / 29


def measured(*surfaces, level=0.5, unit=1.0):
    return published_curvatures(torch.stack(surfaces), x=unit * TICKS, y=unit * TICKS, level=level, unit=unit)


@pytest.mark.parametrize("bend", [0.305, 0.1, 0.0, -0.2])
def test_a_parabola_has_its_coefficient_and_its_curvature(bend):
    seen = measured(X - bend * Y.square())
    assert seen.curvature.item() == pytest.approx(2 * bend, rel=1e-3, abs=1e-9)  # linear between grid points
    assert seen.iso_response.item() == pytest.approx(bend * STEP, rel=1e-3, abs=1e-9)
    assert seen.residual.item() < 0.02 * abs(bend) + 1e-9


def test_the_papers_own_example_of_units():
    """0.042 in grid indices is 0.305 per plane unit, a curvature of 0.61 per plane unit, 0.019 per input unit."""
    bend = 0.042 / STEP
    seen = measured(X - bend * Y.square(), unit=31.773287)
    assert seen.iso_response.item() == pytest.approx(0.042, rel=1e-3)
    assert bend == pytest.approx(0.305, abs=5e-4)
    assert seen.curvature.item() == pytest.approx(0.61 / 31.773287, rel=2e-3)
    assert seen.curvature.item() == pytest.approx(0.019, abs=5e-4)


def test_attenuation_is_the_fall_of_the_last_column_in_plane_units():
    surface = X - 0.3 * Y.square()
    spread = surface.max() - surface.min()
    for unit in (1.0, 31.773287):
        assert measured(surface, unit=unit).attenuation.item() == pytest.approx(0.3 / float(spread), rel=1e-9)


def test_round_the_high_response_is_outward_round_the_low_one_inward():
    seen = measured(-((X - 4).square() + Y.square()).sqrt(), ((X + 4).square() + Y.square()).sqrt())
    assert float(seen.curvature[0]) > 0.1
    assert float(seen.curvature[1]) < -0.1


def test_pointwise_nonlinearities_do_not_bend_straight_contours():
    for phi in (torch.tanh, torch.exp, torch.relu):
        seen = measured(phi(X) + 0 * Y)
        assert abs(seen.iso_response.item()) < 1e-9
        assert abs(seen.attenuation.item()) < 1e-9


def test_only_the_upper_half_counts_and_scaling_does_not():
    surface = X - 0.2 * Y.square()
    odd = torch.where(Y < 0, X.expand(30, 30) + 0.3 * Y.square(), surface)
    full, upper, scaled = measured(
        surface, odd * 0 + torch.where(Y < 0, surface.flip(0), surface), 7 * surface + 3
    ).iso_response
    torch.testing.assert_close(upper, full)
    torch.testing.assert_close(scaled, full)


def test_planes_without_an_answer_have_a_status_and_do_not_disturb_others():
    good = X - 0.2 * Y.square()
    bad = good.clone()
    bad[3, 3] = float("nan")
    spot = torch.zeros(30, 30, dtype=torch.float64)
    spot[29, 29] = 1.0
    seen = measured(bad, good, torch.ones(30, 30, dtype=torch.float64), spot, level=0.5)
    names = [Status(s).name for s in seen.status.tolist()]
    assert names[:3] == ["NOT_FINITE", "DONE", "FLAT"]
    assert seen.curvature[[0, 2]].isnan().all()
    torch.testing.assert_close(seen.curvature[1:2], measured(good).curvature, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("x", "y", "how", "message"),
    [
        (TICKS**3, TICKS, {}, "x must hold at least three equally spaced"),
        (TICKS, TICKS + 1, {}, "y must be symmetric about 0"),
        (TICKS[:20], TICKS, {}, r"response must have shape \(plane, 30, 20\), got \(1, 30, 30\)"),
        (TICKS, TICKS, {"level": 1.0}, "level must be between 0 and 1"),
        (TICKS, TICKS, {"unit": 0.0}, "unit positive"),
    ],
)
def test_grids_of_another_kind_are_refused(unchecked, x, y, how, message):
    with pytest.raises(ValueError, match=message):
        unchecked(published_curvatures)(torch.ones(1, 30, 30, dtype=torch.float64), x=x, y=y, **how)
