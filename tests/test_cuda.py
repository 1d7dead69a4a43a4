"""What is computed on a CUDA device is what is computed on the CPU: same answers, same status, and it stays there.

Every question is asked twice in float64, of the same network and inputs. Without a CUDA device a stand-in is asked, which knows
where tensors are and nothing else.
"""

from dataclasses import fields, is_dataclass

import elsewhere
import pytest
import torch
from torch import Generator, nn

import isoresponse as iso
from isoresponse.models.lca import LCA

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
            self.dense = nn.Sequential(nn.Linear(12, 8), nn.Softplus(), nn.Linear(8, 3)).double().to(device)
            self.x = torch.rand(CASES, 1, 8, 8, dtype=torch.float64).to(device)
            self.codes = self.x.flatten(1)[:, :12]
        self.net = net.double().to(device)
        self.labels = self.net(self.x).argmax(1)
        self.classifier = iso.Classifier.of(self.net, shape=(1, 8, 8), box=iso.Box(0, 1))
        self.neuron = iso.Neuron.of(self.net[:4], unit=3, shape=(1, 8, 8), box=iso.Box(0, 1))
        self.level = self.neuron.value(self.x) + 0.05

    def jet(self):
        return iso.exact_jet(self.neuron, self.x)

    def up(self):
        return 0.1 * self.neuron.value_and_grad(self.x)[1]


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
    "subspace": lambda a: iso.adversarial_subspace(a.neuron, a.x, a.level, dims=2, budget=30),
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
    "krylov jet": lambda a: iso.local_geometry(iso.krylov_jet(a.neuron, a.x, displacement=a.up())),
    "chord jet": lambda a: iso.local_geometry(iso.chord_jet(a.neuron, a.x, scale=0.2, generator=seed())),
    "smoothed jet": lambda a: iso.local_geometry(
        iso.smoothed_jet(a.neuron, a.x, scale=0.1, samples=200, generator=seed())
    ),
    "curvature spectrum": lambda a: iso.curvature_spectrum(a.jet(), probes=4, steps=8, generator=seed()),
    "proposed scale": lambda a: iso.propose_scale(a.neuron, a.x, a.level),
    "steepest path": lambda a: iso.gradient_path(a.neuron, a.x, a.level, knots=5),
    "spacing on the way": lambda a: iso.spacing_profile(a.neuron, iso.straight_way(a.x, 0.5 * a.x)),
    "greedy path": lambda a: iso.greedy_against_closest(a.neuron, a.x, a.level, starts=2, generator=seed()),
    "local against global": lambda a: iso.local_against_global(
        a.classifier, a.x, a.labels, budget=30, starts=2, generator=seed()
    ),
    "line mass": lambda a: iso.line_mass(a.neuron, a.x, a.level, 0.1, lines=20, generator=seed()),
    "subset mass": lambda a: iso.subset_mass(a.neuron, a.x, a.level, 0.05, samples=100, most=3, generator=seed()),
    "joint mass": lambda a: iso.predicted_joint_mass(
        [a.neuron, a.classifier.decision(a.labels)], a.x, torch.stack([a.level, a.level - 9], 1), 0.1, generator=seed()
    ),
    "fraction of directions": lambda a: iso.adversarial_fraction(
        a.neuron, a.x, a.level, 1.0, probes=4, steps=4, samples=200, generator=seed()
    ),
    "share of the box": lambda a: iso.increasing_share(a.neuron, a.x, samples=200, generator=seed()),
    "certified": lambda a: iso.certify_decision(a.dense, a.codes, a.dense(a.codes).argmax(1)),
    "matched control": lambda a: iso.pointwise_control(a.neuron, a.x, a.level),
    "quality": lambda a: iso.compare_quality(
        {
            "alignment": lambda d: iso.alignment(d, a.x[0]),
            "manifold": lambda d: iso.on_manifold_share(d, a.x, a.x, neighbours=4, dims=2),
            "coded": lambda d: iso.coded_share(d, torch.eye(64).to(a.x), active=3),
            "low": iso.low_frequency_share,
        },
        a.up(),
        a.x,
        generator=seed(),
    ),
    "trace": lambda a: iso.trace_attack(iso.closest_point, a.neuron, a.x, a.level),
    "planes": lambda a: iso.survey_planes(
        [a.neuron], a.x[:1], {"others": a.x[None, 1:4]}, grid=iso.SurveyGrid(reach=1.0, size=11)
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
def test_all_of_it_stays_on_the_device_of_the_input(question, monkeypatch):
    ask = QUESTIONS[question]
    here = tensors(ask(Asked("cpu")))
    with elsewhere.pretend(monkeypatch):
        there = tensors(ask(Asked("cuda")))
    assert here
    assert here.keys() == there.keys()
    for name, value in there.items():
        assert isinstance(value, elsewhere.Elsewhere), f"{name} has come back to the CPU"
        torch.testing.assert_close(elsewhere.back(value), here[name], rtol=0, atol=0, equal_nan=True)


def test_the_stand_in_device_refuses_to_be_mixed(monkeypatch):
    with elsewhere.pretend(monkeypatch):
        there = torch.ones(3, device="cuda")
        assert there.is_cuda
        assert (there + 1).device.type == "cuda"
        with pytest.raises(RuntimeError, match="tensors on two devices"):
            there + torch.ones(3)
        with pytest.raises(TypeError, match=r"use Tensor\.cpu"):
            there.numpy()
        assert torch.equal(there.cpu() + torch.ones(3), torch.full((3,), 2.0))
        assert torch.ones(3).to(there).is_cuda


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
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
