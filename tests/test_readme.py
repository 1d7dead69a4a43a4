"""The README's Python example runs as it stands."""

import re
from pathlib import Path

import isoresponse as iso

README = Path(__file__).parents[1] / "README.md"


def test_the_python_example_of_the_readme_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    names: dict = {}
    exec(compile(example, str(README), "exec"), names)
    printed = capsys.readouterr().out
    assert printed.startswith("Solution(")
    assert "Comparison(spearman=" in printed
    assert isinstance(names["neuron"], iso.Neuron)
    assert names["lifted"].success.any()
