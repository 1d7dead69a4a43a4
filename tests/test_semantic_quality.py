"""The study of semantic quality, on two networks whose perturbations are known: along pictures, and along noise."""

import pytest
import torch

from isoresponse.classifier import Classifier
from isoresponse.neuron import Box
from isoresponse.studies import semantic_quality
from isoresponse.studies.claims.subjects import Networks
from isoresponse.studies.experiment import HOLDS, write_outcome

SMALL = semantic_quality.Settings(cases=12, budget=40, units=8)
N = 6


@pytest.fixture(scope="module")
def looks():
    """Data in a plane of two smooth pictures; one network sees the plane alone, the other adds noise that means nothing."""
    seed = torch.Generator().manual_seed(0)
    t = torch.arange(N).double() / N
    first, second = (2 * torch.pi * t).cos().expand(N, N), (2 * torch.pi * t).cos()[:, None].expand(N, N)
    pictures = torch.stack([p.flatten() / p.norm() for p in (first, second)])
    noise = torch.randn(N * N, generator=seed, dtype=torch.float64)
    noise = noise / noise.norm()
    code = torch.randn(300, 2, generator=seed, dtype=torch.float64)
    samples = 0.5 + 0.1 * code @ pictures + 0.002 * torch.randn(300, N * N, generator=seed, dtype=torch.float64)
    samples = samples.reshape(-1, 1, N, N)

    def network(weight, name):
        def scores(x):
            drive = (x.flatten(1) - 0.5) @ weight
            return torch.stack([drive, -drive], 1)

        return Classifier(scores, (1, N, N), 2, Box(0.0, 1.0), name)

    sound, odd = network(pictures[0], "sound"), network(pictures[0] + 2 * noise, "odd")
    labels = sound.predict(samples)
    kept = torch.nonzero(odd.predict(samples) == labels).flatten()[:12]
    nets = Networks({"odd": odd, "sound": sound}, samples[kept], labels[kept], "toy", {"odd": 1.0, "sound": 1.0})
    return semantic_quality.looked(nets, samples, pictures.T.repeat(1, 4)[:, :8], SMALL)


def test_what_means_something_is_told_from_noise(looks):
    odd, sound = looks
    for measure in ("local PCA, 10 of 36", "sparse code, 5 of 8"):
        k = sound.quality.measures.index(measure)
        assert float(sound.quality.value[k].median()) > 0.95
        assert float(odd.quality.value[k].median()) < 0.6
    # the odd network's perturbation takes less from the sound one's margin than from its own, and the other way round
    k = sound.quality.measures.index("the other network's margin")
    assert float(odd.quality.value[k].median()) > 0


def test_the_control_is_aligned_with_the_difference_of_meis_whatever_it_means(looks):
    for look in looks:
        k = look.quality.measures.index(semantic_quality.DIFFERENCE)
        assert (look.quality.control[k] > 0.95).all()
        assert (look.quality.gain[k] < 0.05).all()
        assert float(look.quality.chance[k].abs().mean()) < 0.2


def test_what_is_written(looks, tmp_path):
    made = semantic_quality.outcome(looks)
    assert not any("alignment" in c.says and "matched" in c.says for c in made.claims)  # no claim that cannot hold
    numbers = write_outcome(made, tmp_path)
    for name in ("semantic-quality.png", "examples.png", "semantic-quality.csv"):
        assert (tmp_path / "figures" / name).exists()
    assert len(numbers["table"]["rows"]) == 14
    straight = [c for c in made.claims if "steepest path" in c.says]
    assert [c.verdict for c in straight] != [HOLDS, HOLDS]  # a linear network's path does not turn
