"""Elements as Gabor functions: rendered ones are fitted back, edges are told from noise, blobs and gratings."""

import os
from math import pi
from pathlib import Path

import numpy as np
import pytest
import torch
from analytic import normal

from isoresponse.models.dictionary import learn_dictionary
from isoresponse.models.natural import patches
from isoresponse.models.receptive_fields import fit_gabors
from isoresponse.models.visual_cortex import gabor

DATA = Path(os.environ.get("ISORESPONSE_DATA") or Path(__file__).parents[2] / "shared" / "data")
SIZE = (16, 16)


def columns(*tiles):
    return torch.stack([t.flatten() for t in tiles], 1)


def elongated(center, frequency, orientation, spread, phase):
    """A Gabor function from numbers, written down anew; `spread` is across and along the bars."""
    row, column = torch.meshgrid(*[torch.arange(16).double()] * 2, indexing="ij")
    x, y = column - center[1], center[0] - row  # y upwards
    along = x * np.cos(orientation) + y * np.sin(orientation)
    across = x * np.sin(orientation) - y * np.cos(orientation)
    envelope = torch.exp(-(across**2) / 2 / spread[0] ** 2 - along**2 / 2 / spread[1] ** 2)
    return envelope * torch.cos(2 * pi * frequency * across - phase)


def apart(a, b, period):
    return abs((float(a) - b + period / 2) % period - period / 2)


ELONGATED = [
    ((7.3, 8.1), 0.2, 0.3, (1.8, 2.9), 0.4),
    ((4.0, 11.5), 0.15, 1.5, (2.2, 2.5), 1.3),
    ((10.2, 6.6), 0.3, 2.8, (1.5, 2.0), 4.2),
    ((8.0, 5.0), 0.25, 1.0, (2.0, 3.0), 3.0),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gabors_are_fitted_with_their_parameters(dtype):
    found = fit_gabors(columns(*(elongated(*case) for case in ELONGATED)).to(dtype), SIZE)
    assert found.explained.min() > 0.9999
    assert found.explained.dtype == dtype
    assert found.edges().all()
    for k, (center, frequency, orientation, spread, phase) in enumerate(ELONGATED):
        torch.testing.assert_close(found.center[k], torch.tensor(center, dtype=dtype), rtol=0, atol=0.05)
        torch.testing.assert_close(found.spread[k], torch.tensor(spread, dtype=dtype), rtol=0.05, atol=0)
        assert float(found.frequency[k]) == pytest.approx(frequency, rel=0.03)
        assert apart(found.orientation[k], orientation, pi) < 0.02
        assert apart(found.phase[k], phase, 2 * pi) < 0.05


def test_the_filters_of_the_visual_cortex_are_fitted_back():
    """One convention for both: orientation anticlockwise from horizontal, phase to the right or down."""
    cases = [
        {"wavelength": w, "orientation": o, "phase": p, "width": 0.6 * w, "center": c}
        for w, p, c in ((4.0, 0.5, (7.2, 8.4)), (5.0, 3.9, (9.0, 6.3)))
        for o in (0.0, 0.4, pi / 4, 1.3, pi / 2, 2.0, 2.9)
    ]
    found = fit_gabors(columns(*(gabor(SIZE, **case, dtype=torch.float64) for case in cases)), SIZE)
    assert found.explained.min() > 0.999
    assert found.orientation.min() >= 0
    assert found.orientation.max() <= pi
    for k, case in enumerate(cases):
        assert apart(found.orientation[k], case["orientation"], pi) < 0.02
        torch.testing.assert_close(found.center[k], torch.tensor(case["center"]).double(), rtol=0, atol=0.05)
        torch.testing.assert_close(found.spread[k], torch.full((2,), case["width"]).double(), rtol=0.05, atol=0)
        assert 1 / float(found.frequency[k]) == pytest.approx(case["wavelength"], rel=0.03)
        away = apart(found.orientation[k], case["orientation"], 2 * pi) > pi / 2  # pi for 0: phase runs up, not down
        assert apart(found.phase[k] * (-1 if away else 1), case["phase"], 2 * pi) < 0.05
        rendered = gabor(SIZE, **case, dtype=torch.float64)
        torch.testing.assert_close(found.fitted[k], rendered, rtol=0, atol=0.02 * float(rendered.abs().max()))


def test_the_fit_turns_with_the_picture():
    """A quarter turn anticlockwise, as displayed, adds a right angle; a mirror image runs the other way."""
    tile = elongated(*ELONGATED[0])
    plain, turned, mirrored = fit_gabors(columns(tile, tile.rot90(), tile.flip(1)), SIZE).orientation
    assert apart(turned, float(plain) + pi / 2, pi) < 0.01
    assert apart(mirrored, -float(plain), pi) < 0.01


def test_the_fit_does_not_depend_on_scale_or_neighbours():
    tiles = columns(*(elongated(*case) for case in ELONGATED[:2]))
    together, alone, scaled = fit_gabors(tiles, SIZE), fit_gabors(tiles[:, 1:2], SIZE), fit_gabors(7 * tiles, SIZE)
    for name in ("explained", "center", "spread", "orientation", "frequency", "phase", "fitted"):
        torch.testing.assert_close(getattr(alone, name)[0], getattr(together, name)[1], rtol=0, atol=1e-6)
        torch.testing.assert_close(getattr(scaled, name), getattr(together, name), rtol=0, atol=1e-6)


def test_noise_blobs_waves_and_nothing_are_no_edges(generator):
    noise = normal(256, 30, generator=generator)
    blob = elongated((8, 7), 0.0, 0.0, (1.5, 1.5), 0.0)
    wave = elongated((8, 7), 0.2, 0.6, (30, 30), 0.0)
    found = fit_gabors(torch.cat([noise, columns(blob, wave, 0 * wave)], 1), SIZE)
    assert not found.edges().any()
    assert found.explained[:30].max() < 0.3
    assert found.explained[-1].isnan()
    assert found.explained[30] > 0.99


def test_a_shape_that_does_not_fit_is_refused(generator):
    with pytest.raises(ValueError, match=r"8 x 9 has 72 rows of .* got torch.float64 \(64, 3\)"):
        fit_gabors(normal(64, 3, generator=generator), (8, 9))


def test_natural_images_give_oriented_localised_edges():
    path = DATA / "natural_images" / "olshausen_field_whitened.npz"
    if not path.exists():
        pytest.skip(f"no {path}: these pictures are not part of the repository (issue 5); ISORESPONSE_DATA says where")
    with np.load(path) as stored:
        pictures = torch.from_numpy(stored["images"][:4])
    x = patches(pictures, 8, 20_000)
    learnt = learn_dictionary(x, 40, sparsity=0.5, steps=400, batch=64)
    start = learn_dictionary(x, 40, sparsity=0.5, steps=1, batch=64)
    fits = [fit_gabors(d, (8, 8)) for d in (learnt, start)]
    alike = [float((fit.explained > 0.75).double().mean()) for fit in fits]
    assert alike[0] > 0.85 > 0.25 > alike[1]
    edges = [float(fit.edges(explained=0.75).double().mean()) for fit in fits]
    assert edges[0] > 0.05 > edges[1]  # elements of 8 x 8 pixels hardly hold one
