"""The searches of others for the closest adversary, as functions, and a module that counts what they ask of a network.

Every peer is a function `attack(net, x, labels)`; `PEERS[norm][name](steps)` builds it with the settings its authors
or AttackBench (Cina, Rony et al., AAAI 2025) use. `Counted` stands in for the network: it counts propagations per case
(each case of a forward pass one, of a backward pass one) and keeps the smallest perturbation *seen* that is misclassified
and inside the box, whatever the attack returns at the end.

foolbox comes with `pip install foolbox` (and needs a `git` program); adversarial-library with
`pip install --no-deps adv-lib==0.2.8`. The latter asks for torchvision and visdom when it is imported, though no attack
used here needs them: where they are absent, empty stand-ins take their place during that import only.
"""

from __future__ import annotations

import importlib
import sys
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor | None]
INF = float("inf")
GET_ADV_LIB = "adversarial-library is not importable: pip install --no-deps adv-lib==0.2.8 (foolbox goes on alone)."
OUTSIDE = 1e-6  # a point this far out of the box still counts, for rounding


# --------------------------------------------------------------------------------------------- what a network is asked


class Exhausted(RuntimeError):
    """Every case has spent its budget; nothing that could come would be recorded."""


class _Tally(torch.autograd.Function):
    """The identity; each backward pass through it, of whatever order, counts for its cases."""

    @staticmethod
    def forward(ctx, x: Tensor, counted: Counted, cases: Tensor) -> Tensor:
        ctx.counted, ctx.cases = counted, cases
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        begin = time.perf_counter()
        ctx.counted.backwards.index_add_(0, ctx.cases, torch.ones_like(ctx.cases))
        if torch.is_grad_enabled():  # the gradient will be differentiated again
            gradient = _Tally.apply(gradient, ctx.counted, ctx.cases)
        ctx.counted.overhead += time.perf_counter() - begin
        return gradient, None, None


