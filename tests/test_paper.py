"""The experiments of the paper: known answers, claims that come out the other way, and what is written."""

import json
import math
from dataclasses import fields

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from isoresponse.classifier import Classifier
from isoresponse.models.basic import Linear, LinearNonlinear
from isoresponse.models.visual_cortex import gabor
from isoresponse.neuron import Box
from isoresponse.records import read_store
from isoresponse.studies import (
    curvature_histograms,
    materials,
    natural_selectivity,
    network_attack,
    network_results,
    neuron_attack,
    neuron_results,
    orientation_selectivity,
    paper,
)
from isoresponse.studies.experiment import Claim, Effect, Outcome, Table, bootstrap, share, write_outcome
from isoresponse.studies.figures import new_figure
from isoresponse.studies.folder import finished_folder

NAN = float("nan")


@pytest.fixture(scope="module")
def dictionary():
    """Twice as many random elements as pixels."""
    draw = torch.randn((16, 32), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return draw / draw.norm(dim=0)


@pytest.fixture(scope="module")
def wide():
    """Four times as many, of which the first half are those of `dictionary`."""
    draw = torch.randn((16, 64), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return draw / draw.norm(dim=0)


# --- effects and claims


def test_a_bootstrap_covers_the_mean_as_often_as_it_says():
    inside = 0
    for k in range(200):
        sample = np.random.default_rng(k).normal(size=40)
        found = bootstrap(np.mean, sample, seed=k, resamples=300)
        inside += found.low < 0 < found.high
    assert 0.9 < inside / 200 <= 0.98


def test_paired_samples_are_drawn_together_and_lose_a_case_together():
    random = np.random.default_rng(0)
    size = random.lognormal(2.0, size=50)
    one, other = size, 2 * size
    one[3] = NAN

    def ratio(a, b):
        return b.mean() / a.mean()

    together = bootstrap(ratio, one, other, paired=True)
    apart = bootstrap(ratio, one, other)
    assert (together.low, together.value, together.high) == pytest.approx((2.0, 2.0, 2.0))
    assert together.count == 49
    assert apart.high - apart.low > 0.5


def test_too_few_observations_have_no_interval_and_decide_nothing():
    found = bootstrap(np.mean, [1.0, 1.0, 1.0])
    assert found.value == 1.0
    assert math.isnan(found.low)
    assert Claim("it is above zero", "the mean", found, 0.0).verdict == "not decided"
    assert bootstrap(np.mean, []).count == 0
    with pytest.raises(ValueError, match="of one length if paired, got lengths"):
        bootstrap(np.mean, [1.0], [1.0, 2.0], paired=True)


def test_shares_of_many_planes_are_surer_than_of_one_but_never_certain():
    one = share([1.0, 0.9, 0.95, 1.0] * 6, each=1)
    many = share([1.0, 0.9, 0.95, 1.0] * 6, each=40)
    assert one.value == many.value
    assert one.low < many.low < one.value < many.high < 1.0
    assert share([1.0] * 24, each=1000).low < 0.9
    assert math.isnan(share([1.0, NAN]).low)


@pytest.mark.parametrize(
    ("low", "high", "side", "verdict"),
    [
        (1.1, 1.5, "above", "holds"), (0.5, 0.9, "above", "fails"), (0.9, 1.1, "above", "not decided"),
        (1.1, 1.5, "below", "fails"), (0.5, 0.9, "below", "holds"), (NAN, NAN, "below", "not decided"),
    ],
)  # fmt: skip
def test_a_verdict_needs_the_whole_interval(low, high, side, verdict):
    claim = Claim("x", "y", Effect(1.0, low, high, 20), 1.0, side)
    assert claim.verdict == verdict
    assert Claim("x", "y", Effect(1.0, low, high, 20), 1.0, side, doubt="masked").verdict == "not decided"


def test_a_table_is_written_in_full_and_shown_in_short():
    table = Table(("name", "value"), (("a", 1 / 3), ("b, c", None), ("d", NAN)))
    assert table.csv() == 'name,value\na,0.3333333333333333\n"b, c",\nd,\n'
    assert table.markdown().splitlines()[2:] == ["| a | 0.333 |", "| b, c | – |", "| d | – |"]
    with pytest.raises(ValueError, match="every row needs 2 cells"):
        Table(("name", "value"), (("a",),))


def an_outcome(name="curvature-histograms"):
    figure = new_figure(2, 2)
    figure.subplots().plot([0, 1])
    dataset = xr.Dataset({"v": ("case", [1.0, 2.0], {"units": "1"})})
    claim = Claim("one < two & more", "mean", Effect(2.0, NAN, NAN, 2), 1.0)
    return Outcome(name, "A title", (claim,), Table(("a",), ((1.0,),)), {name: (figure, "What it shows.")}, dataset,
                   ("Another thing is done.",), {"seed": 0}, ("A note.",), {"extra": NAN})  # fmt: skip


def test_everything_is_written_and_may_be_written_again(tmp_path):
    for _ in range(2):  # a folder of ours is replaced
        with finished_folder(tmp_path / "out") as folder:
            write_outcome(an_outcome(), folder)
    out = tmp_path / "out"
    summary = json.loads((out / "summary.json").read_text(), parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
    assert summary["claims"][0]["interval95"] == [None, None]
    assert summary["claims"][0]["verdict"] == "not decided"
    assert summary["extra"] is None
    assert summary["provenance"]["settings"] == {"seed": 0}
    assert sorted(p.suffix for p in (out / "figures").iterdir()) == [".csv", ".md", ".png", ".svg"]
    assert read_store(out / "results.zarr").v.values.tolist() == [1.0, 2.0]
    page = (out / "index.html").read_text()
    assert "one &lt; two &amp; more" in page
    assert "http" not in page.replace("http-equiv", "")
    for words in ("not decided", "Another thing is done.", "A note.", "What it shows.", "data:image/png;base64,"):
        assert words in page


# --- the index and the materials


def test_verdicts_are_printed(tmp_path, capsys):
    with finished_folder(tmp_path / "out") as folder:
        numbers = write_outcome(an_outcome(), folder)
    paper.claim_table(numbers, tmp_path / "out")
    printed = capsys.readouterr().out
    for words in ("A title", "not decided", "above 1", "– to –"):
        assert words in printed


def test_every_study_of_the_index_is_there():
    for name in paper.STUDIES:
        assert name in paper.__doc__
        module = __import__(paper.module_of(name), fromlist=["study"])
        assert callable(module.study)
        assert name == module.NAME
        assert "--quick" in module.__doc__


def test_an_unknown_study_is_refused_with_what_there_is(tmp_path):
    with pytest.raises(ValueError, match=r"no study 'neuron-atack'; there are .*Did you mean 'neuron-attack'\?"):
        paper.run_study("neuron-atack", tmp_path)


def test_missing_data_is_said_in_a_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing is fetched, give --data the path of one that is there"):
        materials.natural_patches(tmp_path / "none", 8, 10)
    with pytest.raises(FileNotFoundError, match="has neither natural_images/olshausen_field_whitened"):
        materials.natural_patches(tmp_path, 8, 10)
    with pytest.raises(FileNotFoundError, match="neither a folder mnist nor a folder cifar10"):
        materials.labelled_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing is fetched"):
        materials.labelled_images(tmp_path / "none")
    with pytest.raises(ValueError, match="overcompleteness must be positive, got 0"):
        materials.units_of(0, 10)


def test_without_a_folder_scikit_learns_pictures_are_taken_and_named():
    found = materials.natural_patches(None, 8, 500)
    assert found.x.shape == (500, 8, 8)
    assert found.name == "two photographs of scikit-learn, whitened"
    assert found.norm == pytest.approx(float(found.x.flatten(1).norm(dim=1).mean()))
    assert list(materials.labelled_images(None)) == ["digits"]


def test_a_dictionary_is_learnt_once(cache):
    x = torch.randn((300, 4, 4), generator=torch.Generator().manual_seed(0))
    first = materials.trained_dictionary(x, 8, sparsity=0.5, steps=5)
    (kept,) = (cache / "studies").glob("dictionary-8-0.5-5-256-0-*.safetensors")
    changed = kept.stat().st_mtime_ns
    assert torch.equal(materials.trained_dictionary(x, 8, sparsity=0.5, steps=5), first)
    assert kept.stat().st_mtime_ns == changed
    assert first.dtype == torch.float64


# --- curvature histograms

SMALL = curvature_histograms.Settings(
    size=4, overcompleteness=(2, 4), sparsity=0.2, patches=2000, steps=30, neurons=5, comparison=2, random=2, grid=10,
)  # fmt: skip


def bending(name, module, weights, overcompleteness, kind):
    table = curvature_histograms.measure(name, module, weights, SMALL, unit=2.0)
    return table.assign_coords(overcompleteness=("model", [float(overcompleteness)]), kind=("model", [kind]))


@pytest.fixture(scope="module")
def bent(dictionary, wide):
    parts = []
    for o, weights in ((2, dictionary), (4, wide)):
        for kind, module in curvature_histograms.models(weights, 0.2).items():
            parts.append(bending(f"{kind} {o}x", module, weights, o, kind))
    return xr.concat(parts, "model", combine_attrs="override")


@pytest.mark.parametrize("kind", ["linear", "relu", "sigmoid"])
def test_pointwise_units_have_exactly_flat_contours(dictionary, kind):
    filters = dictionary.T.contiguous()
    module = {
        "linear": Linear(filters), "relu": LinearNonlinear(filters, torch.relu, bias=-0.2),
        "sigmoid": LinearNonlinear(filters, torch.sigmoid),
    }[kind]  # fmt: skip
    found = bending(kind, module, dictionary, 2, "pointwise")
    assert found.curvature.shape == (1, 5, 6)
    assert float(abs(found.curvature).max()) < 1e-12
    assert float(abs(found.curvature_finer).max()) < 1e-12
    assert float(abs(found.iso_response).max()) < (1e-12 if kind != "sigmoid" else 1e-9)


def test_lca_and_pointwise_units_respond_alike_along_the_weight(dictionary):
    lca, pointwise = curvature_histograms.models(dictionary, 0.2).values()
    x = 3.0 * dictionary.T
    torch.testing.assert_close(lca(x).diagonal(), pointwise(x).diagonal())


def verdicts(claims, words):
    return [c.verdict for c in claims if words in c.says]


def test_a_planted_counter_example_flips_the_verdicts(bent):
    """Contours bent inward instead of outward, and less in the larger dictionary; a pointwise unit that bends."""
    made = curvature_histograms.claims(bent)
    assert "holds" in verdicts(made, "exactly flat")
    assert "fails" not in verdicts(made, "exactly flat")
    size = bent.iso_response.where(bent.kind == "LCA")
    planted = bent.copy(deep=True)
    ones = xr.ones_like(size)
    spread = xr.DataArray(np.linspace(0.8, 1.2, bent.sizes["neuron"]), dims="neuron")
    weaker = ones * (3.0 - 0.5 * bent.overcompleteness) * spread
    for key in ("curvature", "iso_response", "attenuation"):
        planted[key] = xr.where(bent.kind == "LCA", -weaker, 0.1 * weaker)
    made = curvature_histograms.claims(planted)
    for words in (
        "almost all bending is exo-origin (curvature",
        "almost all bending is exo-origin (iso",
        "exactly flat",
    ):
        assert set(verdicts(made, words)) == {"fails"}
    # inward bending that is weaker in the larger dictionary: the ratio of two negative numbers is below one
    assert set(verdicts(made, "grows with overcompleteness")) == {"fails"}
    outward = planted.assign(
        {k: abs(planted[k]) * planted.overcompleteness**2 for k in ("curvature", "iso_response", "attenuation")}
    )
    assert set(verdicts(curvature_histograms.claims(outward), "grows with overcompleteness")) == {"holds"}


def test_the_other_half_of_a_plane_is_the_same_plane_turned_round(bent):
    half = bent.family.values == curvature_histograms.OTHER_HALF
    there = bent.family.values == "comparison"
    lca = np.asarray(bent.kind == "LCA")
    one, other = (bent.isel(model=lca, plane=np.flatnonzero(h)) for h in (there, half))
    np.testing.assert_allclose(one.curvature.values, other.curvature.values, rtol=1e-6, atol=1e-9)
    assert float(abs(one.iso_response.values - other.iso_response.values).max()) > 1e-3


def test_an_inward_bent_neuron_is_called_endo_origin(dictionary):
    class Inward(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("weights", dictionary)

        def forward(self, x):
            along = x @ self.weights
            return along + 0.02 * (x.square().sum(1, keepdim=True) - along.square())

    found = bending("LCA 2x", Inward(), dictionary, 2, "LCA")
    assert (found.curvature < 0).all()
    made = curvature_histograms.claims(found)
    assert set(verdicts(made, "almost all bending is exo-origin (curvature)")) == {"fails"}


def test_the_histograms_say_what_they_show(bent, dictionary, wide):
    examples = [(f"{o}x", curvature_histograms.models(w, 0.2), w) for o, w in ((2, dictionary), (4, wide))]
    found = curvature_histograms.outcome(bent, examples, SMALL, unit=2.0)
    for figure, caption in found.figures.values():
        assert caption
        assert all(ax.get_xlabel() for ax in figure.axes)
    assert len(found.table.rows) == 4 * 3
    assert {c.says.split(":")[0] for c in found.claims} >= {"LCA 2x", "pointwise 4x"}


# --- network attack

FEW = network_attack.Settings(cases=20, step=0.02, steps=300, budget=20, longer=60, published_steps=20)


def linear_classifier(weights, scale, name):
    net = nn.Linear(*weights.shape[::-1], bias=False).double()
    net.weight.data = scale * weights
    return Classifier.of(net, shape=(weights.shape[1],), box=Box(0.0, 1.0), name=name)


@pytest.fixture(scope="module")
def noisy():
    """Inputs near the middle of the box in three noisy classes, and the weights that tell them apart."""
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn((3, 12), generator=generator, dtype=torch.float64)
    x = 0.5 + 0.15 * (torch.rand((400, 12), generator=generator, dtype=torch.float64) - 0.5)
    scores = (x - 0.5) @ (6 * weights).T
    scores = scores - torch.log(-torch.log(torch.rand(scores.shape, generator=generator, dtype=torch.float64)))
    return weights - weights.mean(0), (x, scores.argmax(1))


def attacked(noisy, lca, front=None):
    weights, test = noisy
    nets = {"MLP": linear_classifier(weights, 6.0, "MLP"), "LCA": lca}
    return network_attack.attack(nets | (front or {}), test, FEW)


def said(dataset, words):
    (found,) = [c for c in network_results.claims(dataset) if words in c.says]
    return found


def test_the_smallest_distance_is_the_closed_form_one(noisy):
    weights, (x, _) = noisy
    found = attacked(noisy, linear_classifier(weights, 6.0, "LCA")).sel(condition="images", model="MLP")
    index, label = torch.as_tensor(found["index"].values), torch.as_tensor(found.label.values)
    scores = x[index] @ weights.T
    gap = scores.gather(1, label[:, None]) - scores
    apart = (weights[label][:, None] - weights).norm(dim=2)
    closest = (gap / apart).scatter(1, label[:, None], torch.inf).amin(1)
    np.testing.assert_allclose(found.smallest.values, closest.numpy(), rtol=1e-3)


def test_scores_on_another_scale_fool_the_papers_protocol_and_no_other(noisy):
    """The same decisions with scores a third as large: nothing but confidence differs."""
    found = attacked(noisy, linear_classifier(noisy[0], 2.0, "LCA"))
    assert said(found, "(the paper's protocol").verdict == "holds"
    assert said(found, "(the paper's protocol").effect.value > 1.5
    assert said(found, "makes the LCA look more robust").verdict == "holds"
    assert said(found, "no confidence asked for").effect.value == pytest.approx(1.0, abs=0.1)
    assert said(found, "scores calibrated").effect.value == pytest.approx(1.0, abs=0.1)
    assert said(found, "smallest L2 perturbation of the LCA").effect.value == pytest.approx(1.0, abs=1e-3)


def test_verdicts_follow_the_distances_and_alarms_forbid_them(noisy):
    found = attacked(noisy, linear_classifier(noisy[0], 6.0, "LCA"))
    words = "smallest L2 perturbation of the LCA"
    spread = np.linspace(0.8, 1.2, found.sizes["case"])
    for factor, verdict in ((3.0, "holds"), (0.3, "fails")):
        planted = found.copy(deep=True)
        planted["smallest"].loc[{"model": "LCA"}] = factor * spread * planted.smallest.sel(model="MLP")
        planted["msd"].loc[{"model": "LCA"}] = (factor * spread) ** 2 * planted.msd.sel(model="MLP")
        assert said(planted, words).verdict == verdict
        assert said(planted, "(the paper's protocol").verdict == verdict
        planted["alarm_raised"][:] = False
        planted["alarm_raised"].loc[{"model": "LCA" if factor > 1 else "MLP", "alarm": "vanishing"}] = True
        assert said(planted, words).verdict == "not decided"
        assert "vanishing" in said(planted, words).doubt
    short = found.copy(deep=True)
    short["reached"][:] = False
    assert "that of the last step allowed" in said(short, "(the paper's protocol").doubt


def test_the_attack_refuses_networks_that_know_nothing(noisy):
    with pytest.raises(ValueError, match="no image of images is classified right by all of MLP, LCA; train longer"):
        attacked(
            (noisy[0], (noisy[1][0], torch.full_like(noisy[1][1], 1))),
            linear_classifier(torch.zeros(3, 12).double(), 1.0, "LCA"),
        )


def test_the_network_study_on_the_built_in_digits(tmp_path, monkeypatch):
    tiny = network_attack.Settings(
        units=(8,), layers=(2,), dictionary_steps=5, train=400, epochs=8, head_epochs=8, cases=2, step=0.05, steps=20,
        budget=6, longer=18, published_steps=5,
    )  # fmt: skip
    monkeypatch.setattr(network_attack, "QUICK", tiny)
    summary = paper.run_study("network-attack", tmp_path, quick=True)
    assert {row[1] for row in summary["table"]["rows"]} == {"MLP", "LCA", "pointwise front end"}
    found = read_store(tmp_path / "results.zarr")
    assert found.smallest.shape == (1, 3, 2)
    assert bool((found.smallest <= found.distance.min("search") + 1e-9).all())


# --- orientation selectivity


def test_tuning_of_known_curves():
    angle = torch.arange(16, dtype=torch.float64) * (torch.pi / 16)
    one = torch.zeros(16, dtype=torch.float64)
    one[5] = 2.0
    cosine = 1 + torch.cos(2 * (angle - angle[3]))  # circular variance 1/2, half-width 45 degrees, index 1
    found = orientation_selectivity.described(torch.stack([one, torch.ones_like(one), 0 * one, cosine]), angle)
    np.testing.assert_allclose(found.circular_variance, [0, 1, 1, 0.5], atol=1e-12)
    np.testing.assert_allclose(found.orientation_index, [1, 0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(found.half_width, [0.5 * 180 / 16, 90, 90, 45], atol=1e-9)
    assert found.silent.values.tolist() == [False, False, True, False]


def test_a_gabor_unit_is_tuned_to_its_own_orientation_and_frequency():
    weights = torch.stack([
        gabor((16, 16), wavelength=5.0, orientation=k * torch.pi / 8, width=3.0, dtype=torch.float64).flatten() for k in range(8)
    ], 1)  # fmt: skip
    torch.testing.assert_close(
        orientation_selectivity.peak_frequency(weights), torch.full((8,), 0.2).double(), atol=0.02, rtol=0
    )
    found = orientation_selectivity.tuning(
        "linear", Linear(weights.T.contiguous()), weights, orientation_selectivity.Settings(), length=5.0
    )
    best = found.orientation.values[found.curve.isel(model=0).argmax("orientation")]
    np.testing.assert_allclose(best, np.arange(8) * 22.5)
    assert (found.circular_variance < 0.5).all()


def test_orientation_verdicts_follow_the_numbers():
    def tuned(center):
        spread = center + np.linspace(-0.1, 0.1, 30)
        values = {"circular_variance": spread, "half_width": 90 * spread, "orientation_index": 1 - spread}
        return xr.Dataset({k: ("unit", v) for k, v in values.items()})

    names = [orientation_selectivity.SPARSE, orientation_selectivity.LINEAR, orientation_selectivity.POINTWISE]
    for centers, verdict in (((0.2, 0.5, 0.5), "holds"), ((0.5, 0.2, 0.2), "fails")):
        planted = xr.concat([tuned(c).expand_dims(model=[n]) for c, n in zip(centers, names, strict=True)], "model")
        assert {c.verdict for c in orientation_selectivity.claims(planted)} == {verdict}
    same = xr.concat([tuned(0.3).expand_dims(model=[n]) for n in names[:2]], "model")
    assert {c.verdict for c in orientation_selectivity.claims(same)} == {"not decided"}


# --- natural selectivity


@pytest.fixture(scope="module")
def pictured():
    """Elements with structure, and patches made of a few of them each."""
    generator = torch.Generator().manual_seed(2)
    weights = torch.stack([
        gabor((6, 6), wavelength=3.0 + k % 3, orientation=k * torch.pi / 12, phase=float(k), dtype=torch.float64).flatten()
        for k in range(24)
    ], 1)  # fmt: skip
    code = torch.rand((400, 24), generator=generator, dtype=torch.float64)
    code = torch.where(torch.rand(code.shape, generator=generator) < 0.1, 4 * code, 0.0)
    return weights, (code @ weights.T).reshape(-1, 6, 6)


def test_counts_and_angles_are_those_of_the_definition(pictured):
    weights, patches = pictured
    found = natural_selectivity.excitation({"linear": Linear(weights.T.contiguous())}, weights, patches)
    drive = patches.flatten(1) @ weights
    np.testing.assert_array_equal(found["count"].values[0], (drive > 0.5 * drive.amax(0)).sum(0).numpy())
    own = natural_selectivity.excitation(
        {"linear": Linear(weights.T.contiguous())}, weights, weights.T.reshape(-1, 6, 6)
    )
    assert float(own.angle.min()) >= 0
    alone = natural_selectivity.excitation(
        {"linear": Linear(weights.T[:1].contiguous())}, weights[:, :1], 3 * weights.T[:1].reshape(-1, 6, 6)
    )
    assert float(alone.angle[0, 0]) == pytest.approx(0.0, abs=1e-5)
    assert float(alone["count"][0, 0]) == 1


def test_a_unit_that_is_never_excited_is_left_out(pictured):
    weights, patches = pictured
    deaf = LinearNonlinear(weights.T.contiguous(), torch.relu, bias=-1e3)
    found = natural_selectivity.excitation({"LCA": deaf, "linear": Linear(weights.T.contiguous())}, weights, patches)
    assert found["count"].sel(model="LCA").isnull().all()
    claims = natural_selectivity.claims(found.expand_dims(overcompleteness=[2.0]))
    assert {c.verdict for c in claims} == {"not decided"}


def test_natural_verdicts_follow_the_numbers(pictured):
    weights, patches = pictured
    units = natural_selectivity.models(weights, 0.3)
    found = natural_selectivity.excitation(units, weights, patches).expand_dims(overcompleteness=[2.0])
    spread = xr.DataArray(np.linspace(0.9, 1.1, 24), dims="unit")
    for size, verdict in ((0.5, "holds"), (2.0, "fails")):
        planted = found.copy(deep=True)
        for key in ("count", "angle"):
            planted[key] = xr.where(found.model == "LCA", 20 * size * spread, 20.0).expand_dims(overcompleteness=[2.0])
        assert {c.verdict for c in natural_selectivity.claims(planted)} == {verdict}
    said = natural_selectivity.outcome(found, natural_selectivity.QUICK)
    assert [row[1] for row in said.table.rows] == ["LCA", "pointwise", "linear"]
    drawn = natural_selectivity.patch_figure(units, weights, patches, found, 6)
    assert len(drawn.axes) == 4 * 13


# --- neuron attack

PATHS = neuron_attack.Settings(size=6, neurons=5, starts=1, gain=0.2, knots=4, mei_starts=1)


@pytest.fixture(scope="module")
def toy():
    return neuron_attack.toy()


@pytest.fixture
def told_toy(toy):
    return lambda: toy


def test_the_toy_path_is_the_one_that_geometry_gives(toy):
    """At 45 degrees down to where the second element falls silent, then along the weight."""
    found, example = toy
    silent = neuron_attack.TOY_SPARSITY * (2**0.5 - 1)  # height at which 0.05 / sqrt(2) + y / sqrt(2) reaches 0.05
    end = example.points["LCA"][-1]
    torch.testing.assert_close(end, torch.tensor([0.25, silent]).double(), atol=2e-4, rtol=0)
    torch.testing.assert_close(example.points["pointwise"][-1], torch.tensor([0.25, 0.05]).double())
    assert float(found.off_axis.sel(model="LCA")[-1]) == pytest.approx(silent / 0.05, abs=4e-3)
    np.testing.assert_allclose(found.off_axis.sel(model="pointwise"), 1.0, atol=1e-12)
    assert float(found.change_angle.sel(model="pointwise")[-1]) == pytest.approx(0.0, abs=1e-5)


def walked(units, weights, patches, toy):
    table, examples = neuron_attack.real_paths(units, weights, patches.flatten(1), PATHS, unit=2.0)
    toy_table, toy_example = toy
    return xr.merge([table, toy_table.rename({v: f"toy_{v}" for v in toy_table.data_vars})], join="outer"), {
        "toy": toy_example,
        **examples,
    }


@pytest.fixture(scope="module")
def paths(pictured, toy):
    weights, patches = pictured
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neuron_attack, "MEI_STEPS", 10)
        return walked(neuron_attack.models(weights, 0.2), weights, patches, toy)


def test_paths_of_pointwise_units_keep_what_is_not_along_the_weight(paths):
    found, examples = paths
    assert found.off_axis.shape == (5, 2, 2, 4)
    assert found.family.values.tolist() == ["near the weight", "natural patches"]
    np.testing.assert_allclose(found.input_angle.sel(model="LCA")[:, 0, 0], np.rad2deg(np.arctan(0.5)), rtol=1e-6)
    assert (found.mei_gain >= 1).all()
    np.testing.assert_allclose(found.mei_gain.sel(model="pointwise"), 1.0, atol=1e-6)
    straight = found.off_axis.sel(model="pointwise").values
    np.testing.assert_allclose(straight[np.isfinite(straight)], 1.0, atol=1e-9)
    by = {c.says: c for c in neuron_results.claims(found)}
    assert {c.verdict for k, c in by.items() if "a pointwise unit is straight" in k} <= {"holds", "not decided"}
    assert (
        by["units, from inputs near the weight: the path of a pointwise unit is straight along its weight"].verdict
        == "holds"
    )
    assert by["toy: the path of the LCA neuron turns towards its weight"].effect.count == 1
    said = neuron_results.outcome(found, examples)
    assert len(said.table.rows) == 6
    (figure, caption) = said.figures["neuron-attack"]
    assert caption
    assert all(ax.get_xlabel() and ax.get_ylabel() for ax in figure.axes)


def test_neuron_verdicts_follow_the_paths(paths):
    found, _ = paths
    spread = xr.DataArray(np.linspace(0.9, 1.1, 5), dims="neuron")
    for size, verdict in ((0.5, "holds"), (1.5, "fails")):
        planted = found.copy(deep=True)
        for key in ("off_axis", "off_mei", "input_angle", "mei_angle", "change_mei_angle"):
            low, level = (1.0, 1.0) if key.startswith("off") else (60.0, 60.0)
            lca = xr.ones_like(found[key]) * size * low * spread
            planted[key] = xr.where(found.model == "LCA", lca, level).transpose(*found[key].dims)
        by = {c.says: c.verdict for c in neuron_results.claims(planted)}
        told = [v for k, v in by.items() if "toy" not in k and "pointwise unit is straight" not in k]
        assert set(told) == {verdict}
        assert len(told) == 10


def test_paths_need_units_that_respond(pictured, toy):
    weights, patches = pictured
    with pytest.raises(ValueError, match="no unit responds to 1 of 400 patches; give more patches"):
        walked(neuron_attack.models(weights, 1e3), weights, patches, toy)


@pytest.mark.parametrize(
    "name", ["curvature-histograms", "orientation-selectivity", "natural-selectivity", "neuron-attack"]
)
def test_the_studies_of_natural_patches_run_and_write(name, tmp_path, monkeypatch, request):
    module = __import__(paper.module_of(name), fromlist=["QUICK"])
    tiny = {
        "size": 6, "overcompleteness": 2.0, "patches": 1500, "steps": 10, "neurons": 5, "comparison": 1, "random": 1, "grid": 10,
        "autoencoder_steps": 10, "ica_steps": 3, "orientations": 8, "phases": 2, "shown": 300, "starts": 1, "knots": 4,
        "mei_starts": 1, "gain": 0.2,
    }  # fmt: skip
    some = {f.name: tiny[f.name] for f in fields(module.Settings) if f.name in tiny}
    if name in ("curvature-histograms", "natural-selectivity"):
        some["overcompleteness"] = (1.0, 2.0)
    monkeypatch.setattr(module, "QUICK", module.Settings(**some))
    monkeypatch.setattr(neuron_attack, "MEI_STEPS", 5)
    if name == "neuron-attack":
        monkeypatch.setattr(neuron_attack, "toy", request.getfixturevalue("told_toy"))
    told = paper.run_study(name, tmp_path, quick=True)
    assert told["study"] == name
    assert told["provenance"]["settings"]["data"] == "two photographs of scikit-learn, whitened"
    assert (tmp_path / "figures" / f"{name}.svg").stat().st_size > 1000
    assert read_store(tmp_path / "results.zarr").attrs["schema"] == 1
    assert all(c["verdict"] in ("holds", "fails", "not decided") for c in told["claims"])
