"""Beyond images: sounds, a table, texts, in units of their own; and verdicts that follow what is found."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Generator, nn

from isoresponse.classifier import Classifier
from isoresponse.fraction import adversarial_fraction
from isoresponse.masking import masking_alarms
from isoresponse.neuron import Box
from isoresponse.solve import closest_point
from isoresponse.studies import beyond_images
from isoresponse.studies.beyond_data import (
    SAMPLES,
    WIDTH,
    WORDS,
    Domain,
    decibels,
    deviations,
    sounds,
    table,
    texts,
    tones,
)
from isoresponse.studies.beyond_images import Looked, look, outcome
from isoresponse.studies.experiment import FAILS, HOLDS, OPEN
from isoresponse.trace import trace_attack


def linear(cases: int = 12, n: int = 5) -> Domain:
    """Two classes told apart by the first of n quantities: the distance to the boundary is its size."""
    x = torch.randn(60 + cases, n, generator=Generator().manual_seed(0))
    x[:, 0] = torch.where(x[:, 0] < 0, x[:, 0] - 0.5, x[:, 0] + 0.5)
    labels = (x[:, 0] > 0).long()
    net = nn.Linear(n, 2, bias=False)
    net.weight.data = torch.tensor([[-3.0], [3.0]]) * torch.eye(1, n)
    return Domain("toy", "made here", (x[cases:], labels[cases:]), (x[:cases], labels[:cases]), net, Box(), deviations,
                  "units, r.m.s.", 0.5, "half a unit", 0)  # fmt: skip


class TestUnits:
    def test_decibels_and_deviations(self):
        x = torch.full((2, 1, 8), 0.5)
        change = torch.stack([x[0] / 10, x[1] / 100])
        torch.testing.assert_close(decibels(change, x), torch.tensor([-20.0, -40.0]))
        torch.testing.assert_close(
            deviations(torch.tensor([[3.0, -4.0]]), torch.zeros(1, 2)), torch.tensor([12.5]).sqrt()
        )

    def test_tones_are_those_of_the_key(self):
        x, labels = tones(40, generator=Generator().manual_seed(0))
        assert x.shape == (40, 1, SAMPLES)
        assert float(x.abs().max()) <= 1
        spectrum = torch.fft.rfft(x[:, 0]).abs()
        high = (torch.fft.rfftfreq(SAMPLES, 1 / 4000) > 1100)[None]
        loudest = (spectrum * high).argmax(1) * 4000 / SAMPLES
        column = torch.tensor([1336.0, *([1209.0, 1336.0, 1477.0] * 3)])[labels]
        assert float(((loudest - column).abs() < 5).double().mean()) > 0.9

    def test_domains_have_their_own_shapes_and_boxes(self):
        made = [sounds(None, count=30, epochs=1), table(epochs=1), texts(epochs=1, passages=120)]
        assert [tuple(d.test[0].shape[1:]) for d in made] == [(1, SAMPLES), (30,), (WORDS, WIDTH)]
        assert [d.box.upper for d in made] == [1.0, float("inf"), float("inf")]
        for d in made:
            with torch.no_grad():
                assert d.net(d.test[0][:3]).shape[0] == 3
            assert float(d.size(d.test[0][:3] * 0.1, d.test[0][:3]).max()) < np.inf

    def test_recordings_that_are_not_there_are_said_so(self, tmp_path):
        with pytest.raises(
            FileNotFoundError, match="has no folder fsdd; give --data a folder with one, or leave it out"
        ):
            sounds(tmp_path, count=1, epochs=1)
        (tmp_path / "fsdd").mkdir()
        with pytest.raises(FileNotFoundError, match="is not a file with the arrays wave, offset, label and take"):
            sounds(tmp_path, count=1, epochs=1)
        np.savez(
            tmp_path / "fsdd" / "fsdd_0_24.npz", wave=np.arange(20_000, dtype=np.int16), offset=np.array([0, 9000, 20_000]),
            label=np.array([3, 5]), take=np.array([1, 9]),
        )  # fmt: skip
        made = sounds(tmp_path, count=1, epochs=1)
        assert made.test[1].tolist() == [3]
        assert made.train[0].shape == (1, 1, SAMPLES)


class TestLook:
    def test_a_linear_decision_is_known(self):
        domain = linear()
        seen = look(domain, cases=12, samples=100)
        far = domain.test[0][:, 0].double().abs()
        torch.testing.assert_close(seen.distance, far, rtol=1e-6, atol=0)
        torch.testing.assert_close(seen.first_order, far, rtol=1e-6, atol=0)
        torch.testing.assert_close(seen.size, far / 5**0.5, rtol=1e-6, atol=0)
        torch.testing.assert_close(seen.share, torch.full_like(far, 0.5), atol=1e-9, rtol=0)
        assert float(seen.bending.abs().max()) < 1e-6
        assert float(seen.cosine.min()) > 0.999

    def test_a_network_that_decides_nothing_right_is_refused(self):
        domain = linear()
        wrong = replace(domain, test=(domain.test[0], 1 - domain.test[1]))
        with pytest.raises(ValueError, match="no test input of the toy is decided right; train longer"):
            look(wrong, cases=5)


@cache
def looked() -> Looked:
    return look(linear(20), cases=20, samples=20)


class TestVerdicts:
    @staticmethod
    def seen(**fields: torch.Tensor) -> Looked:
        return replace(looked(), **fields)

    def verdicts(self, seen: Looked) -> list[str]:
        return [c.verdict for c in outcome({"toy": seen}).claims]

    def test_planted_findings_turn_each_round(self):
        ramp = torch.linspace(0.01, 0.1, 20, dtype=torch.float64)
        mixed = ramp[torch.randperm(20, generator=Generator().manual_seed(1))]
        good = self.seen(size=ramp, distance=ramp, first_order=2 * ramp, share=0.5 - ramp)
        bad = self.seen(size=5 + ramp, distance=ramp, first_order=ramp.flip(0), share=0.5 + ramp, cosine=ramp)
        noise = self.seen(size=0.4 + 2 * mixed, distance=ramp, first_order=ramp + 0.1 * mixed, share=0.445 + mixed)
        assert self.verdicts(good) == [HOLDS] * 4
        assert self.verdicts(bad) == [FAILS] * 4
        undecided = self.verdicts(noise)
        assert (undecided[0], undecided[3]) == (OPEN, OPEN)
        few = replace(good, **{k: getattr(good, k)[:4] for k in ("size", "distance", "first_order", "share", "cosine")})
        assert self.verdicts(few) == [OPEN] * 4


def test_the_whole_study(tmp_path, monkeypatch):
    from isoresponse.studies.folder import finished_folder
    from isoresponse.studies.paper import run_study

    small = beyond_images.Settings(
        cases=6, samples=20, sounds=60, sound_epochs=1, table_epochs=5, passages=120, text_epochs=2
    )
    monkeypatch.setattr(beyond_images, "QUICK", small)
    with finished_folder(tmp_path / "out") as folder:
        told = run_study("beyond-images", folder, quick=True)
    assert len(told["claims"]) == 12
    assert "paper" not in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("shape", [(30,), (12, 16), (1, 64)])
def test_nothing_asks_for_pixels(shape):
    net = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 12), nn.GELU(), nn.Linear(12, 3)).double()
    for weight in net.parameters():
        weight.data = torch.randn(weight.shape, generator=Generator().manual_seed(1), dtype=torch.float64)
    made = Classifier.of(net, shape=shape)
    x = 5 * torch.randn(6, *shape, generator=Generator().manual_seed(0), dtype=torch.float64)
    labels = made.predict(x)
    far = [made.closest_adversary(x, labels, norm=norm, budget=30).distance for norm in (1, 2, torch.inf)]
    assert all(bool((d > 0).all()) for d in far)
    assert bool((far[0] >= far[1]).all() and (far[1] >= far[2]).all())
    assert len(masking_alarms(made, x, labels, generator=Generator().manual_seed(0)).smallest) == 6
    decision = made.decision(labels)
    told = adversarial_fraction(decision, x, 0.0, far[1], samples=20, generator=Generator().manual_seed(0))
    assert bool(told.predicted.isfinite().all())
    assert bool(trace_attack(closest_point, decision, x, 0.0).solution.success.all())
