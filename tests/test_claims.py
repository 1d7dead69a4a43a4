"""Claims (a) and (h): their verdicts follow the data, and a planted counter-example turns them round."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from isoresponse.classifier import Classifier
from isoresponse.crossing import Problem, Solution
from isoresponse.loop import Status
from isoresponse.neuron import Box, Neuron
from isoresponse.solve import closest_point
from isoresponse.studies.claims.findings import DEPENDS, REFUTED, SUPPORTED, Finding, averaged, together
from isoresponse.studies.claims.steps import alignment, along_contour, compared, least_along, steps_across, textbook
from isoresponse.studies.claims.subjects import Networks, twin
from isoresponse.studies.experiment import OPEN, Claim, Effect
from isoresponse.studies.figures import new_figure


def effect(low: float, high: float) -> Claim:
    return Claim("x", "y", Effect((low + high) / 2, low, high, 9), 1.0)


def small(cases: int = 30, n: int = 24) -> Networks:
    """A smooth network of random weights, and inputs that it decides as they are labelled."""
    generator = Generator().manual_seed(3)
    net = nn.Sequential(nn.Linear(n, 32), nn.Tanh(), nn.Linear(32, 3)).double()
    for weight in net.parameters():
        weight.data = torch.randn(weight.shape, generator=generator, dtype=torch.float64) / 3
    made = Classifier.of(net, shape=(n,), box=Box(-9.0, 9.0), name="net")
    x = torch.randn(cases, n, generator=generator, dtype=torch.float64)
    return Networks({"net": made}, x, made.predict(x), "noise", {"net": 1.0})


def stepping(share: float, spread: float = 0.0):
    """An attack with one step of which `share` (its cosine) is along the normal, the rest along some tangent."""

    def attack(neuron: Neuron, x: Tensor, level: float | Tensor) -> Solution:
        problem = Problem.of(neuron, x, level)
        _, gradient = problem.excess_and_grad(problem.start)
        unit = gradient / gradient.norm(dim=1, keepdim=True)
        draw = torch.randn(unit.shape, generator=Generator().manual_seed(1), dtype=x.dtype)
        side = draw - (draw * unit).sum(1, keepdim=True) * unit
        along = (share + spread * torch.linspace(-1, 1, len(x), dtype=x.dtype)).clamp(-1, 1)[:, None]
        way = along * unit + (1 - along.square()).sqrt() * side / side.norm(dim=1, keepdim=True)
        end = problem.start + 1e-3 * way
        nothing, count = torch.zeros(len(x), dtype=x.dtype), torch.ones(len(x), dtype=torch.int64)
        status = torch.full_like(count, int(Status.MAX_STEPS))
        return Solution(
            end.reshape(x.shape), neuron.value(end.reshape(x.shape)), nothing + 1e-3, nothing, status, count, count
        )

    return attack


class TestFindings:
    def test_verdict_of_several_tests(self):
        holds, fails, neither = effect(1.1, 1.3), effect(0.1, 0.3), effect(0.9, 1.1)
        assert together([holds, holds]) == SUPPORTED
        assert together([fails]) == REFUTED
        assert together([holds, fails]) == DEPENDS == together([holds, neither, fails])
        assert together([neither]) == OPEN == together([holds, neither]) == together([fails, neither]) == together([])

    def test_where_names_families_once(self):
        tests = {
            "L1: a": effect(0.1, 0.2),
            "L1: b": effect(0.1, 0.2),
            "L2: a": effect(1.1, 1.2),
            "L2: b": effect(0.9, 1.1),
        }
        found = Finding("x", "says", "if", tests, new_figure(1, 1), "caption")
        assert found.where == "holds: L2: a; fails: L1; not decided: L2: b"
        assert Finding("x", "says", "if", {"L1: a": effect(0.1, 0.2)}, new_figure(1, 1), "").where == ""

    def test_means_of_groups(self):
        assert averaged(torch.tensor([1.0, 3.0, torch.nan]), torch.tensor([2, 2, 1])).tolist()[1] == 2.0


class TestSteps:
    def test_gradient_steps_have_cosine_one_and_signs_the_ratio_of_norms(self):
        weight = torch.tensor([3.0, -1.0, 2.0, 0.5], dtype=torch.float64)
        neuron, x = Neuron(lambda z: z @ weight, (4,)), torch.zeros(6, 4, dtype=torch.float64)
        told = {r: alignment(textbook(r), neuron, x, 1.0) for r in ("gradient", "sign", "coordinate")}
        torch.testing.assert_close(told["gradient"], torch.ones_like(told["gradient"]))
        torch.testing.assert_close(
            told["sign"], torch.full_like(told["sign"], float(weight.abs().sum() / weight.norm() / 2))
        )
        torch.testing.assert_close(told["coordinate"], torch.full_like(told["sign"], float(3 / weight.norm())))

    def test_supported_unless_an_attack_steps_aside(self):
        nets, ours = small(), {"ours": closest_point, "gradient": textbook("gradient")}
        assert steps_across(nets, attacks=ours).verdict == SUPPORTED
        assert steps_across(nets, attacks={"aside": stepping(0.1)}).verdict == REFUTED
        mixed = steps_across(nets, attacks={**ours, "aside": stepping(0.1)})
        assert mixed.verdict == DEPENDS
        assert "fails: aside" in mixed.where

    def test_not_decided_where_steps_scatter(self):
        found = steps_across(small(), attacks={"scattered": stepping(0.7, 0.2)})
        assert found.verdict == OPEN
        assert "supported" not in str(found.numbers()["verdict"])


class TestContours:
    def test_changes_of_a_sphere(self):
        neuron = Neuron(lambda z: z.square().sum(1), (5,))
        x = torch.randn(12, 5, generator=Generator().manual_seed(0), dtype=torch.float64) + 3
        told = compared(neuron, x, 0.5, generator=Generator().manual_seed(0))
        assert float(told["contour"].max()) < 1e-6
        assert float((told["tangent"] - 0.25).abs().max()) < 0.01  # |x + t|^2 - |x|^2, the walk being bent a little
        assert bool((told["gradient"] > told["random"]).all())

    def test_supported_unless_the_walk_leaves_the_contour(self):
        nets = small()
        far = {"net": torch.full((len(nets.x),), 1.0)}
        assert least_along(nets, far).verdict == SUPPORTED

        def uphill(neuron: Neuron, x: Tensor, direction: Tensor, length: float) -> Tensor:
            _, gradient = neuron.value_and_grad(x)
            return x + length * gradient / gradient.norm(dim=1, keepdim=True)

        def sometimes(neuron: Neuron, x: Tensor, direction: Tensor, length: float) -> Tensor:
            end = along_contour(neuron, x, direction, length)
            return torch.where((torch.arange(len(x)) % 5 == 0)[:, None], uphill(neuron, x, direction, length), end)

        assert least_along(nets, far, walker=uphill).verdict == REFUTED
        assert least_along(nets, far, walker=sometimes).verdict == OPEN


class TestTwins:
    def test_the_twin_of_many_cases_has_response_gradient_and_spacing_of_each(self):
        nets = small()
        neuron = nets.of["net"].decision(nets.labels)
        bend = torch.linspace(-1, 2, len(nets.x), dtype=torch.float64)
        other = twin(neuron, nets.x, curvature=bend, slope=torch.inf)
        value, gradient = neuron.value_and_grad(nets.x)
        again, same = other.value_and_grad(nets.x)
        torch.testing.assert_close(again, value)
        torch.testing.assert_close(same, gradient)
        away = nets.x + 0.3 * gradient
        torch.testing.assert_close(other.value(away), neuron.value(away))
        draw = torch.randn(gradient.shape, generator=Generator().manual_seed(1), dtype=torch.float64)
        size = gradient.norm(dim=1, keepdim=True)
        side = draw - (draw * gradient).sum(1, keepdim=True) * gradient / size.square()
        # curvature of a contour along a tangent: minus the second derivative over the gradient
        torch.testing.assert_close(
            -(other.hvp(nets.x, side) * side).sum(1) / (size[:, 0] * side.square().sum(1)), bend, atol=1e-9, rtol=1e-9
        )
