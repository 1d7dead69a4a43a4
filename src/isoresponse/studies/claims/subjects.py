"""What the claims are tested on: matched toys, units of sparse codes, networks, a network that sees photographs, and twins.

Nothing is downloaded. Without a folder of data the images are scikit-learn's digits and the natural pictures its two
photographs; with one they are MNIST, natural images and CIFAR-10, as far as they are in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from isoresponse.classifier import Classifier, OnCases
from isoresponse.models import digits as zoo
from isoresponse.models.data import Data, cifar10, mnist
from isoresponse.models.lca import LCA
from isoresponse.models.networks import cnn
from isoresponse.models.training import cached, fit
from isoresponse.neuron import Box, Neuron
from isoresponse.studies import network_attack
from isoresponse.studies.materials import natural_patches, require_folder, trained_dictionary
from isoresponse.studies.measure import Stage, silent
from isoresponse.studies.network_results import LCA_NET, MLP, POINTWISE

CNN = "CNN"
DATA = ("mnist", "natural_images", "cifar10")
WHICH, PLACE, CIFAR = "which photograph", "which place", "CIFAR-10"  # what is asked about a picture
PICTURE = 32  # pixels along a side of the coloured pictures that a network tells apart
ROWS, COLUMNS = 2, 3  # places in a photograph
RIM = 0.6  # share of a photograph, from the left, that training takes its pictures from


@dataclass(frozen=True)
class Settings:
    """Sizes of all experiments.

    `cases` images per network, `toys` random pairs, `units` of the sparse code with `starts` patches each, `samples` random
    inputs per share; the others set how networks and dictionaries are trained.
    """

    cases: int = 40
    toys: int = 32
    units: int = 24
    starts: int = 1
    samples: int = 2000
    budget: int = 60
    hidden: int = 96
    dictionary_steps: int = 150
    train: int = 10_000
    epochs: int = 30
    pictures: int = 2400
    picture_epochs: int = 12
    landscape: int = 80
    alarms: bool = False


FULL = Settings(
    cases=200, toys=200, units=100, starts=10, samples=20_000, budget=500, hidden=256, dictionary_steps=1000, train=60_000,
    epochs=30, pictures=20_000, picture_epochs=12, landscape=2000, alarms=True,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Networks:
    """Classifiers (by name) that see the same images `x` (case, *shape) and decide all of them as labelled."""

    of: dict[str, Classifier]
    x: Tensor
    labels: Tensor
    name: str
    accuracy: dict[str, float]

    def some(self, count: int) -> Networks:
        """The same with the first cases only."""
        return replace(self, x=self.x[:count], labels=self.labels[:count])

    def only(self, *names: str) -> Networks:
        """The same with some of the networks, as far as they are there."""
        return replace(self, of={n: c for n, c in self.of.items() if n in names})


@dataclass(frozen=True, eq=False)
class SparseUnits:
    """Units of a sparse code of natural patches, each with patches to which it responds.

    Rows of `x` (case, n) are the patches, `unit` (case,) the unit asked about; `weights` (n, units).
    """

    weights: Tensor
    sparsity: float
    x: Tensor
    unit: Tensor
    norm: float
    reach: float
    name: str

    def sparse(self) -> Neuron:
        """The unit of every case, in competition."""
        return self._picked(LCA(self.weights, sparsity=self.sparsity), "LCA")

    def second(self) -> tuple[Neuron, Tensor]:
        """The most active other unit of every case, and its index (case,)."""
        with torch.no_grad():
            activity = LCA(self.weights, sparsity=self.sparsity)(self.x)
        other = activity.scatter(1, self.unit[:, None], 0.0).argmax(1)
        return replace(self.sparse(), given=(other,)), other

    def pointwise(self) -> Neuron:
        """The same weights and threshold without competition, and without rectification: it has a gradient everywhere."""
        return self._picked(lambda x: x @ self.weights - self.sparsity, "pointwise")

    def axis(self) -> Tensor:
        """The weights (case, n) of the unit of every case, of length 1."""
        own = self.weights[:, self.unit].T
        return own / own.norm(dim=1, keepdim=True)

    def _picked(self, code: Callable[[Tensor], Tensor], name: str) -> Neuron:
        def response(x: Tensor, unit: Tensor) -> Tensor:
            return code(x).gather(1, unit[:, None])[:, 0]

        box = Box(-self.reach, self.reach)
        return Neuron(response, (self.weights.shape[0],), box, name, (self.unit,))


# --- twins: the same neuron with other contours -----------------------------------------------------------


def twin(neuron: Neuron, x: Tensor, *, curvature: float | Tensor = 0.0, slope: float = 1.0) -> Neuron:
    """The neuron's response along its own gradient at `x`, in every case of a batch, spread out along other contours.

    Straight ones, or bent as in `models.matched.Twin`, of which this is the form for many cases. It has the neuron's
    response, gradient and spacing at `x`, and on the whole line; only how contours bend is another.

    Parameters
    ----------
    curvature
        Of all contours where they cross the line, a number or one per case; positive: outward.
    """
    _, gradient = neuron.value_and_grad(x)
    flat = gradient.flatten(1)
    normal = (flat / flat.norm(dim=1, keepdim=True)).nan_to_num(0.0)
    bend = torch.as_tensor(curvature, dtype=x.dtype, device=x.device).expand(len(x))

    def response(z: Tensor, at: Tensor, along: Tensor, bend: Tensor, *given: Tensor) -> Tensor:
        away = z.flatten(1) - at
        position = (away * along).sum(1)
        across = (away - position[:, None] * along).square().sum(1)
        steep = torch.sqrt(1 + (bend / slope).square() * across)
        line = position - bend * across / (1 + steep)
        return neuron.response((at + line[:, None] * along).reshape(z.shape), *given)

    return replace(
        neuron, response=response, name=f"{neuron.name}, twin", given=(x.flatten(1), normal, bend, *neuron.given)
    )


# --- what the machine has -----------------------------------------------------------------------------------


def require_data(data: Path | None) -> None:
    """Raise FileNotFoundError unless `data` is left out or a folder with some of what is looked for."""
    if data is None:
        return
    require_folder(data)
    if not any((data / part).is_dir() for part in DATA):
        raise FileNotFoundError(
            f"{data} has none of the folders {', '.join(DATA)}; give --data a folder with some of them, or leave it out for "
            "what scikit-learn brings."
        )


def networks(
    data: Path | None, settings: Settings, *, seed: int = 0, device: str = "cpu", stage: Stage = silent
) -> Networks:
    """A multilayer perceptron, a convolutional network, and a sparse code with its pointwise control, on digits.

    `data` with a folder `mnist` gives MNIST; otherwise they are scikit-learn's digits.
    """
    found = zoo.digits() if data is None or not (data / "mnist").is_dir() else mnist(data / "mnist")
    images = found.to(device)
    sizes = replace(
        network_attack.QUICK, units=(settings.hidden,), dictionary_steps=settings.dictionary_steps, train=settings.train,
        epochs=settings.epochs,
    )  # fmt: skip
    made = network_attack.networks(images, settings.hidden, 2, sizes, seed=seed, stage=stage)
    with stage(f"train {CNN} on {images.name}", 1, "network") as on_done:
        convolutional = zoo.trained("cnn", _first(images, settings.train), seed=seed).double()
        on_done(1)
    nets = {MLP: made[MLP], CNN: convolutional, LCA_NET: made[LCA_NET], POINTWISE: made[POINTWISE]}
    return judged(nets, images, settings.cases, seed)


def pictures(
    data: Path | None, settings: Settings, *, seed: int = 0, device: str = "cpu", stage: Stage = silent
) -> dict[str, Networks]:
    """Convolutional networks that see natural pictures in colour, by what they are asked.

    Pictures are cut from scikit-learn's two photographs, training sees their left part, the cases come from the right one; one
    network tells which photograph a picture is from; the other which of twelve places in them, whole photographs cut in six,
    training and test pictures being other cuts of the same places.
    `data` with a folder `cifar10` adds CIFAR-10.
    """
    every = _photographs(settings.pictures, seed)
    if data is not None and (data / "cifar10").is_dir():
        images = cifar10(data / "cifar10")
        order = torch.randperm(len(images.train[0]), generator=Generator().manual_seed(seed))
        every[CIFAR] = Data((images.train[0][order], images.train[1][order]), images.test, images.name)
    return {task: _seen(task, images.to(device), settings, seed, stage) for task, images in every.items()}


def _seen(task: str, images: Data, settings: Settings, seed: int, stage: Stage) -> Networks:
    some = _first(images, settings.train)
    classes = int(images.train[1].max()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = cnn((3, PICTURE, PICTURE), classes=classes, activation=nn.GELU).to(some.train[0].device)
    epochs = settings.picture_epochs

    with stage(f"train {CNN}: {task}", epochs, "epoch") as on_done:

        def train(on_done: OnCases = on_done) -> None:
            fit(net, *some.train, epochs=epochs, on_epoch=lambda _done, _all: on_done(1))

        cached(net, f"{images.name}-claims-{settings.train}-{epochs}", some, train, seed=seed)
    return judged({CNN: net.double()}, images, settings.cases, seed)


def sparse_units(
    data: Path | None, settings: Settings, *, seed: int = 0, device: str = "cpu", stage: Stage = silent
) -> SparseUnits:
    """Units of a sparse code learnt on whitened natural patches, each with patches that excite it moderately.

    Raises
    ------
    ValueError
        Fewer units that respond to enough patches than are needed for one case.
    """
    size, sparsity = 8, 0.5
    data = data if data is not None and (data / "natural_images").is_dir() else None
    found = natural_patches(data, size, 20_000, seed=seed, device=device)
    weights = trained_dictionary(
        found.x, 2 * size**2, sparsity=sparsity, steps=2 * settings.dictionary_steps, seed=seed, stage=stage
    )
    shown = natural_patches(data, size, 1500, seed=seed + 1, device=device).x.double().flatten(1)
    with torch.no_grad():
        activity = torch.cat([LCA(weights, sparsity=sparsity)(x) for x in shown.split(500)])
    x, unit = starts_of(activity, shown, settings.units, settings.starts, seed)
    return SparseUnits(weights, sparsity, x, unit, found.norm, float(shown.abs().max()), found.name)


def starts_of(activity: Tensor, shown: Tensor, units: int, starts: int, seed: int) -> tuple[Tensor, Tensor]:
    """For random units the patches (case, n) to which each responds most like its median response; and the unit (case,).

    Raises
    ------
    ValueError
        No unit that responds to so many patches.
    """
    usable = torch.nonzero((activity > 0).sum(0) >= starts).flatten()
    if not len(usable):
        raise ValueError(f"no unit responds to {starts} of {len(shown)} patches; give more patches.")
    order = torch.randperm(len(usable), generator=Generator().manual_seed(seed))
    chosen = usable[order[:units].to(usable.device)]
    own = activity[:, chosen]
    middle = own.masked_fill(own <= 0, torch.nan).nanmedian(0).values
    away = (own - middle).abs().masked_fill(own <= 0, torch.inf)
    nearest = away.topk(starts, dim=0, largest=False).indices
    return shown[nearest.T.flatten()], chosen.repeat_interleave(starts)


def judged(nets: dict[str, nn.Sequential], images: Data, cases: int, seed: int) -> Networks:
    """The networks with test images that all of them decide right.

    Raises
    ------
    ValueError
        No such image.
    """
    shape = tuple(images.test[0].shape[1:])
    made = {n: Classifier.of(net, shape=shape, box=Box(0.0, 1.0), name=n) for n, net in nets.items()}
    order = torch.randperm(len(images.test[0]), generator=Generator().manual_seed(seed))[: max(300, 3 * cases)]
    order = order.to(images.test[0].device)
    x, labels = images.test[0][order].double(), images.test[1][order]
    right = torch.stack([c.predict(x) == labels for c in made.values()])
    chosen = torch.nonzero(right.all(0)).flatten()[:cases]
    if not len(chosen):
        raise ValueError(f"no image of {images.name} is decided right by all of {', '.join(made)}; train longer.")
    accuracy = {n: float(r.double().mean()) for n, r in zip(made, right, strict=True)}
    return Networks(made, x[chosen], labels[chosen], images.name, accuracy)


def _first(images: Data, count: int) -> Data:
    return Data((images.train[0][:count], images.train[1][:count]), images.test, images.name)


def _photographs(count: int, seed: int) -> dict[str, Data]:
    """Pictures of PICTURE x PICTURE pixels cut from two photographs, by task: which photograph, and which place."""
    from sklearn.datasets import load_sample_images  # heavy, and only this needs it

    generator = Generator().manual_seed(seed)
    wholes = [torch.as_tensor(p.astype("float32") / 255).permute(2, 0, 1) for p in load_sample_images().images]
    edge = int(RIM * wholes[0].shape[2])
    tiles = [tile for whole in wholes for row in whole.chunk(ROWS, 1) for tile in row.chunk(COLUMNS, 2)]
    few = max(300, count // 4)
    return {
        WHICH: Data(
            _cuts([w[:, :, :edge] for w in wholes], count, generator), _cuts([w[:, :, edge:] for w in wholes], few, generator),
            "photographs-which",
        ),
        PLACE: Data(_cuts(tiles, count, generator), _cuts(tiles, few, generator), "photographs-place"),
    }  # fmt: skip


def _cuts(pieces: list[Tensor], count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """About `count` pictures cut at random from the pieces, shuffled, and the piece that each is from."""
    found, each = [], max(1, count // len(pieces))
    for piece in pieces:
        rows, columns = (torch.randint(s - PICTURE, (each,), generator=generator).tolist() for s in piece.shape[1:])
        cut = [piece[:, r : r + PICTURE, c : c + PICTURE] for r, c in zip(rows, columns, strict=True)]
        found.append(torch.stack(cut))
    order = torch.randperm(each * len(pieces), generator=generator)
    return torch.cat(found)[order], torch.arange(len(pieces)).repeat_interleave(each)[order]
