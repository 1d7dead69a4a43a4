"""Claims (g), (i) and (j), and the page: verdicts follow the data; the document opens offline and says what was found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator, nn
from typer.testing import CliRunner

from isoresponse import cli
from isoresponse.classifier import Classifier
from isoresponse.models.elevation import ElevationMap
from isoresponse.neuron import Box
from isoresponse.studies.claims import coding, detours, document
from isoresponse.studies.claims.findings import DEPENDS, REFUTED, SUPPORTED, Finding
from isoresponse.studies.claims.subjects import Networks, require_data
from isoresponse.studies.experiment import OPEN
from isoresponse.studies.folder import finished_folder
from isoresponse.studies.network_results import LCA_NET, MLP, POINTWISE


def around(middle: float, spread: float, count: int = 30) -> torch.Tensor:
    return (middle + spread * torch.linspace(-1, 1, count, dtype=torch.float64))[
        torch.randperm(count, generator=Generator())
    ]


class TestGreyLevels:
    def test_sizes_of_a_linear_decision(self):
        net = nn.Linear(4, 2, bias=False).double()
        net.weight.data = torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]], dtype=torch.float64)
        x = torch.full((3, 4), 0.1, dtype=torch.float64)
        nets = Networks(
            {"net": Classifier.of(net, shape=(4,), box=Box(-1.0, 1.0))}, x, torch.zeros(3, dtype=torch.int64), "toy", {}
        )
        grey, _ = coding.sizes(nets, coding.closest(nets, budget=30))
        np.testing.assert_allclose(
            grey["toy: net"].numpy(), 255 * 0.05 / 2, rtol=1e-6
        )  # 0.1 of a range of 2, in one of four

    @pytest.mark.parametrize(("middle", "verdict"), [(0.5, SUPPORTED), (3.0, REFUTED), (1.0, OPEN)])
    def test_verdict_follows_the_sizes(self, middle: float, verdict: str):
        found = coding.below_a_level({"photographs": around(middle, 0.3)}, {"photographs": torch.ones(30)}, {})
        assert found.verdict == verdict

    def test_other_images_are_told_and_decide_nothing(self):
        found = coding.below_a_level({"photographs": around(0.5, 0.3)}, {}, {"digits": around(20.0, 3.0)})
        assert found.verdict == SUPPORTED
        assert found.contrast["digits"].verdict == "fails"


class TestDetours:
    @staticmethod
    def land(height) -> ElevationMap:
        rows, columns = np.mgrid[0:40, 0:40] / 39.0
        return ElevationMap(height(columns, rows), (0.1, 0.1))

    def test_on_a_slope_the_steepest_path_is_the_shortest(self):
        ways, _ = detours.on_landscape(
            self.land(lambda e, n: 100 * e), 80, generator=Generator().manual_seed(0), resolution=16
        )
        assert float(ways.lost.nansum()) == 0
        assert detours.detours({"slope": ways}, {}).verdict == REFUTED

    def test_a_cliff_behind_a_valley_is_lost_on_it(self):
        def hill_and_cliff(east: np.ndarray, _north: np.ndarray) -> np.ndarray:
            return 20 * np.exp(-(((east - 0.25) / 0.2) ** 2)) + 100 / (1 + np.exp(-(east - 0.75) / 0.03))

        ways, example = detours.on_landscape(
            self.land(hill_and_cliff), 30, generator=Generator().manual_seed(0), resolution=32
        )
        assert bool(ways.greedy.isinf().any())
        found = detours.detours({"cliff": ways}, {}, terrain=self.land(hill_and_cliff), example=example)
        assert found.verdict == SUPPORTED

    def test_few_losses_decide_nothing(self):
        best = torch.ones(40, dtype=torch.float64)
        greedy = torch.where(torch.arange(40) % 20 == 0, 2.0, 1.01)
        assert detours.detours({"land": detours.Ways(greedy.double(), best)}, {}).verdict == OPEN

    def test_paths_whose_steps_ran_out_are_left_out(self):
        ways = detours.Ways(torch.tensor([torch.nan, torch.inf, 1.0]), torch.ones(3))
        np.testing.assert_array_equal(ways.lost.numpy(), [np.nan, 1.0, 0.0])


class TestCoding:
    @staticmethod
    def subjects() -> tuple[Networks, dict]:
        net = nn.Linear(3, 2).double()
        made = Classifier.of(net, shape=(3,), box=Box(-9.0, 9.0))
        x = torch.randn(30, 3, generator=Generator().manual_seed(0), dtype=torch.float64)
        nets = Networks(dict.fromkeys((LCA_NET, POINTWISE, MLP), made), x, made.predict(x), "toy", {"LCA": 0.9})
        return nets, coding.closest(nets, budget=10)

    def test_verdict_follows_the_distances(self):
        nets, found = self.subjects()
        far = found[MLP].distance

        def with_lca(scale: torch.Tensor | float, other: float = 1.0) -> Finding:
            return coding.coded(nets, found | {
                LCA_NET: replace(found[LCA_NET], distance=scale * far),
                POINTWISE: replace(found[POINTWISE], distance=other * far),
            })  # fmt: skip

        assert with_lca(around(1.5, 0.2)).verdict == SUPPORTED
        assert with_lca(around(0.6, 0.2)).verdict == REFUTED
        assert with_lca(around(1.5, 0.2), 3.0).verdict == DEPENDS
        assert with_lca(around(1.0, 0.5)).verdict == OPEN

    def test_alarms_leave_it_open(self):
        nets, found = self.subjects()
        larger = found | {LCA_NET: replace(found[LCA_NET], distance=2 * found[MLP].distance)}
        doubted = coding.coded(nets, larger, doubt={LCA_NET: "Alarms."})
        assert doubted.verdict == OPEN
        assert "Alarms." in str(doubted.numbers())


def made() -> list[Finding]:
    grey = coding.below_a_level({"photographs": around(0.5, 0.3)}, {}, {"digits": around(20.0, 3.0)})
    ways = detours.Ways(torch.full((40,), 2.0), torch.ones(40))
    return [grey, detours.detours({"land": ways}, {})]


class TestDocument:
    def test_one_page_that_opens_offline_and_every_number(self, tmp_path: Path):
        with finished_folder(tmp_path / "out") as folder:
            told = document.write_document(made(), folder, settings={"seed": 0, "data": None})
        page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
        assert 'src="data:image/png;base64,' in page
        assert "http:" not in page
        assert "https:" not in page
        assert "beside it: digits" in page
        assert [f["verdict"] for f in told["findings"]] == ["supported", "supported"]
        saved = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
        assert saved["findings"][0]["tests"]["photographs"]["verdict"] == "holds"
        assert {p.name for p in (tmp_path / "out" / "figures").iterdir()} >= {"claim-g.png", "claim-i.svg"}
        with finished_folder(tmp_path / "out") as folder:  # an earlier document may be replaced
            document.write_document(made()[:1], folder, settings={"seed": 1, "data": None})

    def test_command(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(document, "findings", lambda *_args, **_settings: made())
        told = CliRunner().invoke(cli.app, ["claims", "--out", str(tmp_path / "out")])
        assert told.exit_code == 0, told.output
        assert "supported" in told.output
        assert (tmp_path / "out" / "results.zarr").exists()

    def test_a_folder_without_data_is_refused(self, tmp_path: Path):
        require_data(None)
        with pytest.raises(FileNotFoundError, match="has none of the folders mnist, natural_images, cifar10"):
            require_data(tmp_path)
        with pytest.raises(FileNotFoundError, match="no folder"):
            require_data(tmp_path / "missing")
