"""Dictionaries: planted ones are found again, trainings survive interruption, and bad input is refused."""

import os

import pytest
import torch
from analytic import normal, uniform
from safetensors.torch import save_file

from isoresponse.models.checkpoint import ProgressBar, fingerprint
from isoresponse.models.controls import learn_autoencoder, learn_ica
from isoresponse.models.dictionary import infer, learn_dictionary, mosaic
from isoresponse.models.lca import LCA

both = pytest.mark.parametrize("rectified", [True, False], ids=["rectified", "signed"])


def unit(columns):
    return columns / columns.norm(dim=0)


def sparse_code(cases, units, active, rectified, generator):
    """Few units at a time, chosen at random, each clearly on."""
    size = uniform(cases, units, low=1, high=2, generator=generator)
    order = torch.rand(cases, units, generator=generator).argsort(1)
    sign = 1 if rectified else torch.where(torch.rand(cases, units, generator=generator) < 0.5, -1.0, 1.0).double()
    return torch.where(order < active, size, 0.0) * sign


def likeness(found, planted, rectified):
    """For each planted element the largest cosine with a found one."""
    cosine = planted.T @ found
    return (cosine if rectified else cosine.abs()).amax(1)


# --- known answers


@pytest.mark.parametrize(("units", "rectified"), [(12, False), (24, True)])
def test_a_planted_dictionary_is_found_up_to_order_and_sign(generator, rectified, units):
    planted = unit(normal(16, units, generator=generator))
    x = sparse_code(2000, units, 2, rectified, generator) @ planted.T
    found = learn_dictionary(x, units, sparsity=0.05, rectified=rectified, steps=450, batch=64)
    assert likeness(found, planted, rectified).min() > 0.995
    assert likeness(planted, found, rectified).min() > 0.99
    torch.testing.assert_close(found.norm(dim=0), torch.ones(units).double())


def test_more_units_than_there_are_causes_still_holds_all_causes(generator):
    planted = unit(normal(8, 10, generator=generator))
    x = sparse_code(1000, 10, 1, True, generator) @ planted.T
    found = learn_dictionary(x, 40, sparsity=0.05, steps=100, batch=128)
    assert found.isfinite().all()
    assert likeness(found, planted, True).min() > 0.99


@both
@pytest.mark.parametrize("units", [5, 8, 20, 80])
def test_codes_are_those_of_the_closed_problem(generator, rectified, units):
    """From fewer units than pixels to ten times as many, and whichever way the inhibition is computed: as LCA."""
    dictionary = unit(normal(8, units, generator=generator))
    x = normal(30, 8, generator=generator)
    rough = infer(x, dictionary, 0.3, rectified)
    exact = LCA(dictionary, sparsity=0.3, rectified=rectified)(x)

    def objective(a):
        return (x - a @ dictionary.T).square().sum(1) / 2 + 0.3 * a.abs().sum(1)

    assert (objective(rough) >= objective(exact) - 1e-9).all()
    assert (objective(rough).mean() - objective(exact).mean()) < 0.01 * objective(exact).mean()
    assert rectified == bool((rough >= 0).all())


def test_each_step_leaves_no_column_to_improve(generator):
    """One unit on its own: its element is the mean of the patches that it answers to, weighed by its answers."""
    x = uniform(40, 5, low=0, high=1, generator=generator)
    order = torch.Generator().manual_seed(0)
    first = x[torch.randperm(40, generator=order)[0]]
    drawn = x[torch.randint(40, (16,), generator=order)]
    code = ((drawn @ first / first.norm()) - 0.1).relu()
    found = learn_dictionary(x, 1, sparsity=0.1, steps=1, batch=16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found[:, 0], unit(code @ drawn), rtol=0, atol=1e-12)


def test_the_objective_falls(generator):
    x = sparse_code(500, 20, 3, True, generator) @ normal(20, 10, generator=generator)
    told = []
    learn_dictionary(x, 20, sparsity=0.3, steps=60, batch=64, on_step=lambda *step: told.append(step))
    assert [done for done, _, _ in told] == list(range(1, 61))
    assert {steps for _, steps, _ in told} == {60}
    assert sum(o for *_, o in told[-10:]) < 0.9 * sum(o for *_, o in told[:10])