class Counted(nn.Module):
    """`net`, watched while an attack on `x` (case, *shape) runs inside `with counted.watching()`.

    A row of a query belongs to the case whose image is nearest. Peers may drop cases but keep their order
    (`in_order=True`), which settles the rows that distance alone leaves open. A case that has spent `budget` is answered
    without the network: misclassified, zero gradient. Nothing is clamped.
    """

    def __init__(self, net: nn.Module, x: Tensor, labels: Tensor, norm: float, budget: int, *, in_order: bool) -> None:
        super().__init__()
        self.net, self.x, self.labels, self.norm = net, x, labels, norm
        self.budget, self.in_order, self.watched = budget, in_order, False
        self.forwards, self.backwards = torch.zeros_like(labels), torch.zeros_like(labels)
        self.best = torch.full(labels.shape, INF, dtype=x.dtype, device=x.device)
        self.point, self.decided = x.clone(), labels.clone()
        self.events: list[tuple[Tensor, Tensor, Tensor]] = []  # cases, propagations spent, distance
        self.overhead = self.seconds = 0.0
        self._flat, self._every = x.flatten(1), torch.arange(len(x), device=x.device)

    @property
    def spent(self) -> Tensor:
        """Propagations per case so far."""
        return self.forwards + self.backwards

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count and record inside the block, with its time, less the time of the counting itself, in `seconds`."""
        self.watched, begin = True, time.perf_counter()
        try:
            yield
        except Exhausted:
            pass
        finally:
            self.watched = False
            self.seconds = time.perf_counter() - begin - self.overhead

    def forward(self, x: Tensor) -> Tensor:
        if not self.watched:
            return self.net(x)
        begin = time.perf_counter()
        cases = self._match(x.detach().flatten(1))
        live = self.spent[cases] < self.budget
        if not bool(live.any()) and bool((self.spent >= self.budget).all()):
            self.overhead += time.perf_counter() - begin
            raise Exhausted
        rows = None if bool(live.all()) else torch.nonzero(live).flatten()
        asked, owners = (x, cases) if rows is None else (x[rows], cases[rows])
        self.forwards.index_add_(0, owners, torch.ones_like(owners))
        asked = _Tally.apply(asked, self, owners) if asked.requires_grad else asked
        self.overhead += time.perf_counter() - begin
        scores = self.net(asked) if len(owners) else None
        begin = time.perf_counter()
        if scores is not None:
            self.record(asked.detach(), scores.detach(), owners)
        if rows is not None:
            scores = self._answer_spent(x, cases, rows, scores)
        self.overhead += time.perf_counter() - begin
        return scores

    def record(self, points: Tensor, scores: Tensor, cases: Tensor) -> None:
        """Keep the points (row, *shape) that are adversarial, inside, and nearer than the best of their case."""
        decided = scores.argmax(1)
        flat = points.flatten(1)
        inside = (flat.amin(1) >= -OUTSIDE) & (flat.amax(1) <= 1 + OUTSIDE)
        valid = (decided != self.labels[cases]) & inside & torch.isfinite(scores).all(1)
        rows = torch.nonzero(valid).flatten()
        if len(rows) == 0:
            return
        cases = cases[rows]
        distance = torch.linalg.vector_norm(flat[rows] - self._flat[cases], self.norm, dim=1)
        best = self.best.scatter_reduce(0, cases, distance, "amin")  # a query may hold a case more than once
        won = (distance < self.best[cases]) & (distance == best[cases])
        rows, cases, self.best = rows[won], cases[won], best
        self.point[cases], self.decided[cases] = points[rows], decided[rows]
        self.events.append((cases, self.spent[cases], distance[won]))

    def settle(self, points: Tensor | None) -> None:
        """Credit what the attack returned (case, *shape), for cases within budget, should it never have been asked."""
        if points is None:
            return
        fit = torch.isfinite(points).flatten(1).all(1) & (self.spent < self.budget)
        cases = torch.nonzero(fit).flatten()
        with torch.no_grad():
            self.record(points[cases].detach(), self.net(points[cases]), cases)

    def trace(self, grid: Tensor) -> Tensor:
        """Best distance of each case within `grid` propagations (case, grid); infinite before the first success."""
        table = torch.full((len(self.x), len(grid) + 1), INF, dtype=self.x.dtype, device=self.x.device)
        grid = grid.to(self.x.device)
        for cases, count, distance in self.events:
            at = cases * table.shape[1] + torch.searchsorted(grid, count)
            table.view(-1).scatter_reduce_(0, at, distance, "amin")
        return table[:, :-1].cummin(1).values

    def _answer_spent(self, x: Tensor, cases: Tensor, rows: Tensor, scores: Tensor | None) -> Tensor:
        """Scores for the whole query: another class, without gradient, where the budget is spent."""
        if scores is None:
            with torch.no_grad():
                scores = self.net(x[:1])[:0]
        classes = scores.shape[1]
        other = nn.functional.one_hot((self.labels[cases] + 1) % classes, classes).to(x.dtype)
        return (other + 0 * x.flatten(1)[:, :1]).index_copy(0, rows, scores)

    def _match(self, flat: Tensor) -> Tensor:
        """The case (row,) of each row of a query (row, n)."""
        if self.in_order and len(flat) == len(self.x):
            return self._every
        apart = torch.cdist(flat, self._flat).nan_to_num(nan=INF)
        nearest = apart.argmin(1)
        if not self.in_order or len(flat) > len(self.x) or bool((nearest[1:] > nearest[:-1]).all()):
            return nearest
        return _in_order(apart.clamp(max=1e6).square())


def _in_order(cost: Tensor) -> Tensor:
    """The cheapest assignment of rows to strictly later and later columns, for `cost` (row, column)."""
    rows, columns = cost.shape
    total, came = cost.new_zeros(columns + 1), []
    total[1:] = INF  # total[j]: the cheapest way to place the rows so far into the columns before j
    for row in range(rows):
        here = torch.cat([total.new_full((1,), INF), total.cummin(0).values[:-1] + cost[row]])
        came.append(here)
        total = here
    path, end = [], columns + 1
    for here in reversed(came):
        end = int(here[:end].argmin())
        path.append(end - 1)
    return torch.tensor(path[::-1], device=cost.device)


# ------------------------------------------------------------------------------------------------------------- peers


def adv_lib() -> types.ModuleType | None:
    """The module `adv_lib.attacks`, or None where it is not installed."""
    stand_ins = {}
    for name in ("torchvision", "visdom"):
        try:
            importlib.import_module(name)
        except Exception:  # absent, or built for another torch, which fails in many ways
            stand_ins[name] = types.ModuleType(name)
    if "torchvision" in stand_ins:
        stand_ins["torchvision.models"] = stand_ins["torchvision"].models = types.ModuleType("torchvision.models")
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module("adv_lib.attacks")
    except ImportError:
        return None
    finally:
        for name in stand_ins:
            del sys.modules[name]


ADV_LIB = adv_lib()


def by_adv_lib(name: str, **settings: object) -> Attack:
    """An attack of adversarial-library (J. Rony) under its own name."""
    return partial(getattr(ADV_LIB, name), **settings)


def by_foolbox(name: str, **settings: object) -> Attack:
    """An attack of foolbox (Rauber et al. 2020), untargeted."""
    import foolbox

    attack = getattr(foolbox.attacks, name)(**settings)

    def run(net: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        model = foolbox.PyTorchModel(net, bounds=(0, 1), device=x.device)
        return attack.run(model, x, foolbox.criteria.Misclassification(labels))

    return run


def minimal_apgd_t(norm: float, steps: int) -> Attack:
    """Targeted APGD (Croce and Hein 2020) with the radius searched per case: doubled until it wins, then bisected.

    Nine targets of 100 iterations, its usual setting, would spend the whole budget on one radius. Three targets of `steps` / 25
    are the best of 18 settings tried within 2,000 propagations on an MNIST CNN (L2 and L-infinity), and within 1 % of the
    best of 15 on a certified one.
    """
    from adv_lib.attacks.auto_pgd import apgd_targeted

    attack = partial(apgd_targeted, norm=norm, n_iter=max(5, steps // 25), use_large_reps=norm == 1, num_targets=3)

    def run(net: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        radius = torch.full(labels.shape, FIRST_RADIUS[norm][x.shape[1] == 3], dtype=x.dtype, device=x.device)
        lower, upper, best = torch.zeros_like(radius), torch.full_like(radius, INF), x.clone()
        for _ in range(20):
            found = attack(net, x, labels, eps=radius)
            distance = torch.linalg.vector_norm((found - x).flatten(1), norm, dim=1)
            won = (distance > 0) & (distance < upper)  # the input comes back where it fails
            best[won] = found[won]
            upper, lower = torch.where(won, distance, upper), torch.where(won, lower, radius)
            radius = torch.where(torch.isinf(upper), 2 * radius, (lower + upper) / 2)
        return best

    return run


FIRST_RADIUS = {2.0: (1.0, 0.25), INF: (0.1, 2 / 255), 1.0: (10.0, 5.0)}  # for grey and for colour images


def ead(steps: int) -> Attack:
    """EAD (Chen et al. 2018): `steps` shared by its searches for the constant, which starts where MNIST networks need it."""
    searches = 9 if steps > 100 else 3
    return by_foolbox(
        "EADAttack", binary_search_steps=searches, steps=-(-steps // searches), initial_const=10.0, decision_rule="L1"
    )


def alma(norm: float, steps: int) -> Attack:
    """ALMA (Rony et al. 2021), with its authors' settings for few and for many steps."""
    return by_adv_lib(
        "alma", distance=f"l{norm:.0f}", num_steps=steps, α=0.9 if steps > 100 else 0.5,
        init_lr_distance=0.1 if norm == 2 else 0.5,
    )  # fmt: skip


