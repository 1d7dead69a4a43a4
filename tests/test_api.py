"""The public names: one list in three places, each documented, results that cannot be changed, a light import."""

import ast
import dataclasses
import importlib
import inspect
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import isoresponse as iso

SOURCE = ast.parse(Path(iso.__file__).read_text(encoding="utf-8"))


def typed():
    """Names and homes in the TYPE_CHECKING block."""
    (block,) = [n for n in SOURCE.body if isinstance(n, ast.If)]
    return {a.name: n.module.removeprefix("isoresponse.") for n in block.body for a in n.names}


def test_the_three_lists_of_public_names_are_one():
    homes = {name: home for home, names in iso._HOME.items() for name in names}
    assert homes == typed()
    assert sorted(homes) == iso.__all__


@pytest.mark.parametrize("name", iso.__all__)
def test_a_public_name_is_there_and_says_what_it_is(name):
    thing = getattr(iso, name)
    assert thing is getattr(importlib.import_module(f"isoresponse.{typed()[name]}"), name)
    text = inspect.getdoc(thing)
    assert text
    assert text.splitlines()[0].strip()
    assert not text.startswith(f"{name}(")  # the docstring dataclasses write themselves
    assert name in dir(iso)


@pytest.mark.parametrize("name", [n for n in iso.__all__ if dataclasses.is_dataclass(getattr(iso, n))])
def test_public_dataclasses_are_frozen(name):
    assert getattr(iso, name).__dataclass_params__.frozen


def test_public_methods_are_documented():
    for name in iso.__all__:
        thing = getattr(iso, name)
        if not inspect.isclass(thing):
            continue
        for method, value in vars(thing).items():
            if not method.startswith("_") and (inspect.isfunction(value) or isinstance(value, property | classmethod)):
                assert inspect.getdoc(value), f"{name}.{method} has no docstring"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'isoresponse' has no attribute 'nothing'"):
        _ = iso.nothing


def test_importing_the_package_does_not_load_torch():
    heavy = {"torch", "numpy", "scipy", "matplotlib"}
    code = f"import sys, isoresponse; print(isoresponse.__version__, *{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [iso.__version__]


def test_the_version_is_that_of_the_distribution():
    assert version("isoresponse") == iso.__version__