def test_it_follows_the_patches(generator):
    """Rotated patches have the rotated dictionary: nothing but their scalar products matters."""
    q, _ = torch.linalg.qr(normal(6, 6, generator=generator))
    x = sparse_code(500, 9, 2, True, generator) @ normal(9, 6, generator=generator)
    one, other = (learn_dictionary(y, 9, sparsity=0.1, steps=10, batch=64) for y in (x, x @ q.T))
    torch.testing.assert_close(other, q @ one, rtol=0, atol=1e-6)


def test_shape_and_dtype_follow_the_patches(generator):
    x = normal(50, 3, 4, generator=generator)
    for dtype in (torch.float32, torch.float64):
        found = learn_dictionary(x.to(dtype), 5, sparsity=0.1, steps=2, batch=16)
        assert (found.shape, found.dtype) == ((12, 5), dtype)


def test_equal_units_part():
    """Most starts have equal columns, which would share every activity; what is missing takes the place of one."""
    axes = torch.eye(6).double().repeat_interleave(torch.tensor([200, 20, 20, 20, 20, 20]), 0)
    found = learn_dictionary(axes, 6, sparsity=0.1, steps=60, batch=64)
    assert likeness(found, torch.eye(6).double(), True).min() > 0.999


# --- interruption


class Interruption(Exception):
    pass


LEARNERS = {
    "dictionary": lambda x, **more: learn_dictionary(x, 12, sparsity=0.3, batch=32, **more),
    "ica": lambda x, **more: learn_ica(x, 12, batch=32, **more),
    "autoencoder": lambda x, **more: torch.cat(
        [*learn_autoencoder(x, 12, sparsity=0.3, batch=32, **more).state_dict().values()][::2]
    ),
}
every_learner = pytest.mark.parametrize("learn", LEARNERS.values(), ids=LEARNERS.keys())


@pytest.fixture
def x(generator):
    return normal(300, 9, generator=generator).float()


def seeded():
    return torch.Generator().manual_seed(5)


@every_learner
@pytest.mark.parametrize("at", [1, 7, 10, 20])
def test_an_interrupted_training_ends_with_the_same_bits(x, tmp_path, learn, at):
    path = tmp_path / "kept" / "state.safetensors"

    def interrupt(done, steps, objective):
        if done == at:
            raise Interruption

    whole = learn(x, steps=20, generator=seeded())
    with pytest.raises(Interruption):
        learn(x, steps=20, generator=seeded(), checkpoint=path, every=5, on_step=interrupt)
    seen = []
    resumed = learn(x, steps=20, generator=seeded(), checkpoint=path, on_step=lambda *told: seen.append(told[0]))
    assert torch.equal(resumed, whole)
    assert seen == list(range(at + 1, 21))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@every_learner
def test_a_killed_training_goes_on_from_its_last_file(x, tmp_path, learn):
    """No farewell this time: the file of step 10 is all there is."""
    path, kept = tmp_path / "state", {}

    def keep(done, steps, objective):
        if done == 13:
            kept["file"] = path.read_bytes()

    whole = learn(x, steps=20, generator=seeded(), checkpoint=path, every=10, on_step=keep)
    path.write_bytes(kept["file"])
    seen = []
    resumed = learn(x, steps=20, generator=seeded(), checkpoint=path, on_step=lambda *told: seen.append(told[0]))
    assert torch.equal(resumed, whole)
    assert seen[0] == 11


@every_learner
def test_a_finished_training_is_read_and_can_be_continued(x, tmp_path, learn):
    path = tmp_path / "state"
    learn(x, steps=10, generator=seeded(), checkpoint=path)
    ten = learn(x, steps=10, generator=seeded(), checkpoint=path, on_step=lambda *told: pytest.fail("again"))
    assert torch.equal(ten, learn(x, steps=10, generator=seeded()))
    assert torch.equal(learn(x, steps=15, generator=seeded(), checkpoint=path), learn(x, steps=15, generator=seeded()))
    with pytest.raises(ValueError, match="has done 15 steps, more than the 12 asked for"):
        learn(x, steps=12, generator=seeded(), checkpoint=path)


