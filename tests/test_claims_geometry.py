"""Claims (b) to (e) and (k): a planted counter-example turns each verdict round, and noise decides nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Generator, Tensor

from isoresponse.neuron import Box, Neuron
from isoresponse.studies.claims import ensembles, focusing, regions
from isoresponse.studies.claims.findings import DEPENDS, REFUTED, SUPPORTED
from isoresponse.studies.claims.pairs import Pair, degrees, side_by_side, toys
from isoresponse.studies.claims.subjects import SparseUnits, starts_of, twin
from isoresponse.studies.claims.turning import turning, walked
from isoresponse.studies.experiment import OPEN


def draws(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


class TestTurning:
    def test_a_straight_neurons_path_is_along_the_axis(self):
        walk = walked(toys(6, 5, generator=draws()))
        assert float(walk.straight_change[:, 1:].max()) < 1e-4
        assert bool((walk.bent[:, -1] < walk.straight[:, -1]).all())
        torch.testing.assert_close(walk.bent[:, 0], walk.straight[:, 0])

    def test_bent_outward_supports_bent_inward_refutes(self):
        outward = turning({"toys": toys(20, 3, generator=draws())})
        inward = turning({"toys": toys(20, 3, generator=draws(), curvature=(-0.8, -0.3))})
        assert [f.verdict for f in outward] == [SUPPORTED, REFUTED]
        assert inward[0].verdict == REFUTED
        both = turning(
            {"out": toys(9, 3, generator=draws()), "in": toys(9, 3, generator=draws(), curvature=(-0.8, -0.3))}
        )
        assert both[0].verdict == DEPENDS
        assert both[0].where == "holds: out; fails: in"

    def test_swapped_roles_turn_the_perturbations_verdict_round(self):
        pair = toys(20, 3, generator=draws())
        swapped = replace(pair, bent=pair.straight, straight=pair.bent)
        assert [f.verdict for f in turning({"toys": swapped})] == [REFUTED, SUPPORTED]

    def test_not_decided_between_neurons_bent_alike(self):
        pair = toys(20, 3, generator=draws())
        line = replace(pair.straight, given=pair.straight.given)
        one, other = (toys(20, 3, generator=draws(), curvature=c) for c in ((0.2, 1.0), (0.2, 1.0)))
        bend = 0.6 + 0.4 * torch.linspace(-1, 1, 20, dtype=torch.float64)[torch.randperm(20, generator=draws(4))]
        again = 0.6 + 0.4 * torch.linspace(-1, 1, 20, dtype=torch.float64)[torch.randperm(20, generator=draws(5))]
        alike = Pair(
            twin(line, one.axis, curvature=bend),
            twin(line, one.axis, curvature=again),
            other.x,
            one.axis,
            one.gain,
            one.group,
        )
        assert [f.verdict for f in turning({"alike": alike})] == [OPEN, OPEN]

    def test_angles_and_padding(self):
        axis = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        told = degrees(torch.tensor([[[1.0, 1.0], [0.0, 0.0]], [[0.0, 3.0], [1.0, 0.0]]]), axis)
        np.testing.assert_allclose(told[:, 0].numpy(), [45.0, 0.0], atol=1e-4)
        assert bool(told[0, 1].isnan())
        assert side_by_side([torch.ones(2), torch.ones(3)]).tolist()[0][:2] == [1.0, 1.0]


class TestRegions:
    def test_half_of_all_directions_raise_a_linear_response(self):
        weight = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
        neuron, x = Neuron(lambda z: z @ weight, (3,)), torch.zeros(4, 3, dtype=torch.float64)
        one = torch.ones(4, dtype=torch.float64)
        told = regions.in_directions(neuron, x, neuron.value(x), one, samples=50, generator=draws())
        torch.testing.assert_close(told, torch.full_like(told, 0.5), atol=1e-12, rtol=0)

    def test_a_ball_leaves_the_share_of_its_cap(self):
        neuron = Neuron(lambda z: -z.square().sum(1), (3,))
        x = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64).expand(5, 3)
        radius = torch.full((5,), 0.8, dtype=torch.float64)
        told = regions.in_directions(neuron, x, neuron.value(x), radius, samples=20_000, generator=draws())
        # |x + r u| < 1 where the cosine is below -r / 2: in three dimensions a share of (1 - r / 2) / 2
        np.testing.assert_allclose(told.numpy(), 0.5 * (1 - 0.4), atol=0.02)

    @pytest.mark.parametrize(
        ("curvature", "verdict"), [((0.5, 2.0), SUPPORTED), ((-2.0, -0.5), REFUTED), ((-1.0, 1.0), OPEN)]
    )
    def test_verdict_follows_the_bending(self, curvature: tuple[float, float], verdict: str):
        shares = {f"{n}": regions.of_toys(20, n, 200, generator=draws(n), curvature=curvature) for n in (2, 4)}
        assert regions.fewer_inputs(shares).verdict == verdict

    def test_depends_where_subjects_differ(self):
        out, inward = (regions.of_toys(20, 2, 200, generator=draws(), curvature=c) for c in ((0.5, 2.0), (-2.0, -0.5)))
        assert regions.fewer_inputs({"out": out, "in": inward}).verdict == DEPENDS


class TestEnsembles:
    def test_straight_neurons_meet_where_least_squares_has_it(self):
        told = ensembles.of_toys(4, 3, n=6, generator=draws(1))
        again = draws(1)
        axes = torch.stack([ensembles.axes_of(4, 6, again) for _ in range(3)], 1)
        for i in range(4):  # the least-norm point of the planes, where all of its multipliers are positive
            weights = torch.linalg.solve(axes[i] @ axes[i].T, torch.ones(3, dtype=torch.float64))
            if bool((weights > 0).all()):
                assert float(told.straight[i]) == pytest.approx(float(weights.sum().sqrt()), rel=1e-5)
            assert not float(told.bent[i]) < float(told.straight[i])

    def test_two_bent_neurons_meet_where_the_symmetry_has_it(self):
        # gradients at an angle of 90 degrees and the same curvature: the closest point is on the diagonal, at (t, t)
        axes = torch.eye(2, dtype=torch.float64)
        x = torch.zeros(1, 2, dtype=torch.float64)
        lines = [Neuron(ensembles.drive, (2,), Box(), "toy", (axes[k : k + 1],)) for k in range(2)]
        parts = [twin(f, x, curvature=0.5, slope=ensembles.SLOPE) for f in lines]
        t = scipy.optimize.brentq(
            lambda t: t - 0.5 * t * t / (1 + np.sqrt(1 + (0.5 * t / ensembles.SLOPE) ** 2)) - 1, 1, 3
        )
        told = ensembles.refined(parts, x, torch.ones(1, dtype=torch.float64))
        assert float(told[0]) == pytest.approx(np.sqrt(2) * t, rel=1e-5)

    def test_one_neuron_alone_is_as_near_and_several_are_not(self):
        alone, two = (ensembles.of_toys(8, k, n=6, generator=draws(k)) for k in (1, 2))
        assert float(np.abs(alone.growth).max()) < 1e-6
        assert ensembles.larger({2: two}, {}).verdict == SUPPORTED
        assert ensembles.larger({1: alone}, {}).verdict == REFUTED
        assert ensembles.larger({1: alone, 2: two}, {"alone": alone}).verdict == DEPENDS

    def test_bent_inward_refutes_and_either_way_decides_nothing(self):
        inward = ensembles.of_toys(8, 2, n=6, generator=draws(), curvature=(-1.0, -0.5))
        assert ensembles.larger({2: inward}, {}).verdict == REFUTED
        outward = ensembles.of_toys(8, 2, n=6, generator=draws(), curvature=(0.5, 1.0))
        half = torch.arange(8) % 2 == 0
        scale = inward.growth[half.numpy()].mean() / outward.growth[~half.numpy()].mean()
        grown = torch.as_tensor(outward.growth * abs(scale)).exp() * outward.straight
        mixed = replace(outward, bent=torch.where(half, inward.bent, grown))
        assert ensembles.larger({2: mixed}, {}).verdict == OPEN

    def test_the_decision_of_neurons_bent_alike_is_as_far_their_excitement_is_not(self):
        decided, excited = ensembles.of_classes(5, 8, n=8, generator=draws())
        assert float(np.nanmax(np.abs(decided.growth))) < 1e-3
        assert float(np.nanmin(excited.growth)) > 0.05


class TestFocusing:
    subject = staticmethod(lambda cases=6: {"toys": focusing.toys(cases, 4, generator=draws())})

    @pytest.fixture(autouse=True)
    def shorter(self, monkeypatch):
        """Parabolas in few dimensions need no longer search."""
        monkeypatch.setattr(focusing, "BUDGET", 40)

    def test_as_theory_has_it(self):
        row = focusing.bent(*focusing.toys(4, 6, generator=draws()), samples=100)
        told = row.distance.numpy()
        np.testing.assert_allclose(told, np.tile(focusing.focused(np.asarray(row.grid))[:, None], 4), rtol=2e-3)
        assert focusing.focusing(self.subject(), samples=100).verdict == SUPPORTED

    def test_a_bending_that_moves_the_tip_refutes(self):
        def moved(neuron: Neuron, x: Tensor, curvature: Tensor) -> Neuron:
            other = focusing.parabolas(neuron, x, curvature.abs())
            return replace(
                other,
                response=lambda z, c, *given: other.response(z, *given) - 0.1 * c,
                given=(curvature.abs(), *other.given),
            )

        assert focusing.focusing(self.subject(), samples=100, bender=moved).verdict == REFUTED

    def test_a_bending_that_does_nothing_supports_a_third_of_it(self):
        found = focusing.focusing(self.subject(), samples=100, bender=lambda neuron, x, c: neuron)
        assert found.verdict == DEPENDS
        assert found.where == "holds: distance unchanged; fails: shrinks once focused, share changes at once"

    def test_not_decided_where_bending_goes_either_way(self):
        def either(neuron: Neuron, x: Tensor, curvature: Tensor) -> Neuron:
            return focusing.parabolas(neuron, x, curvature * torch.tensor([1.0, -1.0]).repeat(len(x))[: len(x)])

        found = focusing.focusing(self.subject(), samples=100, bender=either)
        assert found.tests["shrinks once focused: toys"].verdict == OPEN
        assert found.verdict == OPEN
        assert focusing.focusing(self.subject(4), samples=100).verdict == OPEN


class TestUnits:
    def test_starts_excite_their_unit_and_too_few_are_refused(self):
        activity = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.1], [0.0, 0.2]], dtype=torch.float64)
        x, unit = starts_of(activity, torch.arange(4.0, dtype=torch.float64)[:, None], 2, 1, seed=0)
        assert dict(zip(unit.tolist(), x[:, 0].tolist(), strict=True))[0] == 1.0
        with pytest.raises(ValueError, match="no unit responds to 9 of 4 patches; give more patches"):
            starts_of(activity, torch.zeros(4, 1, dtype=torch.float64), 2, 9, seed=0)

    def test_pairs_of_units_and_their_twins_start_alike(self):
        generator = draws(2)
        weights = torch.randn(4, 6, generator=generator, dtype=torch.float64)
        weights = weights / weights.norm(dim=0)
        x = 2 * weights[:, :3].T + weights[:, 3:4].T
        units = SparseUnits(weights, 0.1, x, torch.arange(3), 2.0, 9.0, "test")
        told = ensembles.of_units(units, gain=0.1, budget=3)
        assert bool(told.bent.isfinite().any())
        share = regions.of_units(units, 60, generator=draws())
        assert share.bent.shape == (3,)
        assert bool(((share.straight > 0) & (share.straight < 1)).any())
