"""The command line: what it prints, what it writes, what it loads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from isoresponse import __version__
from isoresponse.studies import gallery

pytest.importorskip("foolbox")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["report", "--help"], []])
def test_help_and_version_do_not_wait_for_torch(arguments):
    code = (
        "import sys; from isoresponse.cli import main\n"
        "try: main()\n"
        "except SystemExit: print('LOADED', *{'torch', 'numpy', 'matplotlib', 'xarray'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED"
    assert (__version__ if arguments == ["--version"] else "Usage") in done.stdout + done.stderr


def test_the_installed_command_answers():
    done = subprocess.run(["isoresponse", "--version"], capture_output=True, text=True, check=True, env=_with_scripts())
    assert done.stdout.strip() == __version__


def _with_scripts():
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["report"], ["report", "--out", "x", "--cases", "many"], ["figures"]]
)
def test_usage_errors_have_status_two(run, place, arguments):
    code, _, err = run(*arguments)
    assert code == 2
    assert "Usage" in err
    assert "Traceback" not in err


def test_a_study_is_written_and_its_verdicts_told(run, place, monkeypatch):
    asked = {}

    def stand_in(name, folder, **settings):
        asked.update(settings, name=name)
        (folder / "index.html").write_text("page", encoding="utf-8")
        claim = {
            "says": "bends outward",
            "verdict": "holds",
            "value": 0.9,
            "interval95": [0.8, 1.0],
            "side": "above",
            "limit": 0.5,
        }
        return {"title": "a title", "claims": [claim]}

    monkeypatch.setattr("isoresponse.studies.paper.run_study", stand_in)
    code, out, err = run("study", "neuron-attack", "--quick", "--seed", "3", "--out", place / "s")
    assert code == 0, err
    assert (asked["name"], asked["quick"], asked["seed"], asked["data"]) == ("neuron-attack", True, 3, None)
    assert (place / "s" / "index.html").exists()
    assert "bends outward" in out
    assert "holds" in out


def test_an_unknown_study_is_refused_and_nothing_is_written(place, assert_refused):
    assert_refused(["study", "neuron-atack", "--out", place / "s"], "Did you mean 'neuron-attack'")
    assert not (place / "s").exists()


def test_figures_are_written_and_told(run, place):
    code, out, err = run("figures", "--out", place / "figs", "--only", "region")
    assert code == 0, err
    assert {p.name for p in (place / "figs").iterdir()} == {"region.png", "region.svg", "figures.json"}
    assert "share of box 0.5" in out
    assert str(place / "figs") in out


def test_a_report_on_ones_own_model_with_vector_inputs(run, place, small):
    code, out, err = run(*small())
    assert code == 0, err
    report = place / "report"
    assert {p.name for p in report.iterdir()} == {"index.html", "summary.json", "results.zarr", "figures"}
    assert {p.name for p in place.iterdir()} - {"__pycache__"} == {"own.py", "good.npz", "report"}
    numbers = json.loads((report / "summary.json").read_text(encoding="utf-8"))
    assert (numbers["model"], numbers["data"], numbers["cases"]) == ("own.py:net", "good.npz", 4)
    assert numbers["accuracy"] == 1.0
    assert str(report / "index.html") in out
    for stage in (
        "load libraries",
        "predict, tier 4",
        "measure, closest adversary",
        "measure, foolbox",
        "draw and write",
    ):
        assert stage in err
    assert "error" not in err


@pytest.fixture
def measured(monkeypatch):
    """Stop a report where measuring would begin, and keep the subject."""
    seen = []

    def stop(found, *_, **__):
        seen.append(found)
        raise ValueError("stopped here")

    monkeypatch.setattr("isoresponse.studies.measure.measure", stop)
    return seen


@pytest.mark.parametrize("kind", ["uint8", "float16", "float64", ">f4", "images and y"])
def test_other_kinds_of_numbers_and_names_are_accepted(place, small, assert_refused, measured, kind):
    with np.load(place / "good.npz") as z:
        x, labels = z["inputs"], z["labels"].astype(np.uint8)
    given = {"uint8": (x * 255).astype(np.uint8), "images and y": x}.get(kind)
    given = x.astype(kind) if given is None else given
    names = ("images", "y") if kind == "images and y" else ("inputs", "labels")
    np.savez(place / "data.npz", **dict(zip(names, (given, labels), strict=True)))
    assert_refused(small(inputs="data.npz"), "stopped here")
    found = measured[0]
    torch.testing.assert_close(found.images, torch.from_numpy(x), rtol=0, atol=4e-3)
    assert found.images.dtype == torch.float32
    assert found.labels.tolist() == labels.tolist()


def test_a_model_file_may_import_its_neighbours(run, place):
    (place / "project").mkdir()
    (place / "project" / "layers_of_mine.py").write_text("import torch\nnet = torch.nn.Linear(5, 3)\n")
    (place / "project" / "model.py").write_text("from layers_of_mine import net\n")
    code, _, err = run("units", place / "project" / "model.py:net", "--shape", "5")
    assert code == 0, err


def test_a_function_that_makes_the_model_and_other_bounds_are_accepted(small, assert_refused, measured):
    assert_refused(small("--bounds", "-1", "2", model="own.py:make"), "stopped here")
    assert (measured[0].classifier.box.lower, measured[0].classifier.box.upper) == (-1.0, 2.0)


def test_debug_shows_where_it_went_wrong(run, small):
    with pytest.raises(ValueError, match="no model 'nothing'"):
        run(*small("--debug", model="nothing"))
    with pytest.raises(ValueError, match="no model 'nothing'"):
        run("--debug", *small(model="nothing"))


def test_an_unforeseen_error_has_status_one_and_names_debug(run, place, monkeypatch):
    monkeypatch.setattr(gallery, "write_gallery", lambda *_, **__: 1 / 0)
    code, _, err = run("figures", "--out", place / "new")
    assert code == 1
    assert "error: ZeroDivisionError: division by zero (run again with --debug" in err
    assert not (place / "new").exists()


def test_an_interrupted_run_says_so(run, place, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(gallery, "write_gallery", interrupt)
    code, _, err = run("figures", "--out", place / "new")
    assert code == 130
    assert "Traceback" not in err
    assert not (place / "new").exists()


def test_units_lists_the_layers_of_a_model(run, place):
    code, out, _ = run("units", "own.py:net", "--shape", "5")
    assert code == 0
    for text in ("(8,)", "(3,)", "layer='1', unit=4", "(output)"):
        assert text in out
    assert "(16, 8, 8)" in run("units", "digits-cnn")[1]
    assert "(1, 28, 28)" in run("units", "mnist-mlp")[1]
