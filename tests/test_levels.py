"""A level that is not known in one case, as where a model has no answer, is that case's failure and nobody else's."""

from dataclasses import fields
from functools import partial

import pytest
import torch
from torch import Generator, nn

import isoresponse as iso

CASES, LOST = 4, 2
OTHERS = [0, 1, 3]


@pytest.fixture(scope="module")
def asked():
    """A smooth neuron, its module, inputs, and levels a little above the responses."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 16), nn.Softplus(), nn.Linear(16, 1)).double()
        x = torch.randn(CASES, 5, dtype=torch.float64).clamp(-2, 2)
    neuron = iso.Neuron.of(net, unit=0, shape=(5,), box=iso.Box(-3, 3))
    return neuron, net, x, neuron.value(x) + 0.05


def seed():
    return Generator().manual_seed(0)


QUESTIONS = {
    **{f"closest in L{p:g}": partial(lambda p, f, _, x, v: iso.closest_point(f, x, v, norm=p), p) for p in (1.0, 2.0)},
    **{f"tier {k}": partial(lambda k, f, _, x, v: iso.predict_distance(f, x, v, predictor=k), k) for k in range(5)},
    "steepest path": lambda f, _, x, v: iso.gradient_path(f, x, v),
    "factors": lambda f, _, x, v: iso.level_factors(f, x, v, torch.ones_like(x[:, 0])),
    "line mass": lambda f, _, x, v: iso.line_mass(f, x, v, 0.1, generator=seed()),
    "subset mass": lambda f, _, x, v: iso.subset_mass(f, x, v, 0.1, samples=200, generator=seed()),
    "predicted mass": lambda f, _, x, v: iso.predicted_mass(f, x, v, 0.1, generator=seed()),
    "fraction of directions": lambda f, _, x, v: iso.adversarial_fraction(f, x, v, 0.5, generator=seed()),
    "share of the box": lambda f, _, x, v: iso.increasing_share(f, x, level=v, generator=seed()),
    "trace": lambda f, _, x, v: iso.trace_attack(iso.closest_point, f, x, v),
    "certificate": lambda _, net, x, v: iso.certify_level(net, x, v),
}
COUNTED = ("gradients", "forwards", "hvps", "steps")  # with other rounding a bracket may close a pass sooner or later


@pytest.mark.parametrize("question", QUESTIONS)
def test_an_unknown_level_fails_its_own_case(asked, question):
    neuron, net, x, known = asked
    some = known.clone()
    some[LOST] = torch.nan
    ask = QUESTIONS[question]
    told, whole = ask(neuron, net, x, some), ask(neuron, net, x, known)
    assert told.status[LOST] == int(iso.Status.NOT_FINITE)
    for f in fields(told):
        value = getattr(told, f.name)
        if isinstance(value, torch.Tensor) and value.shape[:1] == (CASES,) and f.name not in COUNTED:
            # searches stop within their tolerance, by another rounding at another point of it
            torch.testing.assert_close(
                value[OTHERS], getattr(whole, f.name)[OTHERS], rtol=1e-5, atol=1e-6, equal_nan=True
            )


def test_a_scale_is_proposed_for_the_others(asked):
    neuron, _, x, known = asked
    some = known.clone()
    some[LOST] = torch.nan
    assert iso.propose_scale(neuron, x, some).isnan().tolist() == [k == LOST for k in range(CASES)]
