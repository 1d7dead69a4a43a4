"""The controls: ICA separates, the autoencoder codes, and no unit of theirs competes."""

import pytest
import torch
from analytic import normal, uniform
from test_dictionary import likeness, sparse_code

from isoresponse.models.controls import Autoencoder, learn_autoencoder, learn_ica


@pytest.mark.parametrize("units", [6, 4])
def test_ica_separates_sources_that_were_mixed(generator, units):
    """Each filter answers to one source: the filters are rows of the mixing's inverse."""
    mixing = normal(6, 6, generator=generator) + 3 * torch.eye(6).double()
    source = normal(4000, 6, generator=generator).sign() * uniform(4000, 6, low=1e-9, high=1, generator=generator).log()
    found = learn_ica(7 + source @ mixing.T, units, kept=1.0, steps=100, batch=4000)
    unmixing = torch.linalg.inv(mixing).T
    assert likeness(unmixing / unmixing.norm(dim=0), found, False).min() > 0.98
    apart = (source @ (mixing.T @ found)).T.corrcoef() - torch.eye(units)
    assert apart.abs().max() < 0.05
    torch.testing.assert_close(found.norm(dim=0), torch.ones(units).double())


def test_more_filters_than_pixels_see_every_direction_alike(generator):
    """Twenty filters for six sphered sources: nearly a tight frame, each source found several times."""
    source = normal(4000, 6, generator=generator).sign() * uniform(4000, 6, low=1e-9, high=1, generator=generator).log()
    x = source - source.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / len(x))).T
    told = []
    found = learn_ica(x, 20, kept=1.0, steps=40, batch=4000, on_step=lambda *step: told.append(step[2]))
    torch.testing.assert_close(found @ found.T, 20 / 6 * torch.eye(6).double(), rtol=0, atol=1)
    assert found.abs().amax(0).min() > 0.98
    assert told[-1] < told[0]


def test_ica_leaves_out_what_hardly_varies(generator):
    """Three of six directions are nearly empty: no filter points there."""
    x = normal(500, 6, generator=generator) * torch.tensor([1, 1, 1, 1e-3, 1e-3, 0]).double()
    assert learn_ica(x, 9, steps=20, batch=64)[3:].abs().max() < 1e-3
    assert learn_ica(x, 9, kept=1.0, steps=20, batch=64)[3:5].abs().max() > 0.5
    with pytest.raises(ValueError, match=r"share of the variance in \(0, 1\], got kept=0"):
        learn_ica(x, 4, kept=0.0)
    with pytest.raises(ValueError, match="learn_ica needs patches that vary, got 500 equal ones"):
        learn_ica(torch.ones_like(x), 4)


def test_the_autoencoder_finds_sources_that_do_not_overlap(generator):
    planted, _ = torch.linalg.qr(normal(8, 8, generator=generator))
    x = sparse_code(4000, 8, 2, True, generator) @ planted.T
    found = learn_autoencoder(x, 16, sparsity=0.05, steps=1000, rate=1e-2)
    assert likeness(found.decoder, planted, True).min() > 0.97  # one pass does not tell causes fully apart
    assert (found.decode(found(x)) - x).square().mean() < 0.01 * x.square().mean()


def test_units_of_the_autoencoder_are_pointwise(generator):
    """Inputs that differ across a unit's filter only have the same activity, and images may have any shape."""
    net = Autoencoder(*(normal(*s, generator=generator) for s in ((12, 5), (5,), (12, 5))))
    x, v = normal(7, 3, 4, generator=generator), normal(7, 12, generator=generator)
    w = net.encoder[:, 2] / net.encoder[:, 2].norm()
    across = (v - (v @ w)[:, None] * w).reshape(7, 3, 4)
    torch.testing.assert_close(net(x + across)[:, 2], net(x)[:, 2], rtol=0, atol=1e-12)
    assert (net(x) >= 0).all()
    with pytest.raises(ValueError, match="encoder and decoder"):
        Autoencoder(torch.ones(3, 2), torch.ones(3), torch.ones(3, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("units", [4, 12, 60])
def test_shapes_and_dtypes_follow_the_patches(generator, dtype, units):
    """A third to five times as many units as pixels; elements have norm 1, filters of the autoencoder any."""
    x = normal(50, 3, 4, generator=generator).to(dtype)
    filters = learn_ica(x, units, steps=3, batch=16)
    net = learn_autoencoder(x, units, sparsity=0.1, steps=3, batch=16)
    one = torch.ones(units, dtype=dtype)
    assert filters.shape == net.encoder.shape == (12, units)
    torch.testing.assert_close(filters.norm(dim=0), one)
    torch.testing.assert_close(net.decoder.norm(dim=0), one)
    assert net.bias.shape == (units,)


def test_more_sparsity_leaves_less_activity(generator):
    x = sparse_code(500, 12, 2, True, generator) @ normal(12, 9, generator=generator)
    active = [
        float((learn_autoencoder(x, 18, sparsity=s, steps=150, rate=1e-2)(x) > 0).double().mean())
        for s in (0.01, 0.3, 1.0)
    ]
    assert active[0] > active[1] > active[2] > 0


def test_the_first_step_is_that_of_adam(generator):
    """After one step every number has moved by the learning rate, against the sign of its slope."""
    x = normal(40, 6, generator=generator)
    start, moved = (
        learn_autoencoder(x, 5, sparsity=0.1, steps=1, batch=16, rate=rate).encoder for rate in (1e-12, 1e-3)
    )
    torch.testing.assert_close((moved - start).abs(), torch.full_like(start, 1e-3), rtol=1e-3, atol=0)


def test_a_rate_is_positive_and_belongs_to_the_training(generator, tmp_path):
    x = normal(40, 6, generator=generator)
    with pytest.raises(ValueError, match="learn_autoencoder needs a positive rate, got rate=0"):
        learn_autoencoder(x, 4, sparsity=0.1, rate=0.0)
    path = tmp_path / "state"
    learn_autoencoder(x, 4, sparsity=0.1, steps=2, batch=8, checkpoint=path)
    with pytest.raises(ValueError, match=r"another training, with rate 0.005 \(now 0.01\)"):
        learn_autoencoder(x, 4, sparsity=0.1, steps=3, batch=8, rate=0.01, checkpoint=path)
