"""The command line: parse, call, print. No logic, and nothing heavy is imported until a command runs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoresponse import __version__

if TYPE_CHECKING:
    from isoresponse.classifier import OnCases

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Iso-response geometry: how small a change of an input changes a model's answer, predicted and measured.",
)

ModelOption = Annotated[
    str, typer.Option(help="digits-mlp, digits-cnn, mnist-mlp, mnist-cnn, package.module:name or file.py:name")
]
InputsOption = Annotated[
    Path | None, typer.Option(help=".npz with arrays 'inputs' and 'labels', or a folder with the MNIST files")
]
SeedOption = Annotated[int, typer.Option(min=0, help="picks the cases and trains the built-in model")]
DeviceOption = Annotated[str, typer.Option(help="cpu or cuda")]


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="print the version and exit")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit()


@app.command()
def report(
    out: Annotated[Path, typer.Option(help="folder to write; replaced if an earlier report is there")],
    model: ModelOption = "digits-mlp",
    inputs: InputsOption = None,
    bounds: Annotated[tuple[float, float], typer.Option(help="allowed range of every input element")] = (0.0, 1.0),
    cases: Annotated[int, typer.Option(help="number of correctly classified inputs")] = 200,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    threads: Annotated[
        int, typer.Option(help="CPU threads; 0: one for inputs of under 256 elements, else torch's choice")
    ] = 0,
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error")] = False,
) -> None:
    """Predict and measure how small a perturbation changes the model's decisions; write a report with pictures."""
    with _stage("load libraries", None):
        import torch

        from isoresponse.studies.folder import finished_folder
        from isoresponse.studies.measure import Settings, measure
        from isoresponse.studies.report import write_report
        from isoresponse.studies.subject import load_subject
        from isoresponse.studies.tables import report_tables

    settings = Settings(cases=cases, seed=seed)
    with finished_folder(out) as folder:
        with _epochs(f"train {model}") as on_epoch:
            subject = load_subject(model, inputs=inputs, bounds=bounds, seed=seed, device=device, on_epoch=on_epoch)
        if threads < 0:
            raise ValueError(f"threads must be 0 or more, got {threads}.")
        if threads or subject.images[0].numel() < 256:
            torch.set_num_threads(max(1, threads))
        study = measure(subject, settings, stage=_stage)
        numbers = write_report(study, folder, stage=_stage)
    report_tables(numbers, out)


@app.command()
def figures(
    out: Annotated[Path, typer.Option(help="folder to write; replaced if earlier figures are there")],
    names: Annotated[list[str] | None, typer.Argument(help="further figures for --only", show_default=False)] = None,
    only: Annotated[list[str] | None, typer.Option(help="draw only this figure; may be repeated")] = None,
    dem: Annotated[
        Path | None, typer.Option(help=".npz with an array 'elevation' (and lat, lon) for topography and ascent")
    ] = None,
    seed: SeedOption = 0,
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error")] = False,
) -> None:
    """Compute and draw the essay's figures: triptych, topography, ascent, neurons, region; and scale (PNG and SVG)."""
    with _stage("load libraries", None):
        from isoresponse.studies.folder import finished_folder
        from isoresponse.studies.gallery import write_gallery
        from isoresponse.studies.tables import figure_table

    with finished_folder(out) as folder:
        numbers = write_gallery(folder, only=[*(only or []), *(names or [])], dem=dem, seed=seed, stage=_stage)
    figure_table(numbers, out)


