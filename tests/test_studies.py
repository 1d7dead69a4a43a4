"""The report on a model and the essay's figures: the numbers in them, the folder they come in."""

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from torch import nn

from isoresponse.classifier import Classifier
from isoresponse.masking import Alarm
from isoresponse.neuron import Box
from isoresponse.records import read_store
from isoresponse.studies.folder import finished_folder
from isoresponse.studies.measure import Settings, dataset, failures, intervals, measure, summary, verdict
from isoresponse.studies.report import write_report
from isoresponse.studies.subject import Subject
from isoresponse.studies.tables import report_tables

pytest.importorskip("foolbox")


def strict(path):
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))


class Loads(HTMLParser):
    """Collects whatever a page would load, and the text it shows."""

    def __init__(self, page):
        super().__init__()
        self.loaded, self.tags = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href", "data", "srcset", "action", "poster")]


# --- a study


@pytest.fixture(scope="module")
def ordinary(study):
    return summary(study)


def test_every_number_the_issue_asks_for_is_in_the_summary(study, ordinary):
    numbers = ordinary
    assert numbers["model"] == "digits-mlp"
    assert numbers["data"] == "digits"
    assert (numbers["cases"], numbers["seed"]) == (12, 3)
    assert numbers["accuracy"] > 0.95
    for attack in ("closest_adversary", "foolbox_ddn"):
        row = numbers["measured"][attack]
        wanted = {"success", "mean_l2", "median_l2", "gradients_per_case", "forwards_per_case", "seconds"}
        assert all(math.isfinite(row[key]) for key in wanted)
    ours = study.measured["closest_adversary"]
    assert numbers["measured"]["closest_adversary"]["success"] == 1.0
    assert numbers["measured"]["closest_adversary"]["mean_l2"] == pytest.approx(float(ours.distance.mean()), rel=1e-6)
    assert numbers["measured"]["foolbox_ddn"]["gradients_per_case"] == 20
    for tier in ("tier0", "tier1", "tier3", "tier4"):
        row = numbers["prediction"][tier]
        assert all(math.isfinite(row[k]) for k in ("spearman", "kendall", "r2", "median_abs_log_error"))
    assert numbers["prediction"]["tier4"]["gradients_per_case"] / 9 <= 12
    assert set(numbers["perturbation"]) == {"median_rms", "median_grey_levels", "survives_8bit"}
    assert numbers["perturbation"]["median_grey_levels"] == pytest.approx(255 * numbers["perturbation"]["median_rms"])
    assert {"isoresponse", "torch", "foolbox", "python"} <= set(numbers["versions"])


def test_the_reference_is_the_smallest_of_all_attacks(study):
    every = torch.stack([s.distance for s in study.measured.values()])
    torch.testing.assert_close(study.smallest, every.amin(0))
    torch.testing.assert_close((study.adversarial - study.x).flatten(1).norm(dim=1), study.smallest, rtol=1e-4, atol=0)
    assert (study.subject.classifier.predict(study.adversarial) != study.labels).all()
    assert (study.subject.classifier.predict(study.x) == study.labels).all()


def test_the_seed_picks_the_cases(subject, study):
    again = measure(subject, Settings(cases=12, seed=3, referee_steps=1))
    other = measure(subject, Settings(cases=12, seed=4, referee_steps=1))
    assert torch.equal(again.index, study.index)
    torch.testing.assert_close(again.predicted[3].distance, study.predicted[3].distance)
    assert not torch.equal(other.index, study.index)


def test_stages_are_told_and_count_every_case(subject):
    told = {}

    class Bar:
        def __init__(self, title, cases):
            self.title, told[title] = title, [cases, 0]

        def __enter__(self):
            return lambda done: told[self.title].__setitem__(1, told[self.title][1] + done)

        def __exit__(self, *_):
            return None

    measure(subject, Settings(cases=5, referee_steps=1, batch_size=2), stage=Bar)
    assert len(told) == 8
    everything = len(subject.labels)
    assert told.pop("classify") == [everything, everything]
    assert set(map(tuple, told.values())) == {(5, 5)}


