"""The report's certificate: there where the model is a small smooth network, and absent otherwise."""

import json
from dataclasses import replace

import pytest
import torch

from isoresponse.classifier import Classifier
from isoresponse.models import digits as zoo
from isoresponse.models.networks import mlp
from isoresponse.models.training import fit
from isoresponse.neuron import Box
from isoresponse.studies.measure import Settings, measure
from isoresponse.studies.proof import crossed, proof
from isoresponse.studies.report import write_report
from isoresponse.studies.subject import Subject


@pytest.fixture(scope="module")
def smooth():
    """A small tanh network on the digits, measured."""
    data = zoo.digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = mlp((1, 8, 8), (16,), activation=torch.nn.Tanh)
    fit(net, *data.train, epochs=8)
    net = net.eval()
    clf = Classifier.of(net, shape=(1, 8, 8), box=Box(0.0, 1.0))
    subject = Subject(clf, net, *data.test, "tanh", "digits")
    return measure(subject, Settings(cases=44, referee_steps=20))


def test_certified_predicted_and_measured_are_in_the_report(smooth, tmp_path):
    numbers = write_report(smooth, tmp_path)
    proved = numbers["certificate"]
    assert proved["certified"] == 44
    assert proved["contradicted"] == 0
    assert proved["median_certified_over_measured"] > 0.9
    assert proved["interval_cases"] == 44
    assert 0.7 < proved["interval_coverage"] <= 1
    assert (tmp_path / "figures" / "certificate.png").exists()
    assert "none nearer" not in (tmp_path / "index.html").read_text(encoding="utf-8")  # in the picture, not the text
    assert "below which there provably is none" in (tmp_path / "index.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "summary.json").read_text())["certificate"] == proved


def test_intervals_are_learned_from_the_other_half_only(smooth):
    told = smooth.predicted[max(smooth.predicted)]
    odd = smooth.smallest.clone()
    odd[1::2] *= 3
    one, other = crossed(told, smooth.smallest), crossed(told, odd)
    torch.testing.assert_close(one.low[1::2], other.low[1::2])
    assert (other.distance[::2] > 2 * one.distance[::2]).all()
    few = crossed(told, odd.masked_fill(torch.arange(44) > 5, torch.nan))
    assert few.low.isnan().all()


def test_there_is_none_for_a_network_with_kinks_or_a_large_one(study, smooth):
    assert proof(study) is None
    wide = mlp((1, 8, 8), (1100,), activation=torch.nn.Tanh)
    assert proof(replace(smooth, subject=replace(smooth.subject, module=wide))) is None
