"""The README's Python examples run as they stand, one after the other."""

import re
from pathlib import Path

import torch

import isoresponse as iso

README = Path(__file__).parents[1] / "README.md"
NEURONS = README.parent / "docs" / "guide" / "neurons.md"


def test_the_python_examples_of_the_readme_run(capsys):
    examples = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 6
    names: dict = {}
    for example in examples:
        exec(compile(example, str(README), "exec"), names)
    printed = capsys.readouterr().out
    assert printed.startswith("Solution(")
    assert "Comparison(spearman=" in printed
    assert isinstance(names["neuron"], iso.Neuron)
    assert names["lifted"].success.any()
    assert names["survey"].curvature.shape == (1, 20)
    assert (names["bent"].error > 0).any()
    assert names["far"].success.any()
    assert names["trace"].cosine.shape[0] == 5
    assert names["shares"].names[0] == "gap"
    assert (names["proved"].lower <= names["found"].distance * (1 + 1e-6)).all()


def test_the_guide_to_the_neurons_runs(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # it writes a picture
    text = NEURONS.read_text(encoding="utf-8").replace("steps=600", "steps=40")
    names: dict = {}
    for example in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(example, str(NEURONS), "exec"), names)
    assert torch.allclose(names["bent"].values[:, 0] * names["radius"], torch.tensor(-1.0), atol=1e-4)
    assert torch.allclose(names["lifted"].distance / names["radius"], torch.tensor(2.0).sqrt() - 1, atol=1e-4)
    control = names["iso"].alignment(names["control"].point - names["some"], names["weights"][names["busiest"]])
    assert torch.allclose(control, torch.ones_like(control))
    assert names["told"].converged.all()
    assert names["adversary"].success.all()
    assert (tmp_path / "neurons.png").stat().st_size > 10_000
    assert (NEURONS.parent / "neurons.png").stat().st_size < 300_000
    assert "Solution(10 of 10 cases" in capsys.readouterr().out