def test_bootstrap_intervals_hold_the_value_and_shrink_with_cases():
    draw = torch.Generator().manual_seed(0)
    found = torch.rand(400, generator=draw) + 0.5
    told = found * (1 + 0.1 * torch.randn(400, generator=draw))
    wide, narrow = (intervals(told[:n], found[:n], seed=1)["median_abs_log_error"] for n in (25, 400))
    assert narrow[0] < 0.0674 < narrow[1]  # median of |0.1 z|
    assert narrow[1] - narrow[0] < 0.5 * (wide[1] - wide[0])
    assert math.isnan(intervals(told[:9], found[:9], seed=1)["r2"][0])
    equal = intervals(torch.ones(400), found, seed=1)  # saturated scores: every margin is one
    assert all(math.isnan(end) for end in equal["spearman"])


def test_settings_that_measure_nothing_are_refused():
    with pytest.raises(ValueError, match="cases must be at least 1, got 0"):
        Settings(cases=0)


def test_a_model_that_is_always_wrong_is_refused(subject):
    wrong = Subject(subject.classifier, subject.module, subject.images, (subject.labels + 1) % 10, "odd", "digits")
    right = subject.classifier.predict(subject.images) == subject.labels
    none = Subject(wrong.classifier, wrong.module, wrong.images[right], wrong.labels[right], "odd", "digits")
    with pytest.raises(ValueError, match=r"odd classifies none of the \d+ inputs as labelled"):
        measure(none, Settings(cases=3))


@pytest.fixture(scope="module")
def constant():
    """A planted model that no perturbation can change."""
    net = nn.Linear(6, 3)
    net.weight.data.zero_()
    net.bias.data = torch.tensor([1.0, 0.0, 0.0])
    x = torch.rand(11, 6, generator=torch.Generator().manual_seed(0))
    clf = Classifier.of(net, shape=(6,), box=Box(0.0, 1.0))
    return measure(
        Subject(clf, net, x, torch.zeros(11, dtype=torch.int64), "constant", "noise"), Settings(referee_steps=5)
    )


def test_an_unattackable_model_has_success_zero_and_no_distance(constant, tmp_path):
    with finished_folder(tmp_path / "report") as folder:
        write_report(constant, folder)
    numbers = strict(tmp_path / "report" / "summary.json")
    assert numbers["cases"] == 11
    for row in numbers["measured"].values():
        assert row["success"] == 0
        assert row["mean_l2"] is None
        assert row["median_l2"] is None
        assert 0 < row["success_interval95"][1] < 0.5
    assert numbers["prediction"]["tier4"]["spearman"] is None
    assert numbers["prediction"]["tier4"]["failed"] == 11
    assert numbers["prediction"]["tier0"]["failed"] == 0
    assert set(numbers["perturbation"].values()) == {None}
    assert any("did not change" in note for note in numbers["notes"])
    table = read_store(tmp_path / "report" / "results.zarr")
    assert np.isnan(table["closest_adversary_distance"]).all()
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "No perturbation was found by following the gradient for any of the 11 inputs" in page
    assert numbers["masking"]["raised"] == ["vanishing"]
    assert numbers["masking"]["with_any_search"] == {"found": 0, "cases": 11, "median_l2": None}
    assert "for 0 of 11 inputs;\nwith the help of searches that use no gradient, for 0 of 11 inputs." in page
    assert ("closest_adversary", 11) in [(who, count) for who, _, count in failures(constant)]


# --- models that hide their gradient