@app.command()
def study(
    name: Annotated[
        str,
        typer.Argument(
            help="curvature-histograms, orientation-selectivity, natural-selectivity, neuron-attack, network-attack, "
            "beyond-images, bit-depth, spacing or semantic-quality"
        ),
    ],
    out: Annotated[Path, typer.Option(help="folder to write; replaced if an earlier study is there")],
    quick: Annotated[
        bool, typer.Option("--quick", help="minutes on 2 cores; otherwise the paper's settings, which take hours there")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            help="folder with natural_images/, mnist/, cifar10/, fsdd/, dem/; left out: what scikit-learn brings"
        ),
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error")] = False,
) -> None:
    """Run an experiment (the first five: Paiton et al. 2020, again): figure, table, every case, and verdicts with intervals."""
    with _stage("load libraries", None):
        from isoresponse.studies.folder import finished_folder
        from isoresponse.studies.paper import claim_table, run_study

    with finished_folder(out) as folder:
        numbers = run_study(name, folder, data=data, quick=quick, seed=seed, device=device, stage=_stage)
    claim_table(numbers, out)


@app.command()
def claims(
    out: Annotated[Path, typer.Option(help="folder to write; replaced if an earlier document is there")],
    full: Annotated[bool, typer.Option("--full", help="large settings, hours on 2 cores; otherwise minutes")] = False,
    data: Annotated[
        Path | None,
        typer.Option(help="folder with mnist/, natural_images/, cifar10/; left out: what scikit-learn brings"),
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads; 0: one, which small models want")] = 0,
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error")] = False,
) -> None:
    """Put every claim of the essay to the test: verdicts with effects, intervals and figures, on one page."""
    with _stage("load libraries", None):
        import torch

        from isoresponse.studies.claims.document import run_claims, verdict_table
        from isoresponse.studies.folder import finished_folder

    if threads < 0:
        raise ValueError(f"threads must be 0 or more, got {threads}.")
    torch.set_num_threads(max(1, threads))
    with finished_folder(out) as folder:
        numbers = run_claims(folder, full=full, data=data, seed=seed, device=device, stage=_stage)
    verdict_table(numbers, out)


@app.command()
def units(
    model: Annotated[str, typer.Argument(help="as for --model of `report`")],
    shape: Annotated[str, typer.Option(help="shape of one input, e.g. 3,224,224; built-in models know theirs")] = "",
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error")] = False,
) -> None:
    """List the layers of a model, the shape of their outputs, and an example of a unit in each."""
    from isoresponse.studies.tables import unit_table

    unit_table(model, shape)


def main() -> None:
    """Entry point: one sentence and exit status 2 for bad input, 130 when interrupted, no traceback without --debug."""
    debug = "--debug" in sys.argv
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads must not spin when the machine is shared
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was begun is cleaned up
    try:
        app(standalone_mode=True)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; nothing was written\n")
        raise SystemExit(130) from None
    except (ValueError, TypeError, OSError, ImportError) as error:
        if debug:
            raise
        sys.stderr.write(f"error: {_sentence(error)}\n")
        raise SystemExit(2) from None
    except Exception as error:
        if debug:
            raise
        sys.stderr.write(
            f"error: {type(error).__name__}: {_sentence(error)} (run again with --debug for the traceback)\n"
        )
        raise SystemExit(1) from None


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"cannot use {error.filename}: {error.strerror}; give a path that can be read or written."
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _stage(title: str, total: int | None, unit: str = "case") -> Iterator[OnCases]:
    """A progress bar on stderr for one stage of the work; only its time where the total is unknown."""
    from tqdm.auto import tqdm

    shape: dict[str, Any] = {"bar_format": "{desc}: {elapsed}"} if total is None else {}
    with tqdm(
        total=total, desc=f"{title:<32}", unit=unit, leave=True, mininterval=0.3, file=sys.stderr, **shape
    ) as bar:
        yield bar.update


@contextmanager
def _epochs(title: str) -> Iterator[Any]:
    """A progress bar for training, shown only once training starts."""
    from tqdm.auto import tqdm

    bars: list[Any] = []

    def on_epoch(done: int, total: int) -> None:
        if not bars:
            bars.append(tqdm(total=total, desc=f"{title:<32}", unit="epoch", mininterval=0.3, file=sys.stderr))
        bars[0].update(done - bars[0].n)

    try:
        yield on_epoch
    finally:
        for bar in bars:
            bar.close()
