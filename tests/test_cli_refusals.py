"""Bad input at the command line: one sentence that says what to do, status 2, nothing left on the disk."""

import sys

import numpy as np
import pytest
import torch


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("digits-mpl", "no model 'digits-mpl': expected one of digits-mlp, digits-cnn"),
        ("own.py", "no model 'own.py'"),
        ("absent.py:net", "no file absent.py"),
        ("own.py:nets", "own.py has no 'nets'; it has "),
        ("own.py:number", "expected a torch.nn.Module or a function that returns one"),
        ("own.py:broken", "calling own.py:broken without arguments failed: RuntimeError: no weights here"),
        ("own.py:leaves", "own.py:leaves"),
        ("own.py:wrong", "own.py:wrong returned a str; expected a torch.nn.Module"),
        ("own.py:unfit", "must keep the case axis first"),
        ("no_such_package:net", "could not import 'no_such_package'"),
        ("json:dumps", "calling json:dumps without arguments failed"),
    ],
)
def test_a_model_that_is_none_is_refused(small, assert_refused, model, message):
    assert_refused(small(model=model), message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("import no_such_package", "No module named 'no_such_package'"),
        ("net = (", "never closed"),
        ("1 / 0", "division by zero"),
        ("import sys; sys.exit(5)", "bad"),
    ],
)
@pytest.mark.parametrize("model", ["bad.py:net", "bad:net"])
def test_code_that_fails_is_refused_with_its_reason(place, small, assert_refused, monkeypatch, content, message, model):
    (place / "bad.py").write_text(content)
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.delitem(sys.modules, "bad", raising=False)
    assert_refused(small(model=model), message)


# --- bad data


def arrays(**changes):
    x = np.full((6, 5), 0.5, dtype=np.float32)
    return {"inputs": x, "labels": np.zeros(6, dtype=np.int64)} | changes


HALF = arrays()["inputs"]
DATA = {
    "no arrays": ({}, "has no array 'inputs' (or images, x); it has none"),
    "other arrays": ({"a": HALF}, "it has a."),
    "no labels": ({"inputs": HALF}, "has no array 'labels'"),
    "other shape": (arrays(inputs=HALF[:, :4]), "the model does not run on inputs of shape (case, 4)"),
    "labels of another length": (arrays(labels=np.zeros(3, int)), "got shapes (6, 5) and (3,)"),
    "no case axis": (arrays(inputs=HALF[0], labels=np.zeros(5, int)), "expected inputs (case, ...)"),
    "labels too large": (arrays(labels=np.full(6, 3)), "labels must lie in 0..2 for this model of 3 classes"),
    "labels below zero": (arrays(labels=np.full(6, -1)), "labels must lie in 0..2"),
    "labels not whole": (arrays(labels=np.zeros(6) + 0.5), "labels must be integers, got float64"),
    "NaN": (arrays(inputs=HALF * np.nan), "must be finite, got NaN or infinity in 6 of 6 cases"),
    "out of the box": (arrays(inputs=HALF * 300), "must lie in the box [0, 1], got values from 150 to 150"),
    "whole numbers": (arrays(inputs=(HALF * 6).astype(np.int32)), "must lie in the box [0, 1], got values from 3 to 3"),
    "text": (arrays(inputs=np.array([["a"]] * 6)), "inputs must be numbers, got <U1"),
    "empty": (arrays(inputs=HALF[:0], labels=np.zeros(0, int)), "holds no cases"),
    "objects": (arrays(inputs=np.array([[None]] * 6)), "is not an .npz file that can be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", DATA)
def test_data_that_do_not_fit_are_refused(place, small, assert_refused, name):
    content, message = DATA[name]
    np.savez(place / "data.npz", **content)
    assert_refused(small(inputs="data.npz"), message)


# numpy leaves a damaged archive open: whoever opens it for numpy closes it
LEFT_OPEN = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


@LEFT_OPEN
@pytest.mark.parametrize("damage", ["absent", "empty", "text", "half", "inside", "npy"])
def test_files_that_are_no_npz_are_refused_by_name(place, small, assert_refused, damage):
    good = (place / "good.npz").read_bytes()
    contents = {
        "empty": b"",
        "text": b"hello",
        "half": good[: len(good) // 2],
        "inside": good[:200] + b"\xff" * 40 + good[240:],
    }
    if damage in contents:
        (place / "data.npz").write_bytes(contents[damage])
    if damage == "npy":
        np.save(place / "single.npy", HALF)
        (place / "single.npy").rename(place / "data.npz")
    assert_refused(small(inputs="data.npz"), "data.npz")


def test_a_model_that_is_wrong_about_all_inputs_is_refused(place, small, assert_refused):
    with np.load(place / "good.npz") as z:
        np.savez(place / "wrong.npz", inputs=z["inputs"], labels=(z["labels"] + 1) % 3)
    assert_refused(small(inputs="wrong.npz"), "classifies none of the 12 inputs as labelled")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--bounds", "1", "0"], "bounds must be two increasing finite numbers, got 1.0 and 0.0"),
        (["--bounds", "0", "nan"], "bounds must be two increasing finite numbers"),
        (["--bounds", "-inf", "inf"], "bounds"),
        (["--cases", "0"], "at least 1, got 0"),
        (["--device", "tpu"], "device must be cpu or cuda, got 'tpu'"),
        (["--threads", "-2"], "threads"),
    ],
)
def test_options_out_of_range_are_refused(small, assert_refused, more, message):
    assert_refused(small(*more), message)