class Turned(torch.autograd.Function):
    """Nothing on the way there, the wrong sign on the way back."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


HIDDEN = {  # planted round the built-in network; what each must at least raise
    "staircase": (lambda net: lambda x: net((15 * x).round() / 15 + 1e-3 * x), {"derivative", "gradient-free"}),
    "saturated": (lambda net: lambda x: (40 * net(x)).softmax(1), {"vanishing"}),
    "turned": (lambda net: lambda x: net(Turned.apply(x)), {"derivative", "gradient-free", "unbounded"}),
}
ALARMS = ["derivative", "finite step", "vanishing", "repeatability", "gradient-free", "unbounded"]


@pytest.fixture(scope="module")
def hidden(subject):
    """The study of a planted model and its summary, made once."""
    made = {}

    def study_of(name):
        if name not in made:
            logits = HIDDEN[name][0](subject.classifier.logits)
            planted = replace(subject, classifier=replace(subject.classifier, logits=logits), model_name=name)
            found = measure(planted, Settings(cases=24, seed=3, referee_steps=20))
            made[name] = found, summary(found)
        return made[name]

    return study_of


@pytest.mark.parametrize("name", HIDDEN)
def test_a_hidden_gradient_raises_alarms_in_the_summary(hidden, name):
    masking = hidden(name)[1]["masking"]
    assert HIDDEN[name][1] <= set(masking["raised"])
    assert [a["name"] for a in masking["alarms"]] == ALARMS
    assert masking["raised"] == [a["name"] for a in masking["alarms"] if a["verdict"].startswith("ALARM: ")]
    assert masking["with_any_search"]["found"] == masking["with_any_search"]["cases"] == 24
    assert masking["with_gradients"]["found"] <= 24
    assert 300 < masking["forwards"] < 700
    assert masking["gradients"] == 2
    assert masking["seconds"] > 0


def test_an_ordinary_model_raises_no_alarm(ordinary):
    masking = ordinary["masking"]
    assert masking["raised"] == []
    assert {a["verdict"] for a in masking["alarms"]} == {"no sign of masking"}
    assert all((a["count"], a["cases"]) == (0, 12) for a in masking["alarms"])
    assert masking["with_gradients"]["found"] == masking["with_any_search"]["found"] == 12
    assert masking["with_any_search"]["median_l2"] <= masking["with_gradients"]["median_l2"]


def test_what_a_turned_gradient_hides_is_found_at_its_distance():
    """A straight boundary in the plane, so the true distances are known; the search by gradient walks away from it."""
    way = torch.tensor([0.6, 0.8])
    x = torch.rand(40, 2, generator=torch.Generator().manual_seed(0))
    clf = Classifier(lambda z: (Turned.apply(z) - 0.5) @ torch.stack([way, -way], 1), (2,), 2, Box(0.0, 1.0))
    planted = Subject(clf, nn.Identity(), x, clf.predict(x), "turned", "square")
    masking = summary(measure(planted, Settings(cases=40, referee_steps=5)))["masking"]
    exact = ((x - 0.5) @ way).abs()  # and the nearest point of the boundary is in the box, or beyond a corner
    assert {"derivative", "gradient-free", "unbounded"} <= set(masking["raised"])
    assert masking["with_any_search"]["median_l2"] == pytest.approx(float(exact.median()), rel=0.02)
    assert masking["with_gradients"]["found"] < masking["with_any_search"]["found"] == 40
    assert masking["with_gradients"]["median_l2"] > 2 * masking["with_any_search"]["median_l2"]


@pytest.fixture(scope="module")
def alarming(hidden, tmp_path_factory):
    """The report on a model whose gradient leads nowhere."""
    out = tmp_path_factory.mktemp("alarming") / "report"
    study, _ = hidden("turned")
    with finished_folder(out) as folder:
        write_report(study, folder)
    return out, study


def test_an_alarm_stands_at_the_top_of_the_page_and_in_its_own_line(alarming):
    out, study = alarming
    page = (out / "index.html").read_text(encoding="utf-8")
    numbers = strict(out / "summary.json")["masking"]
    top = page.index('<p class="alarm"><b>ALARM: the sizes measured here must not be read as robustness.</b>')
    assert page.index("</h1>") < top < page.index('<p class="headline">')
    assert f"Raised: {', '.join(study.masking.raised)};" in page
    assert 'href="#masking"' in page
    assert page.count('<td class="raised">ALARM: ') == len(numbers["raised"]) > 0
    assert page.index("Measured</h2>") < page.index('id="masking"') < page.index("What failed, and")
    for row in numbers["alarms"]:
        assert (
            f"<td>{row['name']}</td><td>{row['measured']}</td><td>{row['count']} of {row['cases']} cases</td>" in page
        )
        assert row["verdict"] in page
    found = numbers["with_gradients"]["found"]
    assert f"perturbations are found for {found} of 24 inputs" in page
    assert "for 24 of 24 inputs (half of all within" in page
    assert found < 24
    assert "half of 24 correctly classified inputs" not in page


def test_every_case_of_every_alarm_is_stored(alarming):
    out, study = alarming
    table = read_store(out / "results.zarr")
    assert table["masking_seen"].dims == ("alarm", "case")
    assert list(table["alarm"].values) == ALARMS
    assert table["masking_seen"].attrs["flag_meanings"] == "not_judged none seen"
    seen = table["masking_seen"].sel(alarm="gradient-free").values
    np.testing.assert_array_equal(seen == 2, study.masking["gradient-free"].flagged)
    np.testing.assert_array_equal(table["masking_smallest"], study.masking.smallest)
    assert table["masking_white_box"].attrs["units"] == "input"


def test_the_terminal_says_so_too(hidden, ordinary, tmp_path, capsys):
    turned = hidden("turned")[1]
    for numbers, told in ((turned, "ALARM, unbounded: In "), (ordinary, "hidden gradient: none of 6 alarms raised")):
        report_tables(numbers, tmp_path)
        out = capsys.readouterr().out
        assert told in out
        assert out.count("ALARM, ") == len(numbers["masking"]["raised"])


def test_batches_of_cases_give_one_report(subject, study):
    again = measure(subject, Settings(cases=12, seed=3, referee_steps=1, batch_size=5)).masking
    assert [a.name for a in again.alarms] == ALARMS
    assert all(len(a.flagged) == len(a.judged) == 12 for a in again.alarms)
    assert again.gradients == study.masking.gradients
    assert len(again.smallest) == len(again.white_box) == 12
    torch.testing.assert_close(again.white_box, study.masking.white_box, rtol=1e-3, atol=0)


def test_a_study_may_have_no_alarms(study):
    bare = replace(study, masking=None)
    assert summary(bare)["masking"] is None
    assert not {"masking_seen", "alarm"} & set(dataset(bare).variables)


@pytest.mark.parametrize(
    ("count", "cases", "words"),
    [
        (200, 200, r"ALARM: A search that follows gradients has no direction: .* dead units\."),
        (0, 200, r"no sign of masking"),
        (2, 200, r"no sign of masking"),  # 0.3 to 3.6 %, below the limit of 5 %
        (2, 12, r"undecided: seen, but too few cases tell whether it is above the limit"),  # 4.7 to 44.8 %
        (0, 0, r"not judged\. No case could be judged: .*"),
    ],
)
def test_verdicts_are_plain_words(count, cases, words):
    alarm = Alarm("vanishing", torch.arange(200) < count, torch.arange(200) < cases)
    assert re.fullmatch(words, verdict(alarm))


# --- the report


@pytest.fixture(scope="module")
def report(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("reports") / "report"
    with finished_folder(out) as folder:
        write_report(study, folder)
    return out


def test_a_report_is_complete(report):
    assert {p.name for p in report.iterdir()} == {"index.html", "summary.json", "results.zarr", "figures"}
    names = {p.name for p in (report / "figures").iterdir()}
    assert names == {f"{n}.{end}" for n in ("prediction", "triptych", "plane") for end in ("png", "svg")}
    for file in (report / "figures").iterdir():
        content = file.read_bytes()
        assert content[1:4] == b"PNG" if file.suffix == ".png" else b"<svg" in content
    assert [p.name for p in report.parent.iterdir()] == ["report"]


def test_the_page_loads_nothing(report):
    page = (report / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(", page)
    seen = Loads(page)
    assert len(seen.loaded) == 3
    assert all(source.startswith("data:image/png;base64,") for source in seen.loaded)
    assert not {"script", "link", "iframe", "object", "embed"} & set(seen.tags)


def test_an_ordinary_page_says_what_was_looked_for_and_raises_nothing(report):
    page = (report / "index.html").read_text(encoding="utf-8")
    assert "ALARM" not in page
    assert 'class="alarm"' not in page
    assert page.count("<td>no sign of masking</td>") == 6
    assert page.count("robust") == 1  # in the title of the essay


def test_the_summary_is_strict_json_with_its_origin(report, ordinary):
    numbers = strict(report / "summary.json")
    told = ordinary["prediction"]["tier4"]["spearman"]
    assert numbers["prediction"]["tier4"]["spearman"] == pytest.approx(told)
    assert numbers["provenance"]["settings"]["referee_steps"] == 20
    page = (report / "index.html").read_text(encoding="utf-8")
    assert f"{told:.3f}" in page
    assert f"{numbers['measured']['closest_adversary']['median_l2']:.4f}" in page
    distances = {k: v["l2"] for k, v in numbers["triptych"].items()}
    assert distances["smallest"] < distances["median"] < distances["largest"]
    assert numbers["plane"]["distance"] == pytest.approx(distances["median"], rel=1e-4)
    assert numbers["plane"]["path_length"] >= numbers["plane"]["distance"] * 0.999


def test_the_store_keeps_every_case(report, study):
    table = read_store(report / "results.zarr")
    assert table.sizes["case"] == 12
    np.testing.assert_array_equal(table["case"], study.index)
    np.testing.assert_array_equal(table["input"].values, study.x.numpy())
    assert table["input"].dims == ("case", "channel", "height", "width")
    for name in ("closest_adversary", "foolbox_ddn", "tier0", "tier1", "tier3", "tier4"):
        assert table[f"{name}_distance"].dims == ("case",)
        assert "flag_meanings" in table[f"{name}_status"].attrs
        assert table[f"{name}_distance"].attrs["long_name"]
    assert table["tier4_distance"].attrs["units"] == "input"
    assert json.loads(table.attrs["settings"])["model"] == "digits-mlp"


def test_the_margin_is_stored_in_response_units(report):
    assert read_store(report / "results.zarr")["tier0_distance"].attrs.get("units") == "response"


def interrupted(out, error):
    with finished_folder(out) as folder:
        (folder / "index.html").write_text("half")
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_run_leaves_nothing(tmp_path, error):
    with pytest.raises(error):
        interrupted(tmp_path / "new" / "report", error)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_leaves_an_earlier_report_alone(report):
    before = (report / "summary.json").read_bytes()
    with pytest.raises(RuntimeError):
        interrupted(report, RuntimeError)
    assert (report / "summary.json").read_bytes() == before
    assert [p.name for p in report.parent.iterdir()] == ["report"]


@pytest.mark.parametrize(
    "contents",
    [{"thesis.tex": "years"}, {"index.html": "my page"}, {"figures.json": "{}", "thesis.tex": "years"},
     {"index.html": "my site", "summary.json": "[]", "thesis.tex": "years"}],
    ids=["a text", "a page", "somebody's figures.json", "somebody's index.html and summary.json"],
)  # fmt: skip
def test_a_foreign_folder_is_refused_and_untouched(tmp_path, contents):
    out = tmp_path / "mine"
    out.mkdir()
    for name, text in contents.items():
        (out / name).write_text(text)
    with pytest.raises(FileExistsError, match="not a folder that isoresponse wrote"), finished_folder(out):
        pytest.fail("the work began")
    assert {p.name: p.read_text() for p in out.iterdir()} == contents


def test_an_earlier_report_and_an_empty_folder_are_replaced(tmp_path, study):
    out = tmp_path / "report"
    out.mkdir()
    with finished_folder(out) as folder:
        (folder / "index.html").write_text("first")
        (folder / "summary.json").write_text(json.dumps({"versions": {"isoresponse": "0"}, "provenance": {}}))
    with finished_folder(out) as folder:
        (folder / "index.html").write_text("second")
    assert [p.name for p in tmp_path.iterdir()] == ["report"]
    assert {p.name: p.read_text() for p in out.iterdir()} == {"index.html": "second"}
