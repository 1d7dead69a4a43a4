"""How large a perturbation a classifier of sparse codes takes, by the paper's protocol and by searches for the smallest one.

Three networks see the same images: a multilayer perceptron; sparse codes (LCA) of a dictionary learnt on them, with a linear
read-out; and pointwise units with the same weights and threshold in the place of the LCA, which tells competition from
features. The paper's protocol is a targeted sign-gradient attack that stops when a wrong class has a confidence of 0.9, and
measures the mean squared distance then. It depends on the scale of the scores, so it is run at temperature 1 and at the
temperature that calibrates each network. The other protocol asks for the smallest L2 change of the decision: our search, two
published attacks, a search without gradients, and alarms that say whether to believe them.

**Full settings are meant for a GPU**: 768 and 1,568 units, two and three layers, all training images, 1,000 test images each.
`--quick`: 256 units, two layers, 10,000 training images, some tens of test images; minutes on 2 cores.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from torch import Generator, Tensor, nn

from isoresponse.attacks import foolbox_module, from_foolbox
from isoresponse.classifier import Classifier, OnCases
from isoresponse.crossing import Solution
from isoresponse.loop import join
from isoresponse.masking import MaskingReport, masking_alarms
from isoresponse.models.basic import LinearNonlinear
from isoresponse.models.data import Data
from isoresponse.models.networks import behind_lca, mlp, train_head
from isoresponse.models.training import cached, fit
from isoresponse.neuron import Box
from isoresponse.studies.experiment import Outcome
from isoresponse.studies.materials import labelled_images, trained_dictionary
from isoresponse.studies.measure import Stage, silent
from isoresponse.studies.network_results import LCA_NET, MLP, POINTWISE, outcome

NAME = "network-attack"
BATCH = 50  # cases attacked together
CHUNK = 500  # images scored together


@dataclass(frozen=True)
class Settings:
    """Sizes of the experiment; pixels are in [0, 1]."""

    units: tuple[int, ...] = (768, 1568)
    layers: tuple[int, ...] = (2, 3)
    sparsity: float = 0.3
    dictionary_steps: int = 5000
    train: int = 60_000
    epochs: int = 30
    head_epochs: int = 60
    cases: int = 1000
    step: float = 0.005
    steps: int = 500
    confidence: float = 0.9
    budget: int = 500
    longer: int = 1500
    published_steps: int = 1000


QUICK = Settings(
    units=(256,), layers=(2,), dictionary_steps=200, train=10_000, epochs=30, head_epochs=40, cases=40, steps=300, budget=100,
    longer=240, published_steps=100,
)  # fmt: skip


def study(
    data: Path | None, *, quick: bool = False, seed: int = 0, device: str = "cpu", stage: Stage = silent
) -> Outcome:
    """The whole experiment; `data` as for `materials.labelled_images`."""
    settings = QUICK if quick else Settings()
    tables = []
    for name, images in labelled_images(data, seed=seed, device=device).items():
        for units in settings.units:
            for layers in settings.layers:
                title = f"{name} {layers}L {units}"
                nets = networks(images, units, layers, settings, seed=seed, stage=stage)
                shape = tuple(images.test[0].shape[1:])
                classifiers = {k: Classifier.of(n, shape=shape, box=Box(0.0, 1.0), name=k) for k, n in nets.items()}
                tables.append(attack(classifiers, images.test, settings, seed=seed, stage=stage, title=title))
    dataset = xr.concat(tables, "condition", combine_attrs="override", join="outer")
    return outcome(dataset, seed=seed).about(data=str(data), seed=seed, quick=quick, **asdict(settings))


def networks(
    images: Data, units: int, layers: int, settings: Settings, *, seed: int = 0, stage: Stage = silent
) -> dict[str, nn.Sequential]:
    """The three networks, trained, in float64."""
    some = Data((images.train[0][: settings.train], images.train[1][: settings.train]), images.test, images.name)
    x, labels = some.train
    dictionary = trained_dictionary(
        x, units, sparsity=settings.sparsity, steps=settings.dictionary_steps, seed=seed, stage=stage
    ).float()
    hidden = (units,) * (layers - 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        plain = mlp(tuple(x.shape[1:]), (units, *hidden))
        sparse = behind_lca(dictionary, sparsity=settings.sparsity, hidden=hidden)
        units_alone = LinearNonlinear(dictionary.T.contiguous(), torch.relu, bias=-settings.sparsity)
        pointwise = nn.Sequential(nn.Flatten(), units_alone, *mlp((units,), hidden))
    plain, sparse, pointwise = (net.to(x.device) for net in (plain, sparse, pointwise))
    recipe = f"{units}-{layers}L-{settings.train}-{settings.epochs}-{settings.head_epochs}-{settings.dictionary_steps}"
    for name, net, front in ((MLP, plain, 0), (LCA_NET, sparse, 1), (POINTWISE, pointwise, 2)):
        epochs = settings.head_epochs if front else settings.epochs
        with stage(f"train {name} on {images.name}", epochs, "epoch") as on_done:

            def train(net: nn.Sequential = net, front: int = front, on_done: OnCases = on_done) -> None:
                def report(_done: int, _all: int) -> None:
                    on_done(1)

                if front:
                    train_head(net, x, labels, front=front, epochs=settings.head_epochs, rate=5e-3, on_epoch=report)
                else:
                    fit(net, x, labels, epochs=settings.epochs, rate=1e-3, on_epoch=report)

            cached(net, f"{images.name}-{name.replace(' ', '-')}-{recipe}", some, train, seed=seed)
    return {MLP: plain.double(), LCA_NET: sparse.double(), POINTWISE: pointwise.double()}


# --- the attacks ------------------------------------------------------------------------------------------


def attack(
    classifiers: dict[str, Classifier],
    test: tuple[Tensor, Tensor],
    settings: Settings,
    *,
    seed: int = 0,
    stage: Stage = silent,
    title: str = "images",
) -> xr.Dataset:
    """Perturbations of images that all networks classify right, dims (condition, model, case, ...).

    Raises
    ------
    ValueError
        No image that all of them classify right.
    """
    pool = max(1000, 3 * settings.cases)
    images, labels = test[0][:pool].double(), test[1][:pool]
    scores = {}
    for name, classifier in classifiers.items():
        with stage(f"score {name}", len(images), "image") as on_done, torch.no_grad():
            scores[name] = torch.cat([_counted(classifier.logits(x), on_done) for x in images.split(CHUNK)])
    right = torch.stack([s.argmax(1) == labels for s in scores.values()])
    chosen = torch.nonzero(right.all(0)).flatten()[: settings.cases]
    if len(chosen) == 0:
        raise ValueError(f"no image of {title} is classified right by all of {', '.join(classifiers)}; train longer.")
    held_out = torch.ones_like(labels, dtype=torch.bool).index_fill(0, chosen, False)
    x, y = images[chosen], labels[chosen]
    generator = Generator().manual_seed(seed)
    classes = next(iter(classifiers.values())).classes
    targets = (y + torch.randint(1, classes, y.shape, generator=generator).to(y)) % classes
    rows = []
    for name, classifier in classifiers.items():
        surrogate = next((c for n, c in classifiers.items() if n != name), None)
        temperature = calibrated(scores[name][held_out], labels[held_out])
        row = _attack_one(classifier, surrogate, x, y, targets, temperature, settings, seed, stage)
        row = row.assign(
            accuracy=((), float(right[list(classifiers).index(name)].double().mean()), {"units": "1"}),
            temperature=((), temperature, {"units": "response", "long_name": "temperature that calibrates the scores"}),
        )
        rows.append(row.expand_dims(model=[name]))
    found = xr.concat(rows, "model", combine_attrs="override")
    extra = {k: ("case", v.cpu().numpy()) for k, v in (("label", y), ("target", targets), ("index", chosen))}
    found = found.assign_coords(case=range(len(x)))
    return found.assign(extra).assign(pixels=((), x[0].numel(), {"units": "1"})).expand_dims(condition=[title])


def _attack_one(
    classifier: Classifier,
    surrogate: Classifier | None,
    x: Tensor,
    labels: Tensor,
    targets: Tensor,
    temperature: float,
    settings: Settings,
    seed: int,
    stage: Stage,
) -> xr.Dataset:
    """Both protocols on one network, dims (case, rule, search, alarm)."""
    name = classifier.name
    by_rule = {}
    for rule, t in (("temperature 1", 1.0), ("calibrated", temperature)):
        parts = []
        with stage(f"sign gradient on {name}", len(x)) as on_done:
            for a, b, c in zip(x.split(BATCH), labels.split(BATCH), targets.split(BATCH), strict=True):
                parts.append(sign_gradient(classifier, a, b, c, settings, temperature=t))
                on_done(len(a))
        by_rule[rule] = join(parts)
    searches: dict[str, Solution] = {}
    for search, budget in (("closest adversary", settings.budget), ("closest adversary, longer", settings.longer)):
        with stage(f"{search}, {name}", len(x)) as on_done:
            searches[search] = classifier.closest_adversary(
                x, labels, budget=budget, starts=1 if budget == settings.budget else 3,
                generator=Generator().manual_seed(seed), batch_size=BATCH, on_cases=on_done,
            )  # fmt: skip
    for title, made in published(settings.published_steps).items():
        with stage(f"{title}, {name}", len(x)) as on_done:
            searches[title] = _counted(join([
                made.on_decision(classifier, a, b) for a, b in zip(x.split(BATCH), labels.split(BATCH), strict=True)
            ]), on_done)  # fmt: skip
    with stage(f"hidden gradients of {name}?", 1, "network") as on_done:
        masking = masking_alarms(
            classifier, x, labels, searches["closest adversary"], generator=Generator().manual_seed(seed), surrogate=surrogate,
            longer=searches["closest adversary, longer"],
        )  # fmt: skip
        on_done(1)
    return _dataset(by_rule, searches, masking)


def _dataset(by_rule: dict[str, SignGradient], searches: dict[str, Solution], masking: MaskingReport) -> xr.Dataset:
    distance = torch.stack([s.distance for s in searches.values()])
    every = torch.cat(
        [torch.nan_to_num(distance, nan=torch.inf), torch.nan_to_num(masking.smallest, nan=torch.inf)[None]]
    )
    smallest = every.amin(0).masked_fill(every.amin(0).isinf(), torch.nan)
    msd = [*(r.msd for r in by_rule.values()), by_rule["temperature 1"].msd_at_change]
    reached = [*(r.reached for r in by_rule.values()), by_rule["temperature 1"].msd_at_change.isfinite()]
    spent = torch.stack([s.gradients for s in searches.values()])
    return xr.Dataset(
        {
            "msd": (("rule", "case"), torch.stack(msd).cpu().numpy(), {
                "units": "input^2", "long_name": "mean squared distance at the stop of the sign-gradient attack",
            }),
            "reached": (("rule", "case"), torch.stack(reached).to(torch.int8).cpu().numpy(), {
                "units": "1", "long_name": "whether the stopping rule was met within the steps",
            }),
            "distance": (("search", "case"), distance.cpu().numpy(), {"units": "input", "long_name": "L2 distance found"}),
            "gradients": (("search", "case"), spent.cpu().numpy(), {"units": "1"}),
            "smallest": ("case", smallest.cpu().numpy(), {
                "units": "input", "long_name": "smallest L2 distance found by any search, with or without gradients",
            }),
            "alarm_share": ("alarm", [a.share for a in masking.alarms], {"units": "1", "long_name": "share of cases"}),
            "alarm_raised": ("alarm", [a.raised for a in masking.alarms], {
                "units": "1", "long_name": "whether the alarm for hidden gradients is raised",
            }),
        },
        coords={"rule": [*by_rule, "decision changes"], "search": list(searches), "alarm": [a.name for a in masking.alarms]},
    )  # fmt: skip


def published(steps: int) -> dict[str, Any]:
    """Published minimal-norm L2 attacks from foolbox; none where that package is not there."""
    try:
        foolbox = foolbox_module()
    except ImportError:
        return {}
    return {
        "DDN": from_foolbox(foolbox.attacks.DDNAttack(steps=steps)),  # Rony et al. (2019)
        "FMN": from_foolbox(foolbox.attacks.L2FMNAttack(steps=steps)),  # Pintor et al. (2021)
    }


@dataclass(frozen=True, eq=False)
class SignGradient:
    """What `sign_gradient` did, (case,): the mean squared distance when it stopped, and when the decision first changed."""

    msd: Tensor
    reached: Tensor
    msd_at_change: Tensor


def sign_gradient(
    classifier: Classifier, x: Tensor, labels: Tensor, targets: Tensor, settings: Settings, *, temperature: float = 1.0
) -> SignGradient:
    """The paper's attack: steps along the sign of the gradient towards `targets`, clipped to the box, until a wrong class has
    the stated confidence; a case that never gets there has the distance of the last step.

    Notes
    -----
    Kurakin, Goodfellow & Bengio (2017), ICLR workshop, without a bound on the change, as Paiton et al. (2020) use it.

    Examples
    --------
    >>> import torch
    >>> two = Classifier(lambda x: torch.cat([-x, x], 1), shape=(1,), classes=2, box=Box(-5.0, 5.0))
    >>> x, label = torch.tensor([[-0.5]]), torch.tensor([0])
    >>> found = sign_gradient(two, x, label, 1 - label, Settings(step=0.25, steps=20))
    >>> found.msd, found.msd_at_change                    # confidence 0.9 at 1.1, so the step to 1.25; decision at 0.25
    (tensor([3.0625]), tensor([0.5625]))
    """
    msd, changed = (torch.full_like(x.flatten(1)[:, 0], torch.nan) for _ in range(2))
    reached = torch.zeros_like(labels, dtype=torch.bool)
    going, z = torch.arange(len(x), device=x.device), x.detach().clone()
    for done in range(settings.steps + 1):
        with torch.enable_grad():
            point = z.requires_grad_(True)
            scores = classifier.logits(point)
            loss = nn.functional.cross_entropy(scores / temperature, targets[going], reduction="sum")
            (slope,) = torch.autograd.grad(loss, point)
        own, z = labels[going], z.detach()
        size = (z - x[going]).flatten(1).square().mean(1)
        told = torch.softmax(scores.detach() / temperature, 1)
        other = scores.detach().argmax(1) != own
        first = other & changed[going].isnan()
        changed[going[first]] = size[first]
        stop = told.scatter(1, own[:, None], 0.0).amax(1) > settings.confidence
        reached[going[stop]] = True
        ends = stop | (done == settings.steps)
        msd[going[ends]] = size[ends]
        on = ~ends
        going = going[on]
        if len(going) == 0:
            break
        z = classifier.box.clip(z[on] - settings.step * slope[on].sign())
    return SignGradient(msd, reached, changed)


def calibrated(scores: Tensor, labels: Tensor) -> float:
    """The temperature at which confidences of held-out images fit best, by likelihood (Guo et al. 2017, ICML).

    Examples
    --------
    >>> import torch
    >>> scores = 20.0 * torch.eye(2).repeat(50, 1)
    >>> calibrated(scores, torch.tensor([0, 1] * 49 + [1, 0])) > 3           # nine tenths right at most, far too sure
    True
    """
    tried = torch.logspace(-1.5, 2, 141, dtype=scores.dtype)
    loss = torch.stack([nn.functional.cross_entropy(scores / t, labels) for t in tried])
    return float(tried[loss.argmin()])


def _counted(result: Any, on_done: Any) -> Any:
    on_done(len(result))
    return result