PEERS: dict[float, dict[str, Callable[[int], Attack]]] = {
    2.0: {
        "foolbox-ddn": lambda steps: by_foolbox("DDNAttack", steps=steps),
        "ddn": lambda steps: by_adv_lib("ddn", steps=steps, levels=None),  # it rounds to 8 bits unless told not to
        "fmn": lambda steps: by_adv_lib("fmn", norm=2, steps=steps),  # foolbox's FMN is far off in L2
        "pdgd": lambda steps: by_adv_lib("pdgd", num_steps=steps),
        "alma": lambda steps: alma(2.0, steps),
        "fab": lambda steps: by_adv_lib("fab", norm=2, n_iter=steps),
        "sdf": lambda steps: by_adv_lib("sdf", steps=steps),
        "df": lambda steps: by_adv_lib("df", steps=steps, norm=2),
        "apgd_t": lambda steps: minimal_apgd_t(2.0, steps),
    },
    INF: {
        "apgd_t": lambda steps: minimal_apgd_t(INF, steps),
        "pdpgd": lambda steps: by_adv_lib("pdpgd", norm=INF, num_steps=steps),
        "fmn": lambda steps: by_adv_lib("fmn", norm=INF, steps=steps),
        "fab": lambda steps: by_adv_lib("fab", norm=INF, n_iter=steps),
        "df": lambda steps: by_adv_lib("df", steps=steps, norm=INF),
    },
    1.0: {
        "fmn": lambda steps: by_adv_lib("fmn", norm=1, steps=steps),
        "fab": lambda steps: by_adv_lib("fab", norm=1, n_iter=steps),
        "ead": ead,
        "alma": lambda steps: alma(1.0, steps),
        "pdpgd": lambda steps: by_adv_lib("pdpgd", norm=1, num_steps=steps),
    },
}
SLOW = ("fab", "apgd_t", "ead")
FOOLBOX = ("foolbox-ddn", "ead")


def available(norm: float) -> dict[str, Callable[[int], Attack]]:
    """The peers for a norm that can be run here."""
    return {name: make for name, make in PEERS[norm].items() if ADV_LIB is not None or name in FOOLBOX}
