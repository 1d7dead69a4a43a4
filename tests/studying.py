"""Fixtures of the tests of models, studies and command line (imported by conftest): cache, trained subject, command."""

import contextlib
import importlib.util
import sys
import warnings

import numpy as np
import pytest
import torch

from isoresponse.models import digits as zoo
from isoresponse.studies.measure import Settings, measure
from isoresponse.studies.subject import load_module, load_subject

with warnings.catch_warnings(), contextlib.suppress(ImportError):  # foolbox imports what SciPy will drop
    warnings.simplefilter("ignore")
    import foolbox  # noqa: F401


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """The user's cache of trained models stays untouched."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISORESPONSE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def digits(cache):
    return zoo.digits()


@pytest.fixture(scope="session")
def subject(cache):
    """The built-in MLP on the built-in digits."""
    return load_subject("digits-mlp")


@pytest.fixture(scope="session")
def study(subject):
    """Twelve of its digits, measured with a short referee."""
    return measure(subject, Settings(cases=12, seed=3, referee_steps=20))


MODELS = """
import sys
import torch
torch.manual_seed(1)
net = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.GELU(), torch.nn.Linear(8, 3))
number = 3
def make():
    return net
def broken():
    raise RuntimeError("no weights here")
def leaves():
    sys.exit(3)
def wrong():
    return "text"
class Unfit(torch.nn.Module):
    def forward(self, x):
        return x.sum()
unfit = Unfit()
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a file of models and good data for them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(MODELS)
    net = load_module("own.py:net")
    x = np.random.default_rng(0).random((12, 5), dtype=np.float32)
    labels = net(torch.from_numpy(x)).argmax(1).numpy()
    np.savez(tmp_path / "good.npz", inputs=x, labels=labels)
    sys.modules.pop("own", None)
    return tmp_path


@pytest.fixture(scope="session")
def main():
    """The entry point as users get it: in a test run a type checker sits round every function, and refuses typer."""
    spec = importlib.util.find_spec("isoresponse.cli")
    plain = importlib.util.spec_from_file_location("isoresponse.cli", spec.origin)
    module = importlib.util.module_from_spec(plain)
    plain.loader.exec_module(module)
    return module.main


@pytest.fixture
def run(main, monkeypatch, capsys):
    """`isoresponse ARGUMENTS` in this process: exit status, standard output, standard error without progress bars."""

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["isoresponse", *map(str, arguments)])
        monkeypatch.delitem(sys.modules, "own", raising=False)
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return code, out, err.replace("\r", "\n")

    return command


@pytest.fixture
def small(place):
    """The arguments of a small report on the model of `place`."""

    def arguments(*more, model="own.py:net", inputs="good.npz", out="report"):
        return ("report", "--out", place / out, "--model", model, "--inputs", place / inputs, "--cases", 4, *more)

    return arguments


@pytest.fixture
def assert_refused(place, run):
    """Runs a command and asserts the contract of bad input: status 2, one sentence, no traceback, nothing on the disk."""

    def command(arguments, message):
        before = sorted(p for p in place.rglob("*") if "__pycache__" not in p.parts)
        code, _, err = run(*arguments)
        sentences = [line for line in err.splitlines() if line.startswith("error:")]
        assert code == 2, err
        assert len(sentences) == 1, err
        assert message in sentences[0]
        assert "Traceback" not in err
        assert sorted(p for p in place.rglob("*") if "__pycache__" not in p.parts) == before
        return sentences[0]

    return command
