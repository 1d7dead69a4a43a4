"""The README's Python examples run as they stand, one after the other."""

import re
from pathlib import Path

import isoresponse as iso

README = Path(__file__).parents[1] / "README.md"


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
