"""Curvature against scale, as a figure and as a page of the guide; histograms of curvatures."""

import re
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import same_color

import isoresponse as iso
from isoresponse import plot
from isoresponse.studies import scale as study
from isoresponse.studies.figures import new_figure

NAN = float("nan")
GUIDE = Path(__file__).parents[1] / "docs" / "guide" / "which-scale.md"


def question(response, x, proposed=0.5, box=None):
    neuron = iso.Neuron(response, tuple(x.shape[1:]), box or iso.Box())
    return study.Question("a response", "nothing", neuron, x, torch.full_like(x[:, 0], proposed))


@pytest.fixture
def points():
    return torch.randn((3, 12), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_a_quadratic_has_the_same_curvature_at_every_scale(points):
    half = torch.randn((12, 12), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sweep = study.measure(question(lambda x: ((x @ half) ** 2).sum(1), points))
    for name in ("secant", "smoothed"):
        values, error = sweep.value[name][3:], sweep.error[name][3:]  # below a scale of 0.01 rounding shows
        torch.testing.assert_close(values, sweep.exact.expand_as(values), rtol=1e-6, atol=0)
        assert (error < 1e-6 * sweep.exact).all()
    torch.testing.assert_close(sweep.proposed, sweep.exact, rtol=1e-6, atol=0)


def test_one_kink_is_seen_from_the_scale_that_reaches_it_and_then_falls_as_one_over_the_scale():
    n, away = 9, 0.005  # 8 tangent directions: the subspace holds all of them
    t = torch.eye(n, dtype=torch.float64)[1]
    asked = question(lambda x: x[:, 0] + (x @ t - away).relu(), torch.zeros((1, n), dtype=torch.float64))
    sweep = study.measure(asked, samples=100)
    scales, values = torch.tensor(study.SCALES, dtype=torch.float64), sweep.value["secant"][:, 0]
    assert sweep.exact.item() == 0
    assert (values[scales < away] == 0).all()
    assert (sweep.error["secant"][scales < away] < 1e-9).all()
    assert values[-1] > 0
    torch.testing.assert_close(values[-2] * scales[-2], values[-1] * scales[-1])  # by then every direction meets it


def test_a_scale_wider_than_the_box_is_not_smoothed_over():
    x = torch.rand((2, 300), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sweep = study.measure(question(lambda x: x.square().sum(1), x, box=iso.Box(0.0, 1.0)))
    assert sweep.value["secant"].isfinite().all()
    wide = torch.tensor(study.SCALES) > 1 + 1e-9
    assert sweep.value["smoothed"].isnan().all(1).tolist() == wide.tolist()


def test_the_networks_scale_is_the_classifiers_first_order_prediction():
    asked = study.network("digits-mlp", 5)
    told = iso.predict_distance(asked.neuron, asked.x, 0.0, predictor=1).distance
    torch.testing.assert_close(asked.proposed, told)


def test_the_figure_tells_the_three_stories(monkeypatch):
    monkeypatch.setattr(study, "sparse_unit", partial(study.sparse_unit, units=80))
    figure, numbers = study.scale(cases=2)
    relu, gelu, lca = (numbers[k] for k in ("relu", "gelu", "lca"))
    assert relu["exact"] == 0
    assert lca["exact"] == 0
    assert gelu["exact"] > 0.01
    assert gelu["secant"][0] == pytest.approx(gelu["exact"], rel=1e-4)
    assert gelu["smoothed"][0] == pytest.approx(gelu["exact"], rel=1e-3)
    for row in (relu, lca):
        assert row["secant"][0] == 0
        assert row["at_proposed_scale"]["secant"] > 0
        assert max(row["secant"]) > row["secant"][-1]
    assert relu["smoothed"][-1] is None  # wider than the box
    assert relu["smoothed_cases"] == [2] * 10 + [0]
    assert len(figure.axes) == 3
    assert len(figure.legends) == 1
    for ax in figure.axes:
        assert ax.get_xscale() == "log"
        assert "input units" in ax.get_xlabel()
        styles = [(line.get_linestyle(), line.get_marker()) for line in ax.lines[:4]]
        assert len(set(styles)) == 4
    assert "1/input unit" in figure.axes[0].get_ylabel()


# --- histograms


@pytest.fixture
def ax():
    return new_figure(4, 3).subplots()


def drawn(ax):
    return {p.get_label(): p.get_data() for p in ax.patches}


def test_histograms_share_bins_one_of_them_centred_on_zero(ax):
    one = torch.tensor([[-1.0, 0.0], [0.01, NAN]])
    two = torch.linspace(-0.5, 3.0, 101)
    assert plot.curvature_histograms(ax, {"a": one, "b": two}, bins=20) is ax
    data = drawn(ax)
    assert list(data) == ["a (3, 1 not finite)", "b (101)"]
    (a, edges, _), (b, same, _) = data.values()
    np.testing.assert_array_equal(edges, same)
    assert len(edges) == 21
    middle = (edges[:-1] + edges[1:]) / 2
    (zero,) = np.flatnonzero(np.abs(middle) < 1e-12)
    assert a[zero] == pytest.approx(2 / 3)
    assert a.sum() == pytest.approx(1)
    assert b.sum() == pytest.approx(1)
    assert edges[0] <= -1
    assert edges[-1] >= 3
    assert ax.get_yscale() == "log"
    assert ax.get_ylim()[0] < min(1 / 3, b[b > 0].min())
    assert ax.get_xlabel() == "curvature (1/input unit)"
    assert [t.get_text() for t in ax.get_legend().get_texts()] == list(data)


def test_fifteen_histograms_differ_in_dash_or_colour_and_neighbours_in_both(ax):
    plot.curvature_histograms(ax, {f"f{i}": torch.randn(50) for i in range(15)}, xlabel="bending (1/patch)")
    looks = [(str(p.get_edgecolor()), str(p.get_linestyle()), str(p._dash_pattern)) for p in ax.patches]
    assert len(set(looks)) == 15
    assert all(p[0] != q[0] and p[2] != q[2] for p, q in pairwise(looks))
    assert same_color(ax.patches[0].get_edgecolor(), plot.BLUE)
    assert ax.get_xlabel() == "bending (1/patch)"


@pytest.mark.parametrize("values", [[0.0, 0.0], [NAN], [], [2.0], [-2.0, -1.0], [-1e-30, 1e30]])
@pytest.mark.parametrize("bins", [2, 3, 50])
def test_nothing_is_left_out_of_the_range(ax, values, bins):
    plot.curvature_histograms(ax, {"a": torch.tensor(values, dtype=torch.float64)}, bins=bins)
    (data,) = drawn(ax).values()
    assert len(data.values) == bins
    assert data.values.sum() == pytest.approx(float(any(np.isfinite(values))))
    assert np.abs((data.edges[:-1] + data.edges[1:]) / 2).min() <= 1e-9 * np.ptp(data.edges)
    ax.figure.canvas.draw()


def test_histograms_say_what_they_need(ax):
    with pytest.raises(ValueError, match="needs at least one name"):
        plot.curvature_histograms(ax, {})
    with pytest.raises(ValueError, match="bins must be at least 2, got 1"):
        plot.curvature_histograms(ax, {"a": torch.zeros(3)}, bins=1)


# --- the guide


def test_the_examples_of_the_guide_run(capsys):
    examples = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict = {}
    for example in examples:
        exec(compile(example, str(GUIDE), "exec"), names)
    assert "Curvatures(" in capsys.readouterr().out
    picture = (GUIDE.parent / "which-scale.png").stat().st_size
    assert picture < 200_000
