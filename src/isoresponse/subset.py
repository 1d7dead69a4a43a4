"""The mass of Gaussian noise beyond a level by subset simulation: rare events wherever they lie."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from isoresponse.loop import Status, mark, status_tensor
from isoresponse.neuron import Neuron
from isoresponse.noise import Excess, Mass, draws, evaluate, gaussian_problem, noisy

KEPT = 0.1  # share of the samples of a level from which the next one is grown (Au and Beck 2001)
MOVED = 0.44  # share of moves to be accepted (Papaioannou et al. 2015)
BATCHES = 5  # of chains, between which the size of the moves is adapted


def subset_mass(
    neuron: Neuron,
    x: Float[Tensor, "case *shape"],
    level: float | Float[Tensor, " case"],
    sigma: float | Float[Tensor, " case"],
    *,
    samples: int = 1000,
    most: int = 20,
    generator: Generator,
) -> Mass:
    """The same by subset simulation (Au and Beck 2001): a product of probabilities near 0.1, one after the other.

    From each level's samples the tenth that is farthest up is kept and grown into new samples by Markov chains that stay beyond
    it (conditional sampling with adapted moves, Papaioannou et al. 2015). `samples` forward passes per factor of ten.

    Parameters
    ----------
    samples
        Per level; a multiple of 50. The relative standard error is about sqrt(40 * levels / samples).
    most
        Levels at most; a case that has not arrived by then has status MAX_STEPS, and the probability of the last level it got
        to, which bounds the one asked for from above. So has a case where the response is the same wherever it was seen.

    Raises
    ------
    ValueError
        Invalid inputs, levels or noise; samples that are no multiple of 50; `most` below 1.
    """
    problem, scale = gaussian_problem(neuron, x, level, sigma)
    return subset(noisy(problem, scale), problem.start, samples, most, generator)


def subset(excess: Excess, like: Tensor, samples: int, most: int, generator: Generator) -> Mass:
    """Subset simulation of {excess(z) > 0} for standard normal z (case, n), sizes and dtype as `like`."""
    if samples < 50 or samples % 50:
        raise ValueError(f"samples must be a multiple of 50, got {samples}.")
    if most < 1:
        raise ValueError(f"most must be at least 1 level, got {most}.")
    cases, n = like.shape
    every = torch.arange(cases, device=like.device)
    z = draws(samples, like, generator).expand(cases, samples, n)
    value = evaluate(excess, z, every)
    bad = ~torch.isfinite(value).all(1)
    log, variance = (torch.zeros(cases, dtype=torch.float64, device=like.device) for _ in range(2))
    step = torch.full_like(like[:, 0], 0.6)
    probability, error = torch.full_like(log, torch.nan), torch.full_like(log, torch.nan)
    forwards, status = torch.full_like(every, samples), status_tensor(Status.RUNNING, like)
    status = mark(status, (bad, Status.NOT_FINITE))
    kept = round(KEPT * samples)
    running = torch.nonzero(~bad).flatten()
    z, value = z[running], value[running]
    for depth in range(most):
        if len(running) == 0:
            break
        order = value.argsort(dim=1, descending=True, stable=True)
        threshold = (
            0.5 * (value.gather(1, order[:, kept - 1 : kept]) + value.gather(1, order[:, kept : kept + 1]))[:, 0]
        )
        arrived = threshold >= 0
        bound = torch.where(arrived, torch.zeros_like(threshold), threshold)
        # strictly beyond, here and in the chains: samples on a plateau at the bound are not
        beyond = value > bound[:, None]
        several = beyond.sum(1)
        stuck = several == 0
        share = torch.where(stuck, torch.ones_like(log[running]), several.double() / samples)
        crowded = kept / several.clamp(1, kept)  # fewer seeds than chains
        correlated = 0.0 if depth == 0 else _correlation(beyond, kept)
        spread = (1 - share) / (share * samples) * (1 + correlated)
        variance[running] += spread * torch.where(arrived, torch.ones_like(spread), crowded)
        log[running] += share.log()
        ends = arrived | stuck | (depth == most - 1)
        ended = torch.nonzero(ends).flatten()
        probability[running[ended]] = log[running[ended]].exp()
        error[running[ended]] = probability[running[ended]] * variance[running[ended]].sqrt()
        done = (arrived & ~stuck)[ended]
        status[running[ended]] = torch.where(done, int(Status.DONE), int(Status.MAX_STEPS))
        left = torch.nonzero(~ends).flatten()
        z, value, order, bound, running = z[left], value[left], order[left], bound[left], running[left]
        order = order.gather(1, torch.arange(kept, device=like.device) % several[left, None])
        if len(running) == 0:
            break
        seeds = z.gather(1, order[:, :, None].expand(-1, -1, n)), value.gather(1, order)
        z, value, step[running] = _grow(excess, seeds, bound, step[running], samples, running, generator)
        forwards[running] += samples - kept
        lost = ~torch.isfinite(value).all(1)
        status[running[lost]] = int(Status.NOT_FINITE)
        stay = torch.nonzero(~lost).flatten()
        z, value, running = z[stay], value[stay], running[stay]
    return Mass.of(
        probability.to(like.dtype),
        error.to(like.dtype),
        (torch.zeros_like(forwards), forwards + 1),
        status,
        "subset simulation",
    )


def _grow(
    excess: Excess,
    seeds: tuple[Tensor, Tensor],
    bound: Tensor,
    step: Tensor,
    samples: int,
    cases: Tensor,
    generator: Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Samples (case, sample, n) beyond `bound` grown from the seeds, step by step; their excess; the moves' size.

    Chains are laid out step after step, so sample j * chains + i is step j of chain i.
    """
    start, height = seeds
    running, chains, n = start.shape
    length = samples // chains
    lot = generator.device
    order = torch.randperm(chains, generator=generator, device=lot).to(start.device)
    parts = order.chunk(BATCHES)
    all_z, all_value = start.new_empty((running, length, chains, n)), start.new_empty((running, length, chains))
    for k, part in enumerate(parts):
        z, value = start[:, part], height[:, part]
        all_z[:, 0, part], all_value[:, 0, part] = z, value
        accepted = torch.zeros_like(step)
        size = step.clamp(0.02, 1.0)[:, None, None]
        for j in range(1, length):
            draw = torch.randn((len(part), n), generator=generator, dtype=z.dtype, device=lot).to(z.device)
            tried = (1 - size.square()).clamp_min(0).sqrt() * z + size * draw
            new = evaluate(excess, tried, cases)
            take = ~(new <= bound[:, None])  # a number that is not finite is kept, and ends the case
            z, value = torch.where(take[:, :, None], tried, z), torch.where(take, new, value)
            all_z[:, j, part], all_value[:, j, part] = z, value
            accepted = accepted + take.to(step.dtype).mean(1) / (length - 1)
        step = (step.log() + (accepted - MOVED) / (k + 1) ** 0.5).exp().clamp(0.02, 1.0)
    return all_z.flatten(1, 2), all_value.flatten(1, 2), step


def _correlation(beyond: Tensor, chains: int) -> Tensor:
    """By how much the chains' memory multiplies the variance of a share, less one (case,): Au and Beck (2001)."""
    steps = beyond.double().reshape(len(beyond), -1, chains)
    length = steps.shape[1]
    centred = steps - steps.mean((1, 2), keepdim=True)
    spread = centred.square().mean((1, 2)).clamp_min(1e-12)
    total = torch.zeros_like(spread)
    for lag in range(1, length):
        rho = (centred[:, lag:] * centred[:, :-lag]).mean((1, 2)) / spread
        total = total + 2 * (1 - lag / length) * rho
    return total.clamp_min(0)
