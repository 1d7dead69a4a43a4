"""What is computed on a CUDA device is what is computed on the CPU: same answers, same status, and it stays there.

Every question is asked twice in float64, of the same network and inputs. Without a CUDA device these tests are skipped.
"""

from dataclasses import fields, is_dataclass

import pytest
import torch
from torch import Generator, nn

import isoresponse as iso
from isoresponse.models.lca import LCA

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CASES = 6


def seed():
    """Draws are made on the CPU, so that both devices see the same numbers."""
    return Generator().manual_seed(0)


class Asked:
    """A small convolutional network, its inputs, and the questions about them, on one device."""

    def __init__(self, device):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            net = nn.Sequential(
                nn.Conv2d(1, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(4 * 36, 12), nn.ReLU(), nn.Linear(12, 4)
            )
            self.x = torch.rand(CASES, 1, 8, 8, dtype=torch.float64).to(device)
        self.net = net.double().to(device)
        self.labels = self.net(self.x).argmax(1)
        self.classifier = iso.Classifier.of(self.net, shape=(1, 8, 8), box=iso.Box(0, 1))
        self.neuron = iso.Neuron.of(self.net[:4], unit=3, shape=(1, 8, 8), box=iso.Box(0, 1))
        self.level = self.neuron.value(self.x) + 0.05

    def jet(self):
        return iso.exact_jet(self.neuron, self.x)


QUESTIONS = {
    "value and gradient": lambda a: a.neuron.value_and_grad(a.x),
    "local geometry": lambda a: iso.local_geometry(a.jet()),
    "principal curvatures": lambda a: iso.principal_curvatures(a.jet(), 2, generator=seed()).values,
    "mean curvature": lambda a: iso.mean_curvature(a.jet(), generator=seed()),
    "secant jet": lambda a: iso.local_geometry(iso.secant_jet(a.neuron, a.x, scale=0.2)),
    "sections": lambda a: iso.section_curvature(
        a.neuron, a.x, iso.plane_basis(a.neuron.value_and_grad(a.x)[1], a.x), jet=iso.exact_jet
    ),
    "closest point": lambda a: iso.closest_point(a.neuron, a.x, a.level),
    "closest adversary, L2": lambda a: a.classifier.closest_adversary(a.x, a.labels),
    "closest adversary, L-infinity": lambda a: a.classifier.closest_adversary(a.x, a.labels, norm=float("inf")),
    "closest adversary, L1": lambda a: a.classifier.closest_adversary(a.x, a.labels, norm=1.0),
    "several starts": lambda a: a.classifier.closest_adversary(a.x, a.labels, starts=2, budget=60, generator=seed()),
    **{f"tier {k}": lambda a, k=k: a.classifier.predict_distance(a.x, a.labels, predictor=k) for k in range(5)},
    "many scales": lambda a: a.classifier.predict_distance(a.x, a.labels, predictor=iso.ManyScales()),
    "lattice": lambda a: iso.on_lattice(
        a.classifier.decision(a.labels), a.x, a.classifier.closest_adversary(a.x, a.labels), 0.0, levels=256
    ),
    "subspace": lambda a: iso.adversarial_subspace(a.classifier.decision(a.labels), a.x, 0.0, dims=2),
    "most exciting input": lambda a: iso.most_exciting_input(a.neuron, norm=1.0, center=a.x[0], generator=seed()),
    "iso walk": lambda a: iso.iso_walk(a.neuron, a.x, torch.ones_like(a.x), step=0.1, knots=5),
    "sampled mass": lambda a: iso.sampled_mass(a.neuron, a.x, a.level, 0.1, samples=200, generator=seed()),
    "predicted mass": lambda a: iso.predicted_mass(a.neuron, a.x, a.level, 0.1, generator=seed()),
    "factors": lambda a: iso.adversary_factors(
        a.classifier, a.x, a.labels, a.classifier.closest_adversary(a.x, a.labels).distance
    ),
    "masking alarms": lambda a: iso.masking_alarms(
        a.classifier, a.x, a.labels, a.classifier.closest_adversary(a.x, a.labels), generator=seed()
    ),
    "sparse code": lambda a: LCA(a.net[3].weight.T[:64, :12].contiguous(), sparsity=0.01).to(a.x)(a.x.flatten(1)),
}


def tensors(answer):
    """Every floating or integer tensor in an answer, by name."""
    if isinstance(answer, torch.Tensor):
        return {"": answer}
    if isinstance(answer, tuple):
        return {str(k): v for k, v in enumerate(answer)}
    assert is_dataclass(answer)
    return {f.name: v for f in fields(answer) if isinstance(v := getattr(answer, f.name), torch.Tensor)}


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_cuda_device_answers_as_the_cpu_does(question):
    ask = QUESTIONS[question]
    here, there = tensors(ask(Asked("cpu"))), tensors(ask(Asked("cuda")))
    assert here
    assert here.keys() == there.keys()
    for name, value in there.items():
        assert value.is_cuda, name
        # other rounding, so a bracket may close a few passes sooner or later: counts are only about the same
        counted = name in ("gradients", "forwards", "hvps", "steps")
        rtol, atol = (0.25, 3.0) if counted else (1e-5, 1e-7)
        torch.testing.assert_close(
            *(v.double() for v in (value.cpu(), here[name])),
            rtol=rtol, atol=atol, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}",
        )  # fmt: skip