def cut(raw):
    return raw[: len(raw) // 2]


def flipped(raw):
    return raw[:-100] + bytes([raw[-100] ^ 1]) + raw[-99:]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, "cannot be read .* delete it to start again"),
        (lambda raw: b"", "cannot be read"),
        (lambda raw: b"not a checkpoint at all, but long enough", "cannot be read"),
        (flipped, "is damaged: its content does not match"),
    ],
    ids=["cut", "empty", "foreign", "one bit"],
)
def test_a_damaged_checkpoint_is_refused_and_left_as_it_is(x, tmp_path, spoil, message):
    path = tmp_path / "state"
    learn_dictionary(x, 12, sparsity=0.3, steps=3, batch=32, checkpoint=path)
    spoilt = spoil(path.read_bytes())
    path.write_bytes(spoilt)
    with pytest.raises(ValueError, match=message):
        learn_dictionary(x, 12, sparsity=0.3, steps=5, batch=32, checkpoint=path)
    assert path.read_bytes() == spoilt


def test_no_flipped_byte_is_missed(x, tmp_path):
    """Header, numbers or tensors: one wrong byte anywhere, and the file is refused by name."""
    path = tmp_path / "state"
    learn_dictionary(x[:, :3], 2, sparsity=0.3, steps=1, batch=8, checkpoint=path)
    raw = path.read_bytes()
    for at in range(0, len(raw), max(1, len(raw) // 60)):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :])
        with pytest.raises(ValueError, match=f"{path}.*(cannot be read|is damaged|not a checkpoint)"):
            learn_dictionary(x[:, :3], 2, sparsity=0.3, steps=2, batch=8, checkpoint=path)


def test_a_single_unit_is_left_alone_by_an_interrupted_step(x, tmp_path, monkeypatch):
    """What a failing step has begun must not reach the file, even where a transpose is no copy."""
    path = tmp_path / "state"
    learn_dictionary(x, 1, sparsity=0.3, steps=3, batch=32, generator=seeded(), checkpoint=path)

    def fail(*_):
        raise Interruption

    with monkeypatch.context() as patched:
        patched.setattr("isoresponse.models.dictionary._replace", fail)
        with pytest.raises(Interruption):
            learn_dictionary(x, 1, sparsity=0.3, steps=9, batch=32, generator=seeded(), checkpoint=path)
    resumed = learn_dictionary(x, 1, sparsity=0.3, steps=9, batch=32, generator=seeded(), checkpoint=path)
    assert torch.equal(resumed, learn_dictionary(x, 1, sparsity=0.3, steps=9, batch=32, generator=seeded()))


def test_the_callers_random_state_is_left_alone_and_the_seed_counts(x):
    before = torch.get_rng_state()
    one, same, other = (
        learn_dictionary(x, 12, sparsity=0.3, steps=4, batch=32, generator=torch.Generator().manual_seed(k))
        for k in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(before, torch.get_rng_state())


def test_the_bar_shows_steps_and_objective(x, tmp_path, capsys):
    path = tmp_path / "state"
    for steps in (5, 8):  # the second training goes on from the first
        learn_dictionary(x, 12, sparsity=0.3, steps=steps, batch=32, checkpoint=path, on_step=ProgressBar("edges"))
        shown = capsys.readouterr().err
        assert "edges" in shown
        assert f"{steps}/{steps}" in shown
        assert "objective=" in shown
    assert "5/8" in shown


def test_a_checkpoint_of_another_training_is_refused(x, tmp_path):
    path = tmp_path / "state"
    learn_dictionary(x, 12, sparsity=0.3, steps=3, batch=32, checkpoint=path)
    with pytest.raises(ValueError, match=r"another training, with sparsity 0.3 \(now 0.2\), units 12 \(now 13\);"):
        learn_dictionary(x, 13, sparsity=0.2, steps=5, batch=32, checkpoint=path)
    with pytest.raises(ValueError, match=f"with patches {fingerprint(x)}"):
        learn_dictionary(x + 1, 12, sparsity=0.3, steps=5, batch=32, checkpoint=path)
    with pytest.raises(ValueError, match=r"with seed 0 \(now 5\)"):
        learn_dictionary(x, 12, sparsity=0.3, steps=5, batch=32, checkpoint=path, generator=seeded())
    save_file({"weight": x}, path)
    with pytest.raises(ValueError, match="is not a checkpoint of this library"):
        learn_dictionary(x, 12, sparsity=0.3, steps=5, batch=32, checkpoint=path)


def test_a_write_that_fails_leaves_the_file_before_it(x, tmp_path, monkeypatch):
    path = tmp_path / "state"
    learn_dictionary(x, 12, sparsity=0.3, steps=3, batch=32, checkpoint=path)
    before = path.read_bytes()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(RuntimeWarning, match="could not be written .no space left"):  # and the training is not lost
        found = learn_dictionary(x, 12, sparsity=0.3, steps=5, batch=32, checkpoint=path)
    assert torch.equal(found, learn_dictionary(x, 12, sparsity=0.3, steps=5, batch=32))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_that_cannot_be_written_is_refused_before_the_first_step(x, tmp_path):
    def never(*_):
        raise AssertionError("a step was taken")

    (tmp_path / "file").write_text("")
    for path, why in ((tmp_path, "it is a folder"), (tmp_path / "file" / "below", "cannot be written")):
        with pytest.raises(ValueError, match=f"checkpoint .*{why}"):
            learn_dictionary(x, 12, sparsity=0.3, steps=3, batch=32, checkpoint=path, on_step=never)


def test_a_training_that_goes_astray_says_so(x):
    with pytest.raises(ValueError, match=r"training has gone astray: the objective of step \d+ is nan"):
        learn_autoencoder(1e17 * x.float(), 12, sparsity=1e17, steps=20, rate=1e20)


# --- refusals


@pytest.mark.parametrize("learn", [learn_dictionary, learn_autoencoder, learn_ica])
def test_what_cannot_be_learnt_from_is_refused(x, learn):
    more = {} if learn is learn_ica else {"sparsity": 0.1}
    with pytest.raises(ValueError, match=f"{learn.__name__} needs float32 or float64 patches"):
        learn(x.long(), 4, **more)
    with pytest.raises(ValueError, match="float32 or float64 patches"):
        learn(x[0], 4, **more)
    with pytest.raises(ValueError, match="float32 or float64 patches"):
        learn(x.half(), 4, **more)
    with pytest.raises(ValueError, match="so large that their squares overflow"):
        learn(1e25 * x.float(), 4, **more)
    broken = x.clone()
    broken[3, 4] = torch.nan
    with pytest.raises(ValueError, match="got 1 of 300 with NaN or infinity"):
        learn(broken, 4, **more)
    for bad in (-0.1, 0.0, float("nan"), float("inf")) if more else ():
        with pytest.raises(ValueError, match="needs a positive sparsity"):
            learn(x, 4, sparsity=bad)
    with pytest.raises(ValueError, match=f"{learn.__name__} needs patches that are not all zero, got 300"):
        learn(0 * x, 4, **more)
    with pytest.raises(ValueError, match="needs a positive units"):
        learn(x, 0, **more)
    with pytest.raises(ValueError, match="needs a positive batch"):
        learn(x, 4, **more, batch=0)
    with pytest.raises(ValueError, match="steps and every of at least one, got steps=0"):
        learn(x, 4, **more, steps=0)


def test_there_must_be_patches_to_start_from(x):
    x[7:] = 0
    with pytest.raises(ValueError, match="got 7 patches that are not zero for 8 units"):
        learn_dictionary(x, 8, sparsity=0.1)


# --- pictures of elements


def test_the_mosaic_shows_each_element_at_its_place(generator):
    dictionary = normal(12, 7, generator=generator)
    picture = mosaic(dictionary, (3, 4), columns=4, gap=2)
    assert picture.shape == (2 * 3 + 2, 4 * 4 + 3 * 2)
    tile = dictionary[:, 5].reshape(3, 4)
    torch.testing.assert_close(picture[5:8, 6:10], tile / tile.abs().max())
    assert picture[3:5].isnan().all()
    assert picture[5:, 18:].isnan().all()
    with pytest.raises(ValueError, match=r"3 x 5 has 15 rows of .* got torch.float64 \(12, 7\)"):
        mosaic(dictionary, (3, 5))