def test_a_missing_gpu_is_said(small, assert_refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert_refused(small("--device", "cuda"), "torch sees no CUDA device; use --device cpu")


def test_a_study_refuses_a_device_that_is_not_there(assert_refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for study in (["study", "neuron-attack", "--quick"], ["claims"]):
        assert_refused([*study, "--out", "report", "--device", "cuda"], "torch sees no CUDA device; use --device cpu")
        assert_refused([*study, "--out", "report", "--device", "tpu"], "device must be cpu or cuda, got 'tpu'")


@pytest.mark.parametrize("inputs", [[], ["--inputs", "good.npz"], ["--inputs", "."]])
def test_mnist_models_need_the_mnist_folder(assert_refused, inputs):
    assert_refused(["report", "--out", "report", "--model", "mnist-mlp", *inputs], "four MNIST files")


# --- where to write


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/nowhere/report", "folder", "."])
def test_a_place_that_cannot_be_written_is_refused_and_untouched(place, small, assert_refused, out):
    (place / "file").write_text("mine")
    (place / "folder").mkdir()
    (place / "folder" / "thesis.tex").write_text("mine")
    assert_refused(small(out=out), "file" if "file" in out else "give")  # and nothing written
    assert (place / "file").read_text() == (place / "folder" / "thesis.tex").read_text() == "mine"


# --- figures and units


@pytest.mark.parametrize("command", ["report", "figures"])
def test_folders_made_on_the_way_are_taken_away_again(assert_refused, small, command):
    if command == "report":
        assert_refused(small(model="nothing", out="new/deep/report"), "no model 'nothing'")
    else:
        assert_refused(["figures", "--out", "new/deep/figures", "--only", "nothing"], "no figure 'nothing'")


def test_an_unknown_figure_is_refused_with_the_nearest_name(assert_refused):
    said = assert_refused(["figures", "--out", "figures", "--only", "trypich"], "no figure 'trypich'")
    assert "Did you mean 'triptych'?" in said


@LEFT_OPEN
@pytest.mark.parametrize("dem", ["good.npz", "absent.npz", "half.npz", "flat.npz", "line.npz"])
def test_a_map_that_is_none_is_refused(place, assert_refused, dem):
    (place / "half.npz").write_bytes((place / "good.npz").read_bytes()[:300])
    np.savez(place / "flat.npz", elevation=np.zeros((7, 7)))
    np.savez(place / "line.npz", elevation=np.arange(7.0))
    messages = {
        "good.npz": "has no array 'elevation'; it has inputs, labels",
        "flat.npz": "flat landscape",
        "line.npz": "at least 4 x 4",
    }
    assert_refused(
        ["figures", "--out", "figures", "--only", "topography", "--dem", place / dem], messages.get(dem, dem)
    )


@pytest.mark.parametrize("shape", ["", "5,x", "0", "-3"])
def test_units_need_the_shape_of_an_input(assert_refused, shape):
    assert_refused(
        ["units", "own.py:net", f"--shape={shape}"],
        "--shape must list the sizes of one input" if shape else "--shape is needed for a model of your own",
    )


def test_units_of_a_shape_that_does_not_fit_are_refused(assert_refused):
    assert_refused(["units", "own.py:net", "--shape", "6"], "does not run on inputs of shape (case, 6)")
